"""Messages as chat templates take them, and what of them a template loses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from advisor.data.example import CALLS, Example, Message
from advisor.ground.annotated import parse_json
from advisor.ground.errors import InputError

END_MARK = "</think>"
# For a tokenizer without a template. It is stored with the result, so that serving uses the same.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}{% if"
    " message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}{% endfor %}{% if"
    " add_generation_prompt %}Assistant:{% endif %}"
)


def template_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates take them: tool calls under `tool_calls`, their arguments as an
    object.
    """
    result = []
    for message in messages:
        extra = dict(message.extra)
        old = extra.pop("function_call", None)  # OpenAI's spelling before tool_calls
        calls = extra.get("tool_calls") or (old and [{"type": "function", "function": old}])
        if calls:
            extra["tool_calls"] = [_call(call) for call in calls]
        result.append({"role": message.role, "content": message.content, **extra})
    return result


def _call(call: Any) -> Any:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return call
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        # OpenAI writes them as JSON text; templates would quote that text a second time.
        with suppress(ValueError):
            arguments = parse_json(arguments)
    rest = {key: value for key, value in call.items() if key != "function"}
    beside = rest if "function" in call else {"type": "function"}
    return {**beside, "function": {**function, "arguments": arguments}}


def called_functions(message: Message) -> list[str]:
    """The names of the functions that a message calls."""
    return names_of_tools(template_messages((message,))[0].get("tool_calls") or [])


def names_of_tools(tools: Sequence[Any]) -> list[str]:
    """The names of the functions that a row declares or calls."""
    functions = [tool.get("function", tool) for tool in tools if isinstance(tool, Mapping)]
    names = [function.get("name") for function in functions if isinstance(function, Mapping)]
    return [name for name in names if isinstance(name, str)]


def thoughts_of(message: Message) -> str:
    """The thoughts in or beside an answer."""
    beside = next((message.extra[key] for key in KEYS if message.extra.get(key)), "")
    if isinstance(beside, str) and beside.strip():
        return beside.strip()
    return message.content.partition(MARK)[2].partition(END_MARK)[0].strip()


def lost_parts(
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    whole: str,
    render: Callable[[Sequence[Message]], str],
) -> set[str]:
    """What a chat template leaves out of a conversation: `calls` of functions, `tools` that it
    declares, `turns` of others, `thoughts` of its last answer.

    Args:
        whole: The conversation as the template writes it.
        render: Writes other messages with the same tools; may raise anything.
    """
    found: set[str] = set()
    called = [name for message in messages for name in called_functions(message)]
    if called:
        silent = [
            replace(message, extra={k: v for k, v in message.extra.items() if k not in CALLS})
            for message in messages
        ]
        try:
            is_silent = render(silent) == whole
        except Exception:  # a template may raise anything: then the calls were read
            is_silent = False
        if is_silent or any(name not in whole for name in called):
            found.add("calls")
    if any(name not in whole for name in names_of_tools(tools)):
        found.add("tools")
    others = [message for message in messages if message.role not in ("assistant", "system")]
    if any(message.content.strip() not in whole for message in others):
        found.add("turns")
    is_answered = bool(messages) and messages[-1].role == "assistant"
    if is_answered and thoughts_of(messages[-1]) not in whole:
        found.add("thoughts")
    return found


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


def may_think(source: str) -> bool:
    """Whether a template speaks of thoughts."""
    return "think" in source or "reason" in source


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
