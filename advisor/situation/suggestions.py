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
    """The encoder of the table to start from: of many languages where the data are not English, or
    not all of them.
    """
    table = suggested_models()
    rows: Sequence[Mapping[str, Any]] = table["encoders"]
    english = in_english(profiles)
    many = [row for row in rows if "multilingual" in row.get("languages", ())]
    first = many[0] if english is False and many else rows[0]
    why = f"{format_count(first['params_b'] * 1e9)} parameters, {first['license']}: {first['why']}"
    if english is False:
        why += " (your texts are not all English)"
    elif english is None and many and first not in many:
        why += f" (for texts in other languages: {many[0]['model']})"
    return ModelSuggestion(
        model=first["model"], because=why, source=f"{first['source']}, {table['checked']}"
    )


def in_english(profiles: Sequence[DataProfile]) -> bool | None:
    """Whether the data are English, as far as scripts and common words tell; None without data or
    with texts too short to tell.
    """
    told: list[bool] = []
    for profile in profiles:
        scripts = {
            row["script"]: row["rows"]
            for row in profile.measures.get("scripts", ())
            if row["script"] != "none"
        }
        if sum(scripts.values()) > scripts.get("Latin", 0) / ENGLISH_SHARE:
            return False
        if (words := profile.measures.get("english")) is not None:
            told.append(words["rows"] >= ENGLISH_SHARE * words["of"])
    return all(told) if told else None


def suggest_model(
    task: str, max_params_b: float | None, *, needs: Collection[str] = (), untuned: bool = False
) -> ModelSuggestion:
    """The largest model of the table that fits and suits the task; the 8B one where nothing limits
    the size, the smallest where none fits.

    Args:
        needs: What its chat template has to write (chat_templates.NEEDS).
        untuned: Whether it has to be a plain text model, that follows no instructions yet.
    """
    table = suggested_models()
    rows = _rows(untuned=untuned)
    suited = [row for row in rows if row["tasks"] == "any" or task in row["tasks"]]
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
    return ModelSuggestion(
        model=chosen["model"], because=why, source=f"{chosen['source']}, {table['checked']}"
    )


def _rows(*, untuned: bool) -> Sequence[Mapping[str, Any]]:
    """The table's models; where the start is a plain text model, those behind them."""
    rows: Sequence[Mapping[str, Any]] = suggested_models()["models"]
    if not untuned:
        return rows
    return [
        {
            **{key: value for key, value in row.items() if key != "also"},
            "model": row["base"],
            "why": f"follows no instructions yet; {row['model']} was made from it",
        }
        for row in rows
        if "base" in row
    ]


def smaller_models(
    task: str, params: int, *, needs: Collection[str] = (), untuned: bool = False
) -> list[tuple[ModelShape, ModelSuggestion]]:
    """The table's models that are smaller than `params` and suit the task, largest first, with
    their shapes.

    Args:
        needs: What their chat templates have to write (chat_templates.NEEDS).
        untuned: Whether they have to be plain text models, that follow no instructions yet.
    """
    table = suggested_models()
    found = []
    for row in sorted(_rows(untuned=untuned), key=lambda row: -row["params_b"]):
        if lacks(row["model"], needs):
            continue
        if row["params_b"] * 1e9 < params and (row["tasks"] == "any" or task in row["tasks"]):
            shape, _ = model_shape(row["model"])
            if shape is not None:
                found.append(
                    (
                        shape,
                        ModelSuggestion(
                            model=row["model"],
                            because=row["why"],
                            source=f"{row['source']}, {table['checked']}",
                        ),
                    )
                )
    return found
