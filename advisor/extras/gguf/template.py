"""A chat template as fixed texts around what people say, for Ollama: found by writing probe
conversations, and held against the model's own template on many random ones.

A template is a program. What it writes between the words of a conversation is mostly fixed. Those
texts are found by writing conversations of known words and cutting at the words. Nothing is
guessed: what does not come out alike in one, two and three questions is refused.
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice

from advisor.data.templates.chat_text import ChatText, RefusedByTemplate, Turn
from advisor.data.templates.messages import END_MARK, MARK, SWITCHES
from advisor.extras.gguf.go import Shape, written_by_ollama

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


@dataclass(frozen=True, kw_only=True, slots=True)
class OllamaTemplate:
    """Texts that Ollama puts together as the model's own template does."""

    shape: Shape
    compared: int  # conversations that came out alike
    lost: Sequence[str]  # what of the model's template it does not do, in sentences


def ollama_template(
    chat: ChatText, *, fixed: Iterable[str] = (), today: datetime.date
) -> OllamaTemplate:
    """The texts of a chat template, which the plan gives fixed arguments, compared with it. Raises
    NotExpressible.
    """
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
        chat.as_trained(TURNS[:1], prompt=True, **{name: state})
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
    """The texts before, between and after the words of these turns. Raises NotExpressible if they
    do not stand there once each, in this order.
    """
    found = []
    for turn in turns:
        before, there, text = text.partition(str(turn["content"]))
        if not there or there in text:
            raise NotExpressible(
                "it leaves words out, repeats them, or writes them in another order"
            )
        found.append(before)
    return [*found, text]


def shape_of(write: Write) -> Shape:
    """The fixed texts of a template. Raises NotExpressible."""
    try:
        head, prompt = cut(write(TURNS[:1], prompt=True), TURNS[:1])
        _, answered, asked, _ = three = cut(write(TURNS[:3], prompt=True), TURNS[:3])
        five = cut(write(TURNS, prompt=True), TURNS)
        shape = Shape(head=head, system=None, asked=asked, answered=answered, prompt=prompt)
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


def _stripped(write: Write, shape: Shape) -> tuple[str, ...]:
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


def conversations(shape: Shape, chance: random.Random) -> Iterator[list[Turn]]:
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


def check(shape: Shape, write: Write) -> int:
    """How many conversations were compared. Raises NotExpressible with the first that Ollama would
    write in another way than the model's template does.
    """
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
