"""The first screen of an answer: what to do, why, what it needs, what could change it, and the next
command last.

It is made for a terminal of 80 by 24: where it would be longer, the least useful entries go. All of
it and the rest stand in the whole answer.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace

from advisor.advice.search.ways import speeds
from advisor.advice.types import Advice, Flip, Reason
from advisor.methods.remedies import OTHER_TOOL
from advisor.render.answer.needs import memory_line, remedy_cost, time_and_cost
from advisor.render.answer.reasons import (
    first_steps,
    flip_text,
    limit_words,
    reason_text,
    told_warnings,
)
from advisor.render.answer.rivals import ROW, rival_lines
from advisor.render.blocks import Item
from advisor.render.words import THREE_LINES, TWO_LINES, is_chosen, sentence, shortened, what_to_do

COLUMNS, LINES = 80, 23  # a terminal of 24 lines shows its prompt as well
LABEL = 9  # columns of the labels at the left
BULLET = 2
WARNING = "Warning"
# How many entries of a label are added while there is room, the most useful first. One of each
# stands there in any case.
ADDED = (
    ("Why", 2),
    ("Why not", 2),
    ("What if", 2),
    (WARNING, 2),
    ("Why", 3),
    ("Why not", 3),
    ("What if", 3),
)
GROWING = {label for label, _ in ADDED}
SPARED = ("What if", "Unsure")  # left to the whole answer where the screen has too few lines
FLAG = re.compile(r" \(--[a-z-]+\)")
WORTH_A_LINE = ("answer", "money", "data")  # changes that a person can make, the easiest first
RULE = re.compile(r"\s*\((?:[a-z0-9-]+/)[a-z0-9-]+\)$")  # a rule's id after a warning


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A label and what stands beside it, one entry or several."""

    label: str
    items: tuple[Item, ...]
    left_out: int = 0  # entries that stand in the whole answer alone


