"""Advice -> Page: the first screen and the sections of the whole answer, in order, as plain values.

The first screen is made for a terminal of 80 by 24: what to do, why, what it needs, what could
change it, and the next command last. If it would be longer, the least useful entries go.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator

from msgspec import Struct
from msgspec.structs import replace

from advisor.advice.search.strategies import speeds
from advisor.advice.types import Advice, Flip
from advisor.advice.why import DISAGREE
from advisor.ground.units import format_gib
from advisor.methods.remedies import OTHER_TOOL
from advisor.render.answer.needs import (
    memory_line,
    needs,
    privacy_lines,
    remedy_cost,
    rent,
    rent_lines,
    time_and_cost,
)
from advisor.render.answer.rivals import GUIDE_ROW, canonical, named_methods, rival_lines, rivals
from advisor.render.answer.why import (
    ASSUMED,
    HINTS,
    answer_words,
    flip_text,
    flips,
    limit_words,
    number_name,
    obstacles,
    ordered_warnings,
    reason_text,
    unknown,
    warnings,
    why,
)
from advisor.render.blocks import Item, Section, listed
from advisor.render.data import kind_words
from advisor.render.next_steps import (
    CHAT,
    NextSteps,
    is_elsewhere,
    next_steps,
    plan_command,
    training_steps,
)
from advisor.render.words import (
    THREE_LINES,
    TWO_LINES,
    device_name,
    example_rows,
    is_chosen,
    meaning_of,
    model_name,
    sentence,
    shortened,
    what_to_do,
)
from advisor.ruleset.facts import load_facts
from advisor.ruleset.phrases import joined, method_words, name_of
from advisor.situation.answers import command_line

# What stands beside the model, the machine and the data, and is not repeated as an answer.
SAID = ("model", "model_params_b", "gpu", "gpus", "gpu_memory_gib", "data_path", "data_kind",
        "data_rows", "data_tokens", "tasks")  # fmt: skip
FEW_FILES = 2  # that are listed one by one


class Page(Struct, frozen=True, kw_only=True):
    """The whole answer, ready to be shown."""

    first: FirstScreen  # what is seen first, and where the terminal shows nothing else
    sections: tuple[Section, ...]


def page_of(advice: Advice, *, plan_path: str | None = None) -> Page:
    """Everything that is to be said about an Advice, in order. Empty sections are left out."""
    if advice.recommendation.composition.remedies == (OTHER_TOOL,):
        # What was compared, and what would change it, is about models that are trained here.
        sections = [why(advice), warnings(advice), based_on(advice), steps_section(advice)]
    else:
        sections = [
            obstacles(advice),
            why(advice),
            needs(advice),
            rent(advice),
            rivals(advice),
            *([] if is_chosen(advice) else [flips(advice)]),
            unknown(advice),
            warnings(advice),
            legend(advice),
            based_on(advice),
            steps_section(advice, plan_path=plan_path),
        ]
    return Page(
        first=first_screen(advice, plan_path=plan_path),
        sections=tuple(section for section in sections if section.blocks),
    )


def legend(advice: Advice) -> Section:
    """The names in the recommendation, one line each."""
    methods = {canonical(method_id): method for method_id, method in advice.methods.items()}
    items, names = [], [*dict.fromkeys(named_methods(advice.recommendation.composition))]
    for name in names:
        method = methods.get(name, {})
        label = str(method.get("name", name))
        label = label if label.lower() == name else f"{label} ({name})"
        items.append(Item(text=f"{label}: {method.get('plain') or meaning_of(name)}"))
    more = f"`advise rules {names[-1]}` says more of it, and so of any other name"
    items.append(Item(text=more, tone="quiet"))
    return Section(title="What the names mean", blocks=listed(items))


def based_on(advice: Advice) -> Section:
    """The model, the machine, the data, what was stated besides, and the rules."""
    situation = advice.situation
    name, suggestion, model = model_name(advice, "not named"), situation.suggestion, situation.model
    detail = ("", "") if model is None else (model.note, model.source)
    if situation.outside is not None and situation.outside.is_model:
        detail = (situation.outside.what, "")
    if suggestion is not None:
        name += " (a suggestion: none was named)"
        detail = (suggestion.because, suggestion.source)
    origin = situation.hardware.origin
    machine = f"{device_name(advice)}{'' if origin == 'unknown' else f' ({origin})'}"
    stated = "; ".join(_stated(advice))
    items: list[str | Item] = [
        Item(text=f"Model: {name}", detail=" · ".join(filter(None, detail))),
        f"Machine: {machine}",
        *_data(advice),
        *([f"You said: {stated}"] if stated else []),
        f"Rules: {', '.join(advice.layers)} (digest {advice.rules_digest})",
    ]
    return Section(title="What this is based on", blocks=listed(items))


def _data(advice: Advice) -> Iterator[str]:
    situation, rows = advice.situation, example_rows(advice)
    files, data = situation.tasks, situation.data
    if data is not None:
        kind = kind_words(data.kind)
        yield f"Data: {data.path}: {data.rows:,} examples, {kind} ({data.format})"
    elif len(files) > FEW_FILES:
        kinds = joined(dict.fromkeys(kind_words(one.kind) for one in files.values()))
        each = ", ".join(f"{name} {profile.rows:,}" for name, profile in files.items())
        yield f"Data: {rows:,} examples in your {number_name(len(files))} files, {kinds}: {each}"
    elif files:
        for name, one in files.items():
            yield f"Data of {name}: {one.path}: {one.rows:,} examples, {kind_words(one.kind)}"
    else:
        kind, tokens = (situation.answers.value(f"data_{name}") for name in ("kind", "tokens"))
        stated = [f"{rows:,} examples"] if rows else []
        stated += [f"{tokens:,} tokens"] if tokens else []
        stated += [kind_words(kind)] if kind else []
        yield f"Data: {', '.join(stated)} (stated)" if stated else "Data: not known"


def _stated(advice: Advice) -> Iterator[str]:
    known, facts = advice.situation.answers.known, load_facts()
    answers = {fact_id: answer for fact_id, answer in known.items() if fact_id not in SAID}
    if set(advice.situation.answers.signals) <= set(answers):
        # The wizard keeps each signal's own answer beside the list.
        answers.pop("signals", None)
    for fact_id, answer in answers.items():
        name = name_of(facts[fact_id]) if fact_id in facts else fact_id  # signals by their own name
        yield f"{name}: {answer_words(answer.value, fact_id)}"


COLUMNS, LINES = 80, 23  # a terminal of 24 lines shows its prompt as well
LABEL, BULLET = 9, 2  # columns of the labels at the left, and of a mark before one of several
WARNING, TAKEN = "Warning", "Assumed"
# How many entries of a label are added while there is room, the most useful first. One of each
# stands there in any case.
ADDED = (
    ("Why not", 2),
    ("Why", 2),
    ("What if", 2),
    (TAKEN, 2),
    (WARNING, 2),
    ("Why", 3),
    ("Why not", 3),
    ("What if", 3),
)
OVER = 2  # lines more than these: what changes what one should do takes them, nothing else
SPARED = ("What if", "Unsure")  # left to the whole answer where the screen has too few lines
STAYS = "; the model itself stays as it is"  # of the answer, where lines are short
FLAG = re.compile(r" \(--[a-z-]+\)")
WORTH_A_LINE = ("answer", "money", "data")  # changes that a person can make, the easiest first
# Of 'You have rows, you chose a low budget, and LoRA fits' without its end.
LAST_CLAUSE = re.compile(r"(?<=[\w)]), (?=you [^,]+$)")
RULE = re.compile(r"\s*\((?:[a-z0-9-]+/)[a-z0-9-]+\)$| \(expected: .*\)(?=;|$)")  # id; times


class FirstScreen(Struct, frozen=True, kw_only=True):
    """What a person sees first."""

    answer: str  # one sentence or two, with the composition named
    labelled: dict[str, tuple[Item, ...]]  # a label, and what stands beside it
    steps: tuple[Item, ...]  # the last of them is the next command
    more_warnings: int = 0  # that stand in the whole answer alone

    def lines(self, columns: int) -> int:
        """How many lines it takes, commands wrapped by the terminal."""

        def wrapped(text: str, columns: int) -> int:
            return len(textwrap.wrap(text, columns))

        count = wrapped(self.answer, columns) + 2  # a blank line before the entries and the steps
        for items in self.labelled.values():
            beside = LABEL + (BULLET if len(items) > 1 else 0)
            count += sum(wrapped(item.text, columns - beside) for item in items)
        for step in self.steps:
            count += wrapped(step.text, columns)
            count += sum(-(-(len(command) + BULLET) // columns) for command in step.commands)
        return count + 1  # where the rest stands


def first_screen(
    advice: Advice,
    *,
    plan_path: str | None = None,
    columns: int = COLUMNS,
    lines: int = LINES,
    with_steps: bool = True,
) -> FirstScreen:
    """The first screen. On a terminal of fewer columns than 80 it is longer, on a wider one it says
    more. Without `with_steps` a menu offers the next steps.
    """
    columns = max(columns, COLUMNS)
    most = {label: items for label, texts in _texts(advice) if (items := _items(label, texts))}
    kept = {label: items[:1] if label in dict(ADDED) else items for label, items in most.items()}
    serious = tuple(one for one in most.get(WARNING, ()) if not HINTS.search(one.text))
    if WARNING in most:  # what changes what one should do is never left to the whole answer
        kept[WARNING] = serious or most[WARNING][:1]
    steps = first_steps(advice, plan_path=plan_path) if with_steps else ()
    first = FirstScreen(answer=_answer(advice), labelled=kept, steps=steps)

    def is_too_long(screen: FirstScreen) -> bool:
        return screen.lines(columns) > lines

    if with_steps and is_too_long(first):
        first = replace(first, steps=first_steps(advice, plan_path=plan_path, briefly=True))
    if lines < LINES and is_too_long(first):  # a menu offers all steps
        with_command = [place for place, step in enumerate(first.steps) if step.commands]
        first = replace(first, steps=first.steps[: (with_command or [0])[0] + 1])
    for label in SPARED if lines < LINES else ():
        if is_too_long(first):
            kept.pop(label, None)
    if lines < LINES and first.lines(columns) > lines + OVER + 1:  # its head would scroll off
        first = replace(first, steps=first.steps[:1])
    if first.lines(columns) > lines + OVER and {TAKEN, WARNING} <= kept.keys():
        kept.pop(TAKEN)  # the whole answer says what was assumed
    if first.lines(columns) > lines + OVER:
        first = replace(first, answer=first.answer.replace(STAYS, ""))
    if first.lines(columns) > lines + OVER:
        kept.pop("What if", None)
        if WARNING in most and not serious:  # a hint
            kept.pop(WARNING)
        kept |= dict(_in_short(advice, kept))
    for label, count in ADDED:
        if label in kept and len(most[label]) >= count == len(kept[label]) + 1:
            longer = replace(first, labelled=kept | {label: most[label][:count]})
            if not is_too_long(longer):
                kept, first = longer.labelled, longer
    hidden = sum(len(most.get(each, ())) - len(kept.get(each, ())) for each in (TAKEN, WARNING))
    return replace(first, more_warnings=hidden)


def _in_short(
    advice: Advice, kept: dict[str, tuple[Item, ...]]
) -> Iterator[tuple[str, tuple[Item, ...]]]:
    """What takes fewer lines, and is whole in the whole answer: who disagrees, other ways."""
    if "Unsure" in kept:
        yield "Unsure", _items("Unsure", [_doubts(advice, briefly=True)])
    if "Rent" in kept:  # two ways, what keeps the limits, and what is paid besides
        ways = len(advice.rent or ())
        yield "Rent", (*kept["Rent"][: min(2, ways)], *kept["Rent"][ways:])
    if "GPUs" in kept:
        yield "GPUs", _items("GPUs", [speeds(advice.recommendation.ways[:1])])


def _items(label: str, texts: Iterable[str]) -> tuple[Item, ...]:
    tone = "warning" if label in (TAKEN, WARNING) else "plain"
    return tuple(Item(text=text, tone=tone) for text in texts if text)


def _answer(advice: Advice) -> str:
    what = what_to_do(advice)
    if advice.nothing_fits is not None:
        return what
    chosen = ", which you chose" if is_chosen(advice) else ""
    composition = advice.recommendation.composition
    return f"{what.rstrip('.')} ({composition}{chosen}).{_of_unknown_gpu(advice)}"


def _of_unknown_gpu(advice: Advice) -> str:
    """' The GPU is not known, so memory decided nothing: this needs 17.6 GiB, QLoRA 7.4 GiB.'"""
    ours, memory = advice.recommendation.composition, advice.recommendation.estimate.memory
    if advice.situation.hardware.kind != "unknown" or memory is None or not ours.chain:
        return ""
    others = (
        f", {method_words('qlora')} {format_gib(one.estimate.memory.need_bytes)}"
        for one in advice.alternatives
        if one.composition.scheme == "qlora"
        and one.composition.chain == ours.chain
        and one.estimate.memory is not None
    )
    need = f"this needs {format_gib(memory.need_bytes)}{next(others, '')}"
    return f" The GPU is not known, so memory decided nothing: {need}."


def _texts(advice: Advice) -> Iterator[tuple[str, Iterable[str]]]:
    ours, situation, stuck = advice.recommendation, advice.situation, advice.nothing_fits
    is_outside = ours.composition.remedies == (OTHER_TOOL,)
    if situation.outside is not None and (is_outside or ours.composition.chain):
        yield "Where", [sentence(situation.outside.where)]
    if stuck is not None:
        words = limit_words(stuck.nearest)
        misses = words.removeprefix("it") if words.startswith("it ") else f": {words}"
        yield "Nearest", [sentence(f"{stuck.nearest.composition}{misses}", named=True)]
        yield "Limits", [sentence(one.text.partition(";")[0]) for one in stuck.blame]
    else:
        yield "Against" if is_chosen(advice) else "Why", telling_reasons(advice)
    if stuck is None and ours.composition.chain:
        suggestion = situation.suggestion
        if suggestion is not None:
            yield "Model", [f"{suggestion.model}, a suggestion: --model names another"]
        if ours.engine is not None:
            from advisor.render.other_engine import engine_words

            yield "Engine", [sentence(engine_words(advice, ours.engine))]
        yield "Memory", [memory_line(advice)]
        parts = dict.fromkeys(stage.part for stage in ours.stages if stage.part)
        whole = "All of it would take {0.whole}; your limit is {0.limit}."
        yield "Data", dict.fromkeys(map(whole.format, parts))
        time, cost = time_and_cost(advice)
        if not advice.rent or ours.estimate.duration_s is not None:
            yield "Time", [time]
            yield "GPUs", [speeds(ours.ways)]
            yield "Cost", [cost]
        yield "Rent", rent_lines(advice)
        learned = ours.estimate.learned
        yield "Learned", [f"from {learned.sentence}"] if learned is not None else []
    elif stuck is None and not is_outside:
        yield "Cost", [remedy_cost(advice)]
    if stuck is None and not is_outside:
        yield "Privacy", map(sentence, privacy_lines(advice))
        yield "Why not", rival_lines(advice)
        if advice.fits and not is_chosen(advice):  # both are about what is recommended
            yield "Unsure", [_doubts(advice)]
            yield "What if", map(_what_if, _useful_flips(advice))
    told = ordered_warnings(advice)
    yield TAKEN, dict.fromkeys(_short_warning(one) for one in told if ASSUMED.search(one))
    others = (_short_warning(one) for one in told if not ASSUMED.search(one))
    yield WARNING, dict.fromkeys(others)


def telling_reasons(advice: Advice) -> Iterable[str]:
    """The reasons that decided, the most telling first."""
    ordered = (
        GUIDE_ROW.sub(".", one.short or reason_text(one)) for one in advice.recommendation.because
    )
    return dict.fromkeys(sentence(LAST_CLAUSE.sub(", and ", _brief(one))) for one in ordered)


def _brief(text: str) -> str:
    """A reason that fits: what is so gives way to why that decides, if that takes no more lines."""
    short = shortened(text, "; ", ": ", ", and ", least=THREE_LINES)
    because = shortened(text.partition(". ")[2], "; ", ": ")
    rows = [len(textwrap.wrap(one, COLUMNS - LABEL)) for one in (because, short)]
    return because if because and ". " not in short and rows[0] <= rows[1] else short


def _doubts(advice: Advice, *, briefly: bool = False) -> str:
    # That it may not fit, or fits barely, stands beside the memory.
    doubts = [doubt for doubt in advice.certainty.doubts if not doubt.startswith("it ")]
    if DISAGREE in doubts:  # about what is told last, since it takes a line or two
        about = "; ".join(one.text for one in advice.certainty.conflicts)
        doubts.remove(DISAGREE)
        say = "" if briefly else f": {shortened(about, '; ', least=TWO_LINES)}"
        doubts.append(f"experts disagree{say}")
    said = sentence("; ".join(doubts).replace("`", ""))
    # What each is called on a command line stands in the whole answer.
    return said if len(said) <= TWO_LINES else FLAG.sub("", said)


def _useful_flips(advice: Advice) -> list[Flip]:
    """The changes most worth knowing, the easiest first; each leads to another answer."""
    by_effort: dict[str, list[Flip]] = {effort: [] for effort in WORTH_A_LINE}
    seen: set[str] = set()
    for flip in advice.flips:
        if flip.effort in by_effort and str(flip.to) not in seen:
            seen.add(str(flip.to))
            by_effort[flip.effort].append(flip)
    answers, money, data = by_effort.values()
    return [*answers[:1], *money[:1], *data[:1], *answers[1:], *data[1:], *money[1:]]


def _what_if(flip: Flip) -> str:
    return flip_text(flip).removeprefix("If ").rstrip(".")


def _short_warning(text: str) -> str:
    """The first sentence without the rule's id, or what it says before a colon if it is long."""
    first = re.split(r"(?<=[a-z)])\. (?=[A-Z])", RULE.sub("", text))[0]
    return sentence(shortened(shortened(first, "; "), ": ", least=THREE_LINES))


