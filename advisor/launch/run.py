"""`advise run`: one child process a stage, run.json after every change, and the next call goes on
where this one ended.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from advisor.ground.errors import AdviseError, InputError, Stopped, nearest
from advisor.ground.files import TEMPORARY, write_atomically
from advisor.ground.resources import trainers_root
from advisor.ground.types import Hardware
from advisor.ground.units import format_gib
from advisor.ground.version import __version__
from advisor.ground.yaml_reader import parse_yaml
from advisor.launch import preflight
from advisor.launch.child import Child, guard_command
from advisor.launch.expected import device_hardware, expect_stage, plan_shape
from advisor.launch.failure_report import failure, oom_kills, read_result
from advisor.launch.folder import (
    DRY_RUN,
    PLAN,
    RECORD,
    SCHEMA_VERSION,
    Identity,
    Run,
    RunFolder,
    lock_holder,
    now,
    read_record,
)
from advisor.launch.input_digests import absolute, fingerprints, refuse_changed
from advisor.plan.change import set_values as changed_plan
from advisor.plan.comments import comments_after, comments_of
from advisor.plan.entries import Entry, entries
from advisor.plan.model import Comments, Plan
from advisor.plan.read import plan_from_data, read_plan
from advisor.plan.write import digest, plan_digest, plan_text

Say = Callable[[str], None]
CROSS = "cross.json"
ONE_PROCESS = ("sft", "cpt")  # objectives whose trainers take several tasks
DONE, STOPPED, FAILED, RUNNING, PENDING = "done", "stopped", "failed", "running", "pending"


def run_plan(
    plan: Path | str | Plan,
    *,
    comments: Comments | None = None,
    output: Path | str | None = None,
    only: str | None = None,
    set_values: Iterable[str] = (),
    max_steps: int | None = None,
    dry_run: bool = False,
    judge: bool = True,
    expected: Mapping[str, Mapping[str, Any]] | None = None,
    hardware: Hardware | None = None,
    say: Say | None = None,
    trainers: Path | None = None,
    on_end: Callable[[Path, Mapping[str, Any]], object] | None = None,
) -> Run:
    """Train what a plan says and return what came of it.

    The same plan goes on where it was, a finished one is left alone.

    Nothing is written before everything that can be checked has been. Talk goes to stderr.

    Args:
        plan: The launch file; or a Plan that was just made, with paths relative to the current
            folder.
        comments: The reasons that belong to such a Plan.
        output: The run folder; default: ./runs/<name>-<digest>.
        only: One stage, task, or stage of a task by its folder's name.
        set_values: Changes of the plan: 'stages.0.learning_rate=1e-4'.
        max_steps: Caps every stage, for a trial.
        dry_run: Measure two steps and an evaluation batch of each stage instead.
        judge: Compare with the base afterwards.
        expected: Entry name -> expectation, where the caller knows better than the estimator here.
        hardware: The machine; default: probed.
        say: Takes lines of talk; default: stderr.
        trainers: The folder that holds the package `trainers`; default: the installed one.
        on_end: Called with the folder and the record whenever training ends, also by a failure:
            writes the report.

    Raises AdviseError: InputError, MachineNotReady before anything is written; TrainingFailed,
    Stopped with run.json written.
    """
    job = _prepare_plan(
        plan, comments=comments, output=output, set_values=set_values, max_steps=max_steps
    )
    todo = _select_entries(job.entries, only)
    say = say or _to_stderr
    record = lock_holder(job.folder, job.identity)
    if record is not None and not dry_run:
        if only is None:
            say(
                f"going on in {job.shown_folder}"
                if record["status"] != DONE
                else f"{job.shown_folder} is finished"
            )
        if _all_done(record, todo, job.folder):
            return Run(folder=job.folder, record=record, already_done=True)
    root = trainers or trainers_root()
    shape = plan_shape(job.plan, job.path)
    machine = hardware or _probed()
    # Only what is not done yet needs its trainer, data and disk.
    waiting = (
        todo if dry_run else [entry for entry in todo if not _is_done(record, entry, job.folder)]
    )
    checked = preflight.run_preflight(
        job.plan, job.path, job.folder, waiting, hardware=machine, shape=shape, trainers=root
    )
    inputs = fingerprints(job.plan, job.path, waiting)
    used = device_hardware(job.plan, machine)
    hopes = {
        entry.name: dict(
            (expected or {}).get(entry.name)
            or expect_stage(
                job.plan,
                entry,
                shape,
                used,
                profile=checked.profiles.get(entry.data.path),
                max_steps=max_steps,
            )
        )
        for entry in job.entries
    }
    with RunFolder(job.folder) as folder:
        work = _StageRunner(
            job=job,
            folder=folder,
            root=root,
            cards=checked.cards,
            judge=judge,
            max_steps=max_steps,
            hopes=hopes,
            say=say,
            on_end=on_end,
        )
        if dry_run:
            return work.measure(todo)
        record = lock_holder(job.folder, job.identity)  # again, now that nobody else can change it
        if record is not None and record.get("inputs"):
            refuse_changed(record["inputs"], inputs, job.folder, growing=bool(job.plan.tasks))
        if checked.disk_need_bytes:
            say(f"disk: up to {format_gib(checked.disk_need_bytes)} for results and checkpoints")
        return work.train(todo, record, inputs, used)


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _probed() -> Hardware:
    from advisor.probe import probe

    return probe()


@dataclass(frozen=True, kw_only=True, slots=True)
class _PlanRun:
    """A plan with its changes, ready to be run in a folder."""

    plan: Plan
    path: Path  # that relative paths are meant from (its parent)
    copy_text: str  # of plan.yaml in the run folder
    entries: tuple[Entry, ...]
    folder: Path
    identity: Identity
    digests: Mapping[str, str]
    in_place: bool  # the user named the folder

    @property
    def shown_folder(self) -> str:
        return (
            os.path.relpath(self.folder)
            if self.folder.is_relative_to(Path.cwd())
            else str(self.folder)
        )


def _prepare_plan(
    source: Path | str | Plan,
    *,
    comments: Comments | None,
    output: Path | str | None,
    set_values: Iterable[str],
    max_steps: int | None,
) -> _PlanRun:
    changes = list(set_values)
    if isinstance(source, Plan):
        path, original = Path.cwd() / PLAN, None
        plan = plan_from_data(parse_yaml(plan_text(source), name=PLAN), base=path.parent)
    else:
        path = Path(source).expanduser()
        if path.is_dir():  # a run folder stands for its plan
            path = path / PLAN
        plan = read_plan(path)
        path = path.resolve()
        original = path.read_text("utf-8")
        comments = comments_of(original, name=str(path))
    planned = plan
    plan = changed_plan(planned, changes, base=path.parent)
    comments = comments_after(comments, planned, plan)
    copy = absolute(plan, path)
    digests = {"plan": plan_digest(plan), "copy": plan_digest(copy)}
    if plan.tasks:  # a task that is added later goes into the same run
        digests |= {
            "common": plan_digest(replace(plan, tasks=())),
            "common_copy": plan_digest(replace(copy, tasks=())),
        }
    own = (
        path.parent
        if original is not None and (path.parent / RECORD).is_file() and path.name == PLAN
        else None
    )
    if output is not None:
        folder = Path(output).expanduser().absolute()
    elif own is not None and set(digests.values()) & set(
        (read_record(own) or {}).get("digests", {}).values()
    ):
        folder = own
    else:
        # A trial is a run of its own, so that it never stands in the way of the whole one.
        whole = digests.get("common", digests["plan"])
        name = whole if max_steps is None else digest({"plan": whole, "max_steps": max_steps})
        folder = Path.cwd() / "runs" / f"{plan.name}-{name}"
    unchanged = original is not None and not changes and copy == plan
    return _PlanRun(
        plan=plan,
        path=path,
        copy_text=(
            original if unchanged and original is not None else plan_text(copy, comments, name=PLAN)
        ),
        entries=tuple(entries(plan)),
        folder=folder,
        identity=Identity(frozenset(digests.values()), max_steps, task_digests(copy)),
        digests=digests,
        in_place=output is not None,
    )


def task_digests(plan: Plan) -> dict[str, str]:
    """Task -> digest of its data and its overrides."""
    return {
        task.name: digest(
            {"data": task.data.path, "mapping": task.data.mapping, "overrides": task.overrides}
        )
        for task in plan.tasks
    }


def _select_entries(all_entries: Sequence[Entry], only: str | None) -> list[Entry]:
    """The entries that --only names: a stage (of every task), a task (every stage), or one
    entry.
    """
    if only is None:
        return list(all_entries)
    found = [
        entry
        for entry in all_entries
        if only in (entry.name, entry.stage.name, entry.task.name if entry.task else None)
    ]
    if not found:
        names = list(
            dict.fromkeys(
                name
                for entry in all_entries
                for name in (entry.stage.name, entry.task.name if entry.task else None, entry.name)
                if name
            )
        )
        raise InputError(
            f"--only {only}: the plan has no such stage or task",
            f"known: {', '.join(names)}",
            nearest(only, names),
        )
    return found


def _is_done(record: Mapping[str, Any] | None, entry: Entry, folder: Path) -> bool:
    """True where the entry is recorded as done and its result is still there."""
    stages = record["stages"] if record is not None else []
    recorded = any(
        stage.get("name") == entry.name and stage.get("status") == DONE for stage in stages
    )
    return recorded and any((folder / "stages" / entry.name).glob("*.safetensors"))


def _all_done(record: Mapping[str, Any], todo: Sequence[Entry], folder: Path) -> bool:
    return all(_is_done(record, entry, folder) for entry in todo)


@dataclass(kw_only=True)
class _StageRunner:
    """One call of `advise run` while it holds the folder's lock."""

    job: _PlanRun
    folder: RunFolder
    root: Path
    cards: tuple[str, ...]
    judge: bool
    max_steps: int | None
    hopes: Mapping[str, dict[str, Any]]
    say: Say
    on_end: Callable[[Path, Mapping[str, Any]], object] | None = None

    # ---------------------------------------------------------------- training

    def train(
        self,
        todo: Sequence[Entry],
        old: Mapping[str, Any] | None,
        inputs: Mapping[str, str],
        hardware: Hardware,
    ) -> Run:
        record = self._record(old, inputs, hardware)
        write_atomically(self.folder.path / PLAN, self.job.copy_text)
        self._save(record)
        for group in self._groups(todo, record):
            self._need_start(record, group[0])
            first, last = todo.index(group[0]) + 1, todo.index(group[-1]) + 1
            self._train_group(
                record,
                group,
                (
                    f"{first} of {len(todo)}"
                    if len(group) == 1
                    else f"{first} to {last} of {len(todo)}"
                ),
            )
        self._compare_modules(record)
        record["status"] = (
            DONE if all(stage["status"] == DONE for stage in record["stages"]) else STOPPED
        )
        self._finish(record)
        return Run(folder=self.folder.path, record=record)

    def _record(
        self, old: Mapping[str, Any] | None, inputs: Mapping[str, str], hardware: Hardware
    ) -> dict[str, Any]:
        before = {stage["name"]: stage for stage in (old or {}).get("stages", [])}
        plan = self.job.plan
        return {
            "schema_version": SCHEMA_VERSION,
            "advise_version": __version__,
            "name": plan.name,
            "status": RUNNING,
            "verdict": (old or {}).get("verdict"),
            "cross_evaluation": (old or {}).get("cross_evaluation"),
            "composition": plan.origin.composition,
            "model": plan.model,
            "stages": [self._stage(entry, before.get(entry.name)) for entry in self.job.entries],
            "max_steps": self.max_steps,
            "judge": self.judge,
            "resolved": dict((old or {}).get("resolved", {})),
            "versions": dict((old or {}).get("versions", {})),
            "hardware": {
                "kind": hardware.kind,
                "gpus": [gpu.name for gpu in hardware.gpus],
                "cpu_cores": hardware.cpu_cores,
                "ram_total_bytes": hardware.ram_total_bytes,
            },
            "digests": dict(self.job.digests),
            "tasks": task_digests(absolute(plan, self.job.path)),
            "inputs": {**(old or {}).get("inputs", {}), **inputs},
            "started_at": (old or {}).get("started_at") or now(),
            "finished_at": None,
            "attempts": int((old or {}).get("attempts", 0)) + 1,
        }

    def _stage(self, entry: Entry, old: Mapping[str, Any] | None) -> dict[str, Any]:
        """An entry of run.json's `stages`; what was done before is kept."""
        blank: dict[str, Any] = {
            "name": entry.name,
            "task": entry.task.name if entry.task else None,
            "objective": entry.stage.objective,
            "update": entry.stage.update,
            "quantization": entry.stage.quantization,
            "status": PENDING,
            "steps": None,
            "loss_first": None,
            "loss_last": None,
            "expected": self.hopes[entry.name],
            "measured": None,
            "folder": f"stages/{entry.name}",
        }
        if old is None:
            return blank
        if not _is_done({"stages": [old]}, entry, self.folder.path):
            return blank | {
                "status": (
                    STOPPED if old.get("status") in (RUNNING, DONE) else old.get("status", PENDING)
                )
            }
        return blank | dict(old)

    def _need_start(self, record: Mapping[str, Any], entry: Entry) -> None:
        """Raise InputError where --only skips a stage that this one starts from or is scored by."""
        for name in entry.needs:
            before = next(item for item in self.job.entries if item.name == name)
            if not _is_done(record, before, self.folder.path):
                how = "starts from" if name == entry.starts_from else "is scored by"
                raise InputError(
                    f"stage {entry.name} {how} {name}, which is not trained yet in"
                    f" {self.job.shown_folder}",
                    hint=f"advise run --only {name} first, or run all stages",
                )

    def _groups(self, todo: Sequence[Entry], record: Mapping[str, Any]) -> list[list[Entry]]:
        """What is still to do, in groups that one process trains: modules of several tasks share a
        base, which is then loaded once.
        """
        waiting = []
        for entry in todo:
            if _is_done(record, entry, self.folder.path):
                self.say(f"stage {entry.name}: done before")
            else:
                waiting.append(entry)
        if self.job.plan.tasks and self.job.plan.launch.processes == 1:
            order = [stage.name for stage in self.job.plan.stages]
            waiting.sort(
                key=lambda entry: order.index(entry.stage.name)
            )  # a stage of every task, then the next
        groups: list[list[Entry]] = []
        for entry in waiting:
            if (
                groups
                and entry.task is not None
                and self.job.plan.launch.processes == 1
                and _share_base(groups[-1][0], entry)
            ):
                groups[-1].append(entry)
            else:
                groups.append([entry])
        return groups

    def _train_group(self, record: dict[str, Any], group: Sequence[Entry], position: str) -> None:
        stages = {
            entry.name: next(stage for stage in record["stages"] if stage["name"] == entry.name)
            for entry in group
        }
        for entry in group:
            for leftover in ("result.json", "error.json"):
                (self._own(entry) / leftover).unlink(
                    missing_ok=True
                )  # of an attempt before: must not pass for this one's
            stages[entry.name] |= {"status": PENDING, "finished_at": None}
            stages[entry.name].pop("error", None)
        self._begin(stages[group[0].name])
        self._save(record)
        for entry in group:
            again = " again" if (self._own(entry) / "checkpoints").is_dir() else ""
            self.say(f"stage {entry.name} ({position}){again}: {describe(entry)}")
        kills = oom_kills()

        def look() -> None:
            """Take what is finished already: a process that trains several writes each result as it
            goes.
            """
            for place, entry in enumerate(group[:-1]):
                if (
                    stages[entry.name]["status"] != DONE
                    and (result := read_result(self._own(entry) / "result.json")) is not None
                ):
                    self._accept(record, stages[entry.name], result)
                    self._begin(stages[group[place + 1].name])
                    self._save(record)

        code, stopped = self._child(
            group,
            self.folder.path,
            ["--no-judge"] if not self.judge else [],
            look=look if len(group) > 1 else None,
        )
        look()
        last = read_result(self._own(group[-1]) / "result.json") if code == 0 else None
        if last is not None:
            self._accept(record, stages[group[-1].name], last)
            self._save(record)
        failed = next((entry for entry in group if stages[entry.name]["status"] != DONE), None)
        if failed is not None:
            error: AdviseError = failure(
                failed,
                code=code,
                folder=self._own(failed),
                oom_kills_before=kills,
                in_place=self.job.in_place,
            )
            if stopped:
                error = Stopped(
                    f"stage {failed.name}: stopped",
                    hint="the same command goes on from the last checkpoint",
                )
            status = STOPPED if isinstance(error, Stopped) else FAILED
            stages[failed.name] |= {
                "status": status,
                "finished_at": now(),
                "error": _error_data(error),
            }
            record["status"] = status
            self._finish(record)
            raise error
        if stopped:  # the stage was over when the signal came; those after it are not begun
            record["status"] = (
                DONE if all(stage["status"] == DONE for stage in record["stages"]) else STOPPED
            )
            self._finish(record)
            if record["status"] == STOPPED:
                raise Stopped(
                    f"stopped after stage {group[-1].name}",
                    hint="the same command goes on with the next stage",
                )

    def _own(self, entry: Entry) -> Path:
        return self.folder.path / "stages" / entry.name

    def _begin(self, stage: dict[str, Any]) -> None:
        stage |= {"status": RUNNING, "started_at": now(), "finished_at": None}

    def _accept(
        self, record: dict[str, Any], stage: dict[str, Any], result: Mapping[str, Any]
    ) -> None:
        stage |= {
            key: value
            for key, value in result.items()
            if key not in ("versions", "resolved", "status", "name")
        }
        stage |= {"status": DONE, "finished_at": now()}
        record["resolved"][stage["name"]] = result.get("resolved", {})
        record["versions"] |= result.get("versions") or {}
        record["verdict"] = overall_verdict(record["stages"]) or record["verdict"]

    def _compare_modules(self, record: dict[str, Any]) -> None:
        """Every module on every task's held-out rows: does one help or hurt another? Kept as
        `cross_evaluation`.
        """
        tasks = {
            entry.task.name: entry for entry in self.job.entries if entry.task is not None
        }  # the last stage of each
        if (
            len(tasks) < 2
            or not self.judge
            or not all(_is_done(record, entry, self.folder.path) for entry in tasks.values())
        ):
            return
        if any(
            entry.stage.options.get("head") == "classes" or entry.stage.objective == "rm"
            for entry in tasks.values()
        ):
            return
        self.say("every module on every task's held-out rows")
        path = self.folder.path / CROSS
        path.unlink(missing_ok=True)
        command = [
            sys.executable,
            "-P",
            "-m",
            "trainers.evaluation.cross_task",
            str(self.folder.path / PLAN),
            "--run",
            str(self.folder.path),
        ]
        command += ["--max-steps", str(self.max_steps)] if self.max_steps is not None else []
        with Child(command, self._environment(), keep_fds=[self.folder.lock_fd]) as child:
            code = child.wait()
        found = read_result(path) if code == 0 else None
        if (
            found is None
        ):  # the modules are trained and judged each by itself: this table can be had again
            self.say(
                f"the comparison of modules ended with {code}: it is left out; the same command"
                " makes it again"
            )
            return
        record["cross_evaluation"] = found["losses"]
        self._save(record)

    def _finish(self, record: dict[str, Any]) -> None:
        record["finished_at"] = now()
        self._save(record)
        if self.on_end is not None:
            try:
                self.on_end(self.folder.path, record)
            except Exception as error:  # the training counts; its report can be made again
                self.say(f"the report could not be written: {error}")

    def _save(self, record: Mapping[str, Any]) -> None:
        self.folder.write(RECORD, record)

    # ---------------------------------------------------------------- measuring

    def measure(self, todo: Sequence[Entry]) -> Run:
        """Two real steps and an evaluation batch of each stage; dry_run.json is all that stays."""
        scratch = self.folder.path / f"{TEMPORARY}dry-run"
        stages = []
        try:
            for entry in todo:
                stages.append(self._measure_one(entry, scratch))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        record = {
            "schema_version": SCHEMA_VERSION,
            "advise_version": __version__,
            "status": DONE,
            "name": self.job.plan.name,
            "digests": dict(self.job.digests),
            "measured_at": now(),
            "stages": stages,
        }
        self.folder.write(DRY_RUN, record)
        return Run(folder=self.folder.path, record=record, dry_run=True)

    def _measure_one(self, entry: Entry, scratch: Path) -> dict[str, Any]:
        about = {
            "name": entry.name,
            "objective": entry.stage.objective,
            "update": entry.stage.update,
            "quantization": entry.stage.quantization,
            "expected": self.hopes[entry.name],
        }
        shutil.rmtree(scratch, ignore_errors=True)
        (scratch / "stages").mkdir(parents=True)
        write_atomically(scratch / PLAN, self.job.copy_text)
        for name in entry.needs:
            trained = self.folder.path / "stages" / name
            if not any(trained.glob("*.safetensors")):
                self.say(f"stage {entry.name}: not measured, since {name} is not trained yet")
                return {
                    **about,
                    "status": PENDING,
                    "measured": None,
                    "why": f"needs {name}, which is not trained yet",
                }
            (scratch / "stages" / name).symlink_to(trained, target_is_directory=True)
        self.say(
            f"stage {entry.name}: measuring two steps on the longest rows and one evaluation batch"
        )
        kills = oom_kills()
        code, stopped = self._child([entry], scratch, ["--dry-run"])
        own = scratch / "stages" / entry.name
        result = (
            next(
                (
                    found
                    for found in (read_result(own / DRY_RUN), read_result(scratch / DRY_RUN))
                    if found
                ),
                None,
            )
            if code == 0
            else None
        )
        if result is None:
            if stopped:
                raise Stopped("stopped", hint="nothing was kept")
            raise failure(entry, code=code, folder=own, oom_kills_before=kills, in_place=False)
        return {**about, **result, "name": entry.name, "status": DONE}

    # ---------------------------------------------------------------- the child

    def _child(
        self,
        group: Sequence[Entry],
        run: Path,
        flags: Sequence[str],
        *,
        look: Callable[[], object] | None = None,
    ) -> tuple[int, bool]:
        """Exit code of the stage's process (for several tasks, where there are several), and
        whether it had been asked to stop.
        """
        plan, entry = run / PLAN, group[0]
        tasks = [word for other in group if other.task for word in ("--task", other.task.name)]
        arguments = [
            *[entry.stage.objective, str(plan)],
            *["--stage", entry.stage.name, "--run", str(run), *tasks, *flags],
        ]
        if self.max_steps is not None:
            arguments += ["--max-steps", str(self.max_steps)]
        command = [sys.executable, "-P", "-m", "trainers", *arguments]
        death = signal.SIGKILL
        if self.job.plan.launch.processes > 1:
            command, death = (
                self._several(command),
                signal.SIGTERM,
            )  # a launcher that is asked ends its workers
        with Child(
            command, self._environment(), keep_fds=[self.folder.lock_fd], death=death
        ) as child:
            return child.wait(look), child.stops > 0

    def _several(self, command: Sequence[str]) -> list[str]:
        """The command in several processes with ranks, by torch's own launcher, which `accelerate
        launch` wraps for cards.

        `accelerate launch` itself starts a single process where there is no card.
        """
        processes = str(self.job.plan.launch.processes)
        head = [
            sys.executable,
            "-P",
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            processes,
            "--no-python",
            "--",
        ]
        return [
            *head,
            *guard_command(command, parent=0),
        ]  # each worker dies with the launcher; 0, since its number is not known yet

    def _environment(self) -> dict[str, str]:
        """The child's environment: our trainers first on the path, whatever lies in the current
        folder; only the plan's cards.
        """
        env = dict(os.environ)
        env["PYTHONPATH"] = os.pathsep.join(
            [str(self.root), *([env["PYTHONPATH"]] if env.get("PYTHONPATH") else [])]
        )
        env["PYTHONSAFEPATH"] = "1"
        env["ADVISE_TELLS_ERRORS"] = "1"  # the trainer leaves error.json and need not print it too
        if self.job.plan.launch.device == "cpu":
            env["CUDA_VISIBLE_DEVICES"] = ""
        elif self.cards:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(self.cards)
        return env


