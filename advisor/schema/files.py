"""JSON Schemas of whole rule files, made from the rules themselves: an editor then completes real
names and values.
"""

from __future__ import annotations

from advisor.advice.scenarios import SCENARIO
from advisor.methods import methods
from advisor.methods.load import FOLDERS, file_shape
from advisor.ruleset.load import (
    LAYER_FILE,
    MAX_INPUTS,
    OWN_FILE,
    SHIPPED_LAYERS,
    TABLES_FILE,
)
from advisor.ruleset.model import Ruleset
from advisor.schema.facts import named_facts
from advisor.schema.parts import (
    VERSION,
    Schema,
    closed,
    head,
    needed,
    offered,
    ref,
    schema_of,
)
from advisor.schema.rule import definitions, may_be_added, may_grow


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


def layer_schema(rules: Ruleset) -> Schema:
    """Layers of the product and files of the user's, which may bring signals, values and inputs of
    their own.
    """
    properties = {**schema_of(LAYER_FILE)["properties"], **schema_of(OWN_FILE)["properties"]}
    facts = named_facts(rules.facts)
    growing = [fact.id for fact in facts if may_grow(fact)]
    tables = {
        table.id: {"type": "array", "items": ref(f"table.{table.id}"), "description": table.about}
        for table in rules.tables.values()
    }
    properties["overlay"]["not"] = {"enum": ["base", *SHIPPED_LAYERS]}
    properties["tables"] = {**closed(tables), "description": "decision step -> its rules"}
    properties["values"]["propertyNames"] = {"enum": growing}
    properties["inputs"]["propertyNames"] = {"enum": list(rules.tables)}
    properties["inputs"]["additionalProperties"]["items"] = offered(
        fact.id for fact in facts if may_be_added(fact)
    )
    properties["disable"]["items"]["properties"]["rule"] = ref("rule-id")
    properties["scenarios"] = {
        "type": "array",
        "items": scenario_entry(rules),
        "description": "tests of your rules: `advise rules lint --rules FILE` runs them",
    }
    return needed(
        head(
            "A file of rules: a layer of the product, or an overlay of your own",
            **closed(properties),
            allOf=_bounds(rules),
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


def tables_schema(rules: Ruleset) -> Schema:
    """rules/tables.yaml."""
    schema = schema_of(TABLES_FILE)
    title = schema.pop("description")
    entry = schema["properties"]["tables"]["additionalProperties"]["properties"]
    entry["concludes"] = ref("fact")
    entry["inputs"] |= {"items": ref("fact"), "maxItems": MAX_INPUTS, "uniqueItems": True}
    names = {"enum": [fact.id for fact in named_facts(rules.facts)]}
    return head(title, **schema, **{"$defs": {"fact": names}})


# --------------------------------------------------------------------------- methods


def method_schema(rules: Ruleset) -> Schema:
    """rules/objectives/*.yaml and rules/updates/*.yaml."""
    properties: dict[str, Schema] = {}
    required: list[set[str]] = []
    for axis in FOLDERS:
        schema = schema_of(file_shape(axis))
        properties |= schema["properties"]
        required.append(set(schema["required"]))
    known = [*methods().objectives, *methods().updates]
    properties["id"] = {"enum": known, "description": "the file's own name"}
    properties["settings"] = {"type": "array", "items": ref("table.settings")}
    key = properties["keys"]["additionalProperties"]["properties"]
    key["source"] = key["sources"]["items"] = ref("source-id")
    return needed(
        head(
            "An update scheme or an objective: what it is, its plan keys, its default settings",
            **closed(properties, *sorted(set.intersection(*required))),
        ),
        definitions(rules, own=False),
    )