# --------------------------------------------------------------------------- how to begin


def first_steps(
    advice: Advice, *, plan_path: str | None = None, briefly: bool = False
) -> tuple[Item, ...]:
    """The next steps in short, the last with a command of `advise`.

    Args:
        briefly: One way to begin with a remedy, and no word on how to tell that it is not enough.
    """
    if advice.nothing_fits is not None:
        return _ways_out(advice)
    remedies = next_steps(advice)
    briefly = briefly or len(remedies) > 1
    items = [item for steps in remedies for item in _to_begin(steps, briefly=briefly)]
    for steps in remedies[:1]:
        if steps.again:
            measure = "If that is not enough," if briefly else f"{steps.measure} Then"
            items.append(Item(text=f"{measure} {steps.write}:", commands=steps.again))
    if plan_path is not None and advice.recommendation.stages:
        return (*items, _with_plan(advice, plan_path))
    if advice.recommendation.composition.chain:
        trained = [
            Item(text=step.short or step.text, commands=step.commands)
            for step in training_steps(advice)
            if CHAT not in step.commands
        ]
        return (*items[:1], *trained)
    return tuple(items)


def _ways_out(advice: Advice) -> tuple[Item, ...]:
    assert advice.nothing_fits is not None
    ways = advice.nothing_fits.ways_out
    if not ways:
        text = "No change makes it fit, alone or with others. What each method needs:"
        asked = command_line(advice.situation.answers, {}, command="advise")
        return (Item(text=text, commands=(f"{asked} --why",)),)
    return tuple(
        Item(
            text=sentence(way.text).rstrip(".") + ("; type there:" if "gpu" in way.change else ":"),
            commands=(way.command,),
        )
        for way in ways
    )


