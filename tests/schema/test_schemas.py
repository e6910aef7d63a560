"""Schemas say what loaders do, and `advise rules lint` reads every file that a command reads."""

import json
import re
import shutil
import subprocess
import sys

import jsonschema
import pytest

from advisor.ground.extras import all_extras
from advisor.ground.resources import rules_dir
from advisor.ground.yaml_files import parse_yaml, read_yaml
from advisor.probe import gpu_files
from advisor.ruleset.facts import load_facts
from advisor.ruleset.load import load_rules
from advisor.schema import build as catalogues
from advisor.schema.build import SUFFIX, schemas
from advisor.schema.parts import dumped
from advisor.schema.rules import facts_schema
from advisor.situation import catalogue
from tests.conftest import ROOT

MODELINE = "# yaml-language-server: $schema="
DRAFT_07 = {
    "$schema", "$ref", "title", "description", "default", "type", "enum", "const", "properties",
    "required", "additionalProperties", "patternProperties", "propertyNames", "items",
    "minItems", "maxItems", "uniqueItems", "minLength", "maxLength", "minimum", "maximum",
    "exclusiveMinimum", "exclusiveMaximum", "minProperties", "pattern", "anyOf", "oneOf", "allOf", "not",
    "if", "then", "else", "definitions", "$defs",
}  # fmt: skip


@pytest.fixture(scope="module")
def made():
    return schemas(load_rules())


def resolved(part, schema):
    """The schema that a reference leads to."""
    while "$ref" in part:
        part = schema["$defs"][part["$ref"].rpartition("/")[2]]
    return part


@pytest.mark.extra("jobs")
def test_every_shipped_file_names_its_schema_and_fits_it(made):
    """Its first line leads into rules/schema/, and the schema there accepts it; so do examples."""
    shipped = {
        path: path.read_text(encoding="utf-8").partition("\n")[0]
        for folder in (rules_dir(), ROOT / "examples")
        for path in sorted(folder.rglob("*.yaml"))
    }
    faults = []
    for path, first in shipped.items():
        if not (named := first.startswith(MODELINE)) and path.is_relative_to(ROOT / "examples"):
            continue
        assert named, f"{path} has no modeline"
        schema = (path.parent / first.removeprefix(MODELINE)).resolve()
        assert schema.parent == (rules_dir() / "schema").resolve(), path
        name = schema.name.removesuffix(SUFFIX)
        if name not in made and all_extras().broken:  # --hide-extra
            continue
        errors = jsonschema.Draft7Validator(made[name]).iter_errors(read_yaml(path).data)
        faults += [f"{path.name}: {list(one.absolute_path)}: {one.message[:300]}" for one in errors]
    assert len(shipped) > 40
    assert faults == []


def test_schemas_are_written_where_they_are_looked_for(call, made, tmp_path):
    """`advise rules schema --out DIR` writes each schema whole, or says what to do if it cannot."""
    code, out, _ = call("rules", "schema", "--out", tmp_path / "new")
    written = sorted((tmp_path / "new").iterdir())
    assert (code, len(written)) == (0, len(made))
    assert f"{len(made)} JSON Schemas to {tmp_path / 'new'}" in out
    assert all(json.loads(path.read_text(encoding="utf-8"))["title"] for path in written)
    assert call("rules", "--out", tmp_path)[0] == 2
    (tmp_path / "file").write_text("")
    code, _, err = call("rules", "schema", "--out", tmp_path / "file" / "below")
    assert (code, "--out DIR" in err) == (4, True)


def test_the_text_of_a_schema_is_the_schema(made):
    """However lines are filled, nothing is lost; no line but a long text is wide."""
    for schema in made.values():
        text = dumped(schema)
        assert json.loads(text) == schema
        assert [line for line in text.splitlines() if len(line) > 120 and '": "' not in line] == []


