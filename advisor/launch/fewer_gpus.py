"""A plan for more GPUs than there are: what the same training would take on those that are here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from advisor.ground.types import DataProfile, Hardware, ModelShape
from advisor.ground.units import format_gib
from advisor.launch.expected import expect_stage
from advisor.plan.entries import Entry
from advisor.plan.measured_record import Expected
from advisor.plan.model import Plan, Stage
from advisor.plan.sharing_checks import goes_with
from advisor.plan.smaller import Change, as_settings, smallest_that_fits, together

FITS = ("fits", "tight")


@dataclass(frozen=True, kw_only=True, slots=True)
class OnFewer:
    """What the plan would take on the GPUs that are here."""

    words: str  # "on 1 GPU it would fit: 9.1 GiB of 24.0 GiB, and take about twice as long"
    settings: str  # for the command line; empty where nothing of ours fits


def on_fewer(
    plan: Plan,
    todo: Sequence[Entry],
    shape: ModelShape | None,
    hardware: Hardware,
    profiles: Mapping[str, DataProfile],
) -> OnFewer:
    """What the same training with as many rows a step takes on all GPUs of this machine.

    Args:
        plan: For more processes than there are GPUs.
        todo: Its entries that are still to be trained.
        hardware: The machine, with one GPU at least.
    """
    count = len(hardware.gpus)
    gpus = "1 GPU" if count == 1 else f"{count} GPUs"
    strategy = None if count == 1 else plan.launch.strategy
    offload = plan.launch.offload and strategy is not None
    launch = replace(plan.launch, processes=count, strategy=strategy, offload=offload)
    fewer = replace(plan, launch=launch)
    words = ["--set launch.processes=" + str(count)]
    if strategy != plan.launch.strategy:
        words.append("--set launch.strategy=null")
    if offload != plan.launch.offload:
        words.append("--set launch.offload=false")

    def expected(entry: Entry, stage: Stage) -> Expected:
        changed = replace(entry, stage=stage)
        return expect_stage(fewer, changed, shape, hardware, profile=profiles.get(entry.data.path))

    changes, fullest = dict[str, str](), None
    for entry in todo:
        rows = _as_many_rows(entry.stage, plan.launch.processes, count)
        found = expected(entry, rows.applied(entry.stage))
        if found.fits not in (*FITS, "unknown"):
            smaller = smallest_that_fits(
                rows.applied(entry.stage),
                lambda stage, entry=entry: (  # type: ignore[misc]
                    goes_with(fewer, stage) and expected(entry, stage).fits in FITS
                ),
            )
            if smaller is None:
                here = f"on {gpus} {_needs(found, entry)}: it does not fit"
                return OnFewer(words=here, settings="")
            rows = together([rows, smaller])
            found = expected(entry, rows.applied(entry.stage))
        changes[entry.stage.name] = as_settings(entry, rows)
        if fullest is None or (found.need_bytes or 0) > (fullest[0].need_bytes or 0):
            fullest = found, entry
    assert fullest is not None  # a run has an entry to train
    longer = f"about {plan.launch.processes / count:.2g} times as long"
    what = f"{_needs(*fullest)}: it fits, and takes {longer}" if fullest[0].need_bytes else longer
    return OnFewer(words=f"on {gpus} {what}", settings=" ".join((*words, *changes.values())))


def _as_many_rows(stage: Stage, wanted: int, there: int) -> Change:
    """More accumulation, so that a step reads as many rows on fewer GPUs, or as nearly as it
    divides.
    """
    accum = max(1, round(stage.grad_accum * wanted / there))
    return Change({"grad_accum": accum}, "as many rows a step on fewer GPUs")


def _needs(found: Expected, entry: Entry) -> str:
    need, limit = found.need_bytes, found.limit_bytes
    if need is None or limit is None:
        return f"stage {entry.name}"
    return f"stage {entry.name} needs about {format_gib(need)} of {format_gib(limit)}"
