"""The rows of a job: read by advisor.data, prepared as its objective needs them, kept in the run
folder, and arranged into sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from advisor.data import Skipped, content_digest, read_examples
from advisor.data.read.hub import is_hub_id
from trainers.frame.job import Job
from trainers.frame.machine import is_main_process
from trainers.frame.types import Model, Tokenizer
from trainers.prepare import ANSWERS, Kind, Prepared, Row, Templater, pack, prepare_stage_rows
from trainers.prepare.cache import prepared_digest, read_written, remove_prepared, write_prepared
from trainers.prepare.packing import check_packing


def prepare_rows(
    job: Job, tokenizer: Tokenizer, kind: Kind[Any] = ANSWERS, *, seq_len: int | None = None
) -> Prepared[Any]:
    """The stage's rows ready to train on; from the run folder if the same were prepared before.

    Raises InputError for data that cannot be trained on.

    Args:
        kind: What the objective trains on.
        seq_len: The longest row, in tokens; default: the stage's. Less if the model still has to
            write an answer behind it.
    """
    # A data set of the hub is not a path; the reader reports anything else that is not there.
    path = (
        job.data.path
        if is_hub_id(job.data.path) and not job.data_path.exists()
        else str(job.data_path)
    )
    stage = job.stage
    learn_all = job.options.get("loss_on") == "all"
    lengths: dict[str, Any] = {
        "seq_len": seq_len or stage.seq_len,
        "truncation": stage.truncation,
        "holdout": stage.holdout,
        "seed": stage.seed,
    }
    digest = prepared_digest(
        data=content_digest(path),
        tokenizer=tokenizer,
        kind=kind.name,
        settings=lengths | {"learn_all": learn_all, "mapping": job.data.mapping},
    )
    # Named after the stage and task, so that each keeps its own.
    file = job.run / "prepared" / f"{job.entry.name}-{kind.name}-{digest[:16]}.arrow"
    known = read_written(file, kind, tokenizer)
    if known is not None and known.digest == digest:
        return known
    had_template = bool(tokenizer.chat_template)
    templater = Templater(tokenizer, learn_all=learn_all)
    skipped = Skipped()
    examples = list(read_examples(path, mapping=job.data.mapping, skipped=skipped))
    skipped.raise_if_too_many(path)
    data = prepare_stage_rows(examples, templater, kind=kind, **lengths).with_file_counts(
        rows=skipped.seen, dropped=skipped.total, notes=skipped.lines()
    )
    data = replace(data, digest=digest)
    if is_main_process() and not job.dry_run:
        remove_prepared(file.parent, f"{job.entry.name}-{kind.name}")
        write_prepared(
            file, data, kind, chat_template=None if had_template else tokenizer.chat_template
        )
    return data


def sequences_of(job: Job, rows: Sequence[Row], model: Model) -> list[tuple[Row, ...]]:
    """Rows as the sequences of the trainer: one row in each, or several packed ones.

    Raises InputError if packing would let rows see each other.
    """
    if not job.stage.packing:
        return [(row,) for row in rows]
    check_packing(model, rows, stage=job.stage.name, attention=job.stage.attention)
    return pack(rows, job.stage.seq_len)
