"""A model's own tokenizer and chat template, if its folder is at hand: exact lengths, and
whether the template takes the rows.

Both packages are free of torch and come with the training extra. Without them lengths are
approximated, and that is said.
"""

from __future__ import annotations

import importlib.util
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from advisor.data.checks import finding, findings_of
from advisor.data.example import Example, Message, system_in_question
from advisor.data.examples import Tally
from advisor.data.templates.chat_text import (
    END_MARK,
    MARK,
    PLAIN_TEMPLATE,
    SWITCHES,
    TOKENS,
    ChatText,
    RefusedByTemplate,
    answers_of,
    contradiction_text,
    holds_thoughts,
    lost_parts,
    may_think,
    missing_text,
    special_texts,
    switch_of,
    template_file,
    template_messages,
    template_source,
    unknown_text,
)
from advisor.ground.errors import InputError
from advisor.ground.files import bytes_of
from advisor.ground.resources import install_line
from advisor.ground.types import DataFinding
from advisor.model_files.hub_cache import hub_model_folder
from advisor.model_files.made import made_here

REFUSED_SHARE = 0.05  # of the rows tried: more, and a run stops at them
# What a template does to rows: how bad it is, and what is said of it after its name. Rows of an
# `error` cannot be trained on; `many`: it is one if it does so to many rows, else a warning.
FINDINGS = {
    "template-refuses-rows": ("many", "refuses {rows} tried: {complaint}"),
    "template-hides-answers": ("error", "leaves the answer out of {rows} tried"),
    "template-drops-calls": (
        "many",
        "does not write the tool calls of {rows} tried: they cannot be trained on; take a model"
        " whose template does, or put such a chat_template.jinja into its folder",
    ),
    "template-drops-tools": ("warning", "does not show the model the tools of {rows} tried"),
    "template-drops-turns": (
        "warning",
        "leaves out or rewrites turns of tools or users in {rows} tried",
    ),
    "template-drops-thoughts": (
        "warning",
        "leaves out the thoughts behind the answers of {rows} tried: the model would learn to"
        " answer without them",
    ),
    "template-drops-system-text": ("warning", "drops the system text of {rows} tried"),
    "template-without-system-turn": (
        "note",
        "takes no system turn: the trainers put the system text of {count:,} rows in front of the"
        " first question",
    ),
    "template-without-end-of-turn": (
        "note",
        "writes nothing that ends a turn: the trainers add the end-of-text token, or the model"
        " would never stop",
    ),
}
NO_TEMPLATE = "model-without-chat-template"
# Those that decide whether the data fit the model.
DECIDING = (NO_TEMPLATE, *(name for name in FINDINGS if "without" not in name))
TRIED_ROWS = 200  # of the data, by advice; `advise check` tries all that it counts


