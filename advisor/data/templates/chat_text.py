"""The chat template in a model's folder as a function from a conversation to its text, as the
trainers write it; messages as templates take them, and what of them one loses. Needs jinja2, and
no torch.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from advisor.data.example import CALLS, Example, Message
from advisor.data.templates.bounded import RENDERER, BrokenTemplate, TemplateLimit
from advisor.data.templates.bounded import RefusedByTemplate as RefusedByTemplate
from advisor.ground.annotated import parse_json
from advisor.ground.errors import InputError
from advisor.ground.files import text_of
from advisor.ground.resources import install_line

TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
Turn = Mapping[str, Any]  # role, content, and what else a template reads


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
        self._today: datetime.date | None = None
        self._takes_system: bool | None = None
        _try(source, name)

    @classmethod
    def in_folder(cls, folder: Path) -> ChatText:
        """The chat text of a model's or result's folder. Raises InputError without a sound one."""
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
        self._today = day

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
        values = {**self._given, **(given or {}), "add_generation_prompt": prompt}
        values["messages"] = [*map(dict, messages)]
        try:
            return RENDERER.render(self.source, values, today=self._today)[0]
        except TemplateLimit as error:
            raise error.of(self.where, row) from None

    def as_trained(
        self, messages: Sequence[Turn], given: Mapping[str, Any] | None = None, *, prompt: bool
    ) -> str:
        """As `write`, of the messages as the trainers hand them to the template: a system message
        that it refuses stands in front of the first question.
        """
        has_system = len(messages) > 1 and messages[0]["role"] == "system"
        if has_system and not self.takes_system(messages, given):
            messages = _without_system(messages)
        return self.write(messages, given, prompt=prompt)

    def takes_system(
        self,
        messages: Sequence[Turn],
        given: Mapping[str, Any] | None = None,
        row: int | None = None,
    ) -> bool:
        """Whether the template takes the system turn with which messages begin: asked once, since
        it refuses the turn and not its words.
        """
        if self._takes_system is None:
            self._takes_system = self._writes(messages[:2], given, row) or not self._writes(
                _without_system(messages[:2]), given, row
            )
        return self._takes_system

    def _writes(
        self, messages: Sequence[Turn], given: Mapping[str, Any] | None, row: int | None
    ) -> bool:
        try:
            self.write(messages, given, prompt=False, row=row)
        except RefusedByTemplate:
            return False
        return True


def _without_system(messages: Sequence[Turn]) -> list[Turn]:
    """The turns with the system text in front of the first question."""
    question = f"{messages[0]['content']}\n\n{messages[1]['content']}"
    return [{**messages[1], "content": question}, *messages[2:]]


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
    """The chat template of a model's folder; None if it has none. Raises InputError."""
    path = template_file(folder)
    try:
        own = text_of(path) if path.suffix == ".jinja" else None
    except UnicodeDecodeError:
        raise InputError("the chat template is not UTF-8 text", where=str(path)) from None
    source = json_object(path).get("chat_template") if own is None else own
    if isinstance(source, list):  # several, by name
        named = (one for one in source if isinstance(one, dict) and one.get("name") == "default")
        source = next(named, {}).get("template")
    return source if isinstance(source, str) else None


def special_texts(folder: Path) -> dict[str, str]:
    """The special tokens of a folder's tokenizer for chat templates: bos_token -> its text."""
    settings = json_object(folder / "tokenizer_config.json")
    values = {name: settings.get(name) for name in TOKENS}
    texts = {
        name: value.get("content") if isinstance(value, dict) else value
        for name, value in values.items()
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _try(source: str, name: str) -> None:
    """Raise InputError for a chat template that cannot be tried."""
    if importlib.util.find_spec("jinja2") is None:
        raise InputError(
            f"the chat template was not tried: jinja2 is not installed ({install_line()})"
        )
    try:
        RENDERER.render(source)
    except BrokenTemplate as error:
        raise InputError(
            f"{name} is broken ({str(error)[:120]}): the model cannot be trained on"
            " conversations with it",
            hint="take the template of the model's publisher",
        ) from None


END_MARK = "</think>"
# For a tokenizer without a template. It is stored with the result, so that serving uses the same.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}{% if"
    " message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}{% endfor %}{% if"
    " add_generation_prompt %}Assistant:{% endif %}"
)


