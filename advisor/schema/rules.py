"""JSON Schemas of plans and rule files, made from the shapes that readers check and from the rules,
so that an editor completes real names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from advisor.ground.annotated import shape_of
from advisor.ground.files import NAME_PATTERN
from advisor.ground.shape import Keys, ListOf
from advisor.methods import methods, schemes
from advisor.methods.keys import Key
from advisor.methods.load import FOLDERS, file_shape
from advisor.methods.stage import EVERY_STAGE, Stage, stage_keys
from advisor.plan.keys import KeySpecs, key_specs, settable, setting_keys
from advisor.plan.model import Plan
from advisor.plan.read import plan_shape
from advisor.ruleset.entries import BOUNDS, OWN_SCENARIO, RULE, SCENARIO
from advisor.ruleset.facts import FACT, FACTS_FILE, UNKNOWN, Fact
from advisor.ruleset.layers import LAYER_FILE, MAX_INPUTS, OWN_FILE, TABLES_FILE
from advisor.ruleset.model import KINDS, SHIPPED_LAYERS, DecisionTable, Ruleset
from advisor.schema.parts import (
    TEXT,
    VERSION,
    Schema,
    closed,
    head,
    map_of,
    needed,
    offered,
    one_or_more,
    or_null,
    ref,
    schema_of,
)
from advisor.situation.answers import answers_shape, fact_shape


def scenario_entry(shape: Keys = SCENARIO) -> Schema:
    """One row of tests as data: facts, and what must follow from them."""
    schema = schema_of(shape)
    properties = schema["properties"]
    properties["given"] = ref("stated")
    properties["whatif"]["items"]["properties"]["change"] = ref("stated")
    properties["why_not"]["additionalProperties"] = ref("rule-id")
    for key in ("fired", "warned"):
        properties[key]["items"] = ref("rule-id")
    return schema


def scenarios_schema(rules: Ruleset) -> Schema:
    """rules/scenarios/*.yaml."""
    keys = {"version": VERSION, "scenarios": {"type": "array", "items": scenario_entry()}}
    schema = head("Scenarios: tests of the rules as data", closed(keys, *keys))
    return needed(schema, definitions(rules))


def layer_schema(rules: Ruleset) -> Schema:
    """Layers of the product and files of users; one that brings facts, values or inputs of its own
    is held to the names of keys alone: the loader knows what it adds.
    """
    properties = {**schema_of(LAYER_FILE)["properties"], **schema_of(OWN_FILE)["properties"]}
    facts = named_facts(rules.facts)
    tables = {
        table.id: {"type": "array", "items": ref(f"table.{table.id}"), "description": table.about}
        for table in rules.tables.values()
    }
    properties["overlay"]["not"] = {"enum": ["base", *SHIPPED_LAYERS]}
    # To which questions a file of the user's may add values, and at which facts a step may look.
    growing = [fact.id for fact in facts if fact.type == "choice" and fact.origin == "asked"]
    properties["values"]["propertyNames"] = {"enum": growing}
    properties["inputs"]["propertyNames"] = {"enum": list(rules.tables)}
    properties["inputs"]["additionalProperties"]["items"] = offered(
        fact.id
        for fact in facts
        if fact.type in ("choice", "number", "flag")
        and fact.origin not in ("concluded", "estimated")
    )
    properties["disable"]["items"]["properties"]["rule"] = ref("rule-id")
    own = {
        "tables": {
            "propertyNames": {"enum": list(rules.tables)},
            "additionalProperties": {"items": schema_of(RULE)},
        },
        "scenarios": schema_of(ListOf(of=OWN_SCENARIO)),
    }
    known = {
        "tables": {**closed(tables), "description": "decision step -> its rules"},
        "scenarios": {
            "type": "array",
            "items": scenario_entry(),
            "description": "tests of your rules: `advise rules lint --rules FILE` runs them",
        },
    }
    brings = {"anyOf": [{"required": [key]} for key in ("facts", "values", "inputs")]}
    title = "A file of rules: a layer of the product, or an overlay of your own"
    schema = head(title, closed(properties | {"scenarios": {}}))
    schema |= {"if": brings, "then": {"properties": own}, "else": {"properties": known}}
    return needed(schema, definitions(rules))


def tables_schema(rules: Ruleset) -> Schema:
    """rules/tables.yaml."""
    schema = schema_of(TABLES_FILE)
    title = schema.pop("description")
    entry = schema["properties"]["tables"]["additionalProperties"]["properties"]
    entry["concludes"] = ref("fact")
    entry["inputs"] |= {"items": ref("fact"), "maxItems": MAX_INPUTS, "uniqueItems": True}
    names = {"enum": [fact.id for fact in named_facts(rules.facts)]}
    return head(title, schema | {"$defs": {"fact": names}})


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
    title = "An update scheme or an objective: what it is, its plan keys, its default settings"
    schema = head(title, closed(properties, *sorted(set.intersection(*required))))
    return needed(schema, definitions(rules))


LONGEST_BECAUSE = 160  # characters: a reason is one sentence
# What every rule has in common, once.
RULE_PARTS: dict[str, Schema] = {
    name: schema
    for name, schema in schema_of(RULE)["properties"].items()
    if name not in ("kind", "tier", "when", "then")
}
RULE_PARTS["because"]["maxLength"] = LONGEST_BECAUSE
RULE_PARTS["sources"]["items"] = ref("source-id")
RULE_PARTS["examples"]["items"]["properties"]["given"] = ref("stated")
RULE_PARTS["scenarios"]["items"] = scenario_entry(OWN_SCENARIO)


def rule_schema(rules: Ruleset, table: DecisionTable) -> Schema:
    """One rule of a table: its inputs, its outcomes."""
    concludes = bool(
        rules.facts[table.concludes].values
    )  # a step without outcomes of its own sets values
    outcome, several = ref(f"outcome.{table.concludes}"), ref(f"outcomes.{table.concludes}")
    kinds = [kind for kind in KINDS if kind == "warn" or (kind != "set") == concludes]
    if table.per:
        kinds = ["forbid", "warn"]
    usual = "forbid" if table.per else "recommend" if concludes else "set"
    when = closed({name: ref(f"when.{name}") for name in table.inputs})
    then: Schema = {"type": "object"}
    if concludes:
        then |= {"minProperties": 1, "properties": {table.concludes: several}}
    known: dict[str, Schema] = {
        "id": ref("rule.id"),
        "kind": {"enum": kinds, "default": usual},
        "tier": ref("tier"),
        "when": {**when, "description": "joined by AND; a list is the only OR; {} holds always"},
        "then": then,
        **{name: ref(f"rule.{name}") for name in RULE_PARTS if name != "id"},
    }
    forms: dict[str, Schema] = {
        "warn": {"properties": {"tier": False, "then": ref("say")}, "required": ["then"]}
    }
    if not concludes:
        values = {"tier": False, "then": ref("settings")}
        forms["set"] = {"properties": values, "required": ["then"]}
    elif table.per:
        scheme = closed({table.concludes: outcome})
        forms["forbid"] = {"properties": {"tier": False, "then": scheme}}
    else:
        best, worst = (
            closed({table.concludes: said}, table.concludes) for said in (outcome, several)
        )
        forms["recommend"] = {"required": ["tier", "then"], "properties": {"then": best}}
        forms["forbid"] = {"required": ["then"], "properties": {"tier": False, "then": worst}}
    return {
        **closed(known, *RULE.required),
        "allOf": [{"if": _is_kind(kind, usual), "then": form} for kind, form in forms.items()],
    }


def _is_kind(kind: str, usual: str) -> Schema:
    """Holds for rules of the kind; one that states none is of the table's usual kind."""
    if kind != usual:
        return {"properties": {"kind": {"const": kind}}, "required": ["kind"]}
    others: Schema = {"properties": {"kind": {"enum": [one for one in KINDS if one != kind]}}}
    return {"not": {**others, "required": ["kind"]}}


def stated(facts: Iterable[Fact]) -> Schema:
    """Facts with one value each, as examples state them: `fits_lora: tight`."""
    properties = {}
    for fact in facts:
        value = ref(f"fact.{fact.instance_of or fact.id}")
        properties[fact.id] = {"anyOf": [value, of_schemes(value)]} if fact.per else value
    return closed(properties)


def definitions(rules: Ruleset) -> dict[str, Schema]:
    """What schemas of rule files share: every fact as a condition, every key that can be set, every
    table's rule.
    """
    found = fact_definitions(named_facts(rules.facts))
    settings = {name: key_schema(settable(name)) for name in setting_keys()}
    found["settings"] = closed(settings) | {"minProperties": 1}
    done_by = {
        **TEXT,
        "description": "a key of the stage that does it: where it is set, say nothing",
    }
    found["say"] = closed(
        {"say": {**TEXT, "description": "what a warning says"}, "done_by": done_by}, "say"
    )
    found["tier"] = {"enum": list(rules.tiers), "description": "a higher tier wins inside a layer"}
    found["source-id"] = {
        **offered(sorted(rules.sources)),
        "description": "an id of rules/sources.yaml, or of this file's own `sources`",
    }
    found["rule-id"] = offered(
        sorted(rule.id for listed in rules.rules.values() for rule in listed)
    )
    found["stated"] = stated(rules.facts.values())
    found |= {f"rule.{name}": schema for name, schema in RULE_PARTS.items()}
    for table in rules.tables.values():
        outcome = f"outcome.{table.concludes}"
        found[outcome] = {"enum": list(rules.facts[table.concludes].values)}
        found[f"outcomes.{table.concludes}"] = {
            **one_or_more(ref(outcome)),
            "description": table.about,
        }
    return found | {
        f"table.{table.id}": rule_schema(rules, table) for table in rules.tables.values()
    }


def named_facts(facts: Mapping[str, Fact]) -> list[Fact]:
    """The facts as rules name them, without those that each scheme has of its own."""
    return [fact for fact in facts.values() if not fact.instance_of]


def described(fact: Fact) -> str:
    """The question and what each value means, for the editor's hover."""
    lines = [fact.ask or f"{fact.id} ({fact.origin})"]
    if fact.unit:
        lines.append(f"in {fact.unit}")
    lines += [
        f"{name}: {value.label}" for name, value in fact.values.items() if value.label != name
    ]
    if fact.unknown:
        lines.append(f"not known: {fact.unknown}")
    return "\n".join(lines)


def value_of(fact: Fact) -> Schema:
    """What the fact can be, `unknown` included."""
    match fact.type:
        case "number":
            return {"anyOf": [schema_of(fact_shape(fact)), {"const": UNKNOWN}]}
        case "flag":
            return {"enum": [True, False, UNKNOWN]}
        case "choice":
            return {"enum": list(dict.fromkeys([*fact.values, UNKNOWN]))}
    return {}


def condition(fact: Fact, value: Schema) -> Schema:
    """What a rule's `when` may ask of a fact that can be `value`."""
    if fact.type == "number":
        value = {"anyOf": [value, ref("bounds")]}
    elif fact.type == "choice":
        value = {"anyOf": [value, closed({"not": one_or_more(value)}, "not")]}
    asked = one_or_more(value)
    if fact.per:
        asked["anyOf"].append(of_schemes(one_or_more(value)))
    return {**asked, "description": described(fact)}


def of_schemes(value: Schema) -> Schema:
    """A map from a scheme to such a value: {lora: tight}."""
    return {**map_of(value), "propertyNames": {"enum": list(schemes())}, "minProperties": 1}


def fact_definitions(facts: Iterable[Fact]) -> dict[str, Schema]:
    """Each fact once: `fact.X` is what it can be, `when.X` what a rule may ask of it."""
    facts = list(facts)
    sides = {side: {"type": "number", "description": words} for side, words in BOUNDS.items()}
    twice = {"anyOf": [{"required": ["gt", "gte"]}, {"required": ["lt", "lte"]}]}
    found = {"bounds": closed(sides) | {"minProperties": 1, "not": twice}}
    found |= {f"fact.{fact.id}": value_of(fact) for fact in facts}
    return found | {f"when.{fact.id}": condition(fact, ref(f"fact.{fact.id}")) for fact in facts}


def fact_entry(facts: Mapping[str, Fact]) -> Schema:
    """One entry under `facts:`."""
    schema = schema_of(FACT)
    names = offered([fact.id for fact in named_facts(facts)])
    properties = schema["properties"]
    properties["ask_when"]["propertyNames"] = properties["compared_with"] = names
    for key in ("ask_without", "implies", "implies_either_way", "read_from"):
        properties[key]["items"] = names
    return {
        **schema,
        "if": {"properties": {"type": {"const": "choice"}}, "required": ["type"]},
        "then": {"anyOf": [{"required": ["values"]}, {"required": ["values_from"]}]},
    }


def facts_schema(facts: Mapping[str, Fact]) -> Schema:
    """rules/facts.yaml."""
    named = named_facts(facts)
    never = {
        **closed({fact.id: ref(f"when.{fact.id}") for fact in named}),
        "minProperties": 1,
        "description": "these do not hold together",
    }
    schema = schema_of(FACTS_FILE)
    schema["properties"]["facts"]["additionalProperties"] = fact_entry(facts)
    for key in ("assume", "refuse"):
        schema["properties"][key]["items"]["properties"]["never"] = never
    title = schema.pop("description")
    return needed(head(title, schema), fact_definitions(named))


def answers_schema(facts: Mapping[str, Fact]) -> Schema:
    """The answers of `advise --answers`; null is 'not stated'."""
    schema = schema_of(answers_shape(facts))
    properties = schema["properties"]
    for fact in facts.values():
        group, _, key = (fact.answer or "").partition(".")
        if key:
            parts = next(part for part in properties[group]["anyOf"] if "properties" in part)
            parts["properties"][key]["description"] = described(fact)
        elif group:
            properties[group]["description"] = described(fact)
    properties["tasks"]["propertyNames"] = {"pattern": f"^{NAME_PATTERN}$"}
    stated: Schema = {"enum": [fact.id for fact in facts.values() if fact.signal]}
    told = {**map_of({"type": ["boolean", "null"]}), "propertyNames": ref("signal")}
    properties["signals"] = or_null({"anyOf": [{"type": "array", "items": ref("signal")}, told]})
    required = [fact.answer for fact in facts.values() if fact.required and fact.answer]
    schema["required"] = required
    return head("Answers for `advise --answers`", schema | {"$defs": {"signal": stated}})


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
