"""All that is said of one configuration: what it does, whether it fits, what is wrong with it and
what would mend it. `report_on` carries it over to a plan, estimates that, judges and mends it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from advisor.data import profile as profile_of
from advisor.extras.other_tools.carrying import CarriedPlan, to_plan
from advisor.extras.other_tools.conversions import Context, deepspeed_offloads
from advisor.extras.other_tools.data_sets import (
    FILE,
    column_faults,
    command_by_data,
    data_of,
    understood,
)
from advisor.extras.other_tools.edit import diff_of
from advisor.extras.other_tools.facts import CHAT, TEMPLATE, counted, facts_of, template_facts
from advisor.extras.other_tools.file import ToolFile
from advisor.extras.other_tools.findings import EITHER, Found, Known, by_rules, worst_first
from advisor.extras.other_tools.fitting import Fitting, Trainer, fitting
from advisor.extras.other_tools.mapping import (
    COMMAND,
    DATA_KIND,
    Lost,
    Reading,
    at_key,
    flat_stage,
    read,
    usual_values,
    write,
)
from advisor.ground.errors import AdviseError, InputError
from advisor.ground.types import DataProfile, Hardware, ModelShape
from advisor.methods.stage import stage_keys
from advisor.plan.keys import key_specs
from advisor.plan.model import Plan, Stage
from advisor.situation.shapes import model_shape

Verdict = Literal["fits", "tight", "may_fit", "too_big", "unknown", "refused"]
RATE = "learning_rate"
MENDED = ("error", "warning")  # the severities whose changes stand in the diff
# A configuration names its model itself: its size cannot be said beside it.
BY_FLAG, BY_FOLDER = "; say --model-params-b", "; a folder that holds its config.json would"
OURS = "plan."  # before a key of a plan, in `instead`
OWN_ROWS = "a plan measures on rows of its own data, held out by `holdout`"


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """What the configuration trains on."""

    words: tuple[str, ...]
    profile: DataProfile | None
    plan: Mapping[str, Any] | None  # `data` of a plan
    notes: tuple[str, ...]
    lost: tuple[Lost, ...]  # what a plan cannot say of them
    faults: tuple[Found, ...]
    holds_out: bool  # rows to measure on are named
    kind: str  # what the rows are: text, chat or rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What is said of one configuration."""

    file: ToolFile
    reading: Reading
    carried: CarriedPlan | None  # None: not even a plan's first keys
    hardware: Hardware
    shape: ModelShape | None
    data: Data
    fitting: Fitting | None
    findings: tuple[Found, ...]  # worst first
    notes: tuple[str, ...]  # what was assumed
    fit_changes: Mapping[str, Any]  # key of theirs -> what makes it fit
    why_no_estimate: tuple[str, ...]
    changes: Mapping[str, Any]  # key of theirs -> the value that mends it; None: leave it out
    diff: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """The answer: `refused` where the tool itself does not take the file."""
        return "refused" if any(one.refused for one in self.findings) else self.fits

    @property
    def fits(self) -> Verdict:
        """The answer to the memory alone; what may fit is too big once the estimate is above."""
        if self.fitting is None:
            return "unknown"
        found, document = self.fitting.fits, self.fitting.document
        if found == "may_fit" and document["need_gib"] > document["limit_gib"]:
            return "too_big"
        return cast(Verdict, found)

    @property
    def exit_code(self) -> int:
        """0 fits or is not known, 3 does not fit, 2 the tool refuses the file."""
        return {"refused": 2, "too_big": 3}.get(self.verdict, 0)


def report_on(file: ToolFile, hardware: Hardware, said: Sequence[str] = ()) -> Report:
    """Everything that is said of a configuration on a machine.

    Args:
        file: As it was read.
        hardware: The machine that it is judged for.
        said: What had to be guessed of the machine.
    """
    file.command = command_by_data(file)
    data = _data(file)
    known = {**file.defaults, **file.values}
    reading = _reading(file, data)
    notes = [*said, *file.notes, file.command.assumed, *data.notes]
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
    facts = _facts(file, reading, carried, shape, data, hardware)
    asked = Known(values=file.values, defaults=file.defaults, facts=facts)
    rules = _by_rules(file, reading, asked)
    findings = worst_first([*file.faults, *data.faults, *_idle(file, reading), *rules])
    fit_changes: Mapping[str, Any] = {}
    if carried is not None and fit is not None and fit.change is not None:
        fit_changes = their_changes(file, carried.plan, fit.change.values, known)
    # What should fit is not changed for the upper end of its band: it is only said.
    needed = {} if fit is not None and fit.should_fit else fit_changes
    changes = _all_changes(file, carried, findings, needed, known)
    return Report(
        file=file, reading=reading, carried=carried, hardware=hardware, shape=shape, data=data,
        fitting=fit, findings=findings, notes=tuple(filter(None, notes)),
        why_no_estimate=tuple(why), fit_changes=fit_changes, changes=changes,
        diff=diff_of(file, changes),
    )  # fmt: skip


def _trainer(file: ToolFile) -> Trainer:
    """The tool and its libraries, at the versions that were read."""
    versions = {**file.about.made_with, file.tool: file.about.release}
    offloads = any(at_key(file.values, key) is True for key in file.about.offloads)
    if (named := file.values.get("deepspeed")) is not None:
        offloads |= deepspeed_offloads(named, Context(folder=file.folder))
    return Trainer(name=file.about.name, versions=versions, offloads=offloads)


