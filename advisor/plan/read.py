"""A launch file as a Plan: read strictly, every fault at once, each with line, column, what is
allowed and a near miss.

Types and bounds stand in model.py and are checked by pydantic; keys of one method stand in its own
rule file (keys.py); checks.py adds what spans several keys: names, what starts from what, and keys
that nothing would read.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from advisor.ground.errors import Fault, InputError, nearest
from advisor.ground.yaml_reader import read_yaml
from advisor.methods import objectives, updates
from advisor.plan.checks import plan_faults, stage_faults
from advisor.plan.keys import KeySpecs, key_specs
from advisor.plan.model import Launch, Origin, Plan, PlanData, Stage, Task
from advisor.plan.paths import path_from

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Place = tuple[str | int, ...]
COMMON = {item.name for item in fields(Stage)} - {"options"}
# A task may change numbers of a stage, not what the stage is: all tasks share one base and one
# chain.
FIXED_FOR_TASKS = {
    "name",
    "objective",
    "update",
    "quantization",
    "double_quantization",
    "start_from",
    "data",
    "weights_dtype",
}


class Located(Protocol):
    """Plain data that knows where each value was written: a yamlio.Document, or a plan changed by
    --set.
    """

    @property
    def data(self) -> Any: ...

    def at(self, path: Sequence[str | int] = (), *, key: bool = False) -> str: ...


def read_plan(path: Path | str, *, specs: KeySpecs | None = None) -> Plan:
    """The plan in a file. Raises InputError with every fault of the file, located."""
    path = Path(path)
    return plan_from_data(read_yaml(path), base=path.resolve().parent, specs=specs)


def resolve_path(plan_path: Path | str, text: str) -> Path:
    """The file or folder that a path in a plan means: relative to the plan file's folder, `~` is
    the home folder.
    """
    return path_from(Path(plan_path).resolve().parent, text)


def plan_from_data(
    document: Located, *, base: Path | None = None, specs: KeySpecs | None = None
) -> Plan:
    """The plan in plain data. Raises InputError with every fault.

    Args:
        document: The data with its positions.
        base: The folder that relative paths are meant from; without it no path is looked up.
        specs: The keys that methods declare; default: those of the shipped rules.
    """
    specs = specs or key_specs()
    data = document.data
    if not isinstance(data, dict):
        what = "is empty" if data is None else "is not a map of keys and values"
        raise InputError(
            f"{document.at()}: a plan {what}",
            hint="`advise --json ... --plan plan.yaml` writes one",
        )
    report = _Report(document)
    infinite = _refuse_infinite(data, (), report)
    split = dict(data)
    if isinstance(data.get("stages"), list):
        split["stages"] = [
            _split_stage(stage, ("stages", index), specs, report)
            for index, stage in enumerate(data["stages"])
        ]
    plan: Plan | None = None if infinite else _validated(_adapter(), split, report)
    plan_faults(data, report.add, base)
    if isinstance(data.get("tasks"), list):
        _check_overrides(data, specs, report)
    if report.faults or plan is None:
        raise InputError(faults=report.in_file_order())
    return plan


class _Report:
    """Faults with the place each belongs to, so that they come out in the order of the file and
    once each.
    """

    def __init__(self, document: Located) -> None:
        self.document = document
        self.faults: list[Fault] = []
        self.places: set[tuple[Place, str]] = set()

    def add(
        self, place: Place, text: str, allowed: str = "", hint: str = "", *, key: bool = False
    ) -> None:
        if (place, text) not in self.places:
            self.places.add((place, text))
            self.faults.append(
                Fault(
                    what=f"{self.document.at(place, key=key)}: {text}", allowed=allowed, hint=hint
                )
            )

    def in_file_order(self) -> list[Fault]:
        def position(fault: Fault) -> tuple[int, int]:
            found = re.match(r".*?:(\d+):(\d+): ", fault.what)
            return (int(found[1]), int(found[2])) if found else (0, 0)

        return sorted(self.faults, key=position)


@cache
def _adapter() -> TypeAdapter[Plan]:
    from pydantic import TypeAdapter

    return TypeAdapter(Plan)


@cache
def _stage_adapter() -> TypeAdapter[Stage]:
    from pydantic import TypeAdapter

    return TypeAdapter(Stage)


def _refuse_infinite(value: Any, place: Place, report: _Report) -> bool:
    """True, and reported, where a number such as 1e999 has become infinite."""
    if isinstance(value, float) and not math.isfinite(value):
        report.add(place, f"{value} is not a usable number")
        return True
    parts: Iterator[tuple[str | int, Any]] = (
        iter(value.items())
        if isinstance(value, dict)
        else iter(enumerate(value))
        if isinstance(value, list)
        else iter(())
    )
    found = [
        _refuse_infinite(part, (*place, key), report) for key, part in parts
    ]  # a list, so that all are reported
    return any(found)


def _split_stage(stage: Any, place: Place, specs: KeySpecs, report: _Report) -> Any:
    """The stage with the keys of its methods moved into `options`; faults of those keys are
    reported here.
    """
    if not isinstance(stage, dict):
        return stage
    common = {key: value for key, value in stage.items() if key in COMMON}
    objective, update = str(stage.get("objective")), str(stage.get("update"))
    allowed = specs.allowed(objective, update)
    options = {}
    for key, value in stage.items():
        if key in COMMON:
            continue
        if key in allowed:
            options[key] = value
            if not allowed[key].accepts(value):
                report.add(
                    (*place, key),
                    f"{key} is {_shown(value)}",
                    f"allowed: {allowed[key].allowed}",
                    nearest(value, map(str, allowed[key].values)),
                )
        elif not (owners := specs.owners(key)):
            report.add(
                (*place, key),
                f"unknown key '{key}'",
                f"keys of this stage: {', '.join([*sorted(COMMON), *allowed])}",
                nearest(key, [*COMMON, *allowed]),
                key=True,
            )
        elif (
            objective in objectives() and update in updates()
        ):  # else the wrong name of the method is the fault, and reported
            text = (
                f"nothing would read '{key}': this stage is objective {objective}, update {update}"
            )
            report.add(
                (*place, key),
                text,
                f"read by {', '.join(owners)}",
                "remove it, or change the stage",
                key=True,
            )
    stage_faults(stage, place, specs, report.add)
    if "learning_rate" not in common:
        default = specs.default("learning_rate", objective=objective, update=update)
        if default is not None:
            common["learning_rate"] = default
        else:
            usual = [
                f"{name} {method.defaults['learning_rate']:g}"
                for name, method in specs.updates.items()
                if method.defaults.get("learning_rate")
            ]
            known = f"; usual for {', '.join(usual)}" if usual else ""
            report.add(
                place,
                f"stage '{stage.get('name')}' has no learning_rate",
                f"a number above 0, at most 1{known}",
                "`advise --plan FILE` chooses one by rule",
            )
            common["learning_rate"] = (
                1e-4  # only so that the other faults of this stage are found too
            )
    return common | {"options": options}


def _validated(
    adapter: TypeAdapter[Any],
    data: Any,
    report: _Report,
    rename: Mapping[Place, Place] | None = None,
    only_renamed: bool = False,
) -> Any:
    """The value, or None with the faults reported.

    JSON mode, so that strictness applies to types and not to list against tuple.
    """
    from pydantic import ValidationError

    try:
        return adapter.validate_json(json.dumps(data))
    except ValidationError as error:
        for item in error.errors(include_url=False):
            place: Place = tuple(part for part in item["loc"] if part != "[key]")
            if rename is not None and place[:1] in rename:
                place = rename[place[:1]] + place[1:]
            elif only_renamed:
                continue
            _explain(place, item, report)
    return None


EXPECTED = {
    "string_type": "text is expected",
    "int_type": "a whole number is expected",
    "int_from_float": "a whole number is expected",
    "float_type": "a number is expected",
    "bool_type": "true or false is expected",
    "dict_type": "a map of keys and values is expected",
    "tuple_type": "a list is expected",
    "dataclass_type": "a map of keys and values is expected",
    "greater_than_equal": "at least {ge:g}",
    "greater_than": "above {gt:g}",
    "less_than_equal": "at most {le:g}",
    "less_than": "below {lt:g}",
    "too_short": "at least one entry",
}


def _explain(place: Place, item: Mapping[str, Any], report: _Report) -> None:
    kind, value, context = item["type"], item["input"], item.get("ctx", {})
    name = str(place[-1]) if place else "the plan"
    if kind == "unexpected_keyword_argument":
        known = _known_keys(place)
        report.add(
            place,
            f"unknown key '{name}'",
            f"known: {', '.join(known)}",
            nearest(name, known),
            key=True,
        )
    elif kind == "missing":
        report.add(
            place[:-1],
            f"{_owner(place, value)} has no {name}",
            "" if name != "stages" else "one entry a stage, under `stages:`",
        )
    elif kind == "literal_error":
        values = re.findall(r"'([^']*)'|(\d+)", str(context.get("expected", "")))
        known = [text or number for text, number in values]
        hint = (
            "it was written for another version of advise: update with pip"
            if place == ("version",)
            else nearest(value, known)
        )
        report.add(place, f"{name} is {_shown(value)}", f"one of {', '.join(known)}", hint)
    elif kind == "too_short" and isinstance(value, list) and value:
        return  # the entries are there, but wrong: each has its own fault
    elif (
        isinstance(value, str)
        and kind in ("int_type", "float_type", "bool_type")
        and re.fullmatch(r"[-+0-9.eE]+|true|false", value)
    ):
        report.add(
            place, f"{name} is the text {_shown(value)}", EXPECTED[kind], "remove the quotes"
        )
    else:
        allowed = (
            EXPECTED.get(kind, str(item["msg"])).format(**context)
            if kind in EXPECTED
            else str(item["msg"])
        )
        report.add(
            place,
            f"{name} is {_shown(value)}",
            f"allowed: {allowed}" if kind.startswith(("gr", "le")) else allowed,
        )


def _known_keys(place: Place) -> list[str]:
    kind: type = Plan
    for part, inner in (("stages", Stage), ("launch", Launch), ("origin", Origin), ("tasks", Task)):
        if place[0] == part and len(place) > 1:
            kind = inner
    if "data" in place[:-1]:
        kind = PlanData
    return [item.name for item in fields(kind) if item.name != "options"]


def _owner(place: Place, value: Any) -> str:
    if len(place) == 1:
        return "the plan"
    if isinstance(place[-2], int):
        name = value.get("name") if isinstance(value, dict) else None
        return f"{str(place[-3])[:-1]} {name if isinstance(name, str) else place[-2]!r}"
    return str(place[-2])


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    text = f"'{value}'" if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _check_overrides(data: Mapping[str, Any], specs: KeySpecs, report: _Report) -> None:
    """Each task's overrides, tried on every stage that reads them."""
    stages = [stage for stage in data.get("stages") or [] if isinstance(stage, dict)]
    for number, task in enumerate(data["tasks"]):
        overrides = task.get("overrides") if isinstance(task, dict) else None
        if not isinstance(overrides, dict):
            continue
        place: Place = ("tasks", number, "overrides")
        options = {
            key
            for stage in stages
            for key in specs.allowed(str(stage.get("objective")), str(stage.get("update")))
        }
        changeable = sorted((COMMON - FIXED_FOR_TASKS) | options)
        for key in overrides:
            if key in FIXED_FOR_TASKS:
                report.add(
                    (*place, key),
                    f"'{key}' cannot differ between tasks",
                    "all tasks share one base and one chain of stages",
                    "write a second plan for it",
                    key=True,
                )
            elif key not in changeable:
                report.add(
                    (*place, key),
                    f"no stage reads '{key}'",
                    f"a task may change: {', '.join(changeable)}",
                    nearest(key, changeable),
                    key=True,
                )
        for stage in stages:
            _check_merged(stage, overrides, place, specs, report)


def _check_merged(
    stage: Mapping[str, Any],
    overrides: Mapping[str, Any],
    place: Place,
    specs: KeySpecs,
    report: _Report,
) -> None:
    allowed = specs.allowed(str(stage.get("objective")), str(stage.get("update")))
    mine = {
        key: value
        for key, value in overrides.items()
        if (key in COMMON - FIXED_FOR_TASKS) or key in allowed
    }
    for key, value in mine.items():
        if key in allowed and key not in COMMON and not allowed[key].accepts(value):
            report.add(
                (*place, key), f"{key} is {_shown(value)}", f"allowed: {allowed[key].allowed}"
            )
    merged = {"learning_rate": 1e-4} | {
        key: value for key, value in (dict(stage) | mine).items() if key in COMMON
    }
    _validated(
        _stage_adapter(),
        merged,
        report,
        rename={(key,): (*place, key) for key in mine},
        only_renamed=True,
    )

    def add(
        place_: Place, text: str, allowed: str = "", hint: str = "", *, key: bool = False
    ) -> None:
        if place_ and place_[-1] in mine:
            report.add((*place, place_[-1]), text, allowed, hint, key=key)

    stage_faults(dict(stage) | mine, ("stages", 0), specs, add)
