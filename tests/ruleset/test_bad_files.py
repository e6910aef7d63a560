"""Whatever a rule file holds: a located error and exit code 2, quickly, and the built-in rules work
afterwards.
"""

import re
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from advisor.advice.linting import lint_rules, refuse_or_warn
from advisor.cli import advise
from advisor.ground.errors import InputError
from advisor.ruleset.layers import MAX_OWN_RULES
from advisor.ruleset.load import load_rules
from advisor.ruleset.model import SHIPPED_LAYERS
from tests.conftest import examples

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
ODD = ["[]", "{}", "null", "true", "no", "on", "-1", "1e999", "0x" + "f" * 30, "'x'", "[[1]]",
"{a: {b: 1}}", "!!set {a}", "&a b", "*a", "2026-11-25", '"\\0"', "{gte: x}", "{gte: true}",
       "{gt: 1, gte: 2}", "~", "|", "unknown", "[unknown, {}]", "{1: 2}", "? a", "'", "\t",
       "\u2028", "😀", "<<", "9" * 400]  # fmt: skip


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


@pytest.fixture
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rules")


def test_the_file_that_is_broken_below_is_fine(folder):
    """The valid file that all others are made of is taken."""
    path = folder / "acme.yaml"
    path.write_text(WHOLE)
    assert attempt(path) == ""


