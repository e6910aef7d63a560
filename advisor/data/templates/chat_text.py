"""The chat template in a model's folder as a function from a conversation to its text, as the
trainers write it. Needs jinja2, and no torch.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from advisor.ground.errors import InputError
from advisor.ground.files import text_of
from advisor.ground.resources import install_line

TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
Turn = Mapping[str, Any]  # role, content, and what else a template reads


class RefusedByTemplate(Exception):
    """The template does not take this conversation."""


class ChatText:
    """Writes conversations as one chat template does.

    Raises InputError if it is broken, or jinja2 is not installed.
    """

    def __init__(
        self,
        source: str,
        tokens: Mapping[str, str],  # bos_token, eos_token ...
        *,
        arguments: Mapping[str, Any] | None = None,  # of the template
        where: str = "the chat template",  # for errors
        name: str = "the chat template",  # the same in a sentence
    ) -> None:
        self.source, self.arguments, self.where = source, arguments or {}, where
        self._given = {**tokens, **self.arguments}
        self._template = _compiled(source, name)
        self._takes_system: bool | None = None

    @classmethod
    def in_folder(cls, folder: Path) -> ChatText:
        """The chat text of a model's or a result's folder. Raises InputError if it has none, or a
        broken one.
        """
        source = template_source(folder)
        if source is None:
            raise InputError(
                f"{folder} has no chat template",
                where=str(folder),
                hint="a model trained on raw text answers no chat; continue a text with it instead",
            )
        return cls(source, special_texts(folder))

    def on(self, day: datetime.date) -> None:
        """Let templates that write today's date write this one."""
        self._template.globals["strftime_now"] = day.strftime

    def write(
        self,
        messages: Sequence[Turn],
        given: Mapping[str, Any] | None = None,
        *,
        prompt: bool,
        row: int | None = None,
    ) -> str:
        """The text of a conversation.

        Raises RefusedByTemplate, or InputError if the template does not come to an end.

        Args:
            given: Arguments of the template.
            prompt: Also write what begins a new answer.
            row: The row of the data that it is, for the error.
        """
        from advisor.data.templates.bounded import TemplateLimit

        values = {**self._given, **(given or {}), "add_generation_prompt": prompt}
        try:
            return str(self._template.render(messages=[*map(dict, messages)], **values))
        except TemplateLimit as error:
            raise error.of(self.where, row) from None
        except Exception as error:  # a template may raise anything: its author's own complaints
            raise RefusedByTemplate(str(error) or type(error).__name__) from None

    def as_trained(
        self, messages: Sequence[Turn], given: Mapping[str, Any] | None = None, *, prompt: bool
    ) -> str:
        """As `write`, of the messages as the trainers hand them to the template: a system message
        that it refuses stands in front of the first question.
        """
        if len(messages) > 1 and messages[0]["role"] == "system":
            question = f"{messages[0]['content']}\n\n{messages[1]['content']}"
            moved = [{**messages[1], "content": question}, *messages[2:]]
            if not self.takes_system(messages[:2], moved[:1]):
                messages = moved
        return self.write(messages, given, prompt=prompt)

    def takes_system(
        self,
        begin: Sequence[Turn],
        moved: Sequence[Turn],
        given: Mapping[str, Any] | None = None,
        row: int | None = None,
    ) -> bool:
        """Whether the template takes a system turn: asked once, since it refuses the turn and not
        its words.

        Args:
            begin: A system turn and a question.
            moved: The same as one question.
        """
        if self._takes_system is None:
            for messages, taken in ((begin, True), (moved, False)):
                try:
                    self.write(messages, given, prompt=False, row=row)
                except RefusedByTemplate:
                    continue
                self._takes_system = taken
                break
            else:
                self._takes_system = True
        return self._takes_system


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model's folder; {} if there is none, or it is damaged."""
    try:
        value = json.loads(text_of(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def template_file(folder: Path) -> Path:
    """The file of a model's folder that holds its chat template."""
    own = folder / "chat_template.jinja"
    return own if own.is_file() else folder / "tokenizer_config.json"


def template_source(folder: Path) -> str | None:
    """The chat template of a model's folder; None if it has none."""
    path = template_file(folder)
    source = text_of(path) if path.suffix == ".jinja" else json_object(path).get("chat_template")
    if isinstance(source, list):  # several, by name
        named = (one for one in source if isinstance(one, dict) and one.get("name") == "default")
        source = next(named, {}).get("template")
    return source if isinstance(source, str) else None


def special_texts(folder: Path) -> dict[str, str]:
    """The special tokens of a folder's tokenizer that chat templates name: bos_token -> its
    text.
    """
    settings = json_object(folder / "tokenizer_config.json")
    values = {name: settings.get(name) for name in TOKENS}
    texts = {
        name: value.get("content") if isinstance(value, dict) else value
        for name, value in values.items()
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _compiled(source: str, name: str) -> Any:
    """The compiled chat template. Raises InputError if it cannot be tried."""
    if importlib.util.find_spec("jinja2") is None:
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

    def strftime_now(form: str) -> str:
        return datetime.datetime.now().strftime(form)

    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, indent=None, **_options: json.dumps(
        value, ensure_ascii=False, indent=indent
    )
    environment.globals.update(raise_exception=refuse, strftime_now=strftime_now)
    try:
        return environment.from_string(source)
    except Exception as error:  # Python's own among them: nested too deeply
        raise InputError(
            f"{name} is broken ({str(error)[:120]}): the model cannot be trained on"
            " conversations with it",
            hint="take the template of the model's publisher",
        ) from None
