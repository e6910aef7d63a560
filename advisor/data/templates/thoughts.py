"""Thoughts of models that think before they answer: whether the answers of a row hold any, whether
a chat template asks for them, and what to do if data and model disagree.

Models that think write `<think> ... </think>` in front of an answer (Qwen3, DeepSeek-R1, SmolLM3)
or a channel of its own (gpt-oss). Data has them in the answer, or beside it in `reasoning_content`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from advisor.data.example import Example, Message
from advisor.ground.errors import InputError

MARK = "<think>"
KEYS = ("reasoning_content", "reasoning", "thinking")  # of a message, beside its content
SWITCHES = ("enable_thinking", "thinking")  # arguments of templates
ALWAYS = "always"  # no argument switches the thoughts off


def holds_thoughts(message: Message) -> bool:
    """Whether an answer comes with the thoughts behind it."""
    return MARK in message.content or has_reasoning(message)


def has_reasoning(message: Message) -> bool:
    """Whether thoughts stand beside an answer, not in it."""
    return any(message.extra.get(key) for key in KEYS)


def answers_of(example: Example) -> tuple[Message, ...]:
    """The answers that a row teaches."""
    ends = (*example.chosen, *example.rejected)
    return tuple(message for message in (*example.messages, *ends) if message.role == "assistant")


def switch_of(source: str, render: Callable[..., str]) -> str | None:
    """The argument that, set to false, switches the thoughts of a template off; ALWAYS if none
    does; None if the model does not think unless it is asked to.

    Args:
        source: The template.
        render: Writes a question and what stands in front of the answer, with arguments.
    """
    try:
        usual = render()
        for name in SWITCHES:
            if name in source and render(**{name: True}) != render(**{name: False}):
                return name if usual == render(**{name: True}) else None
    except InputError:  # it does not come to an end
        raise
    except Exception:  # a template may raise anything
        return None
    if "reasoning_effort" in source or usual.rstrip().endswith(MARK):
        return ALWAYS
    return None


def missing_text(switch: str) -> str:
    """What to do if the model thinks and none of the answers holds thoughts.

    Args:
        switch: What `switch_of` gives.
    """
    what = (
        "this model thinks before it answers, and no answer in the data holds thoughts: it learns"
        " to answer at once"
    )
    add = f"put the thoughts in front of the answers ({MARK} ... </think>)"
    if switch == ALWAYS:
        return f"{what}. To keep its thoughts, {add}; or take a model that does not think"
    return (
        f"{what}. Write `template: {{{switch}: false}}` into the plan, so that training and use"
        f" agree; or {add}"
    )


def unknown_text(rows: int) -> str:
    """What happens to thoughts if the model's template knows none.

    Args:
        rows: How many rows have thoughts.
    """
    return (
        f"{rows:,} rows with thoughts in their answers, and this model's chat template knows none:"
        f" {MARK} ... </think> is learned as text, `reasoning_content` is left out"
    )


def dropped_text(rows: int) -> str:
    """What happens to thoughts that the model's template leaves out.

    Args:
        rows: How many rows have thoughts.
    """
    return (
        f"{rows:,} rows with thoughts in their answers, and this model's chat template leaves them"
        " out: they are not learned. A chat_template.jinja that keeps them, in the model's folder,"
        " mends it"
    )


def contradiction_text(rows: int, arguments: Mapping[str, object]) -> str:
    """What is wrong if the plan switches thoughts off and the data has them."""
    given = next((name for name in SWITCHES if arguments.get(name) is False), SWITCHES[0])
    return (
        f"{rows:,} rows with thoughts in their answers, though the plan says {given}: false:"
        f" remove it from `template`, or remove the thoughts"
    )
