"""JSON Schema of one rule in each table: the facts that the step looks at, its outcomes, the keys
it may set.
"""

import json

from advisor.plan.keys import key_specs
from advisor.plan.schema import plan_schema
from advisor.ruleset.entries import RULE_ID, RULE_KEYS
from advisor.ruleset.facts import UNKNOWN, Fact
from advisor.ruleset.load import FACT_NAME
from advisor.ruleset.model import CONFIDENCES, KINDS, STATUSES, Ruleset, Table
from tests.generating.schema_facts import condition, described, value_of
from tests.generating.schema_parts import (
    DATE,
    TEXT,
    Schema,
    closed,
    offered,
    one_or_more,
    ordered,
    pattern,
    ref,
)

LONGEST_BECAUSE = 160  # characters: a reason is one sentence
OWN_NAME: Schema = {"type": "string", "pattern": pattern(FACT_NAME)}


def settings() -> dict[str, Schema]:
    """Key -> schema of what a `set` rule may set: the keys of a plan's stage, and
    `effective_batch_size`, which the fit search splits in two.
    """
    stage = plan_schema()["$defs"]["Stage"]["properties"]
    named = set(key_specs().names())
    keys = {
        key: schema
        for key, schema in stage.items()
        if "$ref" not in json.dumps(schema)
        and ("default" in schema or key in named or key == "learning_rate")
    }
    return {
        **keys,
        "effective_batch_size": {
            "type": "integer",
            "minimum": 1,
            "description": "rows behind one optimizer step, over all cards",
        },
    }


def may_grow(fact: Fact) -> bool:
    """True where a file of the user's may add values to the question."""
    return fact.type == "choice" and fact.origin == "asked"


def may_be_added(fact: Fact) -> bool:
    """True where a file of the user's may make a further step look at the fact."""
    return fact.origin not in ("concluded", "estimated") and fact.type in (
        "choice",
        "number",
        "flag",
    )


def growing(fact: Fact) -> Schema:
    """A condition that also takes values of the file's own; the file's schema says where there can
    be none.
    """
    return {**one_or_more({"anyOf": [value_of(fact), OWN_NAME]}), "description": described(fact)}


def when(table: Table, rules: Ruleset, *, own: bool) -> Schema:
    """The conditions of a rule. With `own` open for what a file of the user's adds."""
    properties = {
        fact: ref(f"when.{fact}.or-own" if own and may_grow(rules.facts[fact]) else f"when.{fact}")
        for fact in table.inputs
    }
    schema: Schema = {"type": "object", "properties": properties} if own else closed(properties)
    return {**schema, "description": "joined by AND; a list is the only OR; {} holds always"}


def rule_schema(rules: Ruleset, table: Table, *, own: bool) -> Schema:
    """One rule of a table: its inputs, its outcomes."""
    outcome = {"enum": list(rules.facts[table.concludes].values)}
    concludes = bool(outcome["enum"])  # a step without outcomes of its own sets values
    default = "recommend" if concludes else "set"
    concluded = (
        {table.concludes: {**one_or_more(outcome), "description": table.about}} if concludes else {}
    )
    say: Schema = {"say": {**TEXT, "description": "what a warning says"}}
    known: dict[str, Schema] = {
        "id": {
            "type": "string",
            "pattern": pattern(RULE_ID),
            "description": (
                "namespace/name; the namespace is the file's own, and an id is never used again"
            ),
        },
        "kind": {
            "enum": [kind for kind in KINDS if kind == "warn" or (kind != "set") == concludes],
            "default": default,
        },
        "tier": {"enum": list(rules.tiers), "description": "a higher tier wins inside a layer"},
        "when": when(table, rules, own=own),
        "then": {
            "type": "object",
            "minProperties": 1,
            "properties": {
                **concluded,
                **say,
                **({} if concludes else {key: ref(f"set.{key}") for key in settings()}),
            },
        },
        "because": {
            **TEXT,
            "maxLength": LONGEST_BECAUSE,
            "description": "one sentence, printed to whoever asks why",
        },
        "row": {**TEXT, "description": "the guide's row, word for word"},
        "unless_note": {**TEXT, "description": "the honest other side"},
        "sources": {"type": "array", "minItems": 1, "items": ref("source-id")},
        "confidence": {"enum": list(CONFIDENCES), "default": "judgement"},
        "status": {"enum": list(STATUSES), "default": "active"},
        "review_by": DATE,
        "refines": {**TEXT, "description": "the row of the guide that this rule refines"},
        "examples": {
            "type": "array",
            "items": ref("example"),
            "description": "the rule's own tests",
        },
    }

    def is_kind(kind: str) -> Schema:
        if kind == default:
            return {
                "not": {
                    "properties": {"kind": {"enum": [other for other in KINDS if other != kind]}},
                    "required": ["kind"],
                }
            }
        return {"properties": {"kind": {"const": kind}}, "required": ["kind"]}

    untiered: Schema = {"tier": False}
    shapes: dict[str, Schema] = {"warn": {"properties": {**untiered, "then": closed(say, "say")}}}
    if concludes:
        shapes["recommend"] = {
            "required": ["tier"],
            "properties": {"then": closed({table.concludes: outcome}, table.concludes)},
        }
        shapes["forbid"] = {
            "properties": {
                **untiered,
                "then": closed({table.concludes: one_or_more(outcome)}, table.concludes),
            }
        }
    else:
        shapes["set"] = {"properties": {**untiered, "then": ref("settings")}}
    schema = closed(ordered(known, RULE_KEYS), "id", "when", "then", "because", "sources")
    return {
        **schema,
        "allOf": [{"if": is_kind(kind), "then": shape} for kind, shape in shapes.items()],
    }


def definitions(rules: Ruleset, *, own: bool) -> Schema:
    """What schemas of rule files share: every fact as a condition, every key that can be set, every
    table's rule.
    """
    facts = rules.facts.values()
    result: Schema = {f"when.{fact.id}": condition(fact) for fact in facts}
    result |= {f"when.{fact.id}.or-own": growing(fact) for fact in facts if may_grow(fact)}
    signal = one_or_more({"enum": [True, False, UNKNOWN]})
    result["when.added"] = {
        "properties": {
            fact.id: ref(f"when.{fact.id}.or-own" if may_grow(fact) else f"when.{fact.id}")
            for fact in facts
        },
        "additionalProperties": signal,
    }
    result |= {f"set.{key}": schema for key, schema in settings().items()}
    result["settings"] = closed({key: ref(f"set.{key}") for key in settings()}, minProperties=1)
    result["source-id"] = {
        **offered(sorted(rules.sources)),
        "description": "an id of rules/sources.yaml, or of this file's own `sources`",
    }
    given = {
        fact.id: {"anyOf": [value_of(fact), OWN_NAME]} if own and may_grow(fact) else value_of(fact)
        for fact in facts
    }
    stated: Schema = {
        "type": "object",
        "properties": given,
        "additionalProperties": {"enum": [True, False, UNKNOWN]} if own else False,
    }
    result["example"] = closed({"given": stated, "fires": {"type": "boolean"}}, "given", "fires")
    return result | {
        f"rule.{table.id}": rule_schema(rules, table, own=own) for table in rules.tables.values()
    }
