"""Generated files are fresh and complete, and the schemas say what the loader does."""

import itertools
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import jsonschema
import pytest

from advisor.ground.resources import rules_dir
from advisor.ground.yaml_reader import parse_yaml, read_yaml
from advisor.ruleset.facts import load_facts
from advisor.ruleset.load import load_rules
from tests import generated
from tests.generating import docs, schemas
from tests.generating.decision_svg import picture
from tests.generating.svg import text_width

MODELINE = "# yaml-language-server: $schema="
DRAFT_07 = {
    "$schema", "$ref", "title", "description", "default", "type", "enum", "const", "properties",
    "required", "additionalProperties", "patternProperties", "propertyNames", "items",
    "minItems", "maxItems", "uniqueItems", "minLength", "maxLength", "minimum", "maximum",
    "exclusiveMinimum", "exclusiveMaximum", "minProperties", "pattern", "anyOf", "allOf", "not",
    "if",
    "then", "else", "definitions",
}  # fmt: skip


@pytest.fixture(scope="module")
def rules():
    return load_rules()


@pytest.fixture(scope="module")
def pages(rules):
    return docs.pages(rules)


@pytest.fixture(scope="module")
def made():
    return generated.generated()


# --------------------------------------------------------------------------- freshness


def test_generated_files_are_fresh(made):
    """`python -m tests.generated` would change nothing."""
    stale = [
        path.name
        for path, text in made.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    assert stale == [], "run python -m tests.generated"


def test_no_generated_file_is_left_over(made):
    """Beside the generated files stands nothing that nobody makes."""
    assert generated.left_over(made) == []


def test_a_file_that_nothing_makes_is_found(tmp_path):
    """The page of a step that no longer exists is named by --check and removed."""
    for name in ("gate.md", "gone.md"):
        (tmp_path / name).write_text("x")
    assert generated.left_over({tmp_path / "gate.md": "x"}) == [tmp_path / "gone.md"]


def test_check_says_what_is_stale_and_writing_repairs_it(tmp_path, monkeypatch, capsys):
    """`--check` exits with 1 and names the file; without it the file is written and the next check
    passes.
    """
    monkeypatch.setattr(generated, "generated", lambda: {tmp_path / "docs" / "a.md": "new"})
    monkeypatch.setattr("sys.argv", ["generated", "--check"])
    assert generated.main() == 1
    assert "a.md is stale" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["generated"])
    assert generated.main() == 0
    monkeypatch.setattr("sys.argv", ["generated", "--check"])
    assert generated.main() == 0


# --------------------------------------------------------------------------- pages


def mutated(rules, **changes):
    """The rule set with its first recommending rule changed, and that rule's table."""
    table, rule = next(
        (table, rule)
        for table, listed in rules.rules.items()
        for rule in listed
        if rule.kind == "recommend"
    )
    listed = tuple(
        replace(other, **changes) if other is rule else other for other in rules.rules[table]
    )
    return replace(rules, rules={**rules.rules, table: listed}), table


def test_a_changed_reason_changes_its_page_and_no_other(rules, pages):
    """A page shows what its rules say, so a page that nobody made anew is noticed."""
    changed, table = mutated(rules, because="Another reason altogether.")
    anew = docs.pages(changed)
    assert [name for name in pages if pages[name] != anew[name]] == [f"{table}.md"]
    assert "Another reason altogether." in anew[f"{table}.md"]


def test_a_pipe_in_a_reason_stays_in_its_cell(rules):
    """A reason with a pipe, an angle bracket or a line break does not break the table."""
    changed, table = mutated(rules, because="either | or\n<b>more")
    line = next(
        line for line in docs.pages(changed)[f"{table}.md"].splitlines() if "either" in line
    )
    assert "either \\| or &lt;b>more" in line
    assert len(re.findall(r"(?<!\\)\|", line)) == 7  # six cells


def test_every_rule_stands_on_exactly_one_page_once(rules, pages):
    """Each rule has one line, on the page of its step."""
    for table in rules.tables:
        for rule in (
            *rules.rules[table],
            *(rule for rule in rules.inactive if rule.table == table),
        ):
            lines = [
                (name, line)
                for name, text in pages.items()
                for line in text.splitlines()
                if f"</a>`{rule.id}`" in line
            ]
            assert [name for name, _ in lines] == [f"{table}.md"], rule.id
    shown = sum(
        text.count('<a id="')
        for name, text in pages.items()
        if name.removesuffix(".md") in rules.tables
    )
    assert shown == sum(map(len, rules.rules.values())) + len(rules.inactive)


