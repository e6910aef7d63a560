"""A configuration of another tool as a plan of ours, with where each value comes from."""

from __future__ import annotations

from collections.abc import Mapping
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
    reading: Reading,
    *,
    tool: str,
    name: str,
    data: Mapping[str, Any] | None,
    device: str,
    processes: int,
    request_tokens: int | None,
) -> CarriedPlan:
    """The plan that says the same; `data` is the plan's, and None where it is not here. Raises
    InputError if even the objective, the update or the model has no word in a plan.
    """
    ours, lost = dict(reading.ours), list(reading.lost)
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
    ours = {key: value for key, value in ours.items() if key in OF_PLAN or value != base.get(key)}
    while True:  # without the values that do not go together in a plan
        document = {**plan_values(ours), "data": data or {"path": NO_DATA}}
        document["launch"] = {"device": device, **document.get("launch", {})}
        document["origin"] = {"composition": f"{tool}: {name}"}
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
        return CarriedPlan(plan=plan, comments=comments, lost=tuple(lost), no_data=data is None)


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
