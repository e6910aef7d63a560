"""Functions that a row declares and calls, as text: what a chat template writes of them, nearly."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from advisor.data.example import Message

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
