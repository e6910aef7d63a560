"""Messages as chat templates take them and as people read them, and a message with other words,
which shows where it is in a rendered conversation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from advisor.data.example import Message
from advisor.ground.json_values import parse_json

OTHER_TEXTS = ("\u00a4 1", "2 \u00a5")  # with no common beginning or end


def shared_prefix_length(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def spoken_text(message: Message) -> str:
    """What a message says after its reasoning, without the space around it."""
    return message.content.split("</think>")[-1].strip()


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


def with_other_words(message: Message, other: str) -> Message:
    """The same message with another text, and calls of other functions with other arguments."""
    calls = template_messages((message,))[0].get("tool_calls")
    changed = replace(message, content=other) if message.content.strip() or not calls else message
    if not calls:
        return changed
    extra = {key: value for key, value in message.extra.items() if key != "function_call"}
    extra["tool_calls"] = [
        {
            **call,
            "function": {**call.get("function", {}), "name": other, "arguments": {other: other}},
        }
        for call in calls
    ]
    return replace(changed, extra=extra)
