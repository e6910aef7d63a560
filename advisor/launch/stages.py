"""Trains what is left of a run: one child process per stage, the record kept after every change."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from advisor.ground.errors import AdviseError, InputError, OutOfMemory, Stopped
from advisor.ground.extras import extras
from advisor.ground.files import PLAN_FILE, write_atomically
from advisor.ground.units import IN_EVERY_RUN, format_whole_time
from advisor.launch.call import Call
from advisor.launch.failure_report import (
    adjustments,
    explain_failure,
    forget_errors,
    next_attempt,
    oom_kills,
    smaller_hint,
    stage_as_run,
)
from advisor.launch.folder import is_untrained
from advisor.launch.generation_server import serving
from advisor.launch.prepare import PlanRun
from advisor.launch.record_keeper import Ending, RecordKeeper, end_run, with_resume
from advisor.launch.teaching import note_training
from advisor.launch.trainer_process import Ended, TrainerStarter
from advisor.methods import may_share_base, objective
from advisor.plan.entries import Entry
from advisor.record.files import trained_record, try_read_part
from advisor.record.next_step import resume_command
from advisor.record.run import (
    CROSS,
    DOING,
    DONE,
    RESULT,
    CrossEvaluation,
    FinishedRun,
    RunRecord,
    StageResult,
    Status,
)


class StageRunner(Struct, frozen=True, kw_only=True):
    """One call of `advise run` while it holds the lock of the folder."""

    call: Call
    starter: TrainerStarter
    keeper: RecordKeeper
    is_new: bool  # this call made the folder

    @property
    def run(self) -> PlanRun:
        """The plan and its folder."""
        return self.call.run

    @property
    def resume(self) -> str:
        """The command that resumes this call."""
        options = self.call.options
        command = resume_command(
            self.run.shown_folder,
            only=options.only,
            max_steps=options.max_steps,
            judge=options.judge,
        )
        return command + ("   (on every machine)" if self.run.plan.launch.nodes > 1 else "")

    def train(self) -> FinishedRun:
        """Train what is not done yet, stage by stage.

        Raises TrainingFailed, InputError, MachineNotReady or Stopped, as a stage ended; run.json
        says the same.
        """
        selected = self.call.selected
        groups = self._groups()
        self._refuse_missing_start()
        write_atomically(self.run.folder / PLAN_FILE, self.run.copy_text)
        try:
            self.keeper.save()
            if groups:
                for extra in extras().values():
                    extra.before(self)
            for group in groups:
                first, last = selected.index(group[0]) + 1, selected.index(group[-1]) + 1
                span = f"{first}" if first == last else f"{first} to {last}"
                left: Sequence[Entry] = group
                while left:  # again with a smaller micro-batch as long as memory runs out
                    left = self._train_group(left, f"{span} of {len(selected)}")
            self._compare_modules()
            for name, extra in extras().items():
                if (noted := extra.after(self)) is not None:
                    self.keeper.note_extra(name, noted)
        except KeyboardInterrupt:  # between two stages, or behind the last one
            if self._finish(stopped=True) != DONE:
                raise with_resume(Stopped("stopped between two stages"), self.resume) from None
            return FinishedRun(folder=self.run.folder, record=self.keeper.record)
        except AdviseError as error:
            if isinstance(error, InputError) and self.is_new and is_untrained(self.run.folder):
                shutil.rmtree(self.run.folder, ignore_errors=True)  # refused: all is as it was
                raise
            error = with_resume(error, self.resume)
            self.keeper.end_with(error)
            raise error from None
        self._finish()
        done = FinishedRun(folder=self.run.folder, record=self.keeper.record)
        keeper, say = self.keeper, self.call.options.say
        return end_run(
            Ending(run=done, plan=self.run.copy, keeper=keeper, say=say, again=self.resume)
        )

    def _finish(self, *, stopped: bool = False) -> Status:
        """How the run ends: one that was stopped while something was left to do is not done."""
        left = stopped and self.call.options.judge and is_unfinished(self.run, self.keeper.record)
        return self.keeper.finish(self.run, complete=not left)

    def _groups(self) -> list[list[Entry]]:
        """What is left, in groups that one process trains.

        Modules of several tasks share a base, which is then loaded once.
        """
        left = []
        for entry in self.call.selected:
            if self.keeper.is_done(entry.name):
                self.call.options.say(f"stage {entry.name}: already done")
            else:
                left.append(entry)
        if not self.run.plan.tasks or self.run.plan.launch.world_size > 1:
            return [[entry] for entry in left]
        order = [stage.name for stage in self.run.plan.stages]
        left.sort(key=lambda entry: order.index(entry.stage.name))  # one stage of all tasks first
        groups: list[list[Entry]] = []
        for entry in left:
            if groups and share_base(groups[-1][0], entry):
                groups[-1].append(entry)
            else:
                groups.append([entry])
        return groups

    def _refuse_missing_start(self) -> None:
        """Raise InputError if --only skips a stage that another one starts from or is scored by."""
        coming = {entry.name for entry in self.call.selected}
        for entry in self.call.selected:
            for name in entry.needs:
                if name not in coming and not self.keeper.is_done(name):
                    how = "starts from" if name == entry.starts_from else "is scored by"
                    raise InputError(
                        f"stage {entry.name} {how} {name}, which is not trained yet in"
                        f" {self.run.shown_folder}",
                        where=f"stage {entry.name}",
                        hint=f"train it first with --only {name}, or all stages without --only",
                    )

    def _announce(self, entry: Entry, position: str) -> None:
        say, again = self.call.options.say, (self._folder(entry) / "checkpoints").is_dir()
        stage, data = entry.stage, entry.data.path
        base = f" on a {stage.quantization} base" if stage.quantization else ""
        say(
            f"stage {entry.name} ({position}){' again' if again else ''}:"
            f" {stage.objective}, {stage.update}{base}, data {data}"
        )
        times = self.call.expected[entry.name].times
        if again or times is None or times.total_s is None:  # the bar says what is left
            return
        parts = {part: getattr(times, part) or 0.0 for part in IN_EVERY_RUN}
        say(f"stage {entry.name}: {format_whole_time(parts)}")

    def _train_group(self, group: Sequence[Entry], position: str) -> Sequence[Entry]:
        """Train the group in one process; returns what is trained again with less memory."""
        run, say, folders = self.run, self.call.options.say, [self._folder(one) for one in group]
        for folder in folders:  # leftovers of an earlier attempt must not pass for this one's
            (folder / RESULT).unlink(missing_ok=True)
            forget_errors(folder)
        self.keeper.begin([entry.name for entry in group])
        for entry in group:
            self._announce(entry, position)
        kills = oom_kills()

        def take_finished() -> None:
            """A process that trains several tasks writes the result of each as soon as it has it;
            the last one counts once the process has ended well.
            """
            for entry, following in pairwise(group):
                if not self._is_finished(entry):
                    self._take_result(entry, following.name)

        def train() -> Ended:
            watch = take_finished if len(group) > 1 else None
            with serving(run, group[0], gpus=self.call.gpus.server, say=say) as server:
                return self.starter.train(group, run.folder, watch=watch, server=server)

        if is_trained(folders):
            say(f"stage {group[0].name}: trained and saved already, and not judged yet")
        ended = train_and_judge(folders, train, lambda: self.starter.judge(group, run.folder))
        take_finished()
        if ended.code == 0:
            self._take_result(group[-1], None)
        failed = next((entry for entry in group if not self._is_finished(entry)), None)
        if failed is not None:
            self.keeper.note_adjustments(failed.name, adjustments(failed, self._folder(failed)))
            error = self._error(failed, ended, kills)
            if not ended.was_stopped and self._starts_again(failed, error):
                return group[group.index(failed) :]
            raise error
        # The stage was over when the signal came; those after it have not begun.
        if ended.was_stopped and self._finish(stopped=True) != DONE:
            raise Stopped(f"stopped after stage {group[-1].name}")
        return ()

    def _starts_again(self, entry: Entry, error: AdviseError) -> bool:
        folder, why = self._folder(entry), error.faults[0].headline
        is_short = isinstance(error, OutOfMemory)
        adjustment = next_attempt(entry, folder, why) if is_short else None
        if adjustment is None:
            return False
        self.keeper.note_adjustments(entry.name, adjustments(entry, folder))
        self.call.options.say(why)
        self.call.options.say(f"stage {entry.name}: {adjustment.sentence()}")
        return True

    def _folder(self, entry: Entry) -> Path:
        return self.run.folder / "stages" / entry.name

    def _is_finished(self, entry: Entry) -> bool:
        stage = self.keeper.record.stage(entry.name)
        return stage is not None and stage.status == DONE

    def _take_result(self, entry: Entry, following: str | None) -> None:
        folder = self._folder(entry)
        result = try_read_part(StageResult, folder / RESULT)
        if result is None:
            return
        adjusted = adjustments(entry, folder)
        self.keeper.note_adjustments(entry.name, adjusted)
        (folder / DOING).unlink(missing_ok=True)
        self.keeper.accept(entry.name, result, following=following)
        if not adjusted:
            note_training(self.call, entry, result)

    def _error(self, entry: Entry, ended: Ended, kills: int | None) -> AdviseError:
        folder = self._folder(entry)

        def smaller(doing: str) -> str:
            """The smallest change that fits, as the estimate says, of the stage as it ran last."""
            if doing == "saving":
                return "free some memory first"
            return smaller_hint(
                replace(entry, stage=stage_as_run(entry, folder)),
                self.run.is_chosen_folder,
                peak_of=self.call.estimator.peak_bytes,
                limit_bytes=self.call.expected[entry.name].limit_bytes,
                loading=doing == "loading",
            )

        return explain_failure(
            entry, ended=ended, folder=folder, oom_kills_before=kills, smaller=smaller
        )

    def _compare_modules(self) -> None:
        """Does the module of one task help or hurt on the others? Kept as `cross_evaluation`."""
        options, record = self.call.options, self.keeper.record
        if not (options.judge and misses_comparison(self.run.entries, record)):
            return
        options.say("judging the module of every task on the held-out rows of every task")
        path = self.run.folder / CROSS
        path.unlink(missing_ok=True)
        code, was_stopped = self.starter.compare_modules(self.run.folder)
        if was_stopped:
            raise KeyboardInterrupt
        found = try_read_part(CrossEvaluation, path) if code == 0 else None
        if found is None:  # every module is trained and evaluated by itself: the run is not lost
            options.say(
                f"could not compare the modules (exit code {code}); each of them is trained and"
                f" judged by itself all the same. To compare them:\n  {self.resume}"
            )
            return
        self.keeper.note_comparison(found.losses)


def is_unfinished(run: PlanRun, record: RunRecord) -> bool:
    """Whether anything is left to do with the results of a run whose stages are trained."""
    return misses_comparison(run.entries, record) or any(
        extra.misses(run, record) for extra in extras().values()
    )


def misses_comparison(entries: Sequence[Entry], record: RunRecord) -> bool:
    """Whether all tasks are trained, and their modules can be compared and have not been."""
    last = {entry.task.name: entry for entry in entries if entry.task is not None}
    stages = [record.stage(entry.name) for entry in last.values()]
    return (
        len(last) > 1
        and record.cross_evaluation is None
        and all(stage is not None and stage.status == DONE for stage in stages)
        and not any(
            entry.stage.options.get("head") == "classes" or objective(entry.stage.objective).scores
            for entry in last.values()
        )
    )


def share_base(one: Entry, other: Entry) -> bool:
    """Whether one process can train both: modules on the same base in the same form."""
    a, b = one.stage, other.stage
    form = (
        "name", "quantization", "double_quantization", "weights_dtype", "attention", "kernels",
        "compile",
    )  # fmt: skip
    start_from_base = all(
        entry.starts_from is None and entry.start_folder is None for entry in (one, other)
    )
    return (
        all(getattr(a, key) == getattr(b, key) for key in form)
        and start_from_base
        and a.update == b.update
        and may_share_base(a.objective, a.update)
        and a.options.get("head") != "classes"
    )


def train_and_judge(
    folders: Sequence[Path], train: Callable[[], Ended], judge: Callable[[], Ended]
) -> Ended:
    """How the processes of a stage ended. One process does all of it; what several have trained and
    saved is judged by one of its own, now or when the run is resumed.
    """
    ended = None
    for _ in range(2):  # again, if what was trained is not what the plan says now
        if not is_trained(folders):
            ended = train()
            if ended.code != 0 or ended.was_stopped or not is_trained(folders):
                return ended
        ended = judge()
        is_over = ended.code != 0 or ended.was_stopped or is_trained(folders)
        if is_over or all((folder / RESULT).is_file() for folder in folders):
            return ended
    assert ended is not None
    return ended


def is_trained(folders: Sequence[Path]) -> bool:
    """Whether all of these stages are trained and saved by several processes, and not judged."""
    return all(trained_record(folder).is_file() for folder in folders)
