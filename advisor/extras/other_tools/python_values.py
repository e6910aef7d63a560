"""What stands in Python code, by its syntax tree: nothing of it is run or imported.

Names are followed to what they are assigned, before the place that uses them; calls of the code's
own functions and classes to what they return and hold. What cannot be told so is unknown, with
the reason, and with the values between which the code chooses.
"""

from __future__ import annotations

import ast
import math
import operator
import os.path
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from msgspec import Struct

from advisor.extras.other_tools.file import flag_values
from advisor.extras.other_tools.yaml_text import read_word

UNKNOWN: Any = object()
MOST_STEPS, MOST_DEPTH, MOST_ROOTS = 60_000, 60, 5  # of following
MOST_VALUES, SHOWN = 5_000, 4  # in one another; of those that code chooses between
MOST_SIZE = 10**15  # of a number; of a text a thousandth of a billionth
MOST_TEXT = 4_000
FORMATS = ("bfloat16", "float16", "float32", "half", "float", "uint8", "int8")
NUMBERS = {"half": "float16", "float": "float32"}
# Methods that hand on what they are called on, as far as a training is concerned.
SAME = (
    "map", "filter", "shuffle", "select", "rename_column", "remove_columns", "train_test_split",
    "with_format", "cast_column", "sort", "take", "skip", "to", "cuda", "half", "bfloat16", "float",
    "train", "eval", "requires_grad_", "flatten", "repeat", "shard", "add_column",
    "rename_columns", "select_columns", "to_iterable_dataset",
)  # fmt: skip
OPERATORS: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
    ast.Pow: operator.pow, ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt,
    ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Is: operator.is_,
    ast.IsNot: operator.is_not, ast.In: lambda one, many: one in many,
    ast.NotIn: lambda one, many: one not in many,
}  # fmt: skip
UNARY: Mapping[type, Callable[[Any], Any]] = {
    ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_,
    ast.Invert: operator.invert,
}  # fmt: skip
PLAIN: Mapping[str, Callable[..., Any]] = {
    "int": int, "float": float, "str": str, "bool": bool, "len": len, "min": min, "max": max,
    "round": round, "abs": abs, "list": list, "tuple": list, "Path": str,
}  # fmt: skip
OF_TEXT = ("lower", "upper", "strip", "replace", "split", "rstrip", "lstrip")
PARSERS = ("parse_args_into_dataclasses", "parse_args_and_config", "parse_yaml_file")
FLAGS = ("parse_args", "parse_known_args")
AT_LINE = "@@"  # before a line in a reason, of all lines of a notebook
DEFAULTS = ("field", "Field", "Option", "Argument")  # a call in the place of a default
BY_GPU = "decided by the GPU that is asked about"
BRAIN_FLOAT = ("is_bfloat16_supported", "is_bf16_supported", "is_torch_bf16_gpu_available")


class Found(Struct, frozen=True):
    """What an expression is: plain data whose items are Found, an object that a call makes, or
    UNKNOWN with the reason.
    """

    value: Any
    node: ast.expr  # that says it
    notes: tuple[str, ...] = ()  # whose default it is: --lr, name of main(); or BY_GPU
    why: str = ""
    options: tuple[Any, ...] = ()  # what an unknown one may be: plain values, or objects

    @property
    def known(self) -> bool:
        return self.value is not UNKNOWN

    def plain(self) -> Any:
        """Plain data all through, or UNKNOWN."""
        with suppress(ValueError, RecursionError):
            return _plain(self, [0])
        return UNKNOWN


def _plain(found: Found, count: list[int]) -> Any:
    """Raises ValueError for what is not plain, or far too much."""
    count[0] += 1
    value = found.value
    if value is UNKNOWN or isinstance(value, Made) or count[0] > MOST_VALUES:
        raise ValueError
    if isinstance(value, dict):
        return {key: _plain(one, count) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one, count) for one in value]
    is_plain = value is None or isinstance(value, str | int | float)
    if not is_plain or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError
    return value


Conditions = tuple[tuple["ast.expr | None", bool], ...]


class At(NamedTuple):
    """A place in the order of the code, with the conditions it stands under."""

    scope: Scope
    order: int
    conditions: Conditions = ()


class Made(Struct, frozen=True):
    """What a call makes, unevaluated: its arguments mean what they mean at `at`."""

    name: str  # of what is called, without its module: SFTConfig, FastLanguageModel.from_pretrained
    call: ast.Call
    at: At
    roots: tuple[tuple[Scope, str], ...] = ()  # names that it has, whose attributes are set later
    parsed: bool = False  # a command line fills it


class Assigned(NamedTuple):
    """One assignment of a name."""

    value: ast.expr | None  # None: a loop or the like gives it
    at: At
    place: tuple[int, ...] = ()  # inside the value, of a tuple that is unpacked
    why: str = ""


class Scope:
    """The names of a module, a function or a class."""

    def __init__(self, node: ast.AST, parent: Scope | None) -> None:
        self.node, self.parent = node, parent
        self.names: dict[str, list[Assigned]] = {}
        self.fields: dict[str, list[tuple[str, Assigned]]] = {}  # name.field = ..., name["field"]


