"""The chat template in a model's folder as a function from a conversation to its text, as the
trainers write it. Needs jinja2, and no torch.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advisor.data.measure.tokenizer import compiled_template, special_texts, template_source
from advisor.data.same_rows import Message
from advisor.ground.errors import InputError

Turn = Mapping[str, Any]  # role, content, and what else a template reads


class RefusedByTemplate(Exception):
    """The template does not take this conversation."""


@dataclass(slots=True)
class ChatText:
    """Writes conversations as one chat template does."""

    source: str
    tokens: Mapping[str, str]  # bos_token, eos_token ...
    _template: Any  # a compiled Jinja template
    _takes_system: bool | None = None

    @classmethod
    def of(cls, source: str, tokens: Mapping[str, str]) -> ChatText:
        """Of the text of a template. Raises InputError if it is broken."""
        template, broken = compiled_template(source, "chat template")
        if template is None:
            raise InputError(broken, hint="take the template of the model's publisher")
        return cls(source=source, tokens=tokens, _template=template)

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

    def write(self, messages: Sequence[Turn], *, prompt: bool, **given: Any) -> str:
        """The text of a conversation.

        Raises RefusedByTemplate, or InputError where the template does not come to an end.

        Args:
            prompt: Also write what begins a new answer.
            given: Arguments of the template.
        """
        try:
            text = self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=prompt,
                **self.tokens,
                **given,
            )
        except InputError:
            raise
        except Exception as error:  # a template may raise anything
            raise RefusedByTemplate(str(error)) from None
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
        if self._takes_system is None:
            self._takes_system = self._takes(messages[:2]) or not self._takes(messages[1:2])
        if self._takes_system:
            return messages
        question = f"{messages[0]['content']}\n\n{messages[1]['content']}"
        return [{**messages[1], "content": question}, *messages[2:]]

    def _takes(self, messages: Sequence[Turn]) -> bool:
        try:
            self.write(messages, prompt=False)
        except RefusedByTemplate:
            return False
        return True


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
