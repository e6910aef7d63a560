"""The machine in words, and the question which GPU will be used."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from advisor.ground.types import Hardware
from advisor.ground.units import format_gib
from advisor.probe.stated import MOST_GIB, MOST_GPUS, MeantGpu, NamedGpu, meant_gpu
from advisor.ruleset.facts import load_facts
from advisor.wizard.prompts import Option, Ui
from advisor.wizard.typed import number_of, typed, ways_out
from advisor.wizard.walk import BACK, DONT_KNOW, Question, Reply, Several

CARD_FACTS = ("gpu", "gpu_memory_gib", "gpus")


def machine_lines(hardware: Hardware) -> list[str]:
    """The machine in one line or two, and what the probe has to say about it."""
    if hardware.kind == "unknown":
        return ["Nothing is known about the machine."]
    lines = [
        (
            f"This machine has {cards_words(hardware)}."
            if hardware.gpus
            else "This machine has no graphics card (GPU) that can be used for training."
        )
    ]
    rest = [f"{hardware.cpu_cores} processor cores"] if hardware.cpu_cores else []
    if hardware.ram_total_bytes:
        rest.append(f"{format_gib(hardware.ram_total_bytes)} of main memory")
    if hardware.disk_free_bytes:
        rest.append(f"{format_gib(hardware.disk_free_bytes)} of free disk")
    return lines + ([f"Besides: {', '.join(rest)}."] if rest else []) + list(hardware.notes)


def cards_words(hardware: Hardware) -> str:
    """'RTX 4090 with 24.0 GiB (22.5 GiB free)' for each card, equal ones counted."""
    words: dict[str, int] = {}
    for gpu in hardware.gpus:
        total = (
            f" with {format_gib(gpu.memory_total_bytes)}"
            if gpu.memory_total_bytes is not None
            else " (its memory is not reported)"
        )
        free = (
            f" ({format_gib(gpu.memory_free_bytes)} free)"
            if gpu.memory_free_bytes is not None
            else ""
        )
        words[f"{gpu.name}{total}{free}"] = words.get(f"{gpu.name}{total}{free}", 0) + 1
    return ", ".join(text if count == 1 else f"{count} × {text}" for text, count in words.items())


def ask_gpu(question: Question, ui: Ui, hardware: Hardware) -> Reply:
    """This machine, another card by name, none, or not known.

    The answer sets name, memory and count together.
    """
    machine = cards_words(hardware) if hardware.gpus else "no GPU: it trains on the processor"
    options = (
        [Option(value="this", label="Use this machine", help=machine)]
        if hardware.kind != "unknown"
        else []
    )
    options.append(
        Option(value="other", label="Another card", help="in another computer, or rented")
    )
    if hardware.gpus or hardware.kind == "unknown":
        options.append(
            Option(
                value="none",
                label="No GPU",
                help="it trains on the processor: slow, for small models",
            )
        )
    current = {None: None, "none": "none", "unknown": DONT_KNOW}.get(question.current, "other")
    while True:
        chosen = ui.choose(
            f"{question.number}. {question.fact.ask}",
            [*options, *ways_out(question)],
            current=current,
        )
        if chosen is BACK:
            return BACK
        if chosen != "other":
            return Several(
                values={
                    **dict.fromkeys(CARD_FACTS),
                    "gpu": {"this": None, "none": "none", DONT_KNOW: "unknown"}[chosen],
                }
            )
        reply = _ask_name(question, ui)
        if reply is not BACK:
            return reply


# --------------------------------------------------------------------------- a card by its name


def _ask_name(question: Question, ui: Ui) -> Reply:
    """The card that a person names: asked further where its memory is not known by that, or its
    name by nobody.
    """
    while True:
        meant = typed(
            Question(
                fact=question.fact,
                number=question.number,
                current=None if question.current in ("none", "unknown") else question.current,
                can_go_back=True,
            ),
            ui,
            "What is the card called, or which Mac is it? (RTX 4090, 2 x A100 80GB, M3 Max 36GB)",
            _meant,
        )
        if meant is DONT_KNOW:
            return _reply("unknown", None, None)
        if meant is BACK:
            return BACK
        if meant.found is None and not meant.variants:
            meant = _ask_near(ui, meant)
        if isinstance(meant, MeantGpu) and meant.found is None:
            meant = _ask_variant(ui, meant)
        if meant is DONT_KNOW:
            return _reply("unknown", None, None)
        if meant is BACK:
            continue
        if meant.note:
            ui.say(f"  {meant.note}", tone="quiet")
        return _reply(meant.found.name, meant.found.memory_gib, meant.count)


def _meant(text: str) -> MeantGpu:
    """Raises ValueError for a count that is a slip of the keyboard."""
    meant = meant_gpu(text)
    if meant.count is not None and not 1 <= meant.count <= MOST_GPUS:
        raise ValueError(f"{meant.count} cards are not possible: 1 to {MOST_GPUS:,}.")
    if meant.name.lower() in ("none", "cpu", "no gpu"):
        return replace(meant, found=NamedGpu(name="none"))
    return meant


def _reply(name: str, memory_gib: float | None, count: int | None) -> Several:
    return Several(values={"gpu": name, "gpu_memory_gib": memory_gib, "gpus": count})


def _ask_variant(ui: Ui, meant: MeantGpu) -> Any:
    """Which of several cards of one name it is, told apart by memory: MeantGpu, or BACK."""
    names = dict.fromkeys(variant.name for variant in meant.variants)
    smallest = meant.variants[0]
    if len(names) > 1:
        message = f"Which {meant.name} is it?"
        labels = [variant.label for variant in meant.variants]
    else:
        where = (
            "Apple menu, About This Mac"
            if meant.shared and smallest.name.startswith("Apple")
            else "the task manager or nvidia-smi shows it"
        )
        message = f"How much memory does the {smallest.name} have? ({where})"
        labels = [f"{variant.memory_gib or 0:g} GB" for variant in meant.variants]
        if smallest.memory_gib is None:  # one size is sold, and another was typed
            labels = [smallest.label]
    if meant.note:
        message = f"{meant.name}: {meant.note}. {message}"
    options = [
        *(
            Option(value=variant, label=label)
            for variant, label in zip(meant.variants, labels, strict=True)
        ),
        Option(value="size", label="Another size", help="it is asked for next"),
        Option(
            value=DONT_KNOW, label="I don't know", help=f"the smallest is taken: {smallest.label}"
        ),
        Option(value=BACK, label="Back", help="to the name"),
    ]
    chosen = ui.choose(message, options)
    if chosen is BACK:
        return BACK
    if chosen == "size":
        memory_gib = _ask_memory(ui, smallest.name)
        if memory_gib in (BACK, DONT_KNOW):
            return BACK
        chosen = NamedGpu(name=smallest.name, memory_gib=memory_gib)
    return replace(meant, found=smallest if chosen is DONT_KNOW else chosen, note="")


def _ask_near(ui: Ui, meant: MeantGpu) -> Any:
    """What to do with a name that nothing here knows: MeantGpu, BACK or DONT_KNOW."""
    near = " Did you mean one of these?" if meant.near else ""
    options = [
        *(Option(value=meant_gpu(name), label=name) for name in meant.near),
        Option(value="memory", label="No, another card", help="its memory is asked for next"),
        Option(value=BACK, label="Type the name again"),
        Option(value=DONT_KNOW, label="I don't know", help="the card rules nothing out"),
    ]
    chosen = ui.choose(f"No card called {meant.name} is known here.{near}", options)
    if chosen == "memory":
        memory_gib = _ask_memory(ui, meant.name)
        if memory_gib in (BACK, DONT_KNOW):
            return memory_gib
        return replace(
            meant,
            found=NamedGpu(name=meant.name, memory_gib=memory_gib),
            note="its speed and number formats are not known, so the time is not either",
        )
    if chosen in (BACK, DONT_KNOW):
        return chosen
    if chosen.found is None:  # one that is sold with several sizes
        chosen = replace(
            chosen, found=chosen.variants[0], note=f"read as {chosen.variants[0].label}"
        )
    return replace(chosen, count=meant.count)


def _ask_memory(ui: Ui, name: str) -> Any:
    """GiB of one card, or BACK or DONT_KNOW."""
    fact = load_facts()["gpu_memory_gib"]

    def read(text: str) -> int | float:
        number = number_of(re.sub(r"\s*(gib|gb|g)$", "", text.strip().lower()), fact)
        if number > MOST_GIB:
            raise ValueError(f"{text} is not possible: at most {MOST_GIB:,} GB.")
        return number

    return typed(
        Question(fact=fact, number=1, can_go_back=True),
        ui,
        f"How much memory does one {name} have, in GB? (the task manager or nvidia-smi shows it)",
        read,
    )
