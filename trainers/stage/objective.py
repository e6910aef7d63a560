"""What an objective does its own way, and the recipes, which are found by the objective's name.

An objective is one file: a class of a few attributes (what it trains on, which class of TRL trains
it and how its result is evaluated), with what is special about it. stage/run.py trains it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

import trainers
from advisor.ground.errors import Fault, InputError, unknown_name
from advisor.ground.files import text_of
from advisor.methods import methods
from advisor.plan.vllm import unservable
from advisor.record.content import folder_digest
from advisor.record.stage import SavedFile
from trainers.evaluation import Evaluator, Subject
from trainers.evaluation.pairs import RewardEvaluator
from trainers.evaluation.saved_result import Probe, probe_row
from trainers.job import Device, Model, Tokenizer, Trainer
from trainers.job.job import Job
from trainers.keep import results
from trainers.keep.checkpoint_store import fingerprint
from trainers.rewards.scoring import Rewards
from trainers.rewards.sources import (
    build_rewards,
    model_folders,
    reward_faults,
    reward_files,
    source_note,
)
from trainers.rewards.watch import Watch, about_rewards
from trainers.rollouts.vllm_engine import OpenServer, open_rollouts
from trainers.rows import ANSWERS, Kind, Prepared
from trainers.rows.conversation import PROMPTS, Prompt
from trainers.rows.row import PreparedRow
from trainers.rows.sequences import Columns, Groups, copied_dataset, flattened, rows_dataset
from trainers.rows.stage_rows import prepare_rows
from trainers.start.loading import load_model
from trainers.step import settings
from trainers.updates import Update

Item = TypeVar("Item", bound=PreparedRow)
EvaluatedBy: TypeAlias = Callable[[Subject[Any]], Evaluator]
SHORTEST_PROMPT = 8  # tokens that an answer has to leave for it within seq_len


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
    trained_by: ClassVar[str]  # a trainer of TRL's, or one of ours
    keeps: Sequence[str] = ()  # methods of TRL's trainer that ours do not replace
    orders_rows = True  # False: TRL's own order stays (KTO's pairs of rows, answers of GRPO)
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
    has_reference = False  # its trainer compares with the model as it was before the stage
    puts_module = True  # its trainer puts the module on the model; else that is done before
    asks_teacher = False  # whose answers are a part of its rows

    @classmethod
    def of(cls, job: Job) -> Objective[Any]:
        """The objective of a stage: this one, or another that the stage's keys ask for."""
        return cls()

    # ------------------------------------------------------------------ before the model is loaded

    def config_class(self) -> type:
        """The class that `config` names."""
        return resolve_name(self.config)

    def faults(self, job: Job) -> list[Fault]:
        """What in the stage this objective cannot do."""
        return []

    def rows(self, job: Job, tokenizer: Tokenizer) -> Prepared[Item]:
        """The data, prepared. Raises InputError for data that cannot be trained on."""
        data: Prepared[Item] = prepare_rows(job, tokenizer, self.kind)
        return replace(data, notes=(*data.notes, self.note)) if self.note else data

    def depends_on(self, job: Job, data: Prepared[Item]) -> Mapping[str, str]:
        """What checkpoints depend on beside settings, base model and rows: part -> digest."""
        return {}

    # ------------------------------------------------------------------ the model and its trainer

    def load(self, opened: Opened[Item]) -> Model:
        """The model to train. Raises InputError if it does not fit the stage."""
        return load_model(opened.job, opened.device, opened.update)

    def sequences(self, job: Job, rows: Sequence[Item], model: Model) -> Sequence[tuple[Item, ...]]:
        """The rows as the trainer's sequences: one row in each, or several packed ones."""
        return Groups(rows)

    def own_arguments(self, job: Job) -> dict[str, Any]:
        """What this objective alone sets in the config."""
        return {}

    def dataset(self, build: Build[Item]) -> Any:
        """The data set of the trainer."""
        return build.dataset(build.rows, self.columns)

    def trainer_parts(self, build: Build[Item], config: Any) -> dict[str, Any]:
        """What the trainer gets beside its config, data set and tokenizer."""
        parts: dict[str, Any] = {}
        if self.puts_module:
            parts["peft_config"] = build.peft_config
        elif build.peft_config is not None:
            from peft import get_peft_model

            parts["model"] = get_peft_model(build.model, build.peft_config)
        if self.has_reference:
            from trainers.stage.trl_trainer import reference_model

            parts["ref_model"] = reference_model(build.job, build.model, config)
        return parts

    def trainer(self, build: Build[Item]) -> Trainer:
        """The trainer, without callbacks. Raises InputError for values of `trl:` it refuses."""
        from trainers.stage.trl_trainer import with_ours

        job = build.job
        arguments = {**build.arguments, **self.own_arguments(job)}
        config = settings.build_config(self.config_class(), arguments, job)
        given = {
            "model": build.model,
            "args": config,
            "train_dataset": self.dataset(build),
            "processing_class": build.tokenizer,
            # Of the module, which TRL switches off with all others.
            "dropout": float(job.options.get("dropout", 0.0)),
        }
        if build.held_out:
            alone = replace(build, sequences=Groups(build.held_out))
            given["eval_dataset"] = self.dataset(alone)
        given |= self.trainer_parts(build, config)
        return with_ours(resolve_name(self.trained_by), self.keeps)(**given)

    # ------------------------------------------------------------------ what it has learned

    def probe(self, job: Job, data: Prepared[Item], tokenizer: Tokenizer) -> Probe:
        """The row that the checks on the saved result compare models on."""
        return Probe(row=probe_row(data.train), pad_id=tokenizer.pad_token_id, head=self.head)

    def evaluator(self, subject: Subject[Item]) -> Evaluator | None:
        """Measures the model before and after; None: nothing is compared."""
        return None if self.evaluated_by is None else self.evaluated_by(subject)

    def save(
        self, job: Job, trainer: Trainer, model: Model, tokenizer: Tokenizer
    ) -> dict[str, SavedFile]:
        """Write the result into the stage's folder; its files. May raise TrainingFailed."""
        return results.save_result(model, tokenizer, job.output)

    def outcome(self, job: Job) -> dict[str, Any]:
        """Further fields of the stage's result, once training is over; `checks` are what was
        noticed about the answers that were trained on.
        """
        return {}

    def resolved(self, job: Job) -> Mapping[str, Any]:
        """Fields of the settings that were really used, in place of the usual ones."""
        return {}


