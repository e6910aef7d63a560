"""What is known of another tool: rules/tools/TOOL.yaml, one file a tool.

Its `mapping` is a list that both directions go through, in the order in which a file is written.
An entry is either one key of theirs beside one of ours, or several keys on both sides that only
mean something together (`either`: the first one whose values are there is meant).
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from msgspec import Struct, field

from advisor.ground.errors import AdviseError, InputError, unknown_name
from advisor.ground.files import read_at_most
from advisor.ground.resources import rules_dir
from advisor.ground.shape import Choice, Date, Flag, Keys, ListOf, MapOf, OneOf, Shape, Text
from advisor.ground.types import TRACKERS
from advisor.ground.yaml_files import LINK, read_shipped
from advisor.methods.optimizers import OPTIMIZERS, optimizer, plan_name
from advisor.methods.stage import stage_keys

MAX_BYTES = 1_000_000  # of a file that a configuration names


class CannotCarry(Exception):
    """A value that the other side has no word for; the text says why."""


class Context(Struct, frozen=True, kw_only=True):
    """What a conversion may need to know."""

    folder: Path | None = None  # that relative paths are meant from
    rows: int | None = None  # training rows
    ours: Mapping[str, Any] = field(default_factory=dict)  # what is known of the stage so far


Turn = Callable[[Any, Context], Any]


class Conversion(NamedTuple):
    """Both ways."""

    read: Turn  # theirs -> ours
    write: Turn  # ours -> theirs


def _same(value: Any, context: Context) -> Any:
    return value


def _refused(why: str) -> Turn:
    def refuse(value: Any, context: Context) -> Any:
        raise CannotCarry(why)

    return refuse


def _inverted(value: Any, context: Context) -> Any:
    if not isinstance(value, bool):
        raise CannotCarry("it is neither true nor false")
    return not value


def _read_optimizer(value: Any, context: Context) -> Any:
    name = plan_name(str(value))
    if name not in OPTIMIZERS:
        raise CannotCarry(f"a plan has none of that name, but {', '.join(OPTIMIZERS)}")
    return name


def _write_optimizer(value: Any, context: Context) -> Any:
    named = optimizer(str(value)).transformers
    if named is None:
        raise CannotCarry(f"{value} is an optimizer of our own trainers")
    return named


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise CannotCarry("it is no number") from None


def _read_share(value: Any, context: Context) -> Any:
    """A share of all steps, as transformers reads `warmup_steps` below 1."""
    number = _number(value)
    if 0 <= number < 1:
        return number
    raise CannotCarry(f"{number:g} is a share of a number that is not known")


def _read_holdout(value: Any, context: Context) -> Any:
    """Held-out rows: below 1 a share, else a number of rows."""
    number = _number(value)
    if number >= 1 and context.rows:
        return round(number / context.rows, 6)
    return _read_share(value, context)


def _read_steps(value: Any, context: Context) -> Any:
    """Steps between two events: below 1 a share of all steps."""
    number = _number(value)
    if number < 1:
        raise CannotCarry(f"{number:g} is a share of all steps, whose number is not known")
    return int(number)


def _write_whole(value: Any, context: Context) -> Any:
    if float(value) != int(value):
        raise CannotCarry("only a whole number is taken there")
    return int(value)


def _list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _read_names(value: Any, context: Context) -> Any:
    return "all-linear" if value == ["all-linear"] else value


def _read_comma_names(value: Any, context: Context) -> Any:
    if names := [name.strip() for name in str(value).split(",") if name.strip()]:
        return names
    raise CannotCarry("it names no module")


def _read_trackers(value: Any, context: Context) -> Any:
    """Services by name: those that a plan has a word for; "none" is none of them."""
    listed = value if isinstance(value, list) else [value]
    named = [name for name in map(str, listed) if name != "none"]
    if any(name not in TRACKERS for name in named):
        raise CannotCarry(
            f"a plan's trackers are {', '.join(TRACKERS)}; `trl: {{report_to: [...]}}` of the"
            " stage hands other services on to transformers"
        )
    return list(dict.fromkeys(named))


def _read_deepspeed(value: Any, context: Context) -> Any:
    """The ZeRO stage in DeepSpeed's own JSON, or in a map that stands in the file."""
    stage = _zero(value, context).get("stage")
    if stage in (2, 3):
        return f"zero{stage}"
    if stage in (0, None):
        return "ddp"
    raise CannotCarry(f"ZeRO stage {stage} has no word in a plan")


