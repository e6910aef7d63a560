"""One fine-tuning job of OpenAI's API: the object that retrieves it, or the request that started
it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from advisor.ground.errors import Fault
from advisor.ground.shape import Choice, Integer, ListOf, Located, MapOf, Number, OneOf, Shape, Text

JOB = "fine_tuning.job"
METHODS = ("supervised", "dpo", "reinforcement")
AUTO = "auto"
_AUTO = Choice(values=(AUTO,))


def _auto_or(number: Shape) -> Shape:
    return OneOf(options=(_AUTO, number), null=True)


HYPERPARAMETERS: Mapping[str, Shape] = {
    "n_epochs": _auto_or(Integer(min=1)),
    "batch_size": _auto_or(Integer(min=1)),
    "learning_rate_multiplier": _auto_or(Number(above=0)),
    "beta": _auto_or(Number(above=0)),
}
_TEXT = Text(null=True)
_MAP = MapOf(of=Shape(null=True), null=True)
FIELDS: Mapping[str, Shape] = {
    "id": _TEXT,
    "model": Text(),
    "training_file": Text(),
    "validation_file": _TEXT,
    "fine_tuned_model": _TEXT,
    "status": _TEXT,
    "trained_tokens": Integer(min=0, null=True),
    "seed": Integer(null=True),
    "suffix": _TEXT,
    "user_provided_suffix": _TEXT,
    "created_at": Number(null=True),
    "hyperparameters": _MAP,
    "method": _MAP,
    "error": _MAP,
    "integrations": ListOf(of=Shape(null=True), null=True),
}
NEEDED = ("model", "training_file")
# Of no matter to a training elsewhere.
ELSEWHERE = (
    "object", "organization_id", "result_files", "finished_at", "estimated_finish", "metadata",
    "shared_with_openai", "eval_id", "usage_metrics",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What a job says. None: it does not say, or says `auto`."""

    where: str  # file, or file:line
    id: str
    model: str  # the base model
    started_from: str | None = None  # a model that was tuned before, if the job went on from one
    tuned: str | None = None  # the resulting model
    method: str = "supervised"
    training_file: str
    validation_file: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    rate_multiplier: float | None = None
    beta: float | None = None
    automatic: tuple[str, ...] = ()  # hyperparameters that are `auto`
    more: Mapping[str, Any] = field(default_factory=dict)  # hyperparameters of reinforcement
    grader: Mapping[str, Any] | None = None
    seed: int | None = None
    suffix: str | None = None
    trained_tokens: int | None = None  # of all epochs together
    status: str | None = None
    error: str = ""
    integrations: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()  # keys that this version does not know
    created_at: float = 0.0


def job_faults(document: Located, path: Sequence[str | int] = ()) -> list[Fault]:
    """What keeps an object from being read as a job, each fault with its place."""
    data = document.data
    for step in path:
        data = data[step]
    faults = [
        Fault(
            where=document.at(path),
            what=f"'{key}' is missing",
            allowed="a fine-tuning job has " + " and ".join(f"`{name}`" for name in NEEDED),
            hint="retrieve the whole job: GET /v1/fine_tuning/jobs/JOB_ID",
        )
        for key in NEEDED
        if data.get(key) is None
    ]
    for key, shape in FIELDS.items():
        if data.get(key) is not None:
            faults += shape.faults(data[key], document, (*path, key))
    if faults:
        return faults
    method = data.get("method") or {}
    kind = method.get("type", _kind(method))
    if kind not in METHODS:
        faults += Choice(values=METHODS).faults(kind, document, (*path, "method", "type"))
        return faults
    chosen = method.get(kind)
    grader = chosen.get("grader") if isinstance(chosen, Mapping) else None
    for at, value in ((("method", kind), chosen), (("method", kind, "grader"), grader)):
        if value is not None:
            faults += _MAP.faults(value, document, (*path, *at))
    for place, values in _hyperparameters(data, kind):
        if not isinstance(values, Mapping):
            faults += _MAP.faults(values, document, (*path, *place))
            continue
        for key, shape in HYPERPARAMETERS.items():
            if values.get(key) is not None:
                faults += shape.faults(values[key], document, (*path, *place, key))
    return faults


def read_job(data: Mapping[str, Any], *, where: str) -> Job:
    """The job of an object without faults."""
    method = data.get("method") or {}
    kind = method.get("type", _kind(method))
    given: dict[str, Any] = {}
    for _, values in _hyperparameters(data, kind):
        given |= {key: value for key, value in values.items() if value is not None}
    number = {key: value for key, value in given.items() if value != AUTO}
    model = str(data["model"])
    base, named = _parts(model)
    tuned = data.get("fine_tuned_model")
    suffix = data.get("suffix") or data.get("user_provided_suffix") or _parts(tuned or "")[1]
    chosen = method.get(kind) or {}
    error = data.get("error") or {}
    return Job(
        where=where,
        id=str(data.get("id") or ""),
        model=base,
        started_from=model if base != model else None,
        tuned=tuned,
        method=kind,
        training_file=str(data["training_file"]),
        validation_file=data.get("validation_file"),
        epochs=number.get("n_epochs"),
        batch_size=number.get("batch_size"),
        rate_multiplier=number.get("learning_rate_multiplier"),
        beta=number.get("beta"),
        automatic=tuple(key for key in given if given[key] == AUTO),
        more={key: value for key, value in number.items() if key not in HYPERPARAMETERS},
        grader=chosen.get("grader") or None,
        seed=data.get("seed"),
        suffix=suffix or named or None,
        trained_tokens=data.get("trained_tokens") or None,
        status=data.get("status"),
        error=str(error.get("message") or error.get("code") or ""),
        integrations=tuple(
            str(one.get("type", "?"))
            for one in data.get("integrations") or ()
            if isinstance(one, Mapping)
        ),
        unread=tuple(key for key in data if key not in FIELDS and key not in ELSEWHERE),
        created_at=float(data.get("created_at") or 0),
    )


def _kind(method: Mapping[str, Any]) -> str:
    return next((kind for kind in METHODS if kind in method), METHODS[0])


def _hyperparameters(data: Mapping[str, Any], kind: str) -> list[tuple[tuple[str, ...], Any]]:
    """The places of hyperparameters, the ones that win last."""
    chosen = (data.get("method") or {}).get(kind) or {}
    found = [
        (("hyperparameters",), data.get("hyperparameters")),
        (
            ("method", kind, "hyperparameters"),
            chosen.get("hyperparameters") if isinstance(chosen, Mapping) else None,
        ),
    ]
    return [(place, values) for place, values in found if values]


def _parts(model: str) -> tuple[str, str]:
    """(base model, suffix) of a name: ft:gpt-4o-mini-2024-07-18:acme:desk:9xYz."""
    if not model.startswith("ft:"):
        return model, ""
    parts = model.split(":")
    return (parts[1] if len(parts) > 1 else model), (parts[3] if len(parts) > 3 else "")
