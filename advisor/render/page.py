"""Advice -> Page: what is shown, in which order, once for every form it is shown in (terminal,
HTML).

A page is plain values: sections of text, items and tables. The renderers decide about width, colour
and markup only, so that the terminal and the page to forward can never say different things.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from advisor.advice.certainty import certainty_lines
from advisor.advice.explain import RANKS_BELOW, unknown_words
from advisor.advice.types import Advice, Candidate, KnownFact, Reason
from advisor.estimate.types import MemoryEstimate, Moment
from advisor.ground.units import format_duration, format_gib, format_usd, gib, shown_bytes
from advisor.methods.composition import Composition
from advisor.methods.remedies import OTHER_TOOL
from advisor.render.next_steps import next_steps, training_steps
from advisor.render.words import (
    device_name,
    example_rows,
    less_than_planned,
    meaning_of,
    memory_words,
    model_name,
    sentence,
    size_is_unknown,
    three_sentences,
    verdict_words,
    whole_seconds,
    whole_time_words,
)
from advisor.ruleset.facts import load_facts
from advisor.ruleset.phrases import clauses, inside_sentence, joined, name_of, named_with_flag, says

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
# Where a fact came from, where the sentence that says it needs no further word.
STATED = ("flag", "answers file", "answered", "asked", "stated", "estimated")


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """One paragraph."""

    text: str
    tone: str = "plain"  # plain | strong | quiet | warning


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One entry of a list: the statement, and in a quieter voice where it comes from."""

    text: str
    detail: str = ""
    tone: str = "plain"
    commands: tuple[str, ...] = ()  # to paste: never wrapped


