"""What to do next, as a section."""

from __future__ import annotations

from advisor.advice.types import Advice
from advisor.methods.remedies import OTHER_TOOL
from advisor.render.blocks import Item, Items, Section
from advisor.render.next_steps import next_steps, training_steps
from advisor.render.words import sentence


def steps_section(advice: Advice) -> Section:
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
