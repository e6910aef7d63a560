"""Messages as chat templates take them, and what of them a template loses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from advisor.data.example import Message
from advisor.data.templates.thoughts import KEYS, MARK
from advisor.ground.annotated import parse_json

END_MARK = "</think>"
# For a tokenizer without a template. It is stored with the result, so that serving uses the same.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}{% if"
    " message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}{% endfor %}{% if"
    " add_generation_prompt %}Assistant:{% endif %}"
)


def template_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates take them: tool calls under `tool_calls`, their arguments as an
    object.
    """
    result = []
    for message in messages:
        extra = dict(message.extra)
        old = extra.pop("function_call", None)  # OpenAI's spelling before tool_calls
        if old and not extra.get("tool_calls"):
            extra["tool_calls"] = [{"type": "function", "function": old}]
        if extra.get("tool_calls"):
            extra["tool_calls"] = [_call(call) for call in extra["tool_calls"]]
        result.append({"role": message.role, "content": message.content, **extra})
    return result


def _call(call: Any) -> Any:
    if not isinstance(call, Mapping):
        return call
    function = call.get("function", call)
    if not isinstance(function, Mapping):
        return call
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        # OpenAI writes them as JSON text; templates would quote that text a second time.
        try:
            arguments = parse_json(arguments)
        except ValueError:
            arguments = function.get("arguments")
    return {
        **(
            {key: value for key, value in call.items() if key != "function"}
            if "function" in call
            else {"type": "function"}
        ),
        "function": {**function, "arguments": arguments},
    }


def called_functions(message: Message) -> list[str]:
    """The names of the functions that a message calls."""
    calls = template_messages((message,))[0].get("tool_calls") or []
    functions = [call.get("function", call) for call in calls if isinstance(call, Mapping)]
    return [
        function["name"]
        for function in functions
        if isinstance(function, Mapping) and isinstance(function.get("name"), str)
    ]


def names_of_tools(tools: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the functions that a row declares."""
    functions = [tool.get("function", tool) for tool in tools if isinstance(tool, Mapping)]
    return [
        function["name"]
        for function in functions
        if isinstance(function, Mapping) and isinstance(function.get("name"), str)
    ]


def thoughts_of(message: Message) -> str:
    """The thoughts in or beside an answer."""
    beside = next((message.extra[key] for key in KEYS if message.extra.get(key)), "")
    if isinstance(beside, str) and beside.strip():
        return beside.strip()
    if MARK not in message.content:
        return ""
    return message.content.split(MARK, 1)[1].split(END_MARK, 1)[0].strip()


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
            replace(
                message,
                extra={
                    key: value
                    for key, value in message.extra.items()
                    if key not in ("tool_calls", "function_call")
                },
            )
            for message in messages
        ]
        try:
            said_so = render(silent) != whole
        except Exception:  # a template may raise anything: then the calls were read
            said_so = True
        if not said_so or any(name not in whole for name in called):
            found.add("calls")
    if any(name not in whole for name in names_of_tools(tools)):
        found.add("tools")
    others = [message for message in messages if message.role not in ("assistant", "system")]
    if any(message.content.strip() not in whole for message in others):
        found.add("turns")
    last = messages[-1] if messages else None
    if last is not None and last.role == "assistant":
        thoughts = thoughts_of(last)
        if thoughts and thoughts not in whole:
            found.add("thoughts")
    return found
