"""How to begin: in short for the first screen, and as the last section of the whole answer."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from advisor.advice.types import Advice
from advisor.methods.remedies import OTHER_TOOL
from advisor.render.blocks import Item, Section, listed
from advisor.render.next_steps import CHAT, NextSteps, is_elsewhere, next_steps, training_steps
from advisor.render.words import sentence
from advisor.situation.answers import command_line


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
        text = "No single change that was tried makes it fit. What each method needs:"
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
        yield Item(text=f"{place} ({way.cost}):", commands=way.commands)


def _with_plan(advice: Advice, plan_path: str) -> Item:
    plan = shlex.quote(plan_path)
    if is_elsewhere(advice):
        text = "Pack the plan and its data for the machine with the GPU, where it trains:"
        return Item(text=text, commands=(f"advise export {plan} --to bundle",))
    text = "Train; with --dry-run it measures the memory, and trains nothing:"
    return Item(text=text, commands=(f"advise run {plan}",))


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
