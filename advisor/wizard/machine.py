"""The machine in words, and the question which GPU will be used."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from advisor.ground.types import Hardware
from advisor.ground.units import format_gib
from advisor.probe.stated import MOST_GPUS, MeantGpu, NamedGpu, meant_gpu
from advisor.wizard.prompts import Option, Ui, ask_typed, ways_out
from advisor.wizard.walk import BACK, DONT_KNOW, Question, Reply, Several

GPU_FACTS = ("gpu", "gpu_memory_gib", "gpus")
MEMORY_HINT = "the task manager, About This Mac or nvidia-smi shows it"


def machine_lines(hardware: Hardware) -> list[str]:
    """The machine in one line or two, and what the probe has to say about it."""
    if hardware.kind == "unknown":
        return ["Nothing is known about the machine."]
    has = "no graphics card (GPU) that can be used for training"
    lines = [f"This machine has {gpu_words(hardware) if hardware.gpus else has}."]
    rest = [f"{hardware.cpu_cores} processor cores"] if hardware.cpu_cores else []
    if hardware.ram_total_bytes:
        rest.append(f"{format_gib(hardware.ram_total_bytes)} of main memory")
    if hardware.disk_free_bytes:
        rest.append(f"{format_gib(hardware.disk_free_bytes)} of free disk")
    return [*lines, *([f"Besides: {', '.join(rest)}."] if rest else []), *hardware.notes]


def gpu_words(hardware: Hardware) -> str:
    """'RTX 4090 with 24.0 GiB (22.5 GiB free)' for each GPU, equal ones counted."""
    words: Counter[str] = Counter()
    for gpu in hardware.gpus:
        total, free_bytes = " (its memory is not reported)", gpu.memory_free_bytes
        if gpu.memory_total_bytes is not None:
            total = f" with {format_gib(gpu.memory_total_bytes)}"
        free = "" if free_bytes is None else f" ({format_gib(free_bytes)} free)"
        words[f"{gpu.name}{total}{free}"] += 1
    return ", ".join(text if count == 1 else f"{count} × {text}" for text, count in words.items())


def ask_gpu(question: Question, ui: Ui, hardware: Hardware) -> Reply:
    """This machine, another GPU by name, none, or not known: name, memory and count."""
    machine = gpu_words(hardware) if hardware.gpus else "no GPU: it trains on the processor"
    slow = "it trains on the processor: slow, for small models"
    options = [
        Option(value="this", label="Use this machine", help=machine),
        Option(value="other", label="Another card", help="in another computer, or rented"),
        Option(value="none", label="No GPU", help=slow),
    ]
    if hardware.kind == "unknown":
        del options[0]
    elif not hardware.gpus:
        del options[2]
    current = {None: None, "none": "none", "unknown": DONT_KNOW}.get(question.current, "other")
    while True:
        chosen = ui.choose(question.message, [*options, *ways_out(question)], current=current)
        if chosen is BACK:
            return BACK
        if chosen != "other":
            return _gpu({"this": None, "none": "none", DONT_KNOW: "unknown"}[chosen])
        if (reply := _ask_name(question, ui)) is not BACK:
            return reply


def _gpu(name: str | None, memory_gib: float | None = None, count: int | None = None) -> Several:
    return Several(values={"gpu": name, "gpu_memory_gib": memory_gib, "gpus": count})


# --------------------------------------------------------------------------- a GPU by its name


def _ask_name(question: Question, ui: Ui) -> Reply:
    """The GPU that a person names; which one it is, if several sizes are sold under the name."""
    asks = "What is the card called, or which Mac is it? (RTX 4090, 2 x A100 80GB, M3 Max 36GB)"
    current = None if question.current in ("none", "unknown") else question.current
    named = replace(question, current=current, can_go_back=True, asks=asks)
    while True:
        meant = ask_typed(named, ui, _read_gpu)
        if meant is BACK:
            return BACK
        if meant is DONT_KNOW:
            return _gpu("unknown")
        found = meant.found or _ask_variant(ui, meant)
        if found is not BACK:
            if meant.found and meant.note:
                ui.say(f"  {meant.note}", tone="quiet")
            return _gpu(found.name, found.memory_gib, meant.count)


def _read_gpu(text: str) -> MeantGpu:
    """Raises ValueError for a name that nothing here knows, without a memory, and for a count that
    is a slip of the keyboard.
    """
    meant = meant_gpu(text)
    if meant.count is not None and not 1 <= meant.count <= MOST_GPUS:
        raise ValueError(f"{meant.count} cards are not possible: 1 to {MOST_GPUS:,}.")
    if meant.name.lower() in ("none", "cpu", "no gpu"):
        return replace(meant, found=NamedGpu(name="none"))
    if meant.found is None and not meant.variants:
        near = f" Did you mean {' or '.join(meant.near)}?" if meant.near else ""
        raise ValueError(
            f"No card called {meant.name} is known here.{near} Another card needs its memory"
            " in GB beside the name."
        )
    return meant


def _ask_variant(ui: Ui, meant: MeantGpu) -> Any:
    smallest = meant.variants[0]
    message = f"How much memory does the {smallest.name} have? ({MEMORY_HINT})"
    if meant.note:
        message = f"{meant.name}: {meant.note}. {message}"
    unsure = f"the smallest is taken: {smallest.label}"
    options = [
        *(Option(value=variant, label=variant.label) for variant in meant.variants),
        Option(value=smallest, label="I don't know", help=unsure),
        Option(value=BACK, label="Back", help="to the name"),
    ]
    return ui.choose(message, options)
