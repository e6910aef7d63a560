"""Why not the others: each method of the guide and each other combination, with its number."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from advisor.advice.explain import RANKS_BELOW
from advisor.advice.types import Advice, Candidate
from advisor.ground.units import format_duration, format_gib, format_usd
from advisor.methods.composition import Composition
from advisor.render.answer.reasons import reason_text
from advisor.render.blocks import Item, Items, Row, Section, Table, Text
from advisor.render.words import less_than_planned, verdict_words, whole_seconds
from advisor.ruleset.phrases import inside_sentence

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


def method_parts(composition: Composition) -> set[str]:
    """The names a guide method can match in a composition: update scheme, objectives, remedies."""
    return {
        name for name in (composition.scheme, *composition.chain, *composition.remedies) if name
    }


def canonical(method: str) -> str:
    """The one-word name of a guide method: 'Full Fine-Tuning' and 'full_fine_tuning' are 'full'."""
    name = (
        method.strip()
        .lower()
        .replace("/", " ")
        .replace("-", "_")
        .replace(" ", "_")
        .replace("__", "_")
    )
    return SAME_METHOD.get(name, name)


def nearest_candidate(advice: Advice, method: str) -> Candidate | None:
    """The alternative that holds this method and differs least from the recommendation; the better
    ranked of equals.
    """
    stuck = advice.nothing_fits
    ours = (stuck.nearest if stuck else advice.recommendation).composition
    holding = [
        candidate
        for candidate in advice.alternatives
        if method in method_parts(candidate.composition)
    ]

    def distance(candidate: Candidate) -> int:
        other = candidate.composition
        differences = (
            other.chain != ours.chain,
            other.scheme != ours.scheme,
            other.per_task != ours.per_task,
            other.remedies != ours.remedies,
            other.encoder != ours.encoder,
        )
        return sum(differences)

    return min(holding, key=distance, default=None)


def deciding_reason(candidate: Candidate, told: Collection[str | None] = ()) -> str:
    """The one reason to show where there is room for one: a limit with its numbers before a
    sentence.

    Args:
        told: The rules whose reasons stand above already, and need not be told again.
    """
    if not candidate.because:
        return ""
    reason = next(
        (reason for reason in candidate.because if reason.needs is not None), candidate.because[0]
    )
    text = reason_text(reason)
    if reason.rule in told and text.startswith(RANKS_BELOW):
        return f"{text.partition(':')[0]}, as said above"
    return text


def _stars(method: Mapping[str, Any], key: str) -> str:
    count = method.get(key)
    return (
        "★" * count + "☆" * (MOST_STARS - count)
        if isinstance(count, int) and 0 <= count <= MOST_STARS
        else str(count if count is not None else "")
    )


def why_not(advice: Advice) -> Section:
    rows = []
    for method_id, method in advice.methods.items():
        name, chosen = canonical(method_id), False
        if name in method_parts(advice.recommendation.composition):
            chosen, answer = True, "recommended"
        else:
            candidate = nearest_candidate(advice, name)
            answer = (
                candidate_line(candidate, advice)
                if candidate
                else "nothing with it was considered for this task"
            )
        rows.append(
            Row(
                cells=(
                    str(method.get("name", method_id)),
                    _stars(method, "cost"),
                    _stars(method, "performance"),
                    answer,
                ),
                chosen=chosen,
            )
        )
    if not rows:
        return Section(title="Why not the others", blocks=())
    table = Table(
        columns=("Method", "Cost", "Perf.", "Here"),
        rows=tuple(rows),
        fixed=(False, True, True, False),
    )
    note = Text(
        text=(
            "Stars for cost and performance are the guide's own, out of five; more stars for cost"
            " is dearer."
        ),
        tone="quiet",
    )
    return Section(title="Why not the others", blocks=(table, note))


def candidate_line(candidate: Candidate, advice: Advice) -> str:
    """'sft+full does not fit: full fine-tuning needs 78.1 GiB, this GPU has 24.0 GiB'."""
    reason = deciding_reason(candidate, {one.rule for one in advice.recommendation.because})
    numbers = (
        ""
        if any(part.needs is not None for part in candidate.because)
        else _candidate_numbers(candidate)
    )
    if numbers:
        reason = reason.rstrip(".")
    if reason.startswith(RANKS_BELOW):  # the reason says the verdict with it
        said = f"{candidate.composition} {inside_sentence(reason)}"
    else:
        said = f"{candidate.composition} {verdict_words(candidate)}"
        said += f": {reason}" if reason else ""
    return said + (f" ({numbers})" if numbers else "")


def other_combinations(advice: Advice) -> Section:
    shown = {
        str(candidate.composition)
        for method_id in advice.methods
        if (candidate := nearest_candidate(advice, canonical(method_id)))
    }
    rest = [
        candidate for candidate in advice.alternatives if str(candidate.composition) not in shown
    ]
    items = tuple(Item(text=candidate_line(candidate, advice)) for candidate in rest)
    title = "Other combinations that were compared" if advice.methods else "Why not the others"
    return Section(title=title, blocks=(Items(items=items),) if items else ())


def _candidate_numbers(candidate: Candidate) -> str:
    estimate = candidate.estimate
    parts = []
    if estimate.memory is not None:
        # What it could do with: with more rows at once QLoRA may hold more than LoRA.
        least = less_than_planned(estimate)
        parts.append(
            format_gib(estimate.memory.need_bytes)
            if least is None
            else f"{format_gib(least)} or more"
        )
    parts += [format_duration(whole_s)] if (whole_s := whole_seconds(estimate)) is not None else []
    parts += [format_usd(estimate.cost_usd)] if estimate.cost_usd else []
    return ", ".join(parts)
