"""No answer shows what a fact is called inside: over many situations, in every form."""

import io
import random
import re
from collections.abc import Iterator

import pytest
from msgspec.structs import replace
from rich.console import Console

from advisor.advice.planning import make_plan, missing_for_plan
from advisor.advice.types import Reason
from advisor.ground.errors import InputError
from advisor.render.advice_json import advice_document
from advisor.render.answer.why import reason_items
from advisor.render.rules import conditions, outcome
from advisor.render.terminal import print_advice
from tests.advice.sanity import random_known, situation_for
from tests.advice.situations import RULES, advice_on, random_advice
from tests.advice.truths import contradictions
from tests.conftest import scaled

SITUATIONS, BATCHES = scaled(200), 10
# Ids whose words are also what people say.
ORDINARY = {"reward model", "compute capability", "mixture of experts"}
IDS = [fact.id for fact in RULES.facts.values() if "_" in fact.id]
SPACED = [name.replace("_", " ") for name in IDS if name.replace("_", " ") not in ORDINARY]
# An id as the value of a flag is what a person has to type.
INSIDE = re.compile(
    rf"(?<!--signal )(?<!--)\b(?:{'|'.join([*IDS, *SPACED])})\b|\bis stated\b|\bis denied\b"
)
CIRCULAR = re.compile(r"would come first where|comes after \w+: |\b(\w+ \w+) is \1\b")


def faults(text: str) -> list[str]:
    """The places where a text shows an id, a dump of a condition, or a circle."""
    found = [*INSIDE.finditer(text), *CIRCULAR.finditer(text)]
    return [text[max(0, match.start() - 60) : match.end() + 60] for match in found]


def test_the_check_finds_what_it_is_for():
    """The sentences of an earlier version fail."""
    for text in (
        "since budget is low (flag) and fits lora is fits (estimated)",
        "would come first where memory bound is yes; here memory bound is not known",
        "comes after prompting: A prompt comes first.",
        "since candidate_schemes is module",
    ):
        assert faults(text), text
    assert not faults("rule evidence/lora-where-it-fits; `--signal memory_bound` states it")


def texts_of(document: object) -> Iterator[str]:
    """Every sentence of a JSON answer: its texts, not its keys and codes."""
    if isinstance(document, dict):
        for key, value in document.items():
            if key in ("text", "because", "confidence", "cost_note") and isinstance(value, str):
                yield value
            elif key in ("warnings",):
                yield from value
            elif key not in ("situation", "plan", "change", "facts"):
                yield from texts_of(value)
    elif isinstance(document, list):
        for part in document:
            yield from texts_of(part)


def said(advice, *, told: bool) -> Iterator[str]:
    """Every text of an answer: terminal, JSON, comments of the plan, whole reasons."""
    file = io.StringIO()
    print_advice(advice, Console(file=file, width=10_000))
    yield from file.getvalue().splitlines()
    yield from texts_of(advice_document(advice, plan=None))
    if advice.recommendation.composition.chain and not missing_for_plan(
        advice, advice.recommendation
    ):
        yield from make_plan(advice, advice.recommendation, RULES)[1].values()
    if told:
        for item in reason_items(advice.recommendation.because):
            yield from (item.text, item.detail)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_no_sentence_holds_the_id_of_a_fact(batch, situation_files):
    """Pages, JSON texts, plan comments and whole reasons, over random situations."""
    answered = 0
    for seed in range(batch, SITUATIONS, BATCHES):
        # What would change it takes most of the time, and has few sentences.
        advice = random_advice(seed, situation_files, flips=seed % 8 == 0)
        if advice is None:
            continue
        answered += 1
        wrong = [fault for text in said(advice, told=seed % 4 == 0) for fault in faults(text)]
        assert not wrong, (seed, wrong[:5])
    assert answered > SITUATIONS / BATCHES / 2


def test_rules_are_listed_in_words():
    """`advise rules` says conditions and outcomes as sentences do."""
    rules = [rule for listed in RULES.rules.values() for rule in listed]
    assert len(rules) > 100
    for rule in rules:
        parts = [conditions(rule, RULES), rule.because, rule.unless_note]
        if rule.kind != "set":  # a setting is written as in a plan
            parts.append(outcome(rule, RULES))
        assert not [fault for text in parts for fault in faults(text)], rule.id


@pytest.mark.parametrize("batch", range(BATCHES))
def test_no_sentence_contradicts_a_number_of_its_page(batch):
    """What fits has room, amounts are those stated, and what was said is not called unknown."""
    answered = 0
    for seed in range(batch, SITUATIONS // 2, BATCHES):
        try:
            situation = situation_for(random_known(random.Random(seed)))
            advice = advice_on(situation, flips=seed % 4 == 0)
        except InputError:
            continue
        answered += 1
        found = list(contradictions(advice))
        assert not found, (seed, found[:5])
    assert answered > SITUATIONS / BATCHES / 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("LoRA needs 4.0 GiB, this GPU has 7.0 GiB", "more room than needed"),
        ("LoRA fits in 7.0 GiB (estimated 7.4 GiB)", "a fit that is none"),
        ("LoRA costs about $4, the budget is $5", "within the budget"),
        ("Up to a hundred thousand (you have 1,500 examples)", "another amount than 5000"),
        ("here LoRA fits with 20.0 GiB to spare", "another room to spare"),
        ("Looking up would come first; you have not said how much it may cost.", "budget was said"),
        ("not known, since you named no model", "a model was named"),
    ],
)
def test_a_contradiction_is_seen(text, said):
    """Each of them, put into a page that is true otherwise, is found."""
    stated = {
        "task": "generation", "model": "Qwen/Qwen3-1.7B", "gpu": "RTX 4060 8GB", "budget": "low",
        "data_kind": "paired", "data_rows": 5000,
    }  # fmt: skip
    advice = advice_on(situation_for(stated), flips=True)
    assert not list(contradictions(advice))
    other = replace(advice.alternatives[0], because=(Reason(text=text),))
    wrong = replace(
        advice,
        recommendation=replace(advice.recommendation, because=(Reason(text=text),)),
        alternatives=(other, *advice.alternatives[1:]),
    )
    assert any(said in found for found in contradictions(wrong))
