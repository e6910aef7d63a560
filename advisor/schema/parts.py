"""Words that the JSON Schemas are made of.

Draft-07 words only, since many editors' YAML servers know no later draft. `$defs` is no such word,
but a pointer finds what stands there all the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from advisor.ground.annotated import JsonObject, ObjectShape, Plain, object_shape, parts_of
from advisor.ground.shape import Choice, Flag, Keys, ListOf, MapOf, Number, OneOf, Shape, Text

Schema = dict[str, Any]
TEXT: Schema = {"type": "string", "minLength": 1}
VERSION: Schema = {"const": 1}
JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}


# --------------------------------------------------------------------------- out of shapes


def schema_of(shape: Shape) -> Schema:
    """The schema of what has the shape."""
    schema = _kind_of(shape)
    if shape.null and schema:
        schema = or_null(schema)
    return {**schema, **({"description": shape.help} if shape.help else {})}


def _kind_of(shape: Shape) -> Schema:
    match shape:
        case Text():
            return {**TEXT, **({"pattern": f"^(?:{shape.pattern})$"} if shape.pattern else {})}
        case Number():
            bounds = {
                "minimum": shape.min,
                "maximum": shape.max,
                "exclusiveMinimum": shape.above,
                "exclusiveMaximum": shape.below,
            }
            kind = "integer" if shape.whole else "number"
            return {"type": kind, **{key: at for key, at in bounds.items() if at is not None}}
        case Flag():
            return {"type": "boolean"}
        case Choice():
            return (
                {"enum": list(shape.values)}
                if len(shape.values) > 1
                else {"const": shape.values[0]}
            )
        case ListOf():
            most = {} if shape.most is None else {"maxItems": shape.most}
            least = {"minItems": shape.least} if shape.least else {}
            return {"type": "array", "items": schema_of(shape.of), **least, **most}
        case MapOf():
            named = schema_of(shape.named)
            names = {} if named in (TEXT, {}) else {"propertyNames": named}
            least = {"minProperties": shape.least} if shape.least else {}
            return {**map_of(schema_of(shape.of)), **names, **least}
        case ObjectShape():
            return ref(shape.kind.__name__)
        case Plain():
            return {"type": JSON_TYPES[shape.type]}
        case Keys():
            schemas = {key: schema_of(part) for key, part in shape.keys.items()}
            if shape.nulls:
                schemas = {key: or_null(part) for key, part in schemas.items()}
            return closed(schemas, *shape.required)
        case OneOf():
            return {"anyOf": [schema_of(option) for option in shape.options]}
    return {}


def or_null(schema: Schema) -> Schema:
    """The schema, or null."""
    if "enum" in schema:
        return {**schema, "enum": [*schema["enum"], None]}
    if isinstance(schema.get("type"), str):
        return {**schema, "type": [schema["type"], "null"]}
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    return {"anyOf": [schema, {"type": "null"}]} if schema else {}


def object_schema(kind: type[JsonObject]) -> Schema:
    """The schema of an object of a JSON file; unknown keys are allowed, since they are kept."""
    shape = object_shape(kind)
    return {
        "type": "object",
        "description": (kind.__doc__ or "").strip().splitlines()[0],
        "properties": {name: schema_of(part) for name, part in shape.keys.items()},
        **({"required": list(shape.required)} if shape.required else {}),
    }


def json_file_schema(kind: type[JsonObject], title: str) -> Schema:
    """The schema of a JSON file that the program writes."""
    parts = {part.__name__: object_schema(part) for part in parts_of(kind)[1:]}
    return head(title, object_schema(kind) | {"$defs": parts})


# --------------------------------------------------------------------------- by hand


def head(title: str, schema: Schema) -> Schema:
    """The schema as that of a whole file."""
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": title, **schema}


def file_schema(shape: Shape) -> Schema:
    """The schema of a whole file that has the shape, titled by the shape's help."""
    schema = schema_of(shape)
    return head(schema.pop("description"), schema)


def closed(properties: Mapping[str, Schema], *required: str) -> Schema:
    """A map with these keys and no others."""
    return {
        "type": "object",
        "additionalProperties": False,
        **({"required": list(required)} if required else {}),
        "properties": dict(properties),
    }


def map_of(schema: Schema) -> Schema:
    """A map from any name to such a value."""
    return {"type": "object", "additionalProperties": schema}


def one_or_more(schema: Schema) -> Schema:
    """The value, or a list of such values: the only OR there is."""
    return {"anyOf": [schema, {"type": "array", "items": schema, "minItems": 1}]}


def offered(names: Iterable[str]) -> Schema:
    """Completes the shipped names and takes others, since a file may bring its own."""
    return {"anyOf": [{"enum": list(names)}, TEXT]}


def ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def needed(schema: Schema, defined: Mapping[str, Schema]) -> Schema:
    """The schema with those of the definitions that it refers to, directly or through another."""
    found: Schema = {}
    waiting = [schema]
    while waiting:
        for name in dict.fromkeys(re.findall(r'"#/\$defs/([^"]+)"', json.dumps(waiting.pop()))):
            if name not in found:
                found[name] = defined[name]
                waiting.append(defined[name])
    return {**schema, "$defs": {name: found[name] for name in defined if name in found}}


# --------------------------------------------------------------------------- as text


def dumped(schema: Any) -> str:
    """The schema as the text of its file."""
    return json.dumps(schema, ensure_ascii=False, indent=1) + "\n"
