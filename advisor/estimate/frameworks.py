"""What a published run's framework does where its description is silent; our own trainers are the
framework None.

Each trait is a fact about code that runs (what it keeps, gathers or casts), read from the
frameworks' sources; none is a correction for a particular source of numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, kw_only=True, slots=True)
class Framework:
    """Traits of one framework that decide memory."""

    name: str = ""
    is_known: bool = True  # its code was read; the band of an estimate is wider if not (bands.py)
    accelerate: bool = (
        False  # FSDP through accelerate: what trains is upcast, and frozen units keep their inputs
    )
    # Lightning Fabric's scripts: an output matrix of its own, chunks of logits kept, frozen units
    # stay gathered
    is_litgpt: bool = False
    fused_norms: bool = False  # one kernel that keeps its input alone
    fused_mlp: bool = False  # the activated gate is computed again instead of kept
    fused_with_loss: bool = (
        False  # both of them where the loss is fused too (the Liger kernels are one switch)
    )
    fused_adapters: bool = (
        False  # LoRA kernels that share the layer's input instead of casting it for each adapter
    )
    adapters_in_16_bit: bool = False
    quantised_adapters_in_16_bit: bool = False
    # a chunked loss that keeps 16-bit logits and computes on one chunk of so many; 0: logits are
    # never whole
    chunks: int = 0
    whole_logits: bool = False  # its fused loss takes whole logits
    shifts_labels: bool = (
        False  # its data holds labels already shifted, so no shifted copy of the logits is made
    )
    # attention, MLP and both norms of a layer are checkpointed each for itself: four inputs are
    # kept, one part is run again
    checkpoints_parts: bool = False
    # upcasts embeddings and norms of a quantised base; inferred from its published peaks, not read
    # in its source
    prepares_quantised: bool = False
    compiled_loss: bool = False  # softmax and cast in one kernel: logits and their gradient alone
    ragged: bool = (
        False  # rows are padded to the longest of each batch, so every batch has another size
    )
    accumulates: bool = (
        False  # its recipes split the batch, so gradients of earlier micro-batches stay
    )
    logs_allocated: bool = False  # its printed memory is what torch has allocated
    logs_allocator: bool = (
        False  # its printed memory is one of torch's counters, without the CUDA context
    )
    # experts are linear layers, which bitsandbytes quantises and PEFT adapts by name: so in
    # transformers 4, on which the frameworks of all published runs stood, or in their own code
    # (Unsloth, linearised checkpoints). A wording that names transformers 5 says otherwise.
    linear_experts: bool = False
    eager_cuda: bool = False  # CUDA before 12.2 loads every kernel into the context


OURS = Framework()


@lru_cache(maxsize=256)
def framework_of(framework: str | None) -> Framework:
    """The traits of a framework by its wording; what is not known has none."""
    if framework is None:
        return OURS
    text = framework.lower()

    def named(*words: str) -> bool:
        return any(word in text for word in words)

    lit = text.startswith("lit")
    tune, titan = named("torchtune"), named("torchtitan")
    accelerate = named(
        "trl", "transformers", "hf trainer", "hugging", "accelerate", "axolotl", "llama-factory",
        "llamafactory", "swift",
    )  # fmt: skip
    unsloth, nemo = named("unsloth"), named("nemo")
    return Framework(
        name=text, is_litgpt=lit,
        is_known=accelerate or lit or tune or titan or unsloth or nemo
        or named("arctic", "colossal"),
        accelerate=accelerate,
        fused_norms=tune or titan or unsloth or nemo or named("llm-foundry", "megatron"),
        fused_mlp=unsloth,
        fused_with_loss=named("liger", "arctic"),
        fused_adapters=unsloth,
        adapters_in_16_bit=tune,
        quantised_adapters_in_16_bit=text == "trl",
        chunks=8 if tune else 0,
        whole_logits=unsloth,
        shifts_labels=nemo,
        checkpoints_parts=nemo,
        prepares_quantised=named("swift"),
        compiled_loss=titan and named("2025", "2026", "2027"),
        ragged=named("swift", "llama-factory", "llamafactory") or text == "trl",
        accumulates=lit,
        logs_allocated=named("colossal"),
        logs_allocator=lit or tune or titan or nemo or named("axolotl", "lightning"),
        linear_experts=not named("transformers 5", "transformers==5", "transformers>=5"),
        eager_cuda=named("cuda 10", "cuda 11", "+cu10", "+cu11"),
    )  # fmt: skip
