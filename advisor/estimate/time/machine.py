"""What a device reaches: arithmetic, memory, launches and links; and what moves between devices,
and between a device and host memory.
"""

from __future__ import annotations

from msgspec import Struct

from advisor.estimate.methods import special
from advisor.estimate.run import Run
from advisor.ground.types import GpuSpec
from advisor.methods.links import link_speeds, network_speeds

NF4_BYTES = 0.55  # of a weight with its scales
HIDDEN = 0.5  # of the shorter of work and gathering, what runs behind the longer


def offloaded_s(run: Run, machine: Machine, tokens: float) -> float:
    """Time per micro-batch to bring each layer's kept input to host memory and back."""
    d = run.dims
    if run.checkpointing != "offload":
        return 0.0
    return 2 * tokens * d.layers * d.hidden * 2 / machine.host_bytes_per_s


def weight_bytes(run: Run, *, routed: float, width: int) -> float:
    """Bytes of the weights with so many parameters of routed experts, which a 4-bit base leaves in
    16 bit unless the stack has them as linear layers.
    """
    d = run.dims
    if run.stage.quantization != "nf4":
        return (d.params - d.routed_params + routed) * width
    of_experts = NF4_BYTES if run.quantises_experts else width
    return (d.params - d.routed_params) * NF4_BYTES + routed * of_experts


# Share of the best measured matmul that a loop's matrix products reach on cards of A100 class, with
# what stands between them counted beside (the median over published speeds) ...
MATMUL_SHARE = 0.92
# ... and how that share falls as cards get faster: published median MFU of tuned loops, 0.6 on A100
# and 0.42 on H100, over their peaks of 312 and 989 TFLOP/s.
REFERENCE_FLOPS, SLOWDOWN = 312e12, 0.27
# of the peak, where nobody measured the card (A100 0.86, H100 0.80 in ml-engineering's MAMF table);
# GeForce cards, whose tensor cores are held to half their rate, reach it: 511.9 of 512 FLOP per
# clock and SM (rules/hardware/sources.yaml)
BEST_MATMUL_SHARE, BEST_OF_HALF = 0.82, 0.95
BANDWIDTH_SHARE = 0.8  # of the data sheet, what streaming kernels reach
# The best fp8 product of an H100 against its peak (1402.6 of 1979 TFLOP/s, ml-engineering's MAMF
# table) is a smaller share than the best bf16 one (794.5 of 989).
NARROW_SHARE = 0.88
# A LoRA step of SmolLM2-135M, 4 x 128 tokens, took 2 to 3 s on two cores (4 N FLOP per token):
# float32, per core.
CPU_FLOPS_PER_CORE = 5e10
# There nothing overlaps: a forward and backward pass of its 30 layers with LoRA took 0.16 s
# (float32) to 0.22 s (autocast) before the first token.
CPU_LAUNCHES = 2.2  # of what a card's launches take
# Logits in tiles without Triton (TRL's chunked loss): 2 ms a token of 49,152 words, forward and
# backward, most of it for pages of fresh memory.
CPU_TILE_S = 4e-8  # for each logit
CPU_MIXED_GAIN = 1.4  # with instructions for bfloat16: 1.3 to 1.5 measured on such steps
CPU_BYTES_PER_S = 15e9


class Machine(Struct, frozen=True, kw_only=True):
    """What time depends on."""

    flops: float  # that the matrix products of a training loop reach, per device
    bytes_per_s: float
    link_bytes_per_s: float  # between devices, one direction
    launch_share: float
    note: str
    overlaps: bool = True  # launches run ahead of compute
    tile_s: float = 0.0  # for each logit of a loss in tiles, beside what its matrix product takes
    # under precision: mixed against pure; the rates of cards are those of 16-bit formats already
    mixed_gain: float = 1.0
    pair_bytes_per_s: float | None = None  # between two devices, where more share less
    gathers: float = 1.0  # of the link, what gathering weights beside a computation reaches
    host_bytes_per_s: float = 25e9  # between the device and host memory, one direction
    link_words: str = ""
    link_guess: str = ""  # what was taken to be so of the link
    on_network: bool = False  # devices of several machines
    memory_bytes: int | None = None
    narrow_gain: float | None = None  # of fp8 products over 16-bit ones; None: no such units
    generation: int = 0  # of CUDA's compute capability
    float32_share: float = 1.0  # of `flops`, what products of float32 reach

    def link_s(self, size_bytes: float, gpus: int) -> float:
        """Time for so many bytes of each device to reach another one."""
        pair = self.pair_bytes_per_s
        return size_bytes / (pair if gpus == 2 and pair else self.link_bytes_per_s)


