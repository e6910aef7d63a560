"""What the estimator expects a stage to need: memory, time, disk. Every part may be unknown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from advisor.estimate import NO_MODEL, estimate, hardware_machine, time_estimate
from advisor.estimate.memory.optimizer_states import state_size
from advisor.estimate.memory.peak import memory_estimate
from advisor.estimate.past_runs import (
    NO_RUNS,
    PastRuns,
    correct_memory,
    counted_bytes,
    machine_name,
)
from advisor.estimate.run import Run
from advisor.estimate.types import Estimate, MemoryEstimate, WholeTime
from advisor.ground.errors import AdviseError
from advisor.ground.types import DataProfile, Hardware, ModelShape
from advisor.methods import update
from advisor.plan.checks import can_share
from advisor.plan.entries import Entry
from advisor.plan.model import Plan, Stage
from advisor.record.stage import Expected, ExpectedTerm, LearnedRecord, Times
from advisor.situation.of_plan import evaluation_rows, plan_run

KEPT_CHECKPOINTS = 3  # two stay; a third exists while it replaces the older one
KEPT_BEST = 3  # weights of the best step: of the newest checkpoint's, of a later one, and a new one
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class StageEstimator:
    """Estimates the stages of one plan, for its model on the part of a machine that it uses."""

    plan: Plan
    shape: ModelShape | None
    hardware: Hardware
    past: PastRuns = NO_RUNS  # correct the estimates
    # Path of the data as written -> what they are.
    profiles: Mapping[str, DataProfile] = field(default_factory=dict)
    max_steps: int | None = None  # the limit of a trial run
    judge: bool = True

    def run_of(
        self, stage: Stage, profile: DataProfile | None = None, max_steps: int | None = None
    ) -> Run | None:
        """What the estimate of a stage is about; None if nothing is known of the model."""
        if self.shape is None:
            return None
        return plan_run(self.plan, stage, self.shape, self.hardware, profile, max_steps)

    def expect(self, entry: Entry) -> Expected:
        """Expected memory with its band, and duration; `unknown` names what the estimate lacks.

        `peak_bytes` is what the whole process occupies, `need_bytes` what of it must be free, which
        decides whether it fits. `counted_bytes` is the part that the trainer counts, to compare
        with the measured peak: on a GPU what is allocated there, on the CPU what the process grows
        by above the interpreter.
        """
        evaluated, profile = None, self.profiles.get(entry.data.path)
        run = self.run_of(entry.stage, profile, self.max_steps)
        if run is not None and profile is not None:
            run = replace(run, rows=replace(run.rows, in_epoch=profile.rows))
            if run.rows.tokens_total is not None:
                evaluated = replace(
                    evaluation_rows(entry.stage, profile),
                    trial=self.max_steps is not None,
                    judge=self.judge,
                )
        found = NO_MODEL
        if run is not None:
            found = estimate(run, self.hardware, evaluated=evaluated, past=self.past)
        memory = found.memory
        counted, by_formula = (None, None) if run is None else self.counted_peaks(run)
        expected = Expected(
            counted_bytes=counted,
            limit_bytes=found.limit_bytes,
            fits=found.fits,
            step_s=found.step_s,
            duration_s=found.duration_s,
            times=expected_times(found.times),
            learned=_learned(found, by_formula),
            unknown=tuple(found.unknown),
        )
        if memory is None:
            return expected
        return replace(
            expected,
            peak_bytes=memory.peak_bytes,
            low_bytes=memory.low_bytes,
            high_bytes=memory.high_bytes,
            need_bytes=memory.need_bytes,
            need_low_bytes=memory.need_low_bytes,
            need_high_bytes=memory.need_high_bytes,
            moment=memory.peak.name,
            terms=tuple(
                ExpectedTerm(name=term.name, bytes=term.size_bytes)
                for term in memory.peak.terms
                if term.size_bytes
            ),
        )

    def memory(
        self, run: Run, counter: str = "allocated"
    ) -> tuple[MemoryEstimate, MemoryEstimate] | None:
        """(what the trainer's own counter will read, the same by the formula alone); None if the
        model's dimensions are not known.

        Args:
            counter: allocated or reserved, on a GPU; on the CPU they are one.
        """
        run = replace(run, device=replace(run.device, counter=counter, memory_bytes=None))
        memory = memory_estimate(run)
        if memory is None:
            return None
        lesson = self.past.lesson(run, machine_name(self.hardware)) if self.past else None
        return correct_memory(memory, lesson, run)[0], memory

    def counted_peaks(self, run: Run, counter: str = "allocated") -> tuple[int | None, int | None]:
        """The peaks of `memory`, without what no counter of the trainer sees."""
        found = self.memory(run, counter)
        if found is None:
            return None, None
        corrected, by_formula = found
        return counted_bytes(corrected.peak), counted_bytes(by_formula.peak)

    def peak_bytes(self, stage: Stage) -> int | None:
        """Peak memory of a stage, corrected by past runs; None if it is not known, or the plan's
        strategy does not start the stage.
        """
        run = self.run_of(stage)
        if run is None or not can_share(self.plan, stage):
            return None
        try:
            found = self.memory(run)
        except AdviseError:
            return None
        return found[0].need_bytes if found is not None else None

    def longest_step_s(self, run: Run) -> float | None:
        """Seconds of a step by the formula, of rows that are all as long as the longest."""
        machine = hardware_machine(self.hardware)
        if machine is None:
            return None
        stage = replace(run.stage, seq_len=run.longest_tokens)
        time = time_estimate(replace(run, stage=stage), machine)
        return None if time is None else time.step_s


def _learned(found: Estimate, counted: int | None) -> LearnedRecord | None:
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
    total_s = round(load_s + before_s + train_s + after_s, 1)
    return Times(
        total_s=total_s, load_s=load_s, before_s=before_s, train_s=train_s, after_s=after_s
    )


def disk_need(
    plan: Plan, stage: Stage, shape: ModelShape | None, model_folder: Path | None
) -> int | None:
    """Bytes that the stage's checkpoints and its result take; None if the model's size is not
    known.

    A checkpoint holds what is trained, in the dtype of the weights (modules: float32), and what the
    optimizer keeps of it; the weights of the best step (keep: best) stand alone.
    """
    copies = 1 + KEPT_CHECKPOINTS + (KEPT_BEST if stage.keep == "best" else 0)
    run = None
    if shape is not None:
        run = plan_run(plan, stage, shape, Hardware(kind="unknown", origin="stated"))
    is_sized = run is not None and run.is_sized
    states = None
    if run is not None and is_sized:
        alone = replace(run, device=replace(run.device, gpus=1, sharding=None))
        states = round(state_size(alone))
    if not update(stage.update).is_module:
        size = model_bytes(shape, model_folder, stage.weights_dtype)
        if size is None:
            return None
        kept = 2 * size if states is None else states  # AdamW's, as wide as the weights
        return size * copies + KEPT_CHECKPOINTS * kept
    if run is None or states is None:
        return None
    return 4 * run.trainable * copies + KEPT_CHECKPOINTS * states


def model_bytes(shape: ModelShape | None, folder: Path | None, dtype: str) -> int | None:
    """Bytes of the model's weights in a dtype: by its parameter count, else by its files."""
    if shape is not None:
        return shape.params * BYTES[dtype]
    files = folder.glob("*.safetensors") if folder is not None else ()
    return sum(path.stat().st_size for path in files) or None
