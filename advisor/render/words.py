"""Methods in words: one plain phrase each for people who know no machine learning, one line each
for those who do.

The phrases fill the first three sentences of every answer; the meanings fill the legend. No method
is ever shown by its bare name alone.
"""

from __future__ import annotations

import re

from advisor.advice.types import Advice, Candidate, Infeasible
from advisor.advice.why import SHOWN, unknown_words
from advisor.estimate.types import Estimate
from advisor.ground.units import format_count, format_gib
from advisor.methods import methods, remedies, remedy, schemes
from advisor.methods.remedies import OTHER_TOOL
from advisor.ruleset.phrases import is_name, joined

MANY = 1_000_000  # rows from which on their number is rounded
GOOD_ANSWERS = "examples of requests and good answers"
TOKENS_UNKNOWN = "the number of tokens is not known"  # as the estimate says it
TWO_LINES, THREE_LINES = 138, SHOWN  # characters of the first screen, beside its labels
WORTH_SAYING = 40  # characters: what is shorter says too little alone
HARDLY_LESS = 0.98  # of what is planned: a least that is no other number on the page


def meaning_of(name: str) -> str:
    """One line on an objective, a scheme or a remedy, for readers who want to know what it is."""
    if name in remedies():
        return remedy(name).meaning
    known = methods().objectives.get(name) or schemes().get(name)
    return known.meaning if known else "no description"


def sentence(text: str, *, named: bool = False) -> str:
    """The text as one sentence: a capital letter first, a full stop last.

    Never changes the case of a name inside; `named` says that the first word is one.
    """
    text = text.strip()
    if not text:
        return ""
    # A remark in brackets may stand after the full stop.
    ended = text[-1] in ".!?" or (text[-1] == ")" and ". (" in text)
    first = text.split(maxsplit=1)[0]
    named = named or is_name(first)
    return (text[0] if named else text[0].upper()) + text[1:] + ("" if ended else ".")


def shortened(text: str, *marks: str, least: int = TWO_LINES) -> str:
    """The text, or what stands before the last of the marks if it is longer than that.

    What is left is whole: no bracket and no code is cut in two.
    """
    for mark in marks:
        start, found, _ = text.rpartition(mark)
        while found and len(text) > least and len(start) >= WORTH_SAYING:
            if start.count("(") == start.count(")") and start.count("`") % 2 == 0:
                text = start
            start, found, _ = start.rpartition(mark)
    return text


def model_name(advice: Advice, otherwise: str = "the model") -> str:
    """The model the answer is about, as given or suggested, or `otherwise` if there is none."""
    situation = advice.situation
    if situation.model is not None:
        return situation.model.id
    if situation.suggestion is not None:
        return situation.suggestion.model
    return str(situation.answers.value("model") or otherwise)


def device_name(advice: Advice) -> str:
    """'one RTX 4090', '2 × A100 80GB', or 'hardware that is not known'."""
    hardware = advice.situation.hardware
    names = [gpu.name for gpu in hardware.gpus]
    if hardware.kind == "unknown":
        return "hardware that is not known"
    if not names:
        return "the processor, without a GPU"
    if len(set(names)) > 1:
        return " and ".join(names)
    several = f" in {hardware.machines} machines" if hardware.machines > 1 else ""
    return f"one {names[0]}" if len(names) == 1 else f"{len(names)} × {names[0]}{several}"


def what_to_do(advice: Advice) -> str:
    """What will be done, in words that need no knowledge of machine learning."""
    composition, situation = advice.recommendation.composition, advice.situation
    remedies = joined(remedy(name).phrase for name in composition.remedies)
    if advice.nothing_fits is not None:
        return sentence(_nothing_fits(advice, advice.nothing_fits))
    if not composition.chain:
        outside = situation.outside if composition.remedies == (OTHER_TOOL,) else None
        return sentence(outside.what if outside else f"no training is needed: {remedies}")
    training = _training(advice)
    what = f"{remedies}; and {training}" if remedies else training
    part = next((stage.part for stage in advice.recommendation.stages if stage.part), None)
    what += f"; your limit allows {part.text}" if part else ""
    if size_is_unknown(advice):
        name, hardware = model_name(advice), situation.hardware
        trains_on = device_name(advice) if hardware.gpus else "this computer"
        unknown = f"whether {trains_on} can train {name} is not known, since its size is not"
        if hardware.kind == "unknown":
            unknown = f"how large {name} is, is not known"
        tell = "tell it with --model-params-b (7 stands for 7 billion parameters)"
        what = f"{unknown}: {tell}. If it fits, {what}"
    return sentence(what)


def _nothing_fits(advice: Advice, stuck: Infeasible) -> str:
    would = []
    for change in (way.change for way in stuck.ways_out):
        words = {"model": f"a smaller model ({change.get('model')})", "gpu": "another GPU",
                 "budget": "more money or time"}  # fmt: skip
        would.append(joined([one for name, one in words.items() if name in change], "with"))
    way_out = f"; {joined(would, 'or')} would help" if would else ""
    where = f"on {device_name(advice)}"
    limits = f"stays within the budget {where}"
    if stuck.nearest.estimate.fits == "too_big":
        has_gpu = advice.situation.hardware.gpus
        limits = f"fits {where if has_gpu else 'into the memory of this computer'}"
    return f"nothing that suits the task {limits}{way_out}"


def is_chosen(advice: Advice) -> bool:
    """Whether the answer is about what a person chose by hand in place of what is recommended."""
    return advice.recommendation.verdict != "recommended"