@examples(3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_change_of_a_file_is_an_input_error_or_fine(folder, data):
    """Something replaced, lost or doubled: never a traceback, always the file's name."""
    text = WHOLE
    for _ in range(data.draw(st.integers(1, 3))):
        kind = data.draw(
            st.sampled_from(["token", "token", "token", "characters", "line", "double", "cut"])
        )
        lines = text.split("\n")
        if kind == "token":
            tokens = list(re.finditer(r"[\w./-]+|\"[^\"]*\"|\[[^\[\]]*\]|\{[^{}]*\}", text))
            if tokens:
                token = data.draw(st.sampled_from(tokens))
                text = text[: token.start()] + data.draw(st.sampled_from(ODD)) + text[token.end() :]
        elif kind == "characters":
            at = data.draw(st.integers(0, len(text)))
            text = (
                text[:at]
                + data.draw(st.text(max_size=3))
                + text[at + data.draw(st.integers(0, 3)) :]
            )
        elif kind == "cut":
            text = text[: data.draw(st.integers(0, len(text)))]
        else:
            at = data.draw(st.integers(0, len(lines) - 1))
            lines[at : at + 1] = [] if kind == "line" else [lines[at], lines[at]]
            text = "\n".join(lines)
    path = folder / f"f{abs(hash(text))}.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    attempt(path)


@examples(2, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_bytes_are_an_input_error_or_fine(folder, raw):
    """Random bytes are no rule file, and say so."""
    path = folder / f"b{abs(hash(raw))}.yaml"
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
@given(st.data())
def test_any_change_of_a_scenario_is_a_finding_or_fine(folder, data):
    """Whatever stands in scenarios of one's own, the linter reports and does not break."""
    token = data.draw(
        st.sampled_from(list(re.finditer(r"[\w./+-]+|\[[^\[\]]*\]|\{[^{}]*\}", SCENARIOS)))
    )
    path = folder / "scenarios.yaml"
    path.write_text(
        SCENARIOS[: token.start()] + data.draw(st.sampled_from(ODD)) + SCENARIOS[token.end() :],
        encoding="utf-8",
    )
    load_rules.cache_clear()
    assert all(
        finding.at.startswith((str(path), "rules/"))
        for finding in lint_rules(SHIPPED_LAYERS, (path,)).report.findings
    )


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
def test_a_wrong_type_is_located_under_every_key(folder, old, new, wrong):
    """A list of lists, a map or a fraction where a rule file has a key: file, line and column."""
    assert old in WHOLE
    path = folder / "acme.yaml"
    path.write_text(WHOLE.replace(old, new.replace("{}", wrong, 1)))
    said = attempt(path)
    if (old, wrong) not in [("about: what the rules of this file are for", wrong)]:
        assert re.match(rf"{re.escape(str(path))}:\d+:\d+: ", said), said


HUGE = {
    "huge": ("# " + "x" * 1_000_001, "larger than"),
    "many values": ("[" + "1," * 400_000 + "1]", "more than 60,000 values"),
    "deep flow": ("a: " + "[" * 900 + "]" * 900, "nested deeper"),
    "deep blocks": ("".join(f"{' ' * i}a:\n" for i in range(1000)), "nested deeper"),
    "deep marks": ("- " * 5000 + "a", "nested deeper"),
    "deep keys": ("? " * 5000 + "a", "a key must be plain text"),
    "billion laughs": ("a: &a [x, x]\n" + "".join(f"{'abcdefgh'[i + 1]}: &{'abcdefgh'[i + 1]} [*{'abcdefgh'[i]}, *{'abcdefgh'[i]}]\n" for i in range(7)),
    "aliases"),
    "alias as a key": ("a: &x b\n*x : 1\n", "aliases"),
    "tag": ("a: !!python/object/apply:os.system [ls]\n", "tags"),
    "tag of a key": ("!!python/name:os.system a: 1\n", "tags"),
    "duplicate": ("overlay: x\noverlay: y\n", "given twice"),
    "a key with a tag, twice": ("!!str overlay: x\noverlay: y\n", "given twice"),
    "latin-1": ("about: caf\xe9\n".encode("latin-1"), "not UTF-8"),
    "utf-16": ("overlay: x\n".encode("utf-16"), "not UTF-8"),
    "nul": ("a: \0\n", "NUL"),
    "binary": (b"\x7fELF" + bytes(range(256)) * 50, "NUL|not UTF-8"),
    "control character": ("a: 1\nb: \x07\n", r":2: not valid YAML"),
    "empty": ("", "a map with the keys"),
    "only a comment": ("# nothing\n", "a map with the keys"),
    "a list": ("- 1\n- 2\n", "a map with the keys"),
    "a text": ("hello\n", "a map with the keys"),
    "two documents": ("a: 1\n---\nb: 2\n", "not valid YAML"),
    "no": (WHOLE.replace("status: active", "status: no"), "without quotes"),
    "on": (WHOLE.replace("serve_with: gateway", "serve_with: on"), "without quotes"),
    "yes as an answer": (WHOLE.replace("contains_customer_data: true, gpus: [",
    "contains_customer_data: yes, gpus: ["), "write true, false, or quote it"),
    "a number as a key": (WHOLE.replace("overlay: acme", "overlay: acme\n1: 2"), "unknown key '1'"),
    "infinite": (WHOLE.replace("{gte: 30}", "{gte: 1e999}"), "too large"),
    "too many rules": ("overlay: x\ntables:\n  rank:\n" + "    - {}\n" * (MAX_OWN_RULES + 1),
    "rules in one file"),
    "many faults": ("overlay: x\ntables:\n  rank:\n" + "    - {whn: 1}\n" * 250,
    "more of the same input"),
    "the shipped name": ("overlay: evidence\n", "is taken"),
    "the name of a scheme": ("overlay: lora\n", "is taken"),
    "a foreign rule": (WHOLE.replace("id: acme/say", "id: document/say"), "start with 'acme/'"),
    "a shipped fact": (WHOLE.replace("contains_customer_data:", "prompting_tried:", 1),
    "exists already"),
    "a shipped value": (WHOLE.replace("gateway: {label", "vllm: {label"), "has the value .vllm. already"),
    "a shipped source": (WHOLE.replace("{handbook: {title", "{guide: {title"), "exists already"),
    "a concluded input": (WHOLE.replace("[contains_customer_data, serve_with]",
    "[contains_customer_data, serve_with, chain]"), "cannot be added"),
    "an unknown setting": (WHOLE.replace("rank: 64", "rnak: 64"), "did you mean 'rank'"),
    "a wrong setting": (WHOLE.replace("rank: 64", "rank: lots"), "'rank' cannot be 'lots'"),
    "no last way out": (WHOLE.replace("[full, prefix]",
    "[full, lora, qlora, adapter, prefix]").replace("contains_customer_data: true, gpus: [unknown, {gte: 1, lt: 8}, 12]",
    "").replace("      examples: [{given: {contains_customer_data: true, gpus: 2}, fires: true}, {given: {}, fires: false}]\n",
    ""), "no way out"),
    "not even a smaller model": (WHOLE.replace("[full, prefix]", "[smaller_model]"),
    "leaves a gap"),
}  # fmt: skip


@pytest.mark.parametrize("name", HUGE)
def test_a_hostile_file_is_refused_with_its_name(folder, name):
    """Each known way to break a reader of rules: the right words, the file's name, in no time."""
    text, said = HUGE[name]
    path = folder / "acme.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    start = time.process_time()
    answer = attempt(path)
    assert time.process_time() - start < 2  # a second on a machine that does nothing else
    assert re.search(said, answer), answer


def command(*arguments):
    return CliRunner().invoke(advise, list(arguments), standalone_mode=True)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_bytes(b"\x00\x01"), "NUL"),
        (lambda path: path.write_text("- 1"), "a map with the keys"),
    ],
    ids=["missing", "folder", "binary", "list"],
)
def test_the_command_exits_with_2_and_works_again_without_the_file(tmp_path, make, said):
    """With the file's name; without it the built-in rules answer as before."""
    path = tmp_path / "acme.yaml"
    make(path)
    with pytest.raises(InputError, match=said) as caught:
        CliRunner().invoke(
            advise,
            ["--json", "--task", "qa", "--gpu", "unknown", "--rules", str(path)],
            catch_exceptions=False,
        )
    assert caught.value.exit_code == 2
    assert str(path) in caught.value.text()
    assert command("--json", "--task", "qa", "--gpu", "unknown").exit_code == 0


def test_the_linter_reports_an_unreadable_file_as_findings(tmp_path):
    """`advise rules lint` on a broken file: place, line and caret as for any finding, exit 2."""
    path = tmp_path / "acme.yaml"
    path.write_text("overlay: acme\ntabels: {}\n")
    done = CliRunner().invoke(advise, ["rules", "lint", "--rules", str(path)])
    assert done.exit_code == 2
    assert f"{path}:2:1  error: unknown key 'tabels'" in done.stdout
    assert "    2 | tabels: {}\n      | ^" in done.stdout
    assert "did you mean 'tables'?" in done.stdout