def template_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates take them: `tool_calls`, their arguments as an object."""
    result = []
    for message in messages:
        extra = dict(message.extra)
        old = extra.pop("function_call", None)  # OpenAI's spelling before tool_calls
        calls = extra.get("tool_calls") or (old and [{"type": "function", "function": old}])
        if calls:
            extra["tool_calls"] = [_call(call) for call in calls]
        result.append({"role": message.role, "content": message.content, **extra})
    return result


def _call(call: Any) -> Any:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return call
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        # OpenAI writes them as JSON text; templates would quote that text a second time.
        with suppress(ValueError):
            arguments = parse_json(arguments)
    rest = {key: value for key, value in call.items() if key != "function"}
    beside = rest if "function" in call else {"type": "function"}
    return {**beside, "function": {**function, "arguments": arguments}}


def called_functions(message: Message) -> list[str]:
    """The names of the functions that a message calls."""
    return names_of_tools(template_messages((message,))[0].get("tool_calls") or [])


def names_of_tools(tools: Sequence[Any]) -> list[str]:
    """The names of the functions that a row declares or calls."""
    functions = [tool.get("function", tool) for tool in tools if isinstance(tool, Mapping)]
    names = [function.get("name") for function in functions if isinstance(function, Mapping)]
    return [name for name in names if isinstance(name, str)]


def thoughts_of(message: Message) -> str:
    """The thoughts in or beside an answer."""
    beside = next((message.extra[key] for key in KEYS if message.extra.get(key)), "")
    if isinstance(beside, str) and beside.strip():
        return beside.strip()
    return message.content.partition(MARK)[2].partition(END_MARK)[0].strip()


def lost_parts(
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    whole: str,
    render: Callable[[Sequence[Message]], str],
) -> set[str]:
    """What a chat template leaves out of a conversation: `calls` of functions, `tools` that it
    declares, `turns` of others, `thoughts` of its last answer.

    Args:
        whole: The conversation as the template writes it.
        render: Writes other messages with the same tools; may raise anything.
    """
    found: set[str] = set()
    called = [name for message in messages for name in called_functions(message)]
    if called:
        silent = [
            replace(message, extra={k: v for k, v in message.extra.items() if k not in CALLS})
            for message in messages
        ]
        try:
            is_silent = render(silent) == whole
        except Exception:  # a template may raise anything: then the calls were read
            is_silent = False
        if is_silent or any(name not in whole for name in called):
            found.add("calls")
    if any(name not in whole for name in names_of_tools(tools)):
        found.add("tools")
    others = [message for message in messages if message.role not in ("assistant", "system")]
    if any(message.content.strip() not in whole for message in others):
        found.add("turns")
    is_answered = bool(messages) and messages[-1].role == "assistant"
    if is_answered and thoughts_of(messages[-1]) not in whole:
        found.add("thoughts")
    return found


MARK = "<think>"
KEYS = ("reasoning_content", "reasoning", "thinking")  # of a message, beside its content
SWITCHES = ("enable_thinking", "thinking")  # arguments of templates
ALWAYS = "always"  # no argument switches the thoughts off


def holds_thoughts(message: Message) -> bool:
    """Whether an answer comes with the thoughts behind it."""
    return MARK in message.content or has_reasoning(message)


def has_reasoning(message: Message) -> bool:
    """Whether thoughts stand beside an answer, not in it."""
    return any(message.extra.get(key) for key in KEYS)


def answers_of(example: Example) -> tuple[Message, ...]:
    """The answers that a row teaches."""
    ends = (*example.chosen, *example.rejected)
    return tuple(message for message in (*example.messages, *ends) if message.role == "assistant")


def switch_of(source: str, render: Callable[..., str]) -> str | None:
    """The argument that, set to false, switches the thoughts of a template off; ALWAYS if none
    does; None if the model does not think unless it is asked to.

    Args:
        source: The template.
        render: Writes a question and what stands in front of the answer, with arguments.
    """
    try:
        usual = render()
        for name in SWITCHES:
            if name in source and render(**{name: True}) != render(**{name: False}):
                return name if usual == render(**{name: True}) else None
    except InputError:  # it does not come to an end
        raise
    except Exception:  # a template may raise anything
        return None
    if "reasoning_effort" in source or usual.rstrip().endswith(MARK):
        return ALWAYS
    return None


def may_think(source: str) -> bool:
    """Whether a template speaks of thoughts."""
    return "think" in source or "reason" in source


def missing_text(switch: str) -> str:
    """What to do if the model thinks and none of the answers holds thoughts.

    Args:
        switch: What `switch_of` gives.
    """
    what = (
        "this model thinks before it answers, and no answer in the data holds thoughts: it learns"
        " to answer at once"
    )
    add = f"put the thoughts in front of the answers ({MARK} ... </think>)"
    if switch == ALWAYS:
        return f"{what}. To keep its thoughts, {add}; or take a model that does not think"
    return (
        f"{what}. Write `template: {{{switch}: false}}` into the plan, so that training and use"
        f" agree; or {add}"
    )


def unknown_text(rows: int) -> str:
    """What happens to the thoughts of so many rows if the model's template knows none."""
    return (
        f"{rows:,} rows with thoughts in their answers, and this model's chat template knows none:"
        f" {MARK} ... </think> is learned as text, `reasoning_content` is left out"
    )


def dropped_text(rows: int) -> str:
    """What happens to the thoughts of so many rows that the model's template leaves out."""
    return (
        f"{rows:,} rows with thoughts in their answers, and this model's chat template leaves them"
        " out: they are not learned. A chat_template.jinja that keeps them, in the model's folder,"
        " mends it"
    )


def contradiction_text(rows: int, arguments: Mapping[str, object]) -> str:
    """What is wrong if the plan switches thoughts off and the data has them."""
    given = next((name for name in SWITCHES if arguments.get(name) is False), SWITCHES[0])
    return (
        f"{rows:,} rows with thoughts in their answers, though the plan says {given}: false:"
        f" remove it from `template`, or remove the thoughts"
    )
