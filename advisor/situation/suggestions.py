"""Models to suggest: to start from, to fall back on, and encoders for sorting texts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from advisor.ground.types import DataProfile, ModelShape
from advisor.ground.units import format_count
from advisor.situation.catalogue import suggested_models
from advisor.situation.chat_templates import lacks
from advisor.situation.models import model_shape
from advisor.situation.types import ModelSuggestion

ENGLISH_SHARE = 0.8  # of the rows whose language can be told


def suggest_encoder(profiles: Sequence[DataProfile]) -> ModelSuggestion:
    """The encoder of the table to start from: of many languages if the data are not English, or
    not all of them.
    """
    rows: Sequence[Mapping[str, Any]] = suggested_models()["encoders"]
    english = in_english(profiles)
    many = [row for row in rows if "multilingual" in row.get("languages", ())]
    first = many[0] if english is False and many else rows[0]
    why = f"{format_count(first['params_b'] * 1e9)} parameters, {first['license']}: {first['why']}"
    if english is False:
        why += " (your texts are not all English)"
    elif english is None and many and first not in many:
        why += f" (for texts in other languages: {many[0]['model']})"
    return _suggestion(first, why)


def in_english(profiles: Sequence[DataProfile]) -> bool | None:
    """Whether the data are English, as far as scripts and common words tell; None without data or
    with texts too short to tell.
    """
    shares: list[bool] = []
    for profile in profiles:
        scripts = {
            row["script"]: row["rows"]
            for row in profile.measures.get("scripts", ())
            if row["script"] != "none"
        }
        if sum(scripts.values()) > scripts.get("Latin", 0) / ENGLISH_SHARE:
            return False
        if (words := profile.measures.get("english")) is not None:
            shares.append(words["rows"] >= ENGLISH_SHARE * words["of"])
    return all(shares) if shares else None


def suggest_model(
    task: str, max_params_b: float | None, *, needs: Collection[str] = (), untuned: bool = False
) -> ModelSuggestion:
    """The largest model of the table that fits and suits the task; the 8B one if nothing limits
    the size, the smallest if none fits.

    Args:
        needs: What its chat template has to write (chat_templates.NEEDS).
        untuned: Whether it has to be a plain text model, that follows no instructions yet.
    """
    suited = _rows(task, untuned=untuned)
    if needs:
        suited = [row for row in suited if not lacks(row["model"], needs)] or suited
    limit = max_params_b if max_params_b is not None else 8.5
    fitting = [row for row in suited if row["params_b"] <= limit]
    named = [row for row in fitting if row["tasks"] != "any"]
    chosen = max(named or fitting or suited[:1], key=lambda row: row["params_b"])
    size = format_count(chosen["params_b"] * 1e9)
    why = f"{size} parameters, {chosen['license']}: {chosen['why']}"
    if not fitting:
        why += f" (the smallest of the table, and still larger than the {limit:.3g}B that fit)"
    elif max_params_b is None:
        why += " (memory unknown: a common size was taken)"
    also = [f"{other['model']}, {other['why']}" for other in chosen.get("also", ())]
    why += f"; newer ones of about this size: {'; '.join(also)}" if also else ""
    return _suggestion(chosen, why)


def _rows(task: str, *, untuned: bool) -> list[Mapping[str, Any]]:
    """The table's models that suit the task; if the start is a plain text model, those behind
    them.
    """
    rows = [row for row in suggested_models()["models"] if _suits(row, task)]
    if not untuned:
        return rows
    why = "follows no instructions yet; {} was made from it"
    return [
        {**row, "model": row["base"], "why": why.format(row["model"]), "also": ()}
        for row in rows
        if "base" in row
    ]


def _suits(row: Mapping[str, Any], task: str) -> bool:
    return row["tasks"] == "any" or task in row["tasks"]


def _suggestion(row: Mapping[str, Any], because: str) -> ModelSuggestion:
    source = f"{row['source']}, {suggested_models()['checked']}"
    return ModelSuggestion(model=row["model"], because=because, source=source)


def smaller_models(
    task: str, params: int, *, needs: Collection[str] = (), untuned: bool = False
) -> list[tuple[ModelShape, ModelSuggestion]]:
    """The table's models that are smaller than `params` and suit the task, largest first, with
    their shapes.

    Args:
        needs: What their chat templates have to write (chat_templates.NEEDS).
        untuned: Whether they have to be plain text models, that follow no instructions yet.
    """
    found = []
    for row in sorted(_rows(task, untuned=untuned), key=lambda row: -row["params_b"]):
        if row["params_b"] * 1e9 < params and not lacks(row["model"], needs):
            shape, _ = model_shape(row["model"])
            if shape is not None:
                found.append((shape, _suggestion(row, row["why"])))
    return found
