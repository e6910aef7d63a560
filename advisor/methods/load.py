"""rules/objectives/*.yaml and rules/updates/*.yaml -> Methods.

A folder named in ADVISE_METHODS adds methods of one's own: it has the layout of this project
(`rules/objectives/`, `rules/updates/`, `trainers/`, `estimate/methods/`). A file with a fault takes
its own method away and no other: whoever names that method gets the fault, located.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from advisor.ground.errors import Fault, InputError, nearest, unknown_name
from advisor.ground.resources import estimate_methods_dir, method_roots, resource_root
from advisor.ground.shape import Choice, Keys, ListOf, Number, Text, check_shape
from advisor.ground.yaml_cache import read_shipped
from advisor.ground.yaml_reader import Document, read_yaml
from advisor.methods.keys import TYPES, Key, Refusal
from advisor.methods.model import (
    QUANTIZATIONS,
    SERVERS,
    Method,
    Methods,
    Objective,
    Update,
    Variant,
)

FOLDERS: Mapping[str, tuple[str, type[Method]]] = {
    "objective": ("objectives", Objective),
    "update": ("updates", Update),
}
DATA_KINDS = ("paired", "raw_text", "preference", "unpaired_feedback", "prompts_with_verifier")
CHOICES = {
    "trains": ("module", "all"),
    "reference": ("never", "always", "with_beta"),
    "logits": ("tiles", "tiles_on_gpu", "whole", "parts", "none"),
}
# How much data an objective wants (advisor/data/measure/data_requirements.py).
AMOUNTS = Keys(
    keys={
        "unit": Choice(values=("rows", "tokens"), help="left out: rows"),
        "too_few": Number(whole=True, min=1, help="below this it is documented to fail"),
        "usual": ListOf(
            of=Number(whole=True, min=1),
            least=2,
            most=2,
            help="the range that published runs sit in",
        ),
        "text": Text(),
        "sources": ListOf(of=Text(), least=1, help="ids of rules/sources.yaml"),
    },
    required=("too_few", "usual", "text", "sources"),
)
LISTS = {"trains_on": DATA_KINDS, "serves": SERVERS}
OWN_NAME = "give yours a name of its own"
WORDS = {str: "text", bool: "true or false", int: "a whole number"}
# Read by others: rules by the rule loader, keys and quantizations below.
ELSEWHERE = (
    "version",
    "amounts",
    "sources",
    "keys",
    "defaults",
    "unused",
    "refuses",
    "quantizations",
    "settings",
    "scenarios",
)
PLAIN = (str, int, float, bool)
KEY_PARTS = {item.name for item in fields(Key)} - {"name", "owner"} | {"source", "sources"}
REFUSAL_PARTS = {item.name for item in fields(Refusal)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# What a part of a declared key has to be, and how that is said.
PARTS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "min": (_is_number, "a number"),
    "max": (_is_number, "a number"),
    "exclusive_min": (lambda value: isinstance(value, bool), "true or false"),
    "exclusive_max": (lambda value: isinstance(value, bool), "true or false"),
    "values": (
        lambda value: isinstance(value, list) and all(isinstance(one, PLAIN) for one in value),
        "a list of numbers or texts",
    ),
    "help": (lambda value: isinstance(value, str), "text"),
}


@cache
def methods(roots: tuple[Path, ...] | None = None) -> Methods:
    """Every method of the project and of the folders that ADVISE_METHODS names.

    Args:
        roots: Folders that hold `rules/objectives/` and `rules/updates/`, for tests.
    """
    found: dict[str, dict[str, Any]] = {"objective": {}, "update": {}}
    broken: dict[str, tuple[Fault, ...]] = {}
    taken: dict[str, str] = {}  # methods and schemes by name -> where their file stands
    for root in roots or method_roots():
        if not (root / "rules").is_dir():
            what = f"ADVISE_METHODS: {root} holds no methods"
            allowed = "a folder with rules/objectives/ or rules/updates/ in it"
            broken[str(root)] = (Fault(what=what, allowed=allowed),)
        for axis, (folder, kind) in FOLDERS.items():
            for path in sorted((root / "rules" / folder).glob("*.yaml")):
                method, faults = _read_method(path, root, axis, kind, taken)
                if method is not None:
                    found[axis][path.stem] = method
                    taken |= dict.fromkeys(_names(method), method.at)
                else:
                    name = path.stem if path.stem not in taken else f"{path.stem} ({path})"
                    broken[name] = faults
    tables = {
        axis: dict(sorted(table.items(), key=lambda item: (item[1].order, item[0])))
        for axis, table in found.items()
    }
    return Methods(objectives=tables["objective"], updates=tables["update"], broken=broken)


def _read_method(
    path: Path, root: Path, axis: str, kind: type[Method], taken: Mapping[str, str]
) -> tuple[Method | None, tuple[Fault, ...]]:
    """The method of one file, or None and what is wrong with the file."""
    try:
        # Files of one's own go by their whole path: there may be two of one name.
        own = root != resource_root()
        document = read_yaml(path, name=str(path)) if own else read_shipped(path)
    except InputError as error:
        return None, error.faults
    reader = _Reader(document, axis, path, root)
    method = reader.method(kind)
    if path.stem in taken:
        what = f"{document.at(('id',))}: a method '{path.stem}' exists already"
        return None, (Fault(what=f"{what} ({taken[path.stem]})", hint=OWN_NAME),)
    names = _names(method) if method is not None else []
    for number, name in enumerate(names):
        first = taken.get(name) or (method.at if method and name in names[:number] else None)
        if first:
            reader.fault(("quantizations",), f"a method '{name}' exists already ({first})")
    return (None, tuple(reader.faults)) if reader.faults else (method, ())


def _names(method: Method) -> list[str]:
    """The name of a method, and those of its schemes on quantised bases."""
    variants = method.variants if isinstance(method, Update) else ()
    return [method.id, *(variant.id for variant in variants)]


class _Reader:
    """One file of a method, with every fault found in it."""

    def __init__(self, document: Document, axis: str, path: Path, root: Path) -> None:
        self.document, self.axis, self.path, self.root = document, axis, path, root
        self.faults: list[Fault] = []
        self.data: Mapping[str, Any] = document.data if isinstance(document.data, dict) else {}

    def fault(
        self, place: tuple[Any, ...], what: str, allowed: str = "", hint: str = "", key: bool = True
    ) -> None:
        at = self.document.at(place, key=key and bool(place))
        self.faults.append(Fault(what=f"{at}: {what}", allowed=allowed, hint=hint))

    def method(self, kind: type[Method]) -> Method | None:
        """The method, or None with the faults collected."""
        if not isinstance(self.document.data, dict):
            self.fault((), "a map is expected", "keys such as id, name, about, order")
            return None
        hints = get_type_hints(kind)
        made_here = (
            "axis", "at", "shipped", "amounts", "sources", "keys", "defaults", "unused", "refuses",
            "variants",
        )  # fmt: skip
        own = {item.name: item for item in fields(kind) if item.name not in made_here}
        known = [*own, *ELSEWHERE]
        for name in self.data:
            if name not in known:
                at = self.document.at((name,), key=True)
                self.faults.append(unknown_name("key", name, known, at=at))
        values: dict[str, Any] = {}
        for name, item in own.items():
            if name in self.data:
                values[name] = self.value(name, self.data[name], hints[name])
            elif item.default is MISSING:
                self.fault((), f"the {self.axis} has no `{name}`", "every method has one")
        if self.data.get("id") not in (None, self.path.stem):
            self.fault(("id",), f"id '{self.data['id']}'", f"the file's name: {self.path.stem}")
        self.module(values.get("arithmetic", ""))
        owner = f"{self.axis} {self.path.stem}"
        values |= {
            "axis": self.axis,
            "at": self.document.at(("id",)),
            "shipped": self.root == resource_root(),
            "keys": self.keys(owner),
            "defaults": {
                key: value.get("value") if isinstance(value, dict) else value
                for key, value in self.map("defaults").items()
            },
            "sources": self.map("sources"),
            "unused": {key: str(why) for key, why in self.map("unused").items()},
            "refuses": tuple(self.refusals(owner)),
        }
        if self.axis == "update":
            values["variants"] = tuple(self.variants())
        elif "amounts" in self.data:
            self.faults += check_shape(self.document, AMOUNTS, ("amounts",))
            values["amounts"] = self.data["amounts"]
        return None if self.faults else kind(**values)

    def value(self, name: str, value: Any, kind: Any) -> Any:
        """One plain value of the file, checked."""
        if name in LISTS:
            if not isinstance(value, list) or any(one not in LISTS[name] for one in value):
                self.fault((name,), f"{name} is {value!r}", f"a list of {', '.join(LISTS[name])}")
                return ()
            return tuple(value)
        if name in CHOICES and value not in CHOICES[name]:
            allowed = f"one of {', '.join(CHOICES[name])}"
            self.fault((name,), f"{name} is {value!r}", allowed, nearest(value, CHOICES[name]))
        elif type(value) is not kind:
            self.fault((name,), f"{name} is {value!r}", WORDS.get(kind, str(kind)))
        return value

    def module(self, name: str) -> None:
        """The file that counts what is special about the method has to be there."""
        if not name:
            if self.axis == "update":
                self.fault(
                    (),
                    "no `arithmetic`: nothing says how many parameters it trains",
                    "the name of a file in estimate/methods/",
                )
            return
        if not isinstance(name, str) or not name.isidentifier():
            self.fault(
                ("arithmetic",),
                f"arithmetic is {name!r}",
                "the name of a file in estimate/methods/",
            )
            return
        places = [estimate_methods_dir(), self.root / "estimate" / "methods"]
        stands = [place for place in places if (place / f"{name}.py").is_file()]
        if len(stands) > 1:
            self.fault(
                ("arithmetic",),
                f"a file estimate/methods/{name}.py exists already",
                f"{stands[0] / name}.py, and yours is {stands[1] / name}.py",
                OWN_NAME,
            )
        if not stands:
            there = sorted(path.stem for place in places for path in place.glob("[a-z]*.py"))
            self.fault(
                ("arithmetic",),
                f"no file estimate/methods/{name}.py",
                f"there are: {', '.join(there)}",
                nearest(name, there),
            )

    def map(self, name: str) -> Mapping[str, Any]:
        found = self.data.get(name)
        if found is None or isinstance(found, dict):
            return found or {}
        self.fault((name,), f"`{name}` is a map, not {found!r}")
        return {}

    def keys(self, owner: str) -> dict[str, Key]:
        """The keys that a stage of this method may have."""
        found: dict[str, Key] = {}
        for name, spec in self.map("keys").items():
            place = ("keys", name)
            if not isinstance(spec, dict) or spec.get("type") not in TYPES:
                self.fault(place, f"key '{name}': its `type` is not known", ", ".join(TYPES))
                continue
            unknown = [part for part in spec if part not in KEY_PARTS]
            if unknown:
                at = self.document.at((*place, unknown[0]), key=True)
                self.faults.append(unknown_name("part", unknown[0], sorted(KEY_PARTS), at=at))
                continue
            if spec["type"] == "choice" and not spec.get("values"):
                self.fault(place, f"key '{name}': a choice has no `values`")
                continue
            wrong = [part for part in spec if part in PARTS and not PARTS[part][0](spec[part])]
            for part in wrong:
                self.fault(
                    (*place, part),
                    f"key '{name}': `{part}` is {spec[part]!r}",
                    PARTS[part][1],
                    key=False,
                )
            if wrong:
                continue
            parts = {
                part: value
                for part, value in spec.items()
                if part not in ("source", "sources", "values")
            }
            key = Key(name=name, owner=owner, values=tuple(spec.get("values") or ()), **parts)
            if key.default is not None and not key.accepts(key.default):
                self.fault(place, f"key '{name}': its default {key.default!r} is not {key.allowed}")
            found[name] = key
        return found

    def refusals(self, owner: str) -> Iterable[Refusal]:
        listed = self.data.get("refuses")
        if listed is not None and not isinstance(listed, list):
            self.fault(("refuses",), f"`refuses` is a list, not {listed!r}")
        for number, entry in enumerate(listed if isinstance(listed, list) else ()):
            complete = (
                isinstance(entry, dict)
                and set(entry) <= REFUSAL_PARTS
                and REFUSAL_PARTS - {"hint"} <= set(entry)
                and isinstance(entry["values"], list)
                and all(isinstance(entry[part], str) for part in entry if part != "values")
            )
            if complete:
                yield Refusal(**{**entry, "values": tuple(entry["values"])})
            else:
                self.fault(
                    ("refuses", number),
                    f"{owner}: an entry of refuses is incomplete",
                    "key, values (a list), because and, if you like, hint",
                    key=False,
                )

    def variants(self) -> Iterable[Variant]:
        """The schemes that this update makes on quantised bases, each under its own name."""
        wanted = {item.name for item in fields(Variant)} - {"quantization"}
        for quantization, entry in self.map("quantizations").items():
            place = ("quantizations", quantization)
            if quantization not in QUANTIZATIONS:
                self.fault(
                    place, f"unknown quantization '{quantization}'", ", ".join(QUANTIZATIONS)
                )
            elif (
                not isinstance(entry, dict)
                or set(entry) != wanted
                or not all(isinstance(text, str) and text for text in entry.values())
            ):
                self.fault(place, "the scheme is incomplete", f"texts: {', '.join(sorted(wanted))}")
            else:
                yield Variant(quantization=quantization, **entry)
