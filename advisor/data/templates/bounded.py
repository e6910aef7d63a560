"""Chat templates run within limits of steps, time and size: they are programs by whoever made the
model.

Jinja's sandbox keeps a template from other people's objects, not from running for ever: two nested
loops, `{{ 'a' * 8000000000 }}`, a macro that calls itself, or a text that doubles itself forty
times. Here each block counts as a step, methods and filters that no conversation needs are refused,
and the few operations left that make a long text or a large list out of short ones ask first how
long it will be. Imported only where a template is rendered.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.sandbox import ImmutableSandboxedEnvironment

from advisor.ground.errors import InputError

MOST_STEPS = 1_000_000  # blocks entered: bodies of loops, macros and conditions
MOST_SECONDS = 1.0  # of the thread's own computing, whatever else the machine does
MOST_CHARACTERS = 2**24  # of one text, and of a whole conversation
MOST_MADE = 2**28  # of all long texts together that one rendering makes
MOST_VALUES = 2**18  # in a list with all that is in it
MOST_NUMBER = 2**20  # that a filter or a method is given: a width, a count
MOST_BITS = 4096  # of a whole number
STEPS_BETWEEN_LOOKS = 64  # at the clock
LONG = 2**16  # characters from which on each call looks at the clock
# Methods of texts and filters that only lay out, or make a long text of a short one: refused.
NO_METHODS = {
    "center", "encode", "expandtabs", "format_map", "ljust", "maketrans", "rjust", "translate",
    "zfill",
}  # fmt: skip
NO_FILTERS = (
    "batch", "center", "filesizeformat", "pprint", "slice", "striptags", "urlize", "wordwrap",
    "xmlattr",
)  # fmt: skip
WRITING = {"indent", "join", "round", "string", "sum", "tojson"}  # filters that are measured first
LIMITS = (
    f"for one conversation at most {MOST_STEPS:,} steps, {MOST_SECONDS:g} s of computing and"
    f" {MOST_CHARACTERS:,} characters"
)


class TemplateLimit(InputError):
    """A chat template took more steps, time or space than any conversation needs."""

    def __init__(self, why: str, *, at: str = "the chat template", row: int | None = None) -> None:
        self.why = why
        there = f" at row {row}" if row is not None else ""
        super().__init__(
            f"{at}{there}: it {why}",
            allowed=LIMITS,
            hint="take the template of the model's publisher, or another model",
        )

    def of(self, at: str, row: int | None = None) -> TemplateLimit:
        """The same, with where the template is and the row that it was to write."""
        return TemplateLimit(self.why, at=at, row=row)


class BoundedCode(CodeGenerator):
    """Python code of a template that counts its steps and asks before texts grow."""

    def blockvisit(self, nodes: Iterable[nodes.Node], frame: Frame) -> None:
        """Each block begins with a step."""
        self.writeline("environment.step()")
        super().blockvisit(nodes, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """`a ~ b`, which the sandbox does not ask about."""
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        """A list in a list in a list needs few steps and no memory, and takes for ever to write."""
        self.write("environment.weighed(")
        super().visit_List(node, frame)
        self.write(")")

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        """Targets of an assignment are tuples, too."""
        stored = node.ctx == "store"
        self.write("" if stored else "environment.weighed(")
        super().visit_Tuple(node, frame)
        self.write("" if stored else ")")

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        """A map."""
        self.write("environment.weighed(")
        super().visit_Dict(node, frame)
        self.write(")")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with limits. It is used as the sandbox is, also by transformers."""

    code_generator_class = BoundedCode
    intercepted_binops = frozenset(("*", "**", "+", "%"))

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._begin()
        self.globals.pop("lipsum", None)
        for name in NO_FILTERS:
            self.filters[name] = self._refusing(f"uses the filter {name}")

    def _begin(self) -> None:
        self.steps = self.written = self.made = 0
        self.began = time.thread_time()

    def from_string(self, *args: Any, **options: Any) -> Any:
        """The template; each rendering of it has the whole budget."""
        self._begin()  # filters of constants are computed here
        for name, made in self.filters.items():
            if not hasattr(made, "is_bounded"):
                self.filters[name] = self._bounded(name, made)
        template = super().from_string(*args, **options)
        write = template.root_render_func

        def written(context: Any) -> Iterator[str]:
            self._begin()
            try:
                for part in write(context):
                    self.written += len(part)
                    if self.written > MOST_CHARACTERS:
                        self.stop("writes a text without an end")
                    yield part
            except RecursionError:
                self.stop("calls itself without an end")

        template.root_render_func = written
        return template

    # ------------------------------------------------------------------ limits

    def stop(self, why: str) -> NoReturn:
        """Raise TemplateLimit."""
        raise TemplateLimit(why)

    def step(self) -> None:
        """Count a block. Raises TemplateLimit where steps or time are used up."""
        self.steps += 1
        if self.steps % STEPS_BETWEEN_LOOKS == 0:
            if self.steps > MOST_STEPS:
                self.stop("does not come to an end")
            self.look()

    def look(self) -> None:
        """Look at the clock."""
        if time.thread_time() - self.began > MOST_SECONDS:
            self.stop("does not come to an end")

    def sized(self, characters: int) -> None:
        """Refuse to make a text or list of that length."""
        if characters > LONG:
            self.look()
            self.made += characters
            if characters > MOST_CHARACTERS or self.made > MOST_MADE:
                self.stop(f"makes a text of {characters:,} characters")

    def joined(self, parts: Iterable[Any]) -> str:
        """`a ~ b`: the texts in one."""
        texts = [part if isinstance(part, str) else str(part) for part in parts]
        self.sized(sum(map(len, texts)))
        return "".join(texts)

    def concat(self, parts: Iterable[str]) -> str:
        """What a macro or a block wrote, as one text."""
        texts = list(parts)
        self.sized(sum(map(len, texts)))
        return "".join(texts)

    def weighed(self, value: Any) -> Any:
        """The value. Raises TemplateLimit if it is too much with all that is in it: the same list
        twice in a list, forty times over, fills no memory until it is written.
        """
        if self._weight(value) > MOST_CHARACTERS:
            self.stop("makes a list without an end")
        return value

    def _weight(self, value: Any) -> int:
        """Characters and values in it."""
        left, characters, stack = MOST_VALUES, 0, [value]
        while stack:
            part = stack.pop()
            if isinstance(part, str):
                characters += len(part)
            elif isinstance(part, Mapping):
                stack.extend(part.values())
                stack.extend(part.keys())
            elif isinstance(part, list | tuple | set | frozenset):
                stack.extend(part)
            left -= 1
            if left < len(stack):
                self.stop("makes a list without an end")
        return characters + 8 * (MOST_VALUES - left)

    # ------------------------------------------------------------------ what can grow

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Methods of numbers and bytes, and those of texts that lay out, are not needed."""
        if isinstance(obj, int | float | bytes) or (isinstance(obj, str) and attr in NO_METHODS):
            self.stop(f"uses the method {attr}, which no conversation needs")
        return super().is_safe_attribute(obj, attr, value)

    def _refusing(self, what: str) -> Callable[..., Any]:
        def refuse(*args: Any, **options: Any) -> NoReturn:
            self.stop(f"{what}, which no conversation needs")

        return refuse

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`'{}'.format`, which the sandbox replaces when a template reaches for it."""
        made = super().wrap_str_format(value)
        if made is None:
            return None

        def asking(*args: Any, **options: Any) -> str:
            self._check_format(str(value.__self__), (*args, *options.values()))
            return made(*args, **options)

        return asking

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """`*`, `**`, `+` and `%`."""
        for one, other in ((left, right), (right, left)):
            if operator == "*" and isinstance(one, int) and isinstance(other, str | list | tuple):
                many = not isinstance(other, str) and one > 1
                self.sized(max(0, one) * (self._weight(other) if many else len(other)))
        if operator == "+" and isinstance(left, str | list | tuple):
            self.sized(len(left) + (len(right) if isinstance(right, str | list | tuple) else 0))
        elif operator == "%" and isinstance(left, str):
            self._check_format(left, (right,))
        elif isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length()
            if bits + right.bit_length() > MOST_BITS:
                self.stop("computes with a number of thousands of digits")
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **options: Any) -> Any:
        """A call of a method, a macro, or what the template is given."""
        given = (*args, *options.values())
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if name == "strftime_now" and re.search(r"\d{3}", str(args)):
            __self.stop("writes a date with hundreds of digits")
        if isinstance(owner, str):
            __self._check_text(owner, name, given)
        elif __obj is __self.globals["range"]:
            __self._check_numbers(given)
        elif given:
            __self.weighed(given)
        return __self._checked(super().call(__context, __obj, *args, **options))

    def _checked(self, result: Any) -> Any:
        """What a method, a macro or a filter gave, if it is not too long."""
        if isinstance(result, str):
            self.sized(len(result))
        elif isinstance(result, list | tuple):
            self.weighed(result)
        return result

    def _check_numbers(self, given: Iterable[Any]) -> None:
        for value in given:
            if isinstance(value, int) and abs(value) > MOST_NUMBER:
                self.stop(f"asks for {min(value, 10**12):,} of something")

    def _check_text(self, text: str, name: str, given: tuple[Any, ...]) -> None:
        """Refuse a method of a text, or its filter, that makes too long a text of it."""
        if len(text) > LONG:
            self.look()
        if name == "replace" and len(given) > 1 and isinstance(given[0], str):
            self.sized(len(text) + text.count(given[0]) * len(str(given[1])))
        elif name == "join":
            self.sized(self._weight(given) * (1 + len(text)))

    def _check_format(self, text: str, given: tuple[Any, ...]) -> None:
        """Refuse `'%1000000000d' % 1`, `'{:>1000000000}'.format(1)` and `'%*d' % (10**9, 1)`."""
        if re.search(r"%[-+# 0-9.]*\*|\{[^{}]*\{", text.replace("{{", "")):
            self.stop("writes a text of a width that it computes")
        if re.search(r"\d{7}", text):
            self.stop("writes a number with millions of digits")
        self.sized(len(text) + (text.count("%") + text.count("{")) * self._weight(given))

    def _bounded(self, name: str, made: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that asks before a text grows."""
        passed = getattr(made, "jinja_pass_arg", None) is not None

        @wraps(made)  # with the mark of Jinja's that says what the filter is handed first
        def asking(*args: Any, **options: Any) -> Any:
            given: tuple[Any, ...] = (*(args[1:] if passed else args), *options.values())
            value, rest = given[0] if given else None, given[1:]
            if name == "format":
                self._check_format(str(value), rest)
            elif name in WRITING:
                self._check_numbers(rest)
                widths = [len(part) if isinstance(part, str) else part for part in rest]
                longest = max([0, *(one for one in widths if isinstance(one, int))])
                self.sized(self._weight(value) * (1 + longest))
            elif isinstance(value, str):
                self._check_text(value, name, rest)
            return self._checked(made(*args, **options))

        asking.is_bounded = True  # type: ignore[attr-defined]
        return asking


def bound_chat_templates() -> None:
    """Make transformers, and TRL through it, render chat templates within the limits."""
    from transformers.utils import chat_template_utils

    if chat_template_utils.ImmutableSandboxedEnvironment is not BoundedEnvironment:
        chat_template_utils.ImmutableSandboxedEnvironment = BoundedEnvironment
        chat_template_utils._compile_jinja_template.cache_clear()
