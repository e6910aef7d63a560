"""IA3: trained vectors scale keys, values and the input of each MLP's last matrix of a frozen model
(arXiv:2205.05638), by PEFT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from advisor.ground.errors import InputError
from advisor.plan.model import Stage
from trainers.job import AdaptedModel, Model, Tokenizer
from trainers.rows.row import PreparedRow
from trainers.updates import COMMON_KEYS
from trainers.updates.experts import find_experts

PLAN_KEYS = COMMON_KEYS
CONFIG = "peft:IA3Config"
# Where the paper puts them, by what families call these layers: keys, values, the MLP's output.
SCALED = (("k_proj", "key", "k"), ("v_proj", "value", "v"))
FEEDFORWARD = ("down_proj", "fc2", "fc_out", "dense_4h_to_h", "wo", "lin2")
FUSED = ("qkv_proj", "query_key_value", "c_attn", "Wqkv")


def arguments(stage: Stage, options: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """Which layers are scaled: those of `peft:`, else those that the model has.

    Raises InputError if it has none of them.
    """
    if "target_modules" in stage.peft:
        return {}
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    attention = [next((name for name in known if name in names), "") for known in SCALED]
    if not all(attention):
        attention = [name for name in FUSED if name in names][:1]
    feedforward = [name for name in FEEDFORWARD if name in names][:1]
    # A mixture of experts may have no MLP beside its routed experts, which cannot be scaled.
    if not attention or not (feedforward or find_experts(model)):
        raise InputError(
            "IA3 finds neither keys and values nor an MLP in this model",
            where=f"stage {stage.name}",
            allowed=f"layers by one of these names: {', '.join(sum(SCALED, ()))}",
            hint="peft: {target_modules: [...], feedforward_modules: [...]}, or update: lora",
        )
    found = {"target_modules": [*attention, *feedforward], "feedforward_modules": feedforward}
    return found | stage.peft


def start(
    stage: Stage,
    options: Mapping[str, Any],
    model: Model,
    tokenizer: Tokenizer,
    rows: Sequence[PreparedRow],
) -> str | None:
    """What is scaled in a mixture of experts, in words. Nothing changes: the scales begin at 1."""
    if find_experts(model) is None:
        return None
    config = cast(AdaptedModel, model).peft_config["default"]
    return (
        f"mixture of experts: IA3 scales {', '.join(sorted(config.target_modules))}, not the routed"
        " experts"
    )
