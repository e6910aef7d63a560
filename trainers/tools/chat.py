"""A chat with trained models: one or several results and their base, switched without loading
again. Results that score or classify say what they make of a text instead.

Run: python -P -m trainers.tools.chat RUN [RUN ...] [--with NAME] [--max-new-tokens N] [--system
TEXT]

Reads questions from standard input, one a line, and streams answers to standard output, one model
after the other. A person gets those of base and result, a pipe the result's answers alone. Lines
that begin with / steer.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from advisor.ground.errors import InputError, Stopped, did_you_mean
from advisor.ground.progress import board, waiting
from advisor.ground.terminal import shown
from advisor.record.run import RunRecord, last_of_each_task
from trainers.job.evaluating import evaluating
from trainers.job.machine import torch_device
from trainers.rollouts.transformers_engine import stop_ids
from trainers.start.model_files import reading
from trainers.tools.command import run_command
from trainers.tools.results import BASE, Loaded, load_results, prompt_ids, record_of, results_of
from trainers.tools.scoring import Scoring, load_scoring, scoring_stage

HELP = (
    "/base, /use NAME or /all  which model answers: the untrained one, one of them, every one\n"
    "/system TEXT              the system prompt; a new conversation begins\n"
    "/new                      a new conversation\n"
    "exit, quit or Ctrl-D      the end; Ctrl-C stops an answer"
)
LEAVE = ("exit", "quit", "/exit", "/quit", "/q")
Message = dict[str, str]


class ChatSession:
    """A conversation with each model; a question goes to every model that is switched on.

    Args:
        loaded: The models.
        out: Takes the answers.
        max_new_tokens: The longest answer.
        system: The system prompt.
        is_interactive: A person reads: the base answers, too.
    """

    def __init__(
        self,
        loaded: Loaded,
        out: TextIO,
        *,
        max_new_tokens: int,
        system: str | None = None,
        is_interactive: bool = False,
    ) -> None:
        self.loaded, self.out, self.system = loaded, out, system
        self.max_new_tokens, self.is_interactive = max_new_tokens, is_interactive
        results = [result.label for result in loaded.results]
        # Of several results all answer, without the base.
        self.active = [BASE, *results] if is_interactive and len(results) == 1 else results
        self.history: dict[str, list[Message]] = {}

    @property
    def prompt(self) -> str:
        """What is asked for next."""
        return "> "

    def introduction(self) -> str:
        """What answers, and how to steer it."""
        results, bases = len(self.loaded.results), len(self.loaded.models)
        there = (
            f"{results} result{'s' if results > 1 else ''} on {bases}"
            f" base{'s' if bases > 1 else ''}: {', '.join(self.loaded.labels)}"
        )
        if not self.is_interactive:
            return there
        how = "answer, one after the other" if len(self.active) > 1 else "answers"
        return f"{' and '.join(self.active)} {how}. /help says what else; exit ends"

    def line(self, line: str) -> bool:
        """Answer a question, or obey a line that begins with '/'; False ends the chat."""
        if line.startswith("/"):
            return self.command(line)
        self.ask(line)
        return True

    # ---------------------------------------------------------------- answers

    def ask(self, question: str) -> None:
        """Stream the answer of each model that is switched on.

        Raises KeyboardInterrupt, with the conversation as it was before the question, and
        InputError for a conversation that a model cannot read.
        """
        is_named = len(self.active) > 1 or self.active == [BASE]
        asked = {"role": "user", "content": question}
        answers: dict[str, str] = {}
        for name in self.active:
            self._write(f"[{name}] " if is_named else "")
            try:
                answers[name], note = self._answer(name, asked)
            finally:
                self._write("\n")
            if note:
                say(f"{name}: {note}")
        for name, answer in answers.items():
            self.history.setdefault(name, []).extend(
                [asked, {"role": "assistant", "content": answer}]
            )

    def _write(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()

    def _answer(self, name: str, asked: Message) -> tuple[str, str]:
        """(a model's answer, why it is cut off; empty if it is not)."""
        from transformers import TextStreamer

        pieces: list[str] = []
        write = self._write

        class Stream(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                pieces.append(text)
                write(text)

        messages = [
            *([{"role": "system", "content": self.system}] if self.system else []),
            *self.history.get(name, []),
            asked,
        ]
        with self.loaded.use(name) as (model, tokenizer), evaluating(model):
            inputs = prompt_ids(tokenizer, messages).to(self.loaded.device)
            length = inputs["input_ids"].shape[1]
            context = context_of(model)
            room = self.max_new_tokens if context is None else context - length
            if room < 1:
                raise InputError(
                    f"the conversation is longer than the model's context of {context:,} tokens",
                    hint="/new starts a new one",
                )
            limit = min(room, self.max_new_tokens)
            with reading(self.loaded.result(name).folder, "the result"):
                output = model.generate(
                    **inputs,
                    max_new_tokens=limit,
                    do_sample=False,
                    temperature=None,
                    top_p=None,
                    top_k=None,
                    streamer=Stream(tokenizer, skip_prompt=True, skip_special_tokens=True),
                )
            written = output[0, length:].tolist()
            is_cut = len(written) >= limit and written[-1] not in stop_ids(model)
        note = ""
        if is_cut and limit < self.max_new_tokens:
            note = f"the context of {context:,} tokens is full; /new starts a new conversation"
        elif is_cut:
            note = f"cut at {limit:,} tokens; --max-new-tokens allows more"
        return "".join(pieces).strip(), note

    # ---------------------------------------------------------------- lines that steer

    def command(self, line: str) -> bool:
        """Obey a line that begins with '/'; False ends the chat."""
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        if word in LEAVE:
            return False
        if word == "/base":
            self.active = [BASE]
        elif word == "/all":
            self.active = list(self.loaded.labels)
        elif word == "/use" and rest in self.loaded.labels:
            self.active = [rest]
        elif word == "/use":
            say(
                f"no model '{rest}'; there are {', '.join(self.loaded.labels)}."
                f" {did_you_mean(rest, self.loaded.labels)}".strip()
            )
            return True
        elif word == "/system":
            self.system, self.history = rest or None, {}
        elif word == "/new":
            self.history = {}
            say("a new conversation")
            return True
        else:
            say(HELP if word == "/help" else f"unknown: {word}\n{HELP}")
            return True
        say(f"now: {', '.join(self.active)}")
        return True


def context_of(model: Any) -> int | None:
    """The most tokens the model reads and writes together; None if its config does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


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
    # Ctrl-C while the models are loaded, or in an answer to a pipe, needs no words.
    return run_command(lambda: chat(given), stopped="")


def chat(given: Any) -> int:
    """Load the results and chat until the input ends.

    Raises InputError for runs and names that do not exist.
    """
    is_interactive = sys.stdin.isatty()
    device = torch_device(given.device)
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
    return load_scoring(run, stage, device) if stage is not None else None


def greeting(run: Path, record: RunRecord) -> list[str]:
    """Which run and base; `advise chat` has said its verdict before."""
    where = os.path.relpath(run) if run.is_relative_to(Path.cwd()) else str(run)
    last = last_of_each_task(record.stages)
    how = f"{last[-1].objective} with {last[-1].update}" if last else "nothing trained"
    base = Path(record.model or "").name or record.model
    trial = f", a trial of at most {record.max_steps} steps" if record.max_steps else ""
    return [f"{where}: {how} on {base}{trial}"]


def talk(answer: ChatSession | Scoring, *, is_interactive: bool) -> int:
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
