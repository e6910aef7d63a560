"""From a configuration on the disk to a Report: carry it over, estimate it, judge it, mend it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from advisor.data import profile as profile_of
from advisor.ground.errors import AdviseError, InputError
from advisor.ground.secrets import MASK, is_secret_key, masked
from advisor.ground.types import DataProfile, Hardware, ModelShape
from advisor.other_tools.checking.carrying import CarriedPlan, to_plan
from advisor.other_tools.checking.edit import changed_text, diff, edited
from advisor.other_tools.checking.edit_script import edited_script
from advisor.other_tools.checking.facts import CHAT, TEMPLATE, counted, facts_of, template_facts
from advisor.other_tools.checking.findings import EITHER, Found, Known, by_rules, worst_first
from advisor.other_tools.checking.fitting import Fitting, Trainer, fitting
from advisor.other_tools.checking.report import Report, changes_of, their_changes
from advisor.other_tools.data.reading import column_faults, data_of, understood
from advisor.other_tools.data.refs import FILE as FILE_HERE
from advisor.other_tools.reading.tool_file import KeyFault, ToolFile
from advisor.other_tools.tables.conversions import Context, deepspeed_offloads
from advisor.other_tools.tables.mapping import COMMAND, DATA_KIND, Lost, Reading, at_key, read
from advisor.situation.shapes import model_shape

# A configuration names its model itself: its size cannot be said beside it.
BY_FLAG, BY_FOLDER = "; say --model-params-b", "; a folder that holds its config.json would"
OURS = "plan."  # before a key of a plan, in `instead`
TEXT_KINDS = ("raw_text",)
OWN_ROWS = "a plan measures on rows of its own data, held out by `holdout`"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Data:
    """What the configuration trains on."""

    words: tuple[str, ...]
    profile: DataProfile | None
    plan: Mapping[str, Any] | None  # `data` of a plan
    notes: tuple[str, ...]
    lost: tuple[Lost, ...]  # what a plan cannot say of them
    faults: tuple[KeyFault, ...]
    keys: frozenset[str]  # of the file that name them
    holds_out: bool  # rows to measure on are named
    is_text: bool  # the file itself says that they are texts without requests


def report_on(file: ToolFile, hardware: Hardware, said: Sequence[str] = ()) -> Report:
    """Everything that is said of a configuration on a machine.

    Args:
        file: As it was read.
        hardware: The machine that it is judged for.
        said: What had to be guessed of the machine.
    """
    tool = file.about
    data = _data(file)
    known = {**file.defaults, **file.values}
    reading = _reading(file, data)
    notes = [*said, *file.notes, *data.notes]
    reading.lost += data.lost
    carried, shape, fit = None, None, None
    why: list[str] = []
    try:
        carried = _carried(file, reading, data, hardware)
    except InputError as error:
        why.append(str(error))
    if carried is not None:
        shape, about = _shape(carried.plan.model, file.folder)
        (why if shape is None else notes).extend(about)
        fit = fitting(_trainer(file), carried.plan, shape, hardware, data.profile)
    facts = {} if carried is None else facts_of(carried.plan, data.profile, shape, hardware)
    facts |= {COMMAND: file.command.name, DATA_KIND: _kind(data)}
    facts |= counted(file.tool, known, max(1, len(hardware.gpus)))
    if carried is not None:
        facts |= template_facts(tool, carried.plan.model, known.get(TEMPLATE))
    if data.holds_out:
        facts["evaluates"] = True
    if (targets := reading.carried.get("target_modules")) is not None and targets.is_default:
        facts["plan.targets_attention_alone"] = False  # its own rules say what the default is
    asked = Known(values=file.values, defaults=file.defaults, facts=facts)
    findings = worst_first(
        [*_faults(file, data), *_idle(file, reading), *_by_rules(file, reading, asked)]
    )
    fit_changes = _fit_changes(file, carried, fit, known)
    # What should fit is not changed for the upper end of its band: it is only said.
    needed = {} if fit is not None and fit.should_fit else fit_changes
    changes = _all_changes(file, carried, findings, needed, known)
    return Report(
        path=file.name, is_script=bool(file.script), tool=tool,
        release=file.release.release, command=file.command.name,
        reading=reading, carried=carried, hardware=hardware, shape=shape, profile=data.profile,
        data=data.words, fitting=fit, findings=findings, notes=tuple(notes),
        why_no_estimate=tuple(why), fit_changes=fit_changes, changes=changes,
        diff=_diff(file, changes),
    )  # fmt: skip


def _trainer(file: ToolFile) -> Trainer:
    """The tool and its libraries, at the versions of the key table."""
    versions = {**file.release.made_with, file.tool: file.release.release}
    offloads = any(at_key(file.values, key) is True for key in file.about.offloads)
    if (named := file.values.get("deepspeed")) is not None:
        offloads |= deepspeed_offloads(named, Context(folder=file.folder))
    return Trainer(name=file.about.name, versions=versions, offloads=offloads)


def _kind(data: _Data) -> str:
    """What the rows are: text, chat or rows."""
    if data.is_text:
        return "text"
    kind = "rows"
    if data.profile is not None:
        is_chat = data.profile.format in CHAT
        kind = "text" if data.profile.kind in TEXT_KINDS else "chat" if is_chat else kind
    return kind


def _reading(file: ToolFile, data: _Data) -> Reading:
    # Of a file that the tool refuses, what was meant: as it stands it trains nothing.
    values = {**file.mended, COMMAND: file.command.name, DATA_KIND: _kind(data)}
    context = Context(folder=file.folder, rows=None if data.profile is None else data.profile.rows)
    found = read(file.about, values, defaults=file.defaults, about_data=data.keys, context=context)
    if data.holds_out and (holdout := found.carried.get("holdout")) and not holdout.value:
        # It takes no rows away since it measures on others, which a plan cannot: ours are taken.
        del found.carried["holdout"]
    return found


def _carried(file: ToolFile, reading: Reading, data: _Data, hardware: Hardware) -> CarriedPlan:
    device = "cpu" if hardware.kind == "cpu" else "cuda"
    measured = None if data.profile is None else data.profile.tokens
    return to_plan(
        file.about, reading, data=data.plan, device=device,
        processes=max(1, len(hardware.gpus)), origin=f"{file.about.name}: {file.name}",
        request_tokens=None if measured is None else measured.longest,
    )  # fmt: skip


def _shape(name: str, folder: Path) -> tuple[ModelShape | None, list[str]]:
    """The model's dimensions: of a folder beside the file, or of a name."""
    beside = folder / name
    try:
        shape, notes = model_shape(str(beside) if beside.is_dir() else name)
    except AdviseError as error:
        return None, [str(error)]
    return shape, [note.replace(BY_FLAG, BY_FOLDER) for note in notes]


