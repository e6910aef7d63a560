"""What the estimator expects a stage to need: memory, time, disk. Every part may be unknown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

from advisor.estimate.past.runs import NO_RUNS, PastRuns, machine_name
from advisor.estimate.types import Estimate, MemoryEstimate, RunSpec, WholeTime
from advisor.ground.types import DataProfile, Hardware, ModelShape
from advisor.methods import update
from advisor.plan.entries import Entry
from advisor.plan.model import Plan, Stage
from advisor.record.stage import Expected, ExpectedTerm, LearnedRecord, Times
from advisor.situation.of_plan import amounts, looked_at, padded_length, run_spec

KEPT_CHECKPOINTS = 3  # two stay; a third exists while it replaces the older one
KEPT_BEST = 3  # weights of the best step: of the newest checkpoint's, of a later one, and a new one
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def expect_stage(
    plan: Plan,
    entry: Entry,
    shape: ModelShape | None,
    hardware: Hardware,
    *,
    profile: DataProfile | None = None,
    max_steps: int | None = None,
    judge: bool = True,
    past: PastRuns = NO_RUNS,
) -> Expected:
    """Expected memory with its band, and duration; `unknown` names what the estimate lacks.

    `peak_bytes` is what the whole process occupies, `need_bytes` what of it must be free, which
    decides whether it fits. `counted_bytes` is the part that the trainer counts, to compare with
    the measured peak: on a GPU what is allocated there, on the CPU what the process grows by above
    the interpreter.
    """
    from advisor.estimate import estimate

    on_cpu = hardware.kind == "cpu"
    spec = run_spec(
        plan, entry.stage, profile=profile, shape=shape, cpu=on_cpu, max_steps=max_steps
    )
    tokens, rows = amounts(plan, entry.stage, profile, max_steps)
    looked = None
    if tokens is not None and rows is not None and profile is not None:
        looked = replace(
            looked_at(entry.stage, spec, profile), trial=max_steps is not None, judge=judge
        )
    found = estimate(
        spec,
        shape,
        hardware,
        tokens_total=tokens,
        rows_total=rows,
        looked=looked,
        padded_length=padded_length(plan, entry.stage, profile, unpadded=spec.unpadded),
        past=past,
    )
    memory = found.memory
    counted, by_formula = counted_peaks(spec, shape, hardware, past)
    return Expected(
        peak_bytes=memory.peak_bytes if memory else None,
        low_bytes=memory.low_bytes if memory else None,
        high_bytes=memory.high_bytes if memory else None,
        need_bytes=memory.need_bytes if memory else None,
        need_low_bytes=memory.need_low_bytes if memory else None,
        need_high_bytes=memory.need_high_bytes if memory else None,
        counted_bytes=counted,
        moment=memory.peak.name if memory else None,
        terms=tuple(
            ExpectedTerm(name=term.name, bytes=term.size_bytes)
            for term in (memory.peak.terms if memory else ())
            if term.size_bytes
        ),
        limit_bytes=found.limit_bytes,
        fits=found.fits,
        step_s=found.step_s,
        duration_s=found.duration_s,
        times=expected_times(found.times),
        learned=_learned(found, by_formula),
        unknown=tuple(found.unknown),
    )


def memory_of_tensors(
    spec: RunSpec,
    shape: ModelShape | None,
    hardware: Hardware,
    past: PastRuns = NO_RUNS,
    *,
    counter: str = "allocated",
) -> tuple[MemoryEstimate, MemoryEstimate] | None:
    """(what the trainer's own counter will read, the same by the formula alone); None where the
    model's dimensions are not known.

    Args:
        counter: allocated or reserved, on a GPU; on the CPU they are one.
    """
    from advisor.estimate.memory.peak import memory_estimate
    from advisor.estimate.past.corrections import with_lesson

    if shape is None:
        return None
    cpu = hardware.kind == "cpu"
    device = hardware.gpus[0].spec if hardware.gpus else None
    spec = replace(spec, counter=counter)
    memory = memory_estimate(spec, shape, cpu=cpu, device=device)
    if memory is None:
        return None
    lesson = past.lesson(spec, shape, machine_name(hardware)) if past else None
    return with_lesson(memory, lesson, counter=counter, cpu=cpu)[0], memory


def counted_peaks(
    spec: RunSpec,
    shape: ModelShape | None,
    hardware: Hardware,
    past: PastRuns = NO_RUNS,
    *,
    counter: str = "allocated",
) -> tuple[int | None, int | None]:
    """The peaks of `memory_of_tensors`, without what no counter of the trainer sees."""
    from advisor.estimate.past.corrections import counted_bytes

    found = memory_of_tensors(spec, shape, hardware, past, counter=counter)
    if found is None:
        return None, None
    corrected, by_formula = found
    return counted_bytes(corrected.peak), counted_bytes(by_formula.peak)


def _learned(found: Estimate, counted: int | None) -> LearnedRecord | None:
    """What earlier runs changed, in the form of the record."""
    if found.learned is None:
        return None
    same = {
        field.name: getattr(found.learned, field.name)
        for field in fields(LearnedRecord)
        if hasattr(found.learned, field.name)
    }
    return LearnedRecord(**same, formula_counted_bytes=counted)


def expected_times(times: WholeTime | None) -> Times | None:
    """The parts of the estimate in the form of the record, in whole tenths of a second."""
    if times is None:
        return None
    load_s = round(times.load_s + times.prepare_s, 1)
    before_s, after_s = round(times.before_s, 1), round(times.after_s, 1)
    train_s = round(times.train_s + times.evaluate_s + times.save_s, 1)
    return Times(
        total_s=round(load_s + before_s + train_s + after_s, 1),
        load_s=load_s,
        before_s=before_s,
        train_s=train_s,
        after_s=after_s,
    )


def disk_need(
    plan: Plan, entry: Entry, shape: ModelShape | None, model_folder: Path | None
) -> int | None:
    """Bytes that the stage's checkpoints and its result take; None if the model's size is not
    known.

    A checkpoint holds what is trained, in the dtype of the weights (modules: float32), and what the
    optimizer keeps of it; the weights of the best step (keep: best) stand alone.
    """
    stage = entry.stage
    copies = 1 + KEPT_CHECKPOINTS + (KEPT_BEST if stage.keep == "best" else 0)
    states = _optimizer_state(plan, stage, shape)
    if not update(stage.update).is_module:
        size = model_bytes(shape, model_folder, stage.weights_dtype)
        if size is None:
            return None
        kept = 2 * size if states is None else states  # AdamW's, as wide as the weights
        return size * copies + KEPT_CHECKPOINTS * kept
    trainable = _trainable(plan, stage, shape)
    if trainable is None or states is None:
        return None
    return 4 * trainable * copies + KEPT_CHECKPOINTS * states


def _optimizer_state(plan: Plan, stage: Stage, shape: ModelShape | None) -> int | None:
    """Bytes of the optimizer's state; None if the model's shape is not known."""
    from advisor.estimate.memory.optimizer_states import state_size
    from advisor.estimate.model.dims import dims_of
    from advisor.estimate.resolved_run import resolve

    dims = dims_of(shape) if shape is not None else None
    if dims is None:
        return None
    spec = replace(run_spec(plan, stage), gpus=1, sharding=None)
    return round(state_size(resolve(spec, dims)))


def model_bytes(shape: ModelShape | None, folder: Path | None, dtype: str) -> int | None:
    """Bytes of the model's weights in a dtype: by its parameter count, else by its files."""
    if shape is not None:
        return shape.params * BYTES[dtype]
    sizes = (
        [path.stat().st_size for path in folder.glob("*.safetensors")] if folder is not None else []
    )
    return sum(sizes) or None


def _trainable(plan: Plan, stage: Stage, shape: ModelShape | None) -> int | None:
    from advisor.estimate.model.dims import dims_of
    from advisor.estimate.resolved_run import trainable_params

    dims = dims_of(shape) if shape is not None else None
    return None if dims is None else trainable_params(dims, run_spec(plan, stage))


def sum_known(parts: Mapping[str, int | None]) -> int | None:
    """The sum of the parts that are known; None if none is."""
    known = [part for part in parts.values() if part is not None]
    return sum(known) if known else None
