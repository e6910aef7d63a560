"""Memory, time and cost of a configuration, as its own tool runs it, and the smallest change that
fits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from advisor.estimate import hardware_machine
from advisor.estimate.cost import cost_estimate
from advisor.estimate.memory.peak import memory_estimate
from advisor.estimate.memory.verdict import HEAD_ROOM
from advisor.estimate.spec.answers import document_of
from advisor.estimate.types import RunSpec
from advisor.extras.other_tools.conversions import Context, deepspeed_offloads
from advisor.extras.other_tools.file import ToolFile
from advisor.extras.other_tools.mapping import at_key
from advisor.ground.types import DataProfile, GpuSpec, Hardware, ModelShape
from advisor.ground.units import GIB
from advisor.plan.model import Plan, Stage
from advisor.plan.smaller import Change, smallest_that_fits
from advisor.probe.catalogue import cheapest_cards
from advisor.situation.of_plan import amounts, looked_at, run_spec

WHOLE_PROCESS = "nvidia-smi"  # all memory of the process: what has to fit
LIGER = "liger"  # its loss never makes whole logits; without it, all three tools do
SHOWN_CARDS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitting:
    """What a configuration takes on a machine."""

    document: Mapping[str, Any]  # as `advise estimate --json` says it
    cost_usd: float | None = None
    price: str = ""  # where it is from, or why there is none
    change: Change | None = None  # of a plan's keys; None: it fits, or nothing does
    changed: Mapping[str, Any] | None = None  # the document with the change
    cards: tuple[str, ...] = ()  # cheapest cards that hold it as it is

    @property
    def fits(self) -> str:
        """fits, tight, may_fit, too_big or unknown; too big once the need itself is above."""
        found = str(self.document.get("fits", "unknown"))
        is_above = found == "may_fit" and self.document["need_gib"] > self.document["limit_gib"]
        return "too_big" if is_above else found

    @property
    def should_fit(self) -> bool:
        """Only the upper end of the band is above: what the search for a change takes as enough."""
        return self.document.get("fits") == "may_fit" and _is_enough(self.document)


def fitting(
    file: ToolFile, plan: Plan, shape: ModelShape, hardware: Hardware, profile: DataProfile | None
) -> Fitting:
    """What the plan's one stage takes when the tool runs it, with one process a GPU."""
    case = _Case(file, plan, shape, hardware, profile)
    stage = plan.stages[0]
    document = case.document(stage)
    if document.get("peak_gib") is None:
        return Fitting(document=document)
    hours = document.get("hours")
    cost, price = cost_estimate(
        None if hours is None else hours * 3600, max(1, len(hardware.gpus)), case.gpu
    )
    change, cards = None, tuple[str, ...]()
    if document.get("fits") in ("too_big", "may_fit"):
        # Of what is enough already only a change that holds the whole band is one.
        whole_band = _is_enough(document)
        change = smallest_that_fits(stage, lambda one: case.fits(one, whole_band=whole_band))
    if document.get("fits") != "fits":  # the upper end of the band is held
        found = cheapest_cards(round(document["need_high_gib"] * GIB))
        cards = tuple(spec.name for spec in found[:SHOWN_CARDS])
    return Fitting(
        document=document, cost_usd=cost, price=price, change=change, cards=cards,
        changed=None if change is None else case.document(change.applied(stage)),
    )  # fmt: skip


def _is_enough(document: Mapping[str, Any]) -> bool:
    """Whether the need itself leaves a tenth free: bands of other trainers are wide."""
    limit = document.get("limit_gib")
    return limit is not None and document["need_gib"] <= (1 - HEAD_ROOM) * limit


@dataclass(frozen=True, slots=True)
class _Case:
    """What stays the same while changes of the stage are tried."""

    file: ToolFile
    plan: Plan
    shape: ModelShape
    hardware: Hardware
    profile: DataProfile | None

    @property
    def gpu(self) -> GpuSpec | None:
        return self.hardware.gpus[0].spec if self.hardware.gpus else None

    @property
    def cpu(self) -> bool:
        return self.hardware.kind == "cpu"

    def spec(self, stage: Stage) -> RunSpec:
        file, about = self.file, self.file.about
        spec = run_spec(self.plan, stage, profile=self.profile, shape=self.shape, cpu=self.cpu)
        offloads = any(at_key(file.values, key) is True for key in about.offloads)
        if (named := file.values.get("deepspeed")) is not None:
            offloads |= deepspeed_offloads(named, Context(folder=file.path.parent))
        return replace(
            spec, framework=about.name, counter=WHOLE_PROCESS,
            library_versions={**about.made_with, file.tool: about.release},
            loss=spec.loss or ("fused" if stage.kernels == LIGER else "full"),
            offload_weights=offloads and spec.gpus > 1 and spec.sharding in ("fsdp", "zero3"),
        )  # fmt: skip

    def document(self, stage: Stage) -> dict[str, Any]:
        """As `advise estimate --json` says it."""
        spec, profile = self.spec(stage), self.profile
        tokens, rows = amounts(self.plan, stage, profile, None)
        looked = None
        if profile is not None and profile.tokens is not None:
            looked = looked_at(stage, spec, profile)
        return document_of(
            spec, self.shape, cpu=self.cpu, device=self.gpu,
            machine=hardware_machine(self.hardware), tokens_total=tokens, rows_total=rows,
            warnings=[], looked=looked, limit_bytes=self.hardware.device_memory_bytes,
        )  # fmt: skip

    def fits(self, stage: Stage, *, whole_band: bool) -> bool:
        """By its need with a tenth to spare (`_is_enough`), or with the whole band."""
        limit = self.hardware.device_memory_bytes
        found = memory_estimate(
            self.spec(stage), self.shape, cpu=self.cpu, device=self.gpu, device_bytes=limit
        )
        if found is None or limit is None:
            return False
        if whole_band:
            return found.need_high_bytes <= limit
        return found.need_bytes <= (1 - HEAD_ROOM) * limit