def _data(file: ToolFile) -> _Data:
    """The data it trains on: the first that are here, measured, and all of them named."""
    found = data_of(file)
    words, notes = [], list(found.notes)
    faults = list(found.faults)
    lost = [Lost(key="data", value=None, why=one) for one in found.lost]
    measured: DataProfile | None = None
    plan: dict[str, Any] | None = None
    for ref in found.train:
        one = understood(ref) if ref.place == FILE_HERE else None
        mapping = one.mapping if one is not None else None
        words.append(ref.named or ref.key)
        lost += [Lost(key=ref.key, value=ref.named, why=why) for why in ref.lost]
        if ref.path and not ref.why_not:
            if plan is None:
                plan = {"path": ref.path, **({"mapping": dict(mapping)} if mapping else {})}
            else:
                why = "a plan trains on one file, folder or hub data set"
                lost.append(Lost(key=ref.key, value=ref.named, why=why))
        if one is None:
            continue
        faults += column_faults(file, one)
        if one.why_not:
            notes.append(f"{ref.named} cannot be read: {one.why_not}")
        elif measured is None:
            try:
                measured = profile_of(ref.path, mapping=mapping)
            except AdviseError as error:
                notes.append(f"{ref.named} cannot be read: {error}")
        else:
            notes.append(f"{ref.named} is not measured: time and lengths are those of {words[0]}")
    for ref in found.evaluation:
        lost.append(Lost(key=ref.key, value=ref.named, why=OWN_ROWS))
    return _Data(
        words=tuple(words), profile=measured, plan=plan, notes=tuple(notes), lost=tuple(lost),
        faults=tuple(faults), keys=frozenset(found.keys), holds_out=bool(found.evaluation),
        is_text=bool(found.train) and all(set(ref.roles) == {"text"} for ref in found.train),
    )  # fmt: skip


