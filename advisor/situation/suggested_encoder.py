"""The encoder to suggest for sorting texts: of many languages where the data are not English."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from advisor.ground.types import DataProfile
from advisor.ground.units import format_count
from advisor.situation.model_files import suggested_models
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
