"""Run specs: a list in, a list of the same length out, and no crash on anything."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.estimate.answers import run_specs
from advisor.estimate.spec import SPEC, request_of
from advisor.ground.errors import InputError
from advisor.probe.catalogue import find_gpu
from advisor.render.estimate import estimate_text, estimates_text
from advisor.situation.models import model_shape
from tests.conftest import examples


def answers(items: object) -> list[dict]:
    return run_specs(json.dumps(items), find_model=model_shape, find_gpu=find_gpu)


def test_one_bad_spec_does_not_spoil_the_list():
    """A spec that cannot be answered says why in its place; its neighbours are answered."""
    found = answers(
        [
            {"model": "Qwen/Qwen3-8B"},
            {"model": "Qwen/Qwen3-8B", "optimiser": "adamw"},
            7,
            {"update": "lora"},
            {"model": "Qwen/Qwen3-8B", "gpu": "RTX 4090"},
        ]
    )
    assert [item["peak_gib"] is not None for item in found] == [True, False, False, False, True]
    assert "unknown key" in found[1]["reason"]
    assert "no model" in found[3]["reason"]
    assert found[4]["tokens_per_s_per_gpu"] > 0


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"rank": 0}, "rank"),
        ({"rank": float("inf")}, "rank"),
        ({"seq_len": -1}, "seq_len"),
        ({"gpus": 0}, "gpus"),
        ({"optimizer": "adamm"}, "optimizer"),
        ({"micro_batch_size": 1.5}, "micro_batch_size"),
        ({"update": "full", "quantization": "nf4"}, "frozen"),
        ({"model": "a model of no size"}, "no size"),
        ({"architecture": {"hidden_size": 64}, "model": None}, "num_hidden_layers"),
        (
            {
                "architecture": {
                    "hidden_size": 64,
                    "num_hidden_layers": 2,
                    "vocab_size": 100,
                    "num_attention_heads": 6,
                    "num_key_value_heads": 4,
                }
            },
            "divide",
        ),
        ({"rank": 100_000}, "hidden size"),
        ({"packing": "yes"}, "packing"),
        ({"model_params_b": float("inf")}, "model_params_b"),
        ({"gradient_checkpointing": "sometimes"}, "gradient_checkpointing"),
        ({"bottleneck": -5}, "bottleneck"),
        ({"placement": "everywhere"}, "placement"),
        ({"train_embeddings": 1}, "train_embeddings"),
        ({"beta": -0.1}, "beta"),
    ],
)
def test_an_impossible_spec_names_its_field(spec, says):
    """Ranks of zero, negative lengths, unknown names, heads that do not divide: a reason with the
    field, never a number.
    """
    (found,) = answers([{"model": "Qwen/Qwen3-8B", **spec}])
    assert found["peak_gib"] is None
    assert says in found["reason"]


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
    """A label around a known name is read, and the answer says how; an unknown card costs only the
    speed.
    """
    near, far = answers(
        [
            {"model": "Qwen/Qwen3-8B", "gpu": "NVIDIA H100-80GB of some lab"},
            {"model": "Qwen/Qwen3-8B", "gpu": "Frobnicator 9"},
        ]
    )
    assert near["peak_gib"] == far["peak_gib"]
    assert near["warnings"]
    assert any("not in the catalogue" in text for text in far["warnings"])
    assert "tokens_per_s_per_gpu" not in far


def test_a_module_that_the_model_has_not_is_named():
    """Target modules that name no layer count for nothing, and the answer says which, and what is
    counted.
    """
    some, none, all_linear, full = answers(
        [
            {"model": "Qwen/Qwen3-8B", **more}
            for more in (
                {"target_modules": ["q_proj", "foo"]},
                {"target_modules": "bar"},
                {"target_modules": "all-linear"},
                {"update": "full"},
            )
        ]
    )
    assert some["warnings"] == [
        "target_modules: Qwen/Qwen3-8B has no layer called foo: left out; counted are q_proj"
    ]
    assert none["warnings"] == [
        "target_modules: Qwen/Qwen3-8B has no layer called bar: left out; counted are q_proj,"
        " k_proj, v_proj, o_proj"
    ]
    assert (all_linear["warnings"], full["warnings"]) == ([], [])


def test_qlora_is_lora_on_nf4():
    """The everyday word and the two keys give the same answer."""
    one, two = answers(
        [
            {"model": "Qwen/Qwen3-8B", "update": "qlora"},
            {"model": "Qwen/Qwen3-8B", "update": "lora", "quantization": "nf4"},
        ]
    )
    assert one == two


def test_terms_add_up_to_the_need():
    """The printed terms sum to the printed need."""
    for found in answers(
        [
            {"model": "Qwen/Qwen3-8B", "update": update}
            for update in ("full", "lora", "adapter", "prefix", "qlora")
        ]
    ):
        assert sum(term["gib"] for term in found["terms"]) == pytest.approx(
            found["need_gib"], abs=0.002
        )
        assert found["least_gib"] <= found["need_gib"] <= found["peak_gib"]
        assert found["need_low_gib"] < found["need_gib"] < found["need_high_gib"]
        assert found["low_gib"] < found["peak_gib"] < found["high_gib"]


def test_an_architecture_stands_in_for_a_model():
    """config.json's keys in a spec give a known shape."""
    config = {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "intermediate_size": 11008,
        "vocab_size": 32000,
    }
    own, known = answers([{"architecture": config}, {"model": "meta-llama/Llama-2-7b-hf"}])
    assert own["peak_gib"] == known["peak_gib"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@examples(4)
@given(item=st.dictionaries(st.sampled_from(sorted(SPEC.keys)), json_values, max_size=6))
def test_any_values_give_an_answer_or_a_reason(item):
    """Whatever stands in a spec, the answer is a number with a band or null with a reason."""
    item = {
        key: value
        for key, value in item.items()
        if key != "model" or not isinstance(value, str) or "/" not in value
    }
    (found,) = answers([item])
    assert (found["peak_gib"] is None) == ("reason" in found)


def test_the_text_has_a_bar_per_term_and_stays_in_width():
    """For people: a line with a bar for each term, the card's share, nothing wider than the
    terminal.
    """
    (found,) = answers([{"model": "Qwen/Qwen3-8B", "gpu": "RTX 4090", "tokens_total": 1_000_000}])
    text = estimate_text(
        {**found, "peak_gib": 20, "counter": "nvidia-smi", "limit_gib": 24, "fits": "fits"},
        title="Qwen3-8B",
        width=72,
    )
    assert all(len(line) <= 72 for line in text.splitlines())
    assert sum("#" in line for line in text.splitlines()) >= 2
    assert "of the device's 24.0 GiB: it fits" in text
    assert "nvidia-smi shows up to 20.0 GiB" in " ".join(text.split())
    assert "returns them when memory is short" in " ".join(text.split())
    assert "tokens/s" in text
    assert "no estimate" in estimates_text(answers([{"model": "zzz"}]))


def test_an_amount_of_data_may_be_large():
    """Two billion tokens in four million rows are a data set."""
    spec = {
        "model": "Qwen/Qwen3-8B", "gpu": "H100 SXM", "tokens_total": 2_000_000_000,
        "rows_total": 4_000_000,
    }  # fmt: skip
    (found,) = answers([spec])
    assert found["hours"] > 1


@pytest.mark.parametrize(
    ("gpu", "said"), [("RTX 4090", True), ("M4 Max", False), ("MI300X", False)]
)
def test_only_an_nvidia_card_is_read_by_nvidia_smi(gpu, said):
    """The program is named only where there is one."""
    (found,) = answers([{"model": "Qwen/Qwen3-4B", "gpu": gpu, "counter": "nvidia-smi"}])
    text = " ".join(estimate_text({**found, "peak_gib": 20, "counter": "nvidia-smi"}).split())
    assert ("nvidia-smi" in text) == said
    assert "for the whole process" in text


def test_the_page_names_every_key_of_a_spec():
    """docs/estimate.md says what each key of a run spec means, and names none that is refused."""
    page = (Path(__file__).parents[2] / "docs" / "estimate.md").read_text("utf-8")
    table = page.partition("## A run spec")[2].partition("## The answer")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = [key for row in rows for key in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(SPEC.keys)


def test_the_page_names_every_key_of_an_answer():
    """docs/estimate.md says what each number of an answer means."""
    page = (Path(__file__).parents[2] / "docs" / "estimate.md").read_text("utf-8")
    named = set(re.findall(r"`(\w+)`", page.partition("## The answer")[2]))
    (found,) = answers([{"model": "Qwen/Qwen3-8B", "gpu": "RTX 4090", "tokens_total": 1_000_000}])
    assert set(found) <= named, set(found) - named


def test_the_page_s_example_is_answered():
    """The spec that docs/estimate.md shows gets an estimate."""
    page = (Path(__file__).parents[2] / "docs" / "estimate.md").read_text("utf-8")
    (found,) = answers(json.loads(page.partition("```json\n")[2].partition("```")[0]))
    assert found["peak_gib"] > 0
