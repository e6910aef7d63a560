"""What of a plan's `launch` no run starts: asked before a run, and before a plan is written for a
scheduler.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from advisor.ground.errors import Fault
from advisor.ground.types import FSDP
from advisor.methods.strategies import refused_by, strategies
from advisor.plan.model import Plan, Stage


def launch_faults(plan: Plan) -> list[Fault]:
    """The faults of `launch` that are certain on every machine."""
    name = plan.launch.strategy
    if name is None or not strategies()[name].instead:
        return []
    found = strategies()[name]
    return [
        Fault(
            where="launch.strategy",
            what=f"launch.strategy is {name}, which is estimated and not started ({found.about})",
            allowed="`advise run` starts one process, or several with ddp or fsdp",
            hint=(
                f"{found.instead} divides as much: --set launch.strategy=fsdp; with --set"
                " launch.offload=true, too, it lies in the computer's memory"
            ),
        )
    ]


class SharingFault(NamedTuple):
    """One fault of `launch`."""

    key: str
    text: str
    allowed: str = ""
    hint: str = ""
    at_key: bool = False  # the key itself is wrong, and not its value


def sharing_faults(launch: Mapping[str, Any], stages: Sequence[Any]) -> Iterator[SharingFault]:
    """What of the raw `launch` has no effect, or does not go with a stage."""
    strategy, device = launch.get("strategy"), launch.get("device", "cpu")
    for key in ("processes", "nodes"):
        if device == "mps" and _count(launch, key) > 1:
            text = f"`{key}` is {launch[key]}, and an Apple GPU trains by itself"
            yield SharingFault(key, text, "1", f"remove {key}")
    if strategy is not None and _count(launch, "processes") * _count(launch, "nodes") == 1:
        text, hint = "`strategy` has no effect: there is one process", "remove it, or set processes"
        yield SharingFault("strategy", text, "", hint, at_key=True)
    # On the CPU it changes nothing, and is let pass: a plan for GPUs is tried there as it is.
    if launch.get("offload") is True and strategy != FSDP:
        text = "`offload` has an effect with `strategy: fsdp` alone"
        yield SharingFault("offload", text, "", "remove it, or set strategy: fsdp", at_key=True)
    if isinstance(strategy, str) and strategy in strategies():
        yield from _refused(strategy, stages)


def goes_with(plan: Plan, stage: Stage) -> bool:
    """Whether the plan's processes can share a stage: one with changed keys, say."""
    keys = ("objective", "update", "quantization", "optimizer")
    return not refused_by(plan.launch.strategy, {key: getattr(stage, key) for key in keys})


def _refused(strategy: str, stages: Sequence[Any]) -> Iterator[SharingFault]:
    """What of each stage does not go with the strategy."""
    for index, stage in enumerate(stages):
        if not isinstance(stage, Mapping):
            continue
        for one in refused_by(strategy, stage):
            name = stage.get("name", stage.get("objective", index))
            text = (
                f"`strategy` is {strategy}, which does not go with {one.key}"
                f" {stage.get(one.key)} (stage {name}): {one.because}"
            )
            yield SharingFault("strategy", text, "", one.hint)


def _count(launch: Mapping[str, Any], key: str) -> int:
    """A number of processes or machines; 1 where it is no number, which is told elsewhere."""
    value = launch.get(key, 1)
    return value if isinstance(value, int) and value > 0 else 1
