"""Rule files: what they add and what is refused, with its place, quickly and without harm."""

import re
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from advisor.advice.linting import lint_rules, refuse_or_warn
from advisor.ground.errors import InputError
from advisor.render.words import sentence
from advisor.ruleset.facts import load_facts
from advisor.ruleset.layers import MAX_OWN_RULES
from advisor.ruleset.load import load_rules
from advisor.ruleset.model import SHIPPED_LAYERS, Condition, Interval
from advisor.ruleset.phrases import (
    clauses,
    inside_sentence,
    joined,
    name_of,
    named_with_flag,
    not_known,
    says,
    value_words,
    wants,
)
from tests.conftest import examples
from tests.ruleset.random_rules import mangled

WHOLE = """version: 1
overlay: acme
about: what the rules of this file are for
facts:
  contains_customer_data: {type: flag, origin: asked, signal: true, order: 200, ask: "Do the data hold customers' names?", ask_when: {task: [qa]}, unknown: not known to}
values:
  serve_with: {gateway: {label: Our gateway, help: behind the firewall}}
inputs: {rank: [contains_customer_data, serve_with]}
sources: {handbook: {title: Handbook, url: "https://example.com", checked: "2026-01-01", kind: document}}
tables:
  rank:
    - id: acme/no-full
      kind: forbid
      when: {contains_customer_data: true, gpus: [unknown, {gte: 1, lt: 8}, 12]}
      then: {scheme: [full, prefix]}
      because: "Policy 12."
      sources: [handbook, guide]
      confidence: practice
      status: active
      review_by: 2030-01-01
      unless_note: "not in the laboratory"
      examples: [{given: {contains_customer_data: true, gpus: 2}, fires: true}, {given: {}, fires: false}]
    - {id: acme/gateway, tier: strong, when: {serve_with: gateway, budget: low}, then: {scheme: qlora}, because: "Cheap.", sources: [handbook]}
    - {id: acme/say, kind: warn, when: {}, then: {say: Ask Ann.}, because: "Policy 13.", sources: [handbook]}
    - {id: acme/small-cards, tier: must, when: {fits: {lora: [tight, split]}, candidate_schemes: lora}, then: {scheme: qlora}, because: "Long rows.", sources: [handbook]}
  allowed:
    - {id: acme/no-prefix, when: {scheme: prefix, fits: [tight, split], priority: quality}, because: "Policy 14.", sources: [handbook]}
  settings:
    - {id: acme/rank, when: {update: lora, params_b: {gte: 30}}, then: {rank: 64, target_modules: [q_proj, v_proj]}, because: "Ours.", sources: [handbook]}
disable:
  - {rule: document/scenario-5, because: "We own the cards."}
"""


def attempt(path: Path) -> str:
    """'' where the file is taken, else the error's text; anything but an InputError fails."""
    start = time.process_time()
    faults, said = (), ""
    try:
        refuse_or_warn(load_rules(overlays=(path,)), ("document", "evidence"))
    except InputError as error:
        faults, said = error.faults, error.text()
    assert all(
        fault.headline.startswith((str(path), "reading stopped after")) for fault in faults
    ), said
    assert time.process_time() - start < 5
    return said


def test_an_overlay_adds_rules_of_its_own(tmp_path):
    """A company's file becomes the last layer; files below are made of it."""
    path = tmp_path / "acme.yaml"
    path.write_text(WHOLE)
    assert attempt(path) == ""
    rules = load_rules(overlays=(path,))
    assert rules.layers == ("document", "evidence", "acme")
    assert rules.rule("acme/no-full").because == "Policy 12."
    assert rules.rule("document/scenario-5") is None
    assert rules.disabled == {"document/scenario-5": "We own the cards."}


def test_every_shipped_rule_has_a_short_reason():
    """One sentence of at most 160 characters; the linter only warns of longer ones."""
    rules = [rule for table in load_rules().rules.values() for rule in table]
    assert len(rules) > 60
    assert all(rule.because and rule.sources and len(rule.because) <= 160 for rule in rules)


