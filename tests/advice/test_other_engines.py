"""When another training engine is named, and that ordinary situations name none."""

from __future__ import annotations

import json

import pytest

from advisor.api import advise_document

ENGINES = "torchtitan", "Megatron Bridge", "fsdp_qlora"
COMMON = {"task": "customer_service", "data": {"kind": "paired", "rows": 50_000}}


def named(**answers):
    """The rules that name another engine in the answer."""
    document = advise_document({**COMMON, **answers})
    said = [line for line in document["warnings"] if any(name in line for name in ENGINES)]
    return [line.rpartition("(")[2].rstrip(")") for line in said], document


def on(name, count):
    return {"name": name, "count": count}


@pytest.mark.parametrize(
    ("model", "gpu", "rules"),
    [
        ("meta-llama/Llama-3.1-8B", on("H100 80GB SXM5", 128), ["evidence/more-than-64-gpus"]),
        ("deepseek-ai/DeepSeek-V3", on("H200 SXM", 64), ["evidence/large-mixture-of-experts"]),
    ],
    ids=["128 GPUs", "671B of experts"],
)
def test_another_engine_is_named_beside_the_estimate(model, gpu, rules):
    """Each rule has a scenario of its own; here the hardware and the model are named."""
    found, document = named(model=model, gpu=gpu)
    assert found == rules
    assert document["recommendation"]["estimate"]["need_gib"] > 0


def test_rows_too_long_for_one_gpu_name_context_parallelism(tmp_path):
    """Read from the data: rows of about 100,000 tokens."""
    path = tmp_path / "long.jsonl"
    rows = [{"prompt": "words " * 90_000, "completion": f"answer {one}"} for one in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, _ = named(
        model="meta-llama/Llama-3.1-8B", gpu=on("H100 80GB SXM5", 8), data={"path": str(path)}
    )
    assert found == ["evidence/rows-for-context-parallelism"]


@pytest.mark.parametrize(
    ("model", "gpu"),
    [
        ("meta-llama/Llama-3.1-8B", on("H100 80GB SXM5", 64)),
        ("meta-llama/Llama-3.1-70B", on("H100 80GB SXM5", 8)),
    ],
)
def test_ordinary_fine_tuning_names_no_other_engine(model, gpu):
    """8B to 70B on up to 64 GPUs is what this tool does."""
    assert named(model=model, gpu=gpu)[0] == []
