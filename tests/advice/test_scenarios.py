"""Scenarios hold, one notices each rule, and the advice agrees with what experts said in public."""

import pytest
from msgspec.structs import replace

from advisor import advise_document
from advisor.advice.linting import lint_rules, read_scenarios, run_scenarios, shipped_scenarios
from advisor.ground.errors import InputError
from advisor.ruleset.load import load_rules
from tests.advice.public_situations import answers_of, compositions, read_situations, verdict_of
from tests.advice.situations import GUIDE
from tests.advice.situations import RULES as ALL


@pytest.mark.parametrize("ruleset", [GUIDE, ALL], ids=["guide-alone", "guide-and-evidence"])
def test_the_shipped_scenarios_hold(ruleset):
    """Every row of the rules and of rules/scenarios/ that concerns the layers."""
    scenarios = shipped_scenarios(ruleset)
    assert len(scenarios) >= 20
    assert run_scenarios(ruleset, scenarios) == ()


def unnoticed_rules(ruleset, scenarios):
    """Ids of the active rules that can be dropped without breaking a scenario."""
    for table, rules in ruleset.rules.items():
        for rule in rules:
            left = tuple(other for other in rules if other is not rule)
            without = replace(ruleset, rules={**ruleset.rules, table: left})
            # Those that name it first: most rules are missed by one of them.
            ordered = sorted(scenarios, key=lambda one: rule.id not in (*one.fired, *one.warned))
            if not any(run_scenarios(without, [one]) for one in ordered):
                yield rule.id


def test_dropping_any_rule_breaks_a_scenario():
    """A rule that can be dropped unnoticed is not tested; some act without evidence alone."""
    scenarios = [shipped_scenarios(ruleset) for ruleset in (GUIDE, ALL)]
    names = [scenario.id for each in scenarios for scenario in each]
    assert len(names) == len(set(names))
    alone, together = map(set, map(unnoticed_rules, (GUIDE, ALL), scenarios))
    every = (rule for rules in ALL.rules.values() for rule in rules)
    assert together & (alone | {rule.id for rule in every if rule.layer == "evidence"}) == set()


def test_a_wrong_expectation_is_told_with_what_was_got(approved, tmp_path):
    """The composition, a rule that does not decide, another reason, and a what-if."""
    file = tmp_path / "mine.yaml"
    file.write_text(
        "scenarios:\n  - {id: a, given: {task: qa}, composition: rag, fired: [evidence/pairs],"
        " why_not: {full: base/too-big}, why: us,\n     whatif: [{change: {budget: low},"
        " composition: sft+full}]}\n  - {id: b, given: {objective: sft, update: full, quantization:"
        " none}, settings: {epochs: 9}, why: us}\n"
    )
    broken = [one.text for one in run_scenarios(ALL, read_scenarios(file, ALL))]
    # Which rules decide, and all that a stage is set to, is not for this test to hold.
    approved([text.partition("; deciding")[0] for text in broken if "expected None" not in text])


OWN = """overlay: mine
tables:
  readiness:
    - id: mine/ask-first
      tier: must
      when: {task: code, latency_critical: %s}
      then: {readiness: prompting}
      because: "We ask first."
      sources: [product]
      scenarios: [{given: {task: code, data_kind: paired, latency_critical: true}, composition: %s, why: us}]
"""


@pytest.mark.parametrize(
    ("critical", "composition", "expected"),
    [
        ("true", "prompting", []),
        ("true", "rag", ["expected rag, got prompting"]),
        ("false", "sft+lora", ["mine/ask-first does not decide"]),
    ],
)
def test_a_rule_holds_the_scenarios_that_it_decides(tmp_path, critical, composition, expected):
    """Named by the rule, of which it is expected that it decides; the linter counts it."""
    file = tmp_path / "mine.yaml"
    file.write_text(OWN % (critical, composition))
    rules = load_rules(overlays=(file,))
    (scenario,) = read_scenarios(file, rules)
    assert (scenario.id, scenario.fired) == ("mine/ask-first", ("mine/ask-first",))
    broken = [found.text for found in run_scenarios(rules, [scenario])]
    assert [text for text in broken if not text.startswith(tuple(expected) or "-")] == []
    assert len(broken) == len(expected)
    checked = lint_rules(overlays=(file,))
    assert (
        checked.scenarios,
        "decides-no-scenario" in {one.id for one in checked.report.findings},
    ) == (1, critical == "false")


def test_faults_of_a_scenario_file_are_told_together(approved, tmp_path):
    """Unknown keys, facts and rules, with the nearest known name and the place."""
    file = tmp_path / "mine.yaml"
    file.write_text(
        "scenarios:\n  - {id: a, given: {taskk: qa}, composition: rag, fired: [evidence/pair], why:"
        " us}\n  - {id: b, givn: {}, why: us}\n"
    )
    with pytest.raises(InputError) as raised:
        read_scenarios(file, ALL)
    approved([(fault.headline, fault.hint) for fault in raised.value.faults])


@pytest.fixture(scope="module")
def recommended():
    return compositions()


def test_most_recommendations_are_what_experts_said(recommended):
    """And nothing is recommended that an expert ruled out."""
    verdicts = {s["id"]: verdict_of(s, recommended[s["id"]]) for s in read_situations()}
    missed = {name for name, verdict in verdicts.items() if verdict != "hit"}
    assert 1 - len(missed) / len(verdicts) >= 0.85, missed
    assert "hard miss" not in verdicts.values(), missed


def test_the_short_way_recommends_what_the_advice_does(recommended):
    for situation in read_situations()[::15]:
        document = advise_document(answers_of(situation))
        assert document["recommendation"]["composition"] == recommended[situation["id"]]


def test_the_set_is_sound():
    situations = read_situations()
    assert len(situations) >= 80
    assert len({s["id"] for s in situations}) == len(situations)
    assert len({s["source"]["url"] for s in situations}) == len(situations)
    for situation in situations:
        expert = situation["expert_answer"]
        assert expert["accepted"], situation["id"]
        assert all(ruled_out["reason"] for ruled_out in expert["rejected"]), situation["id"]


@pytest.mark.parametrize(
    ("wanted", "got", "verdict"),
    [
        ("sft+*", "sft+lora", "hit"),
        ("sft+*", "cpt>sft+lora", "miss"),
        ("sft+*", "encoder:sft+full", "miss"),
        ("sft+lora@per_task", "sft+lora", "miss"),
        ("rag & sft+*", "sft+qlora & rag", "hit"),
        ("rag", "rag & sft+lora", "miss"),
        # A leading SFT may come or go.
        ("sft>grpo+*", "grpo+lora", "hit"),
        ("sft>grpo+*", "sft>grpo+lora", "hit"),
        ("sft>grpo+*", "cpt+lora", "hard miss"),
    ],
)
def test_compositions_are_compared_as_the_grammar_says(wanted, got, verdict):
    expert = {"accepted": [wanted], "rejected": [{"method": "cpt+*", "reason": "no checks"}]}
    assert verdict_of({"expert_answer": expert}, got) == verdict