def test_all_values_but_some_are_named_with_not(tmp_path):
    """`{not: ...}` holds for values that the same file adds, never for what is not known."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        "overlay: mine\nvalues: {task: {poems: {label: Write poems}}}\ntables:\n  chain:\n"
        "    - {id: mine/all-but, tier: usual, when: {task: {not: [qa, code]}}, then: {chain: sft},"
        " because: So., sources: [product]}\n"
    )
    (condition,) = load_rules(overlays=(path,)).rule("mine/all-but").when
    held = [condition.holds(task) for task in ("poems", "classification", "qa", "code", None)]
    assert held == [True, True, False, False, False]
    misspelt = tmp_path / "misspelt.yaml"
    misspelt.write_text(path.read_text().replace("qa, code", "qa, cod"))
    assert re.search(r"(?s)value of 'task' 'cod'.*did you mean 'code'", attempt(misspelt))


@examples(5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(mangled(WHOLE).map(str.encode), st.binary(max_size=200)))
def test_any_change_of_a_file_and_any_bytes_are_an_input_error_or_fine(tmp_path, raw):
    """Never a traceback, always the file's name."""
    path = tmp_path / f"f{abs(hash(raw))}.yaml"
    path.write_bytes(raw)
    attempt(path)


SCENARIOS = """overlay: acme
scenarios:
  - id: one
    given: {task: qa, data_rows: 4000, facts_change_often: false}
    composition: sft+lora
    fired: [document/scenario-1]
    warned: [evidence/must-be-cited]
    why_not: {full: document/scenario-2-full}
    whatif: [{change: {budget: low}, composition: sft+qlora}]
    why: "the team"
  - {id: two, given: {objective: sft, update: lora, quantization: none}, settings: {rank: 16, target_modules: all-linear}, why: "us"}
"""


@examples(0.8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mangled(SCENARIOS))
def test_any_change_of_a_scenario_is_a_finding_or_fine(tmp_path, text):
    """Whatever stands in scenarios of one's own, the linter reports and does not break."""
    path = tmp_path / "scenarios.yaml"
    path.write_text(text, encoding="utf-8")
    load_rules.cache_clear()
    findings = lint_rules(SHIPPED_LAYERS, (path,)).report.findings
    assert all(finding.at.startswith((str(path), "rules/")) for finding in findings)


