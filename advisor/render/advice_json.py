"""Advice as the one JSON document of `advise --json`.

Every key is always there.

Units are in the keys (GiB, hours, US dollars); estimates carry three significant digits; what is
not known is null. The document's JSON Schema is advisor/schema/advice.schema.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from advisor.advice.types import Advice, Candidate, Fitted, Infeasible, Reason
from advisor.estimate.past_runs import learned_document
from advisor.estimate.types import Estimate, WholeTime
from advisor.ground.types import DataProfile
from advisor.ground.units import gib
from advisor.methods.composition import Composition
from advisor.render.data import profile_json
from advisor.render.next_steps import NextSteps, commands, file_to_write, finding_out, next_steps
from advisor.render.probe import probe_json
from advisor.render.words import whole_seconds, whole_usd

if TYPE_CHECKING:
    from advisor.advice.rent import Rent

SCHEMA_VERSION = 1


def advice_document(
    advice: Advice,
    *,
    plan: Mapping[str, Any] | None,
    missing: Sequence[str] = (),
    plan_path: str | None = None,
) -> dict[str, Any]:
    """The document; `plan` is the runnable launch file as data, or None with what is missing, and
    `plan_path` the file that it was written to.
    """
    ours, situation, certainty = advice.recommendation, advice.situation, advice.certainty
    return dict(plain({
        "schema_version": SCHEMA_VERSION,
        "recommendation": {
            "composition": ours.composition,
            "remedies": ours.composition.remedies,
            "stages": [
                _of(one.stage, "objective", "update", "quantization") for one in ours.stages
            ],
            "settings": [
                {key: _of(one, "value", "because", "rule") for key, one in stage.reasons.items()}
                for stage in ours.stages
            ],
            "decided_by": advice.decided_by,
            "because": map(_reason, ours.because),
            "evidence": certainty.evidence,
            "strength": certainty.strength,
            "certainty": {
                "rests_on": certainty.rests_on,
                "doubts": certainty.doubts,
                "conflicts": map(_reason, certainty.conflicts),
            },
            "estimate": estimate_document(ours.estimate),
            "engine": engine_of(advice),
            "ways": [_way(way, is_chosen=number == 0) for number, way in enumerate(ours.ways)],
            "find_out": finding_out(advice),
            "next_steps": map(_next_steps, next_steps(advice)),
        },
        "out_of_scope": situation.outside and _of(situation.outside, "what", "where"),
        "guide": advice.guide and _of(advice.guide, "composition", "row"),
        "alternatives": map(_alternative, advice.alternatives),
        "flips": [_of(flip, "change", "to", "effort", "text") for flip in advice.flips],
        "nothing_fits": advice.nothing_fits and _nothing_fits(advice.nothing_fits),
        "rent": None if advice.rent is None else map(_rent, advice.rent),
        "unknown": advice.unknown,
        "warnings": advice.warnings,
        "situation": {
            "answers": {
                fact: _of(answer, "value", "origin")
                for fact, answer in situation.answers.known.items()
            },
            "facts": advice.facts,
            "model": situation.model,
            "suggestion": situation.suggestion,
            "tasks": {name: data_document(profile) for name, profile in situation.tasks.items()},
        },
        "hardware": _without(probe_json(situation.hardware), "schema_version"),
        "data": _stated_data(advice) if situation.data is None else data_document(situation.data),
        "rules": {"layers": advice.layers, "digest": advice.rules_digest},
        "plan": plan,
        "missing": missing,
        "next_steps": commands(advice, plan_path=plan_path),
    }))  # fmt: skip


def engine_of(advice: Advice) -> dict[str, Any]:
    """Which engine trains the recommendation, and why; the lines for one that is not ours."""
    if advice.recommendation.engine or advice.situation.outside:
        from advisor.render.other_engine import engine_document  # most answers are ours

        return engine_document(advice, file_to_write)
    trains = bool(advice.recommendation.composition.chain)
    why = "these trainers load it" if trains else "nothing is trained"
    lines = dict.fromkeys(("source", "command", "export"))
    return {"id": "ours" if trains else None, "runs_here": trains, "why": why, **lines}


def estimate_document(estimate: Estimate) -> dict[str, Any]:
    """Memory of the fullest device, the whole time with its parts, what that costs, and whether
    it fits.

    `peak_gib` is what a counter would read, never above the device, within `low_gib` and
    `high_gib`. `need_gib` is what the settings need, not capped; the verdict `fits` holds its band,
    `need_low_gib` to `need_high_gib`, against `limit_gib`. `least_gib` is the need with the
    smallest batch and recomputed activations. The terms sum to `need_gib`. `hours` and `usd` are
    those of the page, of the whole time; `times.train_hours` is the training alone. `host` is what
    a model that is divided among GPUs needs of each machine's own memory, by moment.
    """
    memory = estimate.memory
    return {
        **{
            f"{part}_gib": None if memory is None else _gib(getattr(memory, f"{part}_bytes"))
            for part in ("peak", "low", "high", "need", "need_low", "need_high")
        },
        "least_gib": _gib(estimate.least_bytes),
        "limit_gib": _gib(estimate.limit_bytes),
        "hours": _hours(whole_seconds(estimate)),
        "times": None if estimate.times is None else times_document(estimate.times),
        "usd": rounded(whole_usd(estimate)),
        "total_usd": rounded(whole_usd(estimate)),
        "fits": estimate.fits,
        "moment": None if memory is None else memory.needed.name,
        "terms": [
            {"name": term.name, "gib": _gib(term.size_bytes), "because": term.because}
            for term in (memory.needed.terms if memory is not None else ())
        ],
        "host": [
            {"moment": one.name, "gib": _gib(one.size_bytes), "because": one.because}
            for one in estimate.host
        ],
        "cost_note": estimate.cost_note,
        "assumed": [
            {"what": one.what, "value": one.value, "source": one.source} for one in estimate.assumed
        ],
        "learned": None if estimate.learned is None else learned_document(estimate.learned),
        "unknown": list(estimate.unknown),
    }


def times_document(times: WholeTime) -> dict[str, Any]:
    """The whole time in hours, by its parts; `total_hours` is `hours` beside it."""
    parts = (
        "total", "low", "high", "load", "prepare", "before", "train", "evaluate", "save", "after",
        "download",
    )  # fmt: skip
    return {f"{part}_hours": _hours(getattr(times, f"{part}_s")) for part in parts}


def _hours(duration_s: float | None) -> float | None:
    return None if duration_s is None else rounded(duration_s / 3600)


def _gib(size_bytes: float | None) -> float | None:
    return None if size_bytes is None else rounded(gib(size_bytes))


def data_document(profile: DataProfile) -> dict[str, Any]:
    """A measured data file without its sample row: nobody's data is passed on."""
    return _without(profile_json(profile), "schema_version", "sample") | {"origin": "measured"}


