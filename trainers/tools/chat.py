"""A chat with trained models: one or several results and their base, switched without loading
again.

Run: python -P -m trainers.tools.chat RUN [RUN ...] [--with NAME] [--max-new-tokens N] [--system
TEXT]

Reads questions from standard input, one a line, and streams answers to standard output. Lines that
begin with / switch: /use NAME, /all, /base, /system TEXT, /new, /help, /quit.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from advisor.ground.errors import AdviseError, InputError, nearest
from advisor.ground.terminal import show_streams
from trainers.frame.evaluating import evaluating
from trainers.frame.machine import quiet_libraries, torch_device, use_cores
from trainers.frame.model_files import reading
from trainers.tools.results import BASE, Loaded, load_results, prompt_ids, results_of

HELP = (
    "/use NAME one model   /all every model side by side   /base the untrained model   /system TEXT"
    "   /new starts a new conversation   /quit"
)


class ChatSession:
    """A conversation with each model; a question goes to every model that is switched on."""

    def __init__(
        self, loaded: Loaded, out: TextIO, *, max_new_tokens: int, system: str | None = None
    ) -> None:
        self.loaded, self.out, self.max_new_tokens, self.system = (
            loaded,
            out,
            max_new_tokens,
            system,
        )
        first = loaded.results[0].label
        self.active = (
            [first] if len(loaded.results) == 1 else [result.label for result in loaded.results]
        )
        self.history: dict[str, list[dict[str, str]]] = {}

    def ask(self, question: str) -> None:
        """Stream the answer of each model that is switched on."""
        for name in self.active:
            if len(self.active) > 1 or name == BASE:
                self.out.write(f"[{name}] ")
            history = self.history.setdefault(name, [])
            messages = [
                *([{"role": "system", "content": self.system}] if self.system else []),
                *history,
                {"role": "user", "content": question},
            ]
            answer = self._answer(name, messages)
            history += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
            self.out.write("\n")
            self.out.flush()

    def _answer(self, name: str, messages: Sequence[Mapping[str, str]]) -> str:
        from transformers import TextStreamer

        pieces: list[str] = []
        out = self.out

        class Stream(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                pieces.append(text)
                out.write(text)
                out.flush()

        with self.loaded.use(name) as (model, tokenizer), evaluating(model):
            inputs = prompt_ids(tokenizer, messages).to(self.loaded.device)
            limit = getattr(model.config, "max_position_embeddings", None)
            if limit is not None and inputs["input_ids"].shape[1] >= limit:
                raise InputError(
                    f"the conversation is longer than the model's context of {limit:,} tokens",
                    hint="/new starts a new one",
                )
            with reading(self.loaded.result(name).folder, "the result"):
                model.generate(
                    **inputs,
                    max_new_tokens=self.max_new_tokens,
                    do_sample=False,
                    temperature=None,
                    top_p=None,
                    top_k=None,
                    streamer=Stream(tokenizer, skip_prompt=True, skip_special_tokens=True),
                )
        return "".join(pieces).strip()

    def command(self, line: str) -> bool:
        """Obey a line that begins with '/'; False ends the chat."""
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        if word in ("/quit", "/exit", "/q"):
            return False
        if word == "/base":
            self.active = [BASE]
        elif word == "/all":
            self.active = list(self.loaded.labels)
        elif word == "/use" and rest in self.loaded.labels:
            self.active = [rest]
        elif word == "/use":
            self._say(
                f"no model '{rest}'; there are {', '.join(self.loaded.labels)}."
                f" {nearest(rest, self.loaded.labels)}".strip()
            )
            return True
        elif word == "/system":
            self.system, self.history = rest or None, {}
        elif word == "/new":
            self.history = {}
        else:
            self._say(HELP)
            return True
        self._say(f"now: {', '.join(self.active)}")
        return True

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


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
    except KeyboardInterrupt:
        return 0
    except AdviseError as error:
        print(f"error: {error.text()}", file=sys.stderr)
        return error.exit_code


def chat(given: Any) -> int:
    """Load the results and chat until the input ends.

    Raises InputError for runs and names that do not exist.
    """
    several = len(given.runs) > 1
    results = [
        result
        for run in given.runs
        for result in results_of(run, prefix=f"{run.name}/" if several else "")
    ]
    device = torch_device(given.device)
    use_cores()
    quiet_libraries()
    loaded = load_results(results, device)
    session = ChatSession(
        loaded, sys.stdout, max_new_tokens=given.max_new_tokens, system=given.system
    )
    if given.voices:
        unknown = [name for name in given.voices if name not in loaded.labels]
        if unknown:
            raise InputError(
                "no such result",
                where=f"--with {unknown[0]}",
                allowed=", ".join(loaded.labels),
                hint=nearest(unknown[0], loaded.labels),
            )
        session.active = list(given.voices)
    interactive = sys.stdin.isatty()
    bases = len(loaded.models)
    there = (
        f"{len(results)} result{'s' if len(results) > 1 else ''} on {bases}"
        f" base{'s' if bases > 1 else ''}: {', '.join(loaded.labels)}"
    )
    print(f"{there}\n{HELP}" if interactive else there, file=sys.stderr, flush=True)
    while True:
        if interactive:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return 0
        line = line.strip()
        if line.startswith("/"):
            if not session.command(line):
                return 0
        elif line:
            session.ask(line)


if __name__ == "__main__":
    sys.exit(main())
