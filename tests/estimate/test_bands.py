"""The band around an estimate: what widens it, and by how much (advisor/estimate/memory/bands.py)."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from advisor.estimate.answers import run_specs
from advisor.estimate.memory.bands import KNOWN, WIDTHS, WORDS, band, log_widths
from advisor.estimate.types import MemoryEstimate
from advisor.render.estimate import estimate_text
from advisor.situation.models import model_shape
from tests.estimate.specs import RunSpec, memory_estimate, shape

DOUBTS = st.lists(st.sampled_from(list(WORDS)), unique=True).map(tuple)
SPEC = RunSpec(update="lora", rank=16, seq_len=2048, micro_batch_size=2, loss="chunked")


def estimated(spec: RunSpec, model: str = "meta-llama/Llama-3.1-8B") -> MemoryEstimate:
    found = memory_estimate(spec, shape(model))
    assert found is not None
    return found


def test_every_doubt_has_a_width_and_words():
    """What widens a band can be fitted and said."""
    assert {KNOWN, *WORDS} == set(WIDTHS)
    assert all(0 <= width < 2 for pair in WIDTHS.values() for width in pair)


@given(DOUBTS, st.sampled_from(list(WORDS)))
def test_each_doubt_widens_the_band_or_leaves_it(doubts: tuple[str, ...], more: str):
    """Knowing less never makes an estimate look surer."""
    before, after = band(doubts), band((*doubts, more))
    assert after[0] >= before[0]
    assert after[1] >= before[1]
    assert 0 < after[0] < 1


def test_widths_add_in_squares():
    """Independent errors do."""
    widths = {KNOWN: (0.3, 0.0), "trainer": (0.4, 0.5)}
    assert log_widths(("trainer",), widths) == pytest.approx((0.5, 0.5))
    assert log_widths((), widths) == pytest.approx((0.3, 0.0))


@pytest.mark.parametrize(
    ("changed", "doubt"),
    [
        ({"framework": "a trainer of our own"}, "trainer"),
        ({"counter": "unknown"}, "counter"),
        ({"framework": "torchtune Nov 2024", "loss": None}, "loss"),
        ({"gradient_checkpointing": "offload"}, "offload"),
        ({"optimizer": "adamw_cpu"}, "offload"),
        ({"gpus": 4, "sharding": "fsdp"}, "gpus"),
    ],
)
def test_what_is_not_known_of_a_run_is_named(changed, doubt):
    """Each thing that is unknown or hard to predict is among the doubts, and nothing else is."""
    assert estimated(SPEC).doubts == ()
    assert estimated(replace(SPEC, **changed)).doubts == (doubt,)


def test_a_model_known_by_its_size_and_a_mixture_widen_the_band():
    """Dimensions guessed from a size, and experts."""
    assert memory_estimate(SPEC, shape("", params_b=8.0)).doubts == ("size",)
    assert estimated(SPEC, "mistralai/Mixtral-8x7B-Instruct-v0.1").doubts == ("experts",)


def test_the_band_follows_the_doubts():
    """Low and high are the estimate at both ends of its band."""
    found = estimated(replace(SPEC, counter="unknown"))
    below, above = band(("counter",))
    assert found.low_bytes == pytest.approx(found.peak_bytes * (1 - below), rel=1e-6)
    assert found.high_bytes == pytest.approx(found.peak_bytes * (1 + above), rel=1e-6)
    assert math.isclose(1 - below, math.exp(-log_widths(("counter",))[0]))


def test_what_widens_the_range_is_said():
    """In words, as a list and in the text; nothing where all is known."""
    spec = {"model": "meta-llama/Llama-3.1-8B", "seq_len": 512}
    specs = [{**spec, "framework": "a trainer of our own"}, spec]
    unsure, sure = run_specs(json.dumps(specs), find_model=model_shape, find_gpu=None)
    assert unsure["band_because"] == [WORDS["trainer"], WORDS["loss"]]
    assert sure["band_because"] == []
    assert unsure["high_gib"] / unsure["peak_gib"] > sure["high_gib"] / sure["peak_gib"]
    text = " ".join(estimate_text(unsure).split())
    assert f"the range is wider because {WORDS['trainer']}" in text
    assert "wider" not in estimate_text(sure)