def overall_verdict(stages: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The verdict of a run: that of its last judged stage; with several tasks, of each in a word.

    None where nothing was judged.
    """
    last = {stage.get("task"): stage["verdict"] for stage in stages if stage.get("verdict")}
    if len(last) < 2:
        return next(iter(last.values()), None)
    tasks: dict[str, list[str]] = {}
    for task, verdict in last.items():
        tasks.setdefault(verdict.get("word") or "not compared", []).append(str(task))
    said = "; ".join(f"{word}: {', '.join(names)}" for word, names in tasks.items())
    return {
        "ok": all(verdict["ok"] for verdict in last.values()),
        "word": next(iter(tasks)) if len(tasks) == 1 else "mixed",
        "text": said,
    }


def _share_base(one: Entry, other: Entry) -> bool:
    """Whether two entries train modules on the same base in the same form: one process can then do
    both.
    """
    a, b = one.stage, other.stage
    same = (a.name, a.quantization, a.double_quantization, a.weights_dtype, a.attention) == (
        b.name,
        b.quantization,
        b.double_quantization,
        b.weights_dtype,
        b.attention,
    )
    plain = (
        one.starts_from is None
        and other.starts_from is None
        and one.start_folder is None
        and other.start_folder is None
    )
    return (
        same
        and plain
        and a.update == b.update != "full"
        and a.objective in ONE_PROCESS
        and a.options.get("head") != "classes"
    )


def describe(entry: Entry) -> str:
    """A stage in a few words: 'sft, lora on nf4, data train.jsonl'."""
    stage = entry.stage
    base = f" on a {stage.quantization} base" if stage.quantization else ""
    return f"{stage.objective}, {stage.update}{base}, data {entry.data.path}"


def _error_data(error: AdviseError) -> dict[str, Any]:
    first = error.faults[0]
    return {
        "kind": type(error).__name__,
        "what": first.what,
        "allowed": first.allowed,
        "hint": first.hint,
        "exit_code": error.exit_code,
    }
