"""Why not the others: each method of the guide and each other combination, with its number."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from advisor.advice.advise import ASKED_BESIDE, BY_HAND
from advisor.advice.types import Advice, Candidate, Reason
from advisor.advice.why import PAIR, RANKS_BELOW
from advisor.ground.units import format_duration, format_gib, format_usd
from advisor.methods.composition import Composition
from advisor.render.answer.why import reason_text
from advisor.render.blocks import PageTable, Paragraph, Section, listed
from advisor.render.words import (
    TWO_LINES,
    is_chosen,
    less_than_planned,
    shortened,
    whole_seconds,
    whole_usd,
)
from advisor.ruleset.phrases import inside_sentence, method_words

SAME_METHOD = {"rlhf": "ppo"}  # the guide's name -> its objective
MOST_STARS = 5
GUIDE_ROW = re.compile(r"\. \([^()]*\)$")  # the guide's row in brackets after a sentence
ASKED_FIRST = ("full", "lora", "qlora")  # the schemes that a person asks for, in this order
NEXT = {"qlora": ("lora", "full", "qlora"), "full": ("lora", "qlora", "full")}
WOULD = re.compile(r"^[^;:]{1,99}? would(?= win if)")
HAS = re.compile(r"\b(?:(this GPU)|each of these \d+ GPUs) has(?= [\d.,]+ GiB)")
HERE = re.compile(r"; here (?=[A-Z])")
VERBS = {"forbidden": "is ruled out", "ranked_lower": "ranks lower"}


def named_methods(composition: Composition) -> list[str]:
    """The names in a composition that a guide's method can match: remedies, objectives, scheme."""
    names = (*composition.remedies, *composition.chain, composition.scheme)
    return [name for name in names if name]


def canonical(method: str) -> str:
    """The objective, scheme or remedy that a method of the guide is."""
    return SAME_METHOD.get(method, method)


def _differences(one: Composition, other: Composition) -> list[str]:
    parts = ("chain", "scheme", "per_task", "remedies", "encoder")
    return [part for part in parts if getattr(one, part) != getattr(other, part)]


def _same_training(advice: Advice, other: Composition) -> bool:
    """Whether it is the training of the recommendation with at most another scheme."""
    ours = advice.recommendation.composition
    return bool(ours.chain) and _differences(ours, other) in ([], ["scheme"])


def _most_telling(reasons: Sequence[Reason]) -> Reason | None:
    """The first reason with numbers, or the first of all."""
    return next((one for one in reasons if one.needs is not None), next(iter(reasons), None))


def _verdict(candidate: Candidate) -> str:
    return VERBS.get(candidate.verdict) or candidate.verdict_words


# --------------------------------------------------------------------------- the first screen


def rival_lines(advice: Advice) -> Iterator[str]:
    """Why not each near rival: 'full fine-tuning: needs 66.3 GiB, this GPU has 24.0 GiB'."""
    told = {one.rule for one in advice.recommendation.because}
    reasons_said: set[str] = set()
    for candidate in _nearest_rivals(advice):
        line = _rival_line(candidate, advice, told)
        why = line.partition(": ")[2]
        if line and why not in reasons_said:
            reasons_said.add(why)
            yield line


def _nearest_rivals(advice: Advice) -> list[Candidate]:
    """Other schemes of the same training first, then the guide's own; what is ruled out last."""
    guide = str(advice.guide.composition) if advice.guide is not None else ""
    ours = advice.recommendation.composition
    order = NEXT.get(str(ours.scheme), ASKED_FIRST)  # the next one to it first

    def distance(candidate: Candidate) -> tuple[int, int]:
        other = candidate.composition
        if is_chosen(advice) and candidate is advice.alternatives[0]:
            return -1, 0  # what the rules recommend
        if ">".join(other.chain) in ASKED_BESIDE.get(">".join(ours.chain), ()):
            return 0, -1
        if _same_training(advice, other):
            return (0, order.index(str(other.scheme))) if other.scheme in ASKED_FIRST else (2, 0)
        return (1 if str(other) == guide else 4 if candidate.verdict == "forbidden" else 3), 0

    # If nothing is trained, why not to train is why that remedy: rivals are the other remedies.
    trains = advice.recommendation.composition.chain
    others = [one for one in advice.alternatives if trains or not one.composition.chain]
    return sorted(others, key=distance)


def _rival_line(candidate: Candidate, advice: Advice, told: Collection[str | None]) -> str:
    """One line, or nothing if no rule says more than what stands above."""
    other = candidate.composition
    if is_chosen(advice) and candidate is advice.alternatives[0]:
        return f"{other}: the rules recommend it here"
    reason = _most_telling([one for one in candidate.because if one.rule or one.needs is not None])
    if reason is None:
        return ""
    text, is_same = reason_text(reason).rstrip("."), _same_training(advice, other)
    scheme = method_words(str(other.scheme))
    text, _, pair = text.partition(f" {PAIR}")
    pair = f"needs {pair}" if pair else ""
    if reason.rule in told:
        text = ""
    elif text.startswith(RANKS_BELOW):
        text = inside_sentence(text)
    elif WOULD.search(text):
        text = WOULD.sub("would", text)
    else:
        text = text.removeprefix(f"{scheme} ")
        if not is_same and candidate.verdict != "ranked_lower":
            verdict = _verdict(candidate).removeprefix("is ")
            it = "it " if text.startswith("needs ") else ""
            text = f"{verdict}, since {it}{inside_sentence(text)}"
        text = inside_sentence(text)
    is_cut = " is not known" in text and len(f"{scheme}: {pair}; {text}") > TWO_LINES
    is_smaller = _needs_less(candidate, advice.recommendation) and "would" not in text
    if is_cut or is_smaller:  # what decided is not the numbers
        pair = ""
    # One line: the memory's own says what there is.
    text = HAS.sub(lambda found: "the GPU has" if found[1] else "each has", text)
    name, text = (
        scheme if is_same else str(other),
        "; ".join(filter(None, (pair, text.rstrip(".")))),
    )
    if not text:
        return ""
    return shortened(f"{name}: {HERE.sub('; ', GUIDE_ROW.sub('', text))}", "; ", " (")


