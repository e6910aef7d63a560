"""A launch file as a Plan, also one changed by `--set stages.0.learning_rate=1e-4`: read strictly,
every fault at once, each with line, column, what is allowed and a near miss.

What each key may hold derives from the structs of model.py and from the files of methods;
checks.py adds what spans several keys: names, what starts from what, and keys without effect.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from advisor.ground.annotated import build, shape_of
from advisor.ground.errors import Fault, InputError, did_you_mean, refuse
from advisor.ground.shape import (
    Choice,
    Keys,
    ListOf,
    Located,
    NamedValue,
    Path_,
    Shape,
    check_shape,
    refuse_secrets,
)
from advisor.ground.yaml_files import parse_yaml, read_yaml
from advisor.methods.other_keys import hint_for
from advisor.methods.stage import Stage, stage_keys
from advisor.plan.checks import Report, maps_in, plan_faults, stage_faults
from advisor.plan.entries import path_from
from advisor.plan.keys import (
    BESIDE_STAGES,
    KeySpecs,
    key_specs,
    missing_extra,
    read_extras,
    shapes_of_extras,
)
from advisor.plan.model import Place, Plan
from advisor.plan.write import plan_data

# A task may change numbers of a stage, not what the stage is: all tasks share one base and one
# chain.
FIXED_FOR_TASKS = {
    "name", "objective", "update", "quantization", "double_quantization", "start_from", "data",
    "weights_dtype",
}  # fmt: skip
FORM = "PATH=VALUE, such as stages.0.learning_rate=1e-4 or stages.NAME.epochs=2"
MADE = ("extras",)  # of a plan: made from the keys of optional features


def read_plan(path: Path | str) -> Plan:
    """The plan in a file. Raises InputError with every fault of the file, located."""
    path = Path(path)
    return plan_from_data(read_yaml(path), base=path.resolve().parent)


def resolve_path(plan_path: Path | str, text: str) -> Path:
    """What a path in a plan means: relative to the plan file's folder, `~` is the home folder."""
    return path_from(Path(plan_path).resolve().parent, text)


class PlanOnDisk(Struct, frozen=True, kw_only=True):
    """A plan, and its file: relative paths in it start from the file's folder."""

    plan: Plan
    path: Path

    def resolve(self, text: str) -> Path:
        """What a path in the plan means."""
        return resolve_path(self.path, text)

    @property
    def model_folder(self) -> Path | None:
        """The folder of the plan's model; None if it is a model of the hub."""
        folder = self.resolve(self.plan.model)
        return folder if folder.is_dir() else None


def plan_from_data(document: Located, *, base: Path | None = None) -> Plan:
    """The plan in plain data. Raises InputError with every fault.

    Args:
        document: The data with its positions: a file, or a plan changed by --set.
        base: The folder that relative paths are meant from; without it no path is looked up.
    """
    specs, data = key_specs(), document.data
    if not isinstance(data, dict):
        what = "is empty" if data is None else "is not a map of keys and values"
        hint = "`advise --json ... --plan plan.yaml` writes one"
        raise InputError(f"a plan {what}", where=document.at(), hint=hint)
    refuse_secrets(document)
    report = Report(document=document)
    report.faults.extend(check_shape(document, plan_shape()))
    plan_faults(data, report, base)
    stages = maps_in(data.get("stages"))
    for index, stage in enumerate(stages):
        if stage:
            stage_faults(stage, ("stages", index), report)
    _check_overrides(maps_in(data.get("tasks")), stages, report)
    refuse(report.in_file_order())
    own = {key: value for key, value in data.items() if key in shape_of(Plan, without=MADE).keys}
    whole = {**own, "stages": [_with_options(stage, specs) for stage in stages]}
    return build(Plan, whole, {"extras": read_extras(data)})


def plan_shape() -> Keys:
    """What a plan may hold."""
    shape = shape_of(Plan, without=MADE)
    keys: dict[str, Shape] = {}
    for name, one in {**shape.keys, "stages": ListOf(of=StageShape(keys={}), least=1)}.items():
        keys |= shapes_of_extras() if name == "launch" else {}
        keys[name] = one
    return Keys(help=shape.help, keys=keys, required=shape.required, others=_plan_hint)


