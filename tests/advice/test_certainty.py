"""How sure an answer is: what it rests on, how clear it is, and who disagrees."""

import pytest

from advisor.advice.advise import advise
from advisor.advice.why import GRADES, certainty_lines
from advisor.ground.errors import InputError
from advisor.ground.types import Answer, AnswerSet
from advisor.ruleset.load import load_rules, only_layer
from advisor.situation.build import situation_of
from tests.advice.situations import UNKNOWN_MACHINE, random_advice
from tests.conftest import scaled


def advised(**known):
    ruleset = load_rules()
    stated = AnswerSet(
        known={name: Answer(value=value, origin="flag") for name, value in known.items()}
    )
    situation = situation_of(stated, probed=UNKNOWN_MACHINE)
    return advise(situation, ruleset, only_layer(ruleset, "document"))


def test_evidence_is_that_of_the_weakest_rule_and_doubts_make_it_weak(situation_files):
    """Over random situations: the two scales say what their parts say."""
    ruleset = load_rules()
    strengths = set()
    for seed in range(scaled(60)):
        advice = random_advice(seed, situation_files)
        if advice is None:
            continue
        found = advice.certainty
        rules = [ruleset.rule(rule_id) for rule_id in advice.decided_by]
        words = [GRADES[rule.confidence][0] for rule in rules]
        order = ["high", "medium", "low"]
        assert found.evidence == max(words, key=order.index, default="low")
        assert (found.strength == "weak") == bool(found.doubts)
        if found.conflicts:
            assert "experts disagree here" in found.doubts
        strengths.add(found.strength)
    assert strengths == {"weak", "strong"}


def test_experts_who_disagree_are_named():
    """The other side with its source, and the recommendation is weak for it alone."""
    preference = {
        "task": "customer_service", "data_kind": "preference", "data_rows": 30_000, "budget": "high",
        "depth": "style", "serve_with": "vllm", "priority": "quality", "teacher": "none",
        "prompting_tried": True, "instruct_model_start": True, "model": "Qwen/Qwen3-8B",
    }  # fmt: skip
    found = advised(**preference).certainty
    assert [one.rule for one in found.conflicts] == ["evidence/pairs-on-an-instruct-model"]
    assert "DPO's author" in found.conflicts[0].text
    assert "issue 58" in found.conflicts[0].source
    assert found.strength == "weak"
    (line,) = [line for line in certainty_lines(found) if line.startswith("Experts who")]
    assert found.conflicts[0].text in line


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ('{id: x, rules: [evidence/nowhere], says: "no", sources: [trl]}', "unknown rule"),
        ('{id: x, rules: [evidence/pairs], says: "no", sources: [nobody]}', "unknown source"),
        ("{id: x, rules: [evidence/pairs], sources: [trl]}", "says"),
    ],
)
def test_a_conflict_about_nothing_is_refused(entry, said, tmp_path):
    """Files of one's own may name conflicts too; each name is checked, located."""
    file = tmp_path / "own.yaml"
    file.write_text(f"overlay: own\nconflicts:\n  - {entry}\n")
    with pytest.raises(InputError) as error:
        load_rules(overlays=(file,))
    assert "own.yaml:3" in str(error.value.text())
    assert said in str(error.value.text())