def test_each_fact_stands_in_a_schema_once(made):
    """The values of a question are defined once and referred to; so is what a rule may ask."""
    for name in ("layer", "axis", "scenarios", "facts"):
        text = json.dumps(made[name])
        assert text.count(json.dumps(list(load_facts()["data_kind"].values))[1:-1]) == 1, name
        assert text.count('"customer_service: ') <= 1, name


def keywords(schema):
    """Every keyword of a schema; names of properties and values are none."""
    for key, value in schema.items() if isinstance(schema, dict) else ():
        yield key
        parts = []
        if key in ("properties", "definitions", "$defs", "patternProperties"):
            parts = value.values()
        elif key in ("anyOf", "oneOf", "allOf"):
            parts = value
        elif key in ("items", "additionalProperties", "propertyNames", "not", "if", "then", "else"):
            parts = [value]
        for part in parts:
            yield from keywords(part)


def test_schemas_keep_to_what_older_editors_know(made):
    """Only draft-07 keywords are used, and each schema is one."""
    older = {name: schema for name, schema in made.items() if "run" not in name and name != "plan"}
    assert len(older) >= 13  # those of plan and runs are of a later draft, with tests of their own
    for name, schema in older.items():
        jsonschema.Draft7Validator.check_schema(schema)
        assert set(keywords(schema)) <= DRAFT_07, name


def test_conditions_complete_every_value_of_every_fact_a_step_looks_at(made):
    """An editor offers each input of a step, and for a choice each value and `unknown`."""
    rules = load_rules()
    for schema in (made["layer"], made["axis"]):
        steps = {f"table.{table.id}": table.inputs for table in rules.tables.values()}
        for name in steps.keys() & schema["$defs"].keys():
            when = schema["$defs"][name]["properties"]["when"]["properties"]
            assert list(when) == list(steps[name])
            for fact_id, condition in when.items():
                fact = rules.facts[fact_id]
                definition = offered = resolved(condition, schema)
                assert not fact.ask or fact.ask in definition["description"]
                while "anyOf" in offered:
                    offered = resolved(offered["anyOf"][0], schema)
                if fact.type == "choice":
                    assert offered["enum"] == list(dict.fromkeys([*fact.values, "unknown"]))


OVERLAY = """
version: 1
overlay: acme
about: Cards and habits of our own.
facts: {our_cards: {type: flag, origin: asked, signal: true, ask: "Does it run on our own cards?"}}
values: {task: {in_house: {label: Our own}}}
inputs: {adapters_per: [our_cards], settings: [n_tasks]}
sources: {handbook: {title: "Machine learning handbook, section 4"}}
tables:
  rank:
    - id: acme/prefer-qlora
      kind: recommend
      tier: strong
      when: {budget: [low, medium], gpus: [unknown, {gte: 1, lt: 3}], memory_bound: true}
      then: {scheme: qlora}
      because: "Our cards have 24 GB."
      sources: [handbook]
      examples: [{given: {budget: low, gpus: 1}, fires: false}]
    - {id: acme/no-full, kind: forbid, when: {}, then: {scheme: [full, adapter]}, because: "Policy 12.", sources: [handbook]}
  settings:
    - {id: acme/rank, when: {update: lora, objective: sft, n_tasks: {gte: 2}}, then: {rank: 8, effective_batch_size: 32}, because: "Our jobs are small.", sources: [handbook], confidence: practice}
  adapters_per:
    - id: acme/modules
      tier: low
      when: {our_cards: true, task: [in_house, qa]}
      then: {adapters_per: model}
      because: "One model is enough."
      confidence: judgement
      sources: [handbook]  # section 5
      examples: [{given: {our_cards: true, task: in_house}, fires: true}]
disable: [{rule: document/scenario-5, because: "We own the cards."}]
"""


