"""Both ways between the keys of another tool and those of a plan: pure functions over what
rules/tools/TOOL.yaml says.

Ours are one flat map: keys of the plan (`model`), of its launch (`processes`) and of one stage
(`rank`), and `trl.NAME` or `peft.NAME` for what the libraries are handed. Nothing is dropped in
silence: every key of either side ends in one of the lists of the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from advisor.extras.other_tools.tool import (
    TURNS,
    CannotCarry,
    Context,
    Tool,
    known_names,
    meant_key,
)
from advisor.ground.errors import InputError
from advisor.ground.extras import extras
from advisor.ground.shape import NamedValue
from advisor.methods import objective
from advisor.methods.stage import stage_keys
from advisor.plan.keys import key_specs
from advisor.plan.model import Comments, Plan, Stage
from advisor.plan.read import plan_from_data

# Not keys of the file: the word after the tool's name on its command line, and whether the rows
# are "text" or "rows" (requests with answers, pairs).
COMMAND, DATA_KIND = "command", "data_kind"
ASIDE = (COMMAND, DATA_KIND)
CHAT = ("messages", "sharegpt", "tool_calls")  # formats of rows that are conversations
LARGEST = 10**15  # of a number that is carried
NO_KEY = "a plan has no such key"
ABSENT: Any = object()
HAS = "has"  # of a list: the name that it holds, beside others
# Keys of the whole plan, and of its launch.
OF_PLAN = ("name", "model", "revision", "trust_remote_code", "template", "trackers", "push_to")
OF_EXTRAS = {"trackers": "trackers", "push_to": "hub"}  # of those, which extra has the key
OF_LAUNCH = ("processes", "strategy")
# A stage's place in a plan, and its data: said apart.
PLACE = ("name", "start_from", "data", "trl", "peft")
LIBRARIES = ("trl", "peft")


class Carried(Struct, frozen=True, kw_only=True):
    """One value of ours and where it comes from."""

    value: Any
    theirs: tuple[str, ...]
    is_default: bool  # the file names none of these keys: the tool's own defaults


class Lost(Struct, frozen=True, kw_only=True):
    """A key that cannot be carried over."""

    key: str
    value: Any
    why: str


def read(
    tool: Tool,
    values: Mapping[str, Any],
    *,
    defaults: Mapping[str, Any],
    context: Context | None = None,
) -> ReadKeys:
    """What a file of the tool says in our words; `values` may hold `command` and `data_kind`."""
    found = ReadKeys(values, defaults, context or Context(), {*tool.data_keys, *ASIDE})
    for entry in tool.mapping:
        (found.together if "either" in entry else found.one)(entry)
    implied = {key: one for always in tool.always for key, one in always["values"].items()}
    for key in leaves(values):
        top, value = key.split(".")[0], at_key(values, key)
        if key in found.named or top in found.named:
            continue
        if key in implied and same_value(value, implied[key]):
            continue  # what a plan means anyway
        if key in tool.no_effect or top in tool.no_effect:
            found.no_effect.append(key)
        elif value not in (None, at_key(defaults, key)):
            why = tool.not_carried.get(key) or tool.not_carried.get(top) or NO_KEY
            if why == NO_KEY and top not in known_names(tool.id):
                near = meant_key(tool.id, top)
                why = "not a key that is known here" + (f"; did you mean {near}?" if near else "")
            found.lost.append(Lost(key=key, value=value, why=why))
    return found


def _is_usable(value: Any) -> bool:
    if isinstance(value, Mapping | list | tuple):
        return all(map(_is_usable, value.values() if isinstance(value, Mapping) else value))
    return not isinstance(value, int | float) or -LARGEST <= value <= LARGEST


class ReadKeys(Struct):
    """A file of another tool in our words."""

    values: Mapping[str, Any]
    defaults: Mapping[str, Any]
    context: Context
    named: set[str]  # their keys that an entry has taken
    carried: dict[str, Carried] = field(default_factory=dict)  # by our key
    lost: list[Lost] = field(default_factory=list)  # not in the plan, for one reason or another
    no_effect: list[str] = field(default_factory=list)  # logging and the like

    @property
    def ours(self) -> dict[str, Any]:
        """Our key -> value."""
        return {key: one.value for key, one in self.carried.items()}

    def holds(self, key: str) -> Any:
        """The value of their key, given or by default; None without one."""
        value = at_key(self.values, key)
        value = at_key(self.defaults, key) if value is ABSENT else value
        return None if value is ABSENT else value

    def together(self, entry: Mapping[str, Any]) -> None:
        """Carry the first of the pairs whose values are there."""
        keys = dict.fromkeys(key for pair in entry["either"] for key in pair["theirs"])
        given = {key: at_key(self.values, key) for key in keys if key not in ASIDE}
        given = {key: value for key, value in given.items() if value is not ABSENT}
        here = tuple(given)
        self.named.update(here)
        for key, names in held_names(entry).items():
            listed = given.get(key)
            if isinstance(listed, list) and (more := [one for one in listed if one not in names]):
                self.lost.append(Lost(key=key, value=more, why=f"{NO_WORD} it"))
        for pair in entry["either"]:
            if all(is_one(self.holds(key), wanted) for key, wanted in pair["theirs"].items()):
                for ours, value in pair["ours"].items():
                    one = Carried(value=value, theirs=here, is_default=not here)
                    self.carried.setdefault(ours, one)
                return
        if here:
            listed = ", ".join(f"{key}: {given[key]}" for key in here)
            why = entry.get("else") or f"{NO_WORD} {listed}"
            self.lost.append(Lost(key=here[0], value=given[here[0]], why=why))

    def one(self, entry: Mapping[str, Any]) -> None:
        """Carry the value of one key where it has an effect."""
        key, ours = entry["theirs"], self.ours
        is_here = at_key(self.values, key) is not ABSENT
        if is_here:
            self.named.add(key)
        if not are_ones(ours, entry.get("when", {})):
            return
        if not all(
            is_one(self.holds(other), one) for other, one in entry.get("beside", {}).items()
        ):
            self.no_effect += [key] if is_here else []
            return
        value = self.holds(key)
        by_name = [ours for theirs, ours in entry.get("values", ()) if is_one(value, theirs)]
        if value is None and not by_name:
            return
        context = replace(self.context, ours=ours)
        try:
            turned = by_name[0] if by_name else TURNS[entry.get("as", "same")].read(value, context)
            if not _is_usable(turned):
                raise CannotCarry("no number that can be used")
        except (CannotCarry, OverflowError, ValueError) as why:
            self.lost.append(Lost(key=key, value=value, why=str(why)))
            return
        one = Carried(value=turned, theirs=(key,), is_default=not is_here)
        self.carried.setdefault(entry["ours"], one)


def write(
    tool: Tool, ours: Mapping[str, Any], *, command: str | None, usual: Mapping[str, Any]
) -> WrittenKeys:
    """A stage in the words of the tool; what equals `usual` and has no word there is not lost."""
    found = WrittenKeys(ours, usual)
    for entry in tool.mapping:
        if "either" in entry:
            found.together(entry)
        elif tool.has(entry["theirs"], command):
            found.one(entry)
    for always in tool.always:
        if are_ones(ours, always.get("when", {})):
            for key, value in always["values"].items():
                if at_key(found.values, key) is ABSENT:
                    _put(found.values, key, value)
    found.values = {key: one for key, one in found.values.items() if tool.has(key, command)}
    told = found.told | {one.key for one in found.lost}
    for key in ours:
        if key not in told:
            found.lose(key, f"{tool.name} has no such key")
    return found


class WrittenKeys(Struct):
    """A stage of a plan in the words of another tool."""

    ours: Mapping[str, Any]
    usual: Mapping[str, Any]
    told: set[str] = field(default_factory=set)  # our keys that an entry has taken
    values: dict[str, Any] = field(default_factory=dict)  # their key -> value, in order; may nest
    aside: dict[str, Any] = field(default_factory=dict)  # COMMAND
    lost: list[Lost] = field(default_factory=list)  # ours

    def lose(self, key: str, why: str) -> None:
        """A value without a word there is lost unless it is what ours is anyway."""
        if key in self.ours and self.ours[key] != self.usual.get(key):
            self.lost.append(Lost(key=key, value=self.ours[key], why=why))

    def together(self, entry: Mapping[str, Any]) -> None:
        """Write the first of the pairs whose values are ours."""
        pairs = [pair for pair in entry["either"] if not pair.get("read_only")]
        for pair in pairs:
            if are_ones(self.ours, pair["ours"]):
                self.told.update(pair["ours"])
                for key, wanted in pair["theirs"].items():
                    value = wanted[0] if isinstance(wanted, list) else wanted
                    value = [value[HAS]] if isinstance(value, Mapping) and HAS in value else value
                    if key in ASIDE:
                        self.aside[key] = value
                    elif value is not None:
                        _put(self.values, key, value)
                self.lost += [
                    Lost(key=key, value=self.ours[key], why=why)
                    for key, why in pair.get("loses", {}).items()
                ]
                return
        if pairs:
            keys = dict.fromkeys(key for pair in entry["either"] for key in pair["ours"])
            self.told.update(keys)
            for key in keys:
                self.lose(key, f"there is no word for this {entry['about']}")

    def one(self, entry: Mapping[str, Any]) -> None:
        """Write one key that nothing before it has told."""
        if entry.get("read_only") or entry["ours"] not in self.ours or entry["ours"] in self.told:
            return
        if not are_ones(self.ours, entry.get("when", {})):
            return
        self.told.add(entry["ours"])
        value = self.ours[entry["ours"]]
        turned = next(
            (theirs for theirs, named in entry.get("values", ()) if same_value(named, value)),
            ABSENT,
        )
        if turned is ABSENT and value is None:
            return
        try:
            if turned is ABSENT:
                turned = TURNS[entry.get("as", "same")].write(value, Context(ours=self.ours))
        except CannotCarry as why:
            self.lose(entry["ours"], str(why))
            return
        if turned is not None:
            _put(self.values, entry["theirs"], turned)


# --------------------------------------------------------------------------- values


def held_names(entry: Mapping[str, Any]) -> Mapping[str, list[Any]]:
    """Keys whose value is a list -> the names in it that an entry of the mapping speaks of."""
    found: dict[str, list[Any]] = {}
    for pair in entry.get("either", ()):
        for key, wanted in pair["theirs"].items():
            if isinstance(wanted, Mapping) and HAS in wanted:
                found.setdefault(key, []).append(wanted[HAS])
    return found


def leaves(values: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """The dotted name of every value that is no map; an empty map is a value."""
    for key, value in values.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{name}.")
        else:
            yield name


def at_key(values: Mapping[str, Any], dotted: str) -> Any:
    """The value at a dotted name, or ABSENT."""
    found: Any = values
    for part in dotted.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return ABSENT
        found = found[part]
    return found


def _put(values: dict[str, Any], dotted: str, value: Any) -> None:
    *outer, last = dotted.split(".")
    for part in outer:
        values = values.setdefault(part, {})
    values[last] = value


def is_one(value: Any, wanted: Any) -> bool:
    """Whether a value is the wanted one, or one of a list of them; of {has: NAME} whether the list
    holds the name.
    """
    if isinstance(wanted, Mapping) and wanted.keys() == {HAS}:
        return isinstance(value, list) and wanted[HAS] in value
    if isinstance(wanted, list):
        return any(same_value(value, one) for one in wanted)
    return same_value(value, wanted)


def are_ones(values: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether every value is the wanted one, or one of a list of them."""
    return all(is_one(values.get(key), one) for key, one in wanted.items())