def _plan_hint(name: str, known: Collection[str]) -> str:
    if name in BESIDE_STAGES:
        return missing_extra(name, known)
    of_stages = (*stage_keys(), *key_specs().names())
    found = hint_for(name, known)
    if name in of_stages and not found:
        return "what a stage is trained with is written into it: stages: [{...}]"
    return found or ("" if did_you_mean(name, known) else hint_for(name, of_stages))


class StageShape(Keys, kw_only=True, eq=False):
    """What a stage may hold, which depends on its objective and its update."""

    def faults(self, value: Any, document: Located, path: Path_) -> Iterator[Fault]:
        if not isinstance(value, dict):
            yield self.refuse(value, document, path)
            return
        specs, objective, update = (
            key_specs(),
            str(value.get("objective")),
            str(value.get("update")),
        )
        shapes = stage_shapes(objective, update)
        for key in value:
            owners = specs.owners(key) if key not in shapes else []
            known = objective in specs.objectives and update in specs.updates
            if owners and known and value[key] is not None:
                yield Fault(
                    where=document.at((*path, key), key=True),
                    what=f"`{key}` has no effect in a stage with objective {objective} and update"
                    f" {update}",
                    allowed=f"it belongs to {', '.join(owners)}",
                    hint="remove it, or change the stage",
                )
            if owners:  # reported above; else the unknown name of the method is the fault
                shapes[key] = Shape()
        required = tuple(
            name
            for name in shape_of(Stage).required
            if specs.default(name, objective=objective, update=update) is None
        )
        whole = Keys(
            keys=shapes,
            required=required,
            others=lambda name, known: hint_for(name, {*known, *BESIDE_STAGES}),
        )
        yield from whole.faults(value, document, path)

    def words(self) -> str:
        return "a map with `name`, `objective`, `update` and keys of these"


def stage_shapes(objective: str, update: str) -> dict[str, Shape]:
    """Key -> what it may hold, in a stage of that objective and update."""
    specs = key_specs()
    keys = {**stage_keys(), **specs.allowed(objective, update)}
    shapes = {name: key.shape for name, key in keys.items()}
    for axis, table in (("objective", specs.objectives), ("update", specs.updates)):
        shapes[axis] = Choice(values=tuple(table))
    rates = {name: method.defaults.get("learning_rate") for name, method in specs.updates.items()}
    usual = ", ".join(f"{name} {rate:g}" for name, rate in rates.items() if rate is not None)
    said = f"`advise` chooses one by rule{f'; usual for {usual}' if usual else ''}"
    return shapes | {"learning_rate": replace(shapes["learning_rate"], help=said)}


def _with_options(stage: Mapping[str, Any], specs: KeySpecs) -> dict[str, Any]:
    """The fields of a stage: the keys of its methods move into `options`."""
    common = {key: value for key, value in stage.items() if key in stage_keys()}
    for key in shape_of(Stage).required:
        if key not in common:
            common[key] = specs.default(key, objective=stage["objective"], update=stage["update"])
    allowed = specs.allowed(stage["objective"], stage["update"])
    options = {key: stage[key] for key in stage if key not in common and key in allowed}
    return {**common, "options": options}


