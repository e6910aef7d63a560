"""What published runs teach each other, by how much a run counts (advisor/estimate/past/corrections.py).

Each row is predicted by the formula, and once more after the other rows of its group have corrected
it: those of its source, counter or GPU, and of the same model and method, family and method, method,
or of any. `k` runs outweigh the formula half and half.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from advisor.commands.estimate import find_model
from advisor.estimate import sources
from advisor.estimate.memory.peak import TRANSIENT_SOURCES
from advisor.estimate.past.corrections import MOST_MEMORY, MOST_TIME, SMALL_MOVING, correction_of
from advisor.estimate.past.runs import FAMILY, MACHINE, METHOD, MODEL
from benchmarks.measuring import Row
from tools.generate.accuracy import answered
from tools.generate.accuracy_time import runs

TITLE = "median error of published rows, mean over sources, once others of their group taught them"
STRENGTHS = (0.0, 0.5, 1.0, 2.0, 4.0)
LEVELS = {
    MODEL: "the same model and method", FAMILY: "the same family and method",
    METHOD: "the same method", MACHINE: "any other",
}  # fmt: skip
PASSING = {one.title for one in vars(sources).values() if id(one) in TRANSIENT_SOURCES}


@dataclass(frozen=True)
class Point:
    """A published number beside what the formula says of it, and what it has in common."""

    source: str
    place: str  # counter and sharding, or GPU
    family: str
    model: str
    method: tuple[object, ...]
    expected: float
    measured: float
    moving: float = 1.0  # share of the peak that comes and goes

    def group(self, level: int) -> tuple[object, ...]:
        """What it shares with the runs that are as close."""
        own = {
            MODEL: (self.model, self.method),
            FAMILY: (self.family, self.method),
            METHOD: (self.method,),
            MACHINE: (),
        }
        return (self.source, self.place, *own[level])


def measure() -> list[Row]:
    """The formula's error and that after learning, for each group and strength."""
    rows = []
    for what, points, most in (
        ("memory", list(peaks()), MOST_MEMORY),
        ("speed", list(speeds()), MOST_TIME),
    ):
        for level, words in LEVELS.items():
            groups: dict[tuple[object, ...], list[Point]] = {}
            for point in points:
                groups.setdefault(point.group(level), []).append(point)
            several = [group for group in groups.values() if len(group) > 1]
            count = sum(map(len, several))
            head = f"{what}: {words} ({count} rows)"
            found = {"formula": _error(several, lambda _, point: point.expected)} | {
                f"k = {k:g}": _error(several, _taught(level, k, most)) for k in STRENGTHS
            }
            rows += [Row(name, (error,), "%", group=head) for name, error in found.items()]
    return rows


def _taught(level: int, k: float, most: float) -> Callable[[Sequence[Point], Point], float]:
    def predicted(others: Sequence[Point], point: Point) -> float:
        found = correction_of(
            [(level, one.expected, one.measured) for one in others],
            {level: k},
            most=most,
            shifts=point.moving < SMALL_MOVING,
        )
        return found.of(point.expected, most)

    return predicted


def _error(
    groups: Iterable[list[Point]], predicted: Callable[[Sequence[Point], Point], float]
) -> float:
    """The mean over sources of the median distance from what was measured, in percent."""
    errors: dict[str, list[float]] = {}
    for group in groups:
        for point in group:
            others = [one for one in group if one is not point]
            error = abs(predicted(others, point) / point.measured - 1)
            errors.setdefault(point.source, []).append(error)
    return 100 * statistics.mean(statistics.median(found) for found in errors.values())


def peaks() -> Iterable[Point]:
    """The published peaks of memory."""
    for case in answered("cases"):
        facts, answer = case.facts, case.answer
        if answer.get("peak_gib") is None:
            continue
        shape = find_model(facts["model"], facts.get("model_params_b"))[0]
        moving = sum(term["gib"] for term in answer["terms"] if term["source"] in PASSING)
        yield Point(
            source=facts["source"],
            place=f"{facts.get('counter')} {facts.get('gpus', 1) > 1}",
            family=str((shape and shape.architecture) or facts["model"]),
            model=facts["model"],
            method=(facts["update"], facts.get("quantization")),
            expected=float(answer["peak_gib"]),
            measured=float(facts["measured_gib"]),
            moving=moving / float(answer["peak_gib"]),
        )


def speeds() -> Iterable[Point]:
    """The published speeds, as seconds of a token."""
    for run in runs():
        spec = run.request.spec
        yield Point(
            source=run.facts["source"],
            place=str(run.facts.get("gpu")),
            family=run.shape.architecture or run.shape.id,
            model=run.shape.id,
            method=(spec.update, spec.quantization, spec.sharding),
            expected=1 / run.estimate().tokens_per_s_per_gpu,
            measured=1 / float(run.facts["tokens_per_s_per_gpu"]),
        )
