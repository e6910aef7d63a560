"""Apple and AMD GPUs: pages and plans name only what runs there and say what was never tried."""

import json
import random
import re

import pytest

from advisor.api import advise_document
from advisor.ground.errors import InputError
from advisor.ground.types import Answer, AnswerSet
from advisor.methods.optimizers import optimizer
from advisor.render.advice_json import advice_document
from advisor.situation.build import situation_of
from tests.advice.situations import advice_on, advised, random_answers
from tests.conftest import scaled

APPLE = ("M4 Max 64GB", "M2 16GB", "M3 Max 36GB")
AMD = ("RX 7900 XTX", "MI300X")


@pytest.mark.parametrize("gpus", [APPLE, AMD], ids=["apple", "amd"])
def test_nothing_of_nvidia_on_the_page(gpus):
    """No answer names what only NVIDIA's GPUs have, and every training there has a warning."""
    rng = random.Random(3)
    trained = 0
    for seed in range(scaled(80)):
        known = {**random_answers(seed).known, "gpu": Answer(value=rng.choice(gpus), origin="flag")}
        known.pop("gpus", None)
        try:
            advice = advice_on(situation_of(AnswerSet(known=known)), flips=seed % 4 == 0)
        except InputError:  # what was drawn contradicts itself
            continue
        text = json.dumps(advice_document(advice, plan=None))
        assert [one for one in ("CUDA", "Ampere") if one in text] == []
        if not advice.recommendation.composition.chain:
            continue
        trained += 1
        assert any("never run on an A" in warning for warning in advice.warnings)
        assert any("MLX" in warning for warning in advice.warnings) is (gpus is APPLE)
        if gpus is APPLE:
            for candidate in (advice.recommendation, *advice.alternatives):
                for stage in candidate.stages:
                    assert "mps" in optimizer(str(stage.reasons["optimizer"].value)).devices
    assert trained >= 5


@pytest.mark.parametrize(
    ("model", "composition"), [("Qwen/Qwen3-8B", "sft+lora"), ("Qwen/Qwen3-32B", "sft+qlora")]
)
def test_four_bit_is_for_what_does_not_fit_otherwise_on_a_mac(model, composition):
    """A small budget alone asks for it on other GPUs; here LoRA comes first while it fits."""
    qa = {"task": "other", "data_kind": "paired", "data_rows": 3000, "budget": "low"}
    advice = advised(gpu="M4 Max 64GB", model=model, **qa)
    assert str(advice.recommendation.composition) == composition
    said = any("mlx_lm.convert -q" in warning for warning in advice.warnings)
    assert said or composition == "sft+lora"


LONG = "rows of 90,000 words"


@pytest.mark.parametrize(
    ("model", "gpu", "count", "data", "rules"),
    [
        ("meta-llama/Llama-3.1-8B", "H100 80GB SXM5", 128, None, ["evidence/more-than-64-gpus"]),
        ("deepseek-ai/DeepSeek-V3", "H200 SXM", 64, None, ["evidence/large-mixture-of-experts"]),
        ("meta-llama/Llama-3.1-8B", "H100 80GB SXM5", 8, LONG,
         ["evidence/rows-for-context-parallelism"]),
        # Ordinary fine-tuning, of 8B to 70B on up to 64 GPUs, names none.
        ("meta-llama/Llama-3.1-8B", "H100 80GB SXM5", 64, None, []),
        ("meta-llama/Llama-3.1-70B", "H100 80GB SXM5", 8, None, []),
    ],
)  # fmt: skip
def test_another_engine_is_named_beside_the_estimate(tmp_path, model, gpu, count, data, rules):
    """Each rule has a scenario of its own; here hardware, model and long rows are named."""
    stated = {"kind": "paired", "rows": 50_000}
    if data == LONG:
        rows = [{"prompt": "words " * 90_000, "completion": f"answer {one}"} for one in range(3)]
        stated = {"path": str(tmp_path / "long.jsonl")}
        (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    document = advise_document(
        {"task": "customer_service", "data": stated, "model": model,
         "gpu": {"name": gpu, "count": count}}
    )  # fmt: skip
    engines = re.compile("torchtitan|Megatron Bridge|fsdp_qlora")
    said = [line.rpartition("(")[2] for line in document["warnings"] if engines.search(line)]
    assert said == [f"{rule})" for rule in rules]
    assert data or document["recommendation"]["estimate"]["need_gib"] > 0
