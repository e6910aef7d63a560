"""Method first, engine second: which engine trains what the bundled trainers do not hold."""

import json
import shlex

import pytest

from advisor.api import advise_document
from advisor.export.exporter import exporters
from advisor.methods.engines import engines
from advisor.methods.trainers import trainers

STATED = {"task": "customer_service", "data": {"kind": "paired", "rows": 3000}}
IDS = {"unsloth", "axolotl", "ms-swift", "trl", "mlx-lm", "torchtitan", "megatron"}
# model, card, count -> composition, engine, form of its file
CASES = [  # model, card, number of cards
    ("Qwen/Qwen3-8B", "RTX 4090", 1),
    ("Qwen/Qwen3-30B-A3B", "RTX 4090", 1),
    ("Qwen/Qwen3-Next-80B-A3B-Instruct", "H100", 1),
    ("meta-llama/Llama-3.3-70B-Instruct", "RTX 3090", 2),
    ("Qwen/Qwen3-32B", "Apple M3", 1),
    # A device that is not ours gets its method and its engine.
    *(("Qwen/Qwen3-8B", gpu, 1) for gpu in ("TPU v5e", "Ascend 910B", "Arc A770", "Tesla K80")),
]


def test_every_engine_has_its_source_its_trainer_and_its_file():
    """The table names pages with the day they were read, and only what this product has."""
    assert {*engines()} == IDS
    for engine in engines().values():
        assert not engine.trainer or engine.trainer in trainers()
        assert not engine.form or exporters()[engine.form].ANSWERS
        for held in engine.holds:
            assert held.source.url.startswith("https://")
            assert held.source.checked


@pytest.mark.parametrize(("model", "gpu", "count"), CASES)
def test_who_trains_it_is_stated_after_the_method(approved, model, gpu, count):
    """Ours where ours loads it, else the engine of the table, with its reason and its line; never a
    line that would be refused there.
    """
    gib = {"vram_gib": 32} if "Apple" in gpu else {}
    document = advise_document(
        {**STATED, "model": model, "gpu": {"name": gpu, "count": count, **gib}}
    )
    answer = document["recommendation"]
    found = answer["engine"]
    steps = document["next_steps"]
    approved([answer["composition"], found, document["missing"], steps])
    assert answer["estimate"]["fits"] != "too_big"
    if found["runs_here"]:
        assert "experts" not in str(answer["estimate"]["terms"])
        return
    assert document["plan"] is None
    assert not any(line.startswith("advise run") for line in steps)
    assert not any("experts stay in 16 bit" in one for one in document["warnings"])


def test_a_smaller_model_is_the_answer_where_no_engine_holds_it():
    """With the number of the engine that needs least."""
    gpu = {"name": "RTX 4090"}
    stated = {**STATED, "model": "mistralai/Mixtral-8x22B-Instruct-v0.1", "gpu": gpu}
    document = advise_document(stated)
    assert document["recommendation"]["composition"] == "smaller_model"
    (qlora,) = [one for one in document["alternatives"] if one["composition"] == "sft+qlora"]
    assert 60 < qlora["because"][0]["needs"] < 110  # 141 billion weights of half a byte: 66 GiB


def test_the_printed_line_writes_the_engines_file(call, tmp_path):
    """Exit 0 without a plan, 3 if one was asked for; the line in `export` then works as printed."""
    rows = (f'{{"question": "What is {n}?", "answer": "It is {n}."}}\n' for n in range(300))
    (tmp_path / "my rows.jsonl").write_text("".join(rows))
    asked = ["--task", "customer_service", "--data", "my rows.jsonl", "--model", "Qwen/Qwen3-30B-A3B",
             "--gpu", "RTX 4090", "--choose", "rag & sft+qlora", "--force"]  # fmt: skip
    code, out, _ = call("--json", *asked)
    answer = json.loads(out)["recommendation"]
    assert (code, answer["engine"]["id"]) == (0, "unsloth")
    code, out, _ = call("--json", "--brief", *asked)
    assert (code, json.loads(out)["engine"]) == (0, "unsloth")
    code, out, err = call(*asked, "--plan", "plan.yaml")
    assert code == 3
    assert "Engine   QLoRA, with Unsloth's 4-bit copy: these trainers do not load it yet." in out
    assert not (tmp_path / "plan.yaml").exists()
    code, _, err = call("run", *asked)
    assert (code, "advise export" in err) == (3, True)
    line = answer["engine"]["export"]
    assert line == shlex.join(shlex.split(line))
    code, _, _ = call(*shlex.split(line)[1:])
    assert code == 0
    written = {path.name for path in (tmp_path / "unsloth-files").iterdir()}
    assert written == {"unsloth.yaml", "train.py", "data"}
    code, _, err = call("export", *asked, "--to", "bundle")
    assert (code, "takes a written plan" in err) == (2, True)
