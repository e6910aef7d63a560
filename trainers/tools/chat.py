"""A chat with trained models: one or several results and their base, switched without loading
again. Results that score or classify say what they make of a text instead.

Run: python -P -m trainers.tools.chat RUN [RUN ...] [--with NAME] [--max-new-tokens N] [--system
TEXT]

Reads questions from standard input, one a line, and streams answers to standard output, one model
after the other. A person gets those of base and result, a pipe the result's answers alone. Lines
that begin with / steer.
"""

from __future__ import annotations

import json
import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

from advisor.ground.errors import InputError, Stopped, did_you_mean
from advisor.ground.files import shown_path, text_of
from advisor.ground.progress import board, waiting
from advisor.ground.terminal import width_of
from advisor.methods import objective
from advisor.model_files.folder import read_header
from advisor.record.run import DONE, RunRecord, StageRecord, last_of_each_task
from trainers.job.evaluating import evaluating
from trainers.job.machine import torch_device
from trainers.rollouts.transformers_engine import stop_ids
from trainers.say.progress import say
from trainers.start.model_files import reading
from trainers.tools import command
from trainers.tools.results import (
    BASE,
    Loaded,
    load_result,
    load_results,
    load_tokenizer,
    prompt_ids,
    record_of,
    result_of,
    results_of,
)

HELP = (
    "/base, /use NAME or /all  which model answers: the base, one result, every one\n"
    "/system TEXT              the system prompt; a new conversation begins\n"
    "/new                      a new conversation\n"
    "exit, quit or Ctrl-D      the end; Ctrl-C stops an answer"
)
LEAVE = ("exit", "quit", "/exit", "/quit", "/q")
SHOWN_CLASSES = 3
HEAD_NAMES = {"score", "classifier", "out_proj"}


class ChatSession:
    """A conversation with each model; a question goes to every model that is switched on.

    Args:
        loaded: The models.
        max_new_tokens: The longest answer.
        system: The system prompt.
        is_interactive: A person reads: the base answers, too.
    """

    prompt = "> "

    def __init__(
        self,
        loaded: Loaded,
        *,
        max_new_tokens: int,
        system: str | None = None,
        is_interactive: bool = False,
    ) -> None:
        self.loaded, self.system = loaded, system
        self.max_new_tokens, self.is_interactive = max_new_tokens, is_interactive
        results = [result.label for result in loaded.results]
        # Of several results all answer, without the base.
        self.active = [*results, BASE] if is_interactive and len(results) == 1 else results
        self.history: dict[str, list[dict[str, str]]] = {}

    def introduction(self) -> str:
        if self.is_interactive:
            how = "answer, one after the other" if len(self.active) > 1 else "answers"
            return f"{' and '.join(self.active)} {how}. /help says what else; exit ends"
        results = len(self.loaded.results)
        bases = len({result.base_key for result in self.loaded.results})
        return (
            f"{results} result{'s' if results > 1 else ''} on {bases}"
            f" base{'s' if bases > 1 else ''}: {', '.join(self.loaded.labels)}"
        )

    def line(self, line: str) -> None:
        """Answer a question, or obey a line that begins with '/'."""
        if line.startswith("/"):
            say(self.command(line))
        else:
            self.ask(line)

    def ask(self, question: str) -> None:
        """Stream the answer of each model that is switched on.

        Raises KeyboardInterrupt, with the conversation as it was before the question, and
        InputError for a conversation that a model cannot read.
        """
        is_named = len(self.active) > 1 or self.active == [BASE]
        asked = {"role": "user", "content": question}
        answers: dict[str, str] = {}
        for name in self.active:
            answers[name], note = self._answer(name, asked, f"[{name}] " if is_named else "")
            if note:
                say(f"{name}: {note}")
        for name, answer in answers.items():
            said = [asked, {"role": "assistant", "content": answer}]
            self.history.setdefault(name, []).extend(said)

    def _answer(self, name: str, asked: dict[str, str], title: str) -> tuple[str, str]:
        """(a model's answer, why it is cut off; empty if it is not)."""
        from transformers import TextStreamer

        system = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*system, *self.history.get(name, []), asked]
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
            print(title, end="", flush=True)
            streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
            if sys.stdout.isatty():
                streamer.on_finalized_text = WordPrinter(len(title))
            with reading(self.loaded.result(name).folder, "the result"):
                output = model.generate(
                    **inputs,
                    max_new_tokens=limit,
                    do_sample=False,
                    temperature=None,
                    top_p=None,
                    top_k=None,
                    streamer=streamer,
                )
            written = output[0, length:].tolist()
            is_cut = len(written) >= limit and written[-1] not in stop_ids(model)
        answer = tokenizer.decode(written, skip_special_tokens=True).strip()
        if is_cut and limit < self.max_new_tokens:
            full = f"the context of {context:,} tokens is full"
            return answer, f"{full}; /new starts a new conversation"
        return answer, f"cut at {limit:,} tokens; --max-new-tokens allows more" if is_cut else ""

    def command(self, line: str) -> str:
        """Obey a line that begins with '/'; what to say of it."""
        word, _, rest = line.partition(" ")
        rest, labels = rest.strip(), self.loaded.labels
        if word == "/use" and rest not in labels:
            near = did_you_mean(rest, labels)
            return f"no model '{rest}'; there are {', '.join(labels)}. {near}".strip()
        if word in ("/base", "/all", "/use"):
            self.active = {"/base": [BASE], "/all": labels, "/use": [rest]}[word]
        elif word in ("/system", "/new"):
            self.system, self.history = (rest or None) if word == "/system" else self.system, {}
            return "a new conversation"
        else:
            return HELP if word == "/help" else f"unknown: {word}\n{HELP}"
        return f"now: {', '.join(self.active)}"


