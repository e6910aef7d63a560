"""JSON Schemas of rule files, made from the rules themselves: an editor then completes real names
and values.
"""

from dataclasses import fields

from advisor.ground.types import Source
from advisor.methods import objectives, updates
from advisor.plan.keys import REFUSAL_KEYS, SPEC_KEYS
from advisor.plan.keys import TYPES as KEY_TYPES
from advisor.ruleset.load import (
    FACT_KEYS,
    LAYER_KEYS,
    LAYER_NAME,
    MAX_INPUTS,
    OWN_KEYS,
    SHIPPED_LAYERS,
)
from advisor.ruleset.model import Ruleset, Table
from tests.generating.markdown import every_rule
from tests.generating.schema_facts import described, fact_entry, value_of
from tests.generating.schema_parts import (
    DATE,
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
)
from tests.generating.schema_rules import OWN_NAME, definitions, may_be_added, may_grow

SOURCE_KINDS = ("document", "paper", "vendor", "measured", "derived", "assumed")


def source_entry() -> Schema:
    known: dict[str, Schema] = {
        "title": TEXT,
        "url": {"type": "string", "pattern": "^https?://"},
        "checked": {**DATE, "description": "the day somebody read it"},
        "kind": {"enum": list(SOURCE_KINDS)},
    }
    return closed(ordered(known, (field.name for field in fields(Source))), "title")


def method_entry() -> Schema:
    stars: Schema = {"type": "integer", "minimum": 1, "maximum": 5}
    words = dict.fromkeys(("name", "plain", "data", "ideal", "concept"), TEXT)
    return closed(
        {
            **words,
            "cost": stars,
            "performance": stars,
            **dict.fromkeys(("pros", "cons", "best_for"), TEXTS),
        },
        "name",
    )


def scenario_entry(rules: Ruleset) -> Schema:
    """One row of tests as data: facts, and what must follow from them."""
    facts = {
        "type": "object",
        "properties": {fact.id: value_of(fact) for fact in rules.facts.values()},
        "additionalProperties": True,
    }
    ids = offered(sorted(rule.id for rule in every_rule(rules)))
    return closed(
        {
            "id": TEXT,
            "given": {
                **facts,
                "description": "what is known; with `objective`, the facts of one stage",
            },
            "composition": {**TEXT, "description": "what is to be recommended: rag & sft+lora"},
            "fired": {"type": "array", "items": ids, "description": "rules that have to decide"},
            "why_not": {
                "type": "object",
                "additionalProperties": ids,
                "description": "scheme or chain -> the rule that the answer names",
            },
            "whatif": {
                "type": "array",
                "items": closed({"change": facts, "composition": TEXT}, "change", "composition"),
            },
            "settings": {"type": "object", "description": "all settings of the stage"},
            "warned": {"type": "array", "items": ids},
            "why": {**TEXT, "description": "whose experience, or which text it comes from"},
        },
        "id",
        "given",
        "why",
    )


def scenarios_schema(rules: Ruleset) -> Schema:
    return head(
        "Scenarios: tests of the rules as data",
        **closed(
            {"version": VERSION, "scenarios": {"type": "array", "items": scenario_entry(rules)}},
            "version",
            "scenarios",
        ),
    )


def layer_schema(rules: Ruleset) -> Schema:
    """Layers of the product and files of the user's, which may bring signals, values and inputs of
    their own.
    """
    rule_ids = sorted(rule.id for listed in rules.rules.values() for rule in listed)
    disabled = closed(
        {
            "rule": offered(rule_ids),
            "because": {**TEXT, "description": "why; a reason is required"},
        },
        "rule",
        "because",
    )
    tables = {
        table.id: {"type": "array", "items": ref(f"rule.{table.id}"), "description": table.about}
        for table in rules.tables.values()
    }
    grows = [fact for fact in rules.facts.values() if may_grow(fact)]
    value = closed({"label": TEXT, "help": {"type": "string"}}, "label")
    values = {
        fact.id: {
            "type": "object",
            "propertyNames": OWN_NAME,
            "additionalProperties": value,
            "description": described(fact),
        }
        for fact in grows
    }
    added = {
        "type": "array",
        "items": offered([fact.id for fact in rules.facts.values() if may_be_added(fact)]),
    }
    known: dict[str, Schema] = {
        "version": VERSION,
        "overlay": {"type": "string", "pattern": pattern(LAYER_NAME), "not": {"enum": ["base",
        *SHIPPED_LAYERS]}, "description": "the file's name, and the namespace of its rules"},
        "about": TEXT,
        "sources": {**map_of(source_entry()),
        "description": "sources of your own, to be named by rules"},
        "facts": {"type": "object", "propertyNames": OWN_NAME,
        "additionalProperties": own_fact(rules), "description": "signals of your own"},
        "values": {**closed(values), "description": "more values of a question that is asked"},
        "inputs": {**closed({table: {**added,
        "description": f"facts that {table} is to look at too"} for table in rules.tables}),
        "description": "step -> further facts it is to look at"},
        "tables": {**closed(tables), "description": "decision step -> its rules"},
        "scenarios": {"type": "array", "items": scenario_entry(rules),
        "description": "tests of your rules as data: `advise rules lint --rules FILE` runs them"},
        "disable": {"type": "array", "items": disabled,
        "description": "rules that no longer count, each with the reason"},
        "methods": {**map_of(method_entry()), "description": "the guide's comparison table"},
    }  # fmt: skip

    def conditions(schema: Schema, table: str = "") -> Schema:
        """The schema for the conditions of one table's rules, or of all.

        By pattern, so that an editor does not offer the names twice.
        """
        return {
            "properties": {
                "tables": {
                    "patternProperties": {
                        f"^{table}$" if table else "": {"items": {"properties": {"when": schema}}}
                    }
                }
            }
        }

    def brings(key: str, *names: str) -> Schema:
        return {"required": [key], "properties": {key: {"required": list(names)}}}

    # What no file brings stays closed: a step's inputs, a question's values, the list of facts.
    bounds = [
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
            "else": conditions({"patternProperties": {f"^{fact.id}$": ref(f"when.{fact.id}")}}),
        }
        for fact in grows
    ]
    bounds.append(
        {"if": brings("facts"), "else": conditions({"propertyNames": {"enum": list(rules.facts)}})}
    )
    schema = closed(ordered(known, LAYER_KEYS | OWN_KEYS | {"methods"}))
    return needed(
        head(
            "A file of rules: a layer of the product, or an overlay of your own",
            **schema,
            allOf=bounds,
        ),
        definitions(rules, own=True),
    )


