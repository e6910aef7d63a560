"""What the data of each stage is, and whether the stage can be trained on it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from msgspec import Struct, field
from msgspec.structs import replace

from advisor.advice.search.settings import axes_of, settings_by_rule
from advisor.data import profile
from advisor.data.read.hub import is_hub_id
from advisor.data.templates.tokenizer import model_tokenizer
from advisor.ground.errors import Fault, InputError
from advisor.ground.files import shown_path
from advisor.ground.types import FSDP, PRIVATE, DataProfile
from advisor.ground.yaml_files import read_yaml
from advisor.methods import methods, objective, update
from advisor.methods.families import DECODER
from advisor.methods.rewards import reward_parts
from advisor.model_files.hub_cache import is_offline
from advisor.plan.entries import Entry
from advisor.plan.read import PlanOnDisk
from advisor.record.smaller import key_path
from advisor.ruleset.load import load_rules
from advisor.situation.catalogue import is_instruct


class CheckedData(Struct, frozen=True, kw_only=True):
    """What the data of some stages is, with every fault and warning once."""

    # path as written -> what the data is; data sets on the hub are left to the trainer
    profiles: Mapping[str, DataProfile] = field(default_factory=dict)
    faults: Sequence[Fault] = ()
    warnings: Sequence[str] = ()


def check_data(file: PlanOnDisk, todo: Sequence[Entry]) -> CheckedData:
    """What the data of the trainings is. Several stages and tasks may read one file."""
    count_tokens = model_tokenizer(str(file.model_folder or file.plan.model))[0]
    faults, warnings = list[Fault](), list[str]()
    profiles: dict[str, DataProfile] = {}
    read: dict[tuple[str, str], DataProfile | None] = {}
    for entry in todo:
        text, mapping = entry.data.path, entry.data.mapping
        path = file.resolve(text)
        if is_on_the_hub(text, path):
            continue
        source = (text, repr(mapping))
        if source not in read:
            try:
                read[source] = profile(path, mapping=mapping, count_tokens=count_tokens)
            except InputError as error:
                read[source] = None
                faults += (_in_plan(file, entry, fault) for fault in error.faults)
        found = read[source]
        if found is not None:
            profiles.setdefault(text, found)
            faults += _faults(entry, found)
            warnings += [*_warnings(entry, found), *_forgets(file, entry, found)]
    return CheckedData(
        profiles=profiles,
        faults=list(dict.fromkeys(faults)),
        warnings=list(dict.fromkeys(warnings)),
    )


def _in_plan(file: PlanOnDisk, entry: Entry, fault: Fault) -> Fault:
    """The fault of a stated column with the line of the plan that states it; the plan of answers
    has none.
    """
    task = () if entry.task is None else ("tasks", file.plan.tasks.index(entry.task))
    place = (*task, "data", "mapping")
    if fault.where == "--map" and file.path.is_file():
        document = read_yaml(file.path)
        if place in document.positions[0]:
            return replace(fault, where=document.at(place, key=True))
    return fault


def is_on_the_hub(text: str, path: Path) -> bool:
    """Whether a data path that is not there may name a data set, which the trainer downloads."""
    return (
        not path.exists()
        and text.count("/") == 1
        and is_hub_id(text)
        and not Path(text).suffix
        and not is_offline()
    )


def can_train(entry: Entry, profile: DataProfile) -> bool:
    """Whether the trainer of the stage can learn from the data."""
    purpose = _purpose(entry)
    if purpose in profile.objectives:
        return True
    is_blocked = any(purpose in finding.blocks for finding in profile.findings)
    return (
        purpose == entry.stage.objective
        and profile.kind in objective(purpose).also_reads
        and not is_blocked
    )


def _purpose(entry: Entry) -> str:
    return (
        "classification"
        if entry.stage.options.get("head") == "classes"
        else str(entry.stage.objective)
    )


def _faults(entry: Entry, profile: DataProfile) -> Iterable[Fault]:
    if can_train(entry, profile):
        if not _has_reward(entry, profile):
            yield Fault(
                where=f"stage {entry.stage.name}",
                what=f"nothing says what reward an answer gets, and"
                f" {entry.data.path} has no answers that can be verified",
                allowed="a reward model trained by an earlier stage (objective rm); reward_model: a"
                " folder; verifier: exact, regex, format or json_schema; reward:"
                " file.py:function; rewards: a list of several",
            )
        return
    purpose = _purpose(entry)
    errors = "; ".join(finding.text for finding in profile.findings if purpose in finding.blocks)
    can = ", ".join(profile.objectives)
    wanted = "a classifier" if purpose == "classification" else f"objective {purpose}"
    yield Fault(
        where=entry.data.path,
        what=f"cannot train {wanted}: {errors or f'it holds {profile.kind} ({profile.format})'}",
        allowed=f"it can train: {can or 'nothing'}",
        hint=f"advise check {shlex.quote(entry.data.path)}",
    )


def _has_reward(entry: Entry, profile: DataProfile) -> bool:
    """Whether anything scores the stage's answers: its keys, an earlier stage, or the data."""
    compared = [one for one in methods().objectives.values() if one.takes_verifier]
    checked = {one.id for one in compared if one.answers > 1}
    return (
        not objective(entry.stage.objective).needs_reward
        or bool(entry.scored_by or reward_parts(entry.stage.options))
        or profile.format == "classification"
        # its answers can be verified, if it has any
        or (profile.format != "requests" and checked <= set(profile.objectives))
    )


def _warnings(entry: Entry, profile: DataProfile) -> Iterable[str]:
    for finding in profile.findings:
        if finding.id.startswith(PRIVATE):
            yield f"{entry.data.path}: {finding.text}"
    found = objective(entry.stage.objective)
    is_suited = _purpose(entry) in profile.objectives or profile.kind in found.trains_on
    # Reinforcement takes the questions alone, whatever the data says to them.
    if not is_suited and not found.generates and can_train(entry, profile):
        meant = " or ".join(kind.replace("_", " ") for kind in found.trains_on)
        yield (
            f"{entry.data.path} holds {profile.kind.replace('_', ' ')}, and objective"
            f" {found.id} is meant for {meant}; it is trained on as it is"
        )


def _forgets(file: PlanOnDisk, entry: Entry, profile: DataProfile) -> Iterable[str]:
    """That the stage is likely to forget, and what to set, where the rules would set a `replay`
    and the plan has none.
    """
    plan, stage = file.plan, entry.stage
    replays = "replay" in objective(stage.objective).keys and _purpose(entry) == stage.objective
    once = stage.epochs <= 1 and update(stage.update).is_module
    if not replays or once or stage.options.get("replay") or stage.options.get("head") == "seq2seq":
        return
    facts = axes_of(stage.objective, stage.update, stage.quantization)
    likely = {"architecture": DECODER, "data_rows": profile.rows}
    found = settings_by_rule(load_rules(), {**facts, **likely}).get("replay")
    if found is None or not found.value:
        return
    why, _, cure = found.because.partition(": ")
    if is_instruct(plan.model) is False or plan.launch.strategy == FSDP:
        cure = "set `replay` to a file of general text, which keeps what it can do"
    else:
        setting = f"{key_path(entry, 'replay')}={{rows: 500}}"
        named = shlex.quote(shown_path(file.path))
        run = f"advise run {named}" if file.path.is_file() else "the same command with"
        cure += f": {run} --set {shlex.quote(setting)}"
    yield f"stage {stage.name}: {why}; {cure}"
