"""How long a sequence has to be: from the lengths of the rows, and what happens to longer ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from advisor.advice.search.packing import packed_settings, packing_by_rows, unpacked
from advisor.advice.search.rows import rows_given, settings_for_rows
from advisor.advice.search.settings import settings_by_rule
from advisor.advice.types import Chosen
from advisor.ground.types import DataProfile
from advisor.methods import methods
from advisor.methods.families import DECODER
from advisor.ruleset.model import Ruleset

DEFAULT_SEQ_LEN = 1024
TEXT_LEN, CPU_TEXT_LEN = 2048, 512  # of documents, which may be parted anywhere
APPROXIMATION_MARGIN = (
    1.25  # token counts from characters can be off by this much; a length that cuts rows is worse
)
# a chat template's own words around a conversation, which a count of characters does not see
TEMPLATE_TOKENS = 64
MULTIPLE = 64


def sequence_length(data: DataProfile | None, context_tokens: int | None) -> Chosen:
    """A length that keeps every row where that is affordable, else all but the longest
    hundredth; the reason counts the rows that are longer.
    """
    if data is None or data.tokens is None:
        length, because = DEFAULT_SEQ_LEN, "no data to measure yet: a usual length"
    else:
        tokens = data.tokens
        kept = tokens.kept_whole()
        approximate = "approximation" in tokens.counted_by
        length = _rounded(
            kept.tokens * APPROXIMATION_MARGIN + TEMPLATE_TOKENS if approximate else kept.tokens
        )
        measured = (
            "" if tokens.sampled_rows is None else f" of the {tokens.sampled_rows:,} measured"
        )
        because = (
            f"holds {kept.what}{measured} ({kept.tokens:,} tokens"
            f"{', approximated' if approximate else ''}){_longer(data, kept.tokens)}"
        )
    if context_tokens is not None and length > context_tokens:
        length, because = context_tokens, _at_most(context_tokens)
    return Chosen(value=length, because=because)


def _longer(data: DataProfile, kept: int) -> str:
    """What happens to the rows that are longer, with their number where it was counted."""
    found = data.measures.get("longer_rows")
    if data.tokens is None or data.tokens.longest <= kept or not found:
        return ""
    count, rows = found["rows"], found["of"]
    counted = f"{count:,} of {rows:,} rows are" if count else "the few rows outside the sample are"
    return (
        f"; {counted} longer, up to {data.tokens.longest:,}, and left out (truncation: truncate"
        " cuts them instead)"
    )


def text_length(context_tokens: int | None, *, on_cpu: bool) -> Chosen:
    """A length for plain documents, which are parted without loss: as long as pays, not as long as
    the longest.
    """
    length = CPU_TEXT_LEN if on_cpu else TEXT_LEN
    if context_tokens is not None and context_tokens < length:
        return Chosen(value=context_tokens, because=_at_most(context_tokens))
    return Chosen(
        value=length,
        because="documents are split without loss; longer pieces cost more than they teach",
    )


def room_for_answers(
    objective: str,
    settings: Mapping[str, Chosen],
    data: DataProfile | None,
    context_tokens: int | None,
) -> dict[str, Chosen]:
    """Where a stage writes its own answers: how long they may be, and a length that holds the
    longest prompt and one of them.

    Args:
        settings: With seq_len, the length of the rows.
    """
    key = methods().objective(objective).keys.get("response_tokens")
    if key is None or data is None or data.tokens is None:
        return {}
    whole = settings["seq_len"]
    answer = settings.get("response_tokens") or Chosen(
        value=min(int(key.default), int(whole.value)),
        because="as long as answers usually are, no longer than the rows",
    )
    length = int(whole.value) + int(answer.value)
    because = f"{whole.because}, and an answer of {answer.value:,} tokens"
    if context_tokens is not None and length > context_tokens:
        length, because = context_tokens, _at_most(context_tokens)
    return {"response_tokens": answer, "seq_len": replace(whole, value=length, because=because)}


def _at_most(context_tokens: int) -> str:
    return f"the model reads at most {context_tokens:,} tokens"


def _rounded(length: float) -> int:
    return max(MULTIPLE, -(-int(-(-length // 1)) // MULTIPLE) * MULTIPLE)


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