def test_a_page_lists_rules_in_the_order_in_which_they_win(rules, pages):
    """Later layers come first, and inside a layer higher tiers."""
    layers = ["base", *rules.layers]
    for table, listed in rules.rules.items():
        text = pages[f"{table}.md"]
        ranked = sorted(
            (rule for rule in listed if rule.kind == "recommend"),
            key=lambda rule: text.index(f"</a>`{rule.id}`"),
        )
        ranks = [(layers.index(rule.layer), rules.tiers[rule.tier]) for rule in ranked]
        assert ranks == sorted(ranks, reverse=True), table
        forbids = [text.index(f"</a>`{rule.id}`") for rule in listed if rule.kind == "forbid"]
        assert not forbids or not ranked or max(forbids) < text.index(f"</a>`{ranked[0].id}`"), (
            table
        )


def test_every_source_has_an_entry_that_names_its_rules(rules, pages):
    """What a rule rests on can be looked up, and back from there."""
    entries = dict(re.findall(r"### `([^`]+)`\n\n(.*?)(?=\n\n###|\Z)", pages["sources.md"], re.S))
    assert set(entries) == set(rules.sources)
    for listed in rules.rules.values():
        for rule in listed:
            for source in rule.sources:
                assert f"[{rule.id}]" in entries[source]


def test_every_fact_has_an_entry(rules, pages):
    """Each fact has its heading, or its line among the signals; each value of a choice is named."""
    for fact in rules.facts.values():
        assert (f"### `{fact.id}`" in pages["facts.md"]) != (
            f'<a id="{fact.id}"></a>' in pages["facts.md"]
        ), fact.id
        assert all(f"`{value}`" in pages["facts.md"] for value in fact.values), fact.id


def test_links_between_pages_lead_somewhere(rules, pages):
    """Every relative link names a page or file that exists, and an anchor on it."""
    anchors = {
        name: (
            set(re.findall(r'<a id="([^"]+)"', text))
            | {heading.lower() for heading in re.findall(r"^### `([^`]+)`$", text, re.M)}
        )
        for name, text in pages.items()
    }
    links = [
        (name, *target.partition("#")[::2])
        for name, text in pages.items()
        for target in re.findall(r"\]\(([^)\s]+)\)", text)
        if not target.startswith("http")
    ]
    assert len(links) > 100
    for name, target, anchor in links:
        assert target in pages or (generated.PAGES / target).resolve().exists(), f"{name}: {target}"
        assert not anchor or anchor.lower() in anchors[target], f"{name}: {target}#{anchor}"


# --------------------------------------------------------------------------- picture


@pytest.fixture(scope="module")
def drawing(rules):
    return ET.fromstring(picture(rules))


def texts(drawing):
    """(text, left, top, right, bottom) of every line of text."""
    boxes = []
    for node in drawing.iter("{http://www.w3.org/2000/svg}text"):
        size, x, y = float(node.get("font-size")), float(node.get("x")), float(node.get("y"))
        width = text_width(node.text, size, bold=node.get("font-weight") == "700")
        left = x - {"start": 0, "middle": width / 2, "end": width}[node.get("text-anchor")]
        boxes.append((node.text, left, y - 0.75 * size, left + width, y + 0.2 * size))
    return boxes


def test_the_picture_shows_every_step_fact_and_outcome(rules, drawing):
    """Steps in order; all that they look at and conclude; how many rules there are."""
    shown = [text for text, *_ in texts(drawing)]
    places = [
        shown.index(table.id.replace("_", " "), len(rules.tables))
        for table in rules.tables.values()
    ]
    assert len(places) == len(set(places))
    named = {
        name
        for table in rules.tables.values()
        for name in (*table.inputs, *rules.facts[table.concludes].values)
    }
    assert not {name.replace("_", " ") for name in named} - set(shown)
    counted = sum(
        int(text.split()[0])
        for text in shown
        if re.fullmatch(rf"\d+ ({'|'.join(['base', *rules.layers])})", text)
    )
    assert counted == sum(map(len, rules.rules.values()))


