"""TensorBoard and Weights & Biases get the numbers of a training, too (docs/trackers.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from advisor.extras.protocol import Checked, Extra
from advisor.plan.checks import Raise

if TYPE_CHECKING:
    from advisor.launch.call import Call

Tracker = Literal["tensorboard", "wandb"]
TRACKERS: tuple[str, ...] = get_args(Tracker)


@dataclass(frozen=True, kw_only=True)
class TrackerKeys:
    """Its keys of a plan."""

    trackers: Annotated[
        tuple[Tracker, ...],
        "services that get the numbers of metrics.jsonl, too (docs/trackers.md)",
    ] = ()


class Trackers(Extra):
    """The key `trackers`; trainers/frame/trackers.py logs."""

    NAME = "trackers"
    HELP = "logs into TensorBoard and Weights & Biases, too"
    KEYS = TrackerKeys
    BESIDE_STAGES = True
    INSTALLS = "trackers"

    def check_plan(self, data: Mapping[str, Any], report: Raise) -> None:
        named = data.get("trackers")
        seen: set[str] = set()
        for index, name in enumerate(named if isinstance(named, list) else ()):
            if isinstance(name, str) and name in seen:
                report(("trackers", index), f"'{name}' is named twice", "each one once")
            seen.add(str(name))

    def check(self, call: Call) -> Checked:
        from advisor.extras.trackers.check import tracker_faults

        names = call.run.plan.extra_key("trackers", "trackers") or ()
        return Checked(lacking=list(tracker_faults(names)))


EXTRA = Trackers()