class Code:
    """A module, ready to be asked. `bfloat16`: whether the GPU has it; None: not known."""

    def __init__(
        self, tree: ast.Module, bfloat16: bool | None = None, flags: Mapping[str, Any] | None = None
    ) -> None:
        self.bfloat16, self.flags = bfloat16, flags or {}
        self.calls: list[tuple[str, ast.Call, At]] = []
        self.slices: list[tuple[ast.expr, At]] = []  # the ends that a name gives them
        self.functions: dict[str, tuple[Any, Scope]] = {}
        self.classes: dict[str, tuple[ast.ClassDef, Scope]] = {}
        self.imports: dict[str, str] = {}  # name here -> dotted name
        self._order = self._steps = self._cut = 0
        self._known: dict[tuple[int, int], Found] = {}
        self._open: set[tuple[int, int]] = set()
        self._paths: dict[int, tuple[int, ...] | None] = {}
        self._bound: set[int] = set()  # calls whose arguments are looked at
        self.module = Scope(tree, None)
        self._walk(tree.body, self.module, ())

    # ------------------------------------------------------------------- what there is

    def _walk(self, body: Sequence[ast.stmt], scope: Scope, under: tuple[Any, ...]) -> None:
        for statement in body:
            self._order += 1
            self._statement(statement, At(scope, self._order, under))

    def _statement(self, one: ast.stmt, at: At) -> None:
        scope, under = at.scope, at.conditions
        if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            own = Scope(one, scope)
            if isinstance(one, ast.ClassDef):
                self.classes.setdefault(one.name, (one, own))
            else:
                self.functions.setdefault(one.name, (one, own))
            self._walk(one.body, own, ())
            return
        if isinstance(one, ast.Import | ast.ImportFrom):
            module = f"{one.module}." if isinstance(one, ast.ImportFrom) and one.module else ""
            for name in one.names:
                dotted = f"{module}{name.name}"
                top = name.name if module else name.name.split(".")[0]
                self.imports[name.asname or top] = dotted if module or name.asname else top
            return
        for child in _own_expressions(one):
            for node in ast.walk(child):
                if isinstance(node, ast.Call):
                    self._call(node, at)
                elif isinstance(node, ast.Slice) and node.upper is not None:
                    last = node.upper.right if isinstance(node.upper, ast.BinOp) else node.upper
                    if isinstance(last, ast.Name | ast.Attribute):  # [:n], [i : i + n]
                        self.slices.append((last, at))
        if isinstance(one, ast.Assign | ast.AnnAssign | ast.AugAssign):
            is_changed = isinstance(one, ast.AugAssign)
            value, why = (None, "it is changed in place") if is_changed else (one.value, "")
            for target in one.targets if isinstance(one, ast.Assign) else [one.target]:
                if value is not None or why:
                    self._assign(target, Assigned(value, at, (), why))
        elif isinstance(one, ast.If):
            is_main = "__name__" in {n.id for n in ast.walk(one.test) if isinstance(n, ast.Name)}
            self._walk(one.body, scope, under if is_main else (*under, (one.test, True)))
            self._walk(one.orelse, scope, (*under, (one.test, False)))
        elif isinstance(one, ast.For | ast.AsyncFor):
            self._assign(one.target, Assigned(None, at, (), "a loop gives it each of its values"))
            self._walk([*one.body, *one.orelse], scope, under)
        elif isinstance(one, ast.While):
            self._walk([*one.body, *one.orelse], scope, (*under, (None, True)))
        elif isinstance(one, ast.With | ast.AsyncWith):
            for item in one.items:
                if item.optional_vars is not None:
                    self._assign(item.optional_vars, Assigned(item.context_expr, at))
            self._walk(one.body, scope, under)
        elif isinstance(one, ast.Try):
            self._walk(one.body, scope, under)
            for handler in one.handlers:
                self._walk(handler.body, scope, (*under, (None, True)))
            self._walk([*one.orelse, *one.finalbody], scope, under)
        elif isinstance(one, ast.Match):
            for case in one.cases:
                self._walk(case.body, scope, (*under, (None, True)))

    def _call(self, node: ast.Call, at: At) -> None:
        self.calls.append((self.called(node.func), node, at))
        if isinstance(node.func, ast.Attribute) and node.func.attr == "update":
            pairs: list[tuple[Any, ast.expr]] = [(k.arg, k.value) for k in node.keywords if k.arg]
            for one in node.args:
                if isinstance(one, ast.Dict):
                    keys = zip(one.keys, one.values, strict=True)
                    pairs += [(k.value, v) for k, v in keys if isinstance(k, ast.Constant)]
            for key, value in pairs:
                self._field(node.func.value, str(key), Assigned(value, at))

    def _assign(self, target: ast.expr, one: Assigned) -> None:
        if isinstance(target, ast.Name):
            one.at.scope.names.setdefault(target.id, []).append(one)
        elif isinstance(target, ast.Tuple | ast.List):
            for place, part in enumerate(target.elts):
                self._assign(part, one._replace(place=(*one.place, place)))
        elif isinstance(target, ast.Attribute):
            self._field(target.value, target.attr, one)
        elif isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant):
            self._field(target.value, str(target.slice.value), one)

    def _field(self, owner: ast.expr, key: str, one: Assigned) -> None:
        scope = one.at.scope
        if isinstance(owner, ast.Name):
            if owner.id == "self" and scope.parent is not None:
                scope = scope.parent  # the class: what any of its methods sets
            else:
                scope = _owner(owner.id, scope)
            scope.fields.setdefault(owner.id, []).append((key, one))

    def called(self, function: ast.expr) -> str:
        """The name of what is called: of a class method with its class, else the last part."""
        if isinstance(function, ast.Name):
            return self.imports.get(function.id, function.id).rsplit(".", 1)[-1]
        if isinstance(function, ast.Attribute):
            owner = function.value
            if isinstance(owner, ast.Name | ast.Attribute):
                name = self.called(owner)
                if name[:1].isupper():
                    return f"{name}.{function.attr}"
            return function.attr
        return ""

    @property
    def imported(self) -> set[str]:
        """The last parts of all names that are imported."""
        return {dotted.rpartition(".")[2] for dotted in self.imports.values()}

    @staticmethod
    def last_name(node: ast.expr) -> str:
        """The last part of a name."""
        return str(getattr(node, "attr", None) or getattr(node, "id", ""))

    def made(self, wanted: Callable[[str], bool]) -> list[Made]:
        """The calls of such names that are not known to be left out."""
        return [
            Made(name, call, at, self._roots(call, at))
            for name, call, at in self.calls
            if wanted(name) and self.holds(at.conditions, at) is not False
        ]

    def path(self, at: At) -> tuple[int, ...] | None:
        """When a place is come to: the order of the calls that lead there; None: none does."""
        node = at.scope.node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return (at.order,)
        if id(node) not in self._paths:
            self._paths[id(node)] = None  # on the way: a call of itself leads nowhere
            own = at.scope.parent
            is_method = own is not None and _is_class(own)
            called = own.node.name if own is not None and _is_class(own) else node.name  # type: ignore[attr-defined]
            paths = []
            for by, call, site in self.calls:
                given = {one.id for one in call.args if isinstance(one, ast.Name)}
                is_own = is_method or isinstance(call.func, ast.Name)
                is_call = is_own and by.rsplit(".", 1)[-1] == called
                if (is_call or node.name in given) and self.holds(
                    site.conditions, site
                ) is not False:
                    paths += [one] if (one := self.path(site)) is not None else []
            self._paths[id(node)] = min(paths, default=None)
        before = self._paths[id(node)]
        return None if before is None else (*before, at.order)

    def _roots(self, call: ast.Call, at: At) -> tuple[tuple[Scope, str], ...]:
        names = at.scope.names.items()
        return tuple((at.scope, key) for key, n in names if any(one.value is call for one in n))

    def base_of(self, name: str, known: Mapping[str, Any]) -> str:
        """The known class that a class of the code derives from, or the name itself."""
        for _ in range(MOST_DEPTH):
            if name in known or name not in self.classes:
                return name
            bases = self.classes[name][0].bases
            name = self.called(bases[0]) if bases else ""
        return name

    # ------------------------------------------------------------------- names

    def name(self, name: str, node: ast.expr, at: At) -> Found:
        """What a name is at a place."""
        scope: Scope | None = at.scope
        while scope is not None:
            if name in scope.names and not (scope is not at.scope and _is_class(scope)):
                inside = at if scope is at.scope else None
                return self._settled(scope.names[name], node, inside, (name, scope))
            if (given := self._parameter(name, scope, node)) is not None:
                return given
            scope = scope.parent
        if name in self.classes:
            return Found(Made(name, ast.Call(ast.Name(name), [], []), at), node)
        if name in self.imports:
            return _unknown(node, f"`{name}` comes from {self.imports[name]}, which is not read")
        return _unknown(node, f"`{name}` is assigned nowhere")

    def holds(self, conditions: Conditions, at: At) -> bool | None:
        """Whether all conditions hold; None: it is not known."""
        return self._judged(conditions, at)[0]

    def _judged(self, conditions: Conditions, at: At) -> tuple[bool | None, tuple[str, ...]]:
        """The same, and what that rests on."""
        all_known: bool | None = True
        notes: tuple[str, ...] = ()
        for test, wanted in conditions:
            found = None if test is None else self.value(test, at)
            value = UNKNOWN if found is None else found.plain()
            if found is None or value is UNKNOWN:
                all_known = None
                continue
            notes = (*notes, *found.notes)
            if bool(value) is not wanted:
                return False, notes
        return all_known, notes

    def _settled(
        self,
        several: Sequence[Assigned],
        node: ast.expr,
        at: At | None,
        parameter: tuple[str, Scope] | None = None,
    ) -> Found:
        """What the last assignment before a place leaves; from elsewhere: what all agree on."""
        before = [one for one in several if at is None or one.at.order < at.order]
        left, notes = list[Found](), tuple[str, ...]()
        for one in reversed(before):
            around = at.conditions[: len(one.at.conditions)] if at is not None else ()
            holds: bool | None = True
            if around != one.at.conditions:
                holds, more = self._judged(one.at.conditions, one.at)
                notes = (*notes, *more)
            if holds is False:
                continue
            left.append(self._assigned(one, node))
            if holds and at is not None:
                return _noted(_agreed(left, node), *notes)
        given = self._parameter(*parameter, node) if parameter is not None else None
        if given is not None:
            left.append(given)
        elif not before:  # a loop assigns it further down
            left = [self._assigned(one, node) for one in several]
        if not left:
            return _unknown(node, "no assignment of it is reached")
        return _noted(_agreed(left, node), *notes)

    def _assigned(self, one: Assigned, node: ast.expr) -> Found:
        if one.value is None:
            return _unknown(node, one.why)
        found = self.value(one.value, one.at)
        for place in one.place:
            if isinstance(found.value, list):
                some = found.value
                found = some[place] if place < len(some) else _unknown(node, "unpacked")
            elif isinstance(found.value, Made) and place:
                return _unknown(node, f"it is unpacked from {found.value.name}()")
        return found

    def _parameter(self, name: str, scope: Scope, node: ast.expr) -> Found | None:
        """What a parameter of a function is: what all its calls hand over, or its default."""
        function: Any = scope.node
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            return None
        names = [one.arg for one in (*function.args.posonlyargs, *function.args.args)]
        alone = [one.arg for one in function.args.kwonlyargs]
        if name not in (*names, *alone):
            return None
        own, called = scope.parent, function.name
        is_method = own is not None and isinstance(own.node, ast.ClassDef)
        if is_method and own is not None and isinstance(own.node, ast.ClassDef):
            if name == "self":
                made = self._made_by(own.node.name)
                nothing = ast.Call(ast.Name(own.node.name), [], [])
                return Found(made or Made(own.node.name, nothing, At(scope, 0)), node)
            called = own.node.name if called == "__init__" else called
        default = _default_of(function.args, name, names, alone)
        place = names.index(name) - is_method if name in names else None
        given, left_out = list[Found](), False
        for by, call, at in self.calls:
            is_own = is_method or isinstance(call.func, ast.Name)
            if by.rsplit(".", 1)[-1] == called and is_own and id(call) not in self._bound:
                self._bound.add(id(call))
                one = self._argument(call, at, name, place)
                self._bound.discard(id(call))
                given += [one] if one is not None else []
                left_out |= one is None
        if left_out and default is not None:
            given.append(self._default(self.value(default, At(scope.parent or scope, 0)), node))
        if given:
            return _agreed(given, node)
        if (declared := self._declared(function, name)) is not None:
            return declared
        if default is None:
            return _unknown(node, f"a parameter of {function.name}(), which nothing here calls")
        found = self._default(self.value(default, At(scope.parent or scope, 0)), node)
        return _noted(found, f"{name} of {function.name}()")

    def _declared(self, function: Any, name: str) -> Found | None:
        """The default that an option of click, written above a function, gives its parameter."""
        for one in function.decorator_list:
            if isinstance(one, ast.Call) and self.called(one.func) == "option":
                words = [str(word.value) for word in one.args if isinstance(word, ast.Constant)]
                if name in [word.lstrip("-").replace("-", "_") for word in words]:
                    given = {keyword.arg: keyword.value for keyword in one.keywords}
                    if "default" in given:
                        found = self.value(given["default"], At(self.module, 0))
                        return _noted(found, f"--{name}")
        return None

    def _default(self, found: Found, node: ast.expr) -> Found:
        """What field(), Field() or Option() gives if nothing is said."""
        made = found.value
        if not isinstance(made, Made) or made.name.rpartition(".")[2] not in DEFAULTS:
            return found
        given, _ = self.keywords(made, ("default",))
        factory = next((k.value for k in made.call.keywords if k.arg == "default_factory"), None)
        if isinstance(factory, ast.Lambda):
            return self.value(factory.body, made.at)
        return given.get("default") or _unknown(node, "its default is made by a function")

    def _argument(self, call: ast.Call, at: At, name: str, place: int | None) -> Found | None:
        for one in call.keywords:
            if one.arg == name:
                return self.value(one.value, at)
            several = None if one.arg else self.value(one.value, at).value
            if isinstance(several, dict) and name in several:
                return several[name]  # type: ignore[no-any-return]
        if place is not None and 0 <= place < len(call.args):
            return self.value(call.args[place], at)
        return None

    def _made_by(self, name: str) -> Made | None:
        """The one call that makes an object of a class of the code."""
        made = [(call, at) for by, call, at in self.calls if by == name]
        return Made(name, *made[0]) if len(made) == 1 else None

    # ------------------------------------------------------------------- objects

    def keywords(self, made: Made, takes: Sequence[str] = ()) -> tuple[dict[str, Found], str]:
        """The arguments of a call by name, positional ones under `takes`, and what was set on its
        object later; and why others may be given, too.
        """
        found: dict[str, Found] = {}
        open_ = ""
        for name, value in zip(takes, made.call.args, strict=False):
            if isinstance(value, ast.Starred):
                break
            found[name] = self.value(value, made.at)
        for one in made.call.keywords:
            if one.arg is not None:
                found[one.arg] = self.value(one.value, made.at)
                continue
            several = self.value(one.value, made.at)
            if isinstance(several.value, dict):
                found |= {str(key): inner for key, inner in several.value.items()}
            else:
                shown = ast.unparse(one.value)[:60]
                open_ = f"**{shown}: {several.why or 'it is no map that stands here'}"
        for scope, name in made.roots:
            found = self._changed(found, scope.fields.get(name, ()), made.call)
        return found, open_

    def _changed(
        self, found: dict[str, Found], later: Sequence[tuple[str, Assigned]], node: ast.expr
    ) -> dict[str, Found]:
        """A map with what is set on it later."""
        for key, one in later:
            holds, notes = self._judged(one.at.conditions, one.at)
            if holds is not False:
                new = _noted(self._assigned(one, node), *notes)
                sometimes = _unknown(node, "it is set under a condition that is not known")
                new = new if holds else _agreed([new, found.get(key, sometimes)], node)
                found = {**found, key: new}
        return found

    def field_of(self, made: Made, key: str, node: ast.expr, at: At | None = None) -> Found:
        """An attribute of an object."""
        given, open_ = self.keywords(made, self.fields(made.name))
        if key in given:
            return given[key]
        if made.name in FLAGS:
            return self._flag(key, made, node)
        for _ in range(MOST_DEPTH):
            if made.name not in self.classes:
                break
            own, scope = self.classes[made.name]
            later = [one for name, one in scope.fields.get("self", ()) if name == key]
            if later:
                return self._of_self(later, node, at)
            if key in scope.names:
                found = self._default(self._settled(scope.names[key], node, None), node)
                if made.parsed and key in self.flags:
                    return Found(self.flags[key], node)
                return _noted(found, f"--{key}") if made.parsed else found
            if not own.bases:
                break
            made = Made(self.called(own.bases[0]), made.call, made.at, (), made.parsed)
        if made.parsed:
            if key in self.flags:
                return Found(self.flags[key], node)
            return _unknown(node, f"a flag of the command line gives it (--{key})")
        return _unknown(node, open_ or f"`{key}` of {made.name}() is not known")

    def _of_self(self, several: Sequence[Assigned], node: ast.expr, at: At | None) -> Found:
        """What the methods of a class set: those of one method in order, None as not yet."""
        own = [one for one in several if at is not None and one.at.scope is at.scope]
        if at is not None and any(one.at.order < at.order for one in own):
            return self._settled(own, node, at)
        last = {id(one.at.scope): one for one in several if one.at is not at}
        left = [self._assigned(one, node) for one in last.values()]
        return _agreed([one for one in left if one.value is not None] or left, node)

    def fields(self, name: str) -> list[str]:
        """The annotated fields of a class, in order."""
        if name not in self.classes:
            return []
        return [
            one.target.id
            for one in self.classes[name][0].body
            if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
        ]

    def _flag(self, key: str, made: Made, node: ast.expr) -> Found:
        """A value of argparse: what the command line says, else its default."""
        if key in self.flags:
            return Found(self.flags[key], node)
        words = [self.value(one, made.at).plain() for one in made.call.args[:1]]
        if words and words[0] is not None:
            if words[0] is UNKNOWN:
                return _unknown(node, f"words that the code makes give it (--{key})")
            said = flag_values(words[0])
            if key in said:
                return Found(said[key], node)
        for name, call, at in self.calls:
            if name.rsplit(".", 1)[-1] not in ("add_argument", "set_defaults"):
                continue
            given = {one.arg: one.value for one in call.keywords}
            if name.endswith("set_defaults") and key in given:
                return _noted(self.value(given[key], at), f"--{key}")
            words = [one.value for one in call.args if isinstance(one, ast.Constant)]
            named = given.get("dest")
            flags = [str(word).lstrip("-").replace("-", "_") for word in words]
            flag = next((str(word) for word in words if str(word).startswith("--")), key)
            if key not in flags and not (isinstance(named, ast.Constant) and named.value == key):
                continue
            if "default" in given:
                found = self.value(given["default"], at)
                kind = PLAIN.get(self.called(given["type"])) if "type" in given else None
                if kind in (int, float) and isinstance(found.value, str):
                    found = Found(read_word(found.value), found.node, found.notes)
            elif isinstance(action := given.get("action"), ast.Constant) and str(
                action.value
            ).startswith("store_"):
                found = Found(action.value == "store_false", call)
            else:
                return _unknown(node, f"the command line gives it ({flag})")
            if found.known and found.value is None:
                return _unknown(node, f"the command line gives it ({flag}), by default nothing")
            return _noted(found, flag)
        return _unknown(node, f"the command line gives it (--{key})")

    # ------------------------------------------------------------------- expressions

    def value(self, node: ast.expr, at: At) -> Found:
        """What an expression is at a place of the code."""
        key = (id(node), at.order)
        if key in self._known:
            return self._known[key]
        self._steps += 1
        if key in self._open or len(self._open) > MOST_DEPTH or self._steps > MOST_STEPS:
            self._cut += 1
            return _unknown(node, "it is followed no further")
        self._open.add(key)
        cut = self._cut
        try:
            found = self._value(node, at)
        except (ArithmeticError, TypeError, ValueError, AttributeError, LookupError):
            found = _unknown(node, f"`{_shown(node)}` is not computed here")
        finally:
            self._open.discard(key)
        if cut == self._cut and not self._bound:  # it does not hang on what was asked for
            self._known[key] = found
        return found

    def _value(self, node: ast.expr, at: At) -> Found:
        if isinstance(node, ast.Constant):
            return Found(node.value, node)
        if isinstance(node, ast.Name):
            found = self.name(node.id, node, at)
            if isinstance(made := found.value, Made) and len(made.roots) < MOST_ROOTS:
                roots = dict.fromkeys((*made.roots, (_owner(node.id, at.scope), node.id)))
                made = Made(made.name, made.call, made.at, tuple(roots), made.parsed)
                return Found(made, found.node, found.notes)
            return self._with_fields(found, node.id, at)
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            return Found([self.value(one, at) for one in node.elts], node)
        if isinstance(node, ast.Dict):
            return self._dict(node, at)
        if isinstance(node, ast.Attribute):
            return self._attribute(node, at)
        if isinstance(node, ast.Subscript):
            return self._item(node, at)
        if isinstance(node, ast.Call):
            return self._made(node, at)
        if isinstance(node, ast.JoinedStr):
            parts = [
                self.value(one.value if isinstance(one, ast.FormattedValue) else one, at)
                for one in node.values
            ]
            return self._computed(node, parts, lambda *several: "".join(map(str, several)))
        if isinstance(node, ast.BinOp | ast.Compare):
            if isinstance(node, ast.Compare) and len(node.ops) > 1:
                return _unknown(node, f"`{_shown(node)}` is not computed here")
            sides = (node.left, node.right if isinstance(node, ast.BinOp) else node.comparators[0])
            kind = node.op if isinstance(node, ast.BinOp) else node.ops[0]
            both = [self.value(one, at) for one in sides]
            if isinstance(kind, ast.BitOr) and all(isinstance(one.value, dict) for one in both):
                return Found({**both[0].value, **both[1].value}, node)
            return self._computed(node, both, OPERATORS[type(kind)])
        if isinstance(node, ast.UnaryOp):
            inner = self.value(node.operand, at)
            return self._computed(node, [inner], UNARY[type(node.op)])
        if isinstance(node, ast.BoolOp):
            return self._either(node, at)
        if isinstance(node, ast.IfExp):
            holds = self.holds(((node.test, True),), at)
            if holds is not None:
                notes = self.value(node.test, at).notes
                return _noted(self.value(node.body if holds else node.orelse, at), *notes)
            return _agreed([self.value(node.body, at), self.value(node.orelse, at)], node)
        if isinstance(node, ast.Await | ast.NamedExpr):
            return self.value(node.value, at)
        return _unknown(node, f"`{_shown(node)}` is not computed here")

    def _with_fields(self, found: Found, name: str, at: At) -> Found:
        """A map with the keys that are set on it later."""
        fields = _owner(name, at.scope).fields.get(name, ())
        later = [one for one in fields if one[1].at.order < at.order]
        if not isinstance(found.value, dict) or not later:
            return found
        return Found(self._changed(found.value, later, node=found.node), found.node, found.notes)

    def _either(self, node: ast.BoolOp, at: At) -> Found:
        is_or = isinstance(node.op, ast.Or)
        for one in node.values:
            found = self.value(one, at)
            value = found.plain()
            if value is UNKNOWN and not isinstance(found.value, Made):
                return _unknown(node, found.why, found.options)
            if bool(value) is is_or or one is node.values[-1]:
                return found
        return _unknown(node, "")

    def _dict(self, node: ast.Dict, at: At) -> Found:
        found: dict[str, Found] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            inner = self.value(value, at)
            if key is None:
                if not isinstance(inner.value, dict):
                    return _unknown(node, f"**{_shown(value)}: {inner.why}")
                found |= inner.value
            elif (name := self.value(key, at).plain()) is not UNKNOWN:
                found[str(name)] = inner
        return Found(found, node)

    def _computed(self, node: ast.expr, parts: Sequence[Found], by: Callable[..., Any]) -> Found:
        values = [one.plain() for one in parts]
        for one, value in zip(parts, values, strict=True):
            if value is UNKNOWN:
                return _unknown(node, one.why or f"`{_shown(node)}` is not computed here")
        _check_sizes(by, values)
        value = by(*values)
        if isinstance(value, str | list) and len(value) > MOST_TEXT:
            return _unknown(node, "it is too long")
        notes = tuple(dict.fromkeys(note for one in parts for note in one.notes))
        if isinstance(value, list):
            return Found([Found(item, node) for item in value], node, notes)
        return Found(value, node, notes)

    def _attribute(self, node: ast.Attribute, at: At) -> Found:
        if isinstance(node.value, ast.Name):
            library = self.imports.get(node.value.id, node.value.id)
            if library in ("torch", "jnp", "jax.numpy") and node.attr in FORMATS:
                return Found(NUMBERS.get(node.attr, node.attr), node)
        owner = self.value(node.value, at)
        if isinstance(owner.value, dict):
            return owner.value.get(node.attr) or _unknown(node, f"it has no `{node.attr}`")
        if isinstance(owner.value, Made):
            if node.attr == "__dict__":
                return self._as_map(owner, node)
            return self.field_of(owner.value, node.attr, node, at)
        return _unknown(node, owner.why or f"`{_shown(node)}` is not known")

    def _item(self, node: ast.Subscript, at: At) -> Found:
        owner = self.value(node.value, at)
        key = self.value(node.slice, at).plain() if not isinstance(node.slice, ast.Slice) else None
        if isinstance(owner.value, dict) and key is not UNKNOWN:
            return owner.value.get(str(key)) or _unknown(node, f"it has no key {key!r}")
        if isinstance(owner.value, list) and isinstance(key, int):
            return owner.value[key]  # type: ignore[no-any-return]
        if isinstance(owner.value, Made):
            if owner.value.name in (*FLAGS, *PARSERS):
                return owner
            if owner.value.name in self.classes:
                return self.field_of(owner.value, str(key), node)
            return owner
        shown = _shown(node)
        if shown.startswith(("os.environ", "sys.argv")):
            return _unknown(node, f"the environment gives it ({shown})")
        return _unknown(node, owner.why or f"`{shown}` is not known")

    def _made(self, node: ast.Call, at: At) -> Found:
        name = self.called(node.func)
        last = name.rsplit(".", 1)[-1]
        if last in BRAIN_FLOAT:
            return self.on_bfloat16(node, True, False)
        if last == "get_device_capability" and self.bfloat16 is not None:
            known = [8, 0] if self.bfloat16 else [7, 5]
            return Found([Found(one, node, (BY_GPU,)) for one in known], node)
        if _shown(node.func) in ("torch.cuda.is_available", "cuda.is_available"):
            return Found(True, node)
        if name in ("dict", "SimpleNamespace", "Namespace", "EasyDict", "OmegaConf.create", "Box"):
            given, open_ = self.keywords(Made(name, node, at))
            for one in node.args:
                inner = self.value(one, at)
                if not isinstance(inner.value, dict):
                    return _unknown(node, inner.why)
                given = {**inner.value, **given}
            return _unknown(node, open_) if open_ else Found(given, node)
        if last in ("asdict", "vars") and node.args:
            return self._as_map(self.value(node.args[0], at), node)
        if last in ("get", "getenv"):
            return self._got(node, last, at)
        if name == "getattr" and len(node.args) > 1 and _shown(node.args[0]) == "torch":
            return self.value(node.args[1], at)
        by = os.path.join if _shown(node.func).endswith("path.join") else PLAIN.get(name)
        if by is not None and not node.keywords:
            return self._computed(node, [self.value(one, at) for one in node.args], by)
        if isinstance(node.func, ast.Attribute):
            owner = self.value(node.func.value, at)
            if last in OF_TEXT and isinstance(owner.value, str):
                parts = [owner, *(self.value(one, at) for one in node.args)]
                return self._computed(node, parts, getattr(str, last))
            if last in SAME and isinstance(owner.value, Made | dict | list):
                return owner
            if last in PARSERS:
                return self._parsed(owner, node, at)
        if last in FLAGS:
            return Found(Made(last, node, at), node)
        if isinstance(node.func, ast.Name) and node.func.id in self.functions:
            return self._returned(node.func.id, node)
        if isinstance(node.func, ast.Attribute) and last in self.functions:
            return self._returned(last, node)
        return Found(Made(name, node, at), node)

    def _as_map(self, found: Found, node: ast.expr) -> Found:
        """The fields of an object of one of the code's classes."""
        made = found.value
        if not isinstance(made, Made) or made.name not in self.classes:
            return _unknown(node, found.why or f"what `{_shown(node)}` holds is not known")
        names = [*self.fields(made.name), *self.keywords(made)[0]]
        return Found({name: self.field_of(made, name, node) for name in names}, node)

    def on_bfloat16(self, node: ast.expr, with_it: Any, without: Any) -> Found:
        """What holds on a GPU with bfloat16, or without it."""
        if self.bfloat16 is None:
            return _unknown(node, "the GPU decides it, and none is known", (with_it, without))
        return Found(with_it if self.bfloat16 else without, node, (BY_GPU,))

    def _got(self, node: ast.Call, name: str, at: At) -> Found:
        """What `.get(key, default)` gives, of a map or of the environment."""
        if isinstance(node.func, ast.Attribute) and name == "get":
            owner = self.value(node.func.value, at)
            if isinstance(owner.value, dict) and node.args:
                key = self.value(node.args[0], at).plain()
                if key in owner.value:
                    return owner.value[key]  # type: ignore[no-any-return]
                given = [self.value(one, at) for one in node.args[1:]]
                return given[0] if given else Found(None, node)
            if not _shown(node.func.value).endswith("environ"):
                return _unknown(node, owner.why or f"`{_shown(node)}` is not computed here")
        variable = _shown(node.args[0]) if node.args else "a variable"
        if len(node.args) < 2:
            return _unknown(node, f"the environment gives it ({variable})")
        return _noted(self.value(node.args[1], at), f"{variable} of the environment")

    def _parsed(self, parser: Found, node: ast.Call, at: At) -> Found:
        """The objects that a parser of dataclasses makes of a command line."""
        if not isinstance(parser.value, Made) or not parser.value.call.args:
            return _unknown(node, "the command line gives it")
        first = parser.value.call.args[0]
        several = first.elts if isinstance(first, ast.Tuple | ast.List) else [first]
        empty = ast.Call(ast.Name("x"), [], [])
        made = [
            Found(Made(self.called(one), ast.copy_location(empty, node), at, (), True), node)
            for one in several
        ]
        return Found(made, node)

    def _returned(self, name: str, node: ast.expr) -> Found:
        """What a function of the code returns, if it is the same on all ways out."""
        function, scope = self.functions[name]
        left = []
        for one in _returns(function.body):
            if one.value is not None:
                left.append(self.value(one.value, At(scope, 10**9)))
        return _agreed(left, node) if left else _unknown(node, f"{name}() is not run")


