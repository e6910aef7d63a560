"""Messages as people read them, and a message with other words, which shows where it is in a
rendered conversation.
"""

from __future__ import annotations

from dataclasses import replace

from advisor.data.example import Message
from advisor.data.templates.chat_text import called_functions, template_messages

__all__ = [
    "OTHER_TEXTS",
    "called_functions",
    "shared_prefix_length",
    "spoken_text",
    "template_messages",
    "with_other_words",
]
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
