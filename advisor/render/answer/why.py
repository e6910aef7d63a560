"""Why: reasons, facts and answers in words, and the sections of the page that are made of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from advisor.advice.advise import MAY_NOT_FIT, NO_MODEL, PART_OF_DATA
from advisor.advice.types import Advice, Candidate, Certainty, Flip, KnownFact, Reason
from advisor.ground.units import format_gib
from advisor.render.blocks import Item, Paragraph, Section, listed
from advisor.render.words import is_chosen, memory_words, sentence
from advisor.ruleset.facts import load_facts
from advisor.ruleset.phrases import clauses, joined, named_with_flag, says

NUMBERS = (
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve",
)  # fmt: skip
AMOUNTS = ("data_rows", "data_tokens")
MANY_FILES = 2  # above this their names say nothing more
# Origins of a fact that need no further word: the sentence says what was stated.
STATED = ("flag", "answers file", "answered", "asked", "stated", "estimated")
# What may end a run that takes the next command as it stands, the most telling first.
FIRST = (
    re.compile(r"may mean .*: name one of"),
    re.compile(r": unknown model,|not a model we know by that name"),
    re.compile(r"never run on|^no stage reads"),
)
# To be read after what may be wrong: what is to be known, and changes nothing that one does.
HINTS = re.compile(
    r"(?i)^all \d+ GPUs are used|^generating the answers takes|^time: |^the checkpoint is stored"
    r"|^these trainers quantise|^a mixture of experts|^4 bit on an |^more than \d+ GPUs"
)
# What was taken for granted, and is not so if a person says otherwise: it comes first.
ASSUMED = re.compile(
    r"\bread as \S|(?<!by that name; )\btaken (as|for|to) \S|\b(was|were) taken\b|\bis assumed"
    r"|counted as if|\bshape guessed|^shape of "
)
LIMIT = re.compile(r"the (limit|budget) is ")  # behind it stand both numbers, as people read them
SAID_ELSEWHERE = re.compile(f"^{NO_MODEL}|^{MAY_NOT_FIT}|{PART_OF_DATA}")


def reason_text(reason: Reason) -> str:
    """The sentence of a reason, with its two numbers if it does not say them itself."""
    if reason.needs is None or LIMIT.search(reason.text) or _has_number(reason.text, reason.needs):
        return reason.text
    unit = f" {reason.unit}" if reason.unit else ""
    has = "" if reason.has is None else f", has {reason.has:,.6g}{unit}"
    return f"{reason.text.rstrip('.')} (needs {reason.needs:,.6g}{unit}{has})"


def _has_number(text: str, number: float) -> bool:
    found = re.findall(r"[0-9]+(?:\.[0-9]+)?", text.replace(",", ""))
    return any(abs(float(one) - number) <= 0.02 * abs(number) for one in found)


def reason_items(reasons: Iterable[Reason]) -> list[Item]:
    """Each reason with where it comes from."""
    return [Item(text=sentence(reason_text(one)), detail=_reason_origin(one)) for one in reasons]


def _reason_origin(reason: Reason) -> str:
    """'because you chose a low budget · rule document/scenario-5 · source: ...', what is known."""
    seen = [known for known in reason.facts if not known.origin.startswith("concluded")]
    first, *others = (reason.source or "").split("; ")
    more = f", and {len(others)} more" if others else ""  # `advise rules ID` lists them all
    parts = (
        f"because {clauses(map(known_words, seen))}" if seen else "",
        f"rule {reason.rule}" if reason.rule else "",
        f"source: {first}{more}" if first else "",
    )
    return " · ".join(filter(None, parts))


def known_words(known: KnownFact) -> str:
    """'your examples are plain documents (read from data/)'; what was stated needs no origin."""
    fact = load_facts().get(known.fact)
    text = known.text or (says(fact, known.value) if fact else answer_words(known.value))
    if known.origin in STATED:
        return text
    origin = {"probed": "found on this machine"}.get(known.origin, known.origin)
    files = origin.removeprefix("read from ").split(", ")
    if len(files) > MANY_FILES and origin.startswith("read from "):
        which = "the largest of " if known.fact in AMOUNTS else ""  # the one that rules look at
        origin = f"read from {which}your {number_name(len(files))} files"
    return f"{text} ({origin})"


def number_name(count: int) -> str:
    """'six' for 6; numbers above twelve in digits."""
    return NUMBERS[count] if count < len(NUMBERS) else f"{count:,}"


def answer_words(value: Any, fact_id: str = "") -> str:
    """An answer's value as text: a choice by its label, true and false as yes and no."""
    fact = load_facts().get(fact_id)
    if fact is not None and isinstance(value, str) and value in fact.values:
        return fact.values[value].label
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} = {answer_words(part)}" for key, part in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(answer_words(part, fact_id) for part in value) or "none"
    if fact_id == "signals" and value in load_facts():
        return says(load_facts()[value], True)
    return f"{value:,}" if isinstance(value, int) else str(value)


