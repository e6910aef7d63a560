"""No answer, in any form, shows what a fact is called inside, or contradicts itself."""

import io
import random
import re
from collections import Counter

import pytest
from msgspec.structs import replace
from rich.console import Console

from advisor.advice.planning import make_plan, missing_for_plan
from advisor.advice.types import Reason
from advisor.ground.errors import InputError
from advisor.ground.units import format_gib
from advisor.render.advice_json import advice_document
from advisor.render.answer.page import page_of
from advisor.render.answer.why import reason_items, reason_text
from advisor.render.blocks import Items, PageTable, Paragraph
from advisor.render.rules import conditions, outcome
from advisor.render.terminal import print_advice
from advisor.ruleset.facts import load_facts
from advisor.ruleset.phrases import name_of
from tests.advice.sanity import random_known, situation_for
from tests.advice.situations import RULES, advice_on, random_advice
from tests.conftest import scaled

SITUATIONS, BATCHES = scaled(200), 10
# Ids whose words are also what people say.
ORDINARY = {"reward model", "compute capability", "mixture of experts", "rows teach"}
IDS = [fact.id for fact in RULES.facts.values() if "_" in fact.id]
SPACED = [name.replace("_", " ") for name in IDS if name.replace("_", " ") not in ORDINARY]
# An id as the value of a flag is what a person has to type.
INSIDE = re.compile(
    rf"(?<!--signal )(?<!--)\b(?:{'|'.join([*IDS, *SPACED])})\b|\bis stated\b|\bis denied\b"
)
CIRCULAR = re.compile(r"would come first where|comes after \w+: |\b(\w+ \w+) is \1\b")


def faults(text):
    """The places where a text shows an id, a dump of a condition, or a circle."""
    found = [*INSIDE.finditer(text), *CIRCULAR.finditer(text)]
    return [text[max(0, match.start() - 60) : match.end() + 60] for match in found]


@pytest.mark.parametrize(
    ("text", "fails"),
    [
        ("since budget is low (flag) and fits lora is fits (estimated)", True),
        ("would come first where memory bound is yes; here memory bound is not known", True),
        ("comes after prompting: A prompt comes first.", True),
        ("since candidate_schemes is module", True),
        ("rule evidence/lora-where-it-fits; `--signal memory_bound` states it", False),
    ],
)
def test_the_check_finds_what_it_is_for(text, fails):
    """The sentences of an earlier version fail."""
    assert bool(faults(text)) is fails


def texts_of(document):
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


def said(advice, *, told):
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
        if (advice := random_advice(seed, situation_files, flips=seed % 8 == 0)) is None:
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


# What would make a page contradict itself: sentences against the numbers and facts beside them.
NUMBER = r"([\d,]+(?:\.\d+)?)"
NEEDS = re.compile(
    rf"needs {NUMBER} GiB(?:, {NUMBER} GiB of it[^;,]*)?[;,] [^.]*? has {NUMBER} GiB"
)
FITS_IN = re.compile(rf"(does not fit|fits) in {NUMBER} GiB[^(]*\(estimated {NUMBER} GiB\)")
SPARE = re.compile(rf"fits with {NUMBER} GiB to spare")
COSTS = re.compile(rf"costs about \${NUMBER}, the budget is \${NUMBER}")
AMOUNTS = {  # what a sentence says of an amount -> the fact
    r"you have {} examples?\b": "data_rows",
    r"your data hold {} tokens\b": "data_tokens",
    r"instead of {} examples?\b": "data_rows",
}
YOUR_ROWS = re.compile(r"\byour ([\d,]+) (?:examples|pairs|answers|problems)")
OF_A_GPU = re.compile(r"\b(?:this GPU|these \d+ GPUs|the GPU's memory|on the GPU)\b")
NOT_SAID = re.compile(r"you have not said ([^;.]+)")


def number(text):
    return float(text.replace(",", ""))