def _needs_less(one: Candidate, other: Candidate) -> bool:
    memory, ours = one.estimate.memory, other.estimate.memory
    return bool(memory and ours and memory.need_bytes < ours.need_bytes)


# --------------------------------------------------------------------------- the whole answer


def rivals(advice: Advice) -> Section:
    """Why not the guide's other methods, nor the other combinations; no reason is told twice."""
    told = {reason_text(reason) for reason in advice.recommendation.because}
    table = _guide_table(advice, told)
    near = (_nearest_candidate(advice, canonical(method_id)) for method_id in advice.methods)
    shown = {str(one.composition) for one in near if one is not None}
    others = listed(
        _candidate_line(candidate, told)
        for candidate in advice.alternatives
        if str(candidate.composition) not in shown
    )
    return Section(title="Why not the others", blocks=[*table[:1], *others, *table[1:]])


def _guide_table(advice: Advice, told: set[str]) -> list[PageTable | Paragraph]:
    rows: list[tuple[str, ...]] = []
    chosen = []
    for method_id, method in advice.methods.items():
        name = canonical(method_id)
        candidate = _nearest_candidate(advice, name)
        if name in named_methods(advice.recommendation.composition):
            chosen.append(len(rows))
            answer = "chosen by you" if is_chosen(advice) else "recommended"
        elif candidate is not None:
            answer = _candidate_line(candidate, told)
        else:
            answer = "nothing with it was considered for this task"
        stars = (_stars(method, key) for key in ("cost", "performance"))
        rows.append((str(method.get("name", method_id)), *stars, answer))
    table = PageTable(
        columns=("Method", "cost", "performance", "Here"),
        rows=tuple(rows),
        fixed=("cost", "performance"),
        chosen=tuple(chosen),
    )
    note = "Stars are the guide's own, out of five; more for cost is dearer."
    return [table, Paragraph(text=note, tone="quiet")] if rows else []


def _stars(method: Mapping[str, Any], key: str) -> str:
    count = method.get(key, 0)
    return "★" * count + "☆" * (MOST_STARS - count) if count else ""


def _nearest_candidate(advice: Advice, method: str) -> Candidate | None:
    """The alternative with this method that differs least from the recommendation."""
    stuck = advice.nothing_fits
    ours = (stuck.nearest if stuck else advice.recommendation).composition
    holding = [one for one in advice.alternatives if method in named_methods(one.composition)]
    return min(holding, key=lambda one: len(_differences(ours, one.composition)), default=None)


def _candidate_line(candidate: Candidate, told: set[str]) -> str:
    """'sft+full does not fit: ... needs 78.1 GiB', which is added to what is `told`."""
    has_numbers = any(reason.needs is not None for reason in candidate.because)
    numbers = "" if has_numbers else _numbers(candidate)
    why = _why_lower(candidate, told)
    return f"{candidate.composition} {why}{f' ({numbers})' if numbers else ''}"


def _why_lower(candidate: Candidate, told: set[str]) -> str:
    """'ranks below LoRA: ...', 'does not fit: ...', or that it was said above."""
    reason = _most_telling(candidate.because)
    if reason is None:
        return _verdict(candidate)
    if reason.text == BY_HAND:
        return BY_HAND
    text = reason_text(reason).partition(f" {PAIR}")[0]  # all numbers stand behind it
    if WOULD.search(text):
        return WOULD.sub("would", text).rstrip(".")
    verdict, because = _verdict(candidate), text
    said = f"{verdict}: {inside_sentence(text)}"
    if text.startswith(RANKS_BELOW):
        first, _, because = text.partition(":")
        verdict, said = inside_sentence(first), inside_sentence(text)
    if any(_kernel(because) in _kernel(one) for one in told):
        return f"{verdict}, as said above"
    told.add(text)
    return GUIDE_ROW.sub("", said).rstrip(".")


def _kernel(text: str) -> str:
    """What a reason says, without the remarks in brackets and the case of its first letter."""
    return re.sub(r"\s*\([^()]*\)", "", text).strip(" .").lower()


def _numbers(candidate: Candidate) -> str:
    """The memory in the form that needs least, time and cost."""
    estimate, parts = candidate.estimate, []
    if estimate.memory is not None:
        # What it could do with: with more rows at once QLoRA may hold more than LoRA.
        need, lean = estimate.memory.need_bytes, estimate.leanest
        least = lean.need_bytes if lean else less_than_planned(estimate)
        more = " or more" if least is not None and least < need else ""
        optimizer = f" with {lean.optimizer}" if lean else ""
        parts.append(f"{format_gib(least or need)}{more}{optimizer}")
    if (whole_s := whole_seconds(estimate)) is not None:
        parts.append(format_duration(whole_s))
    if usd := whole_usd(estimate):
        parts.append(format_usd(usd))
    return ", ".join(parts)