class ModelTokenizer(Struct):
    """Counts tokens as one model does. Callable, as `profile` wants it."""

    model: str
    chat: ChatText | None  # None if the template cannot be tried
    is_plain: bool = False  # the template that the trainers give a model without one
    ends: tuple[str, ...] = ()  # special tokens: one of them ends a turn
    encode: Any = None
    tried: int = 0
    answered: int = 0  # rows tried that teach an answer
    conversations: int = 0
    complaint: str = ""
    thoughtful: Tally = field(default_factory=Tally)
    found: defaultdict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))

    @property
    def name(self) -> str:
        return f"tokenizer of {self.model}"

    def __call__(self, text: str) -> int:
        return len(self.encode(text, add_special_tokens=False).ids)

    def rendered(self, example: Example) -> tuple[str, ...] | None:
        """The request and the whole sequence (of a pair: both) as the chat template writes them;
        None if it cannot.
        """
        if example.label is None and not example.plain:
            self.conversations += 1
        if self.chat is None or not example.messages or (self.is_plain and example.plain):
            return None
        messages = self._as_trained(self.chat, example)
        ends = [example.chosen, example.rejected] if example.chosen else []
        asked = messages if ends or messages[-1].role != "assistant" else messages[:-1]
        self.tried += 1
        try:
            request = self.write(asked, example, prompt=True) if asked else ""
            wholes = [self.write((*messages, *end), example) for end in ends] or [
                self.write(messages, example) if asked is not messages else request
            ]
        except RefusedByTemplate as error:
            self.found["template-refuses-rows"].add(example.row)
            self.complaint = self.complaint or str(error).splitlines()[0][:160]
            return None
        answers = answers_of(example)
        self.answered += bool(answers)
        if any(map(holds_thoughts, answers)):
            self.thoughtful.add(example.row)
        for name in self._losses(example, (*messages, *example.chosen), wholes[0]):
            self.found[f"template-{name}"].add(example.row)
        return (request, *wholes)

    def _as_trained(self, chat: ChatText, example: Example) -> tuple[Message, ...]:
        """The conversation as the trainers write it: a system turn that the template refuses, and
        nothing else, goes into the first question.
        """
        moved = system_in_question(example.messages)
        if moved is None:
            return example.messages
        begin = template_messages(example.messages[:2])
        if chat.takes_system(begin, _tools_of(example), example.row):
            return example.messages
        self.found["template-without-system-turn"].add(example.row)
        return moved

    def write(self, messages: Sequence[Message], example: Example, *, prompt: bool = False) -> str:
        """What the template makes of messages with the tools of a row."""
        assert self.chat is not None
        turns, row = template_messages(messages), example.row
        return self.chat.write(turns, _tools_of(example), prompt=prompt, row=row)

    def _losses(self, example: Example, messages: tuple[Message, ...], whole: str) -> Iterator[str]:
        """What the template does to the row: does the answer stand in it, the system text, and
        something that ends the turn?
        """
        if example.tools or any(message.extra for message in messages) or MARK in whole:
            write = partial(self.write, example=example)
            lost = lost_parts(messages, example.tools, whole, write)
            yield from (f"drops-{part}" for part in lost)
        last = messages[-1]
        if messages[0].role == "system" and messages[0].content.strip() not in whole:
            yield "drops-system-text"
        said = last.content.split(END_MARK)[-1].strip()
        if last.role != "assistant" or not said:
            return
        _, found, tail = whole.rpartition(said)
        if not found:
            yield "hides-answers"
        elif not any(token in tail for token in self.ends):
            yield "without-end-of-turn"

    def findings(self, objectives: tuple[str, ...]) -> Iterator[DataFinding]:
        """How the template fits the rows that were tried."""
        if (self.chat is None or self.is_plain) and self.conversations:
            text = (
                f"{self.model} has no chat template: it was not trained on conversations; the"
                " trainers write them as `User: ...` and `Assistant: ...`, and store this plain"
                " template with the result"
            )
            yield finding(NO_TEMPLATE, "warning", text, self.conversations)
        if self.chat is None:
            return
        yield from self._about_arguments(self.chat)
        for name, (severity, words) in FINDINGS.items():
            tally = self.found[name]
            if severity == "many":
                severity = "error" if tally.count > REFUSED_SHARE * self.tried else "warning"
            said = words.format(
                rows=f"{tally.count:,} of {self.tried:,} rows",
                count=tally.count,
                complaint=self.complaint,
            )
            blocks = objectives if severity == "error" else ()
            text = f"the chat template of {self.model} {said}"
            yield from findings_of(tally, name, severity, text, blocks)

    def _about_arguments(self, chat: ChatText) -> Iterator[DataFinding]:
        """Arguments that the template does not know, and thoughts on which the data and the
        template disagree.
        """
        source = "" if self.is_plain else chat.source
        for name in chat.arguments:
            if not re.search(rf"\b{re.escape(name)}\b", source):
                text = f"the chat template of {self.model} never reads '{name}'"
                yield finding("template-argument-unknown", "error", text)
        thoughtful = self.thoughtful
        switched_off = any(chat.arguments.get(name) is False for name in SWITCHES)
        switch = switch_of(source, _asked(chat))
        if thoughtful.count and switched_off:
            text = contradiction_text(thoughtful.count, chat.arguments)
            yield from findings_of(thoughtful, "thoughts-switched-off", "warning", text)
        elif thoughtful.count and not may_think(source):
            text = unknown_text(thoughtful.count)
            yield from findings_of(thoughtful, "thoughts-unknown", "note", text)
        elif self.answered and not (thoughtful.count or switched_off or switch is None):
            yield finding("no-thoughts", "warning", missing_text(switch), self.answered)