def stays_at_home(advice: Advice) -> bool:
    """Whether nothing may go to a provider: privacy comes first, or the person serves the model."""
    serves = advice.facts.get("serve_with") in ("transformers", "vllm", "ollama")
    return advice.facts.get("priority") == "privacy" or serves


def size_is_unknown(advice: Advice) -> bool:
    """Whether a model was named whose size nothing says."""
    return advice.situation.model is None and bool(advice.situation.answers.value("model"))


def example_rows(advice: Advice) -> int | None:
    """How many examples there are, measured or stated."""
    situation = advice.situation
    if situation.tasks:
        return sum(profile.rows for profile in situation.tasks.values())
    stated: int | None = situation.answers.value("data_rows")
    return situation.data.rows if situation.data is not None else stated


def _training(advice: Advice) -> str:
    """The stages and the scheme: 'teach ... with your 400 examples, by training a small add-on'."""
    composition, answers = advice.recommendation.composition, advice.situation.answers
    steps = [_step(advice, place, objective) for place, objective in enumerate(composition.chain)]
    count = answers.value("n_tasks") or len(advice.situation.tasks)
    known = schemes()[composition.scheme or ""]
    scheme = known.phrase_per_task if composition.per_task else known.phrase
    tasks = f"{count} tasks" if count else "the tasks"
    return f"{', then '.join(steps)}, {scheme.format(tasks=tasks)}"


def _step(advice: Advice, place: int, objective: str) -> str:
    composition, situation = advice.recommendation.composition, advice.situation
    known = methods().objectives
    is_scored = any(known[before].scores for before in composition.chain[:place])
    model = "the first model" if is_scored else "it"
    if place == 0:
        is_small = composition.encoder and situation.suggestion is not None
        model = f"{model_name(advice)}{' (a small text model)' if is_small else ''}"
    beside = situation.examples if objective == "sft" else None
    data = beside or next(iter(situation.tasks.values()), situation.data)
    kind = data.kind if data is not None else situation.answers.value("data_kind")
    suits = kind in known[objective].trains_on
    rows = beside.rows if beside else example_rows(advice) if suits or kind is None else None
    count = "" if rows is None else f"{format_count(rows) if rows >= MANY else f'{rows:,}'} "
    if count and data is not None and data.left_out and rows == data.rows:
        count = f"{rows - data.left_out:,} of {count}"
    whose = "your " if suits or count else ""
    examples = f"{whose}{f'{count}examples' if count else GOOD_ANSWERS}"
    if suits and kind == "preference":
        examples = f"the better answers of your {count}pairs"
    judge = ""
    if is_scored:
        judge = "the second one"
    elif advice.facts.get("reward_model_available") is True:
        judge = "your scoring model"
    elif kind == "preference":  # pairs cannot be checked by a program
        judge = "a scoring model"
    phrase = (known[objective].phrase_judged if judge else "") or known[objective].phrase
    your = f"your {count}" if suits else ""
    return phrase.format(model=model, examples=examples, your=your, judge=judge)


def whole_seconds(estimate: Estimate) -> float | None:
    """Seconds of all parts; of the training alone if the others are not known."""
    return estimate.duration_s if estimate.times is None else estimate.times.total_s


def whole_usd(estimate: Estimate) -> float | None:
    """US dollars for `whole_seconds`: a rented machine is paid from first second to last."""
    usd, trained_s, whole_s = estimate.cost_usd, estimate.duration_s, whole_seconds(estimate)
    return usd * whole_s / trained_s if usd and trained_s and whole_s else usd


# What helps only those who type flags and keys: in brackets, or the end of a sentence.
TYPED = re.compile(
    r" \((?:`?--[a-z-]+`?|template: \{[^}]*\})\)"
    r"|[;:,] [^;:,.]*--[a-z](?:[^;.]|\.(?! |$))*(?=[;.]|$)"
)


def without_flags(text: str) -> str:
    """The text for those who answer questions."""
    return TYPED.sub("", text)


def because_unknown(advice: Advice) -> str:
    """What is missing for time and cost: examples, sizes, hardware, or the estimate's own words."""
    if example_rows(advice) is None:
        return ": it depends on the number of examples, which is not known"
    if size_is_unknown(advice):
        return ": the size of the model is not known"
    if advice.situation.hardware.kind == "unknown":
        return ": the hardware is not known (--gpu)"
    reasons = dict.fromkeys(map(unknown_words, advice.recommendation.estimate.unknown))
    if TOKENS_UNKNOWN in reasons:
        return " until your examples are known (--data)"
    return f": {joined(reasons)}" if reasons else ""


def memory_words(candidate: Candidate) -> str:
    """'at least 9.6 GiB with the smallest batch; 14.2 GiB as planned (...)'; '' if not known."""
    memory, smallest = candidate.estimate.memory, "with the smallest batch"
    if memory is None:
        return ""
    need = format_gib(memory.need_bytes)
    band = f"(between {format_gib(memory.need_low_bytes)} and {format_gib(memory.need_high_bytes)})"
    least = less_than_planned(candidate.estimate)
    if least is not None:
        return f"at least {format_gib(least)} {smallest}; {need} as planned {band}"
    return f"{need}{'' if candidate.estimate.least_bytes is None else f' even {smallest}'} {band}"


def less_than_planned(estimate: Estimate) -> int | None:
    """The bytes that the same training could do with, if they are clearly fewer than planned."""
    memory, least = estimate.memory, estimate.least_bytes
    if memory is None or least is None or least > HARDLY_LESS * memory.need_bytes:
        return None
    return least