@dataclass(frozen=True, kw_only=True, slots=True)
class Items:
    """A list of entries."""

    items: tuple[Item, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of a table; `chosen` rows are part of the recommendation."""

    cells: tuple[str, ...]
    chosen: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table. `fixed` columns keep their width, the others share what is left."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    fixed: tuple[bool, ...]


Block = Text | Items | Table


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """The whole answer, ready to be shown."""

    composition: str
    sentences: tuple[str, str, str]
    in_short: str  # one line for the end of a long page
    sections: tuple[Section, ...] = field(default=())


def page_of(advice: Advice) -> Page:
    """Everything that is to be said about an Advice, in order. Empty sections are left out."""
    if advice.recommendation.composition.remedies == (OTHER_TOOL,):
        # What was compared, and what would change it, is about models that are trained here.
        sections = [_next_steps(advice), _why(advice), _warnings(advice), _based_on(advice)]
    else:
        sections = _all_sections(advice)
    return Page(
        composition=str(advice.recommendation.composition),
        sentences=three_sentences(advice),
        in_short=in_short(advice),
        sections=tuple(section for section in sections if section.blocks),
    )


def _all_sections(advice: Advice) -> list[Section]:
    remedy_alone = not advice.recommendation.composition.chain
    return [
        _nothing_fits(advice),
        *([_next_steps(advice)] if remedy_alone else []),
        _why(advice),
        _guide(advice),
        _needs(advice),
        *([] if remedy_alone else [_next_steps(advice)]),
        _why_not(advice),
        _other_combinations(advice),
        _flips(advice),
        _unknown(advice),
        _warnings(advice),
        _legend(advice),
        _based_on(advice),
    ]


def _next_steps(advice: Advice) -> Section:
    """How to begin with what trains nothing: a first step, a way to do it at home and one at a
    provider, what they cost, and how to tell that it is not enough.
    """
    items: list[Item] = []
    several = len(advice.recommendation.composition.remedies) > 1
    for steps in next_steps(advice):
        label = f"{steps.remedy}: " if several else ""
        if steps.remedy != OTHER_TOOL:  # where to go stands above
            items.append(Item(text=f"{label}{steps.first if label else sentence(steps.first)}"))
        for way in steps.ways:
            named = {"local": "Local", "hosted": "Hosted"}[way.where]
            cost = f" ({way.cost})" if way.cost else ""
            text = f"{named}{cost}: {way.text}" if way.text else "To begin:"
            items.append(Item(text=text, commands=way.commands))
        items += [Item(text=sentence(text)) for text in steps.also]
        items += [Item(text=f"Not enough? {steps.measure}")] if steps.measure else []
        items += [Item(text=f"Then: {steps.helps_then}")] if steps.helps_then else []
        if steps.remedy == OTHER_TOOL:
            items += [Item(text=source.title, detail=source.url) for source in steps.sources]
    if advice.recommendation.composition.chain:
        items += [Item(text=text, commands=lines) for text, lines in training_steps(advice)]
    return Section(title="What to do next", blocks=(Items(items=tuple(items)),) if items else ())


def in_short(advice: Advice) -> str:
    """'In short: sft+qlora · 9.1 of 24.0 GiB · 84 min · $0.60', with what is known."""
    stuck = advice.nothing_fits
    if stuck is not None:
        return (
            f"In short: nothing fits; the nearest is {stuck.nearest.composition}:"
            f" {_limit_words(stuck.nearest)}"
        )
    estimate = advice.recommendation.estimate
    parts = [str(advice.recommendation.composition)]
    if estimate.memory is not None:
        limit = (
            f" of {format_gib(estimate.limit_bytes)}" if estimate.limit_bytes is not None else ""
        )
        least = less_than_planned(estimate)
        needs = "" if least is None else f"at least {format_gib(least)}, as planned "
        sure = ", which may fit" if estimate.fits == "may_fit" else ""
        parts.append(f"{needs}{format_gib(estimate.memory.need_bytes)}{limit}{sure}")
    parts += [format_duration(whole_s)] if (whole_s := whole_seconds(estimate)) is not None else []
    parts += [format_usd(estimate.cost_usd)] if estimate.cost_usd else []
    if size_is_unknown(advice) and advice.recommendation.composition.chain:
        parts.append("whether it fits is not known: say --model-params-b")
    return "In short: " + " · ".join(parts)


# --------------------------------------------------------------------------- why


def _nothing_fits(advice: Advice) -> Section:
    stuck = advice.nothing_fits
    if stuck is None:
        return Section(title="", blocks=())
    blocks: list[Block] = [
        Text(
            text=(
                f"Nothing fits. The nearest is {stuck.nearest.composition}:"
                f" {_limit_words(stuck.nearest)}."
            ),
            tone="warning",
        )
    ]
    if stuck.blame:
        blocks.append(Text(text="To blame, together:" if len(stuck.blame) > 1 else "To blame:"))
        blocks.append(Items(items=tuple(Item(text=reason.text) for reason in stuck.blame)))
    if stuck.ways_out:
        blocks.append(Text(text="Ways out:"))
        blocks.append(
            Items(
                items=tuple(
                    Item(text=sentence(way.text), detail=way.command) for way in stuck.ways_out
                )
            )
        )
    else:
        blocks.append(Text(text="No single change that was tried makes it fit."))
    return Section(title="What stands in the way", blocks=tuple(blocks))


def _limit_words(candidate: Candidate) -> str:
    needs, limit = memory_words(candidate), candidate.estimate.limit_bytes
    if needs and limit is not None and not candidate.estimate.is_likely:
        over = candidate.estimate.memory.need_bytes - limit if candidate.estimate.memory else 0
        return f"it needs {needs}, {format_gib(over)} more than the {format_gib(limit)} there are"
    return (
        reason_text(candidate.because[0]).rstrip(".")
        if candidate.because
        else "it needs more memory than there is"
    )


def _why(advice: Advice) -> Section:
    items = tuple(
        Item(text=sentence(reason_text(reason)), detail=reason_origin(reason))
        for reason in advice.recommendation.because
    )
    blocks: list[Block] = [Items(items=items)] if items else []
    cited = {reason.rule for reason in advice.recommendation.because}
    others = [rule for rule in advice.decided_by if rule not in cited]
    if others:
        blocks.append(
            Text(
                text=f"{'Also decided' if items else 'Decided'} by: {', '.join(others)}",
                tone="quiet",
            )
        )
    blocks += [Text(text=line, tone="quiet") for line in certainty_lines(advice.certainty)]
    return Section(title=f"Why {advice.recommendation.composition}", blocks=tuple(blocks))


def reason_text(reason: Reason) -> str:
    """The sentence of a reason, with its two numbers where the sentence does not carry them
    itself.
    """
    if reason.needs is None or _says(reason.text, reason.needs):
        return reason.text
    unit = f" {reason.unit}" if reason.unit else ""
    numbers = f"needs {reason.needs:,.6g}{unit}" + (
        f", has {reason.has:,.6g}{unit}" if reason.has is not None else ""
    )
    return f"{reason.text.rstrip('.')} ({numbers})"


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
    return " · ".join(
        [
            *([f"because {clauses(map(known_words, seen))}"] if seen else []),
            *([f"rule {reason.rule}"] if reason.rule else []),
            *([f"source: {reason.source}"] if reason.source else []),
        ]
    )


def known_words(known: KnownFact) -> str:
    """'your examples are plain documents (read from data/)'; what a person stated needs no
    origin.
    """
    fact = load_facts().get(known.fact)
    text = known.text or (says(fact, known.value) if fact else answer_words(known.value))
    origin = {"probed": "found on this machine"}.get(known.origin, known.origin)
    return text if known.origin in STATED else f"{text} ({origin})"


def _guide(advice: Advice) -> Section:
    guide = advice.guide
    if guide is None:
        return Section(title="What the guide says", blocks=())
    if str(guide.composition) == str(advice.recommendation.composition):
        return Section(
            title="What the guide says",
            blocks=(Text(text=f"The same: {guide.composition} (the guide's row “{guide.row}”)."),),
        )
    changed = [
        reason.rule
        for reason in advice.recommendation.because
        if reason.rule and not reason.rule.startswith("document/")
    ]
    items = [
        Item(text=f"The guide alone says {guide.composition}", detail=f"its row “{guide.row}”")
    ]
    items.append(
        Item(
            text=f"Here {advice.recommendation.composition}"
            + (", for the reasons above" if changed else ""),
            detail=", ".join(changed or advice.decided_by),
        )
    )
    return Section(title="What the guide says", blocks=(Items(items=tuple(items)),))


# --------------------------------------------------------------------------- what it needs


def _needs(advice: Advice) -> Section:
    recommendation, blocks = advice.recommendation, []
    estimate = recommendation.estimate
    items: list[Item] = []
    if not recommendation.composition.chain:
        return Section(title="What it needs", blocks=())
    if estimate.memory is not None:
        needed = estimate.memory.needed
        terms = term_words(needed)
        items.append(
            Item(
                text=f"Memory: {memory_words(recommendation)}, estimated{_against(advice)}",
                detail=f"{needed.name}: {terms}{_cache_words(estimate.memory)}" if terms else "",
            )
        )
    else:
        items.append(Item(text=f"Memory: not known{_against(advice)}"))
    items += [Item(text=f"Data: {text}") for text in _part_words(recommendation)]
    if estimate.times is not None:
        once = estimate.times.download_s
        items.append(
            Item(
                text=f"Time: {whole_time_words(estimate.times)}, estimated",
                detail=(
                    f"downloading the model, if it is not on this machine yet, takes about"
                    f" {format_duration(once)} more at 250 Mbit/s"
                    if once
                    else ""
                ),
            )
        )
    elif estimate.duration_s is not None:
        whole = format_duration(estimate.duration_s)
        items.append(Item(text=f"Time: {whole} of training, estimated"))
    if estimate.learned is not None:
        items.append(
            Item(
                text=f"Corrected by {estimate.learned.sentence}",
                detail=f"closest run: {estimate.learned.closest} (docs/learning.md)",
            )
        )
    items += [Item(text=text) for text in _padding_words(recommendation)[:1]]
    if estimate.cost_usd == 0:
        items.append(Item(text="Cost: electricity alone", detail=estimate.cost_note))
    elif estimate.cost_usd is not None:
        items.append(
            Item(
                text=f"Cost: {format_usd(estimate.cost_usd)}, estimated", detail=estimate.cost_note
            )
        )
    items += [
        Item(text=f"The estimate is incomplete: {unknown_words(unknown)}")
        for unknown in estimate.unknown
    ]
    blocks.append(Items(items=tuple(items)))
    return Section(title="What it needs", blocks=tuple(blocks))


WORTH_SAYING = 0.15  # of what is computed: padding that is saved
LARGE_TERM = 0.05  # of what is needed: a term that has a name of its own
WORTH_CACHE = 0.02  # of what is needed: blocks that are kept beside it


def _padding_words(candidate: Candidate) -> list[str]:
    """What packing or grouping of the rows saves, where it is worth saying."""
    said = []
    for stage in candidate.stages:
        padding = stage.padding
        if padding is None or padding.at_random - padding.now < WORTH_SAYING:
            continue
        how = (
            "short rows share a sequence"
            if padding.packed
            else "rows of similar length share a batch"
        )
        now = "none" if padding.packed else f"about {padding.now:.0%} of what is computed"
        said.append(f"Padding: {now}, since {how} (about {padding.at_random:.0%} otherwise)")
    return said


def _part_words(candidate: Candidate) -> list[str]:
    """Which part of the data is used, and what all of it would take."""
    return [
        f"{part.text}; all of it would take {part.whole}, and the limit is {part.limit}"
        for part in dict.fromkeys(
            stage.part for stage in candidate.stages if stage.part is not None
        )
    ]


def term_words(moment: Moment) -> str:
    """'weights 15.3 GiB + activations 10.8 GiB + other 0.90 GiB - learned from runs 0.50 GiB'."""
    total = moment.total_bytes
    large = [
        term
        for term in moment.terms
        if term.size_bytes < 0 or term.size_bytes >= LARGE_TERM * total
    ]
    sizes = [(term.name, float(term.size_bytes)) for term in large]
    if len(large) < sum(1 for term in moment.terms if term.size_bytes):
        # As shown, so that the line adds up to the total above it.
        other = shown_bytes(total) - sum(shown_bytes(term.size_bytes) for term in large)
        sizes += [("other", other)] if gib(other) >= 0.01 else []
    return "".join(
        f" {'+' if size > 0 else '-'} {name} {format_gib(abs(size))}" for name, size in sizes
    ).removeprefix(" + ")


def _cache_words(memory: MemoryEstimate) -> str:
    """What a counter shows beyond the need."""
    cached = memory.peak_bytes - memory.need_bytes
    if cached < WORTH_CACHE * memory.need_bytes:
        return ""
    return (
        f"; a GPU monitor may show {format_gib(cached)} more: freed blocks that PyTorch caches,"
        " and returns when memory is short"
    )


def _against(advice: Advice) -> str:
    estimate = advice.recommendation.estimate
    words = {
        "fits": "it fits",
        "tight": "tight: it fits, with little to spare",
        "may_fit": "it may fit: the line with --dry-run below finds out in about a minute",
        "too_big": "it does not fit",
        "unknown": "whether it fits is not known",
    }[estimate.fits]
    if estimate.limit_bytes is None:
        return f"; {words}"
    cards = len(advice.situation.hardware.gpus)
    place = "this computer has" if not cards else "the GPU has" if cards == 1 else "each GPU has"
    hardware = advice.situation.hardware
    kept = next((gpu for gpu in hardware.gpus if gpu.kept_free_bytes), None)
    less = ""
    if kept is not None:
        less = f" ({format_gib(kept.kept_free_bytes)} stays free, because {kept.kept_free_because})"
    elif not cards and hardware.ram_kept_free_bytes:
        less = f" ({format_gib(hardware.ram_kept_free_bytes)} stays free for the system)"
    return f"; {place} {format_gib(estimate.limit_bytes)}{less}: {words}"


# --------------------------------------------------------------------------- why not the others


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


def _why_not(advice: Advice) -> Section:
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


def _other_combinations(advice: Advice) -> Section:
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


# --------------------------------------------------------------------------- what would change it,


def _flips(advice: Advice) -> Section:
    title = "What would change the answer" if advice.fits else "What would fit"
    return Section(
        title=title,
        blocks=(
            (
                Items(
                    items=tuple(
                        Item(text=flip_text(flip.change, flip.to, flip.text))
                        for flip in advice.flips
                    )
                ),
            )
            if advice.flips
            else ()
        ),
    )


def flip_text(change: Mapping[str, Any], to: Composition, text: str) -> str:
    """'If you chose a high budget: sft+full'; without a sentence of its own the answers that
    change.
    """
    if not text:
        text = f"if {joined(_changed_words(name, value) for name, value in change.items())}"
    return sentence(text) if str(to) in text else f"{sentence(text).rstrip('.')}: {to}"


def _changed_words(name: str, value: Any) -> str:
    facts = {fact.answer or fact.id: fact for fact in load_facts().values()}
    fact = facts.get(name) or load_facts().get(name)
    return says(fact, value, would=True) if fact else f"{name} were {answer_words(value)}"


def _unknown(advice: Advice) -> Section:
    facts = {
        name: fact for fact in load_facts().values() for name in (fact.id, fact.answer or fact.id)
    }
    items = []
    for name in advice.unknown:
        fact = facts.get(name)
        asked = _capital(named_with_flag(fact)) if fact else name
        items.append(Item(text=asked + (f": {fact.unknown}" if fact and fact.unknown else "")))
    return Section(title="What is not known", blocks=(Items(items=tuple(items)),) if items else ())


def _warnings(advice: Advice) -> Section:
    items = tuple(Item(text=sentence(warning), tone="warning") for warning in advice.warnings)
    return Section(title="Warnings", blocks=(Items(items=items),) if items else ())


def _legend(advice: Advice) -> Section:
    """Every name used above in one line: the guide's methods in its order, then the rest in the
    order they appear.
    """
    facts = {canonical(method_id): method for method_id, method in advice.methods.items()}
    used = dict.fromkeys(facts)
    for candidate in (advice.recommendation, *advice.alternatives):
        composition = candidate.composition
        used.update(
            dict.fromkeys(
                [
                    *composition.chain,
                    *([composition.scheme] if composition.scheme else []),
                    *composition.remedies,
                ]
            )
        )
    items = []
    for name in used:
        method = facts.get(name, {})
        label = str(method.get("name", name))
        label = label if label.lower() == name else f"{label} ({name})"
        told = [
            f"{label_} {method[key]}"
            for key, label_ in (("ideal", "ideal use case:"), ("data", "data:"))
            if method.get(key)
        ]
        items.append(
            Item(
                text=f"{label}: {method.get('plain') or meaning_of(name)}",
                detail=f"the guide: {'; '.join(told)}" if told else "",
            )
        )
    return Section(title="What the names mean", blocks=(Items(items=tuple(items)),))


def _based_on(advice: Advice) -> Section:
    situation, rows = advice.situation, example_rows(advice)
    suggested = situation.suggestion is not None
    named = model_name(advice, otherwise="not named")
    items = [
        Item(
            text=f"Model: {named}{' (a suggestion: none was named)' if suggested else ''}",
            detail=_model_detail(advice),
        )
    ]
    origin = situation.hardware.origin
    machine = f"Machine: {device_name(advice)}"
    items.append(Item(text=machine if origin == "unknown" else f"{machine} ({origin})"))
    if situation.data is not None:
        items.append(
            Item(
                text=(
                    f"Data: {situation.data.path}: {situation.data.rows:,} examples,"
                    f" {_kind_words(situation.data.kind)} ({situation.data.format})"
                )
            )
        )
    elif not situation.tasks:
        kind = situation.answers.value("data_kind")
        stated = ", ".join(
            [*([f"{rows:,} examples"] if rows else []), *([_kind_words(kind)] if kind else [])]
        )
        items.append(Item(text=f"Data: {f'{stated} (stated)' if stated else 'not known'}"))
    items += [
        Item(
            text=(
                f"Data of {name}: {profile.path}: {profile.rows:,} examples,"
                f" {_kind_words(profile.kind)}"
            )
        )
        for name, profile in situation.tasks.items()
    ]
    stated_answers = {
        fact: answer
        for fact, answer in situation.answers.known.items()
        if fact not in ("data_path", "model")
    }
    if set(situation.answers.signals) <= set(
        stated_answers
    ):  # the wizard keeps each signal's own answer beside the list
        stated_answers.pop("signals", None)
    items += [
        Item(text=f"{_answer_name(fact)}: {answer_words(answer.value, fact)} ({answer.origin})")
        for fact, answer in stated_answers.items()
    ]
    items.append(Item(text=f"Rules: {', '.join(advice.layers)} (digest {advice.rules_digest})"))
    return Section(title="What this is based on", blocks=(Items(items=tuple(items)),))


def _kind_words(kind: Any) -> str:
    return inside_sentence(answer_words(str(kind), "data_kind"))


def _answer_name(fact_id: str) -> str:
    """What an answer is about: 'What the model should do'; a list of signals by its own name."""
    fact = load_facts().get(fact_id)
    return _capital(name_of(fact) if fact else fact_id)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _model_detail(advice: Advice) -> str:
    situation = advice.situation
    parts: Iterable[str] = ()
    if situation.suggestion is not None:
        parts = (situation.suggestion.because, situation.suggestion.source)
    elif situation.model is not None:
        parts = (situation.model.note, situation.model.source)
    return " · ".join(part for part in parts if part)


def answer_words(value: Any, fact_id: str = "") -> str:
    """An answer's value as text: a choice by its label, lists by commas, true and false as yes and
    no.
    """
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