def why(advice: Advice) -> Section:
    """What decided, how sure that is, and what the guide alone says."""
    ours, chosen = advice.recommendation, is_chosen(advice)
    items = reason_items(ours.because)
    blocks: list[Any] = [*listed(items)]
    if not chosen:  # how sure what is recommended is
        cited = {reason.rule for reason in ours.because}
        if others := [rule for rule in advice.decided_by if rule not in cited]:
            decided = "Also decided" if items else "Decided"
            blocks.append(Paragraph(text=f"{decided} by: {', '.join(others)}", tone="quiet"))
        blocks += [Paragraph(text=line) for line in certainty_lines(advice.certainty)]
    if guide := advice.guide:
        is_same = str(guide.composition) == str(ours.composition)
        says_it = "says the same" if is_same else f"alone says {guide.composition}"
        blocks.append(Paragraph(text=f"The guide {says_it}, in its row “{guide.row}”."))
    title = f"{'Against' if chosen else 'Why'} {ours.composition}" if advice.fits else "Why"
    return Section(title=title, blocks=blocks)


def certainty_lines(certainty: Certainty) -> tuple[str, ...]:
    """How sure the answer is, a sentence for each scale, and who disagrees."""
    evidence = f"Evidence: {certainty.evidence}; it rests on {certainty.rests_on}."
    strength = f"Recommendation: {certainty.strength}"
    strength += f"; {'; '.join(certainty.doubts)}." if certainty.doubts else "."
    lines = [f"{evidence} {strength}"]
    lines += [
        f"Experts who say otherwise: {one.text} ({one.source})" for one in certainty.conflicts
    ]
    if certainty.incomplete:
        lines.append(f"The estimate is incomplete: {joined(certainty.incomplete)}.")
    return tuple(lines)


def obstacles(advice: Advice) -> Section:
    """What comes nearest to fitting, by how much it fails, and which facts are to blame."""
    title, stuck = "What stands in the way", advice.nothing_fits
    if stuck is None:
        return Section(title=title, blocks=())
    nearest = f"{stuck.nearest.composition}: {limit_words(stuck.nearest)}"
    blocks = [Paragraph(text=f"Nothing fits. The nearest is {nearest}.", tone="warning")]
    if stuck.blame:
        together = ", together" if len(stuck.blame) > 1 else ""
        blocks.append(Paragraph(text=f"To blame{together}:"))
    return Section(title=title, blocks=[*blocks, *listed(reason.text for reason in stuck.blame)])


def limit_words(candidate: Candidate) -> str:
    """By how much a candidate misses the memory or the budget."""
    needs, estimate = memory_words(candidate), candidate.estimate
    limit, memory = estimate.limit_bytes, estimate.memory
    if memory is not None and limit is not None and not estimate.is_likely:
        over = format_gib(memory.need_bytes - limit)
        return f"it needs {needs}, {over} more than the {format_gib(limit)} there are"
    if candidate.because:
        return reason_text(candidate.because[0]).rstrip(".")
    return "it needs more memory than there is"


def flips(advice: Advice) -> Section:
    """Which other answers would lead elsewhere."""
    title = "What would change the answer" if advice.fits else "What would fit"
    return Section(title=title, blocks=listed(map(flip_text, advice.flips)))


def flip_text(flip: Flip) -> str:
    """'If you chose a high budget: sft+full'."""
    text = sentence(flip.text)
    return text if str(flip.to) in text else f"{text.rstrip('.')}: {flip.to}"


def unknown(advice: Advice) -> Section:
    """What nobody stated, and what that means."""
    facts, items = dict(load_facts()), []
    facts |= {fact.answer or fact.id: fact for fact in facts.values()}
    for name in advice.unknown:
        said = name
        if fact := facts.get(name):
            asked = named_with_flag(fact)
            said = asked[:1].upper() + asked[1:] + (f": {fact.unknown}" if fact.unknown else "")
        items.append(said)
    return Section(title="What is not known", blocks=listed(items))


def ordered_warnings(advice: Advice) -> tuple[str, ...]:
    """What may end the run, then what was assumed, the others in their order, and hints.

    Without what stands elsewhere on the page: that the model is a suggestion, what is known of its
    shape, that it may not fit, that a part of the data is used.
    """
    model = advice.situation.model
    note = "" if model is None else model.note
    said = [text for text in dict.fromkeys(advice.warnings) if not SAID_ELSEWHERE.search(text)]

    def place(text: str) -> tuple[int, bool, bool]:
        first = (rank for rank, one in enumerate(FIRST) if one.search(text))
        return next(first, len(FIRST)), not ASSUMED.search(text), bool(HINTS.search(text))

    told = sorted((text for text in said if text != note), key=place)
    return tuple(text for text in told if not any(text in one and text != one for one in told))


def warnings(advice: Advice) -> Section:
    """Every warning."""
    items = (Item(text=sentence(text), tone="warning") for text in ordered_warnings(advice))
    return Section(title="Warnings", blocks=listed(items))
