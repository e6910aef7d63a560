"""Why, rule by rule, and back to what was answered."""

import json

from advisor.advice.advise import advise
from advisor.ground.types import Answer, Answers, Hardware
from advisor.ruleset.load import load_rules
from advisor.situation.build import situation_of
from advisor.wizard.reasons import Trail
from tests.wizard.scripted import ScriptedUi

RULES = load_rules()
UNKNOWN = Hardware(kind="unknown", origin="unknown")


def trail(**answers):
    given = Answers(
        known={name: Answer(value=value, origin="asked") for name, value in answers.items()}
    )
    return Trail(
        advise(situation_of(given, probed=UNKNOWN), RULES, load_rules(("document",))), RULES
    )


def test_each_reason_tells_its_facts_where_they_came_from_and_its_source(tmp_path):
    """An answer is called an answer, a file by its name, and the rule and its source stand
    below.
    """
    data = tmp_path / "pairs.jsonl"
    data.write_text(
        "".join(
            json.dumps({"prompt": f"Question {i}?", "completion": f"Answer {i}."}) + "\n"
            for i in range(600)
        )
    )
    ui = ScriptedUi("Back")
    found = trail(task="customer_service", data_path=str(data), budget="low")
    found.walk(ui)
    said = "\n".join(ui.said)
    assert f"Why {found.advice.recommendation.composition}" in ui.said
    assert f"because you have requests with the right answer (read from {data})" in said
    assert "because you chose a low budget (your answer)" in said
    for rule in found.decision.rules:
        assert f"rule {rule.id} · rests on" in said
        assert RULES.sources[rule.sources[0]].title in said


def test_what_a_rule_concluded_from_another_can_be_followed():
    """A fact that another step concluded is offered, and leads to that step's rule, until nothing
    is left.
    """
    ui = ScriptedUi("A model that writes does the task", "More is known than the task")
    trail(task="multi_department", data_kind="paired", data_rows=2000, n_tasks=5).walk(ui)
    before, after = "\n".join(ui.said).split("Evidence:")
    assert "because a model that writes does the task (concluded by base/decoder)" in before
    assert "rule base/decoder" not in before
    assert "it holds everywhere, unless another rule knows better" in after
    assert "rule base/decoder · rests on our judgement" in after
    assert len(ui.offered) == 2


def test_the_trail_ends_at_the_decision_of_the_advice():
    """Deciding again on the facts of the advice gives its composition and its rules."""
    found = trail(
        task="qa", facts_change_often=True, signals=("facts_change_often",), data_kind="raw_text"
    )
    assert found.decision.composition == found.advice.recommendation.composition
    assert tuple(rule.id for rule in found.decision.rules) == found.advice.decided_by


def test_a_remedy_is_explained_by_what_led_to_it():
    """Nothing is said about schemes where nothing is trained."""
    ui = ScriptedUi("Back")
    trail(task="generation", data_kind="none").walk(ui)
    assert not any("/scenario-6" in text for text in ui.said)
    assert any("because you have no examples yet (your answer)" in text for text in ui.said)