def same_value(value: Any, other: Any) -> bool:
    """Equal, but true is not 1."""
    if isinstance(value, bool) != isinstance(other, bool):
        return False
    return bool(value == other)


# --------------------------------------------------------------------------- ours


def flat_stage(plan: Plan, stage: Stage) -> dict[str, Any]:
    """Every key of the stage with its value, defaults filled in; `trl.NAME` for what TRL gets."""
    specs = key_specs()
    own = {key: getattr(stage, key) for key in stage_keys() if key not in PLACE}
    options = specs.effective(stage)
    passed = {
        f"{library}.{key}": value
        for library in LIBRARIES
        for key, value in getattr(stage, library).items()
    }
    if options.get("alpha") is None and options.get("rank") is not None:
        options = {**options, "alpha": 2 * options["rank"]}  # what the trainers do without it
    if stage.quantization == "nf4" and own["double_quantization"] is None:
        own["double_quantization"] = True  # what is done without the key
    return {
        "model": plan.model,
        "revision": plan.revision,
        "trust_remote_code": plan.trust_remote_code,
        "trackers": list(plan.extra_key("trackers", "trackers") or ()),
        "push_to": plan.extra_key("hub", "push_to"),
        **own,
        **options,
        **passed,
        **{key: getattr(plan.launch, key) for key in OF_LAUNCH},
    }


