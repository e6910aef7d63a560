"""How a block runs: what of a run decides which tensors its operations save."""

from __future__ import annotations

from typing import Literal, NamedTuple

ALL = "*"  # among adapted layers: every linear layer outside of routed experts and routers


class BlockSettings(NamedTuple):
    """All that the table of saved tensors asks of a run; hashable, and without its batch size, so
    that what is derived once holds for every batch.
    """

    trains: bool  # the weights of the block get gradients (full fine-tuning)
    # Bytes of one weight of its linear layers as they compute; 2 where quantised.
    weight_bytes: int = 2
    stream_bytes: int = 2  # of one element of the residual stream
    norm_bytes: int = 2  # of one weight of a norm: 4 after `prepare_model_for_kbit_training`
    autocast: bool = False  # `torch.autocast` to 16 bit around the forward pass
    wide_list: bool = True  # CUDA's autocast, which runs norms, softmax and powers in float32
    # The linear layers are bitsandbytes': input cast to 16 bit, output cast back.
    quantised: bool = False
    # bitsandbytes before 0.43: its matrix product saves its input.
    quantised_inputs_kept: bool = False
    # Linear layers with a LoRA adapter, by common name (ALIASES of advisor.estimate.model.dims).
    adapted: frozenset[str] = frozenset()
    rank: int = 0  # of the adapters
    adapter_bytes: int = 4  # of one of their weights
    # What a float32 adapter reads is cast to 16 bit, by autocast of the trainer or by FSDP's mixed
    # precision.
    casts_adapter_inputs: bool = False
    dropout: bool = False  # LoRA dropout above zero
    # Attention scores exist whole (eager attention), with `seq_len` numbers per head.
    scores: bool = False
    flash: bool = False  # the flash-attention library, which casts its inputs to 16 bit
    # A mask beside the scores, so that SDPA takes the memory-efficient kernel, which saves it with
    # one number for each pair of tokens.
    masked: bool = False
    # One kernel that saves its input alone (Liger's RMSNorm, torch.compile).
    fused_norms: bool = False
    fused_mlp: bool = False  # the activated gate is computed again in the backward pass
    compiled: bool = False  # torch.compile: results of elementwise operations are computed again
    gpu: bool = True  # CUDA's kernels, which hold float32 sums of gradients
    model_dropout: bool = True  # the model's own dropout, where its family has one
    # The tensors of experts have corrections (PEFT's target_parameters).
    corrected_experts: bool = False
    # Not transformers' modules, whose gelu is written out in elementary operations.
    own_blocks: bool = False
    # Kernels for linear attention and state space layers (fla, mamba_ssm).
    scan_kernels: bool = False
    # Experts are linear layers run one after the other (transformers 4).
    looped_experts: bool = False
    seq_len: int = 0  # tokens of a row where scores or a mask exist; 0 elsewhere


class Style(NamedTuple):
    """How the blocks of a family differ from those of LLaMA."""

    # "rms"; "rms32": multiplied by its weight in float32; "layer": LayerNorm.
    norm: Literal["rms", "rms32", "layer"] = "rms"
    # Norms before attention and MLP ("pre"), after them ("post"), before and after ("both"), both
    # on the layer's input ("parallel"), or one for both ("shared").
    order: Literal["pre", "post", "both", "parallel", "shared"] = "pre"
    # Of the MLP: "input" is saved (silu, gelu), "output" (relu), or "steps": gelu written out in
    # elementary operations.
    activation: Literal["input", "output", "steps"] = "input"
    # Queries and keys are rotated: "" not, "joined" where the result is put together from parts: it
    # then lies head by head, and so does the attention's output, which is copied.
    rotary: Literal["", "whole", "joined"] = "whole"
    # On the outputs of attention and MLP, and on attention scores, as published configurations have
    # it.
    dropout: bool = False
    # Of the scores: in float32 with a cast behind, as autocast decides ("plain"), or in 16 bit.
    softmax: Literal["float32", "plain", "narrow"] = "float32"
    # Softmax over all experts in float32 ("float32"), or over the chosen ones' logits ("chosen").
    router: Literal["float32", "chosen", "sigmoid"] = "float32"
    # The router's weights stay float32, so that the experts' outputs become float32.
    weights32: bool = False
    shared_gate: bool = False  # a number per token scales the shared expert's output
    clamped: bool = False  # experts clamp gate and up, and add one to up (gpt-oss)
    scaled: bool = False  # each mixer reads the hidden states times a number of its own (Falcon-H1)


LLAMA = Style()
GPT2 = Style(norm="layer", activation="steps", rotary="", dropout=True, softmax="plain")
ENCODER = Style(norm="layer", order="post", rotary="", dropout=True, softmax="plain")
GEMMA2 = Style(norm="rms32", order="both")
STYLES = {
    "gpt2": GPT2,
    "gpt_neo": GPT2._replace(dropout=False),
    "gpt_bigcode": GPT2._replace(activation="input", softmax="float32"),
    "gpt_neox": Style(norm="layer", order="parallel", rotary="joined"),
    "gptj": Style(norm="layer", order="shared", activation="steps", softmax="plain"),
    "phi": Style(norm="layer", order="shared", activation="steps", rotary="joined"),
    "falcon": Style(norm="layer", order="shared", softmax="narrow"),
    "bloom": Style(norm="layer", activation="steps", rotary=""),
    "mpt": Style(norm="layer", rotary=""),
    "opt": Style(norm="layer", activation="output", rotary="", dropout=True),
    "starcoder2": Style(norm="layer"),
    "stablelm": Style(norm="layer", rotary="joined"),
    "bert": ENCODER,
    "roberta": ENCODER,
    "xlm-roberta": ENCODER,
    "camembert": ENCODER,
    "distilbert": ENCODER,
    "electra": ENCODER,
    "modernbert": Style(norm="layer"),
    "cohere": Style(norm="layer", order="shared"),
    "cohere2": Style(norm="layer", order="shared"),
    "gemma": Style(norm="rms32"),
    "gemma2": GEMMA2,
    "gemma3": GEMMA2,
    "gemma3_text": GEMMA2,
    "gemma4": GEMMA2,
    "gemma4_text": GEMMA2,
    "glm": Style(rotary="joined"),
    "glm4": Style(order="both", rotary="joined"),
    "phi3": Style(rotary="joined"),
    "olmo2": Style(norm="rms32", order="post"),
    "olmo3": Style(norm="rms32", order="post"),
    "olmoe": Style(norm="rms32"),
    "gpt_oss": Style(norm="rms32", softmax="narrow", router="chosen", clamped=True),
    "falcon_h1": Style(scaled=True),
    "mixtral": Style(weights32=True),
    "deepseek_v2": Style(router="sigmoid", rotary="joined"),
    "deepseek_v3": Style(router="sigmoid", rotary="joined"),
    "qwen2_moe": Style(shared_gate=True),
    "qwen3_next": Style(norm="rms32", rotary="joined", shared_gate=True),
    "qwen3_5": Style(norm="rms32", rotary="joined"),
    "qwen3_5_text": Style(norm="rms32", rotary="joined"),
    "qwen3_5_moe": Style(norm="rms32", rotary="joined", shared_gate=True),
    "qwen3_5_moe_text": Style(norm="rms32", rotary="joined", shared_gate=True),
}


def style_of(family: str) -> Style:
    """The style of a model_type of config.json."""
    return STYLES.get(family, LLAMA)
