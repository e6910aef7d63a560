"""Why not the others: each method of the guide and each other combination, with its number."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from advisor.advice.advise import BY_HAND
from advisor.advice.explain import RANKS_BELOW
from advisor.advice.types import Advice, Candidate, Reason
from advisor.ground.units import format_duration, format_gib, format_usd
from advisor.methods.composition import Composition
from advisor.render.answer.reasons import reason_text
from advisor.render.blocks import Block, Item, Items, PageTable, Paragraph, Section
from advisor.render.words import (
    is_chosen,
    less_than_planned,
    shortened,
    verdict_words,
    whole_seconds,
    whole_usd,
)
from advisor.ruleset.phrases import inside_sentence, method_words

# The guide's spellings of what types.py names by one word.
SAME_METHOD = {
    "full_fine_tuning": "full",
    "full_finetuning": "full",
    "adapter_tuning": "adapter",
    "prefix_tuning": "prefix",
    "rlhf": "ppo",
    "rlhf_ppo": "ppo",
    "rm_rlhf": "ppo",
    "rm_rlhf_ppo": "ppo",
    "reward_model": "rm",
}
MOST_STARS = 5


def named_methods(composition: Composition) -> list[str]:
    """The names in a composition that a guide's method can match: remedies, objectives, scheme."""
    names = (*composition.remedies, *composition.chain, composition.scheme)
    return [name for name in names if name]


def canonical(method: str) -> str:
    """The one-word name of a guide method: 'Full Fine-Tuning' and 'full_fine_tuning' are 'full'."""
    name = re.sub("[- /]", "_", method.strip().lower()).replace("__", "_")
    return SAME_METHOD.get(name, name)


def nearest_candidate(advice: Advice, method: str) -> Candidate | None:
    """The alternative with this method that differs least from the recommendation."""
    stuck = advice.nothing_fits
    ours = (stuck.nearest if stuck else advice.recommendation).composition
    holding = [one for one in advice.alternatives if method in named_methods(one.composition)]

    def distance(candidate: Candidate) -> int:
        parts = ("chain", "scheme", "per_task", "remedies", "encoder")
        return sum(getattr(candidate.composition, part) != getattr(ours, part) for part in parts)

    return min(holding, key=distance, default=None)


ROW = re.compile(r"\. \([^()]*\)$")  # the guide's row in brackets after a sentence
ASKED_FIRST = ("full", "lora", "qlora")  # the schemes that a person asks for, in this order
WOULD = re.compile(r"^[^,;:]{1,50}? would(?= win if)")
HERE = re.compile(r"; here (?=[A-Z])")


def rival_lines(advice: Advice) -> Iterator[str]:
    """Why not each near rival: 'full fine-tuning: needs 66.3 GiB, this GPU has 24.0 GiB'."""
    told = {one.rule for one in advice.recommendation.because}
    said: set[str] = set()
    for candidate in _nearest_rivals(advice):
        line = _rival_line(candidate, advice, told)
        why = line.partition(": ")[2]
        if line and why not in said:
            said.add(why)
            yield line


def _nearest_rivals(advice: Advice) -> list[Candidate]:
    """Other schemes of the same training first, then the guide's own; what is ruled out last."""
    ours = advice.recommendation.composition
    guide = str(advice.guide.composition) if advice.guide is not None else ""

    def distance(candidate: Candidate) -> tuple[int, int]:
        if is_chosen(advice) and candidate is advice.alternatives[0]:
            return -1, 0  # what the rules recommend
        other = candidate.composition
        place = ASKED_FIRST.index(other.scheme) if other.scheme in ASKED_FIRST else 3
        if ours.chain and _differs_by_scheme(other, ours):
            return (0 if place < 3 else 2), place
        return (1 if str(other) == guide else 4 if candidate.verdict == "forbidden" else 3), 0

    # Where nothing is trained, why not to train is why that remedy: rivals are the other remedies.
    others = [one for one in advice.alternatives if ours.chain or not one.composition.chain]
    return sorted(others, key=distance)


def _differs_by_scheme(one: Composition, other: Composition) -> bool:
    return (one.chain, one.per_task, one.remedies, one.encoder) == (
        other.chain, other.per_task, other.remedies, other.encoder,
    )  # fmt: skip


def _rival_line(candidate: Candidate, advice: Advice, told: Collection[str | None]) -> str:
    """One line, or nothing where no rule says more than what stands above."""
    ours, other = advice.recommendation.composition, candidate.composition
    same = bool(ours.chain) and _differs_by_scheme(other, ours)
    name = method_words(str(other.scheme)) if same else str(other)
    if is_chosen(advice) and candidate is advice.alternatives[0]:
        return f"{other}: the rules recommend it here"
    reasons = [one for one in candidate.because if one.rule or one.needs is not None]
    reason = _most_telling(reasons)
    if reason is None:
        return ""
    text = reason_text(reason).rstrip(".")
    # As planned, like the numbers above: the least that it could do with would look like a gain.
    numbers = _candidate_numbers(candidate, planned=True)
    if text.startswith(RANKS_BELOW):
        if reason.rule in told:
            text = text.partition(":")[0]
            if not ours.chain or not numbers:
                return ""
            text = f"{text}; it would take {numbers}"
        text = inside_sentence(text)
    elif reason.rule in told:
        return ""
    elif WOULD.search(text):
        text = WOULD.sub("would", text)
    else:
        text = text.removeprefix(f"{method_words(str(other.scheme))} ")
        if not same and candidate.verdict != "ranked_lower":
            text = f"{_is(candidate)}: {inside_sentence(text)}"
        text = inside_sentence(text)
    return shortened(f"{name}: {HERE.sub('; ', ROW.sub('', text))}", "; ", " (")


