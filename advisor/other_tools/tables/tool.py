"""What is written by hand of another tool: rules/tools/TOOL.yaml, one file a tool.

Its `mapping` is a list that both directions go through, in the order in which a file is written.
An entry is either one key of theirs beside one of ours, or several keys on both sides that only
mean something together (`either`: the first one whose values are there is meant).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from advisor.ground.errors import InputError, unknown_name
from advisor.ground.resources import rules_dir
from advisor.ground.shape import Choice, Date, Keys, ListOf, MapOf, OneOf, Shape, Text
from advisor.ground.sources import LINK
from advisor.ground.yaml_cache import read_shipped
from advisor.other_tools.tables.keys import tool_names
from advisor.other_tools.tables.values import PARSING

# How a value is turned, beside what `values` says: conversions.py.
CONVERSIONS = (
    "same", "inverted", "optimizer", "share_of_steps", "share_or_rows", "names", "comma_names",
    "deepspeed", "fsdp", "listed", "whole_number", "whole_steps", "name_list",
    "answers", "trackers",
)  # fmt: skip

ANY = Shape(null=True)
VALUES = MapOf(of=ANY)
ONE_KEY = Keys(
    help="one key of theirs beside one of ours",
    keys={
        "theirs": Text(help="its name in their file; a dot goes into a map: fsdp_config.reshard"),
        "ours": Text(help="a key of a plan; trl.NAME and peft.NAME stand under those maps"),
        "as": Choice(values=CONVERSIONS, help="how the value is turned; default: the same"),
        "values": ListOf(
            of=ListOf(of=ANY, least=2, most=2), help="[theirs, ours] where values have other names"
        ),
        "when": MapOf(of=ANY, help="values of ours without which the key means nothing"),
        "note": Text(help="what a reader has to know of the difference"),
        "read_only": Choice(values=(True,), help="read so, but written another way"),
    },
    required=("theirs", "ours"),
)
TOGETHER = Keys(
    help="several keys that only mean something together",
    keys={
        "about": Text(),
        "either": ListOf(
            of=Keys(
                keys={
                    "ours": VALUES,
                    "theirs": MapOf(
                        of=ANY, help="a list: any of them, the first is written; null: not set"
                    ),
                    "read_only": Choice(values=(True,), help="read so, but written another way"),
                    "loses": MapOf(
                        of=Text(), help="a key of ours whose value is not the same there -> why"
                    ),
                },
                required=("ours", "theirs"),
            ),
            least=1,
        ),
    },
    required=("about", "either"),
)
FINDING = Keys(
    help="what is wrong with a file, or surprises people",
    keys={
        "id": Text(pattern=r"[a-z0-9-]+/[a-z0-9-]+", such_as="trl/default-targets"),
        "severity": Choice(values=("error", "warning", "note")),
        "refused": Choice(values=(True,), help="the tool does not start with it"),
        "when": MapOf(
            of=ANY,
            help="key -> value, list of values or {gt: N}; `plan.KEY` asks our own key, `data.X`"
            " and `model.X` facts; `unset` holds where the file does not name the key, `given`"
            " where its value is not null, false, 0 or empty; {not: ...}, {like: pattern},"
            " {written: ...} of what the file itself names; `a | b`: one of them; `list.*.key`",
        ),
        "say": Text(help="what happens; {key} stands for the value"),
        "instead": MapOf(of=ANY, help="their keys with the values that mend it"),
        "sources": ListOf(of=Text(), help="ids of rules/sources.yaml, or links"),
    },
    required=("id", "severity", "when", "say", "sources"),
)
TOOL_FILE: Shape = Keys(
    help="Another training tool: how its configuration and a plan say the same",
    keys={
        "version": Choice(values=(1,)),
        "id": Text(pattern=r"[a-z0-9_]+"),
        "name": Text(help="as its makers write it"),
        "url": Text(pattern=LINK, such_as="https://..."),
        "checked": Date(help="the day somebody read its code"),
        "trainer": Text(help="its file in rules/trainers, for memory"),
        "file": Text(help="what `advise export` calls the file"),
        "start": Text(help="the command that trains it; {file} and {command} are filled in"),
        "install": Text(help="how it is installed, in an environment of its own"),
        "parsing": PARSING,
        "mapping": ListOf(of=OneOf(options=(ONE_KEY, TOGETHER)), least=1),
        "always": ListOf(
            of=Keys(
                keys={
                    "values": VALUES,
                    "when": MapOf(of=ANY, help="values of ours that it is written for"),
                    "because": Text(help="the comment beside it"),
                },
                required=("values",),
            ),
            help="keys that a plan has no word for and that are written all the same",
        ),
        "data": MapOf(of=ANY, help="how it names data: advisor/other_tools/data"),
        "no_effect": ListOf(
            of=Text(), help="keys that change no weight: logging, folders, trackers"
        ),
        "not_written": MapOf(
            of=Text(), help="an objective of ours that is read and not written -> why"
        ),
        "templates": ListOf(
            of=ListOf(of=ANY, least=2, most=3),
            help="[name of a model with * and ?, its template there, what differs from the model's"
            " own]; the first that fits",
        ),
        "offloads": ListOf(
            of=Text(), help="keys that, where true, hold sharded weights in host memory"
        ),
        "not_carried": MapOf(
            of=Text(), help="keys with an effect that a plan has no word for -> the way out"
        ),
        "findings": ListOf(of=FINDING),
    },
    required=("version", "id", "name", "url", "checked", "file", "start", "parsing", "mapping"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class OneKey:
    """One key of theirs beside one of ours."""

    theirs: str
    ours: str
    turned: str = "same"  # one of CONVERSIONS
    values: tuple[tuple[Any, Any], ...] = ()  # (theirs, ours)
    when: Mapping[str, Any]  # values of ours
    note: str = ""
    read_only: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Values of ours and the values of theirs that say the same."""

    ours: Mapping[str, Any]
    theirs: Mapping[str, Any]
    read_only: bool = False
    loses: Mapping[str, str]  # ours -> why the value is another one there

    @property
    def written(self) -> Mapping[str, Any]:
        """What is written of theirs: of several values the first."""
        return {
            key: value[0] if isinstance(value, list) else value
            for key, value in self.theirs.items()
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Together:
    """Keys that only mean something together."""

    about: str
    either: tuple[Pair, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Always:
    """Keys of theirs that are written for every plan, or for some."""

    values: Mapping[str, Any]
    when: Mapping[str, Any]  # values of ours
    because: str


@dataclass(frozen=True, kw_only=True, slots=True)
class FindingRule:
    """What is said of a file where its conditions hold."""

    id: str
    severity: str
    when: Mapping[str, Any]
    say: str
    instead: Mapping[str, Any]
    sources: tuple[str, ...]
    refused: bool = False  # the tool does not start with it


@dataclass(frozen=True, kw_only=True, slots=True)
class Tool:
    """Another training tool."""

    id: str
    name: str
    url: str
    checked: str
    trainer: str
    file: str
    start: str
    install: str
    parsing: Mapping[str, Any]
    mapping: tuple[OneKey | Together, ...]
    always: tuple[Always, ...]
    not_written: Mapping[str, str]  # objective of ours -> why it is only read
    # (name of a model as a pattern, its template there, what differs from the model's own)
    templates: tuple[tuple[str, Any, str], ...]
    data: Mapping[str, Any]
    no_effect: frozenset[str]
    offloads: tuple[str, ...]
    not_carried: Mapping[str, str]
    findings: tuple[FindingRule, ...]

    def template_of(self, model: str) -> tuple[Any, str]:
        """(what `templates` says of a model by its name, what differs); (None, "") if nothing."""
        name = model.rstrip("/").rsplit("/", 1)[-1].lower()
        for pattern, found, differs in self.templates:
            if fnmatchcase(name, pattern):
                return found, differs
        return None, ""

    @property
    def program(self) -> str:
        """What starts it."""
        return self.start.split()[0]

    @property
    def base_key(self) -> str:
        """The key that names the base model, without which it has nothing to train."""
        return next(
            entry.theirs
            for entry in self.mapping
            if isinstance(entry, OneKey) and entry.ours == "model"
        )

    def their_names(self) -> Iterator[str]:
        """Every key of theirs that the mapping names."""
        for entry in self.mapping:
            if isinstance(entry, OneKey):
                yield entry.theirs
            else:
                for pair in entry.either:
                    yield from pair.theirs


def tool_named(name: str) -> Tool:
    """The tool of that id. Raises InputError for another one, and with the faults of its file."""
    if name not in tool_names():
        raise InputError(faults=[unknown_name("tool", name, tool_names(), at="tool")])
    return _read(_folder() / f"{name}.yaml")


def _folder() -> Path:
    return rules_dir() / "tools"


@cache
def _read(path: Path) -> Tool:
    data = read_shipped(path, shape=TOOL_FILE).data
    return Tool(
        id=data["id"],
        name=data["name"],
        url=data["url"],
        checked=data["checked"],
        trainer=data.get("trainer", ""),
        file=data["file"],
        start=data["start"],
        install=data.get("install", ""),
        parsing=data["parsing"],
        mapping=tuple(_entries(data["mapping"])),
        always=tuple(
            Always(
                values=one["values"],
                when=one.get("when") or {},
                because=one.get("because", ""),
            )
            for one in data.get("always") or ()
        ),
        not_written=data.get("not_written") or {},
        templates=tuple(
            (one[0], one[1], one[2] if len(one) > 2 else "") for one in data.get("templates") or ()
        ),
        data=data.get("data") or {},
        no_effect=frozenset(data.get("no_effect") or ()),
        offloads=tuple(data.get("offloads") or ()),
        not_carried=data.get("not_carried") or {},
        findings=tuple(finding_rule(one) for one in data.get("findings") or ()),
    )


def finding_rule(one: Mapping[str, Any]) -> FindingRule:
    """The rule in an entry that has the shape FINDING."""
    return FindingRule(
        id=one["id"],
        severity=one["severity"],
        when=one["when"],
        say=one["say"],
        instead=one.get("instead") or {},
        sources=tuple(one["sources"]),
        refused=bool(one.get("refused")),
    )


def _entries(listed: Sequence[Mapping[str, Any]]) -> Iterator[OneKey | Together]:
    for one in listed:
        if "either" in one:
            yield Together(
                about=one["about"],
                either=tuple(
                    Pair(
                        ours=pair["ours"],
                        theirs=pair["theirs"],
                        read_only=bool(pair.get("read_only")),
                        loses=pair.get("loses") or {},
                    )
                    for pair in one["either"]
                ),
            )
        else:
            yield OneKey(
                theirs=one["theirs"],
                ours=one["ours"],
                turned=one.get("as", "same"),
                values=tuple((theirs, ours) for theirs, ours in one.get("values") or ()),
                when=one.get("when") or {},
                note=one.get("note", ""),
                read_only=bool(one.get("read_only")),
            )