def _check_overrides(
    tasks: Sequence[Mapping[str, Any]], stages: Sequence[Mapping[str, Any]], report: Report
) -> None:
    """Each task's overrides, tried on every stage that reads them."""
    tried = []
    for stage in stages if tasks else ():
        shapes = stage_shapes(str(stage.get("objective")), str(stage.get("update")))
        own = {key: shape for key, shape in shapes.items() if key not in FIXED_FOR_TASKS}
        tried.append((stage, own))
    changeable = sorted({key for _, shapes in tried for key in shapes})
    for number, task in enumerate(tasks):
        overrides = task.get("overrides")
        if not isinstance(overrides, dict):
            continue
        place: Place = ("tasks", number, "overrides")
        for key in overrides:
            if key in FIXED_FOR_TASKS:
                what = f"`{key}` cannot differ between tasks"
                allowed = "all tasks share one base and one chain of stages"
                hint = "write a second plan for it"
            elif key not in changeable:
                what = f"no stage has the key '{key}'"
                allowed = f"a task may change: {', '.join(changeable)}"
                hint = hint_for(str(key), changeable) or did_you_mean(key, changeable)
            else:
                continue
            report((*place, key), what, allowed, hint, key=True)
        for stage, shapes in tried:
            mine = {key: value for key, value in overrides.items() if key in shapes}
            report.faults.extend(Keys(keys=shapes).faults(mine, report.document, place))
            stage_faults({**stage, **mine}, (), replace(report, inside=place, only=mine))


# --------------------------------------------------------------------------- --set


def set_values(plan: Plan, settings: Iterable[str], *, base: Path | None = None) -> Plan:
    """The plan with the settings applied in order and checked as a whole; `null` puts a value back
    to its default.

    A stage or a task is named by its number from 0 or by its name. Raises InputError with every
    fault, each naming the setting it comes from.
    """
    settings = list(settings)
    if not settings:
        return plan
    for text in settings:  # before any message repeats it
        name, _, value = text.partition("=")
        nested: Any = value
        for part in reversed(name.strip().split(".")):
            nested = {part: nested}
        refuse_secrets(NamedValue("", nested))
    changed, faults = _Changed(plan_data(plan)), list[Fault]()
    for text in settings:
        try:
            changed.apply(text)
        except InputError as error:
            faults += error.faults
    refuse(faults)
    return plan_from_data(changed, base=base)


class _Changed(Struct):
    """The plan's data while it is being changed, and which setting wrote which place."""

    data: dict[str, Any]
    written: dict[Place, str] = field(default_factory=dict)

    def at(self, path: Sequence[str | int] = (), *, key: bool = False) -> str:
        """The setting that wrote the place or something around it, else the place itself."""
        path = tuple(path)
        around = [path[:length] for length in range(len(path), -1, -1)]
        inside = [place for place in reversed(self.written) if path == place[: len(path)] != ()]
        found = (self.written[place] for place in (*around, *inside) if place in self.written)
        return next(found, ".".join(["plan", *map(str, path)]))

    def apply(self, text: str) -> None:
        """Write one setting into the data. Raises InputError."""
        name, equals, value_text = text.partition("=")
        at, parts = f"--set {text}", name.strip().split(".")
        if not equals or not all(parts):
            raise InputError("not a setting", FORM, where=at)
        value = parse_yaml(value_text, name=at).data if value_text.strip() else ""
        node: Any = self.data
        place: Place = ()
        for number, part in enumerate(parts, 1):
            place = (*place, _step(node, part, place, at))
            if number < len(parts):
                if isinstance(node, dict) and node.get(part) is None:
                    node[part] = {}
                node = node[place[-1]]
        inside = place[:-1]
        keeps_null = inside[2:3] in (("trl",), ("peft",)) or inside[:2] == ("origin", "answers")
        if value is None and isinstance(node, dict) and not keeps_null:
            node.pop(place[-1], None)
        else:
            node[place[-1]] = value
        self.written[place] = at


def _step(node: Any, part: str, place: Place, at: str) -> str | int:
    """The key or index that one part of a setting's path means inside a node. Raises InputError."""
    where = ".".join(map(str, place)) or "the plan"
    if isinstance(node, dict):
        return part
    if not isinstance(node, list):
        raise InputError(f"'{where}' has no parts", FORM, where=at)
    names = [str(entry.get("name")) if isinstance(entry, dict) else "" for entry in node]
    if part in names:
        return names.index(part)
    if part.isdecimal() and int(part) < len(node):
        return int(part)
    known = [name or str(index) for index, name in enumerate(names)]
    raise InputError(
        f"'{where}' has no entry '{part}'",
        f"known: {', '.join(known)}, or a number from 0 to {len(node) - 1}",
        did_you_mean(part, known),
        where=at,
    )
