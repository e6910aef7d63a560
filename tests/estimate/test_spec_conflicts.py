"""Two things in one run spec that cannot go together: both are named."""

from __future__ import annotations

import json

import pytest

from advisor.estimate.answers import run_specs
from advisor.probe.catalogue import find_gpu
from advisor.situation.models import model_shape

MODEL = {"model": "Qwen/Qwen3-8B"}


def answers(*items: dict) -> list[dict]:
    return run_specs(
        json.dumps([{**MODEL, **item} for item in items]), find_model=model_shape, find_gpu=find_gpu
    )


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ({"optimizer_in_backward": True, "grad_accum": 4}, ("optimizer_in_backward", "grad_accum")),
        ({"packing": True, "objective": "dpo"}, ("packing", "objective dpo")),
        ({"offload_weights": True, "sharding": "ddp", "gpus": 2}, ("offload_weights", "ddp")),
        ({"compute_dtype": "fp8", "gpu": "A100 80GB"}, ("compute_dtype fp8", "gpu A100")),
        ({"compute_dtype": "nvfp4", "gpu": "H100"}, ("nvfp4", "H100", "10.0")),
        ({"rows_total": 100, "tokens_total": 50}, ("rows_total", "tokens_total")),
        ({"active_params_b": 30, "model_params_b": 8}, ("active_params_b 30", "model_params_b 8")),
        ({"lengths": [[200, 1], [100, 1]]}, ("lengths", "100 follows 200")),
        ({"update": "full", "quantization": "nf4"}, ("full", "quantised")),
    ],
)
def test_what_cannot_go_together_is_refused_by_both_names(spec, names):
    """No number for a run that no engine can make; the reason names both keys."""
    (found,) = answers(spec)
    assert found["peak_gib"] is None
    for name in names:
        assert name in found["reason"]


def test_all_conflicts_of_a_spec_are_said_together():
    """Two conflicts are two reasons in one answer."""
    (found,) = answers(
        {"optimizer_in_backward": True, "grad_accum": 4, "lengths": [[9, 1], [9, 1]]}
    )
    assert "grad_accum" in found["reason"]
    assert "9 follows 9" in found["reason"]


@pytest.mark.parametrize(
    ("spec", "without"),
    [
        ({"update": "full", "rank": 4}, {"update": "full"}),
        ({"kbit_prepared": True}, {}),
        ({"sharding": "fsdp", "gpus": 1}, {}),
        ({"objective": "rm", "loss": "fused"}, {"objective": "rm"}),
        ({"weights_dtype": "float32", "fp32_master_weights": True}, {"weights_dtype": "float32"}),
    ],
)
def test_what_is_left_out_beside_another_key_changes_no_number_and_is_said(spec, without):
    """The estimate is that of the spec without the key, and a warning names both keys."""
    found, plain = answers(spec, without)
    assert found["peak_gib"] == plain["peak_gib"]
    said = [text for text in found["warnings"] if text not in plain["warnings"]]
    assert len(said) == 1
    for key, value in spec.items():
        assert key in said[0] or str(value) in said[0]


def test_a_row_longer_than_the_sequence_is_counted():
    """How many rows are cut is said, and the memory is that of rows as long as seq_len."""
    found, whole = answers({"seq_len": 1024, "lengths": [[512, 90], [4096, 10]]}, {"seq_len": 1024})
    assert any("10 rows are longer" in text for text in found["warnings"])
    assert found["peak_gib"] == whole["peak_gib"]


def test_no_batch_is_wider_than_the_longest_row():
    """Rows that are all shorter than seq_len take what their own length takes, unless packed."""
    short, own, packed, full = answers(
        {"seq_len": 8192, "micro_batch_size": 8, "lengths": [[256, 90], [512, 10]]},
        {"seq_len": 512, "micro_batch_size": 8},
        {"seq_len": 8192, "micro_batch_size": 8, "packing": True, "lengths": [[512, 10]]},
        {"seq_len": 8192, "micro_batch_size": 8, "packing": True},
    )
    assert short["peak_gib"] == pytest.approx(own["peak_gib"], rel=0.02)
    assert packed["peak_gib"] == full["peak_gib"] > 2 * short["peak_gib"]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"compute_dtype": "int3"}, "compute_dtype"),
        ({"date": "2025-13"}, "date"),
        ({"date": "last summer"}, "date"),
        ({"library_versions": {"torch": 2.4}}, "library_versions.torch"),
        ({"library_versions": ["torch"]}, "library_versions"),
        ({"lengths": [[100]]}, "lengths"),
        ({"lengths": [[100, 0]]}, "lengths"),
        ({"evaluation": "never"}, "evaluation"),
    ],
)
def test_a_bad_value_names_its_key(spec, says):
    """A reason with the key and what is allowed."""
    (found,) = answers(spec)
    assert found["peak_gib"] is None
    assert says in found["reason"]


def test_spellings_of_a_compute_type_are_read():
    """BF16 is bfloat16; a compute type of 16 bit changes nothing."""
    found, plain = answers({"compute_dtype": "BF16"}, {})
    assert found["peak_gib"] == plain["peak_gib"]


def test_memory_says_that_narrow_products_are_not_counted():
    """8-bit products change the time alone, and the answer says so; 16-bit ones need no word."""
    narrow, usual = answers(
        {"compute_dtype": "fp8", "gpu": "H100"}, {"compute_dtype": "bfloat16", "gpu": "H100"}
    )
    said = "compute_dtype fp8: it counts for the time; memory is counted as with 16-bit products"
    assert said in narrow["warnings"]
    assert narrow["need_gib"] == usual["need_gib"]
    assert not any("compute_dtype" in warning for warning in usual["warnings"])
