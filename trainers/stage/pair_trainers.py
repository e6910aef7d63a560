"""The trainers of pairs that TRL calls experimental: ORPO, and CPO for its loss of SimPO.

Both would tokenise pairs themselves; here they read `tokenised_columns`. The module is on the model
before they get it: they would cast that of a 4-bit base to 16 bits.
"""

from __future__ import annotations

from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from trainers.stage.trl_trainer import StageTrainer


class ORPO(StageTrainer, ORPOTrainer):
    """Learns the chosen answers, and to prefer them."""

    prediction_step = ORPOTrainer.prediction_step  # `compute_loss` counts among the training's


class CPO(StageTrainer, CPOTrainer):
    """Learns that the chosen answer wins by a margin (SimPO)."""

    prediction_step = CPOTrainer.prediction_step
