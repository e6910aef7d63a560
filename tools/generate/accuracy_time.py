"""Part of docs/estimates.md: how wrong the estimates of time are, by source and method."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from msgspec.structs import replace

from advisor.estimate.run import Run
from advisor.estimate.spec import request_of, run_of_spec
from advisor.estimate.time import Machine, machine_of, time_estimate
from advisor.estimate.types import TimeEstimate
from advisor.probe.catalogue import find_gpu
from advisor.situation.models import model_shape
from tools.generate.markdown import grid
from tools.generate.recent import ONCE_AND_A_HALF, section

ROOT = Path(__file__).resolve().parent.parent.parent
CASES = ROOT / "tests" / "data_cases" / "throughput.yaml"
NOT_SPEC = ("id", "source", "tokens_per_s_per_gpu")
# What is fitted again without a source: the share of the best matmul that is reached, and that of
# the memory's bandwidth, against today's.
GRID = (0.8, 0.86, 0.93, 1.0, 1.08, 1.16, 1.25)
TWICE = 2.0


@dataclass(frozen=True)
class Published:
    """One published speed, and what the estimator needs to say its own."""

    facts: Mapping[str, Any]
    run: Run
    machine: Machine

    def estimate(self, flops: float = 1.0, memory: float = 1.0) -> TimeEstimate:
        """The step, with the device's rates times these."""
        machine = replace(
            self.machine,
            flops=flops * self.machine.flops,
            bytes_per_s=memory * self.machine.bytes_per_s,
        )
        found = time_estimate(self.run, machine)
        assert found is not None
        return found

    @property
    def method(self) -> str:
        """Full, LoRA, QLoRA or IA3."""
        if self.run.stage.quantization:
            return "QLoRA"
        return {"full": "full", "lora": "LoRA", "ia3": "IA3"}[self.run.stage.update]


@dataclass(frozen=True)
class Scored:
    """A run, and how many times longer its step took than estimated."""

    run: Published
    longer: float
    low: float  # the band, as shares of the estimate
    high: float

    @property
    def factor(self) -> float:
        """Between estimate and measurement, whichever is larger: at least 1."""
        return math.exp(abs(math.log(self.longer)))

    @property
    def is_inside(self) -> bool:
        """Whether the measured step lies inside the band."""
        return self.low <= self.longer <= self.high


@lru_cache(maxsize=1)
def published() -> dict[str, Any]:
    """The file of published speeds, as it is."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found: dict[str, Any] = yaml.load(CASES.read_text(encoding="utf-8"), Loader=loader)  # noqa: S506
    return found


@lru_cache(maxsize=1)
def runs() -> tuple[Published, ...]:
    """Every published speed as a run."""
    found = []
    for facts in published()["cases"]:
        given = {key: value for key, value in facts.items() if key not in NOT_SPEC}
        spec = request_of({**published()["defaults"], **given}, at=facts["id"])
        assert isinstance(spec, dict), spec
        size, active = spec.get("model_params_b"), spec.get("active_params_b")
        shape, _ = model_shape(spec.get("model", ""), params_b=size)
        assert shape is not None, facts["id"]
        if shape.origin == "size" and active:
            sized, _ = model_shape(f"{size:g}B-A{active:g}B", params_b=size)
            assert sized is not None
            shape = replace(sized, id=shape.id)
        machine = machine_of(find_gpu(spec.get("gpu", ""), lenient=True).spec)
        assert machine is not None, facts["id"]
        found.append(Published(facts, run_of_spec(spec, shape), machine))
    return tuple(found)


@lru_cache(maxsize=len(GRID) ** 2)
def scored(flops: float = 1.0, memory: float = 1.0) -> tuple[Scored, ...]:
    """All runs against estimates with the devices' rates times these."""
    found = []
    for run in runs():
        estimate = run.estimate(flops, memory)
        found.append(
            Scored(
                run,
                estimate.tokens_per_s_per_gpu / float(run.facts["tokens_per_s_per_gpu"]),
                estimate.low_s / estimate.step_s,
                estimate.high_s / estimate.step_s,
            )
        )
    return tuple(found)


