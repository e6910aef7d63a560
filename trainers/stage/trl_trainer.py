"""The trainers of stages: what each of them adds to that of TRL (rows in our order, as they are
prepared, checkpoints without pickle, a count of tokens, and nothing reported to anyone), and those
with a loss of our own. Those that generate answers are in rollout_trainers.py.

A step of any of them goes this way: rows come in the order of `batches`, the collator of TRL puts
them together, `compute_loss` counts their tokens and hands them to the loss of the class.

Dimensions: N learned tokens of a micro-batch laid end to end.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from functools import cached_property, partial
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from trl import SFTTrainer

from advisor.ground.progress import waiting
from advisor.methods import update
from trainers.evaluation.loss import token_losses
from trainers.job import Model
from trainers.job.job import Job
from trainers.job.machine import is_main_process, wait_for_all
from trainers.keep.checkpoint_store import CheckpointStore
from trainers.keep.checkpoints import (
    random_states,
    restore_random_states,
    save_training,
    trained_parameters,
    unwrapped,
)
from trainers.keep.results import save_weights
from trainers.rollouts.transformers_engine import TransformersEngine
from trainers.rollouts.vllm_engine import OpenServer, engine_of
from trainers.rows.batches import Batches, Rounds, RowOrder
from trainers.rows.packing import REAL
from trainers.rows.row import IGNORED
from trainers.step.answer_loss import (
    PLACES,
    add_hidden_call,
    answer_log_probs,
    knowing_answers,
    learned_in,
    read_in,
    token_columns,
)
from trainers.step.sharding import divided_copy
from trainers.step.trained_dtype import float32_weights, train_in_float32


class StageTrainer(Trainer):
    """transformers' trainer, and beside one of TRL's trainers what is added to it.

    Args:
        dropout: That of the module: TRL switches off every dropout, but this is a key of the plan.
    """

    batches: Batches | None = None  # the order of the rows, set before the training
    checkpoint_store: CheckpointStore  # likewise
    engine: Any = None  # answers prompts, where a stage learns from answers of the model itself
    # The first label of a row that counts, where the loss is a mean over learned tokens; None: it
    # is one over rows.
    first_label: int | None = None

    def __init__(self, *args: Any, dropout: float = 0.0, **kwargs: Any) -> None:
        before = float32_weights(kwargs["model"])
        super().__init__(*args, **kwargs)
        # Tokens in this process so far; numbers on a GPU, which nobody waits for.
        self._read: Any = 0
        self._told: Any = 0  # of those read, what lines of metrics have counted
        self._learned: Any | None = None
        self._computed = self._largest_batch = 0
        # Also because TRL casts adapters of a quantised base to bfloat16.
        train_in_float32(self.model)
        for name, parameter in self.model.named_parameters():
            if name in before:
                parameter.data = before[name]
        for name, module in self.model.named_modules():
            # The frozen copy of the module has no dropout.
            if dropout and isinstance(module, torch.nn.Dropout) and "default" in name.split("."):
                module.p = dropout
        copy_to_reference(self.model)

    # ---------------------------------------------------------------- rows

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """The rows as they are: TRL would apply the chat template a second time."""
        return dataset

    def get_train_dataloader(self) -> Any:
        """The trainer's own, with rounds of micro-batches for several processes."""
        loader = super().get_train_dataloader()
        batches = self.batches
        if batches is not None and self.args.world_size > 1:
            shard = loader.batch_sampler  # accelerate's, which hands out what is in it in turn
            shard.even_batches = False
            shard.batch_sampler = Rounds(
                shard.batch_sampler.sampler,
                micro=self.args.per_device_train_batch_size,
                processes=self.args.world_size,
            )
        return loader

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        batches = self.batches
        if batches is None:
            return super()._get_train_sampler(*args, **kwargs)
        # A library that left rows out would shift all places behind them.
        dataset = args[0] if args else None
        assert dataset is None or len(dataset) == len(batches.lengths)
        steps = max(1, math.ceil(len(batches.lengths) / batches.per_step))
        # The epoch that begins, from the steps done, which a resumed run knows too.
        return RowOrder(batches, lambda: int(self.state.global_step // steps))

    # ---------------------------------------------------------------- the loss

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if self.model.training:
            self.count_tokens(read_in(inputs), inputs)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def count_tokens(self, read: Any, inputs: Mapping[str, Any]) -> None:
        """Add a micro-batch to the counts. Nothing waits for the GPU.

        Args:
            read: Its tokens without padding.
            inputs: The micro-batch, whose shapes hold the padding.
        """
        places = sum(inputs[name].numel() for name in token_columns(inputs))
        self._largest_batch = max(self._largest_batch, places)
        self.add_tokens(read, places, learned_in(inputs))

    def add_tokens(self, read: Any, computed: int, learned: Any | None) -> None:
        """Add so many to the counts: without padding, with it, and those in the loss."""
        self._read = self._read + read
        self._computed += computed
        if learned is not None:
            self._learned = learned if self._learned is None else self._learned + learned

    def all_tokens(self) -> dict[str, int | None]:
        """The counts since the training began, by their names in result.json (as if each process
        had counted as many as this one).
        """
        many = int(self.accelerator.num_processes)
        return {
            "tokens": int(self._read) * many,
            "computed_tokens": self._computed * many,
            "learned_tokens": None if self._learned is None else int(self._learned) * many,
            "largest_batch_tokens": self._largest_batch or None,
        }

    def take_token_count(self) -> int:
        """Tokens, without padding, trained on since the last call, in all processes (as if each saw
        as many as this one).
        """
        count = int(self._read - self._told) * int(self.accelerator.num_processes)
        self._told = self._read
        return count

    # ---------------------------------------------------------------- held-out rows

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """The loss of the held-out rows, in full micro-batches. Random numbers stay as they are."""
        states = random_states()
        found = super().evaluate(*args, **kwargs)
        restore_random_states(states)
        return found

    @cached_property
    def learned_per_row(self) -> float:
        """Learned tokens of a held-out row, on average."""
        labels = self.eval_dataset[:]["labels"]
        learned = sum(one != IGNORED for row in labels for one in row[self.first_label :])
        return float(learned / len(labels))

    def prediction_step(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
        """(the loss of a micro-batch, None, None): a mean over rows or, weighed by them, tokens."""
        weight: Any = 1.0
        if self.first_label is not None:
            learned = (inputs["labels"][:, self.first_label :] != IGNORED).sum()
            weight = learned / (self.args.eval_batch_size * self.learned_per_row)
        with torch.no_grad():
            loss = self.held_out_loss(model, inputs)
        return loss.detach() * weight, None, None

    def held_out_loss(self, model: Any, inputs: Any) -> Any:
        """The loss that is trained on, without the one that balances experts: that says nothing of
        the answers.
        """
        balances = getattr(self, "aux_loss_enabled", False)
        self.aux_loss_enabled = False
        try:
            return self.compute_loss(model, inputs)
        finally:
            self.aux_loss_enabled = balances

    # ---------------------------------------------------------------- checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write the checkpoint of this step, without pickle; `RunCallback.on_save`, which is called
        next, completes it. Weights have the plain layout, unless each process holds a part of them.
        """
        store, step = self.checkpoint_store, self.state.global_step
        if is_main_process():
            store.begin(step)
        wait_for_all()
        model, place = unwrapped(self), store.place(step)
        scaler = getattr(self.accelerator, "scaler", None)
        with store.writing(step), waiting("saving a checkpoint"):
            if is_main_process():
                self.state.save_to_json(str(place / TRAINER_STATE_NAME))
                if not self.is_fsdp_enabled:
                    save_weights(model, place)
            save_training(
                place, trained_parameters(model), self.optimizer, weights=self.is_fsdp_enabled,
                scheduler=self.lr_scheduler.state_dict(),
                scaler=scaler.state_dict() if scaler is not None else None,
            )  # fmt: skip

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Nothing: `Resuming` reads weights with all else, once there is an optimizer."""

    # ---------------------------------------------------------------- answers of the model itself

    def answer_by(
        self, job: Job, server: OpenServer | None, *, least: int, beside: Sequence[Any] = ()
    ) -> None:
        """Let the server answer from now on; without one, this process.

        Args:
            least: How many answers fit into memory in any case.
            beside: Further models on the device.
        """

        def policy() -> AbstractContextManager[Any]:
            return nullcontext(self.accelerator.unwrap_model(self.model))

        local = TransformersEngine(
            policy,
            models=lambda: [self.accelerator.unwrap_model(self.model), *beside],
            least=least,
            room=job.stage.micro_batch_size / job.entry.stage.micro_batch_size,
            # PEFT's generate goes past the forward that accelerate put autocast around.
            autocast=self.accelerator.autocast,
        )
        self.engine = engine_of(job, server, local, policy)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        with nullcontext() if self.engine is None else closing(self.engine):
            return super().train(*args, **kwargs)

    # ---------------------------------------------------------------- what is not wanted

    def _send_telemetry(self) -> None:
        """Report nothing to anyone."""

    def floating_point_ops(self, inputs: Any) -> int:
        """Zero: nobody reads the count, and it would visit every parameter on every micro-batch."""
        return 0


def with_ours(kind: type, keeps: Sequence[str]) -> type:
    """A trainer of TRL with what `StageTrainer` adds to it; one of ours as it is.

    Args:
        keeps: Methods of TRL's that are not replaced.
    """
    if issubclass(kind, StageTrainer):
        return kind
    own = {name: getattr(kind, name) for name in keeps}
    return type(kind.__name__, (StageTrainer, kind), own)


# -------------------------------------------------------------------- losses of our own


class SFT(StageTrainer, SFTTrainer):
    """Learns the next token of answers or texts: a mean over all learned tokens of an optimizer
    step.

    TRL's own step also computes entropy and token accuracy of every micro-batch, asks a GPU which
    tokens are learned, and without Triton (on the CPU) scores every position in tiles. None of that
    is needed here: the loss and its gradients are the same, and the step is faster.
    """

    first_label = 1  # what no token stands before is not predicted

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        add_hidden_call(base)
        self.data_collator: Any = knowing_answers(self.data_collator)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        real, places_N = inputs.pop(REAL, None), inputs.pop(PLACES, None)
        trains = self.model.training
        if trains:
            self.count_tokens(read_in(inputs) if real is None else real, inputs)
            if self.args.label_smoothing_factor != 0:
                return SFTTrainer.compute_loss(
                    self, model, inputs, num_items_in_batch=num_items_in_batch
                )
        asked = {name: value for name, value in inputs.items() if name != "labels"}
        if self.aux_loss_enabled and trains:
            asked["output_router_logits"] = True
        score = partial(answer_log_probs, labels_BT=inputs["labels"], places_N=places_N)
        log_probs_N, balance = model(**asked, at_head=score)
        losses_N = -log_probs_N
        if self.args.loss_type == "dft" and trains:
            losses_N = losses_N * log_probs_N.exp().detach()
        return self.mean_loss(losses_N, balance, num_items_in_batch)

    def mean_loss(self, losses_N: Any, balance: Any | None, num_items_in_batch: Any | None) -> Any:
        """The loss of a micro-batch, of which accumulated steps and processes make the mean
        over all learned tokens.

        Args:
            losses_N: Of each learned token.
            balance: The loss that balances experts; None if there is none.
            num_items_in_batch: Learned tokens of the whole batch, so that accumulation does not
                change the result; None: the micro-batch counts alone.
        """
        accumulated = num_items_in_batch is not None
        learned = num_items_in_batch if accumulated else len(losses_N)
        loss = losses_N.sum() / torch.as_tensor(learned, device=losses_N.device).clamp(min=1)
        if self.args.average_tokens_across_devices and accumulated:
            loss = loss * self.accelerator.num_processes
        if balance is not None:
            # A mean over the tokens of the micro-batch: accumulated steps share it, and
            # processes average it.
            steps = self.current_gradient_accumulation_steps if accumulated else 1
            loss = loss + self.router_aux_loss_coef * balance / steps
        return loss


class Classes(StageTrainer):
    """Learns the class of a text: a mean over the rows of a micro-batch, which transformers divides
    by grad_accum unless it takes a model whose forward has **kwargs for one that does so itself.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False


class Seq2Seq(StageTrainer):
    """Learns to write the output of an input: a mean over the tokens of an optimizer step, however
    it is divided into micro-batches.
    """

    first_label = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Then it counts the tokens of all micro-batches of a step, and divides by nothing else.
        self.model_accepts_loss_kwargs = True

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        mask, labels = inputs["attention_mask"], inputs["labels"]
        written = (labels != IGNORED).sum()
        if self.model.training:  # tokens that are read, and that are written
            self.add_tokens(mask.sum() + written, mask.numel() + labels.numel(), written)
        smoothing = self.args.label_smoothing_factor if self.model.training else 0.0
        total = token_losses(model, inputs, smoothing=smoothing).sum()
        if num_items_in_batch is None:
            return total / written
        if self.args.average_tokens_across_devices:
            total = total * self.accelerator.num_processes
        return total / num_items_in_batch


# -------------------------------------------------------------------- reference models


def copy_to_reference(model: Model) -> None:
    """Make TRL's frozen copy of an adapter, its reference model, equal to the adapter, and keep it
    frozen.

    TRL copies parameters with `.default.` inside their names; those of embeddings end with it and
    would stay random.
    """
    if "ref" not in getattr(model, "peft_config", {}):
        return
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        parts = name.split(".")
        if "default" in parts:
            twin = parameters[".".join("ref" if part == "default" else part for part in parts)]
            twin.data.copy_(parameter.data)
            twin.requires_grad_(False)


def reference_model(job: Job, model: Model, config: Any) -> Any | None:
    """The reference model: a frozen copy of the model as it is now; None if TRL can switch the
    module off instead.

    TRL would load it again by the name in its config, but after an earlier stage's module was
    merged that is the name of the base.
    """
    if update(job.stage.update).is_module or job.stage.trl.get("precompute_ref_log_probs"):
        return None
    return frozen_copy(model, config)


def frozen_copy(model: Any, config: Any = None) -> Any:
    """A copy of the model as it is now that nothing trains.

    Args:
        config: Of the trainer: it says whether the model is going to be divided.
    """
    if getattr(config, "fsdp", None):
        return divided_copy(model, config)
    frozen = copy.deepcopy(model)
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    return frozen.eval()
