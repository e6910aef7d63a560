"""What a divided model needs of the machines' own memory, against sums by hand, and what a 4-bit
base needs of each GPU while it is loaded.
"""

import pytest
from msgspec.structs import replace

from advisor.estimate.memory.static import host_moments
from advisor.ground.units import GIB
from tests.estimate.specs import RunSpec, memory_estimate, run_of, shape

LLAMA_8B, LLAMA_70B = "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-70B"
PARAMS_8B = 8_030_261_248  # as the hub counts them
SHARDED = RunSpec(
    objective="sft", update="full", weights_dtype="bfloat16", precision="pure",
    optimizer="adamw_fused", micro_batch_size=1, seq_len=1024, gpus=8, sharding="fsdp",
)  # fmt: skip


def moments(spec, model=LLAMA_8B, machines=1):
    return {
        one.name: one.size_bytes
        for one in host_moments(run_of(spec, shape(model), machines=machines))
    }


def test_base_is_whole_in_each_machine_while_it_is_loaded():
    """2 bytes a weight, whatever is trained and however many machines there are."""
    lora = replace(SHARDED, update="lora", precision="mixed")
    for spec in (SHARDED, lora):
        for machines in (1, 2):
            assert moments(spec, machines=machines)["loading"] == 2 * PARAMS_8B


def test_trained_weights_are_put_together_in_the_first_machine():
    """All weights in bfloat16 where all are trained, and the adapters alone where they are."""
    assert moments(SHARDED, machines=2)["saving"] == 2 * PARAMS_8B
    lora = replace(SHARDED, update="lora", rank=16, precision="mixed")
    assert moments(lora)["saving"] == 4 * 41_943_040  # rank 16 on all linear layers, float32


def test_checkpoint_holds_parts_twice_while_they_are_written():
    """A weight and two moments of it, 2 bytes each, shared out over the machines."""
    assert moments(SHARDED)["checkpoint"] == 2 * 3 * 2 * PARAMS_8B
    assert moments(SHARDED, machines=2)["checkpoint"] == 3 * 2 * PARAMS_8B


def test_offloaded_weights_stay_beside_what_is_saved():
    """Weights, gradients and two moments, 2 bytes each, and the weights once more; in a checkpoint
    weights and moments once more, since they need no copy from a GPU.
    """
    offloaded = moments(replace(SHARDED, offload_weights=True))
    assert offloaded["training"] == pytest.approx(4 * 2 * PARAMS_8B, rel=1e-6)
    assert offloaded["checkpoint"] == pytest.approx(7 * 2 * PARAMS_8B, rel=1e-6)
    assert offloaded["saving"] == pytest.approx(5 * 2 * PARAMS_8B, rel=1e-6)


@pytest.mark.parametrize(
    "changed",
    [{"sharding": "ddp"}, {"framework": "torchtune"}, {"gpus": 1, "sharding": None}],
    ids=["each GPU holds a whole model", "another trainer", "one GPU"],
)
def test_nothing_is_said_where_nothing_is_divided_by_our_trainers(changed):
    """Others read and save a model in ways of their own."""
    assert moments(replace(SHARDED, **changed)) == {}


def test_4_bit_base_is_whole_on_each_gpu_while_it_is_loaded():
    """More GPUs make no difference to it: the need is never below 4.1 bits a weight and 16 bits of
    embeddings and output.
    """
    # 80 layers of 855,638,016 linear weights; 128,256 x 8,192 twice.
    base = 80 * 855_638_016 * (0.5 + 1 / 64 + 4 / (64 * 256)) + 2 * 128_256 * 8_192 * 2
    spec = replace(SHARDED, update="lora", quantization="nf4", precision="mixed")
    needs = []
    for gpus in (8, 64):
        found = memory_estimate(replace(spec, gpus=gpus), shape(LLAMA_70B))
        assert found.needed.name == "loading"
        assert found.need_bytes > base > 34 * GIB
        needs.append(found.need_bytes)
    assert needs[0] == needs[1]
    assert "loading" not in moments(spec, LLAMA_70B)  # quantised on the GPUs, tensor by tensor
    theirs = memory_estimate(replace(spec, framework="fsdp-qlora"), shape(LLAMA_70B))
    assert all(moment.name != "loading" for moment in theirs.moments)
