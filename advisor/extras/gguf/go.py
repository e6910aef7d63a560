"""A conversation as Ollama writes it from the fixed texts of a chat template, and these texts as a
TEMPLATE, in the template language of Go. A test holds one against the other, a long one against Go.

What Ollama gives a template was read in its source (template.go, version of August 2026): messages
in a row from one role are joined by an empty line, `.System` holds all system messages joined in
the same way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from advisor.data.templates.messages import END_MARK, MARK

QUOTES = '"""'  # around a value in a Modelfile
# By this form Ollama knows the marks of thoughts, and takes them out of an answer.
THOUGHTS = (
    "{{ if and $last .Thinking }}{{ if .Thinking }}"
    f"{MARK}\n{{{{ .Thinking }}}}\n{END_MARK}\n\n"
    "{{ end }}{{ end }}"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """The fixed texts of a chat template."""

    head: str  # before the first question, if there is no system message
    system: tuple[str, str] | None  # before the system message, and from it to the first question
    asked: str  # from an answer to the next question
    answered: str  # from a question to its answer
    prompt: str  # behind the last question
    drops_thoughts: bool = False  # of earlier answers
    strips: Sequence[str] = ()  # roles whose words lose white space at both ends

    def without(self, first: str) -> Shape:
        """Without the text that begins every conversation."""
        system = self.system and (self.system[0].removeprefix(first), self.system[1])
        return replace(self, head=self.head.removeprefix(first), system=system)


def written_by_ollama(shape: Shape, messages: Sequence[Mapping[str, str]]) -> str:
    """The text that Ollama writes for a conversation."""
    joined: list[dict[str, str]] = []
    for message in messages:
        if joined and joined[-1]["role"] == message["role"]:
            joined[-1]["content"] += f"\n\n{message['content']}"
        else:
            joined.append(dict(message))
    system = "\n\n".join(one["content"] for one in messages if one["role"] == "system")
    text, between = shape.head, ""
    if shape.system is not None and system:
        text = system.join(shape.system)
    for message in joined:
        if message["role"] == "user":
            text += between + message["content"]
            text += shape.prompt if message is joined[-1] else ""
        elif message["role"] == "assistant":
            text += shape.answered + message["content"]
        between = between if message["role"] == "system" else shape.asked
    return text


def go_template(shape: Shape) -> str:
    """The TEMPLATE."""
    head = [go_text(shape.head)]
    if shape.system is not None:
        before, after = map(go_text, shape.system)
        head = [
            "{{ if .System }}",
            before,
            "{{ .System }}",
            after,
            "{{ else }}",
            *head,
            "{{ end }}",
        ]
    parts = [
        *head,
        "{{ $asked := false }}{{ range $i, $_ := .Messages }}",
        "{{ $last := eq (len (slice $.Messages $i)) 1 }}",
        '{{ if eq .Role "user" }}{{ if $asked }}',
        go_text(shape.asked),
        "{{ end }}{{ $asked = true }}{{ .Content }}{{ if $last }}",
        go_text(shape.prompt),
        '{{ end }}{{ else if eq .Role "assistant" }}',
        go_text(shape.answered),
        THOUGHTS if shape.drops_thoughts else "",
        "{{ $asked = true }}{{ .Content }}{{ end }}{{ end }}",
    ]
    return "".join(parts)


def go_text(text: str) -> str:
    """A fixed text as it stands in a TEMPLATE: where Go or the reader of Modelfiles would take it
    for something else, as code in quotes.
    """
    return text if can_hold(text) and "{" not in text else f"{{{{ {go_string(text)} }}}}"


def can_hold(text: str) -> bool:
    """Whether a value of a Modelfile, such as a system message, comes back as it is."""
    return QUOTES not in text and all(
        character in "\n\t " or character.isprintable() for character in text
    )


def go_string(text: str) -> str:
    """A text in quotes, as Go reads it."""
    return "".join(map(_printable, json.dumps(text, ensure_ascii=False)))


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
