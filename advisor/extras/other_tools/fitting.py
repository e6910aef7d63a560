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
from advisor.ground.types import DataProfile, Hardware, ModelShape
from advisor.ground.units import GIB
from advisor.plan.model import Plan, Stage
from advisor.plan.smaller import Change, smallest_that_fits
from advisor.probe.catalogue import cheapest_cards
from advisor.situation.of_plan import amounts, looked_at, run_spec

WHOLE_PROCESS = "nvidia-smi"  # all memory of the process: what has to fit
LIGER = "liger"  # its loss never makes whole logits; without it, all three tools do
SHOWN_CARDS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Trainer:
    """Which tool trains, and with which libraries."""

    name: str
    versions: Mapping[str, str]
    offloads: bool = False  # sharded weights live in host memory


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitting:
    """What a configuration takes on a machine."""

    document: Mapping[str, Any]  # as `advise estimate --json` says it
    cost_usd: float | None
    price: str  # where it is from, or why there is none
    change: Change | None = None  # of a plan's keys; None: it fits, or nothing does
    changed: Mapping[str, Any] | None = None  # the document with the change
    cards: tuple[str, ...] = ()  # cheapest cards that hold it as it is

    @property
    def fits(self) -> str:
        """fits, tight, may_fit, too_big or unknown."""
        return str(self.document.get("fits", "unknown"))

    @property
    def should_fit(self) -> bool:
        """Only the upper end of the band is above the memory: what the search for a smallest change
        takes as enough too, so that its result is not sent back to be changed again.
        """
        return self.fits == "may_fit" and is_enough(self.document)


def fitting(
    trainer: Trainer,
    plan: Plan,
    shape: ModelShape | None,
    hardware: Hardware,
    profile: DataProfile | None,
) -> Fitting | None:
    """What the plan's one stage takes when the tool runs it; None where the model is not known.

    Args:
        trainer: Its traits decide part of the memory (rules/trainers/).
        plan: The configuration as a plan.
        shape: The model's dimensions.
        hardware: The machine; with several GPUs one process each.
        profile: The data, if they are here.
    """
    if shape is None:
        return None
    stage = plan.stages[0]
    document = _document(trainer, plan, stage, shape, hardware, profile)
    if document.get("peak_gib") is None:
        return Fitting(document=document, cost_usd=None, price="")
    hours = document.get("hours")
    gpu = hardware.gpus[0].spec if hardware.gpus else None
    cost, price = cost_estimate(
        None if hours is None else hours * 3600, max(1, len(hardware.gpus)), gpu
    )
    change, changed = None, None
    limit = hardware.device_memory_bytes
    cards = cheapest_that_hold(document) if document.get("fits") != "fits" else ()
    if document.get("fits") in ("too_big", "may_fit") and limit is not None:
        whole_band = is_enough(document)  # then only a change that holds the whole band is one
        change, changed = _smaller(
            trainer, plan, stage, shape, hardware, profile, limit, whole_band=whole_band
        )
    return Fitting(
        document=document, cost_usd=cost, price=price, change=change, changed=changed, cards=cards
    )


def is_enough(document: Mapping[str, Any]) -> bool:
    """Whether the need itself leaves a tenth free: bands of other trainers are wide, and half of
    the model would be given up for their upper end.
    """
    limit = document.get("limit_gib")
    return limit is not None and document["need_gib"] <= (1 - HEAD_ROOM) * limit


def cheapest_that_hold(document: Mapping[str, Any]) -> tuple[str, ...]:
    """The cheapest rented cards with memory for the upper end of the band."""
    cards = cheapest_cards(round(document["need_high_gib"] * GIB))
    return tuple(spec.name for spec in cards[:SHOWN_CARDS])


def _spec(
    trainer: Trainer,
    plan: Plan,
    stage: Stage,
    shape: ModelShape,
    cpu: bool,
    profile: DataProfile | None,
) -> RunSpec:
    spec = run_spec(plan, stage, profile=profile, shape=shape, cpu=cpu)
    loss = spec.loss or ("fused" if stage.kernels == LIGER else "full")
    return replace(
        spec, framework=trainer.name, library_versions=trainer.versions, loss=loss,
        counter=WHOLE_PROCESS,
        offload_weights=trainer.offloads and spec.gpus > 1 and spec.sharding in ("fsdp", "zero3"),
    )  # fmt: skip


def _document(
    trainer: Trainer,
    plan: Plan,
    stage: Stage,
    shape: ModelShape,
    hardware: Hardware,
    profile: DataProfile | None,
) -> dict[str, Any]:
    on_cpu = hardware.kind == "cpu"
    spec = _spec(trainer, plan, stage, shape, on_cpu, profile)
    tokens, rows = amounts(plan, stage, profile, None)
    return document_of(
        spec, shape, cpu=on_cpu, device=hardware.gpus[0].spec if hardware.gpus else None,
        machine=hardware_machine(hardware), tokens_total=tokens, rows_total=rows, warnings=[],
        looked=(
            looked_at(stage, spec, profile)
            if profile is not None and profile.tokens is not None
            else None
        ),
        limit_bytes=hardware.device_memory_bytes,
    )  # fmt: skip


def _smaller(
    trainer: Trainer,
    plan: Plan,
    stage: Stage,
    shape: ModelShape,
    hardware: Hardware,
    profile: DataProfile | None,
    limit: int,
    *,
    whole_band: bool,
) -> tuple[Change | None, dict[str, Any] | None]:
    """The change that alters the result least and fits, with what it then takes: by its need with a
    tenth to spare (`is_enough`), or with the whole band.
    """
    on_cpu = hardware.kind == "cpu"
    device = hardware.gpus[0].spec if hardware.gpus else None

    def fits(one: Stage) -> bool:
        spec = _spec(trainer, plan, one, shape, on_cpu, profile)
        found = memory_estimate(spec, shape, cpu=on_cpu, device=device, device_bytes=limit)
        if found is None:
            return False
        if whole_band:
            return found.need_high_bytes <= limit
        return found.need_bytes <= (1 - HEAD_ROOM) * limit

    change = smallest_that_fits(stage, fits)
    if change is None:
        return None, None
    changed = change.applied(stage)
    return change, _document(trainer, plan, changed, shape, hardware, profile)