def _without(document: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in keys}


def _stated_data(advice: Advice) -> dict[str, Any]:
    answers = advice.situation.answers
    stated = {key: answers.value(f"data_{key}") for key in ("path", "kind", "rows")}
    return {
        **stated,
        "format": None,
        "mapping": {},
        "tokens": None,
        "objectives": [],
        "findings": [],
        "digest": None,
        "origin": "unknown" if set(stated.values()) == {None} else "stated",
    }


def _next_steps(steps: NextSteps) -> dict[str, Any]:
    return {
        **_of(steps, "remedy", "first"),
        "ways": [_of(way, "where", "text", "commands", "cost") for way in steps.ways],
        **_of(steps, "measure", "helps_then", "also"),
        "sources": [_of(source, "title", "url", "checked") for source in steps.sources],
    }


def _of(value: object, *names: str) -> dict[str, Any]:
    """These fields of a value."""
    return {name: getattr(value, name) for name in names}


def _alternative(candidate: Candidate) -> dict[str, Any]:
    return {
        **_of(candidate, "composition", "verdict"),
        "because": map(_reason, candidate.because),
        "estimate": estimate_document(candidate.estimate),
        "force_allowed": candidate.forced_ok,
    }


def _way(way: Fitted, *, is_chosen: bool) -> dict[str, Any]:
    cost = way.cost
    return {
        "strategy": way.strategy.name,
        "offload": way.strategy.offload,
        **_of(way, "gpus", "machines"),
        "chosen": is_chosen,
        "fits": cost.fits,
        "need_gib": cost.memory and _gib(cost.memory.need_bytes),
        "hours": _hours(whole_seconds(cost)),
        "usd": rounded(whole_usd(cost)),
    }


def _nothing_fits(stuck: Infeasible) -> dict[str, Any]:
    return {
        "nearest": stuck.nearest.composition,
        "blame": map(_reason, stuck.blame),
        "ways_out": [_of(way, "text", "change", "to", "command") for way in stuck.ways_out],
    }


def _rent(way: Rent) -> dict[str, Any]:
    provider, _, date = way.card.price_note.partition(";")[0].rpartition(", ")
    return {
        "gpu": way.card.name,
        "count": way.count,
        "usd_per_h": rounded((way.card.price_usd_per_h or 0.0) * way.count),
        "hours": _hours(way.seconds),
        "low_hours": _hours(way.low_s),
        "high_hours": _hours(way.high_s),
        "usd": rounded(way.usd),
        "need_gib": _gib(way.need_bytes),
        "price_source": provider,
        "price_date": date,
        "within": way.within,
    }


def _reason(reason: Reason) -> dict[str, Any]:
    return {
        **_of(reason, "text", "rule", "source"),
        "facts": [
            {"fact": known.fact, "value": known.value, "from": known.origin}
            for known in reason.facts
        ],
        "needs": rounded(reason.needs),
        "has": rounded(reason.has),
        "unit": reason.unit,
    }


def rounded(value: float | None) -> float | None:
    """A float at three significant digits, an integer as it is; None for what is not finite."""
    if value is None or isinstance(value, int):
        return value
    if not math.isfinite(value):
        return None
    return 0.0 if value == 0 else round(value, 2 - math.floor(math.log10(abs(value))))


def plain(value: Any) -> Any:
    """The value as JSON types: infinities and NaN are null, sets are sorted lists."""
    if isinstance(value, Composition | PurePath):
        return str(value)
    if isinstance(value, Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((plain(part) for part in value), key=str)
    if isinstance(value, list | tuple | map):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    raise TypeError(f"a {type(value).__name__} has no place in a JSON document: {value!r}")
