"""What to do next, as a section."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from advisor.advice.types import Advice
from advisor.methods.remedies import OTHER_TOOL
from advisor.render.blocks import Item, Items, Section
from advisor.render.next_steps import (
    CHAT,
    NextSteps,
    is_elsewhere,
    next_steps,
    training_steps,
)
from advisor.render.words import sentence
from advisor.situation.answers import command_line


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
        return (
            *items[:1],
            *(
                Item(text=step.short or step.text, commands=step.commands)
                for step in training_steps(advice)
                if CHAT not in step.commands
            ),
        )
    return tuple(items)


def _ways_out(advice: Advice) -> tuple[Item, ...]:
    assert advice.nothing_fits is not None
    ways = advice.nothing_fits.ways_out
    if not ways:
        return (
            Item(
                text="No single change that was tried makes it fit. What each method needs:",
                commands=(command_line(advice.situation.answers, {}, command="advise") + " --why",),
            ),
        )
    return tuple(
        Item(
            text=sentence(way.text).rstrip(".") + ("; type there:" if "gpu" in way.change else ":"),
            commands=(way.command,),
        )
        for way in ways
    )


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
    if is_elsewhere(advice):
        yield Item(
            text="Pack the plan and its data for the machine with the GPU, where it trains:",
            commands=(f"advise export {shlex.quote(plan_path)} --to bundle",),
        )
    else:
        yield Item(
            text="Train; with --dry-run it measures the memory, and trains nothing:",
            commands=(f"advise run {shlex.quote(plan_path)}",),
        )


def steps_section(advice: Advice, *, plan_path: str | None = None) -> Section:
    """How to begin: with what trains nothing a first step, a way to do it at home and one at a
    provider, what they cost, and how to tell that it is not enough; with a training its lines.
    """
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
    return Section(title="What to do next", blocks=(Items(items=tuple(items)),) if items else ())
