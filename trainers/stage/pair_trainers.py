"""The trainers of pairs that TRL calls experimental: ORPO, and CPO for its loss of SimPO.

Both would tokenise pairs themselves; here they read `tokenised_columns`.
"""

from __future__ import annotations

from typing import Any

from peft import get_peft_model, prepare_model_for_kbit_training
from transformers import set_seed
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from trainers.stage.trl_trainer import StageTrainer


class PairTrainer(StageTrainer):
    """A mixin for both. It puts the module on the model itself: TRL would cast a 4-bit base, and
    leave an output layer of 16 bits behind a norm of 32, which no forward outside autocast can
    compute.
    """

    def __init__(
        self, *, model: Any, args: Any, peft_config: Any | None = None, **kwargs: Any
    ) -> None:
        if peft_config is not None:
            set_seed(args.seed)
            if getattr(model, "is_loaded_in_4bit", False):
                model = prepare_model_for_kbit_training(
                    model,
                    use_gradient_checkpointing=args.gradient_checkpointing,
                    gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs,
                )
            model = get_peft_model(model, peft_config)
        super().__init__(model=model, args=args, **kwargs)


class ORPO(PairTrainer, ORPOTrainer):
    """Learns the chosen answers, and to prefer them."""

    prediction_step = ORPOTrainer.prediction_step  # `compute_loss` counts among the training's


class CPO(PairTrainer, CPOTrainer):
    """Learns that the chosen answer wins by a margin (SimPO)."""

    prediction_step = CPOTrainer.prediction_step
