"""A chat template as fixed texts around what people say, found by writing probe conversations.

A template is a program. What it writes around the words of a conversation is mostly fixed: an
opening and a closing for each speaker, something in front of everything, something that begins an
answer. Here those texts are found by writing conversations of known words and cutting at the
words. Nothing is guessed: what does not come out alike in one, two and three questions is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from advisor.data.chat_text import RefusedByTemplate, Turn
from advisor.data.template_messages import END_MARK
from advisor.data.thoughts import MARK, SWITCHES

SYSTEM, THOUGHT = "Zqs0", "Zqt0"  # words that no template writes by itself
CONTINUED = "an answer to be continued"  # beside the roles, in `strips`
TOOL = {
    "type": "function",
    "function": {
        "name": "zq_tool",
        "description": "Zqd0",
        "parameters": {"type": "object", "properties": {}},
    },
}


class NotExpressible(Exception):
    """Why the text of a template cannot be put together from fixed texts."""


class Write(Protocol):
    """Writes a conversation as the trainers do; may raise RefusedByTemplate."""

    def __call__(self, messages: Sequence[Turn], *, prompt: bool, **given: Any) -> str: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """The fixed texts of a chat template."""

    head: str  # before the first turn, if there is no system message
    system: tuple[str, str] | None  # around the system message; None: it is not written
    system_at_last: bool = False  # it stands before the last question, not before the first
    user: tuple[str, str]
    answer: tuple[str, str]
    last_answer: str  # what opens an answer that is to be continued
    prompt: str  # what begins a new answer
    # False: the head, or the closing of the system message, opens the first question too.
    opens_after_head: bool = True
    opens_after_system: bool = True
    drops_thoughts: bool = False  # of earlier answers
    dropped_whole: bool = True  # and leaves no trace of them
    thoughts: tuple[str, str] | None = None  # around the thoughts of an answer to be continued
    prompts_by_switch: Mapping[bool, str] | None = None  # thinking on and off -> `prompt`
    strips: tuple[str, ...] = ()  # roles whose words lose white space at both ends
    writes_tools: bool = False


def user(number: int) -> Turn:
    """A probe question."""
    return {"role": "user", "content": f"Zqu{number}"}


def answer(number: int) -> Turn:
    """A probe answer."""
    return {"role": "assistant", "content": f"Zqa{number}"}


def system() -> Turn:
    """A probe system message."""
    return {"role": "system", "content": SYSTEM}


def cut(text: str, words: Iterable[str]) -> list[str] | None:
    """The texts before, between and after these words; None if they do not stand there once each,
    in this order.
    """
    found = []
    for word in words:
        before, there, text = text.partition(word)
        if not there or word in text:
            return None
        found.append(before)
    return [*found, text]


def shape_of(write: Write, *, fixed: Iterable[str] = ()) -> Shape:
    """The fixed texts of a template.

    Raises NotExpressible.

    Args:
        write: The template, without the token at the very beginning if the tokenizer adds it.
        fixed: Arguments that the plan gives the template: nobody switches them.
    """
    try:
        shape, closing, opening = _turns(write)
        shape = _with_system(shape, write, closing=closing, opening=opening)
        shape = _with_thoughts(shape, write, fixed=set(fixed))
        return replace(shape, strips=_stripped(write, shape), writes_tools=_writes_tools(write))
    except RefusedByTemplate as error:
        raise NotExpressible(f"it refuses a plain conversation: {error}") from None


def _pieces(text: str, turns: Sequence[Turn]) -> list[str]:
    pieces = cut(text, [str(turn["content"]) for turn in turns])
    if pieces is None:
        raise NotExpressible("it leaves words out, repeats them, or writes them in another order")
    return pieces


def _common_start(texts: Sequence[str]) -> str:
    """What all texts begin with."""
    least, most = min(texts), max(texts)
    same = (at for at, (one, other) in enumerate(zip(least, most, strict=False)) if one != other)
    return least[: next(same, len(least))]


def _turns(write: Write) -> tuple[Shape, str, str]:
    """(the shape without a system message, what closes an answer, what opens a question)."""
    turns = [user(1), answer(1), user(2), answer(2), user(3)]
    alone, prompt = _pieces(write(turns[:1], prompt=True), turns[:1])
    _, answered, asked, _ = three = _pieces(write(turns[:3], prompt=True), turns[:3])
    if three != [alone, answered, asked, prompt] or _pieces(write(turns, prompt=True), turns) != [
        alone, answered, asked, answered, asked, prompt,
    ]:  # fmt: skip
        raise NotExpressible("it writes a turn in another way depending on how many there are")
    # A conversation that ends here shows where the words of a turn end and the next turn begins.
    _, after_question = _pieces(write(turns[:1], prompt=False), turns[:1])
    _, last_answered, after_answer = _pieces(write(turns[:2], prompt=False), turns[:2])
    followers = (answered, prompt, last_answered)
    if not all(text.startswith(after_question) for text in followers):
        after_question = _common_start(followers)
    closing = (
        after_answer if asked.startswith(after_answer) else _common_start([asked, after_answer])
    )
    opening = asked[len(closing) :]
    opens = alone.endswith(opening)
    size = len(after_question)
    shape = Shape(
        head=alone.removesuffix(opening) if opens else alone,
        opens_after_head=opens,
        system=None,
        user=(opening, after_question),
        answer=(answered[size:], closing),
        last_answer=last_answered[size:],
        prompt=prompt[size:],
    )
    return shape, closing, opening


def _with_system(shape: Shape, write: Write, *, closing: str, opening: str) -> Shape:
    turns = [system(), user(1), answer(1), user(2)]
    try:
        short = write(turns[:2], prompt=True)
        long = write(turns, prompt=True)
    except RefusedByTemplate:
        return shape
    if SYSTEM not in short:
        return shape
    before, after, rest = _pieces(short, turns[:2])
    ask = shape.user[1] + shape.prompt
    between = [shape.user[1] + shape.answer[0], closing + opening]
    if rest != ask:
        raise NotExpressible("it begins an answer in another way after a system message")
    opens = after.endswith(opening)
    around = (before, after.removesuffix(opening) if opens else after)
    if cut(long, [str(turn["content"]) for turn in turns]) == [before, after, *between, ask]:
        return replace(shape, system=around, opens_after_system=opens)
    late = [turns[1], turns[2], turns[0], turns[3]]
    pieces = _pieces(long, late)
    alone = shape.head + (opening if shape.opens_after_head else "")
    own = pieces[2].removeprefix(closing)
    if pieces != [alone, between[0], closing + own, after, ask] or before != shape.head + own:
        raise NotExpressible("it moves the system message in a way of its own")
    return replace(shape, system=(own, around[1]), system_at_last=True, opens_after_system=opens)


def _with_thoughts(shape: Shape, write: Write, *, fixed: set[str]) -> Shape:
    turns = [user(1), answer(1), user(2)]
    plain = write(turns, prompt=True)
    said = f"{MARK}\n{THOUGHT}\n{END_MARK}\n\n{turns[1]['content']}"
    thought = {"role": "assistant", "content": said}
    try:
        text = write([turns[0], thought, turns[2]], prompt=True)
    except RefusedByTemplate:
        return shape
    if THOUGHT in text:
        return shape
    shape = replace(shape, drops_thoughts=True, dropped_whole=text == plain)
    beside = {**turns[1], "reasoning_content": THOUGHT}
    for last in (beside, thought):
        text = write([turns[0], last], prompt=False)
        pieces = cut(text, [str(user(1)["content"]), THOUGHT, str(answer(1)["content"])])
        start = shape.user[1] + shape.answer[0]
        if pieces is not None and pieces[1].startswith(start + MARK) and END_MARK in pieces[2]:
            shape = replace(shape, thoughts=(pieces[1][len(start) :], pieces[2]))
            break
    return _with_switch(shape, write, fixed)


def _with_switch(shape: Shape, write: Write, fixed: set[str]) -> Shape:
    """With what begins an answer where somebody switches thoughts on or off."""
    first = shape.head + (shape.user[0] if shape.opens_after_head else "")
    start = f"{first}{user(1)['content']}{shape.user[1]}"
    for name in SWITCHES:
        if name in fixed:
            continue
        texts = {state: write([user(1)], prompt=True, **{name: state}) for state in (True, False)}
        if texts[True] != texts[False] and all(text.startswith(start) for text in texts.values()):
            prompts = {state: text[len(start) :] for state, text in texts.items()}
            return replace(shape, prompts_by_switch=prompts)
    return shape


def _stripped(write: Write, shape: Shape) -> tuple[str, ...]:
    """The roles whose words lose white space at both ends; CONTINUED for an answer that is to be
    continued.
    """
    turns = [*([system()] if shape.system else []), user(1), answer(1), user(2)]

    def strips(turns: Sequence[Turn], place: int, *, prompt: bool) -> bool:
        word = str(turns[place]["content"])
        plain = write(turns, prompt=prompt)
        for pad in ("\n {} \n", " \n{}\n "):  # some remove newlines alone
            padded = pad.format(word)
            changed = [*turns]
            changed[place] = {**turns[place], "content": padded}
            if write(changed, prompt=prompt) != plain.replace(word, padded):
                return True
        return False

    found = [
        str(turn["role"])
        for place, turn in enumerate(turns[:-1])
        if strips(turns, place, prompt=True)
    ]
    continued = strips([user(1), answer(1)], 1, prompt=False)
    return (*found, *([CONTINUED] if continued else []))


def _writes_tools(write: Write) -> bool:
    try:
        return "zq_tool" in write([user(1)], prompt=True, tools=[TOOL])
    except RefusedByTemplate:
        return False
