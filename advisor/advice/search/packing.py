"""Several rows in one sequence: whether that suits a stage, and how long a sequence must be for an
optimizer step to keep its rows.

With packing a batch counts sequences. As many rows as the rules want in a step fill a number of
sequences; these are made so long that this number is whole, and divides among the GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from advisor.advice.search.settings import BATCH, StageCase
from advisor.advice.types import Chosen, Padding, values_of
from advisor.estimate.model.architecture import MIXES_PACKED_ROWS
from advisor.estimate.padding import padded_tokens, rows_in_sequence
from advisor.ground.types import TokenStats
from advisor.methods.families import DECODER, kind_of_type
from advisor.methods.kernels import is_flash
from advisor.ruleset.phrases import inside_sentence

MULTIPLE = 64
SEQUENCES = (16, 8, 4, 2, 1)  # on each GPU, of an optimizer step
# With a mask for the rows instead of kernels that know their bounds, attention computes every pair
# of tokens of a sequence: here it is still a small part of a step.
LONGEST_MASKED = 4096
GAINS = 2.0  # rows that a sequence must hold at least
WHY_NOT_PACKED = {  # by the fact `packing_suits`
    "mixes": "in this model packed rows would see each other",
    "long": "the rows are so long that attention over several costs more than padding",
    "uneven": "packed sequences would change how many rows an optimizer step has",
    "full": "most rows leave too little room for another, so packing would gain little",
}
SAME_ROWS = 0.15  # the share by which the rows of an optimizer step may differ


class Packing(Struct, frozen=True, kw_only=True):
    """Sequences that hold the rows of an optimizer step."""

    seq_len: int
    sequences: int  # of an optimizer step, on all devices
    rows: float  # in all of them, on average


def packing_suits(case: StageCase, settings: Mapping[str, Chosen]) -> tuple[str, Packing | None]:
    """(the fact that the rules see, the packing if it gains)."""
    model, profile = case.situation.model, case.profile
    if profile is None or profile.tokens is None or not profile.tokens.histogram or model is None:
        return "unknown", None
    if model.architecture in MIXES_PACKED_ROWS or kind_of_type(model.architecture) != DECODER:
        return "mixes", None
    attention = str(settings["attention"].value) if "attention" in settings else "sdpa"
    most = 4 * LONGEST_MASKED if is_flash(attention) else LONGEST_MASKED
    if attention == "eager" or int(settings["seq_len"].value) > most:
        return "long", None
    if case.method.splits_documents or len(case.profiles) != 1:
        return "uneven", None
    return packing_by_rows(
        case, settings, profile.tokens, most=min(most, model.context_tokens or most)
    )


def packing_by_rows(
    case: StageCase,
    settings: Mapping[str, Chosen],
    tokens: TokenStats,
    *,
    most: int = LONGEST_MASKED,
) -> tuple[str, Packing | None]:
    """The same as the lengths of the rows alone decide, within so many tokens."""
    longest = int(settings["seq_len"].value)
    if longest > most:
        return "long", None
    rows = int(settings[BATCH].value)
    found = packing_of(tokens, rows=rows, cards=case.cards, longest=longest, most=most)
    if found is None:
        return "uneven", None
    return ("full", None) if found.rows / found.sequences < GAINS else ("gains", found)


def with_packing(
    case: StageCase,
    settings: Mapping[str, Chosen],
    suits: str,
    packing: Packing | None,
    *,
    fits: bool = True,
) -> tuple[dict[str, Chosen], Packing | None]:
    """The settings of a packed stage and the packing, or why rows are not packed and None.

    Args:
        suits: The fact `packing_suits`.
        fits: Packed sequences would fit the memory.
    """
    found = dict(settings)
    if "packing" not in found and case.method.packs:
        because = WHY_NOT_PACKED.get(suits, "")
        if case.on_cpu:
            because = "on the CPU packed rows are no faster than rows of similar length together"
        elif not fits:
            because = "packed sequences would not fit, rows one by one do"
        if because:
            found["packing"] = Chosen(value=False, because=because)
    if packing is None or "packing" not in found or not found["packing"].value:
        return found, None
    return found | _packed(found["seq_len"], found[BATCH], packing), packing


def _packed(length: Chosen, batch: Chosen, packing: Packing) -> dict[str, Chosen]:
    if packing.seq_len > int(length.value):
        because = (
            f"so long that about {round(packing.rows / packing.sequences)} rows fill a sequence"
            f" and an optimizer step keeps its rows; {length.because}"
        )
        length = replace(length, value=packing.seq_len, because=because)
    count = f"{packing.sequences} sequence{'s' if packing.sequences > 1 else ''}"
    because = f"about {round(packing.rows)} rows in {count}: {inside_sentence(batch.because)}"
    batch = Chosen(value=packing.sequences, because=because, rule=batch.rule)
    return {"seq_len": length, BATCH: batch}


def packing_of(
    tokens: TokenStats, *, rows: int, cards: int, longest: int, most: int
) -> Packing | None:
    """As many sequences as hold the rows of a step, the most of them; None: none do."""
    per_token = (rows_in_sequence(tokens, longest) or 0.0) / longest
    if not per_token:
        return None
    for each in SEQUENCES:
        wanted = rows / per_token / (each * cards)
        seq_len = max(longest, round(wanted / MULTIPLE) * MULTIPLE)
        if seq_len > most:
            continue
        held = (rows_in_sequence(tokens, seq_len) or 0.0) * each * cards
        if abs(held - rows) <= SAME_ROWS * rows:
            return Packing(seq_len=seq_len, sequences=each * cards, rows=held)
    return None


def with_saving(settings: Mapping[str, Chosen], padding: Padding | None) -> dict[str, Chosen]:
    """The settings with what packing or grouping saves here in its reason, if the data tell."""
    found = dict(settings)
    packs = "packing" in found and found["packing"].value is True
    if packs and "group_by_length" in found:
        group = found["group_by_length"]
        because = f"if this model lets packed rows see each other: {group.because}"
        found["group_by_length"] = replace(group, because=because)
    if padding is not None:
        key, now = ("packing", "none") if packs else ("group_by_length", f"{padding.now:.0%}")
        because = (
            f"{found[key].because}; with rows at random about {padding.at_random:.0%} of what is"
            f" computed would be padding; now {now}"
        )
        found[key] = replace(found[key], because=because)
    return found


def padding_of(case: StageCase, settings: Mapping[str, Chosen]) -> Padding | None:
    """What packing or grouping saves of a stage; None: nothing, or it is not known."""
    plain: dict[str, Any] = values_of(settings)
    packed, grouped = plain.get("packing") is True, plain.get("group_by_length") is True
    profile = case.profile
    if not (packed or grouped) or profile is None or profile.tokens is None:
        return None
    if case.method.splits_documents:
        return None
    micro, accum = int(plain["micro_batch_size"]), int(plain["grad_accum"])
    if packed:  # against as many rows at once as its sequences hold
        held = rows_in_sequence(profile.tokens, int(plain["seq_len"])) or 1.0
        micro = max(1, round(micro * held))
    if micro == 1:
        return None
    one, random, together = (
        padded_tokens(
            profile.tokens,
            seq_len=int(plain["seq_len"]),
            micro=size,
            per_step=micro * accum * case.cards,
            rows=profile.rows,
            grouped=similar,
        )
        for size, similar in ((1, False), (micro, False), (micro, True))
    )
    if one is None or random is None or together is None:
        return None
    return Padding(
        at_random=1 - one / random, now=0.0 if packed else 1 - one / together, packed=packed
    )
