"""The rows of a job: read by advisor.data, prepared as its objective needs them, kept in the run
folder, and arranged into sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from advisor.data import Example, SkippedRows, content_digest, find_data, read_examples, recognise
from advisor.data.read.hub import is_hub_id
from advisor.data.read.source import DataSource
from advisor.ground.errors import MachineNotReady
from trainers.job.job import Job
from trainers.job.machine import is_main_process, process_count
from trainers.job.types import Model, Tokenizer
from trainers.rows import ANSWERS, Kind, Prepared, Row, Templater, pack
from trainers.rows.building import Limits
from trainers.rows.cache import prepared_digest, read_written, remove_prepared, write_prepared
from trainers.rows.prepared import build_rows
from trainers.rows.sequences import Singles
from trainers.say.processes import others_wait_for, wait_for


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
    is_on_the_hub = is_hub_id(job.data.path) and not job.data_path.exists()
    source = find_data(job.data.path if is_on_the_hub else str(job.data_path))
    stage = job.stage
    learn_all = job.options.get("loss_on") == "all"
    lengths: dict[str, Any] = {
        "seq_len": seq_len or stage.seq_len,
        "truncation": stage.truncation,
        "holdout": stage.holdout,
        "seed": stage.seed,
    }
    languages = [job.options.get(name) for name in ("source_language", "target_language")]
    digest = prepared_digest(
        data=content_digest(source),
        tokenizer=tokenizer,
        kind=kind.name,
        settings=lengths
        | {"learn_all": learn_all, "mapping": job.data.mapping}
        | ({"languages": languages} if any(languages) else {}),
    )
    # Named after the stage and task, so that each keeps its own.
    file = job.run / "prepared" / f"{job.entry.name}-{kind.name}-{digest[:16]}.arrow"

    def kept() -> Prepared[Any] | None:
        known = read_written(file, kind, tokenizer)
        return known if known is not None and known.digest == digest else None

    known = kept()
    if known is not None:
        return known
    if not is_main_process():
        return wait_for(file, kept)
    build = partial(_built, job, source, tokenizer, kind, lengths, digest, learn_all=learn_all)
    with others_wait_for(file):
        if job.dry_run and process_count() == 1:
            with TemporaryDirectory() as folder:  # rows that stay on the disk stay open
                return build(Path(folder) / file.name)
        return build(file)


def _built(
    job: Job,
    source: DataSource,
    tokenizer: Tokenizer,
    kind: Kind[Any],
    lengths: Mapping[str, Any],
    digest: str,
    file: Path,
    *,
    learn_all: bool,
) -> Prepared[Any]:
    """The rows, built, written into a file and read from it."""
    had_template, skipped = bool(tokenizer.chat_template), SkippedRows()
    data = recognise(source, mapping=job.data.mapping)
    guess = f"took {data.why}, guessed from names and contents; if that is wrong, say which"
    guesses = [f"{guess} in `data.mapping`"] if data.confidence == "guessed" else []

    def examples() -> Iterator[Example]:
        yield from read_examples(data, skipped=skipped)
        skipped.raise_if_too_many(data.path)

    with build_rows(
        examples(),
        Templater(tokenizer, learn_all=learn_all),
        Limits(lengths["seq_len"], lengths["truncation"], lengths["seed"]),
        holdout=lengths["holdout"],
        kind=kind,
        folder=file.parent,
    ) as built:
        summary = replace(built.summary, digest=digest).with_file_counts(
            rows=skipped.seen, dropped=skipped.total, notes=[*guesses, *skipped.lines()]
        )
        template = None if had_template else tokenizer.chat_template
        remove_prepared(file.parent, f"{job.entry.name}-{kind.name}")
        write_prepared(file, built, summary, chat_template=template)
    made = read_written(file, kind, tokenizer)
    if made is None:
        raise MachineNotReady(
            "what was written there is read back as something else",
            where=str(file),
            hint="check the disk, and run again",
        )
    return made


def sequences_of(job: Job, rows: Sequence[Row], model: Model) -> Sequence[tuple[Row, ...]]:
    """Rows as the sequences of the trainer: one row in each, or several packed ones."""
    return pack(rows, job.stage.seq_len) if job.stage.packing else Singles(rows)
