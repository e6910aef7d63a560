"""Methods in words: one plain phrase each for people who know no machine learning, one line each
for those who do.

The phrases fill the first three sentences of every answer; the meanings fill the legend. Both cover
the closed lists of types.py (a test holds them together), so that no method is ever shown by its
bare name alone.
"""

from __future__ import annotations

from collections.abc import Iterable

from advisor.advice.types import Advice, Candidate
from advisor.ground.units import format_count, format_duration, format_gib, format_usd
from advisor.methods.composition import Composition

# What one stage does, said to a person: {model} is the model or "it", {examples} e.g. "your 5,000
# examples".
OBJECTIVE_PHRASES = {
    "cpt": "let {model} read your documents",
    "sft": "teach {model} with {examples}",
    "rm": "train a second model to tell good answers from bad ones",
    "ppo": "let the first model practise against that judge",
    "dpo": "show {model} pairs of a better and a worse answer",
    "kto": "show {model} answers that people marked good or bad",
    "orpo": "teach {model} the task and the better of two answers in one go",
    "grpo": "let {model} practise on problems whose answers can be checked",
    "rloo": "let {model} practise on problems whose answers can be checked, several tries each",
}
SCHEME_PHRASES = {
    "full": "changing every part of it",
    "lora": "by training a small add-on beside it; the model itself stays as it is",
    "qlora": (
        "by training a small add-on beside a compressed copy of it; the model itself stays as it is"
    ),
    "adapter": "by training small plug-in layers inside it; the model itself stays as it is",
    "prefix": "by training a short lead-in that steers it; the model itself stays as it is",
}
PER_TASK_PHRASES = {
    "full": "changing every part of it, once for each of {tasks}",
    "lora": "by training one small add-on for each of {tasks}; the model itself stays as it is",
    "qlora": (
        "by training one small add-on for each of {tasks} beside a compressed copy of it; the model"
        " itself stays as it is"
    ),
    "adapter": (
        "by training one set of small plug-in layers for each of {tasks}; the model itself stays as"
        " it is"
    ),
    "prefix": "by training one short lead-in for each of {tasks}; the model itself stays as it is",
}
REMEDY_PHRASES = {
    "prompting": "give the model better instructions and a few good examples in each request",
    "rag": "let the model look things up in your documents before it answers",
    "tool_use": "let the model call other software for what it cannot do itself",
    "bigger_model": "take a larger model",
    "smaller_model": "take a smaller model",
    "constrained_decoding": "force the layout of the answers while they are written",
}

# The legend: one line each for readers who want to know what a name stands for.
MEANINGS = {
    "cpt": "continued pre-training: plain text, every token is learned",
    "sft": "supervised fine-tuning: requests with the answer to give; only the answers are learned",
    "rm": "reward model: scores answers after being shown which of two people preferred",
    "ppo": (
        "RLHF by proximal policy optimization: the model answers, a reward model scores, the model"
        " shifts towards the better"
    ),
    "dpo": "direct preference optimization: learns from pairs of answers without a reward model",
    "kto": "learns from single answers marked good or bad",
    "orpo": "supervised and preference learning in one loss",
    "grpo": "reinforcement learning that compares several answers to one request",
    "rloo": "reinforcement learning with the other answers to a request as the yardstick",
    "full": "every weight is trained",
    "lora": "low-rank adaptation: small matrices are trained beside frozen weights",
    "qlora": "LoRA on a base held in 4 bits (nf4)",
    "adapter": "small bottleneck layers are inserted and trained; the rest is frozen",
    "prefix": "trained vectors stand before every layer's keys and values; the rest is frozen",
    "prompting": "instructions and examples in the request; nothing is trained",
    "rag": (
        "retrieval: passages found in your documents are put into the request; nothing is trained"
    ),
    "tool_use": "the model calls functions; nothing is trained",
    "bigger_model": "another model with more parameters; nothing is trained",
    "smaller_model": "another model with fewer parameters; nothing is trained",
    "constrained_decoding": "only tokens that keep to a grammar may be chosen; nothing is trained",
}
VERDICTS = {
    "recommended": "recommended",
    "ranked_lower": "ranked lower",
    "forbidden": "ruled out",
    "too_big": "does not fit",
}


def sentence(text: str) -> str:
    """The text as one sentence: a capital letter first, a full stop last.

    Never changes the case of a name inside.
    """
    text = text.strip()
    if not text:
        return ""
    ended = text[-1] in ".!?" or (
        text[-1] == ")" and ". (" in text
    )  # a remark in brackets after the full stop
    return text[0].upper() + text[1:] + ("" if ended else ".")


def model_name(advice: Advice, otherwise: str = "the model") -> str:
    """The model the answer is about, as given or suggested, or `otherwise` where there is none."""
    situation = advice.situation
    if situation.model is not None:
        return situation.model.id
    if situation.suggestion is not None:
        return situation.suggestion.model
    return str(situation.answers.value("model") or otherwise)


def device_name(advice: Advice) -> str:
    """'one RTX 4090', '2 × A100 80GB', 'this computer's processor', or 'hardware that is not
    known'.
    """
    hardware = advice.situation.hardware
    if hardware.kind == "unknown":
        return "hardware that is not known"
    if not hardware.gpus:
        return "the processor, without a graphics card"
    names = {gpu.name for gpu in hardware.gpus}
    if len(hardware.gpus) == 1:
        return f"one {hardware.gpus[0].name}"
    return (
        f"{len(hardware.gpus)} × {next(iter(names))}"
        if len(names) == 1
        else " and ".join(gpu.name for gpu in hardware.gpus)
    )


