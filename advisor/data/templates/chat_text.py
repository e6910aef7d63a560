"""The chat template in a model's folder as a function from a conversation to its text, as the
trainers write it. Needs jinja2, and no torch.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from advisor.data.example import Example, Message
from advisor.ground.errors import InputError
from advisor.ground.files import text_of
from advisor.ground.install import install_line

TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
Turn = Mapping[str, Any]  # role, content, and what else a template reads


class RefusedByTemplate(Exception):
    """The template does not take this conversation."""


@dataclass(slots=True)
class ChatText:
    """Writes conversations as one chat template does."""

    source: str
    tokens: Mapping[str, str]  # bos_token, eos_token ...
    _template: Any  # a compiled Jinja template
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of the template
    where: str = "the chat template"  # for errors
    _takes_system: bool | None = None

    @classmethod
    def of(
        cls, source: str, tokens: Mapping[str, str], name: str = "chat template", **more: Any
    ) -> ChatText:
        """Of the text of a template.

        Raises InputError if it is broken, or jinja2 is not installed.

        Args:
            name: What the error calls it, after "the".
            more: `arguments` and `where`.
        """
        return cls(source=source, tokens=tokens, _template=_compiled(source, name), **more)

    @classmethod
    def in_folder(cls, folder: Path) -> ChatText:
        """Of the folder of a model or a result. Raises InputError if it has none, or a broken
        one.
        """
        source = template_source(folder)
        if source is None:
            raise InputError(
                f"{folder} has no chat template",
                where=str(folder),
                hint="a model trained on raw text answers no chat; continue a text with it instead",
            )
        return cls.of(source, special_texts(folder))

    def on(self, day: datetime.date) -> None:
        """Let templates that write today's date write this one."""
        self._template.globals["strftime_now"] = day.strftime

    def write(
        self, messages: Sequence[Turn], *, prompt: bool, at_row: int | None = None, **given: Any
    ) -> str:
        """The text of a conversation.

        Raises RefusedByTemplate, or InputError where the template does not come to an end.

        Args:
            prompt: Also write what begins a new answer.
            at_row: The row of the data that it is, for the error.
            given: Arguments of the template.
        """
        from advisor.data.templates.bounded import TemplateLimit

        try:
            text = self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=prompt,
                **{**self.tokens, **self.arguments, **given},
            )
        except TemplateLimit as error:
            raise error.of(self.where, at_row) from None
        except Exception as error:  # a template may raise anything: its author's own complaints
            raise RefusedByTemplate(str(error) or type(error).__name__) from None
        return str(text)

    def as_trained(self, messages: Sequence[Turn], *, prompt: bool, **given: Any) -> str:
        """As `write`, of the messages as the trainers hand them to the template."""
        return self.write(self.taken(messages), prompt=prompt, **given)

    def taken(self, messages: Sequence[Turn]) -> Sequence[Turn]:
        """The messages as the trainers hand them to the template: a system message that it refuses
        stands in front of the first question.
        """
        if len(messages) < 2 or messages[0]["role"] != "system":
            return messages
        question = f"{messages[0]['content']}\n\n{messages[1]['content']}"
        moved = [{**messages[1], "content": question}, *messages[2:]]
        return messages if self.takes_system(messages[:2], moved[:1]) else moved

    def takes_system(self, begin: Sequence[Turn], moved: Sequence[Turn], **given: Any) -> bool:
        """Whether the template takes a system turn: asked once, since it refuses the turn and not
        its words.

        Args:
            begin: A system turn and a question.
            moved: The same as one question.
            given: Arguments of the template.
        """
        if self._takes_system is None:
            self._takes_system = self._takes(begin, **given) or not self._takes(moved, **given)
        return self._takes_system

    def _takes(self, messages: Sequence[Turn], **given: Any) -> bool:
        try:
            self.write(messages, prompt=False, **given)
        except RefusedByTemplate:
            return False
        return True


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model's folder; {} if there is none, or it is damaged."""
    try:
        value = json.loads(text_of(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _token_text(value: Any) -> str | None:
    text = value.get("content") if isinstance(value, Mapping) else value
    return text if isinstance(text, str) else None


def template_file(folder: Path) -> Path:
    """The file of a model's folder that holds its chat template."""
    own = folder / "chat_template.jinja"
    return own if own.is_file() else folder / "tokenizer_config.json"


def template_source(folder: Path) -> str | None:
    """The chat template of a model's folder; None if it has none."""
    path = template_file(folder)
    source = text_of(path) if path.suffix == ".jinja" else json_object(path).get("chat_template")
    if isinstance(source, list):  # several, by name
        named = [entry for entry in source if isinstance(entry, Mapping)]
        source = next((one.get("template") for one in named if one.get("name") == "default"), None)
    return source if isinstance(source, str) else None


def special_texts(folder: Path) -> dict[str, str]:
    """The special tokens of a folder's tokenizer that chat templates name: bos_token -> its
    text.
    """
    settings = json_object(folder / "tokenizer_config.json")
    return {key: text for key in TOKENS if (text := _token_text(settings.get(key))) is not None}


def _compiled(source: str, name: str) -> Any:
    """The compiled chat template. Raises InputError where it cannot be tried."""
    from importlib.util import find_spec

    if find_spec("jinja2") is None:
        raise InputError(
            f"the chat template was not tried: jinja2 is not installed ({install_line()})"
        )
    import jinja2
    from jinja2.ext import Extension

    from advisor.data.templates.bounded import BoundedEnvironment

    class Generation(Extension):
        """`{% generation %}` as transformers has it: marks what the assistant says, and writes it
        as it is.
        """

        tags = {"generation"}  # noqa: RUF012 - jinja2 reads it from the class

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    def refuse(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def now(form: str) -> str:
        return datetime.datetime.now().strftime(form)

    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, indent=None, **_options: json.dumps(
        value, ensure_ascii=False, indent=indent
    )
    environment.globals.update(raise_exception=refuse, strftime_now=now)
    try:
        return environment.from_string(source)
    except Exception as error:  # Python's own among them: nested too deeply
        raise InputError(
            f"the {name} is broken ({str(error)[:120]}): the model cannot be trained on"
            " conversations with it",
            hint="take the template of the model's publisher",
        ) from None


CALLS = ("tool_calls", "function_call")


def calls_text(message: Message) -> str:
    """The calls of a message as JSON, without their ids, which few templates write; "" where it
    calls nothing.
    """
    calls = [_function(call) for key in CALLS for call in _listed(message.extra.get(key))]
    return "".join(json.dumps(call, ensure_ascii=False, default=str) for call in calls)


def said(message: Message) -> str:
    """The text of a message with its calls behind it."""
    return message.content + calls_text(message) if message.extra else message.content


def tools_text(tools: Sequence[Mapping[str, Any]]) -> str:
    """The declared functions as JSON, one a line."""
    return "\n".join(json.dumps(dict(tool), ensure_ascii=False, default=str) for tool in tools)


def _listed(calls: Any) -> list[Any]:
    return calls if isinstance(calls, list) else [calls] if calls else []


def _function(call: Any) -> Any:
    function = call.get("function", call) if isinstance(call, Mapping) else call
    if not isinstance(function, Mapping):
        return function
    return {key: function[key] for key in ("name", "arguments") if key in function}


def parts_of(example: Example) -> tuple[list[str], list[list[str]]]:
    """What a row asks, and what each answer says: none, one, or the two of a pair. Of a document
    all is answer.
    """
    if example.text is not None and example.label is None:
        return [], [[example.text]]
    asked = [said(message) for message in example.messages]
    if example.chosen:
        return asked, [[said(turn) for turn in side] for side in (example.chosen, example.rejected)]
    if example.messages and example.messages[-1].role == "assistant":
        return asked[:-1], [asked[-1:]]
    return asked, []


def text_of_row(example: Example) -> str:
    """All that a row asks and answers."""
    asked, answers = parts_of(example)
    return "\n".join(sum(answers, asked))
