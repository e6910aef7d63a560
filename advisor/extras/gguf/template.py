"""A chat template as fixed texts around what people say, for Ollama: found by writing probe
conversations, and held against the model's own template on many random ones.

A template is a program. What it writes between the words of a conversation is mostly fixed. Those
texts are found by writing conversations of known words and cutting at the words. Nothing is
guessed: what does not come out alike in one, two and three questions is refused.
"""

from __future__ import annotations

import datetime
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice

from msgspec import Struct
from msgspec.structs import replace

from advisor.data.templates.chat_text import (
    END_MARK,
    MARK,
    SWITCHES,
    ChatText,
    RefusedByTemplate,
    Turn,
)

# Probe conversations, of words that no template writes by itself.
SPOKEN = ("user", "assistant", "user", "assistant", "user")
TURNS: Sequence[Turn] = [{"role": role, "content": f"Zq{at}"} for at, role in enumerate(SPOKEN)]
SYSTEM: Turn = {"role": "system", "content": "Zqs"}
THOUGHT = "Zqt"
ROUNDS = 200
# Pieces of what people write: with what templates, Go, Jinja and Modelfiles could trip over.
PIECES = (
    "Hello", "where is my parcel?", " ", "\n", "\n\n", "\t", "{{ .Content }}", "{% if x %}", "{",
    "}}", '"', '"""', "'", "\\n", "\\", "`", "$last", "<b>", "</b>", "<|", "|>", "[", "]", "#", "%",
    "&amp;", "system", "user", "assistant", "None", "0", "1.5", "é", "ß", "日本語", "😀", "\u00a0",
    "\u200b", "end", "```python\nprint(1)\n```", "- a\n- b", "|", "~", "=", ":",
)  # fmt: skip
SPEAKERS = {"system": "system messages", "user": "questions", "assistant": "earlier answers"}


Write = Callable[..., str]  # (turns, prompt=): as the trainers do; may raise RefusedByTemplate


class NotExpressible(Exception):
    """Why the text of a template cannot be put together from fixed texts."""


class OllamaTemplate(Struct, frozen=True, kw_only=True):
    """Texts that Ollama puts together as the model's own template does."""

    shape: FixedTexts
    compared: int  # conversations that came out alike
    lost: Sequence[str]  # what of the model's template it does not do, in sentences


def ollama_template(
    chat: ChatText, *, fixed: Iterable[str] = (), today: datetime.date
) -> OllamaTemplate:
    """The fixed texts of a chat template, compared with it. Raises NotExpressible."""
    chat.on(today)
    shape = shape_of(chat.as_trained)
    compared = check(shape, chat.as_trained)
    lost = []
    if "strftime_now" in chat.source:
        lost.append(
            f"the model's template writes the day's date; Ollama's always writes {today:%Y-%m-%d},"
            " the day of this export"
        )
    if stripped := [SPEAKERS[role] for role in SPEAKERS if role in shape.strips]:
        listed = " and ".join(filter(None, (", ".join(stripped[:-1]), stripped[-1])))
        lost.append(
            f"the model's template removes white space around {listed}; Ollama's cannot: send them"
            " without"
        )
    if shape.system is None:
        lost.append("the model's template leaves system messages out, and so does this one")
    if "tools" in chat.source:
        lost.append(
            "calls of functions are not in this template: a server that reads the model's own"
            " carries them (vLLM; llama.cpp's with --jinja; Ollama from the .gguf, in versions"
            " that prefer it)"
        )
    prompts = {
        chat.as_trained(TURNS[:1], {name: state}, prompt=True)
        for name in SWITCHES
        for state in (True, False)
        if name not in fixed
    }
    if len(prompts) > 1:
        lost.append(
            "thinking cannot be switched on and off in Ollama: it is as without a switch. The plan"
            " can say which: template: {enable_thinking: false}"
        )
    return OllamaTemplate(shape=shape, compared=compared, lost=lost)


# --------------------------------------------------------------------------- the fixed texts


def cut(text: str, turns: Iterable[Turn]) -> list[str]:
    """The texts around the words of these turns. Raises NotExpressible if one is not there once."""
    found = []
    for turn in turns:
        before, there, text = text.partition(str(turn["content"]))
        if not there or there in text:
            raise NotExpressible(
                "it leaves words out, repeats them, or writes them in another order"
            )
        found.append(before)
    return [*found, text]


