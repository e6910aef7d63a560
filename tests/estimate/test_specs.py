"""Run specs: a list in, a list of the same length out, and no crash on anything."""

import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.estimate.answers import run_specs
from advisor.estimate.spec import SPEC, request_of
from advisor.ground.errors import InputError
from advisor.probe.catalogue import find_gpu
from advisor.render.estimate import estimate_text
from advisor.situation.models import model_shape
from tests.conftest import examples

MODEL = {"model": "Qwen/Qwen3-8B"}
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 100}
PAGE = Path(__file__).parents[2] / "docs" / "estimate.md"
TIMED = {"gpu": "RTX 4090", "tokens_total": 1_000_000}


def answers(*items: object) -> list[dict]:
    """The answers to these specs, of Qwen3-8B where a spec names no model."""
    specs = [{**MODEL, **item} if isinstance(item, dict) else item for item in items]
    return run_specs(json.dumps(specs), find_model=model_shape, find_gpu=find_gpu)


def test_one_bad_spec_does_not_spoil_the_list(approved):
    """A spec that cannot be answered says why in its place; its neighbours are answered."""
    found = answers(
        {}, {"optimiser": "adamw"}, 7, {"model": None, "update": "lora"}, {"gpu": "RTX 4090"}
    )
    approved([one.get("reason") for one in found])
    assert [item["peak_gib"] is not None for item in found] == [True, False, False, False, True]
    assert found[4]["tokens_per_s_per_gpu"] > 0
    (large,) = answers({"gpu": "H100 SXM", "tokens_total": 2_000_000_000, "rows_total": 4_000_000})
    assert large["hours"] > 1  # two billion tokens are a data set


IMPOSSIBLE = [
    *({key: value} for key, value in (
        ("rank", 0), ("rank", math.inf), ("seq_len", -1), ("gpus", 0), ("optimizer", "adamm"),
        ("micro_batch_size", 1.5), ("packing", "yes"), ("model_params_b", math.inf),
        ("gradient_checkpointing", "sometimes"), ("bottleneck", -5), ("placement", "everywhere"),
        ("train_embeddings", 1), ("beta", -0.1), ("compute_dtype", "int3"), ("date", "2025-13"),
        ("date", "last summer"), ("library_versions", ["torch"]), ("lengths", [[100]]),
        ("lengths", [[100, 0]]), ("evaluation", "never"),
    )),
    {"library_versions": {"torch": 2.4}},
    {"rank": 100_000},
    {"update": "full", "quantization": "nf4"},
    {"model": "a model of no size"},
    {"architecture": {"hidden_size": 64}, "model": None},
    {"architecture": {**SMALL, "num_attention_heads": 6, "num_key_value_heads": 4}},
    # Two keys that no engine can put together: both are named, and all conflicts at once.
    {"optimizer_in_backward": True, "grad_accum": 4},
    {"packing": True, "objective": "dpo"},
    {"offload_weights": True, "sharding": "ddp", "gpus": 2},
    {"compute_dtype": "fp8", "gpu": "A100 80GB"},
    {"compute_dtype": "nvfp4", "gpu": "H100"},
    {"rows_total": 100, "tokens_total": 50},
    {"active_params_b": 30, "model_params_b": 8},
    {"lengths": [[200, 1], [100, 1]]},
    {"optimizer_in_backward": True, "grad_accum": 4, "lengths": [[9, 1], [9, 1]]},
]  # fmt: skip


def test_an_impossible_spec_names_its_field(approved):
    """A reason with the field, never a number."""
    found = answers(*IMPOSSIBLE)
    approved([[str(spec), one["reason"]] for spec, one in zip(IMPOSSIBLE, found, strict=True)])
    assert [one["peak_gib"] for one in found] == [None] * len(found)


def test_a_near_miss_names_the_nearest_key():
    """A misspelt key is a fault with the nearest known name."""
    faults = request_of({"model": "x", "micro_batch": 3})
    assert isinstance(faults, list)
    assert "micro_batch_size" in faults[0].hint


@pytest.mark.parametrize("text", ["", "{", "null", '{"model": "Qwen/Qwen3-8B"}', "[" * 100_000])
def test_what_is_no_json_list_is_refused(text):
    """Only a list that is not JSON, or JSON that is no list, is an error as a whole."""
    with pytest.raises(InputError, match="specs"):
        run_specs(text, find_model=model_shape)


def test_a_half_known_card_is_read_by_its_known_part():
    """The answer says how it was read; an unknown card costs only the speed."""
    near, far = answers({"gpu": "NVIDIA H100-80GB of some lab"}, {"gpu": "Frobnicator 9"})
    assert near["peak_gib"] == far["peak_gib"]
    assert near["warnings"]
    assert any("not in the catalogue" in text for text in far["warnings"])
    assert "tokens_per_s_per_gpu" not in far


def test_a_module_that_the_model_has_not_is_named():
    """It counts for nothing, and the answer says what is counted."""
    some, none, all_linear, full = answers(
        {"target_modules": ["q_proj", "foo"]}, {"target_modules": "bar"},
        {"target_modules": "all-linear"}, {"update": "full"},
    )  # fmt: skip
    said = "target_modules: Qwen/Qwen3-8B has no layer called {}: left out; counted are {}"
    assert some["warnings"] == [said.format("foo", "q_proj")]
    assert none["warnings"] == [said.format("bar", "q_proj, k_proj, v_proj, o_proj")]
    assert (all_linear["warnings"], full["warnings"]) == ([], [])