def three_sentences(advice: Advice) -> tuple[str, str, str]:
    """What will be done, how long it takes, what it costs: words that need no knowledge of machine
    learning.
    """
    composition = advice.recommendation.composition
    stuck = advice.nothing_fits
    if stuck is not None:
        would = [
            (
                f"a smaller model ({way.change['model']})"
                if "model" in way.change
                else "another card"
                if "gpu" in way.change
                else "more money or time"
            )
            for way in stuck.ways_out
        ]
        way_out = f"; {join_words(would, last='or')} would help" if would else ""
        limits = (
            f"fits {_fits_where(advice)}"
            if stuck.nearest.estimate.fits == "too_big"
            else f"stays within the budget on {device_name(advice)}"
        )
        return (
            sentence(f"nothing that suits the task {limits}{way_out}"),
            "How long it takes depends on the way out that is taken.",
            "So does what it costs.",
        )
    if not composition.chain:
        return (
            sentence(f"no training is needed: {join_words(_remedies(composition))}"),
            "There is nothing to train, so you can try it today.",
            "It costs no training; only the use of the model is paid for.",
        )
    return sentence(_what(advice)), _time(advice), _cost(advice)


def join_words(parts: Iterable[str], last: str = "and") -> str:
    """'a', 'a and b', 'a, b and c'."""
    items = list(parts)
    return (
        items[0]
        if len(items) == 1
        else f"{', '.join(items[:-1])} {last} {items[-1]}"
        if items
        else ""
    )


def example_rows(advice: Advice) -> int | None:
    """How many examples there are, measured or stated."""
    situation = advice.situation
    if situation.tasks:
        return sum(profile.rows for profile in situation.tasks.values())
    return (
        situation.data.rows if situation.data is not None else situation.answers.value("data_rows")
    )


def _remedies(composition: Composition) -> list[str]:
    return [REMEDY_PHRASES.get(remedy, remedy) for remedy in composition.remedies]


def _fits_where(advice: Advice) -> str:
    hardware = advice.situation.hardware
    return "into the memory of this computer" if not hardware.gpus else f"on {device_name(advice)}"


def _what(advice: Advice) -> str:
    composition = advice.recommendation.composition
    rows = example_rows(advice)
    examples = (
        f"your {format_count(rows) if rows >= 1e6 else f'{rows:,}'} examples"
        if rows
        else "examples of requests and good answers"
    )
    steps = []
    for place, objective in enumerate(composition.chain):
        name = "a small text model" if composition.encoder else model_name(advice)
        steps.append(
            OBJECTIVE_PHRASES.get(objective, objective).format(
                model=name if place == 0 else "it", examples=examples
            )
        )
    count = advice.situation.answers.value("n_tasks") or len(advice.situation.tasks) or None
    phrases = PER_TASK_PHRASES if composition.per_task else SCHEME_PHRASES
    scheme = phrases.get(composition.scheme or "", composition.scheme or "").format(
        tasks=f"{count} tasks" if count else "the tasks"
    )
    text = f"{', then '.join(steps)}, {scheme}"
    remedies = _remedies(composition)
    return f"{join_words(remedies)}; and besides, {text}" if remedies else text


def _time(advice: Advice) -> str:
    estimate = advice.recommendation.estimate
    if estimate.duration_s is None:
        return sentence(f"how long it takes cannot be said yet{_because_unknown(advice)}")
    return sentence(
        f"it takes about {format_duration(estimate.duration_s)} on {device_name(advice)}"
    )


def _cost(advice: Advice) -> str:
    estimate, hardware = advice.recommendation.estimate, advice.situation.hardware
    note = f" ({estimate.cost_note})" if estimate.cost_note else ""
    own = hardware.origin == "probed"
    if not estimate.cost_usd:
        if estimate.cost_usd is not None or (own and not hardware.gpus):
            return sentence("it costs nothing but electricity, since it runs on your own computer")
        return sentence(f"what it costs cannot be said yet{_because_unknown(advice)}")
    if own:
        return sentence(
            "on your own machine it costs electricity alone; to rent the same for that long, about"
            f" {format_usd(estimate.cost_usd)}{note}"
        )
    return sentence(f"it costs about {format_usd(estimate.cost_usd)}{note}")


def _because_unknown(advice: Advice) -> str:
    """What is missing for time and cost: the number of examples where that is it, else the
    estimate's own words.
    """
    if example_rows(advice) is None:
        return ": it depends on the number of examples, which is not known"
    if advice.situation.model is None and advice.situation.answers.value("model"):
        return ": the size of the model is not known"
    reasons = dict.fromkeys(
        reason.removeprefix("duration: ") for reason in advice.recommendation.estimate.unknown
    )
    return f": {join_words(reasons)}" if reasons else ""


def memory_words(candidate: Candidate) -> str:
    """'9.1 GiB (8.3 to 10.0)' or an empty string where memory is not known."""
    memory = candidate.estimate.memory
    if memory is None:
        return ""
    return (
        f"{format_gib(memory.peak_bytes)} (between {format_gib(memory.low_bytes)} and"
        f" {format_gib(memory.high_bytes)})"
    )
