"""`advise check`: the profile of a data file with everything the page and the JSON document show
beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from advisor.ground.types import DataProfile, Finding


def check_data(
    path: str,
    *,
    mapping: Mapping[str, str] | None = None,
    full: bool = False,
    evaluation: str | None = None,
    model: str | None = None,
    seq_len: int | None = None,
) -> tuple[DataProfile, dict[str, Any]]:
    """The profile, and what follows from it: how much each objective wants, and the sequence length
    and packing it suggests.

    Raises:
        InputError: The data cannot be read or is not recognised.
    """
    from advisor.data import profile

    tokenizer, note = None, ""
    if model is not None:
        from advisor.data.measure.tokenizer import model_tokenizer

        tokenizer, note = model_tokenizer(model)
    found = profile(
        path,
        mapping=mapping,
        count_tokens=tokenizer,
        full=full,
        strict=False,
        whole=True,
        thorough=True,
        evaluation=evaluation,
        seq_len=seq_len,
    )
    if tokenizer is not None:
        from advisor.data.measure.tokenizer import with_template_fit

        findings = with_template_fit(found.findings, tokenizer, found.objectives)
        blocked = {objective for finding in findings for objective in finding.blocks}
        found = replace(
            found,
            findings=findings,
            objectives=tuple(name for name in found.objectives if name not in blocked),
        )
    if note:
        found = replace(
            found,
            findings=(
                *found.findings,
                Finding(id="tokenizer-not-at-hand", severity="note", text=note),
            ),
        )
    return found, advise_on_data(found, seq_len=seq_len)


def advise_on_data(found: DataProfile, *, seq_len: int | None = None) -> dict[str, Any]:
    """How much each objective wants, and the sequence length (the one the plan would get) and
    packing the lengths suggest.
    """
    from advisor.advice.fit import sequence_length
    from advisor.data.measure.data_requirements import compare_amounts
    from advisor.data.measure.lengths import suggest_packing

    if found.tokens is None:
        return {"amounts": compare_amounts(found), "suggested": None}
    length = sequence_length(found, None)
    packing, because = suggest_packing(
        found.kind, found.tokens, int(length.value), found.objectives
    )
    suggested = {
        "seq_len": length.value,
        "because": length.because,
        "packing": packing,
        "packing_because": because,
    }
    return {"amounts": compare_amounts(found), "suggested": suggested}
