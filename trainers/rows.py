"""The rows of a job: read through advisor.data, prepared as its objective needs them, kept in the run folder, and laid into sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from advisor.data import Skipped, read_examples
from advisor.errors import InputError
from trainers.job import Job
from trainers.prepare import ANSWERS, Kind, Prepared, Row, Templater, packed, prepared
from trainers.prepare.packing import check_packing


def read_prepared(job: Job, tokenizer: Any, kind: Kind[Any] = ANSWERS, *, seq_len: int | None = None) -> Prepared[Any]:
    """The stage's rows ready to train on.

    Args:
        kind: What the objective trains on.
        seq_len: The longest row; default: the stage's. Less where an answer has yet to be written behind it.
    """
    path = job.data_path
    if not path.exists():
        hint = "download a hub data set first: hf download --repo-type dataset NAME --local-dir FOLDER"
        raise InputError(f"data: no such file: {path}", allowed="a file or folder of this machine", hint=hint)
    templater = Templater(tokenizer, learn_all=job.options.get("loss_on") == "all")
    stage = job.stage
    skipped = Skipped()
    examples = list(read_examples(path, mapping=job.data.mapping, skipped=skipped))
    skipped.raise_if_too_many(str(path))
    data = prepared(examples, templater, seq_len=seq_len or stage.seq_len, truncation=stage.truncation, holdout=stage.holdout, seed=stage.seed, kind=kind)
    return data.noted(rows=skipped.seen, dropped=skipped.total, notes=skipped.lines())


def sequences_of(job: Job, rows: Sequence[Row], model: Any) -> list[tuple[Row, ...]]:
    """Rows as the sequences of the trainer: one each, or packed. Raises InputError where packing would let rows see each other."""
    if not job.stage.packing:
        return [(row,) for row in rows]
    check_packing(model, rows, stage=job.stage.name, attention=job.stage.attention)
    return packed(rows, job.stage.seq_len)
