"""Why not: one true sentence with the number that decided."""

import re

import pytest

from advisor.advice.case import Case
from advisor.advice.why_not import LosingOutcome
from tests.advice.situations import RULES, advised, random_advices
from tests.conftest import scaled

SUPPORT = {
    "task": "customer_service", "budget": "low", "gpu": "RTX 4090", "model": "Qwen/Qwen3-8B",
    "data_kind": "paired", "data_rows": 1500,
}  # fmt: skip
NOTHING = {**dict.fromkeys(SUPPORT), "task": "other"}


def test_a_smaller_scheme_would_win_if_the_winner_did_not_fit():
    """The memory left is the difference of the shown numbers; what is too big shows both."""
    advice = advised(**SUPPORT)
    chosen = advice.recommendation
    assert str(chosen.composition) == "sft+lora"
    assert advice.decided_by[-1] == "evidence/lora-where-it-fits"
    need = chosen.estimate.memory.need_bytes / 2**30
    assert 15.3 < need < 21  # 8.2 billion weights of 2 bytes, and what a few rows take
    found = {str(one.composition): one.because[0] for one in advice.alternatives}
    reason, full = found["sft+qlora"], found["sft+full"]
    said = r"QLoRA would win if LoRA did not fit; here LoRA fits with (\d+\.\d) GiB to spare\."
    assert float(re.fullmatch(said, reason.text)[1]) == pytest.approx(24.0 - need, abs=0.11)
    assert reason.rule == "evidence/module-on-4-bit"
    assert re.fullmatch(r"full fine-tuning needs \d+\.\d GiB, this GPU has 24\.0 GiB", full.text)
    assert None not in (full.needs, full.has)


@pytest.mark.parametrize(
    ("stated", "composition", "text"),
    [
        ({}, "prompting", "A good prompt would win if a prompt alone gave good enough answers; you"
         " have not said so."),
        # Not: if you asked for another task.
        ({}, "sft+prefix", "Ranks below LoRA: LoRA comes near full performance for very little memory,"
         " and is the most widely adopted method. It needs 21.8 GiB, LoRA 18.1 GiB."),
        # Where a module holds the data, with how many they are.
        ({"model": "HuggingFaceTB/SmolLM2-135M-Instruct"}, "sft+full", "Ranks below LoRA: up to about"
         " a hundred thousand examples, LoRA on every linear layer equals full fine-tuning for a"
         " fraction of the memory and disk (you have 1,500 examples)."),
        ({}, "sft+ia3", "None of the rules in use recommends it here."),
        ({"budget": "medium", "priority": "cost", "gpu": "unknown", "data_kind": "preference"},
         "sft+lora", "Supervised fine-tuning would win if you had requests with the right answer; you"
         " have pairs of a better and a worse answer."),
        # Where nothing is trained, neither 'a prompt comes first' nor what the other step concluded.
        ({**NOTHING, "data_kind": "none", "gpu": "RTX 4090",
          "signals": ("domain_covered_by_base_model",)}, "sft+lora", "Ranks below a good prompt: there"
         " is nothing to train on yet: write a prompt, keep the answers, and correct them into"
         " examples."),
        # Numbers of a suggested model may stand beside a fit that is not known.
        ({**NOTHING, "budget": "low", "gpu": "RTX 4090"}, "sft+lora", "LoRA would win if it fitted;"
         " whether LoRA fits is not known, since you named no model and did not say what your data"
         " are. It needs 18.8 GiB, QLoRA 14.0 GiB."),
        ({"task": "code"}, "cpt>sft+lora", "Continued pre-training reads plain text by the hundred"
         " million tokens; you have none."),
    ],
)  # fmt: skip
def test_a_change_is_named_that_a_person_can_make(stated, composition, text):
    """An answer before other data, two conditions at most, and what is so instead."""
    given = {name: value for name, value in {**SUPPORT, **stated}.items() if value is not None}
    assert [
        one.because[0].text
        for one in advised(**given).alternatives
        if str(one.composition).split("@")[0] == composition
    ] == [text]


@pytest.mark.parametrize("batch", range(6))
def test_every_change_that_is_named_would_do_it(batch, monkeypatch):
    """Deciding again with the change, and with what things then cost, leads to the outcome."""
    told = []

    def remember(question, way):
        told.append((question, way))
        return would_come_first(question, way)

    would_come_first = LosingOutcome.would_come_first
    monkeypatch.setattr(LosingOutcome, "would_come_first", remember)
    checked = 0
    for seed, advice in random_advices(range(batch, scaled(90), 6), None, flips=False):
        case = Case.build(advice.situation, RULES)
        for question, way in told:
            if any(RULES.facts[name].instance_of for name in way.change):
                continue  # a fit is no answer: what it costs cannot be changed
            decision = case.with_answers(way.change).decision
            assert decision.facts[question.table.concludes] == question.outcome, (seed, way)
            checked += 1
        told.clear()
    assert checked > scaled(10)
