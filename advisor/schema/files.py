"""JSON Schemas of whole rule files, made from the rules themselves: an editor then completes real
names and values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

from advisor.advice.scenarios import SCENARIO
from advisor.ground.sources import SOURCE
from advisor.methods import methods
from advisor.methods.keys import TYPES as KEY_TYPES
from advisor.methods.load import (
    AMOUNTS,
    CHOICES,
    ELSEWHERE,
    KEY_PARTS,
    LISTS,
    REFUSAL_PARTS,
)
from advisor.methods.model import QUANTIZATIONS, Method, Objective, Update, Variant
from advisor.ruleset.facts import Fact
from advisor.ruleset.load import (
    FACT_KEYS,
    LAYER_KEYS,
    LAYER_NAME,
    MAX_INPUTS,
    OWN_KEYS,
    SHIPPED_LAYERS,
)
from advisor.ruleset.model import Ruleset
from advisor.schema.facts import fact_entry, named_facts
from advisor.schema.parts import (
    TEXT,
    TEXTS,
    VERSION,
    Schema,
    closed,
    head,
    map_of,
    needed,
    offered,
    ordered,
    pattern,
    ref,
    schema_of,
)
from advisor.schema.rule import OWN_NAME, definitions, may_be_added, may_grow


def scenario_entry(rules: Ruleset) -> Schema:
    """One row of tests as data: facts, and what must follow from them."""
    schema = schema_of(SCENARIO)
    properties = schema["properties"]
    properties["given"] = ref("stated")
    properties["whatif"]["items"]["properties"]["change"] = ref("stated")
    properties["why_not"]["additionalProperties"] = ref("rule-id")
    for key in ("fired", "warned"):
        properties[key]["items"] = ref("rule-id")
    return schema


def rule_ids(rules: Ruleset) -> Schema:
    """Completes the ids of the shipped rules."""
    return offered(sorted(rule.id for listed in rules.rules.values() for rule in listed))


def scenarios_schema(rules: Ruleset) -> Schema:
    """rules/scenarios/*.yaml."""
    entries: Schema = {"type": "array", "items": scenario_entry(rules)}
    return needed(
        head(
            "Scenarios: tests of the rules as data",
            **closed({"version": VERSION, "scenarios": entries}, "version", "scenarios"),
        ),
        {**definitions(rules, own=False), "rule-id": rule_ids(rules)},
    )


def comparison_entry() -> Schema:
    """One row of the guide's comparison table."""
    stars: Schema = {"type": "integer", "minimum": 1, "maximum": 5}
    words = dict.fromkeys(("name", "plain", "data", "ideal", "concept"), TEXT)
    lists = dict.fromkeys(("pros", "cons", "best_for"), TEXTS)
    return closed({**words, "cost": stars, "performance": stars, **lists}, "name")


def layer_schema(rules: Ruleset) -> Schema:
    """Layers of the product and files of the user's, which may bring signals, values and inputs of
    their own.
    """
    because = {**TEXT, "description": "why; a reason is required"}
    disabled = closed({"rule": ref("rule-id"), "because": because}, "rule", "because")
    tables = {
        table.id: {"type": "array", "items": ref(f"table.{table.id}"), "description": table.about}
        for table in rules.tables.values()
    }
    facts = named_facts(rules.facts)
    value = closed({"label": TEXT, "help": {"type": "string"}}, "label")
    values = {
        **map_of(map_of(value) | {"propertyNames": OWN_NAME}),
        "propertyNames": {"enum": [fact.id for fact in facts if may_grow(fact)]},
    }
    added = {
        "type": "array",
        "items": offered(fact.id for fact in facts if may_be_added(fact)),
        "description": "facts that the step is to look at too",
    }
    known: dict[str, Schema] = {
        "version": VERSION,
        "overlay": {
            "type": "string",
            "pattern": pattern(LAYER_NAME),
            "not": {"enum": ["base", *SHIPPED_LAYERS]},
            "description": "the file's name, and the namespace of its rules",
        },
        "about": TEXT,
        "sources": {
            **map_of(schema_of(SOURCE)),
            "description": "sources of your own, to be named by rules",
        },
        "facts": {
            **map_of(own_fact(rules.facts)),
            "propertyNames": OWN_NAME,
            "description": "signals of your own",
        },
        "values": {**values, "description": "more values of a question that is asked"},
        "inputs": {
            **map_of(added),
            "propertyNames": {"enum": list(rules.tables)},
            "description": "step -> further facts it is to look at",
        },
        "tables": {**closed(tables), "description": "decision step -> its rules"},
        "scenarios": {
            "type": "array",
            "items": scenario_entry(rules),
            "description": "tests of your rules: `advise rules lint --rules FILE` runs them",
        },
        "disable": {
            "type": "array",
            "items": disabled,
            "description": "rules that no longer count, each with the reason",
        },
        "methods": {
            **map_of(comparison_entry()),
            "description": "the guide's comparison table",
        },
    }
    return needed(
        head(
            "A file of rules: a layer of the product, or an overlay of your own",
            **closed(ordered(known, LAYER_KEYS | OWN_KEYS | {"methods"})),
            allOf=list(_bounds(rules)),
        ),
        {**definitions(rules, own=True), "rule-id": rule_ids(rules)},
    )


def _bounds(rules: Ruleset) -> list[Schema]:
    """What no file brings stays closed: a step's inputs, a question's values, the list of facts."""

    def conditions(schema: Schema, table: str = "") -> Schema:
        """The schema for the conditions of one table's rules, or of all.

        By pattern, so that an editor does not offer the names twice.
        """
        rule = {"items": {"properties": {"when": schema}}}
        named = {f"^{table}$" if table else "": rule}
        return {"properties": {"tables": {"patternProperties": named}}}

    def brings(key: str, *names: str) -> Schema:
        return {"required": [key], "properties": {key: {"required": list(names)}}}

    facts = named_facts(rules.facts)
    bounds: list[Schema] = [
        {
            "if": brings("inputs", table.id),
            "then": conditions(ref("when.added"), table.id),
            "else": conditions({"propertyNames": {"enum": list(table.inputs)}}, table.id),
        }
        for table in rules.tables.values()
    ]
    bounds += [
        {
            "if": brings("values", fact.id),
            "else": conditions({"patternProperties": {f"^{fact.id}$": ref(f"shipped.{fact.id}")}}),
        }
        for fact in facts
        if may_grow(fact)
    ]
    names = {"propertyNames": {"enum": [fact.id for fact in facts]}}
    return [*bounds, {"if": brings("facts"), "else": conditions(names)}]


def own_fact(facts: Mapping[str, Fact]) -> Schema:
    """A fact that a user's file adds: a signal."""
    entry = fact_entry(facts)["properties"]
    fixed: dict[str, Schema] = {
        "type": {"const": "flag"},
        "origin": {"const": "asked"},
        "signal": {"const": True},
    }
    return closed(ordered({**entry, **fixed}, FACT_KEYS), "type", "origin", "signal", "ask")


def tables_schema(rules: Ruleset) -> Schema:
    """rules/tables.yaml."""
    entry = closed(
        {
            "concludes": {
                **ref("fact"),
            },
            "inputs": {
                "type": "array",
                "items": ref("fact"),
                "minItems": 1,
                "maxItems": MAX_INPUTS,
                "uniqueItems": True,
                "description": f"the facts it may look at, {MAX_INPUTS} at most",
            },
            "about": {**TEXT, "description": "what the step decides"},
            "per": {"const": "scheme", "description": "asked for each scheme"},
        },
        "concludes",
        "inputs",
        "about",
    )
    tables = {"version": VERSION, "tiers": map_of({"type": "integer"}), "tables": map_of(entry)}
    names = {"enum": [fact.id for fact in named_facts(rules.facts)]}
    return head(
        "Decision steps",
        **closed(tables, "version", "tiers", "tables"),
        **{"$defs": {"fact": names}},
    )


# --------------------------------------------------------------------------- methods


def method_schema(rules: Ruleset) -> Schema:
    """rules/objectives/*.yaml and rules/updates/*.yaml."""
    properties: dict[str, Schema] = {"version": VERSION}
    required: list[set[str]] = []
    for kind in (Objective, Update):
        stated = _stated_fields(kind)
        properties |= stated
        required.append(
            {item.name for item in fields(kind) if item.name in stated and item.default is MISSING}
        )
    properties["id"] = {
        "enum": [*methods().objectives, *methods().updates],
        "description": "the file's own name",
    }
    refusal = ordered(
        {
            "key": TEXT,
            "values": {"type": "array", "minItems": 1},
            "because": TEXT,
            "hint": TEXT,
        },
        REFUSAL_PARTS,
    )
    default = {
        "anyOf": [
            {"type": ["string", "number", "boolean", "null"]},
            closed({"value": {}, "source": ref("source-id")}, "value"),
        ]
    }
    variant = {item.name: TEXT for item in fields(Variant) if item.name != "quantization"}
    elsewhere: dict[str, Schema] = {
        "version": VERSION,
        "keys": {**map_of(_key()), "description": "the keys it adds to a plan's stage"},
        "defaults": {**map_of(default), "description": "of keys that every stage has"},
        "unused": {
            **map_of(TEXT),
            "description": "keys of every stage that it does not read, and why",
        },
        "refuses": {
            "type": "array",
            "items": closed(refusal, "key", "values", "because"),
            "description": "values of other keys that it cannot go together with, and why",
        },
        "quantizations": {
            **closed({name: closed(variant, *variant) for name in QUANTIZATIONS}),
            "description": "schemes on a quantised base that have a name of their own",
        },
        "settings": {"type": "array", "items": ref("table.settings")},
    }
    return needed(
        head(
            "An update scheme or an objective: what it is, its plan keys, its default settings",
            **closed(
                {**properties, **ordered(elsewhere, ELSEWHERE)},
                *sorted(set.intersection(*required)),
            ),
        ),
        definitions(rules, own=False),
    )


def _stated_fields(kind: type[Method]) -> dict[str, Schema]:
    """The plain keys of a method's file: the fields of its value."""
    types: dict[Any, Schema] = {
        str: {"type": "string"},
        bool: {"type": "boolean"},
        int: {"type": "integer"},
    }
    found: dict[str, Schema] = {}
    for name, hint in get_type_hints(kind).items():
        if name in LISTS:
            found[name] = {"type": "array", "items": {"enum": list(LISTS[name])}}
        elif name in CHOICES:
            found[name] = {"enum": list(CHOICES[name])}
        elif name == "amounts":
            found[name] = schema_of(AMOUNTS)
        elif hint in types:
            found[name] = types[hint]
    return {name: schema for name, schema in found.items() if name not in ("axis", "at")}


def _key() -> Schema:
    """One key under `keys:`."""
    known: dict[str, Schema] = {
        "type": {"enum": list(KEY_TYPES)},
        "min": {"type": "number"},
        "max": {"type": "number"},
        "exclusive_min": {"type": "boolean"},
        "exclusive_max": {"type": "boolean"},
        "values": {"type": "array", "minItems": 1},
        "default": {},
        "help": TEXT,
        "source": ref("source-id"),
        "sources": {"type": "array", "items": ref("source-id")},
    }
    return closed(ordered(known, KEY_PARTS), "type")
