"""A stage of a plan as one flat map of keys, and back: the words that mappings are written in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advisor.methods.stage import stage_keys
from advisor.plan.keys import key_specs
from advisor.plan.model import Plan, Stage

# Keys of the whole plan, and of its launch.
OF_PLAN = ("name", "model", "revision", "trust_remote_code", "template", "trackers", "push_to")
OF_LAUNCH = ("processes", "strategy")
# A stage's place in a plan, and its data: said apart.
PLACE = ("name", "start_from", "data", "trl", "peft")
LIBRARIES = ("trl", "peft")


def flat_stage(plan: Plan, stage: Stage) -> dict[str, Any]:
    """Every key of the stage with its value, defaults filled in; `trl.NAME` for what TRL gets."""
    specs = key_specs()
    own = {key: getattr(stage, key) for key in stage_keys() if key not in PLACE}
    options = specs.effective(stage.options, objective=stage.objective, update=stage.update)
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
