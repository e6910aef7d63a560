"""The machine in words, and the question which GPU will be used."""

from __future__ import annotations

import re

from advisor.ground.types import Hardware
from advisor.ground.units import format_gib
from advisor.wizard.checks import Check, Checks
from advisor.wizard.prompts import Option, Ui
from advisor.wizard.typed import typed, ways_out
from advisor.wizard.walk import BACK, DONT_KNOW, Question, Reply, Several

CARD_COUNT = re.compile(r"^\s*([0-9]{1,3})\s*[x×]\s+(?=\S)", re.IGNORECASE)
CARD_MEMORY = re.compile(r"[\s,(]+([0-9]+(?:\.[0-9]+)?)\s*(?:gb|gib)\s*\)?\s*$", re.IGNORECASE)
CARD_FACTS = ("gpu", "gpu_memory_gib", "gpus")


def machine_lines(hardware: Hardware) -> list[str]:
    """The machine in one line or two, and what the probe has to say about it."""
    if hardware.kind == "unknown":
        return ["Nothing is known about the machine."]
    lines = [
        (
            f"This machine has {cards_words(hardware)}."
            if hardware.gpus
            else "This machine has no graphics card that can be used for training."
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


def ask_gpu(question: Question, ui: Ui, hardware: Hardware, checks: Checks) -> Reply:
    """This machine, another card by name, none, or not known.

    The answer sets name, memory and count together.
    """
    machine = (
        cards_words(hardware) if hardware.gpus else "no graphics card: it trains on the processor"
    )
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
                label="No graphics card",
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
        named = Question(fact=question.fact, number=question.number, can_go_back=True)
        reply = typed(
            named,
            ui,
            "What is the card called? (such as RTX 4090, or 2 x A100 80GB)",
            lambda text: _card(text, checks.gpu),
        )
        if reply is DONT_KNOW:
            return Several(values={**dict.fromkeys(CARD_FACTS), "gpu": "unknown"})
        if reply is not BACK:
            return reply


def _card(text: str, check: Check) -> Several:
    """'2 x RTX 4090' or 'Mystery 9000 24 GB' as name, memory and count.

    Raises ValueError with the near names.
    """
    count = CARD_COUNT.match(text)
    name = text[count.end() :].strip() if count else text.strip()
    memory = CARD_MEMORY.search(name)
    if wrong := check(name):
        if memory is None:
            raise ValueError(
                f"{wrong} If the name is right, add the memory of the card, such as: {name} 24 GB"
            )
        return Several(
            values={
                "gpu": name[: memory.start()].strip() or name,
                "gpu_memory_gib": float(memory[1]),
                "gpus": int(count[1]) if count else None,
            }
        )
    return Several(
        values={"gpu": name, "gpu_memory_gib": None, "gpus": int(count[1]) if count else None}
    )