# The same without names of its own.
PLAIN = re.sub(r"(facts|values|inputs): .*\n", "", OVERLAY)
for own, shipped in (
    (", n_tasks: {gte: 2}", ""),
    ("our_cards: true, task: [in_house, qa]", "task: [qa]"),
    ("our_cards: true, task: in_house", "task: qa"),
):
    PLAIN = PLAIN.replace(own, shipped)


def test_the_layer_schema_accepts_what_the_loader_accepts(made, tmp_path):
    """An overlay with every kind of entry fits both, and so does one that adds no names."""
    overlay = tmp_path / "acme.yaml"
    for text in (OVERLAY, PLAIN):
        overlay.write_text(text)
        load_rules(overlays=(overlay,))
        jsonschema.validate(read_yaml(overlay).data, made["layer"], jsonschema.Draft7Validator)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("budget: [low, medium]", "budgt: low"),  # no such fact
        ("budget: [low, medium]", "serve_with: vllm_server"),  # no such value
        ("budget: [low, medium]", "budget: cheap"),
        ("budget: [low, medium]", "data_path: x.jsonl"),  # not looked at by this step
        ("budget: [low, medium]", "budget: []"),
        ("memory_bound: true", "memory_bound: 'yes'"),
        ("{gte: 1, lt: 3}", "{gte: 1, lss: 3}"),
        ("{gte: 1, lt: 3}", "{gte: 1, gt: 1}"),
        ("{gte: 1, lt: 3}", "'two'"),
        ("tier: strong", "tier: strongest"),
        ("kind: forbid,", "kind: forbid, tier: strong,"),  # only what is recommended is ordered
        ("settings: [n_tasks]", "setings: [n_tasks]"),
        ("our_cards: {type: flag,", "our_cards: {type: number,"),
        ("{task: {in_house: {label: Our own}}}", "{task: {in_house: {lable: Our own}}}"),
        ("      tier: strong\n", ""),
        ("kind: recommend", "kind: recomend"),
        ("then: {scheme: qlora}", "then: {scheme: qlra}"),
        # only a forbid may name several
        ("then: {scheme: qlora}", "then: {scheme: [qlora, lora]}"),
        ("then: {scheme: qlora}", "then: {shceme: qlora}"),
        ("then: {scheme: [full, adapter]}", "then: {scheme: [full, adaptor]}"),
        ("kind: forbid, when: {}, then: {scheme: [full, adapter]}", "kind: warn, when: {}, then: {scheme: full}"),
        ("because: \"Our cards have 24 GB.\"", "becuase: \"Our cards have 24 GB.\""),
        ("sources: [handbook]\n      examples", "examples"),
        ("fires: false", "fire: false"),
        ("given: {budget: low,", "given: {budgt: low,"),
        ("rank: 8", "rnak: 8"),
        ("rank: 8", "rank: large"),
        ("confidence: practice", "confidence: sure"),
        ("  settings:", "  setings:"),
        ("overlay: acme", "overlay: document"),
        ("disable:", "disabled:"),
        (", because: \"We own the cards.\"", ""),
    ],
)  # fmt: skip
def test_the_layer_schema_marks_typical_mistakes(made, old, new):
    """A wrong fact, value, tier, key or shape is marked while it is typed."""
    text = PLAIN if old in PLAIN else OVERLAY
    assert text.count(old) == 1
    data = parse_yaml(text.replace(old, new), name="overlay").data
    assert not jsonschema.Draft7Validator(made["layer"]).is_valid(data)


def test_the_facts_schema_marks_a_comma_that_splits_a_label():
    """`label: Looked up, with a form` without quotes is two keys, the second of them nobody's."""
    validator = jsonschema.Draft7Validator(facts_schema(load_rules().facts))
    text = (
        "version: 1\nfacts: {x: {type: choice, origin: asked, values: {a: {label: %s, help: h}}}}"
    )
    for label, is_valid in (('"one, two"', True), ("one, two", False)):
        assert validator.is_valid(parse_yaml(text % label, name="x").data) == is_valid


