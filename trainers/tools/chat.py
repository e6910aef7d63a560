"""Talking to what was trained: one or several results beside their base, switched without loading
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
from trainers.frame.machine import quiet_libraries, torch_device, use_cores
from trainers.tools.results import BASE, Loaded, load_results, prompt_ids, results_of

HELP = (
    "/use NAME one voice   /all every voice side by side   /base the untrained model   /system TEXT"
    "   /new forget the talk   /quit"
)


class ChatSession:
    """One conversation per voice; the same question goes to every voice that is on."""

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
        self.voices = (
            [first] if len(loaded.results) == 1 else [result.label for result in loaded.results]
        )
        self.said: dict[str, list[dict[str, str]]] = {}

    def ask(self, question: str) -> None:
        """Stream the answer of each voice that is on."""
        for voice in self.voices:
            if len(self.voices) > 1 or voice == BASE:
                self.out.write(f"[{voice}] ")
            before = self.said.setdefault(voice, [])
            messages = [
                *([{"role": "system", "content": self.system}] if self.system else []),
                *before,
                {"role": "user", "content": question},
            ]
            answer = self._answer(voice, messages)
            before += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
            self.out.write("\n")
            self.out.flush()

    def _answer(self, voice: str, messages: Sequence[Mapping[str, str]]) -> str:
        import torch
        from transformers import TextStreamer

        pieces: list[str] = []
        out = self.out

        class Stream(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                pieces.append(text)
                out.write(text)
                out.flush()

        with self.loaded.use(voice) as (model, tokenizer), torch.no_grad():
            inputs = prompt_ids(tokenizer, messages).to(self.loaded.device)
            limit = getattr(model.config, "max_position_embeddings", None)
            if limit is not None and inputs["input_ids"].shape[1] >= limit:
                raise InputError(
                    f"the talk is longer than the {limit:,} tokens the model reads",
                    hint="/new begins a new one",
                )
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
        """Obey a line that begins with '/'; False ends the talk."""
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        if word in ("/quit", "/exit", "/q"):
            return False
        if word == "/base":
            self.voices = [BASE]
        elif word == "/all":
            self.voices = list(self.loaded.labels)
        elif word == "/use" and rest in self.loaded.labels:
            self.voices = [rest]
        elif word == "/use":
            self._say(
                f"no voice '{rest}'; there are {', '.join(self.loaded.labels)}."
                f" {nearest(rest, self.loaded.labels)}".strip()
            )
            return True
        elif word == "/system":
            self.system, self.said = rest or None, {}
        elif word == "/new":
            self.said = {}
        else:
            self._say(HELP)
            return True
        self._say(f"now: {', '.join(self.voices)}")
        return True

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        prog="trainers.tools.chat", description="Talk to trained models. `advise chat` calls this."
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--with", dest="voices", action="append", default=[])
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--system")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(argv)
    try:
        return chat(given)
    except KeyboardInterrupt:
        return 0
    except AdviseError as error:
        print(f"error: {error.text()}", file=sys.stderr)
        return error.exit_code


def chat(given: Any) -> int:
    """Load and talk until the input ends."""
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
        unknown = [voice for voice in given.voices if voice not in loaded.labels]
        if unknown:
            raise InputError(
                f"--with {unknown[0]}: there is no such result",
                allowed=", ".join(loaded.labels),
                hint=nearest(unknown[0], loaded.labels),
            )
        session.voices = list(given.voices)
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
