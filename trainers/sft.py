"""Supervised fine-tuning under any update scheme, on chat, prompt and completion, or raw text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from advisor.methods.kernels import is_flash
from trainers.evaluation.generation import TextEvaluator
from trainers.evaluation.loss import mean_loss
from trainers.evaluation.saved_result import Probe, probe_row
from trainers.job.job import Job
from trainers.job.types import Model, Tokenizer, Trainer
from trainers.rows import Prepared, Row
from trainers.rows.stage_rows import sequences_of
from trainers.stage import run as stage
from trainers.stage.objective import Objective
from trainers.stage.opening import prepare
from trainers.step import settings


class SFT(Objective[Row]):
    """Learns the answers of the examples, or every token of a text."""

    measures_loss = True

    def config_class(self) -> type:
        from trl import SFTConfig

        return SFTConfig

    def sequences(self, job: Job, rows: Sequence[Row], model: Model) -> Sequence[tuple[Row, ...]]:
        return sequences_of(job, rows, model)

    def trainer(
        self,
        job: Job,
        model: Model,
        tokenizer: Tokenizer,
        peft_config: Any,
        sequences: Sequence[Sequence[Row]],
        arguments: Mapping[str, Any],
    ) -> Trainer:
        from trainers.rows import PackedBatches, dataset_columns
        from trainers.rows.rows_dataset import rows_dataset
        from trainers.stage import trl_classes

        flat = job.stage.packing and is_flash(job.stage.attention)
        own = {
            "max_length": job.stage.seq_len,
            "packing": flat,
            "dataset_kwargs": {"skip_prepare_dataset": True},
        }
        return trl_classes.SFT(
            model=model,
            args=settings.build_config(self.config_class(), {**arguments, **own}, job),
            train_dataset=rows_dataset(
                sequences, partial(dataset_columns, lengths=job.stage.packing)
            ),
            processing_class=tokenizer,
            data_collator=(
                PackedBatches(tokenizer.pad_token_id) if job.stage.packing and not flat else None
            ),
            peft_config=peft_config,
        )

    def probe(self, job: Job, data: Prepared[Row], tokenizer: Tokenizer) -> Probe:
        return Probe(row=probe_row(data.train), pad_id=tokenizer.pad_token_id)

    def evaluator(
        self, job: Job, trainer: Trainer, data: Prepared[Row], fingerprint: str
    ) -> TextEvaluator:
        return TextEvaluator(job, trainer, data, fingerprint)

    def evaluation_loss(self, trainer: Trainer, rows: Sequence[Row]) -> float | None:
        return mean_loss(trainer, rows)

    def held_out_loss(self, trainer: Trainer, inputs: Sequence[Row]) -> tuple[float, float]:
        learned = sum(row.learned for row in inputs)
        return (mean_loss(trainer, inputs) or 0.0) * learned, learned


def objective_of(job: Job) -> Objective[Any]:
    """SFT; with `head: classes` a classifier, with `head: seq2seq` an encoder and a decoder."""
    if job.options.get("head") == "classes":
        from trainers.classes import Classifier

        return Classifier()
    if job.options.get("head") == "seq2seq":
        from trainers.seq2seq import Seq2Seq

        return Seq2Seq()
    return SFT()


def train(job: Job) -> None:
    """Train the stage, or measure two steps of it, and write the result into its folder."""
    stage.train(job, objective_of(job))


def check_rows(job: Job) -> None:
    """Prepare the rows. Raises InputError for data that cannot be trained on."""
    prepare(job, objective_of(job))
