"""What would make a page contradict itself: sentences against the numbers and facts beside them."""

import re
from collections.abc import Iterator

from advisor.advice.types import Advice, Candidate
from advisor.ground.units import format_gib
from advisor.render.answer.page import page_of
from advisor.render.answer.why import reason_text
from advisor.render.blocks import Items, PageTable, Paragraph
from advisor.ruleset.facts import load_facts
from advisor.ruleset.phrases import name_of

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
PLACEHOLDER = re.compile(r"[{}]|\bNone\b|\b(\w+) \1\b")


def number(text: str) -> float:
    return float(text.replace(",", ""))


def texts_of(advice: Advice) -> Iterator[str]:
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
                for item in block.items:
                    yield item.text
                    yield item.detail
            elif isinstance(block, PageTable):
                for row in block.rows:
                    yield row[-1]


def contradictions(advice: Advice) -> Iterator[str]:
    """Each sentence of a page that its own numbers or facts deny."""
    facts, situation = advice.facts, advice.situation
    known = {name: value for name, value in facts.items() if value not in (None, "unknown")}
    for text in texts_of(advice):
        yield from (f"more room than needed: {text}" for needs, _, has in NEEDS.findall(text)
                    if number(needs) <= number(has))  # fmt: skip
        for verb, room, need in FITS_IN.findall(text):
            if (number(need) > number(room)) != (verb == "does not fit"):
                yield f"a fit that is none: {text}"
        yield from (f"within the budget: {text}" for cost, budget in COSTS.findall(text)
                    if number(cost) < number(budget))  # fmt: skip
        for pattern, fact in AMOUNTS.items():
            for found in re.findall(pattern.format(NUMBER), text):
                if fact in known and abs(number(found) - float(known[fact])) > 0.006 * known[fact]:
                    conditional = text.lower().startswith("if ") and "instead" not in pattern
                    if not conditional:
                        yield f"another amount than {known[fact]}: {text}"
        for what in NOT_SAID.findall(text):
            yield from (
                f"{name} was said: {text}"
                for name in situation.answers.known
                if name in load_facts() and name_of(load_facts()[name]) in what
            )
        if "you named no model" in text and situation.answers.value("model"):
            yield f"a model was named: {text}"
        if "number of tokens is not known" in text and known.get("data_tokens"):
            yield f"tokens are known: {text}"
        if "number of examples, which is not known" in text and known.get("data_rows"):
            yield f"rows are known: {text}"
    for rows in YOUR_ROWS.findall(page_of(advice).first.answer):
        if number(rows) != known.get("data_rows"):
            yield f"not your {rows} rows"
    yield from _of_candidates(advice)
    yield from _of_flips(advice)


def _of_candidates(advice: Advice) -> Iterator[str]:
    cpu = advice.situation.hardware.kind == "cpu"
    sizes = {
        str(one.composition): one for one in (advice.recommendation, *advice.alternatives)
    }  # fmt: skip
    spare = {
        f"{(one.estimate.limit_bytes - one.estimate.memory.need_bytes) / 2**30:.0f}"
        for one in sizes.values()
        if one.estimate.memory is not None and one.estimate.limit_bytes is not None
    }
    for one in sizes.values():
        estimate = one.estimate
        for reason in one.because:
            text = reason_text(reason)
            if cpu and OF_A_GPU.search(text):
                yield f"there is no GPU: {one.composition}: {text}"
            for found in SPARE.findall(text):
                if not any(abs(number(found) - float(room)) <= 1 for room in spare):
                    yield f"another room to spare: {one.composition}: {text}"
        if estimate.memory is None or estimate.limit_bytes is None:
            continue
        over = estimate.memory.need_bytes > estimate.limit_bytes
        surely = over and estimate.fits != "may_fit" and not advice.nothing_fits
        if one is advice.recommendation and surely:
            need, room = estimate.memory.need_bytes, estimate.limit_bytes
            yield f"recommended, and {format_gib(need)} of {format_gib(room)}"
        if one.verdict == "too_big" and not over and not _over_budget(one):
            yield f"{one.composition} is too big, and fits"


def _over_budget(candidate: Candidate) -> bool:
    return any(reason.unit in ("USD", "h") for reason in candidate.because) or bool(
        candidate.estimate.refused or candidate.estimate.fits == "may_fit"
    )


def _of_flips(advice: Advice) -> Iterator[str]:
    said = [(flip.text, str(flip.to)) for flip in advice.flips]
    yield from (f"promised twice: {one}" for one in set(said) if said.count(one) > 1)
    for flip in advice.flips:
        for name, value in flip.change.items():
            if advice.situation.answers.value(name) == value:
                yield f"stated already: {flip.text}"
        if advice.situation.hardware.kind == "cpu" and OF_A_GPU.search(flip.text):
            yield f"there is no GPU: {flip.text}"