def _to_begin(steps: NextSteps, *, briefly: bool) -> Iterator[Item]:
    """How to begin with a remedy: by the first way alone if there is another remedy."""
    if steps.remedy == OTHER_TOOL:
        yield from (Item(text=way.text, commands=way.commands) for way in steps.ways)
        return
    yield Item(text=sentence(steps.first))
    for way in steps.ways[: 1 if briefly else None]:
        place = {"local": "On your own computer", "hosted": "At a provider"}[way.where]
        text = "" if way.commands else f" {way.text}."
        yield Item(text=f"{place} ({way.cost}):{text}", commands=way.commands)


def _with_plan(advice: Advice, plan_path: str) -> Item:
    text = "Train; with --dry-run it measures the memory, and trains nothing:"
    if is_elsewhere(advice):
        text = "Pack the plan and its data for the machine with the GPU, where it trains:"
    return Item(text=text, commands=(plan_command(advice, plan_path),))


def steps_section(advice: Advice, *, plan_path: str | None = None) -> Section:
    """How to begin: with a remedy its first step, its ways and costs; with a training its lines."""
    composition = advice.recommendation.composition
    items = [*_ways_out(advice)] if advice.nothing_fits is not None else []
    for steps in next_steps(advice):
        is_one_of_several = len(composition.remedies) > 1
        first = f"{steps.remedy}: {steps.first}" if is_one_of_several else sentence(steps.first)
        items.append(Item(text=first))
        for way in steps.ways:
            named = f"{way.where.capitalize()}{f' ({way.cost})' if way.cost else ''}: "
            named = "" if steps.remedy == OTHER_TOOL else named
            items.append(Item(text=f"{named}{way.text}", commands=way.commands))
        items += [Item(text=sentence(text)) for text in steps.also]
        items += [Item(text=f"Not enough? {steps.measure}")] if steps.measure else []
        items += [Item(text=f"Then {steps.write}:", commands=steps.again)] if steps.again else []
        if steps.remedy == OTHER_TOOL:
            items += [Item(text=source.title, detail=source.url) for source in steps.sources]
    if plan_path is not None and advice.recommendation.stages:
        items.append(_with_plan(advice, plan_path))
    elif composition.chain:
        items += [Item(text=step.text, commands=step.commands) for step in training_steps(advice)]
    return Section(title="What to do next", blocks=listed(items))
