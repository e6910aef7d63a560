"""Arguments of a chat template, such as `enable_thinking`, written into the template itself.

The plan's `template: {enable_thinking: false}` becomes a line in front of the model's own template
that gives the argument this value unless a caller gives another. So whatever reads the template
has it: training rows and their masks, the prompts that a model answers in training and evaluation,
`advise chat`, and everybody who loads the result, whose chat_template.jinja is this one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from advisor.ground.errors import Fault, InputError, did_you_mean, refuse

Value = bool | int | float | str
# What the caller of a template gives: the conversation, and tokens of the tokenizer.
GIVEN = {
    "messages", "tools", "documents", "add_generation_prompt", "continue_final_message",
}  # fmt: skip
# Of transformers; marks the answers.
GENERATION_TAG = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
SPECIAL_TOKEN = re.compile(r"\w+_token")
_literal = partial(json.dumps, ensure_ascii=False)  # as Jinja and JSON both read a value
# A line of ours. Templates are compiled with trim_blocks: the newline behind it writes nothing.
WRITTEN = re.compile(
    r"\{%- if (\w+) is not defined %\}\{%- set \1 = (.*) %\}\{%- endif %\}\n", re.ASCII
)


def argument_names(source: str) -> list[str]:
    """The names that a caller may give to a chat template besides the conversation, sorted.

    A name that the template sets before it reads it is no argument. Raises jinja2.TemplateError for
    a template that is broken.
    """
    import jinja2.meta

    environment = jinja2.Environment(  # noqa: S701 - it is parsed and never rendered
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    # What transformers gives to every template.
    environment.globals.update(raise_exception=None, strftime_now=None)
    tree = environment.parse(GENERATION_TAG.sub("", source))
    free = jinja2.meta.find_undeclared_variables(tree)
    first: dict[str, str] = {}
    for name, context in _names(tree):
        first.setdefault(name, context)
    return sorted(
        name
        for name in free - GIVEN
        if not SPECIAL_TOKEN.fullmatch(name) and first.get(name) == "load"
    )


def _names(node: Any) -> Iterable[tuple[str, str]]:
    """(name, load | store | param) of every name, in the order in which they are reached."""
    import jinja2

    if isinstance(node, jinja2.nodes.Name):
        yield node.name, node.ctx
    children = list(node.iter_child_nodes())
    if isinstance(node, jinja2.nodes.Assign):  # the value is computed before the name gets it
        children.reverse()
    for child in children:
        yield from _names(child)


def with_arguments(source: str, arguments: Mapping[str, Value]) -> str:
    """The template with these arguments in front of it, in place of those of the same names."""
    before, own = split_arguments(source)
    lines = [
        f"{{%- if {name} is not defined %}}{{%- set {name} = {_literal(value)} %}}{{%- endif %}}\n"
        for name, value in {**before, **arguments}.items()
    ]
    return "".join([*lines, own])


def with_fixed_arguments(source: str) -> str:
    """The template with its written arguments as they are, whatever a caller gives: llama.cpp and
    Ollama give every template enable_thinking, true unless somebody says otherwise.
    """
    arguments, own = split_arguments(source)
    lines = [f"{{%- set {name} = {_literal(value)} %}}\n" for name, value in arguments.items()]
    return "".join([*lines, own])


def split_arguments(source: str) -> tuple[dict[str, Value], str]:
    """(the arguments in front of a template of ours, the template as its author wrote it)."""
    found: dict[str, Value] = {}
    while (line := WRITTEN.match(source)) is not None:
        try:
            found[line[1]] = json.loads(line[2])
        except (ValueError, RecursionError):  # not a line of ours
            break
        source = source[line.end() :]
    return found, source


def give_arguments(tokenizer: Any, arguments: Mapping[str, Value], *, model: str) -> None:
    """Write the arguments into the tokenizer's chat template.

    Raises InputError for arguments that no template of the tokenizer reads, with those that it
    does.

    Args:
        model: What messages call the model.
    """
    if not arguments:
        return
    sources = template_sources(tokenizer)
    if not sources:
        raise InputError(
            f"{', '.join(arguments)} would have no effect: the tokenizer of {model} has"
            " no chat template",
            where="template",
            hint="remove `template` from the plan",
        )
    try:
        known = {name: argument_names(split_arguments(text)[1]) for name, text in sources.items()}
    except Exception as error:  # jinja2's, or Python's for a template that is nested too deeply
        raise InputError(
            f"the chat template of {model} is broken: {str(error)[:120]}",
            hint="take the template of the model's publisher, or another model",
        ) from None
    every = sorted({name for names in known.values() for name in names})
    faults = [
        Fault(
            where="template",
            what=f"the chat template of {model} never reads '{name}'",
            allowed=f"its arguments: {', '.join(every)}" if every else "it has no arguments",
            hint=did_you_mean(name, every) or "remove it",
        )
        for name in arguments
        if name not in every
    ]
    refuse(faults)
    written = {
        name: with_arguments(
            text, {key: value for key, value in arguments.items() if key in known[name]}
        )
        for name, text in sources.items()
    }
    several = isinstance(tokenizer.chat_template, Mapping)
    tokenizer.chat_template = written if several else written["default"]


def arguments_of(tokenizer: Any) -> dict[str, Value]:
    """The arguments that are written into the tokenizer's chat template."""
    found: dict[str, Value] = {}
    for source in template_sources(tokenizer).values():
        found |= split_arguments(source)[0]
    return found


def template_sources(tokenizer: Any) -> dict[str, str]:
    """The tokenizer's chat templates by name: one, several, or none."""
    template = getattr(tokenizer, "chat_template", None) or {}
    return dict(template) if isinstance(template, Mapping) else {"default": template}


def arguments_words(arguments: Mapping[str, Value]) -> str:
    """`enable_thinking: false`."""
    return ", ".join(f"{name}: {_literal(value)}" for name, value in arguments.items())
