"""The settings of one stage: by rule, then by the fit search. Every value keeps its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from advisor.advice.types import Chosen
from advisor.methods import methods
from advisor.methods.optimizers import optimizer
from advisor.plan.keys import key_specs
from advisor.plan.model import Stage
from advisor.ruleset.judge import Judgement, judge
from advisor.ruleset.model import Ruleset

RATE = "learning_rate"  # every stage has one
DEFAULTS = {item.name: item.default for item in fields(Stage) if item.default is not MISSING}


def judge_stage(
    ruleset: Ruleset,
    facts: Mapping[str, Any],
    objective: str,
    update: str,
    quantization: str | None,
) -> Judgement:
    """What the table of settings says of one stage."""
    axes = {"objective": objective, "update": update, "quantization": quantization or "none"}
    return judge(ruleset, "settings", {**facts, **axes})


def settings_by_rule(
    ruleset: Ruleset,
    facts: Mapping[str, Any],
    objective: str,
    update: str,
    quantization: str | None,
) -> dict[str, Chosen]:
    """Stage key -> chosen value, for one stage of these axes.

    `effective_batch_size` is not a plan key: the fit search splits it.
    """
    judgement = judge_stage(ruleset, facts, objective, update, quantization)
    chosen = {
        key: Chosen(
            value=value,
            because=rule.because,
            rule=rule.id,
            is_own=rule.layer in ruleset.overlays,
        )
        for key, (value, rule) in judgement.settings.items()
    }
    found = {key: resolve_refusal(objective, update, key, one) for key, one in chosen.items()}
    if RATE not in found and rate_of_file(objective, update) is not None:
        # A method of one's own may have no rule for it.
        value = rate_of_file(objective, update)
        found[RATE] = Chosen(value=value, because="the default in its method's file")
    return found | rate_under_optimizer(found)


def rate_of_file(objective: str, update: str) -> float | None:
    """The learning rate that the files of the methods name, where no rule does.

    That of an update is for learning given texts: an objective that compares or scores answers
    takes a tenth of it or less, and so has to name its own.
    """
    learned = methods().objectives.get(objective)
    if learned is not None and not learned.learns_texts:
        own: float | None = learned.defaults.get(RATE)
        return own
    usual: float | None = key_specs().default(RATE, objective=objective, update=update)
    return usual


def rate_under_optimizer(found: Mapping[str, Chosen]) -> dict[str, Chosen]:
    """The learning rate, which rules give for AdamW, under the optimizer that they chose; nothing
    where it is the same.
    """
    if "optimizer" not in found or RATE not in found:
        return {}
    entry, rate = optimizer(found["optimizer"].value), found[RATE]
    if entry.rate.factor in (None, 1.0):
        return {}
    because = f"{rate.because}; for AdamW {rate.value:g}, under {entry.name} {entry.rate.because}"
    value = float(f"{rate.value * entry.rate.factor:.2g}")
    return {RATE: Chosen(value=value, because=because, rule=rate.rule)}


def resolve_refusal(objective: str, update: str, key: str, chosen: Chosen) -> Chosen:
    """The value, or where the objective or the update refuses it (`refuses:` in its file) the key's
    default, and why.
    """
    because = refusal(objective, update, key, chosen.value)
    if not because:
        return chosen
    declared = key_specs().allowed(objective, update)
    return Chosen(
        value=declared[key].default if key in declared else DEFAULTS[key], because=because
    )


def refusal(objective: str, update: str, key: str, value: Any) -> str:
    """Why a stage of these axes cannot have the value, or an empty string."""
    refused = key_specs().refused({"objective": objective, "update": update, key: value})
    shown = str(value).lower() if isinstance(value, bool) else value
    return "; ".join(
        f"the {owner} does not go with {shown}: {one.because}" for owner, one in refused
    )