def own_fact(rules: Ruleset) -> Schema:
    """A fact that a user's file adds: a signal."""
    entry = fact_entry(rules)["properties"]
    fixed: dict[str, Schema] = {
        "type": {"const": "flag"},
        "origin": {"const": "asked"},
        "signal": {"const": True},
    }
    return closed(ordered({**entry, **fixed}, FACT_KEYS), "type", "origin", "signal", "ask")


def tables_schema(rules: Ruleset) -> Schema:
    names = list(rules.facts)
    known: dict[str, Schema] = {
        "concludes": {
            "enum": names,
            "description": "the fact it concludes, which later steps may look at",
        },
        "inputs": {
            "type": "array",
            "items": {"enum": names},
            "minItems": 1,
            "maxItems": MAX_INPUTS,
            "uniqueItems": True,
            "description": f"the facts it may look at, {MAX_INPUTS} at most",
        },
        "about": {**TEXT, "description": "what the step decides"},
    }
    entry = closed(
        ordered(known, (field.name for field in fields(Table) if field.name not in ("id", "at"))),
        *known,
    )
    return head(
        "Decision steps",
        **closed(
            {"version": VERSION, "tiers": map_of({"type": "integer"}), "tables": map_of(entry)},
            "version",
            "tiers",
            "tables",
        ),
    )


def axis_schema(rules: Ruleset) -> Schema:
    axes = {name.partition("/")[2] for name in rules.axes}
    tables = sorted(
        {
            rule.table
            for listed in rules.rules.values()
            for rule in listed
            if rule.id.partition("/")[0] in axes
        }
    )
    shapes: dict[str, Schema] = {
        "type": {"enum": list(KEY_TYPES)}, "min": {"type": "number"}, "max": {"type": "number"},
        "exclusive_min": {"type": "boolean"}, "exclusive_max": {"type": "boolean"},
        "values": {"type": "array", "minItems": 1}, "help": TEXT, "source": ref("source-id"),
        "sources": {"type": "array", "items": ref("source-id")},
    }  # fmt: skip
    key = closed(ordered(shapes, SPEC_KEYS), "type")
    default = {
        "anyOf": [
            {"type": ["string", "number", "boolean", "null"]},
            closed({"value": {}, "source": ref("source-id")}, "value"),
        ]
    }
    properties: dict[str, Schema] = {
        "version": VERSION,
        "id": {"enum": [*objectives(), *updates()], "description": "the file's own name"},
        "name": TEXT,
        "about": TEXT,
        "trains_on": {"type": "array", "items": {"enum": list(rules.facts["data_kind"].values)}},
        "keys": {**map_of(key), "description": "the keys it adds to a plan's stage"},
        "defaults": {**map_of(default), "description": "of keys that every stage has"},
        "unused": {
            **map_of(TEXT),
            "description": "keys of every stage that it does not read, and why",
        },
        "refuses": {
            "type": "array",
            "items": closed(
                ordered(
                    {
                        "key": TEXT,
                        "values": {"type": "array", "minItems": 1},
                        "because": TEXT,
                        "hint": TEXT,
                    },
                    sorted(REFUSAL_KEYS),
                ),
                "key",
                "values",
                "because",
            ),
            "description": "values of other keys that it cannot go together with, and why",
        },
        "settings": {
            "type": "array",
            "items": (
                {"anyOf": [ref(f"rule.{table}") for table in tables]}
                if len(tables) != 1
                else ref(f"rule.{tables[0]}")
            ),
        },
    }
    return needed(
        head(
            "An update scheme or an objective: what it is, its plan keys, its default settings",
            **closed(properties, "id", "name", "about", "keys"),
        ),
        definitions(rules, own=False),
    )


def sources_schema() -> Schema:
    return head(
        "Sources of rules and numbers",
        **closed({"version": VERSION, "sources": map_of(source_entry())}, "version", "sources"),
    )