def deepspeed_offloads(value: Any, context: Context) -> bool:
    """Whether DeepSpeed's own JSON holds the weights in host memory."""
    try:
        part = _zero(value, context).get("offload_param")
    except CannotCarry:
        return False
    return isinstance(part, Mapping) and part.get("device") in ("cpu", "nvme")


def _zero(value: Any, context: Context) -> Mapping[str, Any]:
    """What is said of ZeRO: by a map, a JSON file, or a name that is not there (zero2.json)."""
    found = value
    if not isinstance(value, Mapping):
        path = (context.folder or Path()) / Path(str(value)).expanduser()
        try:
            found = json.loads(read_at_most(path, MAX_BYTES))
        except (OSError, ValueError, RecursionError, AdviseError):
            name = path.name.lower()
            said = re.search(r"(?:z|zero|stage)([123])", name)
            if not said:
                raise CannotCarry(
                    f"{path.name} is not there, and its name does not say the ZeRO stage"
                ) from None
            offload = {"device": "cpu" if "offload" in name else ""}
            return {"stage": int(said[1]), "offload_param": offload}
        if not isinstance(found, Mapping):
            raise CannotCarry(f"{path.name} holds no map")
    zero = found.get("zero_optimization")
    return zero if isinstance(zero, Mapping) else {}


def _read_answers(value: Any, context: Context) -> Any:
    """Micro-batches of answers as those of prompts, each of which is answered several times."""
    answers = int(context.ours.get("generations") or 1)
    count = int(_number(value))
    if count % answers:
        raise CannotCarry(
            f"answers are counted there, {answers} to a prompt: set micro_batch_size and grad_accum"
            " so that their product is the prompts of a step"
        )
    return count // answers


UNLISTED = _refused("the other side has no word for it")
TURNS: Mapping[str, Conversion] = {
    "same": Conversion(_same, _same),
    "inverted": Conversion(_inverted, _inverted),
    "optimizer": Conversion(_read_optimizer, _write_optimizer),
    "share_of_steps": Conversion(_read_share, _same),
    "share_or_rows": Conversion(_read_holdout, _same),
    "names": Conversion(_read_names, _same),
    "trackers": Conversion(_read_trackers, lambda value, _: list(value) or "none"),
    "answers": Conversion(
        _read_answers, lambda value, context: int(value) * int(context.ours.get("generations") or 1)
    ),
    "name_list": Conversion(
        lambda value, context: _read_names(_list(value), context), lambda value, _: _list(value)
    ),
    "comma_names": Conversion(
        _read_comma_names, lambda value, _: value if isinstance(value, str) else ",".join(value)
    ),
    "deepspeed": Conversion(_read_deepspeed, _refused("DeepSpeed needs a file of its own")),
    "fsdp": Conversion(
        lambda value, _: "fsdp" if value else None,
        _refused("`accelerate` sets up FSDP, in a file of its own"),
    ),
    "listed": Conversion(UNLISTED, UNLISTED),
    "whole_number": Conversion(_same, _write_whole),
    "whole_steps": Conversion(_read_steps, _same),
}


# --------------------------------------------------------------------------- a tool's file

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
        "beside": MapOf(of=ANY, help="values of theirs without which the key has no effect there"),
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
    keys={
        "about": Text(),
        "either": ListOf(of=PAIR, least=1),
        "else": Text(help="why other values are not carried"),
    },
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
        "losses": ListOf(
            help="how logits become a loss: the first that holds; full if none does, or as the"
            " trainer's trait tiled_loss says",
            of=Keys(
                keys={
                    "when": MapOf(of=ANY, help="conditions as those of findings"),
                    "loss": Choice(values=("full", "fused", "chunked")),
                },
                required=("when", "loss"),
            ),
        ),
        "offloads": ListOf(of=Text(), help="keys that, where true, hold weights in host memory"),
        "fills_up": MapOf(
            of=ListOf(of=Text()),
            help="keys that, where true, pad every row to the whole length -> objectives",
        ),
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
    found = Tool(**{**empty, "commands": {"train": {}}, **data})
    if name == "trl":  # what only the annotation of a key says
        mapped = {key for one in found.mapping for key in _ours(one)}
        found.mapping = [
            *found.mapping,
            *(
                {"theirs": key.uses.trl[0], "ours": key.name}
                for key in stage_keys().values()
                if key.uses.trl and key.name not in mapped
            ),
        ]
    return found


def _ours(entry: Mapping[str, Any]) -> Iterator[str]:
    if "ours" in entry:
        yield entry["ours"]
    for pair in entry.get("either", ()):
        yield from pair["ours"]
