"""What rows may look like, as rules/data/formats.yaml says: roles, names of columns and formats."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import cache, cached_property, lru_cache
from typing import Annotated, Literal

from msgspec import Struct
from msgspec.structs import replace

from advisor.ground.annotated import build, shape_of
from advisor.ground.errors import Fault, did_you_mean, refuse, unknown_name
from advisor.ground.resources import rules_dir
from advisor.ground.shape import ListOf, Text
from advisor.ground.yaml_files import read_shipped

Names = Annotated[tuple[str, ...], ListOf(of=Text(), least=1)]
Looks = Literal[
    "brief", "calls", "class", "dialogue", "empty", "few", "from_value", "no_address", "number",
    "open", "prose", "several", "verdict", "with_remarks", "written",
]  # fmt: skip


class ColumnRule(Struct, frozen=True, kw_only=True):
    """Which columns may play a role."""

    names: Annotated[Names, "what it may be called, the likeliest first; left out, anything"] = ()
    names_of: Annotated[Names, "the names of these columns come first"] = ()
    unlike: Annotated[Names, "it is not called as these columns are"] = ()
    shapes: Annotated[Names, "what most of its cells are; left out, anything"] = ()
    where: Annotated[Looks | None, "what its cells look like"] = None
    only: Annotated[bool, "there is one such column and no second"] = False
    otherwise: Annotated[str, "columns that are looked for if there is none"] = ""


class Called(Struct, frozen=True, kw_only=True):
    """A name that a format has under conditions that all hold."""

    format: str
    has: Annotated[Names, "roles that columns were found for"] = ()
    named: Annotated[
        tuple[Mapping[str, str], ...], "role -> name of its column; one of these fits"
    ] = ()
    when: Annotated[Mapping[str, Looks], "role -> what its column looks like"] | None = None


class Format(Called, frozen=True, kw_only=True):
    """One way to read columns."""

    columns: Annotated[Names, "role, `role?` if it may be missing, or `role=column`"]
    why: Annotated[str, "what is said of it, with the columns of roles"] = ""
    without: Annotated[Names, "the file has none of these columns"] = ()
    keeps: Annotated[Names, "the roles that are handed on; left out, all"] = ()
    each: Annotated[str, "a role of which every column is a reading"] = ""
    sure: Annotated[Names, "names of that column that are taken unasked"] = ()
    certain: Annotated[
        Literal["always", "likely", "pair", "lone", "never"],
        "pair: if request and answer belong together; lone: if there is no other column",
    ] = "always"
    also: Annotated[bool, "what fits further down is another reading"] = False
    alone: Annotated[bool, "--map states no other roles"] = False
    by: tuple[Literal["name", "map", "shape"], ...] = ("name", "map")
    called: tuple[Called, ...] = ()

    @property
    def roles(self) -> list[tuple[str, str, bool]]:
        """Each role, the columns that may play it, and whether it must be there."""
        parts = [(part.rstrip("?").partition("="), not part.endswith("?")) for part in self.columns]
        return [(role, source or role, needed) for (role, _, source), needed in parts]

    @property
    def needed(self) -> set[str]:
        return {role for role, _, needed in self.roles if needed}


class TurnKeys(Struct, frozen=True, kw_only=True):
    """How the turns of a conversation are written."""

    speaker: Annotated[Names, "keys of a turn for who speaks"]
    loose: Annotated[Names, "keys that name a speaker if they hold the name of one"]
    content: Annotated[Names, "keys of a turn for what is said"]
    speakers: Annotated[Mapping[str, Names], "role of chat templates -> what people call it"]


class Formats(Struct, frozen=True, kw_only=True, dict=True):
    """The whole table."""

    roles: Annotated[Mapping[str, tuple[str, ...]], "role -> other spellings of it in --map"]
    columns: Mapping[str, ColumnRule]
    metadata: Annotated[Names, "names of columns that are about a row and no part of it"]
    media: Annotated[Names, "names of columns of images and sound, in the singular"]
    settings: Annotated[Names, "names of columns that say how to ask, not what is right"]
    inside: Annotated[Names, "keys of small objects around an answer, the likeliest first"]
    verdicts: Annotated[Mapping[str, Names], "good and bad -> what a verdict may be"]
    turns: TurnKeys
    wrappers: Annotated[Names, "keys of one object around all rows"]
    pairs: Annotated[tuple[tuple[str, ...], ...], "names of a request and its answer"]
    kinds: Annotated[Mapping[str, str], "format -> kind of data"]
    formats: tuple[Format, ...]
    lacking: Annotated[Mapping[str, Names], "what a task looks for -> formats without it"]
    other_objects: Annotated[
        Mapping[str, Names], "`object` of an API -> what it is, and what to do instead"
    ]
    in_short: Annotated[str, "what is said of the formats if none of them fits"]
    words: Annotated[Mapping[str, tuple[str, ...]], "what words in other names say of a column"]

    @cached_property
    def spellings(self) -> dict[str, str]:
        """How --map may spell a role -> the role."""
        return {word: role for role, words in self.roles.items() for word in (role, *words)}

    @cached_property
    def speakers(self) -> dict[str, str]:
        """What people call a speaker -> one of the roles that chat templates know."""
        return {name: role for role, names in self.turns.speakers.items() for name in names}

    @cached_property
    def is_good(self) -> dict[str, bool]:
        """What a verdict may be -> whether it is a good one."""
        return {word: side == "good" for side, words in self.verdicts.items() for word in words}


FORMATS_FILE = replace(shape_of(Formats), help="What rows of training data may look like")


@cache
def formats() -> Formats:
    """The table. Raises InputError with the faults of the file."""
    document = read_shipped(rules_dir() / "data" / "formats.yaml", shape=FORMATS_FILE)
    table = build(Formats, document.data)
    refuse(
        unknown_name(kind, name, list(known), at=document.at(path))
        for path, kind, known, names in _used(table)
        for name in names
        if name not in known
    )
    return table


def _used(table: Formats) -> Iterator[tuple[tuple[str | int, ...], str, Collection[str], set[str]]]:
    """Where names of other parts of the table stand, what they name, those there are, and they."""
    for name, column in table.columns.items():
        others = {*column.names_of, *column.unlike, column.otherwise or name}
        yield ("columns", name), "column", table.columns, others
    for index, one in enumerate(table.formats):
        at = ("formats", index)
        own = {role for role, _, _ in one.roles}
        conditions = (one, *one.called)
        asked = {role for part in conditions for role in (*part.has, *(part.when or ()))}
        asked |= {role for part in conditions for names in part.named for role in names}
        yield at, "format", table.kinds, {part.format for part in conditions}
        yield at, "role", table.roles, own
        yield at, "role of the format", own, asked | {*one.keeps, one.each or min(own)}
        yield at, "column", table.columns, {*one.without, *(source for _, source, _ in one.roles)}


@cache
def names_of(*sources: str) -> tuple[str, ...]:
    """What these entries of `columns` may be called."""
    own = (formats().columns[source] for source in sources)
    return tuple(name for one in own for name in (*names_of(*one.names_of), *one.names))


@lru_cache(10_000)
def normal(column: str) -> str:
    """A column's name for comparison: lower case, spaces and dashes as underscores."""
    return column.strip().lower().replace(" ", "_").replace("-", "_")


