"""Bottleneck adapters (Houlsby, Pfeiffer, parallel) as a PEFT method.

PEFT itself has none. After `import advisor.peft_adapter` a saved one loads like any other adapter:

    import advisor.peft_adapter
    from peft import AutoPeftModelForCausalLM

    model = AutoPeftModelForCausalLM.from_pretrained("runs/my-run/stages/sft")

and a new one is built with `get_peft_model(model, BottleneckConfig(task_type="CAUSAL_LM"))`.

An adapter computes with an activation between its two matrices, so it cannot be merged into the
weights of its base. For the same reason vLLM, Ollama and llama.cpp cannot load it; it is served
with transformers and PEFT, in Python.

The import also mends generation and classification with a trained prefix (see prefix.py).

This is the one part of `advisor` that imports torch, and no other part imports it.
"""

from advisor.peft_adapter.config import (
    CANNOT_BE_MERGED,
    CANNOT_BE_SERVED,
    NOT_SERVED_BY,
    PEFT_TYPE,
    BottleneckConfig,
)
from advisor.peft_adapter.layer import BottleneckLayer
from advisor.peft_adapter.model import BottleneckModel, register
from advisor.peft_adapter.placement import Place, UnsupportedModel, find_places
from advisor.peft_adapter.prefix import mend_generation, mend_heads

register()
mend_generation()
mend_heads()

__all__ = [
    "CANNOT_BE_MERGED", "CANNOT_BE_SERVED", "NOT_SERVED_BY", "PEFT_TYPE",
    "BottleneckConfig", "BottleneckLayer", "BottleneckModel", "Place", "UnsupportedModel",
    "find_places",
]  # fmt: skip