def _stars(method: Mapping[str, Any], key: str) -> str:
    count = method.get(key)
    if isinstance(count, int) and 0 <= count <= MOST_STARS:
        return "★" * count + "☆" * (MOST_STARS - count)
    return "" if count is None else str(count)


def rivals(advice: Advice) -> Section:
    """Why not the guide's other methods, nor the other combinations; no reason is told twice."""
    told = {reason_text(reason) for reason in advice.recommendation.because}
    table = _of_guide(advice, told)
    blocks = (*table[:1], *_other_combinations(advice, told), *table[1:])
    return Section(title="Why not the others", blocks=blocks)


def _of_guide(advice: Advice, told: set[str]) -> tuple[Block, ...]:
    rows: list[tuple[str, ...]] = []
    chosen = []
    for method_id, method in advice.methods.items():
        name = canonical(method_id)
        if name in named_methods(advice.recommendation.composition):
            chosen.append(len(rows))
            answer = "chosen by you" if is_chosen(advice) else "recommended"
        else:
            candidate = nearest_candidate(advice, name)
            none = "nothing with it was considered for this task"
            answer = candidate_line(candidate, told) if candidate else none
        stars = (_stars(method, key) for key in ("cost", "performance"))
        cells = (str(method.get("name", method_id)), *stars, answer)
        rows.append(cells)
    if not rows:
        return ()
    note = "Stars are the guide's own, out of five; more for cost is dearer."
    table = PageTable(
        columns=("Method", "cost", "performance", "Here"),
        rows=tuple(rows),
        fixed=("cost", "performance"),
        chosen=tuple(chosen),
    )
    return table, Paragraph(text=note, tone="quiet")


def candidate_line(candidate: Candidate, told: set[str]) -> str:
    """'sft+full does not fit: ... needs 78.1 GiB', which is added to what is `told`."""
    return f"{candidate.composition} {_why_lower(candidate, told)}{_in_brackets(candidate)}"


def _why_lower(candidate: Candidate, told: set[str]) -> str:
    """'ranks below LoRA: ...', 'does not fit: ...', or that it was said above."""
    reason = _most_telling(candidate.because)
    if reason is None:
        return _is(candidate)
    if reason.text == BY_HAND:
        return BY_HAND
    text = reason_text(reason)
    begins, _, because = text.partition(":")
    if WOULD.search(text):
        return WOULD.sub("would", text).rstrip(".")
    ranks = text.startswith(RANKS_BELOW)
    verdict = inside_sentence(begins) if ranks else _is(candidate)
    kernel = _kernel(because if ranks else text)
    if any(kernel in _kernel(one) for one in told):
        return f"{verdict}, as said above"
    told.add(text)
    said = inside_sentence(text) if ranks else f"{verdict}: {inside_sentence(text)}"
    return ROW.sub("", said).rstrip(".")


def _most_telling(reasons: Sequence[Reason]) -> Reason | None:
    """The first reason with numbers, or the first of all."""
    return next((one for one in reasons if one.needs is not None), next(iter(reasons), None))


def _is(candidate: Candidate) -> str:
    """The verdict with its verb: 'is ruled out', 'ranks lower', 'does not fit'."""
    verbs = {"forbidden": "is ruled out", "ranked_lower": "ranks lower"}
    return verbs.get(candidate.verdict) or verdict_words(candidate)


def _kernel(text: str) -> str:
    """What a reason says, without the remarks in brackets and the case of its first letter."""
    return re.sub(r"\s*\([^()]*\)", "", text).strip(" .").lower()


def _in_brackets(candidate: Candidate) -> str:
    """' (14.2 GiB, 60 min, $0.50)', where the reason has no numbers of its own."""
    if any(reason.needs is not None for reason in candidate.because):
        return ""
    numbers = _candidate_numbers(candidate)
    return f" ({numbers})" if numbers else ""


def _other_combinations(advice: Advice, told: set[str]) -> tuple[Block, ...]:
    near = (nearest_candidate(advice, canonical(method_id)) for method_id in advice.methods)
    shown = {str(one.composition) for one in near if one is not None}
    rest = [one for one in advice.alternatives if str(one.composition) not in shown]
    items = tuple(Item(text=candidate_line(candidate, told)) for candidate in rest)
    return (Items(items=items),) if items else ()


def _candidate_numbers(candidate: Candidate, *, planned: bool = False) -> str:
    """Memory, time and cost; `planned`: the memory as planned, never the least it could do with."""
    estimate = candidate.estimate
    parts = []
    if estimate.memory is not None:
        # What it could do with: with more rows at once QLoRA may hold more than LoRA.
        least = None if planned else less_than_planned(estimate)
        more = "" if least is None else " or more"
        parts.append(f"{format_gib(least or estimate.memory.need_bytes)}{more}")
    parts += [format_duration(whole_s)] if (whole_s := whole_seconds(estimate)) is not None else []
    parts += [format_usd(usd)] if (usd := whole_usd(estimate)) else []
    return ", ".join(parts)
