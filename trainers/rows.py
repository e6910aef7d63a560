"""The rows of a job: read through advisor.data, tokenised, split, and laid into sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from advisor.data import Skipped, read_examples
from advisor.errors import InputError
from trainers.job import Job
from trainers.prepare import Prepared, Row, Templater, packed, prepared

SAME_LOG_PROBS = 0.05  # between a row alone and the same row behind another; a look across rows changes it by far more


def read_prepared(job: Job, tokenizer: Any) -> tuple[Prepared, set[int]]:
    """The stage's rows ready to train on, and the tokens that end a turn in them."""
    path = job.data_path
    if not path.exists():
        hint = "download a hub data set first: hf download --repo-type dataset NAME --local-dir FOLDER"
        raise InputError(f"data: no such file: {path}", allowed="a file or folder of this machine", hint=hint)
    skipped = Skipped()
    examples = list(read_examples(path, mapping=job.data.mapping, skipped=skipped))
    skipped.raise_if_too_many(str(path))
    templater = Templater(tokenizer, learn_all=job.options.get("loss_on") == "all")
    stage = job.stage
    data = prepared(examples, templater, seq_len=stage.seq_len, truncation=stage.truncation, holdout=stage.holdout, seed=stage.seed)
    notes = (*skipped.lines(), *data.notes)
    return replace(data, rows=skipped.seen, dropped=data.dropped + skipped.total, notes=notes), templater.turn_ends


def sequences_of(job: Job, rows: Sequence[Row], model: Any, tokenizer: Any) -> list[tuple[Row, ...]]:
    """Rows as the sequences of the trainer: one each, or packed. Raises InputError where packing would let rows see each other."""
    if not job.stage.packing:
        return [(row,) for row in rows]
    if len(rows) > 1:
        _check_packing(job, sorted(rows, key=lambda row: row.tokens)[:2], model)
    return packed(rows, job.stage.seq_len)


def _check_packing(job: Job, pair: Sequence[Row], model: Any) -> None:
    """Two short rows, packed as the trainer packs them: the second must come out as it does alone."""
    import torch

    device = next(model.parameters()).device
    first, second = pair
    ids = torch.tensor([[*first.input_ids, *second.input_ids]], device=device)
    positions = torch.tensor([[*range(first.tokens), *range(second.tokens)]], device=device)
    bounds = torch.tensor([0, first.tokens, first.tokens + second.tokens], dtype=torch.int32, device=device)
    longest = max(first.tokens, second.tokens)
    flattened = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}
    was_training = model.training
    model.eval()
    with torch.no_grad():
        together = model(input_ids=ids, position_ids=positions, use_cache=False, **flattened).logits[0, first.tokens :]
        alone = model(input_ids=ids[:, first.tokens :], use_cache=False).logits[0]
    model.train(was_training)
    one, other = (torch.log_softmax(logits.float(), dim=-1) for logits in (together, alone))
    likely = other > -10
    gap = float((one - other).abs()[likely].max())
    if gap > SAME_LOG_PROBS:
        raise InputError(
            f"stage {job.stage.name}: packing cannot be used: with attention {job.stage.attention} on {device.type} "
            f"this model lets packed rows see each other (log-probabilities move by {gap:.2g})",
            allowed="attention: flash_attention_2 on a CUDA card",
            hint="set packing: false",
        )