def read_mapping(
    mapping: Mapping[str, str], columns: tuple[str, ...], *, at: str
) -> dict[str, str]:
    """A stated mapping by roles' own names.

    Raises InputError with every unknown role and column.
    """
    roles, spellings = formats().roles, formats().spellings
    faults: list[Fault] = []
    result: dict[str, str] = {}
    for spelling, column in mapping.items():
        role = spellings.get(normal(str(spelling)))
        if role is None:
            what, allowed = f"unknown role '{spelling}'", f"roles: {', '.join(roles)}"
            hint = did_you_mean(spelling, spellings)
            if spelling in columns and normal(str(column)) in spellings:
                hint = f"the role comes first: '{column}={spelling}'"
        elif column not in columns:
            what, allowed = f"{at} has no column '{column}'", f"columns: {', '.join(columns)}"
            alike = {normal(name): name for name in columns}.get(normal(str(column)))
            hint = f"did you mean '{alike}'?" if alike else did_you_mean(column, columns)
        elif role in result:
            what, allowed = f"two columns for the role '{role}': {result[role]} and {column}", ""
            hint = "roles spelt alike: " + ", ".join((role, *roles[role]))
        else:
            result[role] = column
            continue
        faults.append(Fault(where="--map", what=what, allowed=allowed, hint=hint))
    refuse(faults)
    # `input` is what a lone question column is often called, and `label` the verdict on a given
    # answer.
    is_input = "input" in map(normal, mapping) and "context" in result
    if is_input and not {"question", "messages"} & {*result}:
        result["question"] = result.pop("context")
    if "label" in result and (
        "messages" in result or ("answer" in result and "good" not in result)
    ):
        result["good"] = result.pop("label")
    if result.keys() == {"question", "label"}:
        return {"text": result["question"], "label": result["label"]}
    return result