@pytest.mark.parametrize("update", ["full", "lora", "adapter", "prefix", "qlora"])
def test_terms_add_up_to_the_need(update):
    """The printed terms sum to the printed need."""
    (found,) = answers({"update": update})
    terms = sum(term["gib"] for term in found["terms"])
    assert terms == pytest.approx(found["need_gib"], abs=0.002)
    assert found["least_gib"] <= found["need_gib"] <= found["peak_gib"]
    assert found["need_low_gib"] < found["need_gib"] < found["need_high_gib"]
    assert found["low_gib"] < found["peak_gib"] < found["high_gib"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@examples(4)
@given(item=st.dictionaries(st.sampled_from(sorted(SPEC.keys)), json_values, max_size=6))
def test_any_values_give_an_answer_or_a_reason(item):
    """Whatever stands in a spec, the answer is a number with a band or null with a reason."""
    if "/" in str(item.get("model")):
        del item["model"]
    (found,) = run_specs(json.dumps([item]), find_model=model_shape, find_gpu=find_gpu)
    assert (found["peak_gib"] is None) == ("reason" in found)


@pytest.mark.parametrize(
    ("gpu", "said"), [("RTX 4090", True), ("M4 Max", False), ("MI300X", False)]
)
def test_only_an_nvidia_card_is_read_by_nvidia_smi(gpu, said):
    """The program is named only where there is one."""
    (found,) = answers({"model": "Qwen/Qwen3-4B", "gpu": gpu, "counter": "nvidia-smi"})
    text = " ".join(estimate_text({**found, "peak_gib": 20, "counter": "nvidia-smi"}).split())
    assert ("nvidia-smi" in text, "for the whole process" in text) == (said, True)


def test_the_page_names_every_key():
    """docs/estimate.md has each key of a spec and of an answer, and an example that works."""
    specs, _, of_answers = PAGE.read_text("utf-8").partition("## The answer")
    table = specs.partition("## A run spec")[2]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert sorted([key for row in rows for key in re.findall(r"`(\w+)`", row)]) == sorted(SPEC.keys)
    (found,) = answers(TIMED)
    assert set(found) <= set(re.findall(r"`(\w+)`", of_answers))
    example = PAGE.read_text("utf-8").partition("```json\n")[2].partition("```")[0]
    (found,) = run_specs(example, find_model=model_shape, find_gpu=find_gpu)
    assert found["peak_gib"] > 0


LLAMA_CONFIG = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "vocab_size": 32000,
    "num_attention_heads": 32, "intermediate_size": 11008,
}  # fmt: skip
EIGHT = {"seq_len": 8192, "micro_batch_size": 8}
PACKED = {**EIGHT, "packing": True}


@pytest.mark.parametrize(
    ("spec", "other", "said"),
    [
        # Other words, and config.json's keys in place of a name.
        ({"update": "qlora"}, {"update": "lora", "quantization": "nf4"}, []),
        ({"compute_dtype": "BF16"}, {}, []),
        ({"model": None, "architecture": LLAMA_CONFIG}, {"model": "meta-llama/Llama-2-7b-hf"}, []),
        # What is left out beside another key is said with both.
        ({"update": "full", "rank": 4}, {"update": "full"}, ["update", "rank"]),
        ({"kbit_prepared": True}, {}, ["kbit_prepared"]),
        ({"sharding": "fsdp", "gpus": 1}, {}, ["fsdp", "gpus"]),
        ({"objective": "rm", "loss": "fused"}, {"objective": "rm"}, ["rm", "loss"]),
        ({"weights_dtype": "float32", "fp32_master_weights": True}, {"weights_dtype": "float32"},
         ["weights_dtype", "fp32_master_weights"]),
        ({"update": "full", "sharding": "zero3", "fp32_master_weights": False},
         {"update": "full", "sharding": "zero3"}, ["fp32_master_weights false", "keeps them"]),
        # Rows that are cut are counted; none is wider than the longest, unless packed.
        ({"seq_len": 1024, "lengths": [[512, 90], [4096, 10]]}, {"seq_len": 1024},
         ["10 rows are longer"]),
        ({**EIGHT, "lengths": [[256, 90], [512, 10]]}, {**EIGHT, "seq_len": 512}, []),
        ({**PACKED, "lengths": [[512, 10]]}, PACKED, []),
        # 8-bit products change the time alone; 16-bit ones need no word.
        ({"compute_dtype": "fp8", "gpu": "H100"}, {"compute_dtype": "bfloat16", "gpu": "H100"},
         ["compute_dtype fp8: it counts for the time; memory is counted as with 16-bit products"]),
    ],
)  # fmt: skip
def test_two_specs_have_the_same_memory(spec, other, said):
    """The same numbers, and a warning if some part of the spec is not counted."""
    found, plain = answers(spec, other)
    for key in ("peak_gib", "need_gib"):
        assert found[key] == pytest.approx(plain[key], rel=0.02 if "lengths" in spec else 0)
    more = [text for text in found["warnings"] if text not in plain["warnings"]]
    assert len(more) == bool(said)
    assert all(words in more[0] for words in said)
    assert not any(words in text for words in said[:1] for text in plain["warnings"])


def test_packed_rows_fill_the_sequence():
    """More than twice as much as rows of a sixteenth of it."""
    packed, alone = answers(*({**one, "lengths": [[512, 10]]} for one in (PACKED, EIGHT)))
    assert packed["peak_gib"] > 2 * alone["peak_gib"]
