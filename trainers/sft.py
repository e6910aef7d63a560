"""Supervised fine-tuning under any update scheme, on chat, prompt and completion, or raw text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from advisor.methods.kernels import is_flash
from trainers.evaluation.generation import TextEvaluator
from trainers.heads import Classifier, Seq2Seq
from trainers.job import Model, Tokenizer
from trainers.job.job import Job
from trainers.rows import PackedBatches, Prepared, Row, dataset_columns, pack
from trainers.rows.sequences import Groups
from trainers.stage.objective import Build, EvaluatedBy, Objective
from trainers.stage.run import trains
from trainers.teachers.replay import replayed


class SFT(Objective[Row]):
    """Learns the answers of the examples, or every token of a text."""

    config = "trl:SFTConfig"
    trained_by = "trainers.stage.trl_trainer:SFT"
    evaluated_by: EvaluatedBy | None = TextEvaluator
    measures_loss = True

    @classmethod
    def of(cls, job: Job) -> Objective[Any]:
        """SFT; with `head: classes` a classifier, with `head: seq2seq` an encoder and a decoder."""
        heads: dict[Any, type[Objective[Any]]] = {"classes": Classifier, "seq2seq": Seq2Seq}
        found = heads.get(job.options.get("head"), cls)()
        if isinstance(job.options.get("replay"), dict):  # the base itself answers
            found.asks_teacher = True
        return found

    def rows(self, job: Job, tokenizer: Tokenizer) -> Prepared[Row]:
        """The data, prepared, with general rows mixed in if the stage has a `replay`."""
        return replayed(job, tokenizer, self.own_rows)

    def own_rows(self, job: Job, tokenizer: Tokenizer) -> Prepared[Row]:
        """The data alone."""
        return super().rows(job, tokenizer)

    def sequences(self, job: Job, rows: Sequence[Row], model: Model) -> Sequence[tuple[Row, ...]]:
        return pack(rows, job.stage.seq_len) if job.stage.packing else Groups(rows)

    def own_arguments(self, job: Job) -> dict[str, Any]:
        return {
            "max_length": job.stage.seq_len,
            "packing": job.stage.packing and is_flash(job.stage.attention),
            "dataset_kwargs": {"skip_prepare_dataset": True},
        }

    def dataset(self, build: Build[Row]) -> Any:
        columns = partial(dataset_columns, lengths=build.job.stage.packing)
        return build.dataset(build.sequences, columns)

    def trainer_parts(self, build: Build[Row], config: Any) -> dict[str, Any]:
        stage = build.job.stage
        packs = stage.packing and not config.packing  # flash attention packs by itself
        collator = PackedBatches(build.tokenizer.pad_token_id) if packs else None
        return {"peft_config": build.peft_config, "data_collator": collator}


train = trains(SFT)
