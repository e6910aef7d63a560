"""Rows as they are read, and turns of a conversation as messages, whichever of the common spellings
the file uses.

Marks keep rows that ask or say the same on one side when some are held out
(trainers/rows/stage_rows.py): they depend on content and seed alone.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import takewhile
from typing import Any, Literal

from msgspec import Struct, field
from msgspec.structs import replace

from advisor.data.formats import formats

FEWEST_GROUPS = 5  # below this no row is taken from training for a share that rounds to nothing


def normalise_text(text: str) -> str:
    """The text for comparison: case, white space and how a character is written do not count."""
    return " ".join(unicodedata.normalize("NFKC", text).split()).casefold()


def question_key(messages: Iterable[Message]) -> str:
    """Equal for conversations that ask the same, whatever the system text says."""
    return "\n".join(
        f"{message.role}: {normalise_text(message.content)}"
        for message in messages
        if message.role != "system"
    )


def question_mark(key: str, seed: int) -> int:
    """What stands for a question: groups are held out in the order of these numbers."""
    return _first_bytes(f"{seed}:question {key}")


def text_mark(text: str, seed: int) -> int:
    """What stands for a text."""
    return _first_bytes(f"{seed}:text {text}")


def _first_bytes(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


class Message(Struct, frozen=True):
    """One turn. `weight` 0: shown to the model, never trained on (OpenAI's per-message weight)."""

    role: str  # system | user | assistant | tool
    content: str
    weight: float = 1.0
    # tool_calls, name ... handed to the chat template as they are
    extra: Mapping[str, Any] = field(default_factory=dict)


class Example(Struct, frozen=True, kw_only=True):
    """One row. Which fields are set depends on the kind of the data:

    - paired: `messages`, the last one (at least) from the assistant; `answer` beside them if a
      program can check the result. Then the request is what stands before the last message.
    - raw_text: `text`.
    - preference: `messages` is the shared prompt, `chosen` and `rejected` the two continuations.
    - unpaired_feedback: `messages` and `good`.
    - prompts_with_verifier: `messages` (the request alone) and `answer`, JSON for a list of tests.

    Rows of a classification are `text` and `label`, and the same as `messages`.
    """

    row: int  # 1-based, as an editor counts records of the file
    messages: tuple[Message, ...] = ()
    text: str | None = None
    chosen: tuple[Message, ...] = ()
    rejected: tuple[Message, ...] = ()
    good: bool | None = None
    answer: str | None = None
    label: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    # prompt + completion as text: trained without a chat template if the model has none
    plain: bool = False


def system_in_question(messages: Sequence[Message]) -> tuple[Message, ...] | None:
    """The conversation with its system text in front of the first question, for templates that
    refuse system turns; None if there is nothing to move.
    """
    if len(messages) < 2 or messages[0].role != "system" or messages[1].role != "user":
        return None
    return (
        replace(messages[1], content=f"{messages[0].content}\n\n{messages[1].content}"),
        *messages[2:],
    )


CALLS = ("tool_calls", "function_call")


def calls_text(message: Message) -> str:
    """The calls of a message as JSON, without their ids, which few templates write; "" if it calls
    nothing.
    """
    texts = []
    for key in CALLS:
        calls = message.extra.get(key) or []
        for call in calls if isinstance(calls, list) else [calls]:
            function = call.get("function", call) if isinstance(call, Mapping) else call
            if isinstance(function, Mapping):
                function = {key: function[key] for key in ("name", "arguments") if key in function}
            texts.append(json.dumps(function, ensure_ascii=False, default=str))
    return "".join(texts)


def said(message: Message) -> str:
    """The text of a message with its calls behind it."""
    return message.content + calls_text(message) if message.extra else message.content


def tools_text(tools: Sequence[Mapping[str, Any]]) -> str:
    """The declared functions as JSON, one a line."""
    return "\n".join(json.dumps(dict(tool), ensure_ascii=False, default=str) for tool in tools)


def parts_of(example: Example) -> tuple[list[str], list[list[str]]]:
    """What a row asks, and each answer: none, one, or a pair's two. A document is all answer."""
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


CHAT_ROLES = frozenset(("system", "user", "assistant", "tool"))
CALL_TURNS = ("function_call", "tool_call")  # speakers of ShareGPT whose text is a call
# Kinds of the parts of a content that are text; a refusal is an answer like another.
TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
MOST_EXCHANGE_KEYS = 6  # of an object with a text of each side; larger ones are other things
WEIGHTS = {"0": 0.0, "0.0": 0.0, "1": 1.0, "1.0": 1.0, False: 0.0, True: 1.0, None: 1.0}
# Why a row cannot be used; the texts are in examples.py.
WhyUnusable = Literal[
    "broken-conversation", "broken-unicode", "chosen-equals-rejected", "content-not-text",
    "empty-row", "no-function-calls", "row-is-no-object", "row-without-answer",
    "row-without-label", "row-without-question", "row-without-verdict", "unknown-role",
    "weight-is-no-number",
]  # fmt: skip


class UnusableRow(Exception):
    """A row that cannot be used."""

    def __init__(self, reason: WhyUnusable) -> None:
        super().__init__(reason)
        self.reason = reason


@cache
def _marks() -> tuple[re.Pattern[str], ...]:
    """Patterns that find the speaker at the start of a turn, for transcripts in one text."""
    names = sorted(map(re.escape, formats().speakers), key=len, reverse=True)
    return (
        re.compile(r"(?:^|\n\n)(Human|Assistant|System): ?"),
        re.compile(r"\n?### ?(Human|Assistant|System|User): ?"),
        re.compile(r"(?:^|\n|(?<=[.!?>] ))(USER|ASSISTANT|SYSTEM): ?"),
        re.compile(r"(?:^|\n)(User|Assistant|System|Bot|Customer|Agent): ?"),
        # Chats as support desks export them: other languages, the time before the speaker.
        re.compile(
            r"(?:^|\n)[ \t]*(?:\[?\d[\d:./, -]{3,20}(?:[ap]m)?\]?[ \t-]*)?"
            rf"({'|'.join(names)})[ \t]*[:：][ \t]*",
            re.IGNORECASE,
        ),
    )


def role_of_speaker(name: Any) -> str | None:
    """The role that chat templates know for what people call a speaker; None for other values."""
    return formats().speakers.get(name.strip().lower()) if isinstance(name, str) else None


def parsed(text: Any) -> Any:
    """The value of a JSON text; None if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def text_of(value: Any) -> str | None:
    """The text of a content: a string, or a list of text parts joined; None for other parts."""
    if not isinstance(value, list):
        return value if isinstance(value, str) else None
    parts = [part if isinstance(part, str) else _text_of_part(part) for part in value]
    return None if None in parts else "".join(filter(None, parts))


def _text_of_part(part: Any) -> str | None:
    if not isinstance(part, Mapping) or part.get("type", "text") not in TEXT_PARTS:
        return None
    texts = (part.get("text"), part.get("refusal"), part.get("value", part.get("content")))
    return next((text for text in texts if isinstance(text, str)), None)


def as_turns(value: Any) -> list[Any] | None:
    """The list of turns in a cell: the list itself, a single turn, or either written as JSON text
    (CSV cells).
    """
    if isinstance(value, str):
        if value.lstrip()[:2] not in ("[{", "[ ", "[\n") or not value.rstrip().endswith("]"):
            return None
        value = parsed(value)
    if isinstance(value, Mapping):
        if turn_keys(value) is not None:
            return [value]
        value = value.get("messages")  # OpenAI's preference format: {"input": {"messages": [...]}}
    if isinstance(value, list) and value and _is_exchange(value[0]):
        return [
            {"role": str(name), "content": text}
            for exchange in value
            for name, text in (exchange.items() if isinstance(exchange, Mapping) else ())
            if role_of_speaker(name) and text is not None
        ]
    return value if isinstance(value, list) and value and isinstance(value[0], Mapping) else None


def turn_keys(turn: Any) -> tuple[str, str] | None:
    """(key of the speaker, key of the text) of a turn, or None if it is none."""
    if not isinstance(turn, Mapping):
        return None
    keys = formats().turns
    role = next((key for key in keys.speaker if isinstance(turn.get(key), str)), None)
    if role is None:
        role = next((key for key in keys.loose if role_of_speaker(turn.get(key))), None)
    if role is None:
        return None
    content = next((key for key in keys.content if key in turn), None)
    if content is None:
        return (role, "content") if any(key in turn for key in (*CALLS, "refusal")) else None
    return role, content


def _is_exchange(item: Any) -> bool:
    """Whether an object holds what both sides say, under their names: {"user": ..., "bot": ...}."""
    if not isinstance(item, Mapping) or len(item) > MOST_EXCHANGE_KEYS:
        return False
    return {"user", "assistant"} <= {role_of_speaker(name) for name in item}


def read_turn(turn: Any) -> Message:
    """One turn as a message. Raises UnusableRow."""
    if isinstance(turn, dict) and len(turn) == 2:  # nearly every turn there is
        plain, text = turn.get("role"), turn.get("content")
        if isinstance(plain, str) and isinstance(text, str) and plain in CHAT_ROLES:
            return Message(plain, text)
    keys = turn_keys(turn)
    if keys is None:
        raise UnusableRow("broken-conversation")
    role_key, content_key = keys
    name = turn[role_key]
    role = role_of_speaker(name)
    if role is None:
        raise UnusableRow("unknown-role")
    content = turn.get(content_key)
    if content is None:  # an assistant that only calls a tool, or refuses
        refusal = turn.get("refusal")
        content = refusal if isinstance(refusal, str) else ""
    content = text_of(content)
    if content is None:
        raise UnusableRow("content-not-text")
    weight = turn.get("weight", 1.0)
    if weight is None or isinstance(weight, bool | str):  # CSV cells and some exports
        weight = WEIGHTS.get(weight.strip() if isinstance(weight, str) else weight, -1.0)
    if not isinstance(weight, (int, float)) or not 0 <= weight < 1e300:
        raise UnusableRow("weight-is-no-number")
    # Parquet fills what a turn does not have with None.
    extra = {
        key: cell
        for key, cell in turn.items()
        if cell is not None and key not in (role_key, content_key, "weight", "refusal")
    }
    if not (_are_calls(extra.get("tool_calls")) and _is_call(extra.get("function_call"))):
        raise UnusableRow("no-function-calls")
    if name in CALL_TURNS:
        calls = tool_calls(content)
        return Message(role, "", 1.0, {"tool_calls": calls}) if calls else Message(role, content)
    return Message(role, content, float(weight), extra)


def _are_calls(value: Any) -> bool:
    """Whether it is a list of function calls as chat templates read them, or nothing."""
    return not value or (isinstance(value, list) and all(item and _is_call(item) for item in value))


def _is_call(value: Any) -> bool:
    """Whether it is a call of a function with a name, or nothing."""
    function = value.get("function", value) if isinstance(value, Mapping) else value
    return not value or (isinstance(function, Mapping) and isinstance(function.get("name"), str))


def tool_calls(value: Any) -> list[dict[str, Any]]:
    """Function calls written as JSON ({"name", "arguments"} or a list of them) in the form that
    chat templates take; [] if they are not.
    """
    if isinstance(value, str):
        value = parsed(value)
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, Mapping) and isinstance(item.get("name"), str) for item in items):
        return []
    return [
        {
            "type": "function",
            "function": {
                "name": item["name"],
                "arguments": item.get("arguments", item.get("parameters", {})),
            },
        }
        for item in items
    ]


def read_messages(value: Any) -> tuple[Message, ...]:
    """A cell's turns as messages. Raises UnusableRow."""
    turns = as_turns(value)
    if turns is None:
        raise UnusableRow("broken-conversation")
    return tuple(map(read_turn, turns))


def read_transcript(text: Any) -> tuple[Message, ...] | None:
    """The turns of a text such as "Human: ... Assistant: ...", or None if it is not one.

    It has to begin with a speaker and to hold at least one turn of each side.
    """
    if not isinstance(text, str):
        return None
    for pattern in _marks():
        found = list(pattern.finditer(text))
        if len(found) < 2 or text[: found[0].start()].strip():
            continue
        ends = [*(mark.start() for mark in found[1:]), len(text)]
        messages = tuple(
            Message(formats().speakers[mark.group(1).lower()], text[mark.end() : end].strip())
            for mark, end in zip(found, ends, strict=True)
        )
        if {"user", "assistant"} <= {message.role for message in messages}:
            return messages
    return None


def trainable(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages, if some turn of the assistant can be trained on. Raises UnusableRow."""
    for message in messages:
        said = message.content.strip() or message.extra
        if message.role == "assistant" and message.weight and said:
            return messages
    raise UnusableRow("row-without-answer")


def shared_prefix_length(left: tuple[Message, ...], right: tuple[Message, ...]) -> int:
    """How many leading messages two conversations share, without the last of the shorter one."""
    pairs = zip(left[:-1], right[:-1], strict=False)
    alike = (one.role == other.role and one.content == other.content for one, other in pairs)
    return sum(takewhile(bool, alike))