def machine_of(
    gpu: GpuSpec | None,
    *,
    cpu_cores: int | None = None,
    cpu_bf16: bool = False,
    interconnect: str | None = None,
    machines: int = 1,
) -> Machine | None:
    """Achieved rates of a card, or of the CPU where cores are given instead; None where the card's
    rates are not known.

    `interconnect` is how the driver says that several cards are connected; those of several
    `machines` are connected by a network.
    """
    if gpu is None:
        if not cpu_cores:
            return None
        return Machine(
            flops=CPU_FLOPS_PER_CORE * cpu_cores, bytes_per_s=CPU_BYTES_PER_S,
            link_bytes_per_s=CPU_BYTES_PER_S, host_bytes_per_s=CPU_BYTES_PER_S,
            launch_share=CPU_LAUNCHES, overlaps=False, tile_s=CPU_TILE_S,
            note=f"{cpu_cores} CPU cores", mixed_gain=CPU_MIXED_GAIN if cpu_bf16 else 1.0,
        )  # fmt: skip
    if gpu.bf16_flops is None or gpu.bandwidth_bytes_per_s is None:
        return None
    share = BEST_OF_HALF if gpu.half_rate else BEST_MATMUL_SHARE
    best = gpu.achieved_flops or share * gpu.bf16_flops
    flops = best * MATMUL_SHARE
    if gpu.bf16_flops > REFERENCE_FLOPS:
        flops *= (REFERENCE_FLOPS / gpu.bf16_flops) ** SLOWDOWN
    narrow, wide = gpu.fp8_flops, gpu.fp32_flops
    reach = (network_speeds if machines > 1 else link_speeds)(gpu.link, interconnect)
    return Machine(
        flops=flops,
        bytes_per_s=gpu.bandwidth_bytes_per_s * BANDWIDTH_SHARE,
        link_bytes_per_s=reach.bytes_per_s,
        pair_bytes_per_s=reach.pair_bytes_per_s,
        gathers=reach.gathers,
        host_bytes_per_s=reach.host_bytes_per_s,
        link_words=reach.words,
        link_guess=reach.guess,
        on_network=machines > 1,
        launch_share=1.0,
        generation=(gpu.compute_capability or (0, 0))[0],
        note=gpu.name,
        memory_bytes=gpu.memory_bytes,
        narrow_gain=max(1.0, NARROW_SHARE * narrow / gpu.bf16_flops) if narrow else None,
        float32_share=min(1.0, wide / gpu.bf16_flops) if wide else 1.0,
    )


LAUNCH_S = 8e-6  # of one kernel of an eager loop, with its Python
# Kernels of a layer's forward pass in transformers' code: two norms of 8 each, 7 products, rotary
# embedding 12, attention 4, gate 2, sums 2; a plain one has norms of 1, 4 products, no rotary. With
# fused layers norms, rotary and gate are one each.
EAGER_KERNELS, FUSED_KERNELS, PLAIN_KERNELS = 43, 18, 14
ADAPTER_KERNELS = 11  # casts, dropout, two products, scale and sum, and PEFT's Python
COMPILED_SHARE = 0.4
# An expert in a loop: its tokens found (the host waits for them), gathered, three products, gate,
# weighed and added (transformers, integrations/moe.py and the blocks of release 4).
EXPERT_KERNELS, EXPERT_LINEARS = 14, 3
PACKED_LINEARS = 2  # gate and up are one (trainers/start/packed_experts.py)
DEQUANTISE_KERNELS = 4  # absmax of blocks, its offset, weights, and bitsandbytes' Python
GROUPED_KERNELS = 16  # all experts of a layer in grouped products: sort, gather, products, sum


def forward_launches_s(run: Run, machine: Machine, *, rows: float = 4096.0) -> float:
    """Time to start all kernels of one forward pass over so many tokens."""
    d = run.dims
    layers_with_module = special(run.update, "adapted")
    adapted = len(layers_with_module(run)) if layers_with_module else 0
    is_fused = run.stage.kernels not in ("none", "auto") or run.has_fused_layers
    kernels = PLAIN_KERNELS if not d.gated else FUSED_KERNELS if is_fused else EAGER_KERNELS
    narrow = 1 + bool(run.stage.quantization)
    a_layer = kernels + ADAPTER_KERNELS * adapted * narrow
    total = d.layers * a_layer
    if d.experts > 1 and (layers := d.routed_layers):
        if loops_over_experts(run):
            chosen = d.experts * (1 - (1 - d.used_experts / d.experts) ** max(1.0, rows))
            each = EXPERT_KERNELS
            if run.stage.quantization:
                each += (PACKED_LINEARS if run.is_ours else EXPERT_LINEARS) * DEQUANTISE_KERNELS
            total += layers * chosen * each
        else:
            total += layers * GROUPED_KERNELS
    return total * LAUNCH_S * machine.launch_share


def loops_over_experts(run: Run) -> bool:
    """Whether experts are called one after the other: so in transformers 4, whose experts are
    linear layers, and by the bundled trainers in 4 bits; 5 has grouped products, and so have stacks
    made for pretraining.
    """
    by_transformers = run.trainer["linear_experts"] and run.trainer["accelerate"]
    return run.packs_experts if run.is_ours else bool(by_transformers)
