"""What the estimator expects a stage to need: memory, time, disk. Every part may be unknown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct, field
from msgspec.structs import asdict, replace

from advisor.estimate import NO_MODEL, estimate
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
from advisor.estimate.types import MemoryEstimate, WholeTime
from advisor.ground.errors import AdviseError
from advisor.ground.types import DataProfile, Hardware, ModelShape
from advisor.methods import update
from advisor.plan.checks import can_share
from advisor.plan.entries import Entry
from advisor.plan.model import Plan, Stage
from advisor.record.stage import Expected, ExpectedTerm, LearnedRecord, Times
from advisor.situation.of_plan import evaluation_rows, plan_run

KEPT_CHECKPOINTS = 3  # two stay; a third exists while it replaces the older one
KEPT_BEST = 1  # with keep: best, an older one that was the best step
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class StageEstimator(Struct, frozen=True, kw_only=True):
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
        if run is not None and profile is not None and run.rows.tokens_total is not None:
            evaluated = replace(
                evaluation_rows(entry.stage, profile),
                trial=self.max_steps is not None,
                judge=self.judge,
            )
        found, counted, by_formula = NO_MODEL, None, None
        if run is not None:
            found = estimate(run, self.hardware, evaluated=evaluated, past=self.past)
            counted, by_formula = self.counted_peaks(run)
        learned = None
        if found.learned is not None:
            learned = LearnedRecord(**asdict(found.learned), formula_counted_bytes=by_formula)
        expected = Expected(
            counted_bytes=counted,
            limit_bytes=found.limit_bytes,
            fits=found.fits,
            step_s=found.step_s,
            duration_s=found.duration_s,
            times=expected_times(found.times),
            learned=learned,
            unknown=tuple(found.unknown),
        )
        if found.memory is None:
            return expected
        names = (
            "peak_bytes", "low_bytes", "high_bytes", "need_bytes", "need_low_bytes",
            "need_high_bytes",
        )  # fmt: skip
        return replace(
            expected,
            **{name: getattr(found.memory, name) for name in names},
            moment=found.memory.peak.name,
            terms=tuple(
                ExpectedTerm(name=term.name, bytes=term.size_bytes)
                for term in found.memory.peak.terms
                if term.size_bytes
            ),
        )

    def _peaks(self, run: Run, counter: str) -> tuple[MemoryEstimate, MemoryEstimate] | None:
        """(what the trainer's own counter will read, the same by the formula alone); None if the
        model's dimensions are not known.
        """
        run = replace(run, device=replace(run.device, counter=counter, memory_bytes=None))
        memory = memory_estimate(run)
        if memory is None:
            return None
        lesson = self.past.lesson(run, machine_name(self.hardware)) if self.past else None
        return correct_memory(memory, lesson, run)[0], memory

    def counted_peaks(self, run: Run, counter: str = "allocated") -> tuple[int | None, int | None]:
        """The peak that the trainer's own counter will read, and the same by the formula alone,
        without what no counter of the trainer sees; (None, None) if it is not known.

        Args:
            counter: allocated or reserved, on a GPU; on the CPU they are one.
        """
        found = self._peaks(run, counter)
        if found is None:
            return None, None
        return counted_bytes(found[0].peak), counted_bytes(found[1].peak)

    def peak_bytes(self, stage: Stage) -> int | None:
        """Peak memory of a stage, corrected by past runs; None if it is not known, or the plan's
        strategy does not start the stage.
        """
        run = self.run_of(stage)
        if run is None or not can_share(self.plan, stage):
            return None
        try:
            found = self._peaks(run, "allocated")
        except AdviseError:
            return None
        return found[0].need_bytes if found is not None else None


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
    optimizer keeps of it.
    """
    checkpoints = KEPT_CHECKPOINTS + (KEPT_BEST if stage.keep == "best" else 0)
    copies = 1 + checkpoints
    run, states = None, None
    if shape is not None:
        run = plan_run(plan, stage, shape, Hardware(kind="unknown", origin="stated"))
    if run is not None and run.is_sized:
        states = state_size(replace(run, device=replace(run.device, gpus=1, sharding=None)))
    if update(stage.update).is_module:
        if run is None or states is None:
            return None
        return 4 * run.trainable * copies + checkpoints * round(states)
    files = model_folder.glob("*.safetensors") if model_folder is not None and not shape else ()
    size = sum(path.stat().st_size for path in files)
    size = shape.params * BYTES[stage.weights_dtype] if shape is not None else size
    kept = 2 * size if states is None else round(states)  # AdamW's, as wide as the weights
    return size * copies + checkpoints * kept if size else None
