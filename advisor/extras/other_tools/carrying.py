"""A configuration of another tool as a plan of ours, with where each value comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from advisor.extras.other_tools.mapping import (
    OF_LAUNCH,
    OF_PLAN,
    Carried,
    Lost,
    Reading,
    flat_stage,
    plan_values,
    usual_values,
)
from advisor.extras.other_tools.tool import Tool
from advisor.ground.errors import InputError
from advisor.ground.shape import NamedValue
from advisor.methods import objective
from advisor.methods.stage import stage_keys
from advisor.plan.keys import key_specs
from advisor.plan.model import Comments, Plan
from advisor.plan.read import plan_from_data

NO_WORD = "a plan has no word for"  # mapping.py
REQUEST_TOKENS = 512  # of a request that nobody has measured: what TRL cut requests to in 2025
NO_DATA = "data.jsonl"  # stands for data that are not here: a plan names some


@dataclass(frozen=True, kw_only=True, slots=True)
class CarriedPlan:
    """The plan that a configuration becomes."""

    plan: Plan
    comments: Comments  # beside each value: which key it was
    lost: tuple[Lost, ...]  # what a plan cannot say, their keys
    no_data: bool  # its data are not here: `data` is a stand-in


def to_plan(
    tool: Tool,
    reading: Reading,
    *,
    data: Mapping[str, Any] | None = None,
    device: str = "cuda",
    processes: int = 1,
    origin: str = "",
    request_tokens: int | None = None,
) -> CarriedPlan:
    """The plan that says the same.

    Args:
        tool: Whose configuration it is.
        reading: What it says in our words.
        data: `data` of the plan; None: it is not here.
        device: cuda or cpu, for `launch`.
        processes: One a GPU.
        origin: Where it came from, for people.
        request_tokens: Of the longest request, where the data are known.

    Raises InputError if even the objective, the update or the model has no word in a plan.
    """
    ours, lost = dict(reading.ours), list(reading.lost)
    missing = [key for key in ("model", "objective", "update") if not ours.get(key)]
    if missing:
        said = "; ".join(one.why for one in lost if one.why.startswith(NO_WORD))
        raise InputError(
            f"the configuration does not say a plan's {' and '.join(missing)}",
            hint=said or "",
        )
    ours |= (
        {"processes": processes}
        | ({"strategy": "ddp"} if processes > 1 else {})
        | {key: ours[key] for key in OF_LAUNCH if ours.get(key) not in (None, 1)}
    )
    if processes == 1 and ours.pop("strategy", None) not in (None, "ddp"):
        theirs = ", ".join(reading.carried["strategy"].theirs)
        why = "with one GPU there is nothing to share"
        lost.append(Lost(key=theirs, value=reading.carried["strategy"].value, why=why))
    if objective(ours["objective"]).generates and "seq_len" not in ours:
        # Their files limit the answer alone: the request comes on top.
        ours["seq_len"] = int(ours.get("response_tokens") or 0) + (request_tokens or REQUEST_TOKENS)
    for key, one in list(_not_allowed(ours, reading.carried)):
        ours.pop(key)
        lost.append(one)
    base = usual_values(ours["objective"], ours["update"])
    ours = {key: value for key, value in ours.items() if key in OF_PLAN or value != base.get(key)}
    values = {"data": data or {"path": NO_DATA}}
    plan = _checked(ours, reading.carried, lost, values, device, origin)
    return CarriedPlan(
        plan=plan,
        comments=_comments(tool, plan, reading),
        lost=tuple(lost),
        no_data=data is None,
    )


def _not_allowed(
    ours: Mapping[str, Any], carried: Mapping[str, Carried]
) -> Iterator[tuple[str, Lost]]:
    """The keys whose value a plan does not take, and those that its methods do not have."""
    specs = {**stage_keys(), **key_specs().allowed(ours["objective"], ours["update"])}
    for key, value in ours.items():
        if key in OF_PLAN or key in OF_LAUNCH or "." in key:
            continue
        theirs = carried[key].theirs if key in carried else ()
        spec = specs.get(key)
        if spec is None:
            why = f"{ours['objective']} with {ours['update']} has no `{key}` here"
            yield key, Lost(key=", ".join(theirs) or key, value=value, why=why)
        elif value is not None and not spec.accepts(value):
            why = f"`{key}` takes {spec.allowed}"
            yield key, Lost(key=", ".join(theirs) or key, value=value, why=why)
        elif why := refusal(ours, key, value):
            yield key, Lost(key=", ".join(theirs) or key, value=value, why=why)


def refusal(ours: Mapping[str, Any], key: str, value: Any) -> str:
    """Why a plan's methods refuse the value of a key; empty if they take it."""
    asked = {"objective": ours["objective"], "update": ours["update"], key: value}
    return "; ".join(one.because for _, one in key_specs().refused(asked))


def _checked(
    ours: dict[str, Any],
    carried: Mapping[str, Carried],
    lost: list[Lost],
    values: Mapping[str, Any],
    device: str,
    origin: str,
) -> Plan:
    """The plan, without the values that do not go together in one of ours."""
    while True:
        document = {**plan_values(ours), **values}
        document["launch"] = {"device": device, **document.get("launch", {})}
        if origin:
            document["origin"] = {"composition": origin}
        try:
            return plan_from_data(NamedValue("", document))
        except InputError as error:
            refused = dict.fromkeys(
                (key, fault.what)
                for fault in error.faults
                for key in ours
                if fault.where.split("]")[-1].strip(".") == key
            )
            if not refused:
                raise
            for key, what in refused:
                theirs = carried[key].theirs if key in carried else (key,)
                lost.append(Lost(key=", ".join(theirs), value=ours.pop(key), why=what))


def _comments(tool: Tool, plan: Plan, reading: Reading) -> dict[tuple[str | int, ...], str]:
    """Beside each value that the plan holds the key it was, or that it is the tool's default."""
    found: dict[tuple[str | int, ...], str] = {}
    stage = plan.stages[0]
    top = flat_stage(plan, stage)
    for key, one in reading.carried.items():
        if key in ("objective", "update", "processes", "strategy") or "." in key:
            continue
        if key_specs().unused(key, objective=stage.objective, update=stage.update):
            continue  # a comment would have it written, and a plan may not have it
        if refusal({"objective": stage.objective, "update": stage.update}, key, one.value):
            continue  # likewise, where it is a plan's default
        said = f"{tool.name}'s default" if one.is_default else ", ".join(one.theirs)
        if key in OF_PLAN and top.get(key) == one.value:
            found[(key,)] = said
        elif key in stage.options and stage.options[key] == one.value:
            found[("stages", 0, "options", key)] = said
        elif key in stage_keys() and getattr(stage, key) == one.value:
            found[("stages", 0, key)] = said
    return found