KEYS = [
    ("version: 1", "version: {}"), ("overlay: acme", "overlay: {}"),
    ("about: what the rules of this file are for", "about: {}"),
    ("facts:\n  contains_customer_data: {type", "facts: {}\nx:\n  a: {type"),
    ("serve_with: {gateway: {label: Our gateway, help: behind the firewall}}", "serve_with: {}"),
    ("{rank: [contains_customer_data, serve_with]}", "{}"),
    ("handbook: {title: Handbook, ", "handbook: {title: {}, "), ("id: acme/no-full", "id: {}"),
    ("kind: forbid", "kind: {}"), ("contains_customer_data: true, gpus",
    "contains_customer_data: {}, gpus"), ("fits: {lora: [tight, split]}", "fits: {}"),
    ("{lora: [tight, split]}", "{lora: {}}"), ("fits: [tight, split]", "fits: {}"),
    ("scheme: prefix", "scheme: {}"), ("gpus: [unknown, {gte: 1, lt: 8}, 12]", "gpus: {}"), ("then: {scheme: [full, prefix]}",
    "then: {}"), ("[full, prefix]", "{}"), ('because: "Policy 12."', "because: {}"),
    ("sources: [handbook, guide]", "sources: {}"), ("confidence: practice", "confidence: {}"),
    ("status: active", "status: {}"), ("review_by: 2030-01-01", "review_by: {}"),
    ('unless_note: "not in the laboratory"', "unless_note: {}"), ("tier: strong", "tier: {}"),
    ("say: Ask Ann.", "say: {}"), ("rank: 64", "rank: {}"), ("[q_proj, v_proj]", "{}"),
    ("rule: document/scenario-5", "rule: {}"), ('because: "We own the cards."', "because: {}"),
    ("order: 200", "order: {}"), ("ask_when: {task: [qa]}", "ask_when: {}"), ("type: flag",
    "type: {}"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new"), KEYS, ids=[old[:25] for old, _ in KEYS])
@pytest.mark.parametrize("wrong", ["[[1]]", "{a: [1]}", "-0.5"])
def test_a_wrong_type_is_located_under_every_key(tmp_path, old, new, wrong):
    """A list of lists, a map or a fraction where a rule file has a key: file, line and column."""
    assert old in WHOLE
    path = tmp_path / "acme.yaml"
    path.write_text(WHOLE.replace(old, new.replace("{}", wrong, 1)))
    said = attempt(path)
    if old != "about: what the rules of this file are for":
        assert re.match(rf"{re.escape(str(path))}:\d+:\d+: ", said), said


HUGE = {
    "huge": "# " + "x" * 1_000_001,
    "many values": "[" + "1," * 400_000 + "1]",
    "deep flow": "a: " + "[" * 900 + "]" * 900,
    "deep blocks": "".join(f"{' ' * i}a:\n" for i in range(1000)),
    "deep marks": "- " * 5000 + "a",
    "deep keys": "? " * 5000 + "a",
    "billion laughs": "a: &a [x, x]\n" + "".join(f"{'abcdefgh'[i + 1]}: &{'abcdefgh'[i + 1]} [*{'abcdefgh'[i]}, *{'abcdefgh'[i]}]\n" for i in range(7)),
    "alias as a key": "a: &x b\n*x : 1\n",
    "tag": "a: !!python/object/apply:os.system [ls]\n",
    "tag of a key": "!!python/name:os.system a: 1\n",
    "duplicate": "overlay: x\noverlay: y\n",
    "a key with a tag, twice": "!!str overlay: x\noverlay: y\n",
    "latin-1": "about: caf\xe9\n".encode("latin-1"),
    "utf-16": "overlay: x\n".encode("utf-16"),
    "nul": "a: \0\n",
    "binary": b"\x7fELF" + bytes(range(256)) * 50,
    "control character": "a: 1\nb: \x07\n",
    "empty": "",
    "only a comment": "# nothing\n",
    "a list": "- 1\n- 2\n",
    "a text": "hello\n",
    "two documents": "a: 1\n---\nb: 2\n",
    "too many rules": "overlay: x\ntables:\n  rank:\n" + "    - {}\n" * (MAX_OWN_RULES + 1),
    "many faults": "overlay: x\ntables:\n  rank:\n" + "    - {whn: 1}\n" * 250,
    "the shipped name": "overlay: evidence\n",
    "the name of a scheme": "overlay: lora\n",
}  # fmt: skip
# What is written in place of what in the whole file above; what is said stands in tests/golden.
CHANGED = [
    ("status: active", "status: no"), ("serve_with: gateway", "serve_with: on"),
    ("contains_customer_data: true, gpus: [", "contains_customer_data: yes, gpus: ["),
    ("overlay: acme", "overlay: acme\n1: 2"), ("{gte: 30}", "{gte: 1e999}"),
    ("{gte: 30}", "{gte: two}"), ("overlay: acme", "overlay: document"),
    ("id: acme/say", "id: document/say"), ("contains_customer_data:", "prompting_tried:"),
    ("gateway: {label", "vllm: {label"), ("{handbook: {title", "{guide: {title"),
    ("[contains_customer_data, serve_with]", "[contains_customer_data, serve_with, chain]"),
    ("rank: 64", "rnak: 64"), ("rank: 64", "rank: lots"), ("[full, prefix]", "[smaller_model]"),
    ("then: {scheme: qlora}", "then: {scheme: qlra}"), ("budget: low", "budgt: low"),
    ("budget: low", "budget: lo"), ("budget: low", "task: qa"), ("kind: forbid", "kind: forbidden"),
    ('because: "Policy 12."', "becuse: x"), ("sources: [handbook, guide]", "sources: []"),
    ("sources: [handbook, guide]", "sources: [hanbook]"), ("  rank:\n", "  rnak:\n"),
    ("tables:", "tabels:"), ("document/scenario-5", "document/scenari-5"),
    (', because: "We own the cards."', ""),
    # Who disagrees with a rule.
    *(("disable:", f"conflicts:\n  - {{id: x, {entry}}}\ndisable:") for entry in (
        'rules: [evidence/nowhere], says: "no", sources: [trl]',
        'rules: [evidence/pairs], says: "no", sources: [nobody]',
        "rules: [evidence/pairs], sources: [trl]",
    )),
]  # fmt: skip
REFUSED = {
    **HUGE,
    **{new: WHOLE.replace(old, new, 1) for old, new in CHANGED},
    "no last way out": re.sub(
        r"      examples: .*\n|contains_customer_data: true, gpus: \[.*12\]", "", WHOLE
    ).replace("[full, prefix]", "[full, lora, qlora, adapter, prefix]"),
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=[name[:40] for name in REFUSED])
def test_a_wrong_or_hostile_file_is_refused_with_its_name(tmp_path, text, approved):
    """Each typo or attack on a reader of rules is told with file and nearest name, in no time."""
    path = tmp_path / "acme.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    start, answer = time.process_time(), attempt(path)
    assert time.process_time() - start < 2  # a second on a machine that does nothing else
    # Which rules and sources there are is not for this test to hold.
    lines = re.sub(r"known: .*", "known: ...", answer).splitlines()
    approved(lines[:8] + lines[8:][-1:])


@pytest.mark.parametrize(
    "make", [lambda path: None, Path.mkdir, lambda path: path.write_text("- 1")],
    ids=["missing", "folder", "list"],
)  # fmt: skip
def test_the_command_exits_with_2_and_works_again_without_the_file(approved, call, tmp_path, make):
    """With the file's name; without it the built-in rules answer as before."""
    path = tmp_path / "acme.yaml"
    make(path)
    asked = ("--json", "--task", "qa", "--gpu", "unknown")
    approved(call(*asked, "--rules", path))
    assert call(*asked)[0] == 0


def test_the_linter_reports_an_unreadable_file_as_findings(approved, call, tmp_path):
    """`advise rules lint` on a broken file: place, line and caret as for any finding, exit 2."""
    path = tmp_path / "acme.yaml"
    path.write_text("overlay: acme\ntabels: {}\n")
    code, out, _ = call("rules", "lint", "--rules", path)
    approved([code, out[out.index(f"{path}:2:1") :].partition("\n\n")[0].splitlines()])


RULES = load_rules()
SAMPLES = {
    "number": (1, 50, 0.59604992, 125_000_000),
    "text": ("X",),
    "path": ("x",),
    "map": ("x",),
}


def values(fact):
    return (True, False) if fact.type == "flag" else fact.values or SAMPLES.get(fact.type, ())


@pytest.mark.parametrize("fact", load_facts().values(), ids=lambda fact: fact.id)
def test_every_fact_has_its_words(fact):
    """A phrase for what it says, the same denied for a flag, and a name for what is not known."""
    assert fact.phrase
    if fact.type == "flag":
        assert fact.denied
        assert fact.phrase != fact.denied
    elif fact.type != "map":
        assert fact.name
        assert "{value}" in fact.phrase
    for text in (fact.phrase, fact.denied, *(value.short for value in fact.values.values())):
        assert len(re.findall(r"[\[\]]", text)) == 2 * text.count("|")
        assert not text.endswith(".")


@pytest.mark.parametrize("fact", RULES.facts.values(), ids=lambda fact: fact.id)
def test_what_a_fact_says_holds_no_id_and_no_mark(fact, approved):
    """The facts of each scheme too: no underscore, bracket or brace is left in a sentence."""
    for value in values(fact):
        for would in (False, True):
            text = says(fact, value, would=would)
            assert text
            assert not re.search(r"[_\[\]{}|]", text), text
            assert text[0].islower() or text.split()[0] in ("LoRA", "QLoRA", "IA3")
    approved([name_of(fact), *(says(fact, value, would=True) for value in list(values(fact))[:4])])
    assert not re.search(r"[_\[\]{}|]", name_of(fact))


def wanted(fact_id, *values, **more):
    """What a rule wants of a fact, in one clause."""
    return wants(RULES.facts[fact_id], Condition(fact=fact_id, values=frozenset(values), **more))


def open_(*facts, alone=True):
    return not_known([RULES.facts[name] for name in facts], alone=alone)


SAID = {
    # As it is, and as it would have to be.
    "is": lambda: says(RULES.facts["memory_bound"], True),
    "were": lambda: says(RULES.facts["memory_bound"], True, would=True),
    "denied": lambda: says(RULES.facts["facts_change_often"], False),
    "did not": lambda: says(RULES.facts["fits_lora"], "too_big", would=True),
    # Thousands by commas, three figures of a fraction, and no plural of one.
    "thousands": lambda: says(RULES.facts["data_rows"], 1500),
    "one": lambda: says(RULES.facts["n_tasks"], 1),
    "a fraction": lambda: says(RULES.facts["params_b"], 0.59604992),
    # A bound, a value that may be unknown, and of most values the few that are left out.
    "a bound": lambda: wanted("data_rows", intervals=(Interval(low=50, high=500),)),
    "a value or unknown": lambda: wanted("budget", "low", unknown=True),
    "unknown": lambda: wanted("budget", unknown=True),
    "a yes": lambda: wanted("facts_change_often", True),
    "most values": lambda: wanted(
        "data_kind", "raw_text", "preference", "unpaired_feedback", "none"
    ),
    # A flag that was just named needs no second name; others are named.
    "not said": lambda: open_("memory_bound"),
    "neither": lambda: open_("memory_bound", "facts_change_often"),
    "not said whether": lambda: open_("memory_bound", alone=False),
    "not said what or how": lambda: open_("depth", "budget"),
    # Inside a sentence the first letter is small, unless the first word is a name.
    "a label": lambda: inside_sentence("Requests with the right answer"),
    "a name": lambda: inside_sentence("LoRA on a 4-bit base"),
    "a chain": lambda: value_words(RULES.facts["chain"], "sft>rm>ppo"),
    "a scheme": lambda: value_words(RULES.facts["scheme"], "qlora"),
    "a flag": lambda: named_with_flag(RULES.facts["depth"]),
    "a list": lambda: joined(["a", "b", "c"]),
    "clauses": lambda: clauses(["a", "b"]),
}


@pytest.mark.parametrize("what", SAID)
def test_it_is_said_as_people_say_it(approved, what):
    """Clauses of a sentence, numbers as people write them, methods by their names."""
    approved(SAID[what]())


def test_a_fact_of_a_users_file_needs_no_phrase(tmp_path):
    """Its question stands in for one, and a phrase of its own is taken."""
    for extra, said in (
        ("", "you answered yes to “Do the examples hold customers' data?”"),
        (', phrase: "the examples hold data of customers"', "the examples hold data of customers"),
    ):
        path = tmp_path / f"own{len(extra)}.yaml"
        path.write_text(
            "version: 1\noverlay: own\nfacts: {holds_customer_data: {type: flag, origin: asked,"
            f' signal: true, ask: "Do the examples hold customers\' data? (names)"{extra}}}}}\n'
        )
        assert says(load_rules(overlays=(path,)).facts["holds_customer_data"], True) == said


@pytest.mark.parametrize("name", ["acme/own", "gpt2", "Mistral-7b", "Qwen/qwen-base"])
def test_a_model_s_name_keeps_its_letters_wherever_it_stands(name):
    """At the beginning of a sentence and inside one."""
    assert sentence(f"{name} is not known") == f"{name} is not known."
    assert inside_sentence(f"{name} is not known") == f"{name} is not known"