def shape_of(write: Write) -> FixedTexts:
    """The fixed texts of a template. Raises NotExpressible."""
    try:
        head, prompt = cut(write(TURNS[:1], prompt=True), TURNS[:1])
        _, answered, asked, _ = three = cut(write(TURNS[:3], prompt=True), TURNS[:3])
        five = cut(write(TURNS, prompt=True), TURNS)
        shape = FixedTexts(head=head, system=None, asked=asked, answered=answered, prompt=prompt)
        once = [answered, asked]
        if three != [head, *once, prompt] or five != [head, *once, *once, prompt]:
            raise NotExpressible("it writes a turn in another way depending on how many there are")
        takes_system = False
        with suppress(RefusedByTemplate):
            takes_system = str(SYSTEM["content"]) in write([SYSTEM, TURNS[0]], prompt=True)
        if takes_system:
            turns = [SYSTEM, *TURNS[:3]]
            before, after, *rest = cut(write(turns, prompt=True), turns)
            if rest != [*once, prompt]:
                raise NotExpressible("it moves the system message in a way of its own")
            shape = replace(shape, system=(before, after))
        said = f"{MARK}\n{THOUGHT}\n{END_MARK}\n\nyes"
        text = write([TURNS[0], {"role": "assistant", "content": said}, TURNS[2]], prompt=True)
        return replace(shape, drops_thoughts=THOUGHT not in text, strips=_stripped(write, shape))
    except RefusedByTemplate as error:
        raise NotExpressible(f"it refuses a plain conversation: {error}") from None


def _stripped(write: Write, shape: FixedTexts) -> tuple[str, ...]:
    """The roles whose words lose white space at both ends."""
    turns = [*([SYSTEM] if shape.system else []), *TURNS[:3]]
    plain = write(turns, prompt=True)
    found = []
    for place, turn in enumerate(turns[:-1]):
        for pad in ("\n {} \n", " \n{}\n "):  # some remove newlines alone
            padded = pad.format(turn["content"])
            changed = [*turns[:place], {**turn, "content": padded}, *turns[place + 1 :]]
            if write(changed, prompt=True) != plain.replace(str(turn["content"]), padded):
                found.append(str(turn["role"]))
                break
    return tuple(found)


# --------------------------------------------------------------------------- the comparison


def conversations(shape: FixedTexts, chance: random.Random) -> Iterator[list[Turn]]:
    """Random conversations that end with a question."""

    def turn(role: str) -> Turn:
        words = "".join(chance.choices(PIECES, k=chance.randint(1, 8)))
        if role in shape.strips:  # Ollama's templates cannot: that is said, and not compared
            words = words.strip()
        return {"role": role, "content": words or "yes"}

    while True:
        turns = [turn("system")] if shape.system is not None and chance.random() < 0.5 else []
        for _ in range(chance.choice((0, 0, 1, 1, 2, 5))):
            turns += [turn("user"), turn("assistant")]
        yield [*turns, turn("user")]


def check(shape: FixedTexts, write: Write) -> int:
    """How many conversations came out alike. Raises NotExpressible at the first that does not."""
    compared = 0
    for turns in islice(conversations(shape, random.Random(0)), ROUNDS):  # noqa: S311 - no secret
        try:
            own = write(turns, prompt=True)
        except RefusedByTemplate:
            continue
        compared += 1
        other = written_by_ollama(shape, turns)
        if own != other:
            pairs = enumerate(zip(f"{own}\0", f"{other}\0", strict=False))
            at = next(place for place, (a, b) in pairs if a != b)
            around = slice(max(0, at - 20), at + 20)
            raise NotExpressible(
                f"a conversation of {len(turns)} messages comes out as {own[around]!r} by the"
                f" model's template and as {other[around]!r} by Ollama's"
            )
    return compared


QUOTES = '"""'  # around a value in a Modelfile
# By this form Ollama knows the marks of thoughts, and takes them out of an answer.
THOUGHTS = (
    "{{ if and $last .Thinking }}{{ if .Thinking }}"
    f"{MARK}\n{{{{ .Thinking }}}}\n{END_MARK}\n\n"
    "{{ end }}{{ end }}"
)


class FixedTexts(Struct, frozen=True, kw_only=True):
    """The fixed texts of a chat template."""

    head: str  # before the first question, if there is no system message
    system: tuple[str, str] | None  # before the system message, and from it to the first question
    asked: str  # from an answer to the next question
    answered: str  # from a question to its answer
    prompt: str  # behind the last question
    drops_thoughts: bool = False  # of earlier answers
    strips: Sequence[str] = ()  # roles whose words lose white space at both ends

    def without(self, first: str) -> FixedTexts:
        """Without the text that begins every conversation."""
        system = self.system and (self.system[0].removeprefix(first), self.system[1])
        return replace(self, head=self.head.removeprefix(first), system=system)


def written_by_ollama(shape: FixedTexts, messages: Sequence[Mapping[str, str]]) -> str:
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


def go_template(shape: FixedTexts) -> str:
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
    """A fixed text as it stands in a TEMPLATE; as code if Go would read it otherwise."""
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
