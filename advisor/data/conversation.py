"""Turns of a conversation as messages, whichever of the common spellings the file uses."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from advisor.data.example import Message

# What people call the speakers -> the four roles that chat templates know.
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "customer": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "agent": "assistant",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
}
CHAT_ROLES = frozenset(("system", "user", "assistant", "tool"))
# Other names of the two speakers, in the languages of words.py.
_USERS = (
    "client visitor guest caller requester"
    " kunde kundin nutzer benutzer klant gebruiker kund bruger utilisateur cliente usuario usuário"
    " utente klient użytkownik zákazník müşteri kullanıcı клиент пользователь"
    " 顧客 お客様 お客さま ユーザー 利用者 用户 客户 顾客 고객 사용자"
)
_ASSISTANTS = (
    "support operator representative rep advisor staff helpdesk csr"
    " mitarbeiter mitarbeiterin berater medewerker handläggare conseiller agente asesor operador"
    " atendente operatore konsultant operátor temsilci assistent assistente asistente"
    " оператор специалист консультант ассистент"
    " 担当者 担当 オペレーター スタッフ サポート アシスタント 客服 助手 상담원 상담사"
)
ROLES |= {
    **dict.fromkeys(_USERS.split(), "user"),
    **dict.fromkeys(_ASSISTANTS.split(), "assistant"),
}
ROLE_KEYS = ("role", "from", "speaker")
# Keys that hold many other things too: they name a speaker where they hold the name of one.
LOOSE_ROLE_KEYS = ("sender", "author", "who", "type", "by", "name")
CONTENT_KEYS = ("content", "value", "text", "message", "parts", "body", "utterance", "msg")
CALLS = ("tool_calls", "function_call")
# Kinds of the parts of a content that are text; a refusal is an answer like another.
TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
MOST_EXCHANGE_KEYS = 6  # of an object with a text of each side; larger ones are other things
# Reasons why a row cannot be used; the texts are in examples.py.
BROKEN = "broken-conversation"
UNKNOWN_ROLE = "unknown-role"
NOT_TEXT = "content-not-text"
NO_CALLS = "no-function-calls"
BAD_WEIGHT = "weight-is-no-number"

_MARKS = (
    # Transcripts in one text. Each pattern finds the speaker at the start of a turn.
    re.compile(r"(?:^|\n\n)(Human|Assistant|System): ?"),
    re.compile(r"\n?### ?(Human|Assistant|System|User): ?"),
    re.compile(r"(?:^|\n|(?<=[.!?>] ))(USER|ASSISTANT|SYSTEM): ?"),
    re.compile(r"(?:^|\n)(User|Assistant|System|Bot|Customer|Agent): ?"),
    # Chats as support desks export them: other languages, the time before the speaker.
    re.compile(
        r"(?:^|\n)[ \t]*(?:\[?\d[\d:./, -]{3,20}(?:[ap]m)?\]?[ \t-]*)?"
        rf"({'|'.join(sorted(map(re.escape, ROLES), key=len, reverse=True))})[ \t]*[:：][ \t]*",
        re.IGNORECASE,
    ),
)


def text_of(value: Any) -> str | None:
    """The text of a content: a string, or a list of text parts joined.

    None where a part is not text.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        parts: list[str] = []
        for part in value:
            if isinstance(part, str):
                parts.append(part)
                continue
            if not isinstance(part, Mapping) or part.get("type", "text") not in TEXT_PARTS:
                return None
            text = next(
                (part[key] for key in ("text", "refusal") if isinstance(part.get(key), str)),
                part.get("value", part.get("content")),
            )
            if not isinstance(text, str):
                return None
            parts.append(text)
        return "".join(parts)
    return None


def as_turns(value: Any) -> list[Any] | None:
    """The list of turns in a cell: the list itself, a single turn, or either written as JSON text
    (CSV cells).
    """
    if (
        isinstance(value, str)
        and value.lstrip()[:2] in ("[{", "[ ", "[\n")
        and value.rstrip().endswith("]")
    ):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if isinstance(value, Mapping):
        if turn_keys(value) is not None:
            return [value]
        value = value.get("messages")  # OpenAI's preference format: {"input": {"messages": [...]}}
    if isinstance(value, list) and value and _is_exchange(value[0]):
        return [
            {"role": str(name), "content": said}
            for exchange in value
            for name, said in (exchange.items() if isinstance(exchange, Mapping) else ())
            if _speaker(name) and said is not None
        ]
    return value if isinstance(value, list) and value and isinstance(value[0], Mapping) else None


def turn_keys(turn: Any) -> tuple[str, str] | None:
    """(key of the speaker, key of the text) of a turn, or None where it is none."""
    if not isinstance(turn, Mapping):
        return None
    role = next((key for key in ROLE_KEYS if isinstance(turn.get(key), str)), None)
    if role is None:
        role = next((key for key in LOOSE_ROLE_KEYS if _speaker(turn.get(key))), None)
    if role is None:
        return None
    content = next((key for key in CONTENT_KEYS if key in turn), None)
    if content is None:
        return (role, "content") if any(key in turn for key in (*CALLS, "refusal")) else None
    return role, content


