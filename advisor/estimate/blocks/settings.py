"""How a block runs: what of a run decides which tensors its operations save."""

from __future__ import annotations

from typing import NamedTuple

ALL = "*"  # among adapted layers: every linear layer outside of routed experts and routers


class BlockSettings(NamedTuple):
    """All that the table of saved tensors asks of a run; hashable, and without its batch size, so
    that what is derived once holds for every batch.

    Attributes:
        trains: The weights of the block get gradients (full fine-tuning).
        weight_bytes: Bytes of one weight of its linear layers as they compute; 2 where quantised.
        stream_bytes: Of one element of the residual stream.
        norm_bytes: Of one weight of a norm: 4 after `prepare_model_for_kbit_training`.
        autocast: `torch.autocast` to 16 bit around the forward pass.
        wide_list: CUDA's autocast, which runs norms, softmax and powers in float32.
        quantised: The linear layers are bitsandbytes': input cast to 16 bit, output cast back.
        quantised_inputs_kept: bitsandbytes before 0.43: its matrix product saves its input.
        adapted: Linear layers with a LoRA adapter, by common name (ALIASES of
            advisor.estimate.model.dims).
        rank: Of the adapters.
        adapter_bytes: Of one of their weights.
        casts_adapter_inputs: What a float32 adapter reads is cast to 16 bit, by autocast of the
            trainer or by FSDP's mixed precision.
        dropout: LoRA dropout above zero.
        shared_adapter_inputs: Kernels that cast no copy of the input for each adapter (Unsloth's).
        scores: Attention scores exist whole (eager attention), with `seq_len` numbers per head.
        flash: The flash-attention library, which casts its inputs to 16 bit.
        masked: A mask beside the scores, so that SDPA takes the memory-efficient kernel, which
            saves it with one number for each pair of tokens.
        apart: Attention takes the rows of one line one after the other, and joins their results
            (trainers/frame/flat_rows.py).
        repeats_keys: Keys and values are copied for each query head before SDPA.
        fused_norms: One kernel that saves its input alone (Liger's RMSNorm, torch.compile).
        fused_mlp: The activated gate is computed again in the backward pass.
        compiled: torch.compile: results of elementwise operations are computed again.
        gpu: CUDA's kernels, which hold float32 sums of gradients.
        model_dropout: The model's own dropout, where its family has one.
        corrected_experts: The tensors of experts have corrections (PEFT's target_parameters).
        own_blocks: The framework's own modules instead of transformers': elementary functions are
            torch's, and models have no dropout.
        scan_kernels: Kernels for linear attention and state space layers (fla, mamba_ssm).
        looped_experts: Experts are linear layers run one after the other (transformers 4).
        seq_len: Tokens of a row where scores or a mask exist; 0 elsewhere.
    """

    trains: bool
    weight_bytes: int = 2
    stream_bytes: int = 2
    norm_bytes: int = 2
    autocast: bool = False
    wide_list: bool = True
    quantised: bool = False
    quantised_inputs_kept: bool = False
    adapted: frozenset[str] = frozenset()
    rank: int = 0
    adapter_bytes: int = 4
    casts_adapter_inputs: bool = False
    dropout: bool = False
    shared_adapter_inputs: bool = False
    scores: bool = False
    flash: bool = False
    masked: bool = False
    apart: bool = False
    repeats_keys: bool = False
    fused_norms: bool = False
    fused_mlp: bool = False
    compiled: bool = False
    gpu: bool = True
    model_dropout: bool = True
    corrected_experts: bool = False
    own_blocks: bool = False
    scan_kernels: bool = False
    looped_experts: bool = False
    seq_len: int = 0
