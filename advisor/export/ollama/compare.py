"""A TEMPLATE held against the model's own template, on many random conversations."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from advisor.data.chat_text import RefusedByTemplate, Turn
from advisor.data.thoughts import SWITCHES
from advisor.export.ollama.go_reader import written_by_ollama
from advisor.export.ollama.shape import CONTINUED, NotExpressible, Shape, Write

ROUNDS = 200
# Pieces of what people write: with what templates, Go, Jinja and Modelfiles could trip over.
PIECES = (
    "Hello", "where is my parcel?", " ", "\n", "\n\n", "\t", "{{ .Content }}", "{% if x %}", "{",
    "}}", '"', '"""', "'", "\\n", "\\", "`", "$last", "<b>", "</b>", "<|", "|>", "[", "]", "#", "%",
    "&amp;", "system", "user", "assistant", "None", "0", "1.5", "é", "ß", "日本語", "😀", "\u00a0",
    "\u200b", "end", "```python\nprint(1)\n```", "- a\n- b", "|", "~", "=", ":",
)  # fmt: skip


def words(chance: random.Random, *, stripped: bool) -> str:
    """Something that a person could have written, not empty.

    Args:
        stripped: Without white space at both ends.
    """
    text = "".join(chance.choices(PIECES, k=chance.randint(1, 8)))
    return (text.strip() if stripped else text) or "yes"


def conversations(shape: Shape, chance: random.Random) -> Iterator[list[Turn]]:
    """Random conversations that end with a question, and now and then with the beginning of an
    answer.
    """

    def turn(role: str, kind: str = "") -> Turn:
        # Ollama's templates cannot strip: that is said, and not compared.
        return {"role": role, "content": words(chance, stripped=(kind or role) in shape.strips)}

    while True:
        turns = [turn("system")] if shape.system is not None and chance.random() < 0.5 else []
        for _ in range(chance.choice((0, 0, 1, 1, 2, 5))):
            turns += [turn("user"), turn("assistant")]
        turns.append(turn("user"))
        yield turns
        if chance.random() < 0.2:
            yield [*turns, turn("assistant", CONTINUED)]


def check(template: str, shape: Shape, write: Write, *, rounds: int = ROUNDS, seed: int = 0) -> int:
    """How many conversations were compared.

    Raises NotExpressible with the first that Ollama would write in another way than the model's
    template does.
    """
    chance = random.Random(seed)  # noqa: S311 - no secret
    compared = 0
    for turns in conversations(shape, chance):
        states = (None, True, False) if shape.prompts_by_switch is not None else (None,)
        for think in states:
            own = _own_text(write, shape, turns, think)
            if own is None:
                continue
            other = written_by_ollama(template, turns, think=think)
            compared += 1
            if own != other:
                raise NotExpressible(difference(turns, own, other))
        rounds -= 1
        if rounds <= 0:
            return compared
    raise AssertionError("there are always more conversations")


def _own_text(write: Write, shape: Shape, turns: Sequence[Turn], think: bool | None) -> str | None:
    """What the model's template writes; None where it does not take this conversation."""
    given = {} if think is None else dict.fromkeys(SWITCHES, think)
    try:
        if turns[-1]["role"] != "assistant":
            return write(turns, prompt=True, **given)
        text = write(turns, prompt=False, **given)
    except RefusedByTemplate:
        return None
    # An answer to be continued ends with its words.
    return text[: text.rindex(turns[-1]["content"]) + len(turns[-1]["content"])]


def difference(turns: Sequence[Turn], own: str, other: str) -> str:
    """Where two texts of a conversation begin to differ."""
    place = next(
        (at for at, (a, b) in enumerate(zip(own, other, strict=False)) if a != b),
        min(len(own), len(other)),
    )
    around = slice(max(0, place - 20), place + 20)
    return (
        f"a conversation of {len(turns)} messages comes out as {own[around]!r} by the model's"
        f" template and as {other[around]!r} by Ollama's"
    )
