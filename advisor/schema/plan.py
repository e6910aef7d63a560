"""JSON Schema of launch files, made from the shapes that the reader checks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from advisor.ground.annotated import shape_of
from advisor.methods.keys import Key
from advisor.methods.stage import EVERY_STAGE, Stage, stage_keys
from advisor.plan.keys import KeySpecs, key_specs
from advisor.plan.model import Plan
from advisor.plan.read import plan_shape
from advisor.schema.parts import Schema, closed, head, ref, schema_of

NULL: Schema = {"type": "null"}


def plan_schema() -> Schema:
    """The schema, with each method's keys; a key beside a method that reads it not is marked."""
    specs, schema = key_specs(), schema_of(plan_shape())
    stages = schema["properties"]["stages"]
    stages["items"] = ref("Stage")
    stages.setdefault("description", shape_of(Plan).keys["stages"].help)
    schema["$defs"] = {"Stage": stage_schema(specs)}
    return head("Launch file of advise (plan.yaml)", schema)


def stage_schema(specs: KeySpecs) -> Schema:
    """One stage, with every key that some method declares, each held to its own methods."""
    keys = {name: key_schema([key]) for name, key in stage_keys().items()}
    for axis, table in (("objective", specs.objectives), ("update", specs.updates)):
        keys[axis] = {"enum": list(table), "description": stage_keys()[axis].help}
    keys |= {name: key_schema(specs.declared(name)) for name in specs.names()}
    whole = [name for name, update in specs.updates.items() if not update.is_module]
    usual = [name for name, update in specs.updates.items() if "learning_rate" in update.defaults]
    conditions: list[Schema] = [_only_beside(name, specs) for name in specs.names()]
    conditions += [
        {"if": _is("update", whole), "then": {"properties": {"quantization": NULL}}},
        {"if": _is("quantization", ["nf4"]), "else": {"properties": {"double_quantization": NULL}}},
        {"if": _is("update", usual), "else": {"required": ["learning_rate"]}},
    ]
    required = [name for name in shape_of(Stage).required if name != "learning_rate"]
    about = {"description": "One training stage.", "allOf": conditions}
    return closed(keys, *required) | about


def key_schema(keys: Sequence[Key]) -> Schema:
    """What a key may hold, as each that declares it says."""
    described = [_one(key) for key in keys]
    different = [one for place, one in enumerate(described) if one not in described[:place]]
    if len(different) == 1:
        return different[0]
    said = dict.fromkeys(key.help for key in keys if key.help)
    return {"anyOf": different, "description": "; or: ".join(said)}


def _one(key: Key) -> Schema:
    owner = "" if key.owner == EVERY_STAGE else f"({key.owner})"
    said = " ".join(filter(None, (key.help, owner)))
    return {
        **schema_of(key.shape),
        **({"description": said} if said else {}),
        **({} if key.default is None else {"default": key.default}),
    }


def _is(key: str, values: Iterable[str]) -> Schema:
    return {"properties": {key: {"enum": list(values)}}, "required": [key]}


def _only_beside(key: str, specs: KeySpecs) -> Schema:
    """The condition that a key stands beside a method that declares it."""
    tables = (("update", specs.updates), ("objective", specs.objectives))
    owners = [
        _is(axis, [name for name, method in table.items() if key in method.keys])
        for axis, table in tables
        if any(key in method.keys for method in table.values())
    ]
    return {"if": {"not": {"anyOf": owners}}, "then": {"properties": {key: False}}}
