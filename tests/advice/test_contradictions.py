"""What contradicts itself is refused, all of it in one message; and nothing is promised that
contradicts what was stated.
"""

import json

import pytest

from advisor.advice.advise import advise
from advisor.advice.contradictions import can_be_said
from advisor.advice.facts_of_situation import stated_values
from advisor.ground.errors import InputError
from advisor.ruleset.load import load_rules
from advisor.situation.build import situation_of
from tests.advice.situations import UNKNOWN_MACHINE, random_answers, write_data
from tests.conftest import scaled

RULES = load_rules()
GUIDE = load_rules(("document",))
START = ("--json", "--task", "qa", "--gpu", "unknown")


def signal(*names):
    return tuple(part for name in names for part in ("--signal", name))


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (
            signal("prompt_meets_quality_bar", "base_model_never_succeeds"),
            "prompt_meets_quality_bar is yes (flag) and base_model_never_succeeds is yes (flag)",
        ),
        (
            signal("prompt_meets_quality_bar", "prompting_tried=no"),
            "prompt_meets_quality_bar is yes (flag) and prompting_tried is no (flag)",
        ),
        (
            signal("teacher_logs_available", "teacher_available=no"),
            "teacher_logs_available is yes (flag) and teacher_available is no (flag)",
        ),
        (
            ("--teacher", "none", *signal("teacher_logs_available")),
            "teacher_logs_available is yes (flag) and teacher is none (flag)",
        ),
        (
            ("--teacher", "none", *signal("teacher_available")),
            "teacher is none (flag) and teacher_available is yes (flag)",
        ),
        (
            ("--teacher", "texts", *signal("teacher_available=no")),
            "teacher is texts (flag) and teacher_available is no (flag)",
        ),
        (
            ("--data-kind", "none", "--data-rows", 5000),
            "data_kind is none (flag) and data_rows is 5000 (flag)",
        ),
        (
            ("--data-kind", "none", "--data-tokens", 5000),
            "data_kind is none (flag) and data_tokens is 5000 (flag)",
        ),
        (
            ("--data-kind", "paired", "--data-rows", 5000, "--data-tokens", 0),
            "data_rows is 5000 (flag) and data_tokens is 0 (flag)",
        ),
        (
            (
                "--data-kind",
                "prompts_with_verifier",
                *signal("verifiable_rewards_available=no"),
            ),
            "data_kind is prompts_with_verifier (flag) and verifiable_rewards_available is no",
        ),
        (
            signal("base_model_untuned=no", "instruct_model_start=no"),
            "base_model_untuned is no (flag) and instruct_model_start is no (flag)",
        ),
        (
            ("--data-kind", "paired", "--data-rows", 5000, "--data-tokens", 60),
            "data_rows is 5000 (flag) and data_tokens is 60 (flag)",
        ),
        (signal("rag_tried", "rag_tried=no"), "--signal rag_tried: yes and no"),
    ],
)
def test_what_cannot_be_stated_together_is_refused(call, flags, named):
    """With both sides, where they come from, and why."""
    code, out, err = call(*START, *flags)
    assert (code, out) == (2, "")
    assert named in err
    assert "take one of them back" in err


def test_every_contradiction_is_named_at_once(call):
    """Nobody has to mend one to hear of the next."""
    code, _, err = call(
        *START,
        "--data-kind",
        "none",
        "--data-rows",
        5000,
        "--teacher",
        "none",
        *signal(
            "teacher_logs_available",
            "prompt_meets_quality_bar",
            "base_model_never_succeeds",
            "prompting_tried=no",
        ),
    )
    assert code == 2
    assert err.count("this cannot be") == 4


def test_a_no_contradicts_no_other_no(call):
    """Whoever says no to everything has contradicted nothing, except about what must be one of
    two.
    """
    signals = [fact.id for fact in RULES.facts.values() if fact.signal]
    denied = [f"{name}=no" for name in signals if name != "instruct_model_start"]
    assert call(*START, *signal(*denied))[0] == 0


def test_a_denied_signal_leads_nowhere_else(call):
    """No stored answers of a teacher are no teacher."""
    silent, denied = (
        json.loads(call(*START, "--data-kind", "none", *more)[1])["recommendation"]["composition"]
        for more in ((), signal("teacher_logs_available=no"))
    )
    assert silent == denied == "prompting"


def test_a_flag_takes_back_what_a_file_states(call, tmp_path):
    """Either way round."""
    (tmp_path / "yes.yaml").write_text("task: qa\ngpu: unknown\nsignals: [facts_change_often]\n")
    (tmp_path / "no.yaml").write_text(
        "task: qa\ngpu: unknown\nsignals: {facts_change_often: false}\n"
    )

    def composition(*arguments):
        return json.loads(call("--json", *arguments)[1])["recommendation"]["composition"]

    assert composition("--answers", "yes.yaml") == "rag"
    assert composition("--answers", "no.yaml", *signal("facts_change_often")) == "rag"
    assert composition("--answers", "no.yaml") == composition(
        "--answers", "yes.yaml", *signal("facts_change_often=no")
    )


def test_no_change_is_promised_that_contradicts_what_was_stated(tmp_path):
    """Whoever says that a teacher's answers are stored is not told what would be without one."""
    write_data(tmp_path)
    looked_at, by_answer = 0, {fact.answer: fact.id for fact in RULES.facts.values() if fact.answer}
    for seed in range(scaled(60)):
        try:
            situation = situation_of(random_answers(seed, tmp_path), probed=UNKNOWN_MACHINE)
            advice = advise(situation, RULES, GUIDE)
        except InputError:  # what was stated contradicts itself
            continue
        said = stated_values(situation.answers)
        assert can_be_said(RULES, said), seed
        for flip in advice.flips:
            change = {by_answer.get(key, key): value for key, value in flip.change.items()}
            assert can_be_said(RULES, {**said, **change}), (seed, flip.change)
            looked_at += 1
    assert looked_at > scaled(30)
