"""What an objective does its own way.

An objective is one file: it says what it trains on, how its trainer is built and how its result is
evaluated. stage.py trains it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

from advisor.ground.errors import Fault
from advisor.record.stage import Check, RewardRecord, SavedFile
from trainers.evaluation import Evaluator
from trainers.evaluation.saved_result import Probe
from trainers.job.job import Job
from trainers.job.types import Device, Model, Tokenizer, Trainer
from trainers.keep import checkpoints
from trainers.rows import ANSWERS, Kind, Prepared
from trainers.rows.prepared import PreparedRow
from trainers.rows.sequences import Singles
from trainers.rows.stage_rows import prepare_rows
from trainers.updates import Update

Item = TypeVar("Item", bound=PreparedRow)


class Objective(ABC, Generic[Item]):
    """What one objective does its own way, with the rows that it trains on as `Item`.

    The defaults are those of a language model trained on rows of tokens.
    """

    kind: Kind[Any] = ANSWERS
    writes = True  # the result generates text (a reward model and a classifier do not)
    # of the trainer's logs, what goes into metrics.jsonl beside the loss
    logged: Sequence[str] = ()
    measures_loss = False  # whether there is a loss of held-out rows to measure during training

    def head_faults(self, job: Job, head: str, *, why_not_packed: str) -> list[Fault]:
        """What a stage with a head of its own cannot do: pack rows, or go on from another stage."""
        at, found = f"stage {job.stage.name}:", []
        if job.stage.packing:
            allowed = f"packing: false with head: {head}"
            found.append(Fault(where=at, what=f"{at} packing: {why_not_packed}", allowed=allowed))
        if job.start is not None:
            what = f"{at} head: {head} starts from the plan's model"
            found.append(Fault(where=at, what=what, allowed="one stage alone"))
        return found

    @abstractmethod
    def config_class(self) -> type:
        """TRL's (or transformers') config class, whose fields `trl:` may set."""

    def faults(self, job: Job) -> list[Fault]:
        """What in the stage this objective cannot do."""
        return []

    def seq_len(self, job: Job) -> int | None:
        """The longest row, in tokens; None: the stage's seq_len."""
        return None

    def rows(self, job: Job, tokenizer: Tokenizer) -> Prepared[Item]:
        """The data, prepared. Raises InputError for data that cannot be trained on."""
        return prepare_rows(job, tokenizer, self.kind, seq_len=self.seq_len(job))

    def load(
        self, job: Job, device: Device, update: Update, tokenizer: Tokenizer, data: Prepared[Item]
    ) -> Model:
        """The model to train. Raises InputError if it does not fit the stage."""
        from trainers.start.loading import load_model

        return load_model(job, device, update)

    def sequences(self, job: Job, rows: Sequence[Item], model: Model) -> Sequence[tuple[Item, ...]]:
        """The rows as the trainer's sequences: one row in each, or several packed ones."""
        return Singles(rows)

    @abstractmethod
    def trainer(
        self,
        job: Job,
        model: Model,
        tokenizer: Tokenizer,
        peft_config: Any,
        sequences: Sequence[Sequence[Item]],
        arguments: Mapping[str, Any],
    ) -> Trainer:
        """The trainer, without callbacks.

        Args:
            job: The stage to train.
            model: What `load` returned.
            tokenizer: With the chat template that the rows were prepared with.
            peft_config: The config of the module that the trainer puts on the model; None if the
                weights are trained, or the model comes with the module of an earlier stage.
            sequences: What `sequences` returned, or a part of it.
            arguments: For the config class, what every objective has in common.
        """

    @abstractmethod
    def probe(self, job: Job, data: Prepared[Item], tokenizer: Tokenizer) -> Probe:
        """The row that the checks on the saved result compare models on."""

    def evaluator(
        self, job: Job, trainer: Trainer, data: Prepared[Item], fingerprint: str
    ) -> Evaluator | None:
        """Measures the model before and after; None: nothing is compared.

        Args:
            fingerprint: Of everything that the training depends on: an evaluation of the base with
                another one does not count.
        """
        return None

    def depends_on(self, job: Job, data: Prepared[Item]) -> Mapping[str, str]:
        """What checkpoints depend on beside settings, base model and rows: part -> digest."""
        return {}

    def evaluation_loss(self, trainer: Trainer, rows: Sequence[Item]) -> float | None:
        """The loss of one evaluation batch, for a dry run to measure its memory; None if this
        objective has none.
        """
        return None

    def held_out_inputs(self, trainer: Trainer, rows: Sequence[Item]) -> Any:
        """A micro-batch of held-out rows as `held_out_loss` takes it. Called before training."""
        return rows

    def held_out_loss(self, trainer: Trainer, inputs: Any) -> tuple[float, float]:
        """(the sum of the losses of a micro-batch, how many were added up): the loss that is
        trained on, on rows that are not. It must leave no trace in the training, and wait for no
        other process. Called only if `measures_loss`.
        """
        raise NotImplementedError

    def save(
        self, job: Job, trainer: Trainer, model: Model, tokenizer: Tokenizer
    ) -> dict[str, SavedFile]:
        """Write the result into the stage's folder; its files. May raise TrainingFailed."""
        return checkpoints.save_result(model, tokenizer, job.output)

    def about_rewards(self, job: Job) -> tuple[tuple[RewardRecord, ...], list[Check]]:
        """(what became of each of several rewards, what was noticed about the answers that were
        trained on), once training is over.
        """
        return (), []
