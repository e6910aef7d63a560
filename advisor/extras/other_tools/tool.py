"""What is known of another tool: rules/tools/TOOL.yaml, one file a tool.

Its `mapping` is a list that both directions go through, in the order in which a file is written.
An entry is either one key of theirs beside one of ours, or several keys on both sides that only
mean something together (`either`: the first one whose values are there is meant).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from types import SimpleNamespace
from typing import Any

from advisor.extras.other_tools.conversions import TURNS
from advisor.ground.errors import InputError, unknown_name
from advisor.ground.resources import rules_dir
from advisor.ground.shape import Choice, Date, Flag, Keys, ListOf, MapOf, OneOf, Shape, Text
from advisor.ground.sources import LINK
from advisor.ground.yaml_files import read_shipped

TOOLS = ("axolotl", "llamafactory", "trl")
TEXT, ANSWERS, PAIRS, FEEDBACK = "text", "answers", "pairs", "feedback"  # kinds of rows
CLOSE = 0.78  # how alike a misspelt key and the one that is meant are at least

ANY = Shape(null=True)
VALUES = MapOf(of=ANY)
NAMES = ListOf(of=Text())
TRUE = Choice(values=(True,))
ONE_KEY = Keys(
    help="one key of theirs beside one of ours",
    keys={
        "theirs": Text(help="its name in their file; a dot goes into a map: fsdp_config.reshard"),
        "ours": Text(help="a key of a plan; trl.NAME and peft.NAME stand under those maps"),
        "as": Choice(values=tuple(TURNS), help="how the value is turned; default: the same"),
        "values": ListOf(
            of=ListOf(of=ANY, least=2, most=2), help="[theirs, ours] where values have other names"
        ),
        "when": MapOf(of=ANY, help="values of ours without which the key means nothing"),
        "read_only": TRUE,  # read so, but written another way
    },
    required=("theirs", "ours"),
)
PAIR = Keys(
    keys={
        "ours": VALUES,
        "theirs": MapOf(of=ANY, help="a list: any of them, the first is written; null: not set"),
        "read_only": TRUE,
        "loses": MapOf(of=Text(), help="a key of ours whose value is not the same there -> why"),
    },
    required=("ours", "theirs"),
)
TOGETHER = Keys(
    help="several keys that only mean something together",
    keys={"about": Text(), "either": ListOf(of=PAIR, least=1)},
    required=("about", "either"),
)
FINDING = Keys(
    help="what is wrong with a file, or surprises people",
    keys={
        "id": Text(pattern=r"[a-z0-9-]+/[a-z0-9-]+", such_as="trl/default-targets"),
        "severity": Choice(values=("error", "warning", "note")),
        "refused": Choice(values=(True,), help="the tool does not start with it"),
        "when": MapOf(of=ANY, help="conditions, all of which hold: findings.py"),
        "say": Text(help="what happens; {key} stands for the value"),
        "instead": MapOf(of=ANY, help="their keys with the values that mend it"),
        "sources": ListOf(of=Text(), help="ids of rules/sources.yaml, or links"),
    },
    required=("id", "severity", "when", "say", "sources"),
)
ALWAYS = Keys(
    keys={"values": VALUES, "when": MapOf(of=ANY, help="values of ours that it is written for")},
    required=("values",),
)
WRITTEN = Keys(
    help="what is written where its conditions hold; {name} stands for a fact: files.py",
    keys={
        "when": MapOf(of=ANY, help="facts of the training, and keys of ours, with their values"),
        "values": VALUES,
        "says": ListOf(of=Text(), help="keys of ours that are said so"),
        "loses": MapOf(of=Text(), help="a key of ours whose value is not the same there -> why"),
        "note": Text(help="what is another training than ours"),
    },
)
TOOL_FILE = Keys(
    help="Another training tool: how its configuration and a plan say the same",
    keys={
        "version": Choice(values=(1,)),
        "id": Choice(values=TOOLS),
        "name": Text(help="as its makers write it"),
        "url": Text(pattern=LINK, such_as="https://..."),
        "checked": Date(help="the day somebody read its code"),
        "trainer": Text(help="its file in rules/trainers, for memory"),
        "file": Text(help="what `advise export` calls the file"),
        "start": Text(help="the command that trains it; {file} and {command} are filled in"),
        "start_many": Text(help="the same with several {processes}"),
        "rows": ListOf(
            of=Choice(values=("split", "tools")),
            help="split: a request and its answer are columns of their own; tools: it reads calls",
        ),
        "written": ListOf(of=WRITTEN, help="keys that no key of a plan stands beside"),
        "install": Text(help="how it is installed, in an environment of its own"),
        "release": Text(help="whose defaults stand here"),
        "made_with": MapOf(of=Text(), help="libraries beside it -> their version"),
        "refuses_unknown": Flag(help="whether it stops at a key that it does not have"),
        "commands": MapOf(of=VALUES, help="the word behind its name -> its own defaults"),
        "only": ListOf(of=ListOf(of=NAMES, least=2, most=2), help="[commands, their keys]"),
        "defaults": MapOf(of=ANY, help="of the keys that are asked for"),
        "renamed": MapOf(of=Text(), help="a name of earlier releases -> today's"),
        "mapping": ListOf(of=OneOf(options=(ONE_KEY, TOGETHER)), least=1),
        "always": ListOf(of=ALWAYS, help="keys that are written, without a word in a plan"),
        "data_keys": ListOf(of=Text(), help="keys that name the data"),
        "no_effect": ListOf(of=Text(), help="keys that change no weight: logging, folders"),
        "not_written": MapOf(of=Text(), help="an objective that is only read -> why"),
        "templates": ListOf(
            of=ListOf(of=ANY, least=2, most=3),
            help="[name of a model with * and ?, its template there, what differs from the model's"
            " own]; the first that fits",
        ),
        "offloads": ListOf(of=Text(), help="keys that, where true, hold weights in host memory"),
        "not_carried": MapOf(of=Text(), help="keys that a plan has no word for -> the way out"),
        "findings": ListOf(of=FINDING),
    },
    required=(
        "version", "id", "name", "url", "checked", "trainer", "file", "start", "install",
        "release", "made_with", "refuses_unknown", "defaults", "mapping", "findings",
    ),
)  # fmt: skip


class Tool(SimpleNamespace):
    """The fields of TOOL_FILE; one that the tool's file leaves out is empty."""

    id: str

    @property
    def title(self) -> str:
        """'TRL 1.16.0'."""
        return f"{self.name} {self.release}"

    @property
    def base_key(self) -> str:
        """The key that names the base model, without which it has nothing to train."""
        return str(next(one["theirs"] for one in self.mapping if one.get("ours") == "model"))

    def template_of(self, model: str) -> tuple[Any, str]:
        """(what `templates` says of a model by its name, what differs); (None, "") if nothing."""
        name = model.rstrip("/").rsplit("/", 1)[-1].lower()
        for pattern, found, *differs in self.templates:
            if fnmatchcase(name, pattern):
                return found, differs[0] if differs else ""
        return None, ""

    def has(self, key: str, command: str | None) -> bool:
        """Whether a command takes a key, as far as is known; None: any command."""
        top = key.split(".")[0]
        return all(command in names or top not in keys for names, keys in self.only if command)

    def defaults_of(self, command: str) -> dict[str, Any]:
        """Key -> the tool's own default for a command."""
        usual = {key: value for key, value in self.defaults.items() if self.has(key, command)}
        return {**usual, **self.commands.get(command, {})}

    def _names(self) -> Iterator[str]:
        for entry in self.mapping:
            for pair in entry.get("either", ()):
                yield from pair["theirs"]
            if "theirs" in entry:
                yield entry["theirs"]
        yield from (*self.defaults, *self.data_keys, *self.no_effect, *self.not_carried)
        yield from (key for _, keys in self.only for key in keys)
        yield from (key for always in self.always for key in always["values"])
        for rule in self.findings:
            for asked in (*rule["when"], *rule.get("instead", ())):
                yield from (name.strip() for name in asked.split("|"))


