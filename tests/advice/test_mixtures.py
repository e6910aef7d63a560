"""Advice for mixtures of experts: three models on GPUs of 24, 48 and 80 GB, by true sizes.

Experts' bytes are layers x experts x 3 matrices x hidden size x width x 2, from each config.json.
"""

import json

import pytest

from advisor.api import advise, advise_document

GIB = 2**30
EXPERTS = {  # bytes of the experts' matrices in 16 bit
    "Qwen/Qwen3-30B-A3B": 48 * 128 * 3 * 2048 * 768 * 2,  # 54.0 GiB
    "mistralai/Mixtral-8x7B-Instruct-v0.1": 32 * 8 * 3 * 4096 * 14336 * 2,  # 84.0 GiB
    "openai/gpt-oss-20b": 24 * 32 * 3 * 2880 * 2880 * 2,  # 35.6 GiB
}
GPUS = {"RTX 4090": 24 * GIB, "RTX A6000": 48 * GIB, "A100 80GB": 80 * GIB}
# Where the bundled trainers hold it. Everywhere else 16-bit experts alone are too big.
RUNS = {
    ("Qwen/Qwen3-30B-A3B", "A100 80GB"): "sft+lora",
    ("openai/gpt-oss-20b", "RTX A6000"): "sft+lora",
    ("openai/gpt-oss-20b", "A100 80GB"): "sft+lora",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What is stated beside model and GPU: requests with their answers."""
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [{"prompt": f"Where is {i}?", "completion": f"It is at {i}."} for i in range(240)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"task": "customer_service", "data": {"path": str(path)}}


def candidate(advice, name):
    found = {str(one.composition): one for one in (advice.recommendation, *advice.alternatives)}
    return found[name]


@pytest.mark.parametrize(("gpu", "room"), GPUS.items())
@pytest.mark.parametrize(("model", "experts"), EXPERTS.items())
def test_experts_stay_in_16_bit_with_ours_and_are_in_4_bit_elsewhere(
    model, experts, gpu, room, answers
):
    """Where 16-bit experts fit, the bundled trainers take LoRA; else an engine holds them in 4 bit,
    and only where those are too big as well is a smaller model the answer.
    """
    advice = advise({**answers, "model": model, "gpu": {"name": gpu}})
    found = advice.recommendation
    if wanted := RUNS.get((model, gpu)):
        assert (str(found.composition), found.engine) == (wanted, None)
        assert experts < found.estimate.memory.need_bytes <= room
        return
    four_bit = candidate(advice, "sft+qlora") if not advice.fits else found
    assert four_bit.engine.id == "unsloth"
    need = four_bit.estimate.memory.need_bytes
    assert experts / 4 < need < experts  # half a byte a weight in place of two
    assert advice.fits == (need <= room)
    assert str(found.composition) == ("sft+qlora" if advice.fits else "smaller_model")
    if not advice.fits:
        assert f"needs {need / GIB:.1f} GiB" in four_bit.because[0].text


@pytest.mark.parametrize(("model", "gpu"), [*RUNS, ("Qwen/Qwen3-8B", "A100 80GB")])
def test_a_plan_corrects_attention_and_shared_layers(model, gpu, answers):
    """LoRA leaves experts and router alone and says so; a dense model has all layers corrected."""
    document = advise_document({**answers, "model": model, "gpu": {"name": gpu}})
    (stage,) = document["plan"]["stages"]
    mixes = model in EXPERTS
    assert stage["target_modules"] == ("attention-and-shared" if mixes else "all-linear")
    assert stage.get("quantization") is None
    said = " ".join(document["warnings"])
    assert ("not the routed experts" in said, "experts" in said) == (mixes, mixes)


def test_a_checkpoint_in_mxfp4_is_trained_in_16_bit(answers):
    """gpt-oss cannot be quantised a second time, by --force neither; its attention has no sdpa."""
    stated = {**answers, "model": "openai/gpt-oss-20b", "gpu": {"name": "A100 80GB"}}
    advice = advise({**stated, "budget": "low"})
    four_bit = candidate(advice, "sft+qlora")
    assert four_bit.verdict == "too_big"
    assert not four_bit.forced_ok
    assert "cannot be quantised a second time" in four_bit.because[0].text
    assert str(advice.recommendation.composition) == "sft+lora"
    assert any("written out in 16 bit" in warning for warning in advice.warnings)
    assert advice.recommendation.stages[0].reasons["attention"].value == "eager"


@pytest.mark.parametrize(
    "model", ["TheBloke/Mixtral-8x7B-Instruct-v0.1-GPTQ", "acme/Writer-7B-AWQ"]
)
def test_a_packed_checkpoint_is_neither_trained_whole_nor_quantised(model, answers):
    """GPTQ, by the catalogue or by the name: LoRA beside it, and a word on what it needs."""
    advice = advise({**answers, "model": model, "gpu": {"name": "H200"}})
    assert str(advice.recommendation.composition) == "sft+lora"
    for name in ("sft+full", "sft+qlora"):
        assert "its checkpoint is stored in" in candidate(advice, name).because[0].text
    assert any("package that the training extra" in warning for warning in advice.warnings)


def test_a_4_bit_base_that_just_fits_a_mixture_says_how_little_it_saves(answers):
    """Gemma 4 26B-A4B: 47.0 GiB of weights in 16 bit, 44.8 with attention and MLPs in 4 bit."""
    advice = advise({**answers, "model": "google/gemma-4-26B-A4B-it", "gpu": {"name": "RTX A6000"}})
    assert str(advice.recommendation.composition) == "sft+qlora"
    assert any("experts stay in 16 bit" in warning for warning in advice.warnings)
    assert advice.recommendation.estimate.memory.need_bytes <= 48 * GIB