class WordPrinter:
    """Prints an answer as it is written, with line ends between words where a line is full."""

    def __init__(self, column: int) -> None:
        self.column, self.width = column, get_terminal_size().columns

    def __call__(self, text: str, stream_end: bool = False) -> None:
        for part in re.findall(r"\n|[^\S\n]+|\S+", text):
            word = part
            if part == "\n" or (self.column and self.column + width_of(part) > self.width):
                print()
                self.column, word = 0, part.strip()
            print(word, end="")
            self.column += width_of(word)
        print(end="\n" if stream_end else "", flush=True)


def context_of(model: Any) -> int | None:
    """The most tokens the model reads and writes together; None if its config does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


# --------------------------------------------------------------------------- scores and classes


@dataclass
class Scoring:
    """Says what a result makes of each line: the class of a text, or the reward of an answer, which
    is the line behind its question.
    """

    label: str
    model: Any
    tokenizer: Any
    device: Any
    classes: tuple[str, ...] | None  # None: it scores answers
    question: str | None = None

    @property
    def prompt(self) -> str:
        if self.classes is not None:
            return "text> "
        return "question> " if self.question is None else "answer> "

    def introduction(self) -> str:
        if self.classes is not None:
            count = f"{len(self.classes)} classes, with their shares"
            return f"{self.label} names the class of each line: {count}"
        how = "a line with a question, then a line with an answer to it"
        return f"{self.label} scores answers: {how}"

    def line(self, line: str) -> None:
        """Answer a line: the likeliest classes ('Billing 0.93, Returns 0.04'), or the reward."""
        if self.classes is None and self.question is None:
            self.question = line
            return
        question, self.question = self.question, None
        if question is not None and getattr(self.tokenizer, "chat_template", None):
            said = [{"role": "user", "content": question}, {"role": "assistant", "content": line}]
            inputs = prompt_ids(self.tokenizer, said, is_answered=True)
        else:
            text = f"{question or ''}{line}"
            inputs = self.tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        with evaluating(self.model):
            logits_C = self.model(**inputs.to(self.device)).logits[0].float().cpu()
        if self.classes is None:
            print(f"{float(logits_C[0]):.3f}", flush=True)
            return
        shares_C = logits_C.softmax(-1)
        best = shares_C.argsort(descending=True)[:SHOWN_CLASSES].tolist()
        print(", ".join(f"{self.classes[at]} {shares_C[at]:.2f}" for at in best), flush=True)


def load_scoring(run: Path, device: Any) -> Scoring | None:
    """The last result of a run, if it scores or classifies and none that writes is finished.

    Raises InputError for damaged files.
    """
    record = record_of(run)
    done = [stage for stage in record.stages if stage.status == DONE]
    if not done or any(
        not objective(stage.objective).scores and not record.is_classifier(stage) for stage in done
    ):
        return None
    stage = last_of_each_task(done)[-1]
    result = result_of(run, record, stage)
    classes = class_names(result.folder, stage) if record.is_classifier(stage) else None
    tokenizer, outputs = load_tokenizer(result), len(classes) if classes else 1
    model = load_result(result, device, head="SequenceClassification", num_labels=outputs)
    return Scoring(result.label, model, tokenizer, device, classes)


def class_names(folder: Path, stage: StageRecord) -> tuple[str, ...]:
    """The names of the head's outputs, in their order; numbers where they were not kept.

    A whole model's config.json holds them. A module has none, so the record of its evaluation does.

    Raises InputError if the module has no head.
    """
    with suppress(OSError, ValueError, KeyError, AttributeError):
        names = json.loads(text_of(folder / "config.json"))["id2label"]
        return tuple(str(names[place]) for place in sorted(names, key=int))
    confusion = stage.evaluation.confusion if stage.evaluation is not None else None
    if confusion is not None:
        return confusion.labels
    with reading(folder, "the adapter"):
        heads = [
            tensor.shape[0]
            for file in sorted(folder.glob("*.safetensors"))
            for name, tensor in read_header(file).items()
            if HEAD_NAMES.intersection(name.split(".")) and len(tensor.shape) == 2
        ]
    if not heads:
        raise InputError("it holds no head that classifies", where=str(folder))
    return tuple(f"class {place}" for place in range(heads[0]))


# --------------------------------------------------------------------------- the command


def chat(given: Any) -> int:
    """Load the results and chat until the input ends.

    Raises InputError for runs and names that do not exist.
    """
    is_interactive = sys.stdin.isatty()
    device = torch_device(given.device)
    board.label = "chat"
    with waiting("loading the models"):
        scoring = load_scoring(given.runs[0], device) if len(given.runs) == 1 else None
        answer = scoring or open_session(given, device, is_interactive=is_interactive)
    if is_interactive:
        for run in given.runs:
            say(greeting(run, record_of(run)))
    say(answer.introduction())
    return talk(answer, is_interactive=is_interactive)


def open_session(given: Any, device: Any, *, is_interactive: bool) -> ChatSession:
    """The conversation with the results of the runs.

    Raises InputError for runs and names that do not exist.
    """
    several = len(given.runs) > 1
    results = [
        one for run in given.runs for one in results_of(run, f"{run.name}/" if several else "")
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
        max_new_tokens=given.max_new_tokens,
        system=given.system,
        is_interactive=is_interactive,
    )
    session.active = list(given.voices) or session.active
    return session


def greeting(run: Path, record: RunRecord) -> str:
    """Which run and base; `advise chat` has said its verdict before."""
    last = last_of_each_task(record.stages)
    how = f"{last[-1].objective} with {last[-1].update}" if last else "nothing trained"
    base = Path(record.model or "").name or record.model
    trial = f", a trial of at most {record.max_steps} steps" if record.max_steps else ""
    return f"{shown_path(run)}: {how} on {base}{trial}"


def talk(answer: ChatSession | Scoring, *, is_interactive: bool) -> int:
    """Answer line by line until the input ends; the exit code."""
    is_leaving = False  # Ctrl-C was pressed at the prompt just now
    while True:
        try:
            line = read_line(answer.prompt, is_interactive=is_interactive).strip()
        except EOFError:
            return 0
        except KeyboardInterrupt:
            if is_leaving or not is_interactive:
                return Stopped.exit_code
            is_leaving = True
            say("\nexit or Ctrl-D ends the chat; so does Ctrl-C again")
            continue
        is_leaving = False
        if line.lower() in LEAVE:
            return 0
        try:
            if line:
                answer.line(line)
        except (KeyboardInterrupt, InputError) as error:
            if not is_interactive:
                raise
            stopped = "\ninterrupted: this question and what was answered do not count"
            say(error.text() if isinstance(error, InputError) else stopped)


def read_line(prompt: str, *, is_interactive: bool) -> str:
    """The next line. Raises EOFError at the end of the input."""
    is_on_screen = is_interactive and sys.stdout.isatty()
    if is_on_screen:
        with suppress(ImportError):  # arrows and earlier lines, where Python has it
            import readline  # noqa: F401
    elif is_interactive:  # standard output takes the answers alone
        print(prompt, end="", file=sys.stderr, flush=True)
    return input(prompt if is_on_screen else "")


OPTIONS: dict[str, dict[str, Any]] = {
    "runs": {"nargs": "+", "type": Path},
    "--with": {"dest": "voices", "action": "append", "default": []},
    "--max-new-tokens": {"type": int, "default": 512},
    "--system": {},
    "--device": {"default": "cpu"},
}
# Ctrl-C while the models are loaded, or in an answer to a pipe, needs no words.
main = command(chat, OPTIONS, stopped="")

if __name__ == "__main__":
    sys.exit(main())