def usual_values(objective: str, update: str) -> dict[str, Any]:
    """What every key is if a plan leaves it out."""
    specs = key_specs()
    own = {key: one.default for key, one in stage_keys().items() if key not in PLACE}
    options = {key: one.default for key, one in specs.allowed(objective, update).items()}
    return {
        "revision": None, "trust_remote_code": False, "trackers": [], "push_to": None,
        **own, **options, "processes": 1, "strategy": None,
    }  # fmt: skip


def plan_values(ours: Mapping[str, Any], *, stage_name: str = "") -> dict[str, Any]:
    """The flat map as the data of a plan with one stage; its data is not part of it."""
    stage: dict[str, Any] = {"name": stage_name or str(ours.get("objective") or "stage")}
    top: dict[str, Any] = {"version": 1}
    launch: dict[str, Any] = {}
    for key, value in ours.items():
        library, _, inner = key.partition(".")
        if key in OF_PLAN:
            top[key] = value
        elif key in OF_LAUNCH:
            launch[key] = value
        elif inner and library in LIBRARIES:
            if value is not None:
                stage.setdefault(library, {})[inner] = value
        else:
            stage[key] = value
    return {**top, "stages": [stage], **({"launch": launch} if launch else {})}


# --------------------------------------------------------------------------- a plan