def _reading(file: ToolFile, data: Data) -> Reading:
    values = {**file.meant, COMMAND: file.command.name, DATA_KIND: data.kind}
    context = Context(folder=file.folder, rows=None if data.profile is None else data.profile.rows)
    found = read(file.about, values, defaults=file.defaults, context=context)
    if data.holds_out and (holdout := found.carried.get("holdout")) and not holdout.value:
        # It takes no rows away since it measures on others, which a plan cannot: ours are taken.
        del found.carried["holdout"]
    found.lost += data.lost
    return found


def _carried(file: ToolFile, reading: Reading, data: Data, hardware: Hardware) -> CarriedPlan:
    measured = None if data.profile is None else data.profile.tokens
    return to_plan(
        file.about, reading, data=data.plan, device="cpu" if hardware.kind == "cpu" else "cuda",
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


def _facts(
    file: ToolFile,
    reading: Reading,
    carried: CarriedPlan | None,
    shape: ModelShape | None,
    data: Data,
    hardware: Hardware,
) -> dict[str, Any]:
    """What the rules may ask for beside the keys of the file."""
    known = {**file.defaults, **file.values}
    facts: dict[str, Any] = {}
    if carried is not None:
        facts = facts_of(carried.plan, data.profile, shape, hardware)
        facts |= template_facts(file.about, carried.plan.model, known.get(TEMPLATE))
    facts |= {COMMAND: file.command.name, DATA_KIND: data.kind}
    facts |= counted(file.tool, known, max(1, len(hardware.gpus)))
    if data.holds_out:
        facts["evaluates"] = True
    if (targets := reading.carried.get("target_modules")) is not None and targets.is_default:
        facts["plan.targets_attention_alone"] = False  # its own rules say what the default is
    return facts


def _data(file: ToolFile) -> Data:
    """The data it trains on: the first that are here, measured, and all of them named."""
    found = data_of(file)
    words, notes, faults = list[str](), list(found.notes), list[Found]()
    lost = [Lost(key="data", value=None, why=one) for one in found.lost]
    measured: DataProfile | None = None
    plan: dict[str, Any] | None = None
    for ref in found.train:
        one = understood(ref) if ref.place == FILE else None
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
        if measured is not None:
            notes.append(f"{ref.named} is not measured: time and lengths are those of {words[0]}")
            continue
        try:
            if one.why_not:
                raise InputError(one.why_not)
            measured = profile_of(ref.path, mapping=mapping)
        except AdviseError as error:
            notes.append(f"{ref.named} cannot be read: {error}")
    lost += [Lost(key=ref.key, value=ref.named, why=OWN_ROWS) for ref in found.evaluation]
    kind = "rows"
    if found.train and all(set(ref.roles) == {"text"} for ref in found.train):
        kind = "text"  # texts without requests, as the file itself says
    elif measured is not None:
        is_chat = measured.format in CHAT
        kind = "text" if measured.kind == "raw_text" else "chat" if is_chat else kind
    return Data(
        words=tuple(words), profile=measured, plan=plan, notes=tuple(notes), lost=tuple(lost),
        faults=tuple(faults), holds_out=bool(found.evaluation), kind=kind,
    )  # fmt: skip


# --------------------------------------------------------------------------- findings, changes


def _idle(file: ToolFile, reading: Reading) -> Iterator[Found]:
    """Keys that stand in the file and change nothing there."""
    for one in reading.idle:
        text = f"`{one.key}` stands in the file, but {one.why}"
        yield Found(
            id="key/no-effect", severity="warning", where=file.at(one.key), text=text,
            sources=("product",),
        )  # fmt: skip


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


def _all_changes(
    file: ToolFile,
    carried: CarriedPlan | None,
    findings: Sequence[Found],
    fit_changes: Mapping[str, Any],
    known: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that the diff changes, in their words: what mends the findings that are more than
    a note, and what makes it fit, which wins.
    """
    both: dict[str, Any] = {}
    for one in findings:
        if one.severity in MENDED:
            both |= one.instead or {}
    both |= fit_changes
    ours = {key.removeprefix(OURS): both.pop(key) for key in list(both) if key.startswith(OURS)}
    if not ours or carried is None:
        return both
    return their_changes(file, carried.plan, ours, known) | both


def their_changes(
    file: ToolFile, plan: Plan, values: Mapping[str, Any], known: Mapping[str, Any]
) -> dict[str, Any]:
    """Changes of a plan's keys in the words of the tool: what would be written otherwise.

    Args:
        file: The configuration.
        plan: As the configuration stands.
        values: Key of a stage -> its new value.
        known: Their keys -> the value that holds now, given or by default.
    """
    stage = plan.stages[0]
    before = _written(file, plan, stage)
    after = _written(file, plan, _changed(stage, values))
    return {
        key: value
        for key, value in after.items()
        if before.get(key) != value and known.get(key) != value
    }


def _changed(stage: Stage, values: Mapping[str, Any]) -> Stage:
    """The stage with other values of its own keys and those of its methods."""
    own = {key: value for key, value in values.items() if key in stage_keys()}
    more = {key: value for key, value in values.items() if key not in own}
    rate = own.get(RATE, stage.learning_rate)
    changed = replace(stage, **{**own, RATE: rate}, options={**stage.options, **more})
    if rate is not None:
        return changed
    usual = key_specs().default(RATE, objective=changed.objective, update=changed.update)
    return replace(changed, learning_rate=usual or stage.learning_rate)


def _written(file: ToolFile, plan: Plan, stage: Stage) -> Mapping[str, Any]:
    usual = usual_values(stage.objective, stage.update)
    ours = flat_stage(plan, stage)
    return write(file.about, ours, command=file.command.name, usual=usual).values
