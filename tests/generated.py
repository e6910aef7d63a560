"""Every generated file in one place: `python -m tests.generated` writes them, `--check` only compares.

JSON Schemas for editors and scripts, under rules/schema/.
"""

import json
import sys
from pathlib import Path

from advisor.facts import KEYS, ORIGINS, TYPES, load_facts
from advisor.plan.schema import schema_text
from advisor.resources import rules_dir
from advisor.ruleset.load import BOUNDS, RULE_KEYS, load_rules
from advisor.ruleset.model import CONFIDENCES, KINDS, STATUSES


def dumped(schema: dict) -> str:
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def head(title: str, **rest) -> dict:
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": title, **rest}


def facts_schema() -> dict:
    entry = {
        "type": "object",
        "additionalProperties": False,
        "required": ["type", "origin"],
        "properties": {key: {} for key in sorted(KEYS)} | {"type": {"enum": list(TYPES)}, "origin": {"enum": list(ORIGINS)}},
    }
    return head(
        "Facts and questions", type="object", required=["version", "facts"], properties={"version": {"const": 1}, "facts": {"type": "object", "additionalProperties": entry}}
    )


def condition_schema(fact) -> dict:
    if fact.type == "number":
        bounds = {"type": "object", "additionalProperties": False, "minProperties": 1, "properties": {bound: {"type": "number"} for bound in BOUNDS}}
        one = {"anyOf": [{"type": "number"}, {"const": "unknown"}, bounds]}
    elif fact.type == "flag":
        one = {"enum": [True, False, "unknown"]}
    elif fact.type == "choice":
        one = {"enum": [*fact.values, "unknown"]}
    else:
        one = {}
    return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}], "description": fact.ask or fact.id}


def rule_schema(table: str | None = None) -> dict:
    rules = load_rules()
    inputs = rules.tables[table].inputs if table else rules.tables["settings"].inputs
    properties = {key: {} for key in sorted(RULE_KEYS)} | {
        "kind": {"enum": list(KINDS)},
        "tier": {"enum": list(rules.tiers)},
        "confidence": {"enum": list(CONFIDENCES)},
        "status": {"enum": list(STATUSES)},
        "because": {"type": "string", "maxLength": 160},
        "sources": {"type": "array", "minItems": 1, "items": {"type": "string"}},
        "when": {"type": "object", "additionalProperties": False, "properties": {fact: condition_schema(rules.facts[fact]) for fact in inputs}},
        "then": {"type": "object"},
    }
    return {"type": "object", "additionalProperties": False, "required": ["id", "when", "then", "because", "sources"], "properties": properties}


def layer_schema() -> dict:
    tables = {name: {"type": "array", "items": rule_schema(name)} for name in load_rules().tables}
    free = {"type": "object"}
    return head(
        "A file of rules: a layer of the product, or an overlay of your own",
        type="object",
        properties={
            "version": {"const": 1}, "overlay": {"type": "string"}, "about": {"type": "string"}, "facts": free, "sources": free, "methods": free,
            "tables": {"type": "object", "additionalProperties": False, "properties": tables},
            "disable": {"type": "array", "items": {"type": "object", "additionalProperties": False, "required": ["rule", "because"], "properties": {"rule": {"type": "string"}, "because": {"type": "string"}}}},
        },
    )  # fmt: skip


def axis_schema() -> dict:
    return head(
        "An update scheme or an objective: what it is, its plan keys, its default settings",
        type="object",
        required=["id", "name", "about", "keys"],
        properties={
            "id": {"type": "string"},
            "name": {"type": "string"},
            "about": {"type": "string"},
            "keys": {"type": "object"},
            "settings": {"type": "array", "items": rule_schema()},
        },
    )


def answers_schema() -> dict:
    facts = load_facts()

    def of(fact_id: str) -> dict:
        fact = facts[fact_id]
        kind = {"number": {"type": ["integer" if fact.integer else "number", "null"]}, "choice": {"enum": [*fact.values, None]}}.get(fact.type, {"type": ["string", "null"]})
        return {**kind, "description": fact.ask or f"in {fact.unit}"}

    budget = {"anyOf": [of("budget"), {"type": "object", "additionalProperties": False, "properties": {"usd": of("budget_usd"), "hours": of("budget_hours")}}]}
    data = {
        "path": of("data_path"),
        "kind": of("data_kind"),
        "rows": of("data_rows"),
        "tokens": of("data_tokens"),
        "mapping": {"type": ["object", "null"], "additionalProperties": {"type": "string"}},
    }
    gpu = {"name": of("gpu"), "vram_gib": of("gpu_memory_gib"), "count": of("gpus")}
    return head(
        "Answers for `advise --answers`",
        type="object",
        additionalProperties=False,
        required=["task"],
        properties={
            "task": of("task"), "budget": budget, "depth": of("depth"), "data": {"anyOf": [{"type": ["string", "null"]}, {"type": "object", "additionalProperties": False, "properties": data}]},
            "tasks": {"type": ["object", "null"], "additionalProperties": {"type": "string"}}, "n_tasks": of("n_tasks"), "model": of("model"), "model_params_b": of("model_params_b"),
            "gpu": {"anyOf": [{"type": ["string", "null"]}, {"type": "object", "additionalProperties": False, "properties": gpu}]}, "serve_with": of("serve_with"), "priority": of("priority"),
            "signals": {"type": ["array", "null"], "items": {"enum": [fact.id for fact in facts.values() if fact.signal]}},
        },
    )  # fmt: skip


def simple_schema(title: str, *keys: str) -> dict:
    return head(title, type="object", required=["version", *keys], properties={"version": {"const": 1}, **{key: {"type": "object"} for key in keys}})


def generated() -> dict[Path, str]:
    """Path -> content of every generated file."""
    folder = rules_dir() / "schema"
    schemas = {
        "facts": facts_schema(),
        "layer": layer_schema(),
        "axis": axis_schema(),
        "answers": answers_schema(),
        "tables": simple_schema("Decision steps", "tiers", "tables"),
        "sources": simple_schema("Sources of rules and numbers", "sources"),
    }
    files = {folder / f"{name}.schema.json": dumped(schema) for name, schema in schemas.items()}
    files[folder / "plan.schema.json"] = schema_text()
    return files


def main() -> int:
    stale = [path for path, text in generated().items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path} is stale: run python -m tests.generated")
        return 1 if stale else 0
    for path in stale:
        path.write_text(generated()[path])
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