def _tools_of(example: Example) -> dict[str, Any]:
    """What a template gets with the messages of a row."""
    return {"tools": [dict(tool) for tool in example.tools] or None}


def _asked(chat: ChatText) -> Callable[..., str]:
    """A question and what stands in front of its answer, as `switch_of` wants it."""
    question = [{"role": "user", "content": "Hello"}]
    return lambda **given: chat.write(question, given, prompt=True)


def _at_hand(
    folder: Path | None, model: str, arguments: Mapping[str, Any] | None = None
) -> tuple[ModelTokenizer | None, str]:
    """A model with its chat template, without its tokenizer; None if its folder is not at hand.
    With it a note if the template cannot be tried.
    """
    if folder is None:
        return None, f"{model}: no folder with a tokenizer.json at hand; lengths are approximated"
    source, tokens = template_source(folder), special_texts(folder)
    chat, note = None, ""
    try:
        chat = ChatText(
            PLAIN_TEMPLATE if source is None else source,
            tokens,
            arguments=arguments,
            where=str(template_file(folder)),
            name=f"the chat template of {folder}",
        )
    except InputError as error:
        note = error.faults[0].what
    return ModelTokenizer(model, chat, source is None, tuple(tokens.values())), note


def model_tokenizer(
    model: str, arguments: Mapping[str, Any] | None = None
) -> tuple[ModelTokenizer | None, str]:
    """The tokenizer of a model folder, or of a hub model in the cache; else None and why lengths
    are approximated.

    Args:
        model: A folder, or a name of the hub.
        arguments: For its chat template, such as enable_thinking.
    """
    folder = _folder(model)
    found, note = _at_hand(folder, model, arguments)
    if found is None or folder is None:
        return None, note
    if importlib.util.find_spec("tokenizers") is None:
        why = "the tokenizers package is not installed; lengths are approximated"
        return None, f"{why} ({install_line()})"
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_buffer(bytes_of(file))
    except Exception as error:  # the package raises a bare Exception
        return None, f"{file} cannot be read ({str(error)[:100]}); lengths are approximated"
    tokenizer.no_truncation()
    tokenizer.no_padding()
    added = tokenizer.get_added_tokens_decoder().values()
    found.ends += tuple(token.content for token in added if token.special)
    found.encode = tokenizer.encode
    return found, note


def has_template(model: str) -> bool | None:
    """Whether a model has a chat template; None if its files are not at hand."""
    folder = _folder(model)
    return None if folder is None else template_source(folder) is not None


def template_at_hand(model: str, rows: Iterable[Example]) -> tuple[DataFinding, ...]:
    """How the chat template of a model at hand takes the first rows of data; () if it is not at
    hand or cannot be tried.

    Without counting tokens, so that it needs jinja2 alone.
    """
    tried, _ = _at_hand(_folder(model), model)
    if tried is None or (tried.chat is None and not tried.is_plain):
        return ()
    for row in islice(rows, TRIED_ROWS):
        tried.rendered(row)
    return tuple(one for one in tried.findings(("sft",)) if one.id in DECIDING)


def switch_at_hand(model: str) -> str | None:
    """What switches the thoughts of a model off (messages.switch_of), by the chat template in its
    folder or in the hub's cache; None if it is not at hand or cannot be tried.
    """
    folder = _folder(model)
    source = template_source(folder) if folder is not None else None
    if folder is None or source is None or not may_think(source):
        return None
    try:
        chat = ChatText(source, dict.fromkeys(TOKENS, "") | special_texts(folder))
        return switch_of(source, _asked(chat))
    except InputError:  # broken, or without end: the rows say so when they are written with it
        return None


def _folder(model: str) -> Path | None:
    folder = Path(model)
    if (folder / "tokenizer.json").is_file():
        return folder
    if folder.exists() or model.count("/") > 1:
        return None
    found = sorted((hub_model_folder(model) / "snapshots").glob("*/tokenizer.json"))
    return found[-1].parent if found else made_here(model)
