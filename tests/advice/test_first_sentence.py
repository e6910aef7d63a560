"""The first sentence of every answer: what to do, with which model and which data, in daily words."""

import re
from collections.abc import Iterator
from itertools import product

import pytest

from advisor.ground.types import Hardware
from advisor.methods import methods, remedies, schemes
from advisor.methods.composition import Composition
from advisor.methods.remedies import OTHER_TOOL
from advisor.render.words import what_to_do
from advisor.ruleset.facts import load_facts
from advisor.situation.types import Situation
from tests.render.example_advice import advice, answers, candidate, estimate

MODEL = "Qwen/Qwen3-8B"
CHAINS = tuple(load_facts()["chain"].values)
KINDS = (None, *load_facts()["data_kind"].values)
BESIDE = ((), ("rag",), ("prompting",), ("tool_use",))
LONGEST = 430  # characters: five lines of a page; three stages for each of several tasks
INSIDE = re.compile(
    rf"\b(?:{'|'.join([*methods().objectives, *schemes(), 'encoder:sft', 'None'])})\b"
)
DOUBLED = re.compile(r"\b(\w+) \1\b|,,|\.\.|  | ,|; ;|, ;")


def compositions() -> Iterator[Composition]:
    """Every chain with every scheme, for one task and for several, alone and beside remedies."""
    for chain, scheme, per_task, beside in product(CHAINS, schemes(), (False, True), BESIDE):
        known = schemes()[scheme]
        yield Composition(
            chain=tuple(chain.removeprefix("encoder:").split(">")),
            encoder=chain.startswith("encoder:"),
            update=known.update,
            quantization=known.quantization,
            per_task=per_task,
            remedies=beside,
        )


def first_sentence(composition: Composition, **stated: object) -> str:
    situation = Situation(
        answers=answers(task="other", model=MODEL, **stated),
        hardware=Hardware(kind="unknown", origin="unknown"),
    )
    one = candidate(composition, "recommended", (), estimate("unknown"))
    facts = {"reward_model_available": stated.get("reward_model_available")}
    said = what_to_do(advice(one, situation, facts=facts))
    # A model of which nothing is known has a sentence before it that asks for the size.
    return said.partition("If it fits, ")[2] or said


def faults(text: str) -> list[str]:
    """What is wrong with a sentence, read as one that knows no machine learning would."""
    found = [f"a word from inside: {one}" for one in INSIDE.findall(text)]
    found += [f"twice: {one.group()}" for one in DOUBLED.finditer(text)]
    found += ["a placeholder"] if re.search(r"[{}]", text) else []
    found += ["no full stop"] if not text.endswith(".") else []
    found += [f"{len(text)} characters"] if len(text) > LONGEST else []
    found += ["an open bracket"] if text.count("(") != text.count(")") else []
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_composition_is_said_in_daily_words(kind):
    """Each chain, scheme and remedy, whatever the data: no placeholder, no word twice, no code."""
    count = 0
    for composition in compositions():
        for rows, scored in product((None, 1200, 2_500_000), (None, True)):
            stated = {"data_kind": kind, "data_rows": rows, "reward_model_available": scored}
            text = first_sentence(
                composition, **{name: value for name, value in stated.items() if value is not None}
            )
            assert not faults(text), (str(composition), stated, text, faults(text))
            assert MODEL in text
            count += 1
    assert count > 3000


def test_every_remedy_alone_is_said_in_daily_words():
    """So is each answer that trains nothing, alone and with another."""
    names = [name for name in remedies() if name != OTHER_TOOL]
    for beside in [*((name,) for name in names), *product(names, names)]:
        text = first_sentence(Composition(remedies=tuple(dict.fromkeys(beside))))
        assert not faults(text), text
        assert text.startswith("No training is needed: ")


@pytest.mark.parametrize(
    ("chain", "stated", "said"),
    [
        ("cpt>sft", {"data_kind": "raw_text", "data_rows": 300}, "examples of requests and good"),
        ("sft>kto", {"data_kind": "unpaired_feedback", "data_rows": 11}, "your 11 answers that"),
        ("sft>dpo", {"data_kind": "preference", "data_rows": 90}, "better answers of your 90 pairs"),
        ("grpo", {"data_kind": "prompts_with_verifier", "data_rows": 70}, "your 70 problems"),
        ("sft>rm>ppo", {"data_kind": "preference"}, "let the first model practise while the second"),
        ("rloo", {"data_kind": "preference", "data_rows": 90}, "while a scoring model scores its"),
        ("rloo", {"data_kind": "preference", "reward_model_available": True}, "your scoring model"),
    ],
)  # fmt: skip
def test_rows_are_what_they_are(chain, stated, said):
    """Documents, thumbs and problems are not shown as examples, and a judge is not a problem."""
    text = first_sentence(Composition(chain=tuple(chain.split(">")), update="lora"), **stated)
    assert said in text
    rows = stated.get("data_rows")
    assert not re.search(rf"with your {rows} examples", text)
