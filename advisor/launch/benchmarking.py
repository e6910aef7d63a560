"""The benchmarks of a plan, around the training: the base before it, the results after it, each by
a process of its own that runs while no trainer holds the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from advisor.ground.errors import AdviseError, Fault, OutOfMemory, TrainingFailed
from advisor.ground.units import format_duration
from advisor.launch.failure_report import KINDS, forget_errors, read_error
from advisor.launch.prepare import PlanRun
from advisor.launch.record_keeper import RecordKeeper, Say
from advisor.launch.trainer_process import TrainerStarter
from advisor.plan.benchmark_record import (
    BASE,
    FOLDER,
    BenchmarkRecord,
    ModelScores,
    compared,
    seconds_of,
)
from advisor.plan.benchmarks import (
    forget_others,
    limit_of,
    measured_stages,
    missing_tasks,
    read_scores,
    shown_task,
)
from advisor.plan.harness_tasks import harness_version
from advisor.plan.model import Plan
from advisor.plan.record import RunRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmarker:
    """The benchmarks of one call of `advise run`."""

    run: PlanRun
    starter: TrainerStarter
    keeper: RecordKeeper
    judge: bool  # False: none are asked
    say: Say

    @property
    def plan(self) -> Plan:
        return self.run.copy

    def before(self) -> None:
        """Ask the base what it was not asked yet, so that a benchmark that cannot be run ends the
        command before anything is trained.

        Raises what the benchmarks raised, KeyboardInterrupt if it was stopped.
        """
        if not self._is_asked or not self._missing(BASE):
            return
        self._measure([BASE])
        scores = self._scores(BASE)
        self.say(
            f"benchmarks before training: {_said(scores)}; took"
            f" {format_duration(seconds_of([scores]))}, and each result takes about as long again"
        )

    def after(self) -> None:
        """Ask the finished results, and keep the comparison in run.json. Raises as `before`."""
        if not self._is_asked:
            return
        names = [stage.name for stage in measured_stages(self.keeper.record)]
        missing = [name for name in names if self._missing(name)]
        if missing and self._is_of_another_harness():
            self.say("lm-evaluation-harness has another version now: the base is asked again")
            (self.run.folder / FOLDER / f"{BASE}.json").unlink(missing_ok=True)
        wanted = [*([BASE] if names and self._missing(BASE) else []), *missing]
        if wanted:
            self._measure(wanted)
        self.keeper.compared_benchmarks(self._compared(names))

    @property
    def _is_asked(self) -> bool:
        return self.judge and self.plan.evaluation is not None

    def _missing(self, name: str) -> list[str]:
        return missing_tasks(self.plan, self.run.folder, self.run.folder, self.keeper.record, name)

    def _scores(self, name: str) -> ModelScores:
        assert self.plan.evaluation is not None
        found = read_scores(self.run.folder, name)
        return replace(found, tasks=forget_others(found.tasks, self.plan.evaluation.tasks))

    def _is_of_another_harness(self) -> bool:
        before = read_scores(self.run.folder, BASE).versions.get("lm_eval")
        return before is not None and before != harness_version()

    def _compared(self, names: Sequence[str]) -> BenchmarkRecord:
        evaluation = self.plan.evaluation
        assert evaluation is not None
        before, after = self._scores(BASE), {name: self._scores(name) for name in names}
        return BenchmarkRecord(
            tasks=evaluation.tasks,
            max_drop=evaluation.max_drop,
            limit=limit_of(self.plan, self.keeper.record.max_steps),
            chat_template=before.chat_template,
            seconds=seconds_of([before, *after.values()]),
            changes=tuple(
                change
                for name, scores in after.items()
                for change in compared(before, scores, result=name, max_drop=evaluation.max_drop)
            ),
        )

    def _measure(self, names: Sequence[str]) -> None:
        """Ask these models. Raises what went wrong, KeyboardInterrupt if it was stopped."""
        folder = self.run.folder / FOLDER
        forget_errors(folder)
        on = ", ".join("the base" if name == BASE else name for name in names)
        assert self.plan.evaluation is not None
        told = ", ".join(map(shown_task, self.plan.evaluation.tasks))
        untold = "; how long they take is not estimated" if names == [BASE] else ""
        self.say(f"benchmarks on {on}: {told}{untold}")
        ended = self.starter.ask_benchmarks(self.run.folder, names)
        if ended.was_stopped:
            raise KeyboardInterrupt
        if ended.code != 0:
            raise _failure(folder, ended.code, is_trained=names != [BASE])


def _failure(folder: Path, code: int, *, is_trained: bool) -> AdviseError:
    """Why the benchmarks ended without scores."""
    what = "the benchmarks could not be run"
    told = read_error(folder)
    beside = "; the results are trained and saved" if is_trained else "; nothing was trained yet"
    if told is None:
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        kind = OutOfMemory if code == -9 else TrainingFailed
        return kind(
            f"{what} ({how}){beside}",
            where="evaluation.tasks",
            hint="its messages are above; --no-judge trains without them",
        )
    kind_of = KINDS.get(told.exit_code or code, TrainingFailed)
    return kind_of(
        faults=[
            Fault(what=f"{told.what}{beside}", allowed=told.allowed, hint=told.hint),
        ]
    )


def _said(scores: ModelScores) -> str:
    """'arc_easy acc 0.612, ...'."""
    said = [
        f"{score.benchmark} {score.metric} {score.value:.3g}"
        for scored in scores.tasks.values()
        for score in scored.scores
    ]
    more = f" and {len(said) - 3} more" if len(said) > 3 else ""
    return ", ".join(said[:3]) + more


def misses_benchmarks(run: PlanRun, record: RunRecord) -> bool:
    """Whether a result of a run is finished and was not asked what the plan wants now, or run.json
    compares it by another limit.
    """
    evaluation = run.copy.evaluation
    if evaluation is None:
        return False
    found = record.benchmarks
    names = [stage.name for stage in measured_stages(record)]
    return (
        found is None
        or (found.tasks, found.max_drop) != (evaluation.tasks, evaluation.max_drop)
        or found.limit != limit_of(run.copy, record.max_steps)
        or not set(names) <= {change.result for change in found.changes}
        or any(missing_tasks(run.copy, run.folder, run.folder, record, name) for name in names)
    )