def test_no_text_of_the_picture_overlaps_another_or_a_line(drawing):
    """Every word can be read: nothing is written or drawn across it, nothing leaves the picture."""
    _, _, width, height = map(float, drawing.get("viewBox").split())
    boxes = texts(drawing)
    for i, (text, left, top, right, bottom) in enumerate(boxes):
        assert min(left, top, width - right, height - bottom) > 0, text
        for other, *box in boxes[i + 1 :]:
            assert right <= box[0] or box[2] <= left or bottom <= box[1] or box[3] <= top, (
                f"{text} and {other}"
            )
    for node in drawing.iter("{http://www.w3.org/2000/svg}polyline"):
        points = [tuple(map(float, point.split(","))) for point in node.get("points").split()]
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            for text, left, top, right, bottom in boxes:
                assert (
                    max(x0, x1) <= left
                    or min(x0, x1) >= right
                    or max(y0, y1) <= top
                    or min(y0, y1) >= bottom
                ), text


def test_the_picture_and_the_pages_do_not_depend_on_the_order_of_sources_or_layers_files(
    rules, pages
):
    """The same rules give the same bytes, whatever order a dictionary has."""
    turned = replace(rules, sources=dict(reversed(rules.sources.items())))
    assert docs.pages(turned) == pages
    assert picture(turned) == picture(rules)


# --------------------------------------------------------------------------- schemas


def yaml_files():
    """The rule files that are shipped, and those of the examples."""
    examples = generated.ROOT / "examples"
    return [
        *sorted(rules_dir().rglob("*.yaml")),
        *(
            path
            for path in sorted(examples.rglob("*.yaml"))
            if path.read_text(encoding="utf-8").startswith(MODELINE)
        ),
    ]


def test_every_shipped_file_names_its_schema_and_fits_it():
    """The first line of each YAML file is a modeline that resolves, and that schema accepts the
    file.
    """
    files = yaml_files()
    assert len(files) > 40
    validators = {}
    faults = []
    for path in files:
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        assert first.startswith(MODELINE), f"{path} has no modeline"
        schema = (path.parent / first.removeprefix(MODELINE)).resolve()
        assert schema.is_file(), f"{path}: {schema} does not exist"
        if schema not in validators:
            validators[schema] = jsonschema.Draft7Validator(
                json.loads(schema.read_text(encoding="utf-8"))
            )
        faults += [
            f"{path.name}: {list(error.absolute_path)}: {error.message[:300]}"
            for error in validators[schema].iter_errors(read_yaml(path).data)
        ]
    assert faults == []


def keywords(schema):
    """Every keyword of a schema."""
    if isinstance(schema, bool):
        return
    for key, value in schema.items():
        yield key
        if key in ("properties", "definitions", "patternProperties"):
            for part in value.values():
                yield from keywords(part)
        elif key in ("anyOf", "allOf"):
            for part in value:
                yield from keywords(part)
        elif key in ("items", "additionalProperties", "propertyNames", "not", "if", "then", "else"):
            yield from keywords(value)


def test_schemas_keep_to_what_older_editors_know(rules):
    """Only draft-07 keywords are used, and each schema is one."""
    made = generated.generated_schemas(rules)
    del made["plan.schema.json"]  # of a later draft, with its own test in tests/plan/
    assert len(made) >= 13
    for name, text in made.items():
        schema = json.loads(text)
        jsonschema.Draft7Validator.check_schema(schema)
        assert set(keywords(schema)) <= DRAFT_07, name


def test_conditions_complete_every_value_of_every_fact_a_step_looks_at(rules):
    """An editor offers each input of a step, and for a choice each value and `unknown`."""
    for own, made in ((True, schemas.layer_schema(rules)), (False, schemas.axis_schema(rules))):
        for table in rules.tables.values():
            if f"rule.{table.id}" not in made["definitions"]:
                continue
            when = made["definitions"][f"rule.{table.id}"]["properties"]["when"]["properties"]
            assert list(when) == list(table.inputs)
            for fact_id in table.inputs:
                fact = rules.facts[fact_id]
                definition = made["definitions"][when[fact_id]["$ref"].rpartition("/")[2]]
                offered = definition["anyOf"][0]
                if fact.type == "choice":
                    enum = offered["anyOf"][0] if own and fact.origin == "asked" else offered
                    assert enum["enum"] == list(dict.fromkeys([*fact.values, "unknown"]))
                assert not fact.ask or fact.ask in definition["description"]


