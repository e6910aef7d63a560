"""A chat with trained models: one or several results and their base, switched without loading
again. Results that score or classify say what they make of a text instead.

Run: python -P -m trainers.tools.chat RUN [RUN ...] [--with NAME] [--max-new-tokens N] [--system
TEXT]

Reads questions from standard input, one a line, and streams answers to standard output. A person
gets base and result side by side, a pipe the result's answers alone. Lines that begin with / steer
(chat_session.py).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from advisor.ground.errors import AdviseError, InputError, Stopped, did_you_mean
from advisor.ground.progress import board, waiting
from advisor.ground.terminal import show_streams, shown
from advisor.record.run import RunRecord, last_of_each_task
from trainers.job.machine import quiet_libraries, torch_device, use_cores
from trainers.tools.chat_session import LEAVE, ChatSession
from trainers.tools.results import BASE, load_results, record_of, results_of
from trainers.tools.scoring import Scoring, load_scorer, scoring_stage


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        prog="trainers.tools.chat",
        description="Chat with trained models. `advise chat` calls this.",
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--with", dest="voices", action="append", default=[])
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--system")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(argv)
    show_streams()
    try:
        return chat(given)
    except KeyboardInterrupt:  # while the models were loaded, or in an answer to a pipe
        return Stopped.exit_code
    except AdviseError as error:
        print(f"error: {error.text()}", file=sys.stderr)
        return error.exit_code


def chat(given: Any) -> int:
    """Load the results and chat until the input ends.

    Raises InputError for runs and names that do not exist.
    """
    is_interactive = sys.stdin.isatty()
    device = torch_device(given.device)
    use_cores()
    quiet_libraries()
    board.label = "chat"
    with waiting("loading the models"):
        scoring = open_scoring(given, device)
        answer = scoring or open_session(given, device, is_interactive=is_interactive)
    if is_interactive:
        for run in given.runs:
            say("\n".join(greeting(run, record_of(run))))
    say(answer.introduction())
    return talk(answer, is_interactive=is_interactive)


def open_session(given: Any, device: Any, *, is_interactive: bool) -> ChatSession:
    """The conversation with the results of the runs.

    Raises InputError for runs and names that do not exist.
    """
    several = len(given.runs) > 1
    results = [
        result
        for run in given.runs
        for result in results_of(run, prefix=f"{run.name}/" if several else "")
    ]
    labels = [BASE, *(result.label for result in results)]
    unknown = [name for name in given.voices if name not in labels]
    if unknown:  # before anything is loaded
        raise InputError(
            f"--with {unknown[0]}: no such result",
            allowed=", ".join(labels),
            hint=did_you_mean(unknown[0], labels),
        )
    session = ChatSession(
        load_results(results, device),
        sys.stdout,
        max_new_tokens=given.max_new_tokens,
        system=given.system,
        is_interactive=is_interactive,
    )
    if given.voices:
        session.active = list(given.voices)
    return session


def open_scoring(given: Any, device: Any) -> Scoring | None:
    """The result of a run that scores or classifies; None if the results write."""
    if len(given.runs) > 1:
        return None
    (run,) = given.runs
    stage = scoring_stage(record_of(run))
    return Scoring(load_scorer(run, stage, device), sys.stdout) if stage is not None else None


class Answering(Protocol):
    """What a line goes to."""

    @property
    def prompt(self) -> str:
        """What is asked for next."""

    def introduction(self) -> str:
        """What answers, and how to steer it."""

    def line(self, line: str) -> bool:
        """Answer a line that is not empty; False ends the chat."""


def greeting(run: Path, record: RunRecord) -> list[str]:
    """Which run and base; `advise chat` has said its verdict before."""
    where = os.path.relpath(run) if run.is_relative_to(Path.cwd()) else str(run)
    last = last_of_each_task(record.stages)
    how = f"{last[-1].objective} with {last[-1].update}" if last else "nothing trained"
    base = Path(record.model or "").name or record.model
    trial = f", a trial of at most {record.max_steps} steps" if record.max_steps else ""
    return [f"{where}: {how} on {base}{trial}"]


def talk(answer: Answering, *, is_interactive: bool) -> int:
    """Answer line by line until the input ends; the exit code."""
    is_leaving = False  # Ctrl-C was pressed at the prompt just now
    while True:
        try:
            line = read_line(answer.prompt, is_interactive=is_interactive)
        except EOFError:
            return 0
        except KeyboardInterrupt:
            if is_leaving or not is_interactive:
                return Stopped.exit_code
            is_leaving = True
            say("\nexit or Ctrl-D ends the chat; so does Ctrl-C again")
            continue
        is_leaving = False
        line = line.strip()
        if line.lower() in LEAVE:
            return 0
        try:
            if line and not answer.line(line):
                return 0
        except KeyboardInterrupt:
            if not is_interactive:
                raise
            say("\ninterrupted: this question and what was answered do not count")
        except InputError as error:
            if not is_interactive:
                raise
            say(error.text())


def read_line(prompt: str, *, is_interactive: bool) -> str:
    """The next line. Raises EOFError at the end of the input."""
    if is_interactive and sys.stdout.isatty():
        with suppress(ImportError):  # arrows and earlier lines, where Python has it
            import readline  # noqa: F401
        return input(prompt)
    if is_interactive:
        print(prompt, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


def say(text: str) -> None:
    """Print a message on stderr."""
    print(shown(text), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
