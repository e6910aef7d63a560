"""What a plan takes from the data alone: the length of a sequence, and whether rows share one.

`advise check` shows it before model and machine are known: for a model that writes, LoRA and one
GPU. The functions are the plan's own.
"""

from __future__ import annotations

from collections.abc import Mapping

from advisor.advice.batching import packed_settings, packing_by_rows, unpacked
from advisor.advice.lengths import room_for_answers, sequence_length, text_length
from advisor.advice.settings import settings_by_rule
from advisor.advice.steps import rows_given, settings_for_rows
from advisor.advice.types import Chosen
from advisor.ground.types import DataProfile
from advisor.methods import methods
from advisor.methods.families import DECODER
from advisor.ruleset.model import Ruleset

USUAL = {"device": "gpu", "architecture": DECODER, "memory_left": "enough"}
CLASSES = "classification"
SHOWN = ("seq_len", "packing")


def suited_objective(data: DataProfile) -> str | None:
    """The objective that the data suit best, `classification` for texts with a label; None where
    they can train none.
    """
    if CLASSES in data.objectives:
        return CLASSES
    return next((name for name in data.objectives if name in methods().objectives), None)


def settings_by_data(ruleset: Ruleset, data: DataProfile, objective: str) -> Mapping[str, Chosen]:
    """`seq_len` and `packing` of a stage, each with the plan's reason; nothing for data that were
    not measured.
    """
    if data.tokens is None:
        return {}
    if objective == CLASSES:
        # An encoder with a head: each row is a sequence.
        return {"seq_len": sequence_length(data, None), **unpacked("sft", "mixes", on_cpu=False)}
    facts = {**USUAL, "data_rows": data.rows}
    settings = settings_by_rule(ruleset, facts, objective, "lora", None)
    batch = settings.pop("effective_batch_size", Chosen(value=16, because="usual"))
    splits = methods().objective(objective).splits_documents
    settings["seq_len"] = text_length(None, on_cpu=False) if splits else sequence_length(data, None)
    settings |= room_for_answers(objective, settings, data, None)
    follows = settings_for_rows(
        objective,
        settings,
        batch,
        rows=rows_given(data, objective),
        tokens=data.tokens.total,
        classes=False,
        multiple=1,
    )
    suits, packing = "uneven", None
    if data.tokens.histogram and not splits:
        suits, packing = packing_by_rows(
            data.tokens,
            rows=int(follows.batch.value),
            cards=1,
            longest=int(settings["seq_len"].value),
        )
    by_fact = settings_by_rule(ruleset, {**facts, "packing_suits": suits}, objective, "lora", None)
    if "packing" in by_fact:
        settings["packing"] = by_fact["packing"]
    else:
        settings |= unpacked(objective, suits, on_cpu=False)
    if packing is not None and "packing" in by_fact:
        settings, _ = packed_settings(settings, follows.batch, packing)
    if "packing" not in settings:
        because = f"{objective} takes each row by itself"
        settings["packing"] = Chosen(value=False, because=because)
    return {key: settings[key] for key in SHOWN}
