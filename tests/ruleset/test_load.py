"""Loading rules: every fault is located, and nothing in a rule file can do harm."""

import time

import pytest

from advisor.ground.errors import InputError
from advisor.ruleset.judge import fires
from advisor.ruleset.load import load_rules

GOOD = """overlay: acme
tables:
  rank:
    - id: acme/no-full
      kind: forbid
      when: {}
      then: {scheme: full}
      because: Policy 12 of the house.
      sources: [policy]
sources:
  policy: {title: Policy 12}
"""


def overlay(tmp_path, text, name="acme.yaml"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_rules(overlays=(path,))


def test_an_overlay_adds_rules_of_its_own(tmp_path):
    """A company's file becomes the last layer."""
    rules = overlay(tmp_path, GOOD)
    assert rules.layers == ("document", "evidence", "acme")
    assert rules.rule("acme/no-full").because == "Policy 12 of the house."


def test_every_shipped_rule_has_a_reason_and_known_sources():
    """No rule of the product stands without a sentence and a source."""
    rules = [rule for table in load_rules().rules.values() for rule in table]
    assert len(rules) > 60
    assert all(rule.because and rule.sources and len(rule.because) <= 160 for rule in rules)


def test_every_example_of_a_rule_holds():
    """The examples written beside the shipped rules are true."""
    ruleset = load_rules()
    tried = 0
    for rules in ruleset.rules.values():
        for rule in rules:
            for example in rule.examples:
                assert fires(ruleset, rule, example["given"]) == example["fires"], (
                    rule.id,
                    example,
                )
                tried += 1
    assert tried > 40


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ("scheme: full", "scheme: ful"),
            r"acme\.yaml:\d+:\d+: unknown scheme 'ful'[\s\S]*did you mean 'full'",
        ),
        (("when: {}", "when: {budgt: low}"), "unknown fact 'budgt'"),
        (("when: {}", "when: {budget: lo}"), "'budget' cannot be 'lo'"),
        (("when: {}", "when: {task: qa}"), "does not look at 'task'"),
        (("when: {}", "when: {gpus: {gte: two}}"), "'gpus' cannot be"),
        (("kind: forbid", "kind: forbidden"), r"`kind` is 'forbidden'[\s\S]*did you mean 'forbid'"),
        (("because: Policy 12 of the house.", "becuse: x"), "unknown key 'becuse'"),
        (("sources: [policy]", "sources: []"), "`sources` is an empty list"),
        (("sources: [policy]", "sources: [polcy]"), "unknown source 'polcy'"),
        (("id: acme/no-full", "id: other/no-full"), "ids of this file start with 'acme/'"),
        (("  rank:\n", "  rnak:\n"), "unknown table 'rnak'"),
        (("overlay: acme", "overlay: document"), "the name 'document' is taken"),
        (("tables:", "tabels:"), "unknown key 'tabels'"),
    ],
)
def test_a_wrong_rule_is_located(tmp_path, change, said):
    """A typo in a rule fails at load with file, line, column and the nearest name."""
    with pytest.raises(InputError, match=said):
        overlay(tmp_path, GOOD.replace(*change))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &x [1]\nb: *x\n", "aliases"),
        ("a: !!python/object:os.system {}\n", "tags"),
        ("tables: {}\ntables: {}\n", "given twice"),
        ("a: no\n", "without quotes"),
        ("- 1\n- 2\n", "a map with the keys"),
        ("", "a map with the keys"),
        (b"a: caf\xe9\n", "not UTF-8"),
        ("a: " + "[" * 1000 + "]" * 1000, "nested deeper|nesting depth"),
        ("x" * 2_000_000, "larger than"),
        ("a: b: c\n", "not valid YAML"),
        ("a: \0\n", "NUL"),
    ],
    ids=[
        "alias",
        "tag",
        "duplicate",
        "no",
        "list",
        "empty",
        "latin1",
        "deep",
        "huge",
        "broken",
        "nul",
    ],
)
def test_a_hostile_file_is_refused_quickly(tmp_path, text, said):
    """Nothing but plain YAML is read, and refusing takes no time."""
    start = time.perf_counter()
    with pytest.raises(InputError, match=said):
        overlay(tmp_path, text)
    assert time.perf_counter() - start < 5


def test_disabling_needs_a_reason_and_a_known_rule(tmp_path):
    """A rule is switched off by name, with a reason that is kept."""
    rules = overlay(
        tmp_path,
        "overlay: acme\ndisable:\n  - {rule: document/scenario-5, because: We own the cards.}\n",
    )
    assert rules.rule("document/scenario-5") is None
    assert rules.disabled == {"document/scenario-5": "We own the cards."}
    with pytest.raises(InputError, match="did you mean 'document/scenario-5'"):
        overlay(
            tmp_path,
            "overlay: acme\ndisable:\n  - {rule: document/scenari-5, because: x}\n",
            name="b.yaml",
        )
    with pytest.raises(InputError, match="a reason is required"):
        overlay(
            tmp_path, "overlay: acme\ndisable:\n  - {rule: document/scenario-5}\n", name="c.yaml"
        )


def test_all_values_but_some_are_named_with_not(tmp_path):
    """`{not: ...}` holds for values that the same file adds, never for what is not known."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        "overlay: mine\nvalues: {task: {poems: {label: Write poems}}}\ntables:\n  chain:\n"
        "    - {id: mine/all-but, tier: usual, when: {task: {not: [qa, code]}}, then: {chain: sft},"
        " because: So., sources: [product]}\n"
    )
    rule = load_rules(overlays=(path,)).rule("mine/all-but")
    assert rule is not None
    held = [rule.when[0].holds(task) for task in ("poems", "classification", "qa", "code", None)]
    assert held == [True, True, False, False, False]
    misspelt = tmp_path / "misspelt.yaml"
    misspelt.write_text(path.read_text().replace("qa, code", "qa, cod"))
    with pytest.raises(InputError, match=r"(?s)value of 'task' 'cod'.*did you mean 'code'"):
        load_rules(overlays=(misspelt,))