@dataclass(frozen=True, kw_only=True, slots=True)
class First:
    """What a person sees first."""

    answer: str  # one sentence or two, with the composition named
    parts: tuple[Part, ...]
    steps: tuple[Item, ...]  # the last of them is the next command

    @property
    def more_warnings(self) -> int:
        """How many warnings stand in the whole answer alone."""
        return sum(part.left_out for part in self.parts if part.label == WARNING)

    def lines(self, columns: int) -> int:
        """How many lines it takes, commands wrapped by the terminal."""
        count = _wrapped(self.answer, columns) + 2  # a blank line before the parts and the steps
        for part in self.parts:
            bullet = BULLET if len(part.items) > 1 else 0
            count += sum(_wrapped(item.text, columns - LABEL - bullet) for item in part.items)
        for step in self.steps:
            count += _wrapped(step.text, columns)
            count += sum(-(-(len(command) + BULLET) // columns) for command in step.commands)
        return count + 1  # where the rest stands


def first_screen(
    advice: Advice,
    *,
    plan_path: str | None = None,
    columns: int = COLUMNS,
    lines: int = LINES,
    with_steps: bool = True,
) -> First:
    """The first screen. On a terminal of fewer columns than 80 it is longer, on a wider one it says
    more. Without `with_steps` a menu offers the next steps.
    """
    columns = max(columns, COLUMNS)
    most = {part.label: part for part in _parts(advice) if part.items}
    kept = {label: _shorter(part, 1) if label in GROWING else part for label, part in most.items()}
    first = First(
        answer=_answer(advice),
        parts=tuple(kept.values()),
        steps=first_steps(advice, plan_path=plan_path) if with_steps else (),
    )
    if with_steps and first.lines(columns) > lines:
        first = replace(first, steps=first_steps(advice, plan_path=plan_path, briefly=True))
    if lines < LINES and first.lines(columns) > lines:  # a menu offers all steps
        with_command = [place for place, step in enumerate(first.steps) if step.commands]
        first = replace(first, steps=first.steps[: (with_command or [0])[0] + 1])
    for label in SPARED if lines < LINES else ():
        if first.lines(columns) > lines:
            kept.pop(label, None)
            first = replace(first, parts=tuple(kept.values()))
    for label, count in ADDED:
        if label in kept and len(most[label].items) >= count == len(kept[label].items) + 1:
            parts = kept | {label: _shorter(most[label], count)}
            longer = replace(first, parts=tuple(parts.values()))
            if longer.lines(columns) <= lines:
                kept, first = parts, longer
    return first


def _answer(advice: Advice) -> str:
    what = what_to_do(advice)
    if advice.nothing_fits is not None:
        return what
    chosen = ", which you chose" if is_chosen(advice) else ""
    return f"{what.rstrip('.')} ({advice.recommendation.composition}{chosen})."


def _parts(advice: Advice) -> Iterator[Part]:
    composition = advice.recommendation.composition
    outside = composition.remedies == (OTHER_TOOL,)
    if outside and advice.situation.outside is not None:
        yield _part("Where", [sentence(advice.situation.outside.where)])
    if advice.nothing_fits is not None:
        yield _part("Nearest", [_nearest(advice)])
        yield _part(
            "Limits", [sentence(one.text.partition(";")[0]) for one in advice.nothing_fits.blame]
        )
    else:
        yield _part("Against" if is_chosen(advice) else "Why", _reasons(advice))
    if composition.chain and advice.nothing_fits is None:
        yield _part("Model", [_suggested(advice)])
        yield _part("Memory", [memory_line(advice)])
        yield _part("Data", _limited(advice))
        time, cost = time_and_cost(advice)
        yield _part("Time", [time])
        yield _part("GPUs", [speeds(advice.recommendation.ways)])
        yield _part("Cost", [cost])
        learned = advice.recommendation.estimate.learned
        yield _part("Learned", [f"from {learned.sentence}"] if learned is not None else [])
    elif not outside and advice.nothing_fits is None:
        yield _part("Cost", [remedy_cost(advice)])
    if advice.nothing_fits is None and not outside:
        yield _part("Why not", list(rival_lines(advice)))
    if advice.fits and not outside and not is_chosen(advice):  # both are about what is recommended
        yield _part("Unsure", _doubts(advice))
        yield _part("What if", [_what_if(flip) for flip in _useful(advice)])
    yield _part(WARNING, _warnings(advice))


def _limited(advice: Advice) -> list[str]:
    """What all of the data would take, where the sentence says that a part of them is used."""
    parts = dict.fromkeys(stage.part for stage in advice.recommendation.stages if stage.part)
    return [f"All of it would take {part.whole}; your limit is {part.limit}." for part in parts]


def _suggested(advice: Advice) -> str:
    named = advice.situation.suggestion
    return f"{named.model}, a suggestion: --model names another" if named is not None else ""


def _part(label: str, texts: list[str]) -> Part:
    tone = "warning" if label == WARNING else "plain"
    items = tuple(Item(text=text, tone=tone) for text in texts if text)
    return Part(label=label, items=items)


def _shorter(part: Part, kept: int) -> Part:
    """The part with its first entries alone."""
    return replace(part, items=part.items[:kept], left_out=len(part.items) - kept)


def _wrapped(text: str, columns: int) -> int:
    return len(textwrap.wrap(text, columns))


# --------------------------------------------------------------------------- why


def _reasons(advice: Advice) -> list[str]:
    """The reasons that decided, the most telling first.

    What a rule saw of this situation makes its reason telling. The first such rule decided whether
    and from what to train, the last one how; then those that put a rival below.
    """
    reasons = list(advice.recommendation.because)
    ruled_out = {one.rule for other in advice.alternatives for one in other.because}
    telling = [one for one in reasons if _saw_something(one)]
    ends = [*telling[:1], *telling[-1:]]
    others = sorted(
        (one for one in reasons if one not in ends),
        key=lambda one: (_saw_something(one), one.rule in ruled_out),
        reverse=True,
    )
    return list(dict.fromkeys(map(_short_reason, [*ends, *others])))


def _saw_something(reason: Reason) -> bool:
    return any(not known.origin.startswith("concluded") for known in reason.facts)


def _short_reason(reason: Reason) -> str:
    return sentence(ROW.sub(".", reason_text(reason)))


def _nearest(advice: Advice) -> str:
    assert advice.nothing_fits is not None
    nearest = advice.nothing_fits.nearest
    words = limit_words(nearest)
    mark = "" if words.startswith("it ") else ": "
    return sentence(f"{nearest.composition}{mark}{words.removeprefix('it')}", named=True)


# --------------------------------------------------------------------------- what could change it


def _doubts(advice: Advice) -> list[str]:
    certainty = advice.certainty
    # That it may not fit, or fits barely, stands beside the memory.
    doubts = [doubt for doubt in certainty.doubts if not doubt.startswith("it ")]
    said = sentence("; ".join(doubts).replace("`", ""))
    # What each is called on a command line stands in the whole answer.
    return [said if len(said) <= TWO_LINES else FLAG.sub("", said)] if said else []


def _useful(advice: Advice) -> list[Flip]:
    """The changes most worth knowing: each to another answer, the easiest first, one that costs
    money and one that needs other data among them.
    """
    by_effort: dict[str, list[Flip]] = {effort: [] for effort in WORTH_A_LINE}
    seen: set[str] = set()
    for flip in advice.flips:
        if flip.effort in by_effort and str(flip.to) not in seen:
            seen.add(str(flip.to))
            by_effort[flip.effort].append(flip)
    answers, money, data = (by_effort[effort] for effort in WORTH_A_LINE)
    return [*answers[:1], *money[:1], *data[:1], *answers[1:], *data[1:], *money[1:]]


def _what_if(flip: Flip) -> str:
    """'the facts changed every few weeks: rag & sft+lora'."""
    return flip_text(flip.change, flip.to, flip.text).removeprefix("If ").rstrip(".")


def _warnings(advice: Advice) -> list[str]:
    return list(dict.fromkeys(sentence(_short_warning(text)) for text in told_warnings(advice)))


def _short_warning(text: str) -> str:
    """The first sentence without the rule's id, or what it says before a colon if it is long."""
    said = re.split(r"(?<=[a-z)])\. (?=[A-Z])", RULE.sub("", text))[0]
    return shortened(said, ": ", least=THREE_LINES)
