"""A reason, a fact and an answer in words."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from advisor.advice.advise import MAY_NOT_FIT, NO_MODEL, PART_OF_DATA
from advisor.advice.certainty import certainty_lines
from advisor.advice.types import Advice, Candidate, KnownFact, Reason
from advisor.ground.units import format_gib
from advisor.methods.composition import Composition
from advisor.methods.remedies import OTHER_TOOL
from advisor.render.blocks import Block, Item, Items, Paragraph, Section, listed
from advisor.render.next_steps import CHAT, NextSteps, is_elsewhere, next_steps, training_steps
from advisor.render.words import is_chosen, memory_words, sentence
from advisor.ruleset.facts import load_facts
from advisor.ruleset.phrases import clauses, joined, named_with_flag, says
from advisor.situation.answers import command_line

NUMBERS = (
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve",
)  # fmt: skip
AMOUNTS = ("data_rows", "data_tokens")
MANY_FILES = 2  # above this their names say nothing more
# Where a fact came from, where the sentence that says it needs no further word.
STATED = ("flag", "answers file", "answered", "asked", "stated", "estimated")


def reason_text(reason: Reason) -> str:
    """The sentence of a reason, with its two numbers where it does not say them itself."""
    if reason.needs is None or _says(reason.text, reason.needs):
        return reason.text
    unit = f" {reason.unit}" if reason.unit else ""
    has = "" if reason.has is None else f", has {reason.has:,.6g}{unit}"
    return f"{reason.text.rstrip('.')} (needs {reason.needs:,.6g}{unit}{has})"


def _says(text: str, number: float) -> bool:
    """True where the text holds the number, as rounded as people write it."""
    return any(
        abs(float(found) - number) <= 0.02 * abs(number)
        for found in re.findall(r"[0-9]+(?:\.[0-9]+)?", text.replace(",", ""))
    )


def reason_origin(reason: Reason) -> str:
    """'because you chose a low budget · rule document/scenario-5 · source: ...' with the parts that
    are known.
    """
    seen = [known for known in reason.facts if not known.origin.startswith("concluded")]
    parts = (
        f"because {clauses(map(known_words, seen))}" if seen else "",
        f"rule {reason.rule}" if reason.rule else "",
        f"source: {_first_of(reason.source)}" if reason.source else "",
    )
    return " · ".join(filter(None, parts))


def _first_of(sources: str) -> str:
    """'TRL guide: LoRA Without Regret, and 2 more': `advise rules ID` lists them all."""
    first, *others = sources.split("; ")
    return f"{first}, and {len(others)} more" if others else first


def known_words(known: KnownFact) -> str:
    """'your examples are plain documents (read from data/)'; what was stated needs no origin."""
    fact = load_facts().get(known.fact)
    text = known.text or (says(fact, known.value) if fact else answer_words(known.value))
    origin = {"probed": "found on this machine"}.get(known.origin, known.origin)
    files = origin.removeprefix("read from ").split(", ")
    if len(files) > MANY_FILES and origin.startswith("read from "):
        # Of amounts the rules look at the largest.
        of_files = "the largest of " if known.fact in AMOUNTS else ""
        origin = f"read from {of_files}your {number_name(len(files))} files"
    return text if known.origin in STATED else f"{text} ({origin})"


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


def capital(text: str) -> str:
    """The text with a capital letter first; names inside keep theirs."""
    return text[:1].upper() + text[1:]


# To be read after what may be wrong: hints, then how a name was understood.
# What may end a run that takes the next command as it stands, the most telling first.
FIRST = tuple(
    re.compile(text)
    for text in (
        r"may mean .*: name one of",
        r": unknown model,|not a model we know by that name",
        r"never run on",
    )
)
HINTS = re.compile(r"^all \d+ GPUs are used|^generating the answers takes")
NOTES = re.compile(r"\bread as \S|(?<!by that name; )\btaken as \S|\bshape guessed|^shape of ")
SAID_ELSEWHERE = re.compile(f"^{NO_MODEL}|^{MAY_NOT_FIT}|{PART_OF_DATA}")


def flips(advice: Advice) -> Section:
    title = "What would change the answer" if advice.fits else "What would fit"
    said = (flip_text(flip.change, flip.to, flip.text) for flip in advice.flips)
    return Section(title=title, blocks=listed(Item(text=text) for text in said))


def flip_text(change: Mapping[str, Any], to: Composition, text: str) -> str:
    """'If you chose a high budget: sft+full', by its own sentence or the answers that change."""
    if not text:
        text = f"if {joined(_changed_words(name, value) for name, value in change.items())}"
    return sentence(text) if str(to) in text else f"{sentence(text).rstrip('.')}: {to}"


def _changed_words(name: str, value: Any) -> str:
    facts = {fact.answer or fact.id: fact for fact in load_facts().values()}
    fact = facts.get(name) or load_facts().get(name)
    return says(fact, value, would=True) if fact else f"{name} were {answer_words(value)}"


def unknown(advice: Advice) -> Section:
    facts = {
        name: fact for fact in load_facts().values() for name in (fact.id, fact.answer or fact.id)
    }
    items = []
    for name in advice.unknown:
        fact = facts.get(name)
        asked = capital(named_with_flag(fact)) if fact else name
        items.append(Item(text=asked + (f": {fact.unknown}" if fact and fact.unknown else "")))
    return Section(title="What is not known", blocks=listed(items))


def told_warnings(advice: Advice) -> tuple[str, ...]:
    """What may end the run first, then the other warnings in their order, then hints, then how
    names were understood.

    Without what stands elsewhere on the page: that the model is a suggestion, what is known of its
    shape, that it may not fit, that a part of the data is used.
    """
    model = advice.situation.model
    note = "" if model is None else model.note
    said = [text for text in dict.fromkeys(advice.warnings) if not SAID_ELSEWHERE.search(text)]

    def place(text: str) -> tuple[bool, bool, int]:
        first = (rank for rank, one in enumerate(FIRST) if one.search(text))
        return bool(NOTES.search(text)), bool(HINTS.search(text)), next(first, len(FIRST))

    told = sorted((text for text in said if text != note), key=place)
    return tuple(text for text in told if not any(text in one and text != one for one in told))


def warnings(advice: Advice) -> Section:
    said = map(sentence, told_warnings(advice))
    return Section(
        title="Warnings", blocks=listed(Item(text=text, tone="warning") for text in said)
    )


def first_steps(
    advice: Advice, *, plan_path: str | None = None, briefly: bool = False
) -> tuple[Item, ...]:
    """The next steps in short, the last with a command of `advise`.

    Args:
        briefly: Of a remedy one way to begin, and no word on how to tell that it is not enough.
    """
    if advice.nothing_fits is not None:
        return _ways_out(advice)
    begin = next_steps(advice)
    briefly = briefly or len(begin) > 1
    items = [item for steps in begin for item in _to_begin(steps, briefly=briefly)]
    items += [_then(steps, briefly=briefly) for steps in begin[:1] if steps.again]
    if plan_path is not None and advice.recommendation.stages:
        return (*items, *_with_plan(advice, plan_path))
    if advice.recommendation.composition.chain:
        steps = [step for step in training_steps(advice) if CHAT not in step.commands]
        trained = (Item(text=step.short or step.text, commands=step.commands) for step in steps)
        return (*items[:1], *trained)
    return tuple(items)


def _ways_out(advice: Advice) -> tuple[Item, ...]:
    assert advice.nothing_fits is not None
    ways = advice.nothing_fits.ways_out
    if not ways:
        text = "No single change that was tried makes it fit. What each method needs:"
        asked = command_line(advice.situation.answers, {}, command="advise")
        return (Item(text=text, commands=(f"{asked} --why",)),)
    found = []
    for way in ways:
        where = "; type there:" if "gpu" in way.change else ":"
        found.append(Item(text=sentence(way.text).rstrip(".") + where, commands=(way.command,)))
    return tuple(found)


def _to_begin(steps: NextSteps, *, briefly: bool) -> Iterator[Item]:
    """How to begin with a remedy: by the first way alone where there is another remedy."""
    if steps.remedy != OTHER_TOOL:
        yield Item(text=sentence(steps.first))
    for way in steps.ways[: 1 if briefly and steps.remedy != OTHER_TOOL else None]:
        named = {"local": "On your own computer", "hosted": "At a provider"}[way.where]
        text = way.text if steps.remedy == OTHER_TOOL else f"{named} ({way.cost}):"
        yield Item(text=text, commands=way.commands)


def _then(steps: NextSteps, *, briefly: bool) -> Item:
    """How to tell that a remedy is not enough, and the lines to come back with."""
    measure = "If that is not enough," if briefly else f"{steps.measure} Then"
    return Item(text=f"{measure} {steps.write}:", commands=steps.again)


def _with_plan(advice: Advice, plan_path: str) -> Iterator[Item]:
    plan = shlex.quote(plan_path)
    if is_elsewhere(advice):
        text = "Pack the plan and its data for the machine with the GPU, where it trains:"
        yield Item(text=text, commands=(f"advise export {plan} --to bundle",))
    else:
        text = "Train; with --dry-run it measures the memory, and trains nothing:"
        yield Item(text=text, commands=(f"advise run {plan}",))


def steps_section(advice: Advice, *, plan_path: str | None = None) -> Section:
    """How to begin: with a remedy its first step, its ways and costs; with a training its lines."""
    items: list[Item] = []
    if advice.nothing_fits is not None:
        items += _ways_out(advice)
    several = len(advice.recommendation.composition.remedies) > 1
    for steps in next_steps(advice):
        label = f"{steps.remedy}: " if several else ""
        items.append(Item(text=f"{label}{steps.first if label else sentence(steps.first)}"))
        for way in steps.ways:
            named = {"local": "Local", "hosted": "Hosted"}[way.where]
            cost = f" ({way.cost})" if way.cost else ""
            text = way.text if steps.remedy == OTHER_TOOL else f"{named}{cost}: {way.text}"
            items.append(Item(text=text, commands=way.commands))
        items += [Item(text=sentence(text)) for text in steps.also]
        items += [Item(text=f"Not enough? {steps.measure}")] if steps.measure else []
        items += [Item(text=f"Then {steps.write}:", commands=steps.again)] if steps.again else []
        if steps.remedy == OTHER_TOOL:
            items += [Item(text=source.title, detail=source.url) for source in steps.sources]
    if plan_path is not None and advice.recommendation.stages:
        items += _with_plan(advice, plan_path)
    elif advice.recommendation.composition.chain:
        items += [Item(text=step.text, commands=step.commands) for step in training_steps(advice)]
    return Section(title="What to do next", blocks=listed(items))


def stuck_section(advice: Advice) -> Section:
    """What comes nearest to fitting, by how much it fails, and which facts are to blame."""
    stuck = advice.nothing_fits
    if stuck is None:
        return Section(title="", blocks=())
    nearest = f"{stuck.nearest.composition}: {limit_words(stuck.nearest)}"
    blocks: list[Block] = [
        Paragraph(text=f"Nothing fits. The nearest is {nearest}.", tone="warning")
    ]
    if stuck.blame:
        blocks.append(
            Paragraph(text="To blame, together:" if len(stuck.blame) > 1 else "To blame:")
        )
        blocks.append(Items(items=tuple(Item(text=reason.text) for reason in stuck.blame)))
    return Section(title="What stands in the way", blocks=tuple(blocks))


def limit_words(candidate: Candidate) -> str:
    needs, limit = memory_words(candidate), candidate.estimate.limit_bytes
    if needs and limit is not None and not candidate.estimate.is_likely:
        over = candidate.estimate.memory.need_bytes - limit if candidate.estimate.memory else 0
        return f"it needs {needs}, {format_gib(over)} more than the {format_gib(limit)} there are"
    return (
        reason_text(candidate.because[0]).rstrip(".")
        if candidate.because
        else "it needs more memory than there is"
    )


def reason_items(reasons: Iterable[Reason]) -> list[Item]:
    """Each reason with where it comes from."""
    return [Item(text=sentence(reason_text(one)), detail=reason_origin(one)) for one in reasons]


def why(advice: Advice) -> Section:
    items = tuple(reason_items(advice.recommendation.because))
    blocks: list[Block] = [Items(items=items)] if items else []
    cited = {reason.rule for reason in advice.recommendation.because}
    others = [rule for rule in advice.decided_by if rule not in cited]
    if others and not is_chosen(advice):
        decided = "Also decided" if items else "Decided"
        blocks.append(Paragraph(text=f"{decided} by: {', '.join(others)}", tone="quiet"))
    if not is_chosen(advice):  # how sure what is recommended is
        blocks += [Paragraph(text=line) for line in certainty_lines(advice.certainty)]
    blocks += [Paragraph(text=line) for line in _guide(advice)]
    about = "Against" if is_chosen(advice) else "Why"
    title = f"{about} {advice.recommendation.composition}" if advice.fits else "Why"
    return Section(title=title, blocks=tuple(blocks))


def _guide(advice: Advice) -> Iterator[str]:
    """What the guide alone says of the same facts, and in which row."""
    guide = advice.guide
    if guide is None:
        return
    if str(guide.composition) == str(advice.recommendation.composition):
        yield f"The guide says the same, in its row “{guide.row}”."
    else:
        yield f"The guide alone says {guide.composition}, in its row “{guide.row}”."
