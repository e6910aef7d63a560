"""What is to be run: the plan with its changes, the folder it goes into, the stages to train."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from advisor.ground.errors import AdviseError, InputError, did_you_mean
from advisor.ground.files import PLAN_FILE, shown_path, text_of
from advisor.ground.terminal import print_message
from advisor.ground.types import Hardware
from advisor.ground.yaml_files import parse_yaml
from advisor.launch.hub import ModelNeed, ask_hub
from advisor.model_files.made import made_here
from advisor.plan.comments import (
    borrowed_rate_warnings,
    comments_after,
    comments_of,
    comments_of_trial,
)
from advisor.plan.entries import Entry, entries, path_from
from advisor.plan.model import Comments, Plan
from advisor.plan.read import PlanOnDisk, plan_from_data, read_plan, set_values
from advisor.plan.write import WHEN_SAVED, digest, plan_digest, plan_text, relocate
from advisor.record.files import read_record, try_read_part
from advisor.record.run import DRY_RUN, RECORD, DryRunRecord, RunRecord

Say = Callable[[str], None]
OnEnd = Callable[[Path, RunRecord], object]
OTHER_FOLDER = "choose another folder with --output DIR, or delete this one"


class Options(Struct, frozen=True, kw_only=True):
    """How a plan is run; by default all of it, in a folder of its own, on this machine."""

    comments: Comments | None = None  # the reasons that belong to a Plan that was just made
    flags: str = ""  # the answers that such a plan was made from, as they are typed
    output: Path | str | None = None  # the run folder; None: ./runs/<name>-<digest>
    only: str | None = None  # one stage, one task, or one stage of one task by its folder's name
    set_values: Sequence[str] = ()  # changes of the plan: 'stages.0.learning_rate=1e-4'
    max_steps: int | None = None  # stops every stage after so many steps, for a trial run
    dry_run: bool = False  # measure two steps and one evaluation batch of each stage instead
    judge: bool = True  # compare the result with the base afterwards
    hardware: Hardware | None = None  # the machine; None: probed
    say: Say = print_message  # takes messages, line by line
    trainers: Path | None = None  # the folder of the package `trainers`; None: the installed one
    # Called with the folder and the record whenever training ends, also by a failure: the report.
    on_end: OnEnd | None = None


class PlanRun(PlanOnDisk, frozen=True, kw_only=True):
    """A plan with its changes, and the folder that it is run in."""

    comments: Comments | None
    copy: Plan  # the plan as it stands in the run folder
    copy_text: str  # plan.yaml of the run folder
    entries: tuple[Entry, ...]
    folder: Path
    digests: Mapping[str, str]  # of the plan as given, and of its copy in the run folder
    max_steps: int | None  # the limit of a trial run
    is_chosen_folder: bool  # the user named it with --output
    warnings: tuple[str, ...] = ()  # what the plan leaves out and had better say

    @property
    def shown_folder(self) -> str:
        """The folder as short as it can be typed from here."""
        return shown_path(self.folder)

    @property
    def tasks(self) -> dict[str, str]:
        """Task -> digest of its data and its overrides."""
        return {
            task.name: digest(
                {
                    "data": task.data.path,
                    "mapping": task.data.mapping,
                    "overrides": {
                        key: value for key, value in task.overrides.items() if key not in WHEN_SAVED
                    },
                }
            )
            for task in self.copy.tasks
        }

    def text_in(self, folder: Path) -> str:
        """The plan file for another folder."""
        moved = relocate(self.plan, self.path.resolve().parent, folder)
        return plan_text(moved, self.comments, name=PLAN_FILE)


def prepare_plan(source: Path | str | Plan, options: Options) -> PlanRun:
    """The plan read and changed, with the folder it belongs to; writes nothing.

    Raises InputError with every fault of the plan, of a change, or of a damaged run.json.

    Args:
        source: A plan file, a run folder, or a plan made in this process; its relative paths then
            start from the current folder.
    """
    comments, max_steps = options.comments, options.max_steps
    warnings: tuple[str, ...] = ()
    if isinstance(source, Plan):
        path, original = Path.cwd() / PLAN_FILE, None
        planned = plan_from_data(parse_yaml(plan_text(source), name=PLAN_FILE), base=path.parent)
    else:
        path = Path(source).expanduser()
        if path.is_dir():  # a run folder stands for its plan
            path = path / PLAN_FILE
        planned = read_plan(path)
        path = path.resolve()
        original = text_of(path)
        comments = comments_of(original, name=str(path))
    plan = set_values(planned, options.set_values, base=path.parent)
    if original is not None:
        warnings = tuple(borrowed_rate_warnings(parse_yaml(original, name=str(path)).data, plan))
    plan, said = _with_model_here(plan, path.resolve().parent)
    warnings = (*warnings, *said)
    comments = comments_after(comments, planned, plan)
    told = comments if max_steps is None else comments_of_trial(comments, max_steps)
    named = _digest(plan)
    if options.output is not None:
        folder = Path(options.output).expanduser().absolute()
    elif original is not None and _is_copy_of_a_run(path, named):
        folder = path.parent
    else:
        # A trial run has a folder of its own, so that it never blocks the whole run.
        name = named if max_steps is None else digest({"plan": named, "max_steps": max_steps})
        folder = Path.cwd() / "runs" / f"{plan.name}-{name}"
    copy = relocate(plan, path.resolve().parent, folder)
    is_same = (copy, told) == (plan, comments) and not said
    if original is None or options.set_values or not is_same:
        original = plan_text(copy, told, name=PLAN_FILE)
    return PlanRun(
        plan=plan,
        path=path,
        comments=comments,
        copy=copy,
        copy_text=original,
        entries=tuple(entries(plan)),
        folder=folder,
        digests={"plan": named, "copy": _digest(copy)},
        max_steps=max_steps,
        is_chosen_folder=options.output is not None,
        warnings=warnings,
    )


def _with_model_here(plan: Plan, base: Path) -> tuple[Plan, tuple[str, ...]]:
    """The plan with the folder of a model that was made here in place of its hub id, and what is
    said of it: where the hub does not give the model, nothing else could be trained.
    """
    folder = made_here(plan.model) if plan.revision is None else None
    if folder is None or path_from(base, plan.model).exists():
        return plan, ()
    try:
        ask_hub(ModelNeed(model=plan.model, what=f"model {plan.model}"))
    except AdviseError as error:
        said = f"model {plan.model}: the copy that `advise demo` made is used, {shown_path(folder)}"
        why = f"its weights were rounded to 4 bit ({error.faults[0].what})"
        return replace(plan, model=str(folder)), (f"{said}; {why}",)
    return plan, ()


def _digest(plan: Plan) -> str:
    """The digest of a plan without its tasks: a task that is added later goes into the same run."""
    return plan_digest(replace(plan, tasks=()))


def _is_copy_of_a_run(path: Path, digest: str) -> bool:
    """Whether a plan file is the plan.yaml of a run folder that trained, or measured, these very
    values.
    """
    if path.name != PLAN_FILE:
        return False
    if (path.parent / RECORD).is_file():
        record = read_record(path.parent, hint=OTHER_FOLDER)
        return record is not None and digest in record.digests.values()
    measured = try_read_part(DryRunRecord, path.parent / DRY_RUN)
    return measured is not None and digest in measured.digests.values()


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
            did_you_mean(only, known),
            where=f"--only {only}",
        )
    return found


def _names(entry: Entry) -> list[str]:
    return [entry.stage.name, *([entry.task.name] if entry.task else []), entry.name]