GOOD_ANSWERS = {
    "task": "qa", "budget": {"usd": 50}, "data": {"path": "x.jsonl", "rows": None},
    "gpu": "RTX 4090", "signals": ["needs_citations"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("other", "is_valid"),
    [
        ({}, True),
        # The other spellings.
        ({"budget": "low", "data": "x.jsonl", "gpu": {"name": "RTX 4090", "count": 2}}, True),
        ({"tasks": {"legal": "legal.jsonl"}, "signals": {"rag_tried": True}}, True),
        # A misspelt key or value, an unknown signal.
        ({"budgt": "low"}, False),
        ({"depth": "deep"}, False),
        ({"signals": ["need_citations"]}, False),
        ({"gpu": {"vram": 24}}, False),
        ({"n_tasks": 0}, False),
    ],
)
def test_the_answers_schema_accepts_the_documented_file(made, other, is_valid):
    """In both spellings, without mistakes."""
    validator = jsonschema.Draft7Validator(made["answers"])
    assert validator.is_valid({**GOOD_ANSWERS, **other}) == is_valid


def test_the_answers_schema_knows_every_answer(made):
    """Each fact that an answers file may state has its place in the schema."""
    places = made["answers"]["properties"]
    for fact in load_facts().values():
        if fact.answer:
            group, _, key = fact.answer.partition(".")
            assert group in places, fact.id
            assert not key or key in places[group]["anyOf"][1]["properties"], fact.id


GPU = """version: 1
gpus:
  acme-one:
    name: "Acme One"
    bandwith_gb_s: 100
"""
MODEL = 'version: 1\nchecked: "2026-11-25"\nmodels:\n  acme/one:\n    lisence: mit\n'


def test_every_fault_of_hardware_prices_and_models_is_told(call, tmp_path, monkeypatch, request):
    """All at once, each with its line and the nearest name; of what is shipped there is none."""
    assert catalogues.catalogue_faults() == ()
    folder = tmp_path / "rules"
    for name in ("hardware", "prices", "models", "remedies"):
        shutil.copytree(rules_dir() / name, folder / name)
    for module in (gpu_files, catalogue, catalogues):
        monkeypatch.setattr(module, "rules_dir", lambda: folder)
    for function in (gpu_files.catalogue_gpus, catalogue.organisation_models):
        function.cache_clear()
        request.addfinalizer(function.cache_clear)
    (folder / "hardware" / "x.yaml").write_text(GPU)
    (folder / "prices" / "x.yaml").write_text("version: 1\non_demand_usd_per_h: {acme-two: {}}\n")
    (folder / "models" / "acme.yaml").write_text(MODEL)
    code, out, _ = call("rules", "lint")
    assert code == 2
    told = " ".join(out.split())
    expected = (
        "rules/hardware/x.yaml:1:1 error: `vendor` is missing",
        "rules/hardware/x.yaml:5:5 error: unknown key 'bandwith_gb_s'",
        "did you mean 'bandwidth_gb_s'?",
        "rules/prices/x.yaml:2:23 error: unknown GPU 'acme-two'",
        "rules/models/acme.yaml:5:5 error: unknown key 'lisence'",
    )
    assert [words for words in expected if words not in told] == [], told[:3000]


LISTED = """import json, sys
opened = []
sys.addaudithook(lambda event, given: event == "open" and opened.append(str(given[0])))
from advisor.schema.build import catalogue_faults
from advisor.ruleset.load import load_rules
load_rules(), catalogue_faults()
print(json.dumps(opened))
"""


def test_every_file_below_rules_is_read():
    """No file that a command may read is left out."""
    done = subprocess.run(
        [sys.executable, "-c", LISTED], capture_output=True, text=True, check=True
    )
    folder = rules_dir()
    files = {str(path) for path in folder.rglob("*.yaml") if path.parent != folder / "scenarios"}
    assert len(files) > 100
    assert files - set(json.loads(done.stdout)) == {str(folder / "refresh.yaml")}
