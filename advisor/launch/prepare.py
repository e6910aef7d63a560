"""What is to be run: the plan with its changes, the folder it goes into, the stages to train."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from advisor.ground.errors import InputError, nearest
from advisor.ground.files import PLAN_FILE, text_of
from advisor.ground.yaml_reader import parse_yaml
from advisor.launch.folder import OTHER_FOLDER, Identity
from advisor.launch.input_digests import Inputs, Say, task_digests
from advisor.plan.change import set_values as apply_changes
from advisor.plan.comments import comments_after, comments_of
from advisor.plan.entries import Entry, entries
from advisor.plan.model import Comments, Plan
from advisor.plan.notes import borrowed_rates, in_trial
from advisor.plan.paths import with_paths
from advisor.plan.read import plan_from_data, read_plan, resolve_path
from advisor.plan.record import RECORD, RunRecord
from advisor.plan.record_files import read_record
from advisor.plan.write import digest, plan_digest, plan_text


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanRun:
    """A plan with its changes, and the folder that it is run in."""

    plan: Plan
    path: Path  # the plan file: its folder is what relative paths start from
    comments: Comments | None
    copy: Plan  # the plan as it stands in the run folder
    copy_text: str  # plan.yaml of the run folder
    entries: tuple[Entry, ...]
    folder: Path
    identity: Identity
    inputs: Inputs  # what the paths hold
    digests: Mapping[str, str]
    is_chosen_folder: bool  # the user named it with --output
    warnings: tuple[str, ...] = ()  # what the plan leaves out and had better say

    @property
    def shown_folder(self) -> str:
        """The folder as short as it can be typed from here."""
        if self.folder.is_relative_to(Path.cwd()):
            return os.path.relpath(self.folder)
        return str(self.folder)

    def has_paths_of(self, record: RunRecord) -> bool:
        """Whether the record is of this whole plan with all its paths."""
        whole = {self.digests["plan"], self.digests["copy"]}
        return bool(whole & set(record.digests.values()))

    @property
    def text_for_anywhere(self) -> str:
        """The plan file with absolute paths, for a temporary folder."""
        return plan_text(with_absolute_paths(self.plan, self.path), self.comments, name=PLAN_FILE)


def prepare_plan(
    source: Path | str | Plan,
    *,
    comments: Comments | None = None,
    output: Path | str | None = None,
    set_values: Iterable[str] = (),
    max_steps: int | None = None,
    say: Say | None = None,
) -> PlanRun:
    """The plan read and changed, with the folder it belongs to; writes nothing.

    Raises InputError with every fault of the plan, of a change, or of a damaged run.json.

    Args:
        source: A plan file, a run folder, or a plan made in this process; its relative paths then
            start from the current folder.
        comments: The reasons that belong to a plan made in this process.
        output: The run folder; default: ./runs/<name>-<digest>.
        set_values: Changes of the plan: 'stages.0.learning_rate=1e-4'.
        max_steps: The limit of a trial run, which gets a folder of its own.
        say: Told before much of a model is read.
    """
    changes = list(set_values)
    if isinstance(source, Plan):
        path, original = Path.cwd() / PLAN_FILE, None
        plan = plan_from_data(parse_yaml(plan_text(source), name=PLAN_FILE), base=path.parent)
    else:
        path = Path(source).expanduser()
        if path.is_dir():  # a run folder stands for its plan
            path = path / PLAN_FILE
        plan = read_plan(path)
        path = path.resolve()
        original = text_of(path)
        comments = comments_of(original, name=str(path))
    planned = plan
    plan = apply_changes(planned, changes, base=path.parent)
    comments = comments_after(comments, planned, plan)
    told = comments if max_steps is None else in_trial(comments, max_steps)
    inputs = Inputs(plan, path, say)
    own_digests = _digests("plan", "common", plan)
    absolute = with_absolute_paths(plan, path)
    absolute_digests = _digests("copy", "common_copy", absolute)

    if output is not None:
        folder = Path(output).expanduser().absolute()
    elif original is not None and _is_copy_of_a_run(
        path, {**own_digests, **absolute_digests}, inputs
    ):
        folder = path.parent
    else:
        # A trial run has a folder of its own, so that it never blocks the whole run.
        whole = own_digests.get("common", own_digests["plan"])
        name = whole if max_steps is None else digest({"plan": whole, "max_steps": max_steps})
        folder = Path.cwd() / "runs" / f"{plan.name}-{name}"
        if not folder.exists():
            folder = _same_run_beside(folder, plan, max_steps, inputs) or folder

    copy = absolute
    if not _has_absolute_copy(folder, absolute_digests):
        copy = with_short_paths(plan, path, folder)
    inputs.name_as_in(copy)
    digests = {**own_digests, **_digests("copy", "common_copy", copy)}
    is_unchanged = original is not None and not changes and copy == plan and told == comments
    return PlanRun(
        plan=plan,
        path=path,
        comments=comments,
        copy=copy,
        copy_text=original
        if is_unchanged and original is not None
        else plan_text(copy, told, name=PLAN_FILE),
        entries=tuple(entries(plan)),
        folder=folder,
        identity=Identity(
            frozenset(digests.values()),
            max_steps,
            {
                task: frozenset({found, task_digests(absolute)[task]})
                for task, found in task_digests(copy).items()
            },
            inputs,
        ),
        inputs=inputs,
        digests=digests,
        is_chosen_folder=output is not None,
        warnings=tuple(borrowed_rates(parse_yaml(original, name=str(path)).data, plan))
        if original is not None
        else (),
    )


def _digests(whole: str, common: str, plan: Plan) -> dict[str, str]:
    """The digest of a plan; if it has tasks, also the digest without them.

    A task that is added later goes into the same run.
    """
    found = {whole: plan_digest(plan)}
    return found | ({common: plan_digest(replace(plan, tasks=()))} if plan.tasks else {})


def _is_copy_of_a_run(path: Path, digests: Mapping[str, str], inputs: Inputs) -> bool:
    """Whether a plan file is the plan.yaml of a run folder that trained these very values."""
    if path.name != PLAN_FILE or not (path.parent / RECORD).is_file():
        return False
    record = read_record(path.parent, hint=OTHER_FOLDER)
    identity = Identity(frozenset(digests.values()), None, inputs=inputs)
    return record is not None and identity.matches(record)


def _same_run_beside(
    folder: Path, plan: Plan, max_steps: int | None, inputs: Inputs
) -> Path | None:
    """The folder of a run of this plan on the same content under other paths: its model or its data
    were renamed, and the folder's name comes from the paths.
    """
    for other in sorted(folder.parent.glob(f"{plan.name}-*")):
        try:
            record = read_record(other)
        except InputError:  # it is another run's business
            continue
        if record is None or record.max_steps != max_steps:
            continue
        if Identity(frozenset(), max_steps, inputs=inputs).matches(record):
            return other
    return None


def _has_absolute_copy(folder: Path, absolute_digests: Mapping[str, str]) -> bool:
    """Whether the run in the folder was begun by a version that wrote absolute paths.

    It goes on with them, because its checkpoints are bound to the paths of its stages.
    """
    if not folder.is_dir():
        return False
    record = read_record(folder, hint=OTHER_FOLDER)
    return record is not None and any(
        record.digests.get(name) == found for name, found in absolute_digests.items()
    )


def with_absolute_paths(plan: Plan, plan_path: Path) -> Plan:
    """The plan with every path that exists made absolute."""

    def absolute(text: str) -> str:
        path = resolve_path(plan_path, text)
        return str(path.resolve()) if path.exists() else text

    return with_paths(plan, absolute)


def with_short_paths(plan: Plan, plan_path: Path, folder: Path) -> Plan:
    """The plan as it must be written into another folder.

    A relative path stays one if it and the folder lie below the current folder or the plan's: then
    the project can be moved as a whole. Every other path becomes absolute.
    """
    target = folder.resolve()
    if target == plan_path.resolve().parent:
        return plan
    projects = [
        project
        for project in (Path.cwd().resolve(), plan_path.resolve().parent)
        if target.is_relative_to(project)
    ]

    def short(text: str) -> str:
        path = resolve_path(plan_path, text)
        if not path.exists():
            return text
        path = path.resolve()
        is_near = not Path(text).expanduser().is_absolute() and any(
            path.is_relative_to(project) for project in projects
        )
        return os.path.relpath(path, target) if is_near else str(path)

    return with_paths(plan, short)


def select_entries(all_entries: Sequence[Entry], only: str | None) -> list[Entry]:
    """The entries that --only names: a stage (of every task), a task (all its stages), or one
    entry; without it, all.

    Raises InputError if there is no such stage or task.
    """
    if only is None:
        return list(all_entries)
    found = [entry for entry in all_entries if only in _names(entry)]
    if not found:
        known = list(dict.fromkeys(name for entry in all_entries for name in _names(entry)))
        raise InputError(
            "the plan has no such stage or task",
            f"known: {', '.join(known)}",
            nearest(only, known),
            where=f"--only {only}",
        )
    return found


def _names(entry: Entry) -> list[str]:
    """The names by which --only finds an entry."""
    return [entry.stage.name, *([entry.task.name] if entry.task else []), entry.name]
