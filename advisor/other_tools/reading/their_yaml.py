"""YAML as the loaders of other tools read it: aliases and merge keys are followed, `yes` and `off`
are true and false, `1e-4` is a text to some and a number to others.

Our own reader (advisor/ground/yaml_reader.py) refuses all of that in the files people write for us.
Here it is read, and what surprises people is said. Plain data only: no tag of a file runs or builds
anything, and aliases are followed for a bounded number of values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor.ground.errors import InputError
from advisor.ground.files import read_at_most
from advisor.ground.yaml_reader import MAX_BYTES, MAX_VALUES, Path_, compose_yaml, decoded

if TYPE_CHECKING:
    import yaml

MAX_DEPTH = 40
MAX_DIGITS = 400  # of a number
ABOUT = 40  # characters of a wrong value that are shown
_SCHEME = "tag:yaml.org,2002:"
# What OmegaConf reads as a number and PyYAML, by YAML 1.1, as a text: no dot, or no sign.
_EXPONENT = re.compile(
    r"[-+]?([0-9][0-9_]*)(\.[0-9_]*)?[eE][-+]?[0-9]+$|[-+]?\.[0-9]+[eE][-+]?[0-9]+$"
)
_MARKS = ("%%", "```")
_INFINITE = (float("inf"), float("-inf"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Loader:
    """What differs between the loaders."""

    name: str
    reads_exponents: bool = False  # 1e-4 is a number, without a dot too
    reads_dates: bool = True
    refuses_repeats: bool = False  # of a key; else the last one counts


PYYAML = Loader(name="PyYAML")
OMEGACONF = Loader(name="OmegaConf", reads_exponents=True, reads_dates=False, refuses_repeats=True)
LOADERS = {"pyyaml": PYYAML, "omegaconf": OMEGACONF}


@dataclass(frozen=True, kw_only=True, slots=True)
class Surprise:
    """Something of the text that a tool refuses, or reads another way than it looks."""

    path: Path_
    mark: tuple[int, int]
    what: str
    hint: str = ""
    refused: bool = False  # the tool does not start with it


@dataclass(kw_only=True, slots=True)
class TheirText:
    """What a text holds. Positions are (line, column), from 1; an alias has its anchor's."""

    values: Any = None
    key_marks: dict[Path_, tuple[int, int]] = field(default_factory=dict)
    value_marks: dict[Path_, tuple[int, int]] = field(default_factory=dict)
    surprises: list[Surprise] = field(default_factory=list)


def read_text(path: Path | str, *, name: str) -> str:
    """The text of a file. Raises InputError for anything that is none."""
    path = Path(path)
    try:
        if path.is_dir():
            raise InputError("is a folder, a YAML or JSON file is expected", where=name)
        raw = read_at_most(path, MAX_BYTES)
    except FileNotFoundError:
        raise InputError("no such file", where=name, hint="check the path") from None
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise InputError(f"cannot be read: {said}", where=name) from None
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError("UTF-16 text", where=name, hint="save the file as UTF-8")
    return decoded(raw, name)


def nodes_of(text: str, *, name: str) -> yaml.Node | None:
    """The text as nodes. Raises InputError, located, for what no loader reads."""
    text = without_marks(text)
    if text.lstrip()[:1] in ("{", "["):
        # JSON may be indented by tabs, which YAML does not allow; inside texts it has none.
        text = text.replace("\t", " ")
    try:
        return compose_yaml(text, name=name)
    except InputError as error:
        if "\t" in text and "cannot start any token" in str(error):
            hint = "YAML is indented by spaces: replace the tabs"
            raise InputError(error.faults[0].what, hint=hint, where=error.faults[0].where) from None
        raise


def without_marks(text: str) -> str:
    """The text without what a notebook (%%writefile) or an issue (```yaml) puts around it: such
    lines are comments, of the same length.
    """
    if not text.lstrip().startswith(_MARKS) and not text.rstrip().endswith("```"):
        return text
    lines = text.splitlines(keepends=True)
    return "".join(f"#{line[1:]}" if line.startswith(_MARKS) else line for line in lines)


def their_text(text: str, *, name: str, loader: Loader = PYYAML) -> TheirText:
    """What the loader makes of the text. Raises InputError for what no loader reads."""
    node = nodes_of(text, name=name)
    walk = _Walk(name, loader)
    if node is not None:
        walk.found.values = walk.value(node, ())
    return walk.found


