"""What can be done with a result: offered on a terminal after a training, until it is left."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from advisor.ground.errors import AdviseError, Stopped
from advisor.ground.files import PLAN_FILE, folder_name, shown_path
from advisor.plan.entries import entries
from advisor.plan.read import read_plan
from advisor.record.next_step import gains_nothing, longer_setting, longer_words
from advisor.record.run import REPORT, FinishedRun
from advisor.render.result_commands import forms_of
from advisor.render.run import next_lines, verdict_of
from advisor.wizard.prompts import Option, Ui

# Takes the words after `advise run` and shows what came of it; None: nothing to go on with.
Train = Callable[[Sequence[str]], FinishedRun | None]
Call = Callable[..., None]  # runs another command: its name, its arguments
TRAIN = "advise run "
LABELS = {"run_whole": "Train the whole plan", "train_longer": "Train longer"}
MODELFILE = Path("export", "ollama", "Modelfile")  # in a run folder


def after_run(run: FinishedRun, ui: Ui, *, train: Train, call: Call) -> None:
    """Offer what can be done with a finished run, and do it, until the person leaves.

    Raises Stopped if a further training was interrupted: its words name the command that resumes.
    """
    while True:
        try:
            chosen = ui.choose("What now?", list(result_options(run)))
        except (KeyboardInterrupt, EOFError):
            chosen = "quit"
        try:
            if chosen == "quit":
                break
            if chosen.startswith(TRAIN):
                run = train(shlex.split(chosen.removeprefix(TRAIN))) or run
            elif chosen == "talk":
                call("chat", str(run.folder))
            elif chosen == "report":
                open_report(run, ui)
            else:
                into_ollama(run, ui, call)
        except Stopped:
            raise
        except AdviseError as error:
            ui.say(error.text(), tone="warning")
        except KeyboardInterrupt:  # of an export
            ui.say("Stopped.")
    for line in next_lines(run.record, run.folder):
        ui.say_line(line)


def result_options(run: FinishedRun) -> Iterator[Option]:
    """The choices for a result; the whole run comes first after a trial."""
    record, stage = run.record, run.record.stages[-1]
    training = further_training(run)
    if record.max_steps and training:
        yield training
    if not record.is_seq2seq(stage):
        yield Option(value="talk", label="Talk to it" if record.writes(stage) else "Try it")
    if (run.folder / REPORT).is_file():
        yield Option(value="report", label="Open the report", help=shown_path(run.folder / REPORT))
    if "ollama" in forms_of(record, stage):
        yield Option(value="ollama", label="Put it into Ollama", help="as a .gguf file")
    if not record.max_steps and training:
        yield training
    yield Option(value="quit", label="Quit")


def further_training(run: FinishedRun) -> Option | None:
    """The training that the verdict advises, else one twice as long; None without a plan, or where
    more training would gain nothing.
    """
    verdict, plan = verdict_of(run.record, run.folder), run.folder / PLAN_FILE
    step = verdict.next if verdict else None
    if step is not None and (step.command or "").startswith(TRAIN):
        label = LABELS.get(step.action, "Train again")
        why = step.text.removeprefix("train again ").removesuffix(": train the whole plan")
        return Option(value=step.command, label=label, help=why)
    if gains_nothing(run.record.stages[-1], verdict.plain if verdict else None):
        return None
    with suppress(AdviseError, ValueError, OSError):
        for entry in entries(read_plan(plan)):
            if entry.name == run.record.stages[-1].name:
                setting = longer_setting(entry)
                line = f"{TRAIN}{shlex.quote(str(plan))} --set {shlex.quote(setting)}"
                return Option(value=line, label="Train longer", help=longer_words(setting))
    return None


def open_report(run: FinishedRun, ui: Ui) -> None:
    """Show the report in a browser, or say where it is."""
    path = run.folder.absolute() / REPORT
    if not webbrowser.open(path.as_uri()):
        ui.say(f"No browser could be opened here. The report: {shown_path(path)}")


def into_ollama(run: FinishedRun, ui: Ui, call: Call) -> None:
    """`advise export` for Ollama, once, and what makes the model of it where Ollama is."""
    modelfile = run.folder / MODELFILE
    if not modelfile.is_file():
        call("export", str(run.folder), "--to", "ollama")
    name = folder_name(str(run.record.name)) or "model"
    if not modelfile.is_file():  # one for each task: the lines to type were said
        return
    if shutil.which("ollama") is None:
        ui.say("Ollama is not installed here. Where it is:")
        ui.say_line(f"  ollama create {name} -f {shlex.quote(shown_path(modelfile))}")
        return
    done = subprocess.run(["ollama", "create", name, "-f", str(modelfile)], check=False)
    if done.returncode:
        ui.say("Ollama did not take it: see above.", tone="warning")
    else:
        ui.say_line(f"Ask it:  ollama run {name}")