# --------------------------------------------------------------------------- findings, changes


def _idle(file: ToolFile, reading: Reading) -> Iterator[Found]:
    """Keys that stand in the file and change nothing there."""
    for one in reading.idle:
        yield Found(
            id="key/no-effect", severity="warning", where=file.at(one.key),
            text=f"`{one.key}` stands in the file, but {one.why}", sources=("product",),
        )  # fmt: skip


def _faults(file: ToolFile, data: _Data) -> Iterator[Found]:
    """What is wrong with single keys; an error is one with which the tool does not start."""
    for one in (*file.faults, *data.faults):
        parts = [one.what, f"allowed: {one.allowed}" if one.allowed else "", one.hint]
        yield Found(
            id=f"key/{one.key or 'file'}",
            refused=one.severity == "error",
            severity=one.severity,
            text="; ".join(filter(None, parts)),
            where=one.where,
            instead=one.instead or None,
        )


def _by_rules(file: ToolFile, reading: Reading, known: Known) -> Iterator[Found]:
    """What rules say, at the first key of the file that is to be changed or was asked for."""
    for one in by_rules(file.about, known):
        asked = [key.split(".*")[0] for name in one.asked for key in name.split(EITHER)]
        if any(key in file.open for key in asked):
            continue  # a text that another program fills in: its value is not known
        named = [*(one.instead or {}), *asked]
        theirs = [key for name in named for key in _their_keys(name, reading)]
        keys = [key for key in theirs if known.is_set(key)]
        yield replace(one, where=file.at(keys[0]) if keys else "")


def _their_keys(name: str, reading: Reading) -> tuple[str, ...]:
    """The keys of theirs that a name of a rule stands for."""
    one = reading.carried.get(name.removeprefix(OURS)) if name.startswith(OURS) else None
    return (name,) if one is None else one.theirs


def _fit_changes(
    file: ToolFile, carried: CarriedPlan | None, fit: Fitting | None, known: Mapping[str, Any]
) -> dict[str, Any]:
    if carried is None or fit is None or fit.change is None:
        return {}
    return their_changes(file.about, carried.plan, fit.change.values, known=known)


def _all_changes(
    file: ToolFile,
    carried: CarriedPlan | None,
    findings: Sequence[Found],
    fit_changes: Mapping[str, Any],
    known: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that the diff changes, in their words."""
    found: dict[str, Any] = {}
    ours: dict[str, Any] = {}
    for key, value in changes_of(findings, fit_changes):
        if key.startswith(OURS):
            ours[key.removeprefix(OURS)] = value
        else:
            found[key] = value
    if ours and carried is not None:
        theirs = their_changes(file.about, carried.plan, ours, known=known)
        found = theirs | found
    return found


def _diff(file: ToolFile, changes: Mapping[str, Any]) -> tuple[str, ...]:
    """The changes in the file's own text; of a command line that has no flag for them, as a file of
    the tool.
    """
    if not changes or not file.editable:
        return ()
    shown = {key: _shown(key, value) for key, value in changes.items()}
    if file.script and (script := edited_script(file.script, shown)) is not None:
        before = edited_script(file.script, {}) or ""
        return tuple(masked(one) for one in diff(before, script, file.name))
    text = changed_text(file.text, dict.fromkeys(file.secrets, MASK), loader=file.loader)
    name = f"{file.name} as a file" if file.script else file.name
    return tuple(masked(one) for one in diff(text, edited(text, shown), name))


def _shown(key: str, value: Any) -> Any:
    """The value of a change without a secret, as under a misspelt key."""
    return MASK if value is not None and is_secret_key(key.rpartition(".")[2]) else value