NO_WORD = "a plan has no word for"
REQUEST_TOKENS = 512  # of a request that nobody has measured: what TRL cut requests to in 2025
NO_DATA = "data.jsonl"  # stands for data that are not here: a plan names some


class CarriedPlan(Struct, frozen=True, kw_only=True):
    """The plan that a configuration becomes."""

    plan: Plan
    comments: Comments  # beside each value: which key it was
    lost: tuple[Lost, ...]  # what a plan cannot say, their keys


def to_plan(
    reading: ReadKeys, tool: str, around: Mapping[str, Any], request_tokens: int | None
) -> CarriedPlan:
    """The plan that says the same, with `data`, `launch` and `origin` of a plan around it. Raises
    InputError without objective, update or model.
    """
    ours, lost = dict(reading.ours), list(reading.lost)
    processes = around["launch"]["processes"]
    missing = [key for key in ("model", "objective", "update") if not ours.get(key)]
    if missing:
        said = "; ".join(one.why for one in lost if one.why.startswith(NO_WORD))
        what = f"the configuration does not say a plan's {' and '.join(missing)}"
        raise InputError(what, hint=said)

    def lose(key: str, why: str) -> None:
        theirs = reading.carried[key].theirs if key in reading.carried else ()
        lost.append(Lost(key=", ".join(theirs) or key, value=ours.pop(key), why=why))

    if not ours.get("processes") or ours["processes"] == 1:
        ours["processes"] = processes
    if processes == 1 and ours.get("strategy") not in (None, "ddp"):
        lose("strategy", "with one GPU there is nothing to share")
    elif processes == 1:
        ours.pop("strategy", None)
    elif ours.get("strategy") is None:
        ours["strategy"] = "ddp"
    if objective(ours["objective"]).generates and "seq_len" not in ours:
        # Their files limit the answer alone: the request comes on top.
        ours["seq_len"] = int(ours.get("response_tokens") or 0) + (request_tokens or REQUEST_TOKENS)
    for key, value in list(ours.items()):
        if why := _not_allowed(ours, key, value):
            lose(key, why)
    base = usual_values(ours["objective"], ours["update"])
    kept = set(OF_PLAN) - OF_EXTRAS.keys()
    ours = {key: value for key, value in ours.items() if key in kept or value != base.get(key)}
    for key, extra in OF_EXTRAS.items():
        if key in ours and extra not in extras():
            lose(key, f"the extra '{extra}' is not here")
    while True:  # without the values that do not go together in a plan
        document = {**around, **plan_values(ours)}
        document["launch"] = {**around["launch"], **document.get("launch", {})}
        try:
            plan = plan_from_data(NamedValue("", document))
        except InputError as error:
            said_of = {one.where.split("]")[-1].strip("."): one.what for one in error.faults}
            if not said_of.keys() & ours.keys():
                raise
            for key in said_of.keys() & ours.keys():
                lose(key, said_of[key])
            continue
        comments = _comments(tool, plan, reading.carried)
        return CarriedPlan(plan=plan, comments=comments, lost=tuple(lost))


def _not_allowed(ours: Mapping[str, Any], key: str, value: Any) -> str:
    """Why a plan with these methods does not take the value of a key; empty if it does."""
    if key in OF_PLAN or key in OF_LAUNCH or "." in key:
        return ""
    axes = {name: ours[name] for name in ("objective", "update")}
    specs = {**stage_keys(), **key_specs().allowed(*axes.values())}
    if key not in specs:
        return f"{axes['objective']} with {axes['update']} has no `{key}` here"
    if value is not None and not specs[key].accepts(value):
        return f"`{key}` takes {specs[key].allowed}"
    return "; ".join(one.because for _, one in key_specs().refused({**axes, key: value}))


def _comments(
    tool: str, plan: Plan, carried: Mapping[str, Carried]
) -> dict[tuple[str | int, ...], str]:
    """Beside each value that the plan holds the key it was, or that it is the tool's default."""
    found: dict[tuple[str | int, ...], str] = {}
    stage = plan.stages[0]
    top = flat_stage(plan, stage)
    for key, one in carried.items():
        if key in ("objective", "update", *OF_LAUNCH) or top.get(key) != one.value:
            continue
        place: tuple[str | int, ...] = ("stages", 0, key)
        if key in OF_PLAN:
            place = (key,)
        elif key in stage.options:
            place = ("stages", 0, "options", key)
        elif key not in stage_keys() or _not_allowed(top, key, one.value):
            continue  # a comment would have it written, and a plan may not have it
        elif key_specs().unused(key, objective=stage.objective, update=stage.update):
            continue
        found[place] = f"{tool}'s default" if one.is_default else ", ".join(one.theirs)
    return found
