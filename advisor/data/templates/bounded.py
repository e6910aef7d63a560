"""Chat templates rendered within limits of time and size: they are programs by whoever made the
model.

Jinja's sandbox keeps a template from other people's objects, not from running for ever, or from
asking for gigabytes in one call: `{{ 'a' * 8000000000 }}`. Here each block looks at the clock, and
what makes a long text or a large list out of short ones is measured first.
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

MOST_SECONDS = 1.0  # of the thread's own computing, whatever else the machine does
STEPS = 8  # between two looks at the clock
MOST_CHARACTERS = 2**24  # of one text, and of a whole conversation
MOST_MADE = 2**28  # of all texts together that calls and filters of one rendering make
MOST_VALUES = 2**18  # in a list with all that is in it
MOST_BITS = 4096  # of a whole number
# Filters that only lay out, with expressions that are slow on long texts: there are none.
NO_FILTERS = ("pprint", "striptags", "urlize", "wordwrap", "xmlattr")
# Filters and tests that do not look at the whole value.
AT_ONCE = (
    "boolean", "count", "defined", "first", "iterable", "last", "length", "mapping", "none",
    "number", "sequence", "undefined",
)  # fmt: skip
FORMATS = ("format", "format_map", "strftime_now")  # calls whose text says how wide a value is
FIELD = r"%(?:\([^)]*(?:\)|\Z))?[^a-zA-Z%]*|\{[^{}]*\}"  # of a format
# Methods and filters that make a long text or list of short ones.
GROWING = {
    "batch", "center", "expandtabs", "indent", "join", "ljust", "replace", "rjust", "round",
    "safe_range", "slice", "to_bytes", "tojson", "translate", "zfill",
}  # fmt: skip
LIMITS = (
    f"for one conversation at most {MOST_SECONDS:g} s of computing and {MOST_CHARACTERS:,}"
    " characters"
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
        """The same error with the template's place and the row that it was to write."""
        return TemplateLimit(self.why, at=at, row=row)


def stop(why: str) -> NoReturn:
    """Raise TemplateLimit."""
    raise TemplateLimit(why)


def size_of(value: Any) -> int:
    """Characters and values in it. Raises TemplateLimit for a list without an end: the same list
    twice in a list, forty times over, fills no memory until it is written.
    """
    left, characters, stack = MOST_VALUES, 0, [value]
    while stack:
        part = stack.pop()
        if isinstance(part, str | bytes):
            characters += len(part)
        elif isinstance(part, Mapping):
            stack.extend(part.values())
            stack.extend(part.keys())
        elif isinstance(part, list | tuple | set | frozenset):
            stack.extend(part)
        left -= 1
        if left < len(stack):
            stop("makes a list without an end")
    return characters + MOST_VALUES - left