def page_texts(advice):
    """Every text of the page but what the answer is based on."""
    page = page_of(advice)
    yield page.first.answer
    for items in page.first.labelled.values():
        yield from (item.text for item in items)
    for section in page.sections:
        for block in section.blocks:
            if isinstance(block, Paragraph):
                yield block.text
            elif isinstance(block, Items):
                yield from (text for item in block.items for text in (item.text, item.detail))
            elif isinstance(block, PageTable):
                yield from (row[-1] for row in block.rows)


def contradictions(advice):
    """Each sentence of a page that its own numbers or facts deny."""
    facts, situation = advice.facts, advice.situation
    known = {name: value for name, value in facts.items() if value not in (None, "unknown")}
    for text in page_texts(advice):
        yield from (f"more room than needed: {text}" for needs, _, has in NEEDS.findall(text)
                    if number(needs) <= number(has))  # fmt: skip
        for verb, room, need in FITS_IN.findall(text):
            if (number(need) > number(room)) != (verb == "does not fit"):
                yield f"a fit that is none: {text}"
        yield from (f"within the budget: {text}" for cost, budget in COSTS.findall(text)
                    if number(cost) < number(budget))  # fmt: skip
        for pattern, fact in AMOUNTS.items():
            conditional = text.lower().startswith("if ") and "instead" not in pattern
            if fact in known and not conditional:
                yield from (f"another amount than {known[fact]}: {text}"
                            for found in re.findall(pattern.format(NUMBER), text)
                            if abs(number(found) - known[fact]) > 0.006 * known[fact])  # fmt: skip
        for what in NOT_SAID.findall(text):
            yield from (
                f"{name} was said: {text}"
                for name in situation.answers.known
                if name in load_facts() and name_of(load_facts()[name]) in what
            )
        for words, what, stated in (
            ("you named no model", "a model was named", situation.answers.value("model")),
            ("number of tokens is not known", "tokens are known", known.get("data_tokens")),
            ("number of examples, which is not known", "rows are known", known.get("data_rows")),
        ):
            if words in text and stated:
                yield f"{what}: {text}"
    yield from (
        f"not your {rows} rows"
        for rows in YOUR_ROWS.findall(page_of(advice).first.answer)
        if number(rows) != known.get("data_rows")
    )
    yield from _of_candidates(advice)
    yield from _of_flips(advice)


def _of_candidates(advice):
    cpu = advice.situation.hardware.kind == "cpu"
    every = {str(one.composition): one for one in (advice.recommendation, *advice.alternatives)}
    spare = [
        round((one.estimate.limit_bytes - one.estimate.memory.need_bytes) / 2**30)
        for one in every.values()
        if one.estimate.memory is not None and one.estimate.limit_bytes is not None
    ]
    for one in every.values():
        estimate = one.estimate
        for reason in one.because:
            text = reason_text(reason)
            if cpu and OF_A_GPU.search(text):
                yield f"there is no GPU: {one.composition}: {text}"
            yield from (f"another room to spare: {one.composition}: {text}"
                        for found in SPARE.findall(text)
                        if all(abs(number(found) - room) > 1 for room in spare))  # fmt: skip
        if estimate.memory is None or estimate.limit_bytes is None:
            continue
        need, room = estimate.memory.need_bytes, estimate.limit_bytes
        surely = need > room and estimate.fits != "may_fit" and not advice.nothing_fits
        if one is advice.recommendation and surely:
            yield f"recommended, and {format_gib(need)} of {format_gib(room)}"
        over_budget = any(reason.unit in ("USD", "h") for reason in one.because)
        known = over_budget or estimate.refused or estimate.fits == "may_fit"
        if one.verdict == "too_big" and need <= room and not known:
            yield f"{one.composition} is too big, and fits"


def _of_flips(advice):
    told = Counter((flip.text, str(flip.to)) for flip in advice.flips)
    yield from (f"promised twice: {one}" for one, count in told.items() if count > 1)
    for flip in advice.flips:
        if any(advice.situation.answers.value(name) == one for name, one in flip.change.items()):
            yield f"stated already: {flip.text}"
        if advice.situation.hardware.kind == "cpu" and OF_A_GPU.search(flip.text):
            yield f"there is no GPU: {flip.text}"


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
        assert [*contradictions(advice)] == [], seed
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