class _Walk:
    """One pass from nodes to plain data."""

    def __init__(self, name: str, loader: Loader) -> None:
        self.name, self.loader = name, loader
        self.found = TheirText()
        self.above: set[int] = set()  # nodes that hold the one that is read
        self.count = 0

    def surprise(
        self, node: yaml.Node, path: Path_, what: str, hint: str = "", *, refused: bool = True
    ) -> None:
        self.found.surprises.append(
            Surprise(path=path, mark=_mark(node), what=what, hint=hint, refused=refused)
        )

    def step(self) -> None:
        """Count a value. Raises InputError where aliases make too many of few."""
        self.count += 1
        if self.count > MAX_VALUES:
            raise InputError(
                f"more than {MAX_VALUES:,} values, aliases followed",
                where=self.name,
                hint="this does not look like a hand-written file",
            )

    def value(self, node: yaml.Node, path: Path_) -> Any:
        import yaml

        self.step()
        self.found.value_marks[path] = _mark(node)
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, path)
        if id(node) in self.above or len(path) > MAX_DEPTH:
            self.surprise(
                node, path, "nested without end" if id(node) in self.above else "nested too deep"
            )
            return None
        self.above.add(id(node))
        try:
            return (
                self.sequence(node, path)
                if isinstance(node, yaml.SequenceNode)
                else self.mapping(node, path)
            )
        finally:
            self.above.discard(id(node))

    def sequence(self, node: yaml.Node, path: Path_) -> Any:
        if not self.plain(node, path, "seq"):
            return None
        return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]

    def mapping(self, node: yaml.Node, path: Path_) -> dict[str, Any] | None:
        if not self.plain(node, path, "map"):
            return None
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if key_node.tag == f"{_SCHEME}merge":
                # Of several the first one wins, and what the map says itself wins over all.
                merged = self.merged(value_node, path) | merged
                continue
            key = self.key(key_node, path)
            if key is None:
                continue
            inner = (*path, key)
            if key in own:
                what = f"'{key}' is given twice (first on line {lines[key]})"
                if self.loader.refuses_repeats:
                    self.surprise(
                        key_node,
                        inner,
                        f"{what}: {self.loader.name} refuses the file",
                        "keep one of them",
                    )
                else:
                    self.surprise(
                        key_node,
                        inner,
                        f"{what}: the last one counts",
                        "keep one of them",
                        refused=False,
                    )
            lines[key] = _mark(key_node)[0]
            self.found.key_marks[inner] = _mark(key_node)
            own[key] = self.value(value_node, inner)
        return {**{key: value for key, value in merged.items() if key not in own}, **own}

    def key(self, node: yaml.Node, path: Path_) -> str | None:
        import yaml

        if not isinstance(node, yaml.ScalarNode):
            self.surprise(node, path, "a key that is no text", "a key must be plain text")
            return None
        if node.tag != f"{_SCHEME}str" and node.tag != f"{_SCHEME}value":
            self.surprise(
                node,
                (*path, node.value),
                f"the key {node.value[:ABOUT]} is no text to YAML",
                f'write "{node.value[:ABOUT]}"',
            )
        return str(node.value)

    def merged(self, node: yaml.Node, path: Path_) -> dict[str, Any]:
        """What a merge key brings, with its positions."""
        import yaml

        self.step()
        if isinstance(node, yaml.SequenceNode):
            if id(node) in self.above:
                self.surprise(node, path, "nested without end")
                return {}
            self.above.add(id(node))
            found: dict[str, Any] = {}
            for item in node.value:
                for key, value in self.merged(item, path).items():
                    found.setdefault(key, value)
            self.above.discard(id(node))
            return found
        if not isinstance(node, yaml.MappingNode):
            self.surprise(
                node, path, "a merge key (<<) without a map", "name an anchor of a map: <<: *NAME"
            )
            return {}
        outer = self.found
        self.found = TheirText(surprises=outer.surprises)
        value = self.value(node, path)
        # A key that the map itself holds keeps its own position.
        outer.key_marks = self.found.key_marks | outer.key_marks
        outer.value_marks = self.found.value_marks | outer.value_marks
        self.found = outer
        return value if isinstance(value, dict) else {}

    def plain(self, node: yaml.Node, path: Path_, kind: str) -> bool:
        if node.tag == f"{_SCHEME}{kind}":
            return True
        self.surprise(
            node, path, f"the tag {_short_tag(node.tag)}: it is not followed", _tag_hint(node.tag)
        )
        return False

    def scalar(self, node: yaml.ScalarNode, path: Path_) -> Any:
        text = str(node.value)
        kind = node.tag.removeprefix(_SCHEME)
        if kind in ("str", "value", "merge"):
            if not node.style and self.loader.reads_exponents and _EXPONENT.match(text):
                return self.number(node, path, "float")
            return text
        if kind == "null":
            return None
        if kind == "timestamp":
            if self.loader.reads_dates:
                self.surprise(
                    node,
                    path,
                    f"{text[:ABOUT]} is read as a date",
                    f'write "{text[:ABOUT]}" for a text',
                    refused=False,
                )
            return text
        if kind in ("bool", "int", "float"):
            return self.number(node, path, kind)
        self.surprise(
            node, path, f"the tag {_short_tag(node.tag)}: it is not followed", _tag_hint(node.tag)
        )
        return None

    def number(self, node: yaml.ScalarNode, path: Path_, kind: str) -> Any:
        from yaml.constructor import SafeConstructor

        text = str(node.value)
        try:
            if len(text) > MAX_DIGITS:
                raise ValueError
            found = getattr(SafeConstructor(), f"construct_yaml_{kind}")(node)
        except (ValueError, KeyError, IndexError, OverflowError):  # !!int x
            self.surprise(
                node, path, f"'{text[:ABOUT]}' is no value of the kind that it looks like"
            )
            return None
        if isinstance(found, float) and (found != found or found in _INFINITE):
            self.surprise(node, path, f"'{text[:ABOUT]}' is no usable number", refused=False)
            return None
        plain = re.fullmatch(r"[-+]?[0-9:]+", text)
        if kind == "int" and plain and (":" in text or int(text) != found):
            self.surprise(
                node,
                path,
                f"{text} is read as {found}",
                f'write "{text}" for a text',
                refused=False,
            )
        return found


def _mark(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _short_tag(tag: str) -> str:
    return (f"!!{tag.removeprefix(_SCHEME)}" if tag.startswith(_SCHEME) else tag)[:ABOUT]


def _tag_hint(tag: str) -> str:
    if "include" in tag:
        return "none of the tools includes files: copy what the other file says into this one"
    if "env" in tag.lower():
        return "none of the tools fills in environment variables: write the value"
    return "plain text, numbers, lists and maps only"


def located(name: str, marks: Mapping[Path_, tuple[int, int]], path: Sequence[str | int]) -> str:
    """'lora.yaml:12:3' for the key, or for the nearest one around it that has a position."""
    path = tuple(path)
    while path and path not in marks:
        path = path[:-1]
    mark = marks.get(path)
    return f"{name}:{mark[0]}:{mark[1]}" if mark else name
