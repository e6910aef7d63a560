"""The settings of one stage: by rule, then by the fit search. Every value keeps its reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advisor.ruleset.judge import judge
from advisor.ruleset.model import Ruleset
from advisor.types import Chosen


def ruled_settings(ruleset: Ruleset, facts: Mapping[str, Any], objective: str, update: str, quantization: str | None) -> dict[str, Chosen]:
    """Stage key -> chosen value, for one stage of these axes. `effective_batch` is not a plan key: the fit search splits it."""
    stage_facts = {**facts, "objective": objective, "update": update, "quantization": quantization or "none"}
    judgement = judge(ruleset, "settings", stage_facts)
    return {key: Chosen(value=value, because=rule.because, rule=rule.id) for key, (value, rule) in judgement.settings.items()}