def by(cases: Sequence[Scored], key: Callable[[Published], str]) -> dict[str, list[Scored]]:
    """The runs of each value of a key."""
    found: dict[str, list[Scored]] = {}
    for one in cases:
        found.setdefault(key(one.run), []).append(one)
    return dict(sorted(found.items()))


def source_of(run: Published) -> str:
    return str(run.facts["source"])


def over_sources(cases: Sequence[Scored]) -> float:
    """The mean over sources of their median factors: each counts once."""
    return statistics.mean(median_factor(group) for group in by(cases, source_of).values())


def median_factor(cases: Sequence[Scored]) -> float:
    return statistics.median(one.factor for one in cases)


def within(cases: Sequence[Scored], factor: float) -> float:
    """The share of runs that are within a factor."""
    return statistics.mean(one.factor <= factor for one in cases)


def left_out() -> tuple[Scored, ...]:
    """Each source's runs with the two rates fitted to the others alone."""
    found: list[Scored] = []
    for source in by(scored(), source_of):

        def of_others(rates: tuple[float, float], source: str = source) -> float:
            others = [one for one in scored(*rates) if source_of(one.run) != source]
            return over_sources(others)

        best = min(((flops, memory) for flops in GRID for memory in GRID), key=of_others)
        found += [one for one in scored(*best) if source_of(one.run) == source]
    return tuple(found)


def part() -> str:
    """The whole part."""
    data, cases, out = published(), scored(), left_out()
    sources = data["sources"]
    measures: dict[str, Callable[[Sequence[Scored]], str]] = {
        "median factor": lambda one: f"{median_factor(one):.2f}",
        "mean over sources of the median factor": lambda one: f"{over_sources(one):.2f}",
        "within a factor of 1.5": lambda one: f"{within(one, ONCE_AND_A_HALF):.0%}",
        "within a factor of 2": lambda one: f"{within(one, TWICE):.0%}",
        "inside the band": lambda one: f"{_inside(one):.0%}",
    }
    rows = [[name, measure(cases), measure(out)] for name, measure in measures.items()]
    blocks = [
        (
            f"{len(cases)} training speeds that other people measured and published, from"
            f" {len(sources)} sources, against `advise estimate`. A factor of 1.1 means that a step"
            " took 10 % longer or shorter than estimated."
        ),
        grid(["", "today", "source left out"], rows),
        (
            "**Source left out**: two rates are fitted, the shares of the fastest matrix product"
            " and of the memory bandwidth that a training reaches; here they are fitted again to"
            " the other sources. The rest is counted: floating-point operations, bytes that each"
            " operation reads and writes, kernels that the host starts, what moves between GPUs."
        ),
        grid(
            [
                "", "Runs", "estimated / measured speed", "median factor", "source left out",
                "inside the band, left out",
            ],
            [
                [
                    title,
                    str(len(group)),
                    f"{statistics.median(one.longer for one in group):.2f}",
                    f"{median_factor(group):.2f}",
                    f"{median_factor(outside):.2f}",
                    f"{_inside(outside):.0%}",
                ]
                for key in (source_of, lambda run: run.method)
                for name, group in by(cases, key).items()
                for outside in [by(out, key)[name]]
                for title in [_link(sources[name]) if name in sources else name]
            ],
        ),
        "Furthest off:",
        grid(
            ["Run", "estimated / measured speed"],
            [
                [str(one.run.facts["id"]), f"{one.longer:.2f}"]
                for one in sorted(cases, key=lambda one: -one.factor)[:4]
            ],
        ),
        *section("speed", older(cases)),
    ]  # fmt: skip
    return (
        "\n\n".join(block if isinstance(block, str) else "\n".join(block) for block in blocks)
        + "\n"
    )


def older(cases: Sequence[Scored]) -> list[str]:
    """The column of these speeds beside those published since 2025."""
    return [
        str(len(cases)),
        str(len(by(cases, source_of))),
        f"{median_factor(cases):.2f}",
        f"{within(cases, ONCE_AND_A_HALF):.1%}",
        f"{_inside(cases):.1%}",
    ]


def _inside(cases: Sequence[Scored]) -> float:
    return statistics.mean(one.is_inside for one in cases)


def _link(source: Mapping[str, str]) -> str:
    commit = source["commit"]
    return f"[{source['title']}](https://github.com/{source['repository']}/blob/{commit}/{source['page']})"
