"""Where the estimator's formulas and constants come from."""

from __future__ import annotations

from advisor.ground.types import Source
from advisor.methods.optimizers import Optimizer

COUNT = Source(title="counted from the model's shape", kind="derived")
ADAM = Source(
    title="Kingma & Ba 2015, Algorithm 1", url="https://arxiv.org/abs/1412.6980", kind="paper"
)
QLORA = Source(
    title="QLoRA: 4-bit NormalFloat, blocks of 64, double quantization",
    url="https://arxiv.org/abs/2305.14314",
    kind="paper",
)
LORA = Source(
    title="LoRA; PEFT keeps adapters in float32",
    url="https://arxiv.org/abs/2106.09685",
    kind="paper",
)
ZERO = Source(
    title="ZeRO: memory optimizations", url="https://arxiv.org/abs/1910.02054", kind="paper"
)
ACTIVATIONS = Source(
    title=(
        "Reducing activation recomputation in large transformer models; slopes of IBM"
        " fms-acceleration's A100 runs"
    ),
    url="https://arxiv.org/abs/2205.05198",
    kind="measured",
)
BLOCKS = Source(
    title=(
        "derived from what autograd saves: torch/tools/autograd/derivatives.yaml and the modules of"
        " transformers 5.24, held to traced layers"
    ),
    checked="2026-11-27",
    kind="derived",
)
LOSS = Source(
    title=(
        "slopes of IBM fms-acceleration's and torchtune's published runs with and without a fused"
        " loss"
    ),
    kind="measured",
)
TRL_LOSS = Source(
    title="trl 1.16.0, trl/kernels/chunked_logprob.py: tiles of 4096 tokens x 32768 words",
    checked="2026-11-25",
    kind="vendor",
)
PARTS = Source(
    title="trainers/step/answer_loss.py: float32 logits of 2,048 tokens at a time",
    checked="2026-11-30",
    kind="vendor",
)
MALLOC = Source(
    title=(
        "resident memory beside live tensors, of micro-batches of SmolLM2-135M on a CPU (SFT, DPO,"
        " prefix; layers run again or not), glibc 2.41's malloc"
    ),
    checked="2026-11-27",
    kind="measured",
)
FOREACH = Source(
    title="torch.optim.AdamW, foreach implementation: one temporary per parameter",
    url="https://docs.pytorch.org/docs/stable/generated/torch.optim.AdamW.html",
    kind="vendor",
)
CONTEXT = Source(
    title="stas00/ml-engineering, training/performance: preloaded kernels 0.47 to 0.92 GiB",
    kind="measured",
)
ALLOCATOR = Source(
    title=(
        "PyTorch's caching allocator (c10/cuda/CUDACachingAllocator.cpp, torch 2.13), simulated"
        " over the tensors of training runs"
    ),
    checked="2026-11-27",
    kind="derived",
)
UNNAMED = Source(
    title="published runs: their allocator's reserved memory beyond all named terms",
    kind="measured",
)
STREAMS = Source(title="torch.cuda.memory_stats: active bytes beside allocated ones", kind="vendor")
FSDP = Source(
    title="torch FSDP: gathered units; accelerate upcasts what trains to float32",
    url="https://docs.pytorch.org/docs/stable/fsdp.html",
    kind="vendor",
)
NO_SYNC = Source(
    title="torch FSDP: no_sync() leaves gradients whole until the next division",
    url="https://docs.pytorch.org/docs/stable/fsdp.html",
    kind="derived",
)
DEEPSPEED = Source(
    title="DeepSpeed ZeRO: reduce and all-gather buckets of 5e8 elements",
    url="https://www.deepspeed.ai/docs/config-json/",
    kind="vendor",
)
PPO = Source(
    title="PPO as in TRL's and our own loop: policy, reference, value and reward", kind="derived"
)
EXPERTS = Source(
    title=(
        "transformers 5.24: experts are tensors of three dimensions; bitsandbytes 0.50 replaces"
        " linear layers alone"
    ),
    checked="2026-11-26",
    kind="vendor",
)
CORRECTED = Source(
    title="peft 0.21, tuners/lora/layer.py: ParamWrapper adds B A to the tensor in each pass",
    checked="2026-11-26",
    kind="vendor",
)


def optimizer(entry: Optimizer) -> Source:
    """Where an optimizer comes from."""
    return Source(title=f"{entry.name}: {entry.about}", url=entry.source, kind="paper")