def _is_exchange(item: Any) -> bool:
    """Whether an object holds what both sides say, under their names: {"user": ..., "bot": ...}."""
    if not isinstance(item, Mapping) or len(item) > MOST_EXCHANGE_KEYS:
        return False
    sides = {ROLES[name.strip().lower()] for name in item if _speaker(name)}
    return {"user", "assistant"} <= sides


def _speaker(name: Any) -> bool:
    return isinstance(name, str) and name.strip().lower() in ROLES


def read_turn(turn: Any) -> Message | str:
    """One turn as a message, or the reason why not."""
    if isinstance(turn, dict) and len(turn) == 2:  # nearly every turn there is
        plain, said = turn.get("role"), turn.get("content")
        if isinstance(plain, str) and isinstance(said, str) and plain in CHAT_ROLES:
            return Message(plain, said)
    keys = turn_keys(turn)
    if keys is None:
        return BROKEN
    role_key, content_key = keys
    name = turn[role_key]
    role = ROLES.get(name) or ROLES.get(name.strip().lower())
    if role is None:
        return UNKNOWN_ROLE
    content = turn.get(content_key)
    if not isinstance(content, str):
        if content is None:  # an assistant that only calls a tool, or refuses
            content = turn["refusal"] if isinstance(turn.get("refusal"), str) else ""
        else:
            text = text_of(content)
            if text is None:
                return NOT_TEXT
            content = text
    if len(turn) == 2 and content_key in turn:
        return (
            Message(role, content)
            if name != "function_call" and name != "tool_call"
            else _called(content)
        )
    weight = turn.get("weight", 1.0)
    if weight is None or isinstance(weight, bool):
        weight = 1.0 if weight is not False else 0.0
    elif isinstance(weight, str):  # CSV cells and some exports
        weight = {"0": 0.0, "0.0": 0.0, "1": 1.0, "1.0": 1.0}.get(weight.strip(), -1.0)
    if not isinstance(weight, (int, float)) or not 0 <= weight < 1e300:
        return BAD_WEIGHT
    # Parquet fills what a turn does not have with None.
    extra = {
        key: cell
        for key, cell in turn.items()
        if cell is not None and key not in (role_key, content_key, "weight", "refusal")
    }
    if not (_are_calls(extra.get("tool_calls")) and _is_call(extra.get("function_call"))):
        return NO_CALLS
    if name in ("function_call", "tool_call"):
        return _called(content)
    return Message(role, content, float(weight), extra)


def _are_calls(value: Any) -> bool:
    """Whether it is a list of function calls as chat templates read them, or nothing."""
    return not value or (isinstance(value, list) and all(item and _is_call(item) for item in value))


def _is_call(value: Any) -> bool:
    """Whether it is a call of a function with a name, or nothing."""
    function = value.get("function", value) if isinstance(value, Mapping) else value
    return not value or (isinstance(function, Mapping) and isinstance(function.get("name"), str))


def _called(content: str) -> Message:
    """A ShareGPT `function_call` turn as the call it is, or as text where it is not the usual
    JSON.
    """
    calls = tool_calls(content)
    return (
        Message("assistant", "", 1.0, {"tool_calls": calls})
        if calls
        else Message("assistant", content)
    )


def tool_calls(value: Any) -> list[dict[str, Any]]:
    """Function calls written as JSON ({"name", "arguments"} or a list of them) in the form that
    chat templates take.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    items = value if isinstance(value, list) else [value]
    calls: list[dict[str, Any]] = []
    for item in items:
        if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
            return []
        calls.append(
            {
                "type": "function",
                "function": {
                    "name": item["name"],
                    "arguments": item.get("arguments", item.get("parameters", {})),
                },
            }
        )
    return calls


def read_messages(value: Any) -> tuple[Message, ...] | str:
    """A cell's turns as messages, or the reason why not."""
    turns = as_turns(value)
    if turns is None:
        return BROKEN
    messages: list[Message] = []
    for turn in turns:
        message = read_turn(turn)
        if isinstance(message, str):
            return message
        messages.append(message)
    return tuple(messages)


def read_transcript(text: Any) -> tuple[Message, ...] | None:
    """The turns of a text such as "Human: ... Assistant: ...", or None where it is not one.

    It has to begin with a speaker and to hold at least one turn of each side.
    """
    if not isinstance(text, str):
        return None
    for pattern in _MARKS:
        found = list(pattern.finditer(text))
        if len(found) < 2 or text[: found[0].start()].strip():
            continue
        messages = tuple(
            Message(
                ROLES[mark.group(1).lower()],
                text[
                    mark.end() : found[index + 1].start() if index + 1 < len(found) else len(text)
                ].strip(),
            )
            for index, mark in enumerate(found)
        )
        if {"user", "assistant"} <= {message.role for message in messages}:
            return messages
    return None


def has_trainable_answer(messages: tuple[Message, ...]) -> bool:
    """True where some assistant turn can be trained on."""
    return any(
        message.role == "assistant"
        and message.weight
        and (message.content.strip() or message.extra)
        for message in messages
    )


def shared_prefix_length(left: tuple[Message, ...], right: tuple[Message, ...]) -> int:
    """How many leading messages two conversations share; the last one of the shorter is never
    counted.
    """
    count = 0
    for first, second in zip(left[:-1], right[:-1], strict=False):
        if first.role != second.role or first.content != second.content:
            break
        count += 1
    return count
