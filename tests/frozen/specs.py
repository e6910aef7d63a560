"""Random run specs (two of every catalogued model, one of every GPU) and plans; what is estimated."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import yaml

from advisor.commands.estimate import estimate_plan
from advisor.estimate.answers import run_specs
from advisor.estimate.spec import SPEC
from advisor.ground.errors import AdviseError
from advisor.ground.shape import Choice, Flag
from advisor.probe.catalogue import find_gpu, load_catalogue
from advisor.render.estimate import estimates_text
from advisor.situation.catalogue import catalogue_entry, catalogue_ids
from advisor.situation.models import model_shape
from tools.frozen.situations import same_machine

DRAWN = yaml.safe_load(Path(__file__).with_name("drawn.yaml").read_text("utf-8"))


def specs() -> dict[str, list[dict[str, Any]]]:
    """Name of a group -> specs: the models of each organisation, the GPUs of each vendor."""
    found: dict[str, list[dict[str, Any]]] = {}
    for hub_id in sorted(catalogue_ids()):
        if "num_layers" in catalogue_entry(hub_id):
            drawn = [spec_of(f"{hub_id} {number}") | {"model": hub_id} for number in range(2)]
            found.setdefault(hub_id.partition("/")[0].lower(), []).extend(drawn)
    for gpu_id, gpu in load_catalogue().items():
        one = spec_of(gpu_id) | {"model": "Qwen/Qwen3-0.6B", "gpu": gpu_id}
        found.setdefault(f"GPUs {gpu.vendor}", []).append(one)
    found["sizes"] = [spec_of(f"size {n}") | DRAWN["sizes"][n % 8] for n in range(40)]
    return found


def spec_of(seed: str) -> dict[str, Any]:
    """Each key is drawn by itself: one more in the shape of specs changes no other."""
    spec: dict[str, Any] = {}
    for key, shape in SPEC.keys.items():
        own = random.Random(f"{seed} {key}")
        share, values = DRAWN["specs"].get(key, (0.15, ()))
        if not values and isinstance(shape, Choice | Flag):
            values = shape.values if isinstance(shape, Choice) else (True, False)
        if values and own.random() < share:
            spec[key] = own.choice(values)
    return spec


def plan_of(own):
    """One stage, for hardware that the plan states or was made for, or that this machine has."""
    objective = own.choice(list(DRAWN["objectives"]))
    data, more = DRAWN["objectives"][objective]
    drawn = {key: own.choice(values) for key, values in DRAWN["stage"].items()}
    out = set() if objective in ("sft", "cpt") else {"packing", "replay_share"}
    out |= {"quantization"} if drawn["update"] == "full" else set()
    out |= {key for key, value in drawn.items() if value is None}
    out |= {"replay"} if "replay_share" in out else set()
    stage = {key: value for key, value in drawn.items() if key not in out}
    plan = {key: own.choice(values) for key, values in DRAWN["plan"].items()}
    stages = [{"name": "one", "objective": objective, **more, **stage}]
    return {"version": 1, "data": {"path": data}, "stages": stages, **plan}


def of_plans(count):
    """What `advise estimate PLAN` says of each, in a folder with the data, or why it says nothing."""
    path = Path("plan.yaml")
    for number in range(count):
        own = random.Random(f"plan {number}")
        path.write_text(json.dumps(plan_of(own)), encoding="utf-8")
        try:
            with same_machine():
                yield from estimate_plan(path, own.choice(DRAWN["gpu"]))
        except AdviseError as error:
            yield {"peak_gib": None, "reason": str(error)}


def lines():
    """A line of tests/frozen/estimates.txt for each group: how many are answered, and the digest."""
    answered = {
        name: run_specs(json.dumps(asked), find_model=model_shape, find_gpu=find_gpu)
        for name, asked in specs().items()
    }
    for name, answers in (answered | {"plans": list(of_plans(120))}).items():
        numbers = sum(answer["peak_gib"] is not None for answer in answers)
        told = json.dumps(answers, sort_keys=True) + estimates_text(answers)
        digest = hashlib.sha256(told.encode()).hexdigest()[:12]
        yield f"{name} | {numbers} of {len(answers)} | {digest}"
