"""Writes a conversation with our TEMPLATE as Ollama does: only what `go_template` uses of Go."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

# (a text, the code behind it); the last text has none.
PARTS = re.compile(r'(.*?)(?:\{\{ ((?:"(?:[^"\\]|\\.)*"|[^"])*?) \}\}|\Z)', re.DOTALL)
RANGE = "{{ range $i, $_ := .Messages }}"
LAST = "{{ $last := eq (len (slice $.Messages $i)) 1 }}"
END = "{{ end }}"


class NotOurs(Exception):
    """The template has something that `go_template` never writes."""


def read_template(template: str, messages: Sequence[Mapping[str, str]]) -> str:
    """The text that Ollama writes for a conversation; an answer may have `thinking`."""
    joined: list[dict[str, str]] = []
    for message in messages:
        if joined and joined[-1]["role"] == message["role"]:
            joined[-1]["content"] += f"\n\n{message['content']}"
        else:
            joined.append(dict(message))
    system = [message["content"] for message in messages if message["role"] == "system"]
    values: dict[str, Any] = {".System": "\n\n".join(system)}
    head, is_there, body = template.partition(RANGE)
    text = _written(head, values)
    if not is_there:
        return text
    if not body.endswith(END):
        raise NotOurs("a range without an end")
    for place, message in enumerate(joined):
        thinking, is_last = message.get("thinking", ""), place == len(joined) - 1
        values |= {
            'eq .Role "user"': message["role"] == "user",
            'eq .Role "assistant"': message["role"] == "assistant",
            ".Content": message["content"],
            ".Thinking": thinking,
            "$last": is_last,
            "and $last .Thinking": is_last and thinking,
        }
        text += _written(body.removeprefix(LAST).removesuffix(END), values)
    return text


def _written(part: str, values: dict[str, Any]) -> str:
    """What a part of a template without a range writes. Changes `$asked` in the values."""
    written: list[str] = []
    # Of each `if` around this place: (is it read at all, was a branch taken, is this one taken).
    around: list[tuple[bool, bool, bool]] = []
    is_read = True
    for text, code in PARTS.findall(part):
        if "{" in text:
            raise NotOurs(text)
        written.append(text if is_read else "")
        word, _, rest = code.partition(" ")
        if word == "if":
            taken = is_read and bool(_value(rest, values))
            around.append((is_read, taken, taken))
        elif word in ("else", "end"):
            if not around:
                raise NotOurs(f"{word} without an opening")
            outside, was_taken, _ = around.pop()
            if word == "else":
                test = rest.removeprefix("if ")
                now = outside and not was_taken and (not rest or bool(_value(test, values)))
                around.append((outside, was_taken or now, now))
        elif code in ("$asked := false", "$asked = true"):
            if is_read:
                values["$asked"] = code == "$asked = true"
        elif code and is_read:
            written.append(str(_value(code, values)))
        is_read = all(taken for *_, taken in around)
    if around:
        raise NotOurs("an if without an end")
    return "".join(written)


def _value(code: str, values: Mapping[str, Any]) -> Any:
    if code.startswith('"'):
        return json.loads(_json_escapes(code))
    if code not in values:
        raise NotOurs(code)
    return values[code]


def _json_escapes(text: str) -> str:
    r"""A text of Go in quotes as JSON writes it: \U0001f600 is a pair there."""
    return re.sub(r"\\U([0-9a-f]{8})", lambda found: json.dumps(chr(int(found[1], 16)))[1:-1], text)