class BoundedCode(CodeGenerator):
    """Python code of a template that looks at the clock and measures `a ~ b`."""

    def blockvisit(self, nodes: Iterable[nodes.Node], frame: Frame) -> None:
        """Each block begins with a look at the clock."""
        self.writeline("environment.step()")
        super().blockvisit(nodes, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """`a ~ b`, which the sandbox does not ask about."""
        self.write("environment.concat((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        """The condition of a loop is no block, and may look through a long list for each item."""
        self._called("step() or ", super().visit_Compare, node, frame)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        """A list in a list in a list needs few steps and no memory, and is compared for ever."""
        self._called("measured", super().visit_List, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        """Targets of an assignment are tuples, too."""
        if node.ctx == "store":
            super().visit_Tuple(node, frame)
        else:
            self._called("measured", super().visit_Tuple, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        """A map, as a list."""
        self._called("measured", super().visit_Dict, node, frame)

    def _called(self, before: str, visit: Callable[..., None], node: Any, frame: Frame) -> None:
        self.write(f"(environment.{before}(")
        visit(node, frame)
        self.write("))")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with limits. It is used as the sandbox is, also by transformers."""

    code_generator_class = BoundedCode
    intercepted_binops = frozenset(("*", "**", "+", "%"))

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=self.measured, **options)
        self._begin()
        for name in NO_FILTERS:
            del self.filters[name]
        del self.globals["lipsum"]

    def _begin(self) -> None:
        self.made = self.steps = 0
        self.began = time.thread_time()

    def from_string(self, source: Any, *args: Any) -> Any:
        """The template; each rendering of it has the whole budget."""
        self._begin()  # filters of constants are computed here
        for table in (self.filters, self.tests):
            for name, made in table.items():
                if not hasattr(made, "is_bounded"):
                    table[name] = self._bounded(name, made)
        template = super().from_string(source, *args)
        write = template.root_render_func

        def written(context: Any) -> Iterator[str]:
            self._begin()
            size = 0
            try:
                for part in write(context):
                    size += len(part)
                    self.allow(size)
                    yield part
            except RecursionError:
                stop("calls itself without an end")

        template.root_render_func = written
        return template

    def step(self) -> None:
        """Look at the clock, every few steps. Raises TemplateLimit if the time is used up."""
        self.steps += 1
        if self.steps % STEPS == 0 and time.thread_time() - self.began > MOST_SECONDS:
            stop("does not come to an end")

    def allow(self, characters: int) -> None:
        """Raise TemplateLimit for a text or list of that length."""
        if characters > MOST_CHARACTERS:
            stop(f"makes a text of {characters:,} characters")

    def measured(self, value: Any) -> Any:
        """The value, if it is not too large with all that is in it."""
        if isinstance(value, str | bytes | list | tuple | dict):
            self.allow(size_of(value))
        return value

    def made_now(self, result: Any) -> Any:
        """What a call or a filter made, if all that was made together is not too large."""
        if isinstance(self.measured(result), str):
            self.made += len(result)
            if self.made > MOST_MADE:
                stop(f"makes texts of {self.made:,} characters")
        return result

    def concat(self, parts: Iterable[Any]) -> str:
        """The parts of a text, a macro or `a ~ b` as one text."""
        texts, size = [], 0
        for part in parts:
            texts.append(part if isinstance(part, str) else str(self.measured(part)))
            size += len(texts[-1])
            self.allow(size)
        return "".join(texts)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """`*`, `**`, `+` and `%`."""
        sized = (str, bytes, list, tuple)
        if operator == "%" and isinstance(left, str | bytes):
            self._allow_format(str(left), right)
        elif isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length()
            if bits + right.bit_length() > MOST_BITS:
                stop("computes with a number of thousands of digits")
        elif operator == "+" and isinstance(left, sized) and isinstance(right, sized):
            self.allow(len(left) + len(right))
        elif operator == "*":
            many, one = (left, right) if isinstance(left, int) else (right, left)
            if isinstance(many, int) and isinstance(one, sized):
                self.allow(many * size_of(one))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **options: Any) -> Any:
        """A call of a method, a macro, or what the template is given."""
        named = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps `'{}'.format`
        owner, name = getattr(named, "__self__", None), getattr(named, "__name__", "")
        given = (*args, *options.values())
        __self._allow(name, owner or args, given)
        __self.measured(given)
        return __self.made_now(super().call(__context, __obj, *args, **options))

    def _allow(self, name: str, value: Any, given: tuple[Any, ...]) -> None:
        """Refuse a method or filter that would make too long a text of a value."""
        self.step()
        if name in FORMATS:
            self._allow_format(str(value), given)
        elif name == "replace" and isinstance(value, str) and len(given) > 1:
            self.allow(len(value) + value.count(str(given[0])) * len(str(given[1])))
        elif name in GROWING:
            widths = sum(abs(one) for one in given if isinstance(one, int))
            self.allow(size_of(value) * (widths + size_of(given)))
            if name in ("batch", "slice") and widths > MOST_VALUES:
                stop("makes a list without an end")

    def _allow_format(self, text: str, given: Any) -> None:
        """Refuse `'%1000000000d' % 1`, `'{:>1000000000}'.format(1)` and `'%*d' % (10**9, 1)`, also
        if many fields make that width.
        """
        if re.search(r"%[-+# 0-9.]*\*|\{[^{}]*\{", text.replace("{{", "")):
            stop("writes a text of a width that it computes")
        fields = re.findall(FIELD, text)
        numbers = [number for field in fields for number in re.findall(r"\d+", field)]
        widths = sum(int(one) if len(one) < 9 else MOST_CHARACTERS for one in numbers)
        places = text.count("%") + text.count("{")
        self.allow(len(text) + widths + places * size_of(given))

    def _bounded(self, name: str, made: Any) -> Callable[..., Any]:
        """A filter or test that is measured before and after."""
        first = 1 if getattr(made, "jinja_pass_arg", None) is not None else 0

        @wraps(made)  # with the mark of Jinja's that says what the filter is handed first
        def bounded(*args: Any, **options: Any) -> Any:
            value, given = args[first], (*args[first + 1 :], *options.values())
            self._allow(name, value, given)
            if name not in AT_ONCE:
                self.measured(value)
            return self.made_now(made(*args, **options))

        bounded.is_bounded = True  # type: ignore[attr-defined]
        return bounded


def bound_chat_templates() -> None:
    """Make transformers, and TRL through it, render chat templates within the limits."""
    from transformers.utils import chat_template_utils

    if chat_template_utils.ImmutableSandboxedEnvironment is not BoundedEnvironment:
        chat_template_utils.ImmutableSandboxedEnvironment = BoundedEnvironment
        chat_template_utils._compile_jinja_template.cache_clear()
