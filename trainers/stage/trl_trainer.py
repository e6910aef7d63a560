"""What every trainer of a stage adds to that of TRL: rows in our order, as they are prepared,
checkpoints without pickle, a count of tokens, and nothing reported to anyone.

trl_classes.py holds the trainers themselves, one class for each of TRL's. A step of any of them
goes this way: rows come in the order of `batches`, the collator of TRL puts them together,
`compute_loss` counts their tokens and hands them to the loss of the class.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from transformers import Trainer

from advisor.methods import update
from trainers.job.job import Job
from trainers.job.types import Model
from trainers.keep.checkpoints import SafeCheckpoints, random_states, restore_random_states
from trainers.rows.batches import Batches, Rounds, RowOrder
from trainers.rows.row import IGNORED
from trainers.step.sharding import divided_copy
from trainers.step.token_counting import Tokens, learned_in, read_in, token_columns
from trainers.step.trained_dtype import float32_weights, train_in_float32


class StageTrainer(SafeCheckpoints, Trainer):
    """transformers' trainer, and beside one of TRL's trainers what is added to it.

    Args:
        dropout: That of the module: TRL switches off every dropout, but this is a key of the plan.
    """

    batches: Batches | None = None  # the order of the rows, set before the training
    orders_rows = True  # False: TRL's own order stays (KTO's pairs of rows, answers of GRPO)
    # The first label of a row that counts, where the loss is a mean over learned tokens; None: it
    # is one over rows.
    first_label: int | None = None

    def __init__(self, *args: Any, dropout: float = 0.0, **kwargs: Any) -> None:
        before = float32_weights(kwargs["model"])
        super().__init__(*args, **kwargs)
        self._tokens_seen: Any = 0  # since the last line of metrics
        self._all_tokens: tuple[Any, int, Any] = (0, 0, None)  # read, computed, learned
        self._largest_batch = 0
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
        self._tokens_seen = self._tokens_seen + read
        before, all_computed, all_learned = self._all_tokens
        if learned is not None:  # asking a count whether it is zero would wait for the GPU
            all_learned = learned if all_learned is None else all_learned + learned
        self._all_tokens = (before + read, all_computed + computed, all_learned)

    def all_tokens(self) -> Tokens:
        """The counts since the training began (as if each process had counted as many as this
        one).
        """
        many = int(self.accelerator.num_processes)
        read, computed, learned = self._all_tokens
        return Tokens(
            int(read) * many,
            computed * many,
            None if learned is None else int(learned) * many,
            self._largest_batch or None,
        )

    def take_token_count(self) -> int:
        """Tokens, without padding, trained on since the last call, in all processes (as if each saw
        as many as this one).
        """
        count = int(self._tokens_seen) * int(self.accelerator.num_processes)
        self._tokens_seen = 0
        return count

    # ---------------------------------------------------------------- held-out rows

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """The loss of the held-out rows, in full micro-batches. Random numbers stay as they are."""
        states = random_states()
        if self.first_label is not None:
            places = range(len(self.eval_dataset))
            labels = [self.eval_dataset[row]["labels"][self.first_label :] for row in places]
            learned = sum(one != IGNORED for row in labels for one in row)
            self._learned_per_row = learned / len(labels)
        found = super().evaluate(*args, **kwargs)
        restore_random_states(states)
        return found

    def prediction_step(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
        """(the loss of a micro-batch, None, None): a mean over rows or, weighed by them, tokens."""
        weight: Any = 1.0
        if self.first_label is not None:
            learned = (inputs["labels"][:, self.first_label :] != IGNORED).sum()
            weight = learned / (self.args.eval_batch_size * self._learned_per_row)
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

    # ---------------------------------------------------------------- what is not wanted

    def _send_telemetry(self) -> None:
        """Report nothing to anyone."""

    def floating_point_ops(self, inputs: Any) -> int:
        """Zero: nobody reads the count, and it would visit every parameter on every micro-batch."""
        return 0


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
