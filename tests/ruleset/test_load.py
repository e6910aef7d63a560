"""Loading rules: every fault is located, and nothing in a rule file can do harm."""

import pytest

from advisor.ground.errors import InputError
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
    path.write_text(text)
    return load_rules(overlays=(path,))


def test_an_overlay_adds_rules_of_its_own(tmp_path):
    """A company's file becomes the last layer."""
    rules = overlay(tmp_path, GOOD)
    assert rules.layers == ("document", "evidence", "acme")
    assert rules.rule("acme/no-full").because == "Policy 12 of the house."


def test_every_shipped_rule_has_a_short_reason():
    """One sentence of at most 160 characters; the linter only warns of longer ones."""
    rules = [rule for table in load_rules().rules.values() for rule in table]
    assert len(rules) > 60
    assert all(rule.because and rule.sources and len(rule.because) <= 160 for rule in rules)


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
    ("entry", "said"),
    [
        ('{id: x, rules: [evidence/nowhere], says: "no", sources: [trl]}', "unknown rule"),
        ('{id: x, rules: [evidence/pairs], says: "no", sources: [nobody]}', "unknown source"),
        ("{id: x, rules: [evidence/pairs], sources: [trl]}", "says"),
    ],
)
def test_a_conflict_about_nothing_is_refused(entry, said, tmp_path):
    """Files of one's own may name experts who disagree; each name is checked, located."""
    with pytest.raises(InputError) as error:
        overlay(tmp_path, f"overlay: acme\nconflicts:\n  - {entry}\n")
    assert "acme.yaml:3" in error.value.text()
    assert said in error.value.text()


def test_disabling_needs_a_reason_and_a_known_rule(tmp_path):
    """A rule is switched off by name, with a reason that is kept."""
    disable = "overlay: acme\ndisable:\n  - {{rule: document/{}}}\n"
    rules = overlay(tmp_path, disable.format("scenario-5, because: We own the cards."))
    assert rules.rule("document/scenario-5") is None
    assert rules.disabled == {"document/scenario-5": "We own the cards."}
    for number, (text, said) in enumerate(
        (
            ("scenari-5, because: x", "did you mean 'document/scenario-5'"),
            ("scenario-5", "a reason is required"),
        )
    ):
        with pytest.raises(InputError, match=said):
            overlay(tmp_path, disable.format(text), name=f"{number}.yaml")


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
