"""A conversation with each of several models, and the lines that steer it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from advisor.ground.errors import InputError, did_you_mean
from trainers.job.evaluating import evaluating
from trainers.start.model_files import reading
from trainers.tools.answer_screen import AnswerScreen, screen_for
from trainers.tools.results import BASE, Loaded, prompt_ids

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
        is_interactive: A person reads: base and result stand side by side.
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
        # Of several results all answer, without the base: it would be one column too many.
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
        how = "answer, one beside the other" if len(self.active) > 1 else "answers"
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
        screen = screen_for(self.active, self.out, is_named=is_named, may_move=self.is_interactive)
        asked = {"role": "user", "content": question}
        answers: dict[str, str] = {}
        notes: list[str] = []
        try:
            for name in self.active:
                screen.begin(name)
                try:
                    answers[name], note = self._answer(name, asked, screen)
                finally:
                    screen.end()
                notes += [f"{name}: {note}"] if note else []
        finally:
            screen.close()
        for note in notes:
            self._say(note)
        for name, answer in answers.items():
            self.history.setdefault(name, []).extend(
                [asked, {"role": "assistant", "content": answer}]
            )

    def _answer(self, name: str, asked: Message, screen: AnswerScreen) -> tuple[str, str]:
        """(a model's answer, why it is cut off; empty if it is not)."""
        from transformers import TextStreamer

        pieces: list[str] = []

        class Stream(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                pieces.append(text)
                screen.write(text)

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
            is_cut = len(written) >= limit and written[-1] not in stops_of(model)
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
            self._say(
                f"no model '{rest}'; there are {', '.join(self.loaded.labels)}."
                f" {did_you_mean(rest, self.loaded.labels)}".strip()
            )
            return True
        elif word == "/system":
            self.system, self.history = rest or None, {}
        elif word == "/new":
            self.history = {}
            self._say("a new conversation")
            return True
        else:
            self._say(HELP if word == "/help" else f"unknown: {word}\n{HELP}")
            return True
        self._say(f"now: {', '.join(self.active)}")
        return True

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def context_of(model: Any) -> int | None:
    """The most tokens the model reads and writes together; None if its config does not say."""
    config: Mapping[str, Any] | Any = model.config.get_text_config()
    return getattr(config, "max_position_embeddings", None)


def stops_of(model: Any) -> Sequence[int]:
    """The tokens that end an answer."""
    stops = model.generation_config.eos_token_id
    return stops if isinstance(stops, list) else [] if stops is None else [stops]
