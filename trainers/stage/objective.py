"""What an objective does its own way.

An objective is one file: a class of a few attributes (what it trains on, which class of TRL trains
it and how its result is evaluated), with what is special about it. stage/run.py trains it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pkgutil import resolve_name
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

from advisor.ground.errors import Fault
from advisor.record.stage import Check, RewardRecord, SavedFile
from trainers.evaluation import Evaluator, Subject
from trainers.evaluation.saved_result import Probe, probe_row
from trainers.job.job import Job
from trainers.job.types import Device, Model, Tokenizer, Trainer
from trainers.keep import results
from trainers.rows import ANSWERS, Kind, Prepared
from trainers.rows.row import PreparedRow
from trainers.rows.sequences import Columns, Groups, copied_dataset, flattened, rows_dataset
from trainers.rows.stage_rows import prepare_rows
from trainers.step import settings
from trainers.updates import Update

Item = TypeVar("Item", bound=PreparedRow)
EvaluatedBy: TypeAlias = Callable[[Subject[Any]], Evaluator]


@dataclass(frozen=True, kw_only=True)
class Opened(Generic[Item]):
    """A stage whose model is not loaded yet."""

    job: Job
    versions: Mapping[str, str]  # of the libraries
    device: Device
    threads: int  # that torch computes with
    update: Update
    tokenizer: Tokenizer
    data: Prepared[Item]


@dataclass(frozen=True, kw_only=True)
class Build(Generic[Item]):
    """What a trainer is built from."""

    job: Job
    model: Model  # what `Objective.load` returned
    tokenizer: Tokenizer  # with the chat template that the rows were prepared with
    # Of the module that the trainer puts on the model; None if the weights are trained, or the
    # model comes with the module of an earlier stage.
    peft_config: Any
    sequences: Sequence[Sequence[Item]]  # of `Objective.sequences`, or a part of them
    held_out: Sequence[Item] = ()  # rows that the trainer evaluates on, in full micro-batches
    arguments: Mapping[str, Any]  # for the config class: what every objective has in common

    @property
    def rows(self) -> Sequence[Item]:
        """The rows of all sequences, one after the other."""
        return flattened(self.sequences)

    @property
    def dropout(self) -> float:
        """Of the module, which TRL switches off with all others."""
        return float(self.job.options.get("dropout", 0.0))

    def config(self, config_class: type, own: Mapping[str, Any]) -> Any:
        """The config of the trainer: the common arguments, the objective's own, and `trl:`.

        Raises InputError for values of `trl:` that it refuses.
        """
        return settings.build_config(config_class, {**self.arguments, **own}, self.job)

    def dataset(self, rows: Sequence[Any], columns: Columns) -> Any:
        """The rows as the data set of the trainer."""
        # TRL puts the log-probabilities of the reference model into columns beside the rows.
        is_copied = self.job.stage.trl.get("precompute_ref_log_probs")
        return (copied_dataset if is_copied else rows_dataset)(rows, columns)


class Objective(Generic[Item]):
    """What one objective does its own way, with the rows that it trains on as `Item`.

    The defaults are those of a language model that TRL trains on rows of tokens.
    """

    # Where the classes are, as "module:name": they import torch, and only a stage that is trained
    # needs them.
    config: ClassVar[str]  # TRL's or transformers' config, whose fields `trl:` may set
    trained_by: ClassVar[str]  # of stage/trl_classes.py and its like
    kind: Kind[Any] = ANSWERS
    columns: Callable[[Sequence[Any]], Mapping[str, Sequence[Any]]]  # rows as the trainer's columns
    evaluated_by: EvaluatedBy | None = None
    head: str = "CausalLM"  # of the model, as in transformers' AutoModelFor...
    writes = True  # the result generates text (a reward model and a classifier do not)
    note = ""  # what users of the objective should know
    # of the trainer's logs, what goes into metrics.jsonl beside the loss
    logged: Sequence[str] = ()
    balances_experts = True  # its trainer can add the loss that balances the experts of a mixture
    # of an optimizer step, so many micro-batches show its peak of memory in a dry run; None: all
    measured_batches: int | None = 2
    resumes_itself = False  # its trainer's `train` puts back the checkpoint that it is told
    measures_loss = False  # whether there is a loss of held-out rows to measure during training

    # ------------------------------------------------------------------ before the model is loaded

    def config_class(self) -> type:
        """The class that `config` names."""
        found: type = resolve_name(self.config)
        return found

    def faults(self, job: Job) -> list[Fault]:
        """What in the stage this objective cannot do."""
        return []

    def seq_len(self, job: Job) -> int | None:
        """The longest row, in tokens; None: the stage's seq_len."""
        return None

    def rows(self, job: Job, tokenizer: Tokenizer) -> Prepared[Item]:
        """The data, prepared. Raises InputError for data that cannot be trained on."""
        data: Prepared[Item] = prepare_rows(job, tokenizer, self.kind, seq_len=self.seq_len(job))
        return replace(data, notes=(*data.notes, self.note)) if self.note else data

    def depends_on(self, job: Job, data: Prepared[Item]) -> Mapping[str, str]:
        """What checkpoints depend on beside settings, base model and rows: part -> digest."""
        return {}

    # ------------------------------------------------------------------ the model and its trainer

    def load(self, opened: Opened[Item]) -> Model:
        """The model to train. Raises InputError if it does not fit the stage."""
        from trainers.start.loading import load_model

        return load_model(opened.job, opened.device, opened.update)

    def sequences(self, job: Job, rows: Sequence[Item], model: Model) -> Sequence[tuple[Item, ...]]:
        """The rows as the trainer's sequences: one row in each, or several packed ones."""
        return Groups(rows)

    def own_arguments(self, job: Job) -> dict[str, Any]:
        """What this objective alone sets in the config."""
        return {}

    def trainer_class(self) -> Any:
        """The class that `trained_by` names."""
        return resolve_name(self.trained_by)

    def dataset(self, build: Build[Item]) -> Any:
        """The data set of the trainer."""
        return build.dataset(build.rows, self.columns)

    def trainer_parts(self, build: Build[Item], config: Any) -> dict[str, Any]:
        """What the trainer gets beside its model, config, data set and tokenizer."""
        return {"peft_config": build.peft_config}

    def trainer(self, build: Build[Item]) -> Trainer:
        """The trainer, without callbacks."""
        config = build.config(self.config_class(), self.own_arguments(build.job))
        common = {
            "model": build.model,
            "args": config,
            "train_dataset": self.dataset(build),
            "processing_class": build.tokenizer,
            "dropout": build.dropout,
        }
        if build.held_out:
            alone = replace(build, sequences=Groups(build.held_out))
            common["eval_dataset"] = self.dataset(alone)
        trainer: Trainer = self.trainer_class()(**common | self.trainer_parts(build, config))
        return trainer

    # ------------------------------------------------------------------ what it has learned

    def probe(self, job: Job, data: Prepared[Item], tokenizer: Tokenizer) -> Probe:
        """The row that the checks on the saved result compare models on."""
        return Probe(row=probe_row(data.train), pad_id=tokenizer.pad_token_id, head=self.head)

    def evaluator(self, subject: Subject[Item]) -> Evaluator | None:
        """Measures the model before and after; None: nothing is compared."""
        return None if self.evaluated_by is None else self.evaluated_by(subject)

    def evaluation_loss(self, trainer: Trainer, rows: Sequence[Item]) -> float | None:
        """The loss of one evaluation batch, for a dry run to measure its memory; None if this
        objective has none.

        Args:
            rows: On which the trainer evaluates.
        """
        return trainer.evaluate()["eval_loss"] if self.measures_loss else None

    def save(
        self, job: Job, trainer: Trainer, model: Model, tokenizer: Tokenizer
    ) -> dict[str, SavedFile]:
        """Write the result into the stage's folder; its files. May raise TrainingFailed."""
        return results.save_result(model, tokenizer, job.output)

    def about_rewards(self, job: Job) -> tuple[tuple[RewardRecord, ...], list[Check]]:
        """(what became of each of several rewards, what was noticed about the answers that were
        trained on), once training is over.
        """
        return (), []

    def outcome(self, job: Job) -> Mapping[str, Any]:
        """Further fields of the stage's result, once training is over."""
        return {}

    def resolved(self, job: Job) -> Mapping[str, Any]:
        """Fields of the settings that were really used, in place of the usual ones."""
        return {}


class WithHead(Objective[Item]):
    """A model with a head that this stage sets up, trained by transformers' own trainer."""

    config = "transformers:TrainingArguments"
    head_name: ClassVar[str]  # in a plan
    why_not_packed: ClassVar[str]

    def faults(self, job: Job) -> list[Fault]:
        """It cannot pack rows, or go on from another stage."""
        at, found = f"stage {job.stage.name}:", []
        if job.stage.packing:
            allowed = f"packing: false with head: {self.head_name}"
            what = f"{at} packing: {self.why_not_packed}"
            found.append(Fault(where=at, what=what, allowed=allowed))
        if job.start is not None:
            what = f"{at} head: {self.head_name} starts from the plan's model"
            found.append(Fault(where=at, what=what, allowed="one stage alone"))
        return found

    def trainer_parts(self, build: Build[Item], config: Any) -> dict[str, Any]:
        """The model with its module, which only TRL's trainers put there themselves."""
        from peft import get_peft_model

        if build.peft_config is None:
            return {}
        return {"model": get_peft_model(build.model, build.peft_config)}