def _owner(name: str, scope: Scope) -> Scope:
    """The scope whose name it is, seen from another one."""
    found: Scope | None = scope
    while found is not None and (
        name not in found.names or (found is not scope and _is_class(found))
    ):
        found = found.parent
    return found or scope


def _own_expressions(one: ast.stmt) -> Iterator[ast.expr]:
    """The expressions of a statement itself, without the statements inside it."""
    for child in ast.iter_child_nodes(one):
        if isinstance(child, ast.expr):
            yield child
        elif isinstance(child, ast.withitem):
            yield child.context_expr


def _returns(body: Sequence[ast.stmt]) -> Iterator[ast.Return]:
    for one in body:
        if isinstance(one, ast.Return):
            yield one
        elif not isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for part in ("body", "orelse", "finalbody"):
                yield from _returns(getattr(one, part, []))


def _default_of(
    arguments: ast.arguments, name: str, names: Sequence[str], alone: Sequence[str]
) -> ast.expr | None:
    if name in alone:
        return arguments.kw_defaults[alone.index(name)]
    place = names.index(name) - (len(names) - len(arguments.defaults))
    return arguments.defaults[place] if place >= 0 else None


def _is_class(scope: Scope) -> bool:
    return isinstance(scope.node, ast.ClassDef)


def _agreed(several: Sequence[Found], node: ast.expr) -> Found:
    """The one value that all are, else unknown between them."""
    plain = [one.plain() for one in several]
    made = {id(one.value.call) for one in several if isinstance(one.value, Made)}
    first = several[0]
    if len(several) == 1 or (len(made) == 1 and all(isinstance(o.value, Made) for o in several)):
        return first
    if all(one is not UNKNOWN for one in plain):
        if all(type(one) is type(plain[0]) and one == plain[0] for one in plain):
            return first
        options = [one for place, one in enumerate(plain) if one not in plain[:place]]
        lines = sorted({getattr(one.node, "lineno", 0) for one in several})
        said = " or ".join(repr(one)[:60] for one in options[:SHOWN])
        places = "; ".join(f"{AT_LINE}{line}" for line in lines[:SHOWN])
        if len(options) > SHOWN:
            said = f"{len(options)} values, such as {said}"
            is_number = all(isinstance(one, int | float) for one in options)
            options = [min(options), max(options)] if is_number else options[:SHOWN]
        return _unknown(node, f"the code chooses between {said} ({places})", tuple(options))
    why = next((one.why for one in several if one.why), "the code chooses between several")
    objects = [one.value for one in several if isinstance(one.value, Made)]
    return _unknown(
        node, why, tuple(objects) or next((o.options for o in several if o.options), ())
    )


def _unknown(node: ast.expr, why: str, options: Sequence[Any] = ()) -> Found:
    return Found(UNKNOWN, node, (), why, tuple(options))


def _noted(found: Found, *notes: str) -> Found:
    if not found.known or not notes:
        return found
    return Found(found.value, found.node, (*found.notes, *notes))


def _shown(node: ast.AST) -> str:
    with suppress(ValueError, RecursionError, AttributeError):
        text = " ".join(ast.unparse(node).split())
        return text if len(text) <= 60 else f"{text[:57]}..."
    return "an expression"


def _check_sizes(by: Callable[..., Any], values: Sequence[Any]) -> None:
    """Refuse what would take long. Raises ValueError."""
    if by is operator.pow and not (abs(values[0]) <= 10**6 and abs(values[1]) <= 64):
        raise ValueError
    if by is operator.mul and any(isinstance(one, str | list) for one in values):
        raise ValueError
    if by is operator.mod and isinstance(values[0], str):
        raise ValueError
    for one in values:
        if isinstance(one, int) and abs(one) > MOST_SIZE:
            raise ValueError