@cache
def known_names(tool: str) -> frozenset[str]:
    """Every key at the top of a tool's file that something here speaks of."""
    facts = ("command", "data_kind", "evaluates", "steps")
    tops = {name.split(".")[0] for name in tool_named(tool)._names()}
    return frozenset(tops.difference(facts, tool_named(tool).renamed))


def meant_key(tool: str, name: str) -> str | None:
    """The key that is meant by an unknown one: renamed since, or one letter off; else None."""
    if (today := tool_named(tool).renamed.get(name)) is not None:
        return str(today)
    for one in difflib.get_close_matches(name, known_names(tool), n=1, cutoff=CLOSE):
        blocks = difflib.SequenceMatcher(None, name, one).get_matching_blocks()
        if max(len(name), len(one)) - sum(block.size for block in blocks) <= 1:
            return one
    return None


@cache
def tool_named(name: str) -> Tool:
    """The tool of that id. Raises InputError for another one, and with the faults of its file."""
    if name not in TOOLS:
        raise InputError(faults=[unknown_name("tool", name, TOOLS, at="tool")])
    data = read_shipped(rules_dir() / "tools" / f"{name}.yaml", shape=TOOL_FILE).data
    empty: dict[str, Any] = {key: {} for key in TOOL_FILE.keys}
    return Tool(**{**empty, "commands": {"train": {}}, **data})
