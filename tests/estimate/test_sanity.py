"""What holds for every estimate, of catalogued models under settings of all kinds."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from advisor.estimate.time import machine_of
from advisor.probe.catalogue import find_gpu
from tests.conftest import examples
from tests.estimate.specs import RunSpec, memory_estimate, shape_of, time_estimate

MIB = 2**20
MODELS = [
    "Qwen/Qwen3-0.6B", "Qwen/Qwen3-30B-A3B", "google/gemma-2-2b-it", "openai/gpt-oss-20b",
    "google-bert/bert-base-multilingual-cased", "google/flan-t5-large", "tiiuae/Falcon-H1-7B-Base",
    "deepseek-ai/DeepSeek-V3.2-Exp",
]  # fmt: skip
GPUS = [find_gpu(name).spec for name in ("T4", "RTX 4090", "H100 SXM", "B200", "MI300X")]
LENGTHS = [(), ((64, 50_000), (512, 10), (4096, 3)), ((300, 1000), (9000, 1))]
SPECS = st.builds(
    RunSpec,
    objective=st.sampled_from(["sft", "dpo", "rm", "kto", "grpo", "ppo", "distill"]),
    update=st.sampled_from(["full", "lora", "adapter", "prefix", "ia3"]),
    micro_batch_size=st.sampled_from([1, 2, 8]),
    seq_len=st.sampled_from([16, 500, 2048, 8192]),
    grad_accum=st.sampled_from([1, 8]),
    gradient_checkpointing=st.sampled_from([True, False, "selective", "offload"]),
    kernels=st.sampled_from(["none", "liger"]),
    loss=st.sampled_from([None, "full", "chunked"]),
    gpus=st.sampled_from([1, 2, 8]),
    sharding=st.sampled_from([None, "zero2", "zero3", "fsdp"]),
    precision=st.sampled_from([None, "mixed", "pure"]),
    lengths=st.sampled_from(LENGTHS),
    framework=st.sampled_from([None, "axolotl", "torchtune", "unsloth", "a trainer of our own"]),
    counter=st.sampled_from(["allocated", "reserved", "nvidia-smi"]),
)


@examples(4)
@given(spec=SPECS, name=st.sampled_from(MODELS), gpu=st.sampled_from(GPUS))
def test_bands_hold_their_estimate_and_readings_stay_on_the_gpu(spec, name, gpu):
    """Both bands hold what they are around, above zero, and no reading is above the GPU."""
    found = memory_estimate(spec, name, device=gpu)
    assert 0 < found.low_bytes <= found.peak_bytes <= found.high_bytes <= gpu.memory_bytes
    assert 0 < found.need_low_bytes <= found.need_bytes <= found.need_high_bytes
    assert found.needed.total_bytes == found.need_bytes
    if spec.framework is None:
        assert found.need_high_bytes <= 2.5 * found.need_low_bytes


@examples(4)
@given(spec=SPECS, name=st.sampled_from(MODELS))
def test_one_token_or_one_row_more_moves_the_need_a_little(spec, name):
    """One more token or row adds a few hundredths at most; no evaluation or fusing adds nothing."""

    def need(**settings):
        return memory_estimate(replace(spec, **settings), name).need_bytes

    assert need(evaluation=False) <= need(evaluation=True)
    if spec.update != "full":  # embeddings keep states in float32, of bfloat16 weights
        assert need(optimizer="adamw_8bit") <= 1.02 * need(optimizer="adamw") + 16 * MIB
    assert need(kernels="liger") <= 1.01 * need(kernels="none") + 16 * MIB
    ours = {"framework": None, "lengths": ()}
    assert need(**ours) == need(**ours | {"lengths": ((spec.seq_len, 1000),)})
    length, rows = max(500, spec.seq_len), 2 * spec.micro_batch_size
    short, longer = (need(lengths=(), seq_len=tokens) for tokens in (length, length + 1))
    assert 0.997 * short <= longer <= 1.03 * short + 16 * MIB
    few, more = (  # from two on: the first has no padding beside it
        need(lengths=(), seq_len=length, micro_batch_size=count) for count in (rows, rows + 1)
    )
    assert 0.997 * few <= more <= few * (1.02 + 1 / rows) + 16 * MIB


@examples(3)
@given(spec=SPECS, name=st.sampled_from(MODELS), gpu=st.sampled_from(GPUS))
def test_more_tokens_take_longer_and_no_part_is_longer_than_its_step(spec, name, gpu):
    """A step is finite, inside its band, and longer with more rows and longer ones."""
    one = time_estimate(spec, name, machine_of(gpu))
    assert 0 < one.low_s <= one.step_s <= one.high_s < math.inf
    assert all(0 <= took_s <= 1.001 * one.step_s for _, took_s in one.parts)
    assert sum(took_s for _, took_s in one.parts) >= 0.9999 * one.step_s
    for key in ("micro_batch_size", "seq_len", "grad_accum"):
        more = replace(spec, **{key: getattr(spec, key) + 1})
        assert time_estimate(more, name, machine_of(gpu)).step_s >= one.step_s * (1 - 1e-9)


@pytest.mark.parametrize(("objective", "is_doubt"), [("rm", False), ("sft", True)])
def test_a_loss_that_nobody_named_is_no_doubt_where_there_are_no_logits(objective, is_doubt):
    """A reward model has one score per row, so its band is that of a named loss."""
    spec = RunSpec(objective=objective, framework="axolotl")
    assert ("loss" in memory_estimate(spec, "Qwen/Qwen3-0.6B").doubts) is is_doubt


def test_a_nested_family_that_is_no_name_ends_no_list_of_specs():
    """The outer name tells what it is."""
    inner = {"model_type": ["a"], "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 64}
    assert shape_of({"model_type": "llava", "text_config": inner}, origin="folder").params > 0