OVERLAY = """
version: 1
overlay: acme
about: Cards and habits of our own.
facts: {our_cards: {type: flag, origin: asked, signal: true, ask: "Does it run on our own cards?"}}
values: {task: {in_house: {label: Our own}}}
inputs: {modules: [our_cards], settings: [n_tasks]}
sources: {handbook: {title: "Machine learning handbook, section 4"}}
tables:
  scheme:
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
  modules:
    - id: acme/modules
      tier: low
      when: {our_cards: true, task: [in_house, qa]}
      then: {modules: shared}
      because: "One model is enough."
      confidence: judgement
      sources: [handbook]  # section 5
      examples: [{given: {our_cards: true, task: in_house}, fires: true}]
disable: [{rule: document/scenario-5, because: "We own the cards."}]
"""


@pytest.fixture(scope="module")
def layer_validator(rules):
    return jsonschema.Draft7Validator(schemas.layer_schema(rules))


def test_the_layer_schema_accepts_what_the_loader_accepts(layer_validator, tmp_path):
    """An overlay with every kind of entry fits both."""
    overlay = tmp_path / "acme.yaml"
    overlay.write_text(OVERLAY)
    load_rules(overlays=(overlay,))
    layer_validator.validate(read_yaml(overlay).data)


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
        # so the step of the rule does not look at n_tasks
        ("settings: [n_tasks]", "scheme: [our_cards]"),
        ("our_cards: {type: flag,", "our_cards: {type: number,"),
        ("{task: {in_house: {label: Our own}}}", "{task: {in_house: {lable: Our own}}}"),
        # so the value is nobody's
        ("{task: {in_house: {label: Our own}}}", "{depth: {in_house: {label: Our own}}}"),
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
def test_the_layer_schema_marks_typical_mistakes(layer_validator, old, new):
    """A wrong fact, value, tier, key or shape is marked while it is typed."""
    assert OVERLAY.count(old) == 1
    assert list(
        layer_validator.iter_errors(parse_yaml(OVERLAY.replace(old, new), name="overlay").data)
    )


def test_the_facts_schema_marks_a_comma_that_splits_a_label(rules):
    """`label: Looked up, with a form` without quotes is two keys, the second of them nobody's."""
    from tests.generating.schema_facts import facts_schema

    validator = jsonschema.Draft7Validator(facts_schema(rules))
    text = (
        "version: 1\nfacts: {x: {type: choice, origin: asked, values: {a: {label: %s, help: h}}}}"
    )
    assert not list(validator.iter_errors(parse_yaml(text % '"one, two"', name="x").data))
    assert list(validator.iter_errors(parse_yaml(text % "one, two", name="x").data))


def test_the_answers_schema_accepts_the_documented_file(made):
    """The answers file of the manual fits in both spellings, and a misspelt key or an unknown
    signal does not.
    """
    validator = jsonschema.Draft7Validator(
        json.loads(made[rules_dir() / "schema" / "answers.schema.json"])
    )
    good = {
        "task": "qa",
        "budget": {"usd": 50},
        "data": {"path": "x.jsonl", "rows": None},
        "gpu": "RTX 4090",
        "signals": ["needs_citations"],
    }
    validator.validate(good)
    validator.validate(
        {
            "task": "qa",
            "budget": "low",
            "data": "x.jsonl",
            "gpu": {"name": "RTX 4090", "count": 2},
            "tasks": {"legal": "legal.jsonl"},
            "signals": {"rag_tried": True},
        }
    )
    for bad in (
        {"budgt": "low"},
        {"signals": ["need_citations"]},
        {"gpu": {"vram": 24}},
        {"n_tasks": 0},
        {"depth": "deep"},
    ):
        assert list(validator.iter_errors({**good, **bad})), bad


def test_the_answers_schema_knows_every_answer(made):
    """Each fact that an answers file may state has its place in the schema."""
    schema = json.loads(made[rules_dir() / "schema" / "answers.schema.json"])
    for fact in load_facts().values():
        if fact.answer:
            group, _, key = fact.answer.partition(".")
            assert not key or key in schema["properties"][group]["anyOf"][1]["properties"], fact.id
            assert group in schema["properties"], fact.id
