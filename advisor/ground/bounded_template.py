"""Chat templates run within limits of steps, time and size: they are programs by whoever made the
model.

Jinja's sandbox keeps a template from other people's objects, not from running for ever: two nested
loops, `{{ 'a' * 8000000000 }}`, a macro that calls itself, or a text that doubles itself forty
times. Here each block counts as a step, and whatever can make a long text or a large list out of a
short one asks first how long it will be. Imported only where a template is rendered.
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
MOST_NUMBER = 2**20  # as an argument: a width, a count
MOST_BITS = 4096  # of a whole number
STEPS_BETWEEN_LOOKS = 64  # at the clock
LONG = 2**16  # characters from which on each call looks at the clock
# Methods of texts whose result can be much longer than the text.
GROWING = {
    "center", "ljust", "rjust", "zfill", "expandtabs", "join", "replace", "translate",
}  # fmt: skip
GROWING_FILTERS = {
    "replace", "join", "format", "batch", "slice", "indent", "wordwrap", "xmlattr", "urlize",
    "center", "truncate", "tojson", "pprint", "round", "striptags", "sum",
}  # fmt: skip
SLOW_FILTERS = {"striptags", "urlize", "wordwrap", "pprint"}  # they read a text again and again
MOST_SLOW = 2**17  # characters for those
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
        self._guarded("environment.joined", "(", node.nodes, frame, ",)")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        """A list in a list in a list needs few steps and no memory, and takes for ever to write."""
        self._guarded("environment.weighed", "[", node.items, frame, "]")

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        """Targets of an assignment are tuples, too."""
        if node.ctx == "store" or not node.items:
            super().visit_Tuple(node, frame)
        else:
            self._guarded("environment.weighed", "(", node.items, frame, ",)")

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        """A map."""
        self.write("environment.weighed(")
        super().visit_Dict(node, frame)
        self.write(")")

    def _guarded(
        self, guard: str, start: str, parts: list[nodes.Expr], frame: Frame, end: str
    ) -> None:
        self.write(f"{guard}({start}")
        for number, part in enumerate(parts):
            if number:
                self.write(", ")
            self.visit(part, frame)
        self.write(f"{end if parts else end.lstrip(',')})")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with limits. It is used as the sandbox is, also by transformers."""

    code_generator_class = BoundedCode
    intercepted_binops = frozenset(("*", "**", "+", "%"))

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._begin()
        self.globals.pop("lipsum", None)
        self.filters = _Filters(self, self.filters)

    def _begin(self) -> None:
        self.steps = self.written = self.made = 0
        self.began = time.thread_time()

    def from_string(self, *args: Any, **options: Any) -> Any:
        """The template; each rendering of it has the whole budget."""
        self._begin()  # filters of constants are computed here
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
        """The list or map. Raises TemplateLimit if it is too much with all that is in it: the same
        list twice in a list, forty times over, fills no memory until it is written.
        """
        left, stack = MOST_VALUES, [value]
        while stack:
            part = stack.pop()
            if isinstance(part, Mapping):
                stack.extend(part.values())
            elif isinstance(part, list | tuple | set | frozenset):
                stack.extend(part)
            left -= 1
            if left < len(stack):
                self.stop("makes a list without an end")
        return value

    # ------------------------------------------------------------------ what can grow

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
        if operator == "+":
            if type(left) is str and type(right) is str:  # nearly every one there is
                if len(left) + len(right) > LONG:
                    self.sized(len(left) + len(right))
                return left + right
            if isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
                self.sized(len(left) + len(right))
        elif operator == "%" and isinstance(left, str):
            self._check_format(left, (right,))
        elif operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, int) and isinstance(other, str | list | tuple):
                    self.sized(max(0, one) * len(other))
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length()
            if bits + right.bit_length() > MOST_BITS:
                self.stop("computes with a number of thousands of digits")
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **options: Any) -> Any:
        """A call of a method, a macro, or what the template is given."""
        if getattr(__obj, "__name__", "") == "strftime_now" and re.search(r"\d{3}", str(args)):
            __self.stop("writes a date with hundreds of digits")
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            __self._check_method(owner, __obj.__name__, (*args, *options.values()))
        elif args or options:
            counts = isinstance(owner, int | float | bytes) or __obj is __self.globals["range"]
            __self._check_arguments((*args, *options.values()), counts=counts)
        result = super().call(__context, __obj, *args, **options)
        if isinstance(result, str) and len(result) > LONG:
            __self.sized(len(result))
        elif isinstance(result, bytes):  # nothing below asks how long they get
            __self.stop("makes bytes of a text")
        elif isinstance(result, list) and len(result) > MOST_VALUES:
            __self.stop("makes a list without an end")
        return result

    def _check_arguments(self, given: tuple[Any, ...], *, counts: bool = True) -> None:
        """Refuse what is too much.

        Args:
            counts: A number may say how long a text gets. To a macro, or in a map, it is a value
                as any other: the number of an order in a call of a tool.
        """
        for value in given:
            if isinstance(value, int):
                if counts and abs(value) > MOST_NUMBER:
                    self.stop(f"asks for {min(value, 10**12):,} of something")
            elif isinstance(value, str):
                if len(value) > LONG:
                    self.look()
            elif isinstance(value, list | tuple | Mapping):
                self.weighed(value)

    def _check_method(self, text: str, name: str, given: tuple[Any, ...]) -> None:
        self._check_arguments(given)
        if len(text) > LONG:
            self.look()
        texts = [value for value in given if isinstance(value, str)]
        pieces = sum(map(text.count, texts or (" ", "\n", "\t"))) if "split" in name else 0
        if pieces > MOST_VALUES:
            self.stop("makes a list without an end")
        if name not in GROWING:
            return
        if name == "replace" and len(texts) == 2:
            self.sized(len(text) + text.count(texts[0]) * len(texts[1]))
        elif name == "join" and given and isinstance(given[0], list | tuple | Mapping | str):
            self.sized(len(given[0]) * len(text) + sum(_length(part) for part in given[0]))
        elif name == "expandtabs":
            width = given[0] if given and isinstance(given[0], int) else 8
            self.sized(len(text) + text.count("\t") * width)
        elif name == "translate":
            longest = max(map(_length, given[0].values())) if isinstance(given[0], Mapping) else 1
            self.sized(len(text) * max(1, longest))

    def _check_format(self, text: str, given: tuple[Any, ...]) -> None:
        """Refuse `'%1000000000d' % 1`, `'{:>1000000000}'.format(1)` and `'%*d' % (10**9, 1)`."""
        flat = [part for value in given for part in _parts(value)]
        # A number is a width only where the text leaves the width open.
        if "*" in text or re.search(r"\{[^{}]*\{", text.replace("{{", "")):
            self._check_arguments(tuple(part for part in flat if isinstance(part, int)))
        if re.search(r"\d{7}", text):
            self.stop("writes a number with millions of digits")
        places = text.count("%") + text.count("{")
        self.sized(len(text) + places * max(map(_length, flat), default=0))

    def bounded(self, name: str, made: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that asks before a text grows."""
        passed = getattr(made, "jinja_pass_arg", None) is not None

        @wraps(made)  # with the mark of Jinja's that says what the filter is handed first
        def asking(*args: Any, **options: Any) -> Any:
            if name in GROWING_FILTERS:
                self._check_filter(name, (*(args[1:] if passed else args), *options.values()))
            result = made(*args, **options)
            if isinstance(result, str):
                if len(result) > LONG:
                    self.sized(len(result))
            elif isinstance(result, list | tuple):
                self.weighed(result)
            return result

        return asking

    def _check_filter(self, name: str, given: tuple[Any, ...]) -> None:
        value, rest = given[0] if given else None, given[1:]
        counted = given if isinstance(value, str | list | tuple | Mapping) else rest
        self._check_arguments(counted, counts=name != "format")
        if name in SLOW_FILTERS and _weight(value) > MOST_SLOW:
            self.stop(f"gives a long text to the filter {name}")
        longest = max((len(part) for part in rest if isinstance(part, str)), default=0)
        number = max((part for part in rest if isinstance(part, int)), default=0)
        if name == "replace" and isinstance(value, str) and len(rest) >= 2:
            self._check_method(value, "replace", (str(rest[0]), str(rest[1])))
        elif name == "format":
            self._check_format(str(value), rest)
        elif name == "sum" and any(isinstance(part, str | list | tuple) for part in rest):
            self.stop("adds up lists")  # each one is copied once more for every one that follows
        elif name in ("join", "batch", "slice") and isinstance(value, list | tuple | str):
            self.sized((len(value) + number) * (1 + longest) + sum(map(_length, value)))
        elif name in ("indent", "wordwrap", "xmlattr", "urlize", "center", "truncate"):
            size = places = _length(value)
            if name == "indent" and isinstance(value, str):
                places = value.count("\n") + 1
                longest += number
            self.sized(size + number + places * longest)
        elif name in ("tojson", "pprint"):
            self.sized(_weight(value) * (1 + min(number, MOST_NUMBER) + longest))


class _Filters(dict[str, Callable[..., Any]]):
    """Filters that ask before a text grows, those added later included."""

    def __init__(self, environment: BoundedEnvironment, filters: Mapping[str, Any]) -> None:
        super().__init__()
        self.environment = environment
        self.update(filters)

    def __setitem__(self, name: str, made: Callable[..., Any]) -> None:
        super().__setitem__(name, self.environment.bounded(name, made))

    def update(self, *filters: Any, **named: Any) -> None:
        """As of a dict."""
        for name, made in dict(*filters, **named).items():
            self[name] = made


def _length(value: Any) -> int:
    """Characters of a text; of another value, those that it has in the usual case."""
    return len(value) if isinstance(value, str) else 8


def _weight(value: Any) -> int:
    """Characters and values in a value that was weighed before."""
    if isinstance(value, Mapping):
        return sum(_weight(part) + len(str(key)) for key, part in value.items()) + 1
    if isinstance(value, list | tuple):
        return sum(map(_weight, value)) + 1
    return _length(value)


def _parts(value: Any) -> list[Any]:
    """What a format writes: the values of a tuple or map, or the one value."""
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, tuple) else [value]


def bound_chat_templates() -> None:
    """Make transformers, and TRL through it, render chat templates within the limits."""
    from transformers.utils import chat_template_utils

    if chat_template_utils.ImmutableSandboxedEnvironment is not BoundedEnvironment:
        chat_template_utils.ImmutableSandboxedEnvironment = BoundedEnvironment
        chat_template_utils._compile_jinja_template.cache_clear()
