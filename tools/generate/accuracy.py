"""What the estimator says of published runs beside what was measured."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from advisor.estimate.answers import run_specs
from advisor.probe.catalogue import find_gpu
from advisor.situation.models import model_shape

ROOT = Path(__file__).resolve().parent.parent.parent
CASES = ROOT / "tests" / "data_cases" / "memory.yaml"
NOT_SPEC = ("id", "source", "page", "commit", "measured_gib", "card_gib")
FEW = 3  # sources with fewer rows count together


@dataclass(frozen=True)
class Case:
    """One published run and the answer to its spec."""

    facts: dict[str, Any]
    answer: dict[str, Any]

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return float(self.answer["peak_gib"]) / float(self.facts["measured_gib"])


@lru_cache(maxsize=1)
def published() -> dict[str, Any]:
    """The file of published cases, as it is."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found: dict[str, Any] = yaml.load(CASES.read_text(encoding="utf-8"), Loader=loader)  # noqa: S506
    return found


Spec = dict[str, Any]


def without_trainer(spec: Spec) -> Spec:
    """The spec with the name of its framework taken away, and so all that is known of it but the
    year.
    """
    return {**spec, "framework": "unknown trainer", "date": spec.get("year", spec.get("date"))}


def without_counter(spec: Spec) -> Spec:
    """The spec that does not say what its memory was counted by."""
    return {**spec, "counter": "unknown"}


def without_loss(spec: Spec) -> Spec:
    """The spec that does not say how its loss is computed."""
    return {key: value for key, value in spec.items() if key != "loss"}


def without_model(spec: Spec) -> Spec:
    """The spec that says only how large its model is, unless it describes a shape."""
    if "model" not in spec:
        return spec
    shape, _ = model_shape(spec["model"], params_b=spec.get("model_params_b"))
    assert shape is not None
    rest = {key: value for key, value in spec.items() if key not in ("model", "architecture")}
    return {**rest, "model_params_b": shape.params / 1e9}


def as_a_process(spec: Spec) -> Spec:
    """The spec asked for all that its process occupies, which is what must fit."""
    return {**spec, "counter": "nvidia-smi"}


def answered(listed: str, change: Callable[[Spec], Spec] = dict) -> list[Case]:
    """The cases of one list of the file, each with today's answer to its spec after a change."""
    data = published()
    specs = [
        change(
            {
                **data["defaults"],
                **{key: value for key, value in case.items() if key not in NOT_SPEC},
                "year": data["sources"][case["source"]]["year"],
            }
        )
        for case in data[listed]
    ]
    for spec in specs:
        spec.pop("year", None)
    answers = run_specs(json.dumps(specs), find_model=model_shape, find_gpu=find_gpu)
    return [Case(facts, answer) for facts, answer in zip(data[listed], answers, strict=True)]


def by_source(cases: Iterable[Case]) -> dict[str, list[Case]]:
    """Cases of each source; sources with few rows together."""
    grouped: dict[str, list[Case]] = {}
    for case in cases:
        grouped.setdefault(case.facts["source"], []).append(case)
    small = sorted(name for name, rows in grouped.items() if len(rows) < FEW)
    together = [case for name in small for case in grouped.pop(name)]
    return dict(sorted(grouped.items())) | ({"others": together} if together else {})


def median_error(cases: Sequence[Case]) -> float:
    """The median distance from what was measured, as a share of it."""
    return statistics.median(abs(case.ratio - 1) for case in cases)


def share(cases: Sequence[Case], holds: Callable[[float], bool]) -> float:
    """The share of cases whose predicted over measured holds."""
    return statistics.mean(holds(case.ratio) for case in cases)


def near(ratio: float) -> bool:
    return abs(ratio - 1) <= 0.20


def too_low(ratio: float) -> bool:
    return ratio < 0.90


def summary(cases: Sequence[Case]) -> dict[str, float]:
    """Three numbers in which each source counts once."""
    groups = by_source(cases).values()
    return {
        "median_error": statistics.mean(median_error(rows) for rows in groups),
        "within_20": statistics.mean(share(rows, near) for rows in groups),
        "too_low": statistics.mean(share(rows, too_low) for rows in groups),
    }


def grouped(cases: Iterable[Case], key: Callable[[Case], str]) -> dict[str, list[Case]]:
    """Cases by a word about each."""
    found: dict[str, list[Case]] = {}
    for case in cases:
        found.setdefault(key(case), []).append(case)
    return dict(sorted(found.items()))


def method_of(case: Case) -> str:
    """The method of a case as the page names it."""
    return {"full": "full", "qlora": "QLoRA"}.get(case.facts["update"], "LoRA")


def counter_of(case: Case) -> str:
    """What the memory of a case was counted by."""
    return str(case.facts.get("counter", "unknown"))


def is_inside_printed(case: Case) -> bool:
    """Whether what was measured lies within the printed band."""
    answer = case.answer
    return bool(answer["low_gib"] <= case.facts["measured_gib"] <= answer["high_gib"])
