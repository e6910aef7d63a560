"""What a divided model needs of the machines' memory, and what loading a 4-bit base takes a GPU."""

import pytest
from msgspec.structs import replace

from advisor.estimate.memory.static import host_moments
from advisor.ground.units import GIB
from tests.estimate.specs import RunSpec, memory_estimate, run_of

LLAMA_70B = "meta-llama/Llama-3.1-70B"
WEIGHTS = 2 * 8_030_261_248  # of Llama 3.1 8B in bfloat16, as the hub counts them
SHARDED = RunSpec(
    objective="sft", update="full", weights_dtype="bfloat16", precision="pure",
    optimizer="adamw_fused", micro_batch_size=1, seq_len=1024, gpus=8, sharding="fsdp",
)  # fmt: skip
LORA = {"update": "lora", "rank": 16, "precision": "mixed"}
FOUR_BIT = replace(SHARDED, update="lora", quantization="nf4", precision="mixed")


def moments(spec, model="meta-llama/Llama-3.1-8B", machines=1):
    found = host_moments(run_of(spec, model, machines=machines))
    return {one.name: one.size_bytes for one in found}


@pytest.mark.parametrize(
    ("changed", "machines", "moment", "expected"),
    [
        # The base is whole in each machine while it is loaded, whatever is trained.
        *((changed, machines, "loading", WEIGHTS) for changed in ({}, LORA) for machines in (1, 2)),
        # All weights are put together in the first machine, and the adapters alone where they are
        # trained: rank 16 on all linear layers, float32.
        ({}, 2, "saving", WEIGHTS),
        (LORA, 1, "saving", 4 * 41_943_040),
        # A checkpoint holds parts twice while they are written: a weight and two moments of it,
        # shared out over the machines.
        ({}, 1, "checkpoint", 2 * 3 * WEIGHTS),
        ({}, 2, "checkpoint", 3 * WEIGHTS),
        # Offloaded weights, gradients and two moments stay beside the weights that are saved; in a
        # checkpoint weights and moments stand once more, since they need no copy from a GPU.
        ({"offload_weights": True}, 1, "training", 4 * WEIGHTS),
        ({"offload_weights": True}, 1, "checkpoint", 7 * WEIGHTS),
        ({"offload_weights": True}, 1, "saving", 5 * WEIGHTS),
    ],
)
def test_machines_hold_so_much_in_each_moment(changed, machines, moment, expected):
    """Bytes of the first machine."""
    found = moments(replace(SHARDED, **changed), machines=machines)
    assert found[moment] == pytest.approx(expected, rel=1e-6 if "offload_weights" in changed else 0)


@pytest.mark.parametrize(
    "changed", [{"sharding": "ddp"}, {"framework": "torchtune"}, {"gpus": 1, "sharding": None}]
)
def test_nothing_is_said_where_nothing_is_divided_by_our_trainers(changed):
    """A whole model on each GPU, or one GPU; others read and save a model in ways of their own."""
    assert moments(replace(SHARDED, **changed)) == {}


def test_4_bit_base_is_whole_on_each_gpu_while_it_is_loaded():
    """On any number of GPUs it needs 4.1 bits a weight, and 16 bits of embeddings and output."""
    # 80 layers of 855,638,016 linear weights; 128,256 x 8,192 twice.
    base = 80 * 855_638_016 * (0.5 + 1 / 64 + 4 / (64 * 256)) + 2 * 128_256 * 8_192 * 2
    few, many = (memory_estimate(replace(FOUR_BIT, gpus=gpus), LLAMA_70B) for gpus in (8, 64))
    assert few.needed.name == many.needed.name == "loading"
    assert few.need_bytes == many.need_bytes > base > 34 * GIB
    assert "loading" not in moments(FOUR_BIT, LLAMA_70B)  # quantised on the GPUs, tensor by tensor
    theirs = memory_estimate(replace(FOUR_BIT, framework="fsdp-qlora"), LLAMA_70B)
    assert all(moment.name != "loading" for moment in theirs.moments)