class WithHead(Objective[Item]):
    """A model with a head that this stage sets up, trained by transformers' own trainer."""

    config = "transformers:TrainingArguments"
    puts_module = False
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


class Rewarded(Objective[Prompt]):
    """Learns from answers of the model itself, which rewards score."""

    kind = PROMPTS
    orders_rows = False  # a prompt stands once for each of its answers
    rewards: Rewards
    watch: Watch  # set by the trainer
    server: OpenServer | None  # that generates the answers; None: this process

    def faults(self, job: Job) -> list[Fault]:
        served = unservable(job.stage, job.options)
        return [*reward_faults(job), *served, *room_faults(job)]

    def rows(self, job: Job, tokenizer: Tokenizer) -> Prepared[Prompt]:
        room = job.stage.seq_len - int(job.options["response_tokens"])
        data: Prepared[Prompt] = prepare_rows(job, tokenizer, PROMPTS, seq_len=room)
        note = source_note(job, (*data.train, *data.holdout))
        return replace(data, notes=(*data.notes, note)) if note else data

    def open_rewards(self, opened: Opened[Prompt], *, scored_elsewhere: Path | None = None) -> None:
        """Ask for the server and the rewards: before a model is loaded, because the one may be gone
        and the other be refused.
        """
        prompts = (*opened.data.train, *opened.data.holdout)
        self.server = open_rollouts(opened.job)
        self.rewards = build_rewards(
            opened.job, opened.tokenizer, prompts, opened.device, scored_elsewhere=scored_elsewhere
        )
        self.logged = (*type(self).logged, *self.rewards.logs)

    def evaluator(self, subject: Subject[Prompt]) -> RewardEvaluator:
        return RewardEvaluator(subject, self.rewards)

    def depends_on(self, job: Job, data: Prepared[Prompt]) -> dict[str, str]:
        """What gives the reward."""
        folders = model_folders(job, (*data.train, *data.holdout))
        texts = [text_of(file) for file in reward_files(job)]
        return {"reward": fingerprint([*map(folder_digest, folders), *texts])}

    def outcome(self, job: Job) -> dict[str, Any]:
        records, found = about_rewards(job, self.rewards.parts)
        return {"rewards": records or None, "checks": (*found, *self.watch.checks())}


def room_faults(job: Job) -> list[Fault]:
    """That an answer of `response_tokens` leaves no room for a prompt, if it does not."""
    stage, answer = job.stage, int(job.options["response_tokens"])
    if answer + SHORTEST_PROMPT <= stage.seq_len:
        return []
    what = f"response_tokens {answer} leave no room for a prompt within seq_len {stage.seq_len}"
    hint = "raise seq_len, or lower response_tokens"
    return [Fault(where=f"stage {stage.name}", what=what, hint=hint)]


# --------------------------------------------------------------------------- recipes


def load_recipe(name: str) -> Any:
    """The module of an objective, which has a function `train`.

    Raises InputError if there is no such objective, or if its module is no recipe.
    """
    modules = {one: f"{trainers.__name__}.{one}" for one in sorted(methods().objectives)}
    known = [one for one, module in modules.items() if find_spec(module) is not None]
    if name not in known:
        raise InputError(faults=[unknown_name("objective", name, known, at="python -m trainers")])
    module = import_module(modules[name])
    if not hasattr(module, "train"):
        raise InputError(
            "a recipe needs a function train(job), and this module has none",
            where=str(module.__file__),
        )
    return module
