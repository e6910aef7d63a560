"""Writes a conversation with a TEMPLATE of ours as Ollama does, so that it can be compared with
the model's own template before anybody relies on it.

It reads the part of Go's template language that `go_template` writes, and nothing else; a long test
holds it against Go itself. What Ollama gives a template was read in its source (template.go,
version of August 2026): messages in a row from one role are joined by an empty line, `.System`
holds all system messages joined in the same way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WORD = re.compile(r'"(?:[^"\\]|\\.)*"|[()]|[^\s()]+')

Node = str | tuple[Any, ...]


class NotOurs(Exception):
    """The template has something that `go_template` never writes."""


def written_by_ollama(
    template: str, messages: Sequence[Mapping[str, str]], *, think: bool | None = None
) -> str:
    """The text that Ollama writes for a conversation.

    Args:
        messages: Role, content, and for an answer `thinking`.
        think: What the caller says of thinking; None: nothing.
    """
    joined: list[dict[str, str]] = []
    for message in messages:
        if joined and joined[-1]["role"] == message["role"] and message["role"] != "tool":
            joined[-1]["content"] += f"\n\n{message['content']}"
        else:
            joined.append(dict(message))
    system = [message["content"] for message in messages if message["role"] == "system"]
    root = {
        "System": "\n\n".join(system),
        "Messages": [
            {
                "Role": one["role"],
                "Content": one["content"],
                "Thinking": one.get("thinking", ""),
            }
            for one in joined
        ],
        "Think": bool(think),
        "IsThinkSet": think is not None,
    }
    nodes, rest = _parsed(list(_tokens(template)), 0)
    if rest is not None:
        raise NotOurs(f"{rest} without an opening")
    return _Writer(root=root).text(nodes, root)


def _tokens(template: str) -> Iterator[tuple[bool, str]]:
    """(is it code, text) of each part."""
    place = 0
    while (begin := template.find("{{ ", place)) >= 0:
        yield False, template[place:begin]
        end = begin + 3
        while not template.startswith(" }}", end):  # not inside a text in quotes
            found = WORD.match(template, end)
            end = found.end() if found else end + 1
            if end >= len(template):
                raise NotOurs("code without an end")
        yield True, template[begin + 3 : end]
        place = end + 3
    yield False, template[place:]


def _parsed(tokens: list[tuple[bool, str]], start: int) -> tuple[list[Node], str | None]:
    """(what stands there, the word that closed it). Uses up the tokens that it reads."""
    nodes: list[Node] = []
    while tokens:
        is_code, text = tokens.pop(0)
        if not is_code:
            nodes.append(text)
            continue
        word, _, more = text.partition(" ")
        if word in ("end", "else"):
            return nodes, text
        if word == "if":
            nodes.append(_condition(more, tokens))
        elif word == "range":
            body, _ = _parsed(tokens, 0)
            nodes.append(("range", more, body))
        else:
            nodes.append(("value", text))
    return nodes, None


def _condition(test: str, tokens: list[tuple[bool, str]]) -> Node:
    then, closing = _parsed(tokens, 0)
    other: list[Node] = []
    if closing is not None and closing.startswith("else if "):
        other = [_condition(closing.removeprefix("else if "), tokens)]
    elif closing == "else":
        other, _ = _parsed(tokens, 0)
    elif closing != "end":
        raise NotOurs(f"if {test} without an end")
    return ("if", test, then, other)


@dataclass(slots=True)
class _Writer:
    root: Mapping[str, Any]
    names: dict[str, Any] = field(default_factory=dict)

    def text(self, nodes: Sequence[Node], dot: Any) -> str:
        """What the nodes write."""
        written = []
        for node in nodes:
            if isinstance(node, str):
                written.append(node)
            elif node[0] == "if":
                _, test, then, other = node
                written.append(self.text(then if self.value(test, dot) else other, dot))
            elif node[0] == "range":
                written.append(self._each(node[1], node[2], dot))
            else:
                written.append(self._assigned_or_written(node[1], dot))
        return "".join(written)

    def _each(self, head: str, body: Sequence[Node], dot: Any) -> str:
        names, _, what = head.partition(" := ")
        number, _ = names.split(", ")
        written = []
        for place, item in enumerate(self.value(what, dot)):
            self.names[number] = place
            written.append(self.text(body, item))
        return "".join(written)

    def _assigned_or_written(self, code: str, dot: Any) -> str:
        name, is_set, value = code.partition(" = ")
        if not is_set:
            name, is_set, value = code.partition(" := ")
        if is_set and name.startswith("$"):
            self.names[name] = self.value(value, dot)
            return ""
        return str(self.value(code, dot))

    def value(self, code: str, dot: Any) -> Any:
        """The value of code such as `and $.System (not $asked)`."""
        words = WORD.findall(code)
        found = self._call(words, dot)
        if words:
            raise NotOurs(code)
        return found

    def _call(self, words: list[str], dot: Any) -> Any:
        """A function with what follows up to a closing parenthesis, or one value."""
        first = words.pop(0)
        arguments: list[Any] = []
        while words and words[0] != ")":
            arguments.append(self._one(words, dot))
        if first not in FUNCTIONS:
            if arguments:
                raise NotOurs(f"a function {first}")
            return self._one([first], dot)
        return FUNCTIONS[first](*arguments)

    def _one(self, words: list[str], dot: Any) -> Any:
        word = words.pop(0)
        if word == "(":
            found = self._call(words, dot)
            words.pop(0)
            return found
        if word.startswith('"'):
            return json.loads(_json_escapes(word))
        if word.startswith("$."):
            return self.root[word[2:]]
        if word.startswith("."):
            return dot[word[1:]]
        if word in self.names:
            return self.names[word]
        if word in ("true", "false"):
            return word == "true"
        if word.isdigit():
            return int(word)
        raise NotOurs(f"a word {word}")


def _json_escapes(text: str) -> str:
    r"""A text of Go in quotes as JSON writes it: \U0001f600 is a pair there."""
    return re.sub(r"\\U([0-9a-f]{8})", lambda found: json.dumps(chr(int(found[1], 16)))[1:-1], text)


def _any(*values: Any) -> Any:
    return next((value for value in values if value), values[-1])


def _all(*values: Any) -> Any:
    return next((value for value in values if not value), values[-1])


FUNCTIONS: Mapping[str, Any] = {
    "and": _all,
    "or": _any,
    "not": lambda value: not value,
    "eq": lambda one, other: one == other,
    "le": lambda one, other: one <= other,
    "len": len,
    "slice": lambda items, start: items[start:],
}
