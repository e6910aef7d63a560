"""Where the estimator's formulas and constants come from."""

from __future__ import annotations

from advisor.ground.types import Source
from advisor.methods.optimizers import Optimizer


def _source(title: str, kind: str, *, url: str = "", checked: str = "") -> Source:
    return Source(title=title, kind=kind, url=url, checked=checked)


COUNT = _source("counted from the model's shape", "derived")
ADAM = _source("Kingma & Ba 2015, Algorithm 1", "paper", url="https://arxiv.org/abs/1412.6980")
QLORA = _source(
    "QLoRA: 4-bit NormalFloat, blocks of 64, double quantization",
    "paper",
    url="https://arxiv.org/abs/2305.14314",
)
LORA = _source(
    "LoRA; PEFT keeps adapters in float32", "paper", url="https://arxiv.org/abs/2106.09685"
)
ZERO = _source("ZeRO: memory optimizations", "paper", url="https://arxiv.org/abs/1910.02054")
ACTIVATIONS = _source(
    "Reducing activation recomputation in large transformer models; slopes of IBM fms-"
    "acceleration's A100 runs",
    "measured",
    url="https://arxiv.org/abs/2205.05198",
)
BLOCKS = _source(
    "derived from what autograd saves: torch/tools/autograd/derivatives.yaml and the modules of"
    " transformers 5.24, held to traced layers",
    "derived",
    checked="2026-11-27",
)
LOSS = _source(
    "slopes of IBM fms-acceleration's and torchtune's published runs with and without a fused loss",
    "measured",
)
TRL_LOSS = _source(
    "trl 1.16.0, trl/kernels/chunked_logprob.py: tiles of 4096 tokens x 32768 words",
    "vendor",
    checked="2026-11-25",
)
PARTS = _source(
    "trainers/step/answer_loss.py: float32 logits of 2,048 tokens at a time",
    "vendor",
    checked="2026-11-30",
)
MALLOC = _source(
    "resident memory beside live tensors, of micro-batches of SmolLM2-135M on a CPU (SFT, DPO, "
    "prefix; layers run again or not), glibc 2.41's malloc",
    "measured",
    checked="2026-11-27",
)
FOREACH = _source(
    "torch.optim.AdamW, foreach implementation: one temporary per parameter",
    "vendor",
    url="https://docs.pytorch.org/docs/stable/generated/torch.optim.AdamW.html",
)
CONTEXT = _source(
    "stas00/ml-engineering, training/performance: preloaded kernels 0.47 to 0.92 GiB", "measured"
)
ALLOCATOR = _source(
    "PyTorch's caching allocator (c10/cuda/CUDACachingAllocator.cpp, torch 2.13), simulated "
    "over the tensors of training runs",
    "derived",
    checked="2026-11-27",
)
UNNAMED = _source(
    "published runs: their allocator's reserved memory beyond all named terms", "measured"
)
FSDP = _source(
    "torch FSDP: gathered units; accelerate upcasts what trains to float32",
    "vendor",
    url="https://docs.pytorch.org/docs/stable/fsdp.html",
)
NO_SYNC = _source(
    "torch FSDP: no_sync() leaves gradients whole until the next division",
    "derived",
    url="https://docs.pytorch.org/docs/stable/fsdp.html",
)
DEEPSPEED = _source(
    "DeepSpeed ZeRO: reduce and all-gather buckets of 5e8 elements",
    "vendor",
    url="https://www.deepspeed.ai/docs/config-json/",
)
PPO = _source("PPO as in TRL's and our own loop: policy, reference, value and reward", "derived")
EXPERTS = _source(
    "transformers 5.24: experts are tensors of three dimensions; bitsandbytes 0.50 replaces "
    "linear layers alone",
    "vendor",
    checked="2026-11-26",
)
CORRECTED = _source(
    "peft 0.21, tuners/lora/layer.py: ParamWrapper adds B A to the tensor in each pass",
    "vendor",
    checked="2026-11-26",
)


def optimizer(entry: Optimizer) -> Source:
    """Where an optimizer comes from."""
    return Source(title=f"{entry.name}: {entry.about}", url=entry.source, kind="paper")
