"""The trainers of pairs that TRL calls experimental: ORPO, and CPO for its loss of SimPO.

Both tokenise pairs themselves; here they read the token ids of `preference_columns`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft import get_peft_model, prepare_model_for_kbit_training
from transformers import set_seed
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from trainers.rows.row import IGNORED
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

    def tokenize_row(self, feature: Mapping[str, Any], model: Any = None) -> dict[str, Any]:
        """The columns of a pair that is tokenised already."""
        prompt = list(feature["prompt_ids"])
        row: dict[str, Any] = {
            "prompt_input_ids": prompt,
            "prompt_attention_mask": [1] * len(prompt),
        }
        for side in ("chosen", "rejected"):
            answer = list(feature[f"{side}_ids"])
            row[f"{side}_input_ids"] = prompt + answer
            row[f"{side}_attention_mask"] = [1] * (len(prompt) + len(answer))
            row[f"{side}_labels"] = [IGNORED] * len(prompt) + answer
        return row


class ORPO(PairTrainer, ORPOTrainer):
    """Learns the chosen answers, and to prefer them."""


class CPO(PairTrainer, CPOTrainer):
    """Learns that the chosen answer wins by a margin (SimPO)."""
