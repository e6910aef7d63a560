"""How a block runs: what of a run decides which tensors its operations save."""

from __future__ import annotations

from typing import NamedTuple

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
    # Kernels that cast no copy of the input for each adapter (Unsloth's).
    shared_adapter_inputs: bool = False
    # Attention scores exist whole (eager attention), with `seq_len` numbers per head.
    scores: bool = False
    flash: bool = False  # the flash-attention library, which casts its inputs to 16 bit
    # A mask beside the scores, so that SDPA takes the memory-efficient kernel, which saves it with
    # one number for each pair of tokens.
    masked: bool = False
    # Attention takes the rows of one line one after the other, and joins their results
    # (trainers/frame/flat_rows.py).
    apart: bool = False
    repeats_keys: bool = False  # keys and values are copied for each query head before SDPA
    # One kernel that saves its input alone (Liger's RMSNorm, torch.compile).
    fused_norms: bool = False
    fused_mlp: bool = False  # the activated gate is computed again in the backward pass
    compiled: bool = False  # torch.compile: results of elementwise operations are computed again
    gpu: bool = True  # CUDA's kernels, which hold float32 sums of gradients
    model_dropout: bool = True  # the model's own dropout, where its family has one
    # The tensors of experts have corrections (PEFT's target_parameters).
    corrected_experts: bool = False
    # The framework's own modules instead of transformers': elementary functions are torch's, and
    # models have no dropout.
    own_blocks: bool = False
    # Kernels for linear attention and state space layers (fla, mamba_ssm).
    scan_kernels: bool = False
    # Experts are linear layers run one after the other (transformers 4).
    looped_experts: bool = False
    seq_len: int = 0  # tokens of a row where scores or a mask exist; 0 elsewhere
