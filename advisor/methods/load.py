"""rules/objectives/*.yaml and rules/updates/*.yaml -> Methods.

Keys that several methods have stand once, in rules/keys/NAME.yaml, and those methods name the file
under `shares`. A folder named in ADVISE_METHODS adds methods of one's own: it has the layout of
this project (`rules/objectives/`, `rules/updates/`, `trainers/`, `estimate/methods/`). A file with
a fault ends every command, with all faults of all files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from advisor.ground.annotated import build, shape_of
from advisor.ground.errors import Fault, InputError, did_you_mean, unknown_name
from advisor.ground.resources import estimate_methods_dir, method_roots, resource_root
from advisor.ground.shape import (
    VERSION,
    Choice,
    Keys,
    ListOf,
    MapOf,
    Number,
    OneOf,
    Path_,
    Shape,
    Text,
    check_shape,
    value_words,
)
from advisor.ground.yaml_files import SOURCE, Document, Spot, read_shipped, read_yaml
from advisor.methods.keys import DECLARATION, Key, Refusal, declared_key, unused_parts
from advisor.methods.model import QUANTIZATIONS, Method, Methods, Objective, Update, Variant
from advisor.methods.stage import stage_keys

FOLDERS: Mapping[str, tuple[str, type[Method]]] = {
    "objective": ("objectives", Objective),
    "update": ("updates", Update),
}
# How much data an objective wants (advisor/data/amounts.py).
AMOUNTS = Keys(
    keys={
        "unit": Choice(values=("rows", "tokens"), help="left out: rows"),
        "floor": Number(whole=True, min=1, help="below this nothing is advised; else: too_few"),
        "too_few": Number(whole=True, min=1, help="below this it is documented to fail"),
        "usual": ListOf(
            of=Number(whole=True, min=1),
            least=2,
            most=2,
            help="the range that published runs sit in",
        ),
        "row_tokens": Number(whole=True, min=1, help="of a usual row, for a cost nobody can know"),
        "row_source": Text(help="where that is from: an id of rules/sources.yaml"),
        "text": Text(),
        "sources": ListOf(of=Text(), least=1, help="ids of rules/sources.yaml"),
    },
    required=("too_few", "usual", "text", "sources"),
)
# How few rows become enough optimizer steps (advisor/advice/search/rows.py).
_STEPS: Mapping[str, Shape] = {
    "least": Number(whole=True, min=1, help="optimizer steps that a training is to have"),
    "smallest_batch": Number(whole=True, min=1, help="rows a step, below which no rule goes"),
    "most_epochs": Number(whole=True, min=1, help="passes that are documented to help"),
    "held_out": Number(whole=True, min=1, help="rows that tell two models apart"),
    "text": Text(),
    "sources": ListOf(of=Text(), least=1, help="ids of rules/sources.yaml"),
}
_NEEDED = ("least", "smallest_batch", "most_epochs", "text", "sources")
STEPS = Keys(
    keys={
        **_STEPS,
        "classes": Keys(keys=_STEPS, required=_NEEDED, help="with a classification head"),
    },
    required=_NEEDED,
)
# rules/keys/NAME.yaml.
SHARED_KEYS_FILE = Keys(
    help="Keys of a stage that several methods have",
    keys={
        "version": VERSION,
        "id": Text(help="the file's own name"),
        "about": Text(),
        "keys": MapOf(of=DECLARATION, least=1, help="the keys that its methods add to a stage"),
    },
    required=("id", "about", "keys"),
)
# Fields of a method that are made from parts of its file.
MADE = (
    "axis",
    "spot",
    "shipped",
    "amounts",
    "steps",
    "sources",
    "keys",
    "defaults",
    "unused",
    "refuses",
    "variants",
)
OWN_NAME = "give yours a name of its own"
ARITHMETIC = "the name of a file in estimate/methods/"


@cache
def file_shape(axis: str) -> Keys:
    """What the file of an objective or of an update may hold.

    The rule loader reads `settings`, and the linter `scenarios`.
    """
    own = shape_of(FOLDERS[axis][1], without=MADE)
    keys: dict[str, Shape] = {
        **own.keys,
        "version": VERSION,
        "sources": MapOf(of=SOURCE, help="beside those of rules/sources.yaml"),
        "keys": MapOf(of=DECLARATION, help="the keys that it adds to a stage"),
        "shares": ListOf(of=Text(), help="files of rules/keys/ whose keys it has, too"),
        "defaults": Keys(
            keys={name: _default(key.shape) for name, key in stage_keys().items()},
            help="of keys that every stage has",
        ),
        "unused": Keys(
            keys={name: Text() for name in stage_keys()},
            help="keys of every stage that it does not read, and why",
        ),
        "refuses": ListOf(
            of=shape_of(Refusal), help="values of other keys that it cannot go together with"
        ),
        "settings": ListOf(of=Shape(), help="rules that set its defaults"),
        "scenarios": ListOf(of=Shape(), help="tests of its rules"),
    }
    if axis == "update":
        keys["quantizations"] = Keys(
            keys=dict.fromkeys(QUANTIZATIONS, shape_of(Variant, without=("quantization",))),
            help="schemes on a quantised base that have names of their own",
        )
        keys["arithmetic"] = Text(such_as="lora: the name of a file in estimate/methods/")
        own = replace(own, required=(*own.required, "arithmetic"))
    else:
        keys["amounts"] = AMOUNTS
        keys["steps"] = STEPS
    return Keys(keys=keys, required=own.required, nulls=True)


def _default(shape: Shape) -> Shape:
    cited = Keys(keys={"value": shape, "source": Text()}, required=("value",))
    return OneOf(options=(shape, cited))


@cache
def methods(roots: tuple[Path, ...] | None = None) -> Methods:
    """Every method of the project and of the folders that ADVISE_METHODS names, with the faults of
    all files.

    Args:
        roots: Folders that hold `rules/objectives/` and `rules/updates/`, for tests.
    """
    found: dict[str, dict[str, Any]] = {"objective": {}, "update": {}}
    faults: list[Fault] = []
    taken: dict[str, Spot] = {}  # name of a method or scheme -> where it stands
    for root in roots or method_roots():
        if not any((root / name).is_dir() for name in ("rules", "extras", "launch")):
            allowed = "a folder with rules/objectives/, rules/updates/, extras/ or launch/checks/"
            what = f"{root} adds nothing"
            faults.append(Fault(where="ADVISE_METHODS", what=what, allowed=allowed))
        for axis, (folder, kind) in FOLDERS.items():
            for path in sorted((root / "rules" / folder).glob("*.yaml")):
                try:
                    # Files of one's own go by their whole path: there may be two of one name.
                    document = (
                        read_shipped(path, shape=partial(file_shape, axis))
                        if root == resource_root()
                        else read_yaml(path, name=str(path))
                    )
                except InputError as error:
                    faults += error.faults
                    continue
                reader = _Reader(document, axis, path, root)
                method = reader.method(kind)
                names = [] if method is None else _names(method)
                for number, name in enumerate(names):
                    again = Spot(document, ("id",)) if name in names[:number] else None
                    if first := taken.get(name) or again:
                        at = document.at(("quantizations" if again or name != path.stem else "id",))
                        what = f"a method '{name}' exists already ({first.at()})"
                        reader.faults.append(Fault(where=at, what=what, hint=OWN_NAME))
                faults += reader.faults
                if not reader.faults:
                    found[axis][path.stem] = method
                    taken |= dict.fromkeys(names, Spot(document, ("id",)))
    tables, is_sound = {}, not faults
    for axis, table in found.items():
        wrong = {
            name: [*_wrong_refusals({name: one}, found)] for name, one in table.items() if is_sound
        }
        faults += [fault for ones in wrong.values() for fault in ones]
        kept = (item for item in table.items() if not wrong.get(item[0]))
        tables[axis] = dict(sorted(kept, key=lambda item: (item[1].order, item[0])))
    return Methods(tables["objective"], tables["update"], tuple(dict.fromkeys(faults)))


def _wrong_refusals(
    table: Mapping[str, Method], found: Mapping[str, Mapping[str, Method]]
) -> Iterator[Fault]:
    """Keys under `refuses` that there are not, and values that those keys never have. The keys of
    all methods count, so this waits until all files are read.
    """
    declared = [one.keys for table in found.values() for one in table.values()]
    for spot, refusal in (
        (method.spot / "refuses" / number, refusal)
        for method in table.values()
        for number, refusal in enumerate(method.refuses)
    ):
        keys = [keys[refusal.key] for keys in (stage_keys(), *declared) if refusal.key in keys]
        if not keys:
            names = dict.fromkeys([*stage_keys(), *(name for keys in declared for name in keys)])
            yield unknown_name("key", refusal.key, list(names), at=spot.at())
        for value in refusal.values:
            if keys and not any(key.accepts(value) for key in keys):
                what = f"`{refusal.key}` is never {value_words(value)}"
                yield Fault(where=spot.at(), what=what, allowed=keys[0].allowed)


def _names(method: Method) -> list[str]:
    return [method.id, *(variant.id for variant in getattr(method, "variants", ()))]


def _wrong_declaration(
    name: str, said: Mapping[str, Any], beside: Mapping[str, Any]
) -> Iterator[tuple[Path_, str]]:
    """(where in the declaration, what is wrong) of each part that makes no key."""
    for part in unused_parts(said):
        yield (part,), f"`{part}` says nothing about a key of type {said['type']}"
    if said["type"] == "choice" and "values" not in said:
        yield (), f"key '{name}': a choice has no `values`"
    for other in said.get("also", ()) if said["type"] == "entries" else ():
        if other not in beside or other == name:
            yield (), f"key '{name}': `also` names '{other}', which this file does not declare"


class _Reader:
    """One file of a method, with every fault found in it."""

    def __init__(self, document: Document, axis: str, path: Path, root: Path) -> None:
        self.document, self.axis, self.path, self.root = document, axis, path, root
        self.faults = [] if document.checked else check_shape(document, file_shape(axis))
        self.data: Mapping[str, Any] = document.data if isinstance(document.data, dict) else {}

    def fault(self, place: Path_, what: str, allowed: str = "", hint: str = "") -> None:
        at = self.document.at(place, key=bool(place))
        self.faults.append(Fault(where=at, what=what, allowed=allowed, hint=hint))

    def method(self, kind: type[Method]) -> Method | None:
        """The method, or None with the faults collected."""
        given = {key: value for key, value in self.data.items() if value is not None}
        if given.get("id") not in (None, self.path.stem):
            self.fault(("id",), f"id '{given['id']}'", f"the file's name: {self.path.stem}")
        if isinstance(given.get("arithmetic"), str):
            self.check_arithmetic(given["arithmetic"])
        keys = {key.name: key for key in self.keys()}
        if self.faults:
            return None
        plain = {key: given[key] for key in shape_of(kind, without=MADE).keys if key in given}
        made: dict[str, Any] = {
            "axis": self.axis,
            "spot": Spot(self.document),
            "shipped": self.root == resource_root(),
            "keys": keys,
            "defaults": {
                key: value["value"] if isinstance(value, dict) else value
                for key, value in given.get("defaults", {}).items()
            },
            "sources": given.get("sources", {}),
            "unused": given.get("unused", {}),
            "refuses": tuple(build(Refusal, entry) for entry in given.get("refuses", ())),
        }
        if self.axis == "update":
            made["variants"] = tuple(
                Variant(quantization=quantization, **entry)
                for quantization, entry in given.get("quantizations", {}).items()
            )
        else:
            made["amounts"] = given.get("amounts", {})
            made["steps"] = given.get("steps", {})
        return build(kind, plain, made)

    def keys(self) -> Iterator[Key]:
        """The keys that a stage of this method may have: its own, then those that it shares."""
        own = list(self.declared(self.document))
        yield from own
        names = {key.name for key in own}
        shares = self.data.get("shares")
        for number, name in enumerate(shares if isinstance(shares, list) else ()):
            document = self.shared(("shares", number), str(name))
            if document is None:
                continue
            for key in self.declared(document):
                if key.name in names:
                    what = f"`{key.name}` is declared here and in {document.at()}"
                    self.fault(("keys", key.name), what)
                names.add(key.name)
                yield key

    def shared(self, place: Path_, name: str) -> Document | None:
        """The file of shared keys of that name: of the method's own folder, or shipped."""
        for root in dict.fromkeys((self.root, resource_root())):
            path = root / "rules" / "keys" / f"{name}.yaml"
            if not path.is_file():
                continue
            try:
                if root == resource_root():
                    return read_shipped(path, shape=SHARED_KEYS_FILE)
                document = read_yaml(path, name=str(path))
            except InputError as error:
                self.faults += error.faults
                return None
            faults = check_shape(document, SHARED_KEYS_FILE)
            self.faults += faults
            return None if faults else document
        there = sorted(path.stem for path in (resource_root() / "rules" / "keys").glob("*.yaml"))
        what = f"no file rules/keys/{name}.yaml"
        self.fault(place, what, f"there are: {', '.join(there)}", did_you_mean(name, there))
        return None

    def declared(self, document: Document) -> Iterator[Key]:
        """The keys that a file declares."""
        data = document.data if isinstance(document.data, dict) else {}
        keys = data.get("keys")
        declared = keys if isinstance(keys, dict) else {}
        for name, said in declared.items():
            place = ("keys", name)
            if self.faults and check_shape(document, DECLARATION, place):
                continue  # told already
            wrong = list(_wrong_declaration(name, said, declared))
            for part, what in wrong:
                at = document.at((*place, *part), key=True)
                self.faults.append(Fault(where=at, what=what))
            if any(not part for part, _ in wrong):
                continue
            key = declared_key(name, f"{self.axis} {self.path.stem}", said, declared)
            if not key.accepts(key.default):
                at = document.at(place, key=True)
                what = f"key '{name}': its default {key.default!r} is not {key.allowed}"
                self.faults.append(Fault(where=at, what=what))
            yield key

    def check_arithmetic(self, name: str) -> None:
        """The file that counts what is special about the method has to be there."""
        if not name.isidentifier():
            self.fault(("arithmetic",), f"arithmetic is {name!r}", ARITHMETIC)
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
                did_you_mean(name, there),
            )
