"""Whether vLLM can load a LoRA result as it is, by its files: its PEFT configuration, and the names
and shapes of its tensors.

What vLLM takes was read in its source (vllm/lora/peft_helper.py, lora_model.py and utils.py,
version 0.33): each key it does not know is passed over in silence, so that a result with one
factor a layer, for example, would answer wrongly without a word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advisor.ground.safetensors_header import Damaged, read_header
from advisor.ground.vllm import RANKS

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
# PEFT key -> what it means. Set, it makes vLLM refuse the result or answer otherwise.
NOT_HELD = {
    "use_dora": "it splits weights into size and direction (DoRA)",
    "modules_to_save": "it holds whole layers beside its LoRA matrices",
    "target_parameters": "it corrects tensors that are no layers (routed experts)",
    "trainable_token_indices": "it trains single tokens",
    "rank_pattern": "its layers have several ranks",
    "alpha_pattern": "its layers have several scales",
    "lora_bias": "its matrices have biases",
    "layer_replication": "it repeats layers",
    "use_qalora": "it is a QA-LoRA",
    "alora_invocation_tokens": "it works from a token on (activated LoRA)",
}


def why_not_held(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Why vLLM cannot load the result of a folder beside its base; None if it can.

    Args:
        config: Its adapter_config.json.
    """
    if config.get("peft_type") != "LORA":
        return f"it is no LoRA, but {config.get('peft_type')}"
    for key, why in NOT_HELD.items():
        if config.get(key):
            return f"{why}, which vLLM does not load"
    if (config.get("bias") or "none") != "none":
        return "it trains biases, which vLLM does not load"
    rank = config.get("r")
    if not isinstance(rank, int) or rank > RANKS[-1]:
        return f"its rank is {rank}, and vLLM takes {RANKS[-1]} at most"
    return _tensors(folder / WEIGHTS, rank)


def _tensors(path: Path, rank: int) -> str | None:
    """What is wrong with the tensors; None: each module has an A and a B of this rank."""
    try:
        tensors = read_header(path)
    except (OSError, Damaged) as error:
        return f"{path.name} cannot be read ({error})"
    sides: dict[str, set[str]] = {}
    for name, tensor in tensors.items():
        found = NAME.fullmatch(name)
        if found is None:
            return f"its tensor {name} is none that vLLM expects of a LoRA"
        own = tensor.shape[0] if found["side"] == "A" else tensor.shape[-1]
        if len(tensor.shape) != 2 or own != rank:
            return f"its tensor {name} has the shape {list(tensor.shape)}, not the rank {rank}"
        sides.setdefault(found["module"], set()).add(found["side"])
    lone = next((module for module, found in sides.items() if found != {"A", "B"}), None)
    if lone is not None or not sides:
        return f"a matrix of {lone or 'every module'} is missing"
    return None


def modules(folder: Path) -> int:
    """How many layers a result corrects."""
    return len(read_header(folder / WEIGHTS)) // 2
