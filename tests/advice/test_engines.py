"""Who trains it, on which devices, and mixtures of experts, by true sizes: three models on GPUs of 24,
48 and 80 GB. Experts' bytes are layers x experts x 3 matrices x hidden size x width x 2, from each
config.json."""

import json
import random
import re
import shlex

import pytest

from advisor.api import advise, advise_document
from advisor.export.exporter import exporters
from advisor.ground.errors import InputError
from advisor.ground.types import Answer, AnswerSet, Hardware
from advisor.methods.engines import engines
from advisor.methods.optimizers import optimizer
from advisor.methods.trainers import trainers
from advisor.render.advice_json import advice_document
from advisor.render.answer.page import LINES, OVER, first_screen, page_of
from advisor.situation.build import situation_of
from tests.advice.situations import advice_on, advised, random_answers, stated
from tests.conftest import scaled
from tests.fake_model import write_fake_model
from tests.launch.conftest import CONFIG

STATED = {"task": "customer_service", "data": {"kind": "paired", "rows": 3000}}
IDS = {"unsloth", "axolotl", "ms-swift", "trl", "mlx-lm", "torchtitan", "megatron"}
# model, card, count -> composition, engine, form of its file
CASES = [  # model, card, number of cards
    ("Qwen/Qwen3-8B", "RTX 4090", 1),
    ("Qwen/Qwen3-30B-A3B", "RTX 4090", 1),
    ("Qwen/Qwen3-Next-80B-A3B-Instruct", "H100", 1),
    ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "H100", 1),
    # As QLoRA is published for: gpt-oss-20b in 14 GB and -120b in 65 GB (Unsloth, August 2025),
    # Mixtral on one card of 48 GB, 70B on two and on four of 24 GB (Answer.AI, March 2024).
    ("openai/gpt-oss-20b", "RTX 4060 Ti 16GB", 1),
    ("openai/gpt-oss-120b", "RTX A6000", 2),
    ("mistralai/Mixtral-8x7B-Instruct-v0.1", "RTX A6000", 1),
    ("mistralai/Mixtral-8x7B-Instruct-v0.1", "RTX 4090", 2),
    *(("meta-llama/Llama-3.3-70B-Instruct", "RTX 3090", count) for count in (2, 4)),
    ("Qwen/Qwen3-32B", "Apple M3", 1),
    # A device that is not ours gets its method and its engine.
    *(("Qwen/Qwen3-8B", gpu, 1) for gpu in ("TPU v5e", "Ascend 910B", "Arc A770", "Tesla K80")),
]


@pytest.mark.extra("other_tools")
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
    found, steps = answer["engine"], document["next_steps"]
    approved([answer["composition"], found, document["missing"], steps])
    assert answer["estimate"]["fits"] != "too_big"
    if found["runs_here"]:
        assert "experts" not in str(answer["estimate"]["terms"])
        return
    assert (document["plan"], any(line.startswith("advise run") for line in steps)) == (None, False)
    assert not any("experts stay in 16 bit" in one for one in document["warnings"])


def test_a_smaller_model_is_the_answer_where_no_engine_holds_it():
    """With the number of the engine that needs least."""
    gpu = {"name": "RTX 4090"}
    stated = {**STATED, "model": "mistralai/Mixtral-8x22B-Instruct-v0.1", "gpu": gpu}
    document = advise_document(stated)
    assert document["recommendation"]["composition"] == "smaller_model"
    (qlora,) = [one for one in document["alternatives"] if one["composition"] == "sft+qlora"]
    assert 60 < qlora["because"][0]["needs"] < 110  # 141 billion weights of half a byte: 66 GiB


@pytest.mark.extra("other_tools")
def test_the_printed_line_writes_the_engines_file(call, tmp_path):
    """Exit 0 without a plan, 3 if one was asked for; the line in `export` then works as printed."""
    rows = (f'{{"question": "What is {n}?", "answer": "It is {n}."}}\n' for n in range(300))
    (tmp_path / "my rows.jsonl").write_text("".join(rows))
    asked = ["--task", "customer_service", "--data", "my rows.jsonl", "--model", "Qwen/Qwen3-8B",
             "--gpu", "Arc A770", "--choose", "rag & sft+qlora", "--force"]  # fmt: skip
    code, out, _ = call("--json", *asked)
    answer = json.loads(out)["recommendation"]
    assert (code, answer["engine"]["id"]) == (0, "unsloth")
    code, out, _ = call("--json", "--brief", *asked)
    assert (code, json.loads(out)["engine"]) == (0, "unsloth")
    code, out, err = call(*asked, "--plan", "plan.yaml")
    assert code == 3
    assert "Engine   QLoRA, with Unsloth, which runs on Intel GPUs" in out
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


APPLE = ("M4 Max 64GB", "M2 16GB", "M3 Max 36GB")
AMD = ("RX 7900 XTX", "MI300X")


@pytest.mark.parametrize("gpus", [APPLE, AMD], ids=["apple", "amd"])
def test_nothing_of_nvidia_on_the_page(gpus):
    """No answer names what only NVIDIA's GPUs have, and every training there has a warning."""
    rng, trained = random.Random(3), 0
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


LONG = "rows of 45,000 words"


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
        rows = [{"prompt": "words " * 45_000, "completion": f"answer {one}"} for one in range(120)]
        stated = {"path": str(tmp_path / "long.jsonl")}
        (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    document = advise_document(
        {"task": "customer_service", "data": stated, "model": model,
         "gpu": {"name": gpu, "count": count}, "signals": ["prompting_tried"]}
    )  # fmt: skip
    engines = re.compile("torchtitan|Megatron Bridge|fsdp_qlora")
    said = [line.rpartition("(")[2] for line in document["warnings"] if engines.search(line)]
    assert said == [f"{rule})" for rule in rules]
    assert data or document["recommendation"]["estimate"]["need_gib"] > 0


HERE = Hardware(
    kind="cpu", origin="probed", cpu_cores=8, ram_total_bytes=64 << 30, ram_free_bytes=60 << 30
)
SUPPORT = {
    "task": "customer_service",
    "data_kind": "paired",
    "data_rows": 1000,
    "data_tokens": 200_000,
}
DOWNLOADED = "; the model's files are downloaded."


@pytest.mark.parametrize(
    ("known", "says"),
    [
        (SUPPORT, f"Nothing leaves this machine{DOWNLOADED}"),
        ({**SUPPORT, "model": "model"}, "Nothing leaves this machine."),
        (
            {**SUPPORT, "gpu": "RTX 4090"},
            f"Rows and model go to the machine with the RTX 4090; if it is rented, to its provider{DOWNLOADED}",
        ),
        (
            {**SUPPORT, "gpu": "unknown"},
            f"Rows and model go to the machine with a GPU; if it is rented, to its provider{DOWNLOADED}",
        ),
        (
            {**SUPPORT, "gpu": "unknown", "budget_usd": 50},
            f"Rows and model go to the provider of the GPU that you rent{DOWNLOADED}",
        ),
        (
            {"task": "qa", "data_kind": "none"},
            "Nothing leaves this machine; the models and programs named here are downloaded.",
        ),
    ],
)
def test_one_line_says_what_leaves_the_machine(tmp_path, monkeypatch, known, says):
    """On the first screen and in the whole answer; without that priority there is no such line."""
    monkeypatch.chdir(tmp_path)
    write_fake_model(tmp_path / "model", CONFIG)
    for priority, lines in (("privacy", [says]), ("quality", [])):
        advice = advice_on(situation_of(stated(**known, priority=priority), probed=HERE))
        first = first_screen(advice)
        assert [item.text for item in first.labelled.get("Privacy", ())] == lines
        assert first.lines(80) <= LINES + OVER
        whole = repr(page_of(advice).sections)
        assert (f"Privacy: {says.removesuffix('.')}" in whole) is bool(lines)


GIB = 2**30
EXPERTS = {  # bytes of the experts' matrices in 16 bit
    "Qwen/Qwen3-30B-A3B": 48 * 128 * 3 * 2048 * 768 * 2,  # 54.0 GiB
    "mistralai/Mixtral-8x7B-Instruct-v0.1": 32 * 8 * 3 * 4096 * 14336 * 2,  # 84.0 GiB
    "openai/gpt-oss-20b": 24 * 32 * 3 * 2880 * 2880 * 2,  # 35.6 GiB
}
GPUS = {
    "RTX 4060 Ti 16GB": 16 * GIB,
    "RTX 4090": 24 * GIB,
    "RTX A6000": 48 * GIB,
    "A100 80GB": 80 * GIB,
}
# Where 16 bits fit and cost little more, LoRA beside them; else QLoRA, if it fits or may fit.
RUNS = {
    ("Qwen/Qwen3-30B-A3B", "A100 80GB"): "sft+lora",
    ("openai/gpt-oss-20b", "A100 80GB"): "sft+lora",
    ("mistralai/Mixtral-8x7B-Instruct-v0.1", "RTX 4060 Ti 16GB"): "smaller_model",
    # It is 16 and 23 GiB in 4 bits, and a layer's experts in 16 bits come on top while it loads.
    ("Qwen/Qwen3-30B-A3B", "RTX 4060 Ti 16GB"): "smaller_model",
    ("mistralai/Mixtral-8x7B-Instruct-v0.1", "RTX 4090"): "smaller_model",
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
def test_experts_are_held_in_4_bits(model, experts, gpu, room, answers):
    """Half a byte a weight and its scales, by the bundled trainers, where 16 bits are too much."""
    advice = advise({**answers, "model": model, "gpu": {"name": gpu}})
    found = advice.recommendation
    wanted = RUNS.get((model, gpu), "sft+qlora")
    assert (str(found.composition), found.engine) == (wanted, None)
    four_bit = found if wanted == "sft+qlora" else candidate(advice, "sft+qlora")
    need = four_bit.estimate.memory.need_bytes
    assert experts * 0.516 / 2 < need < experts * 0.516 / 2 + 7 * GIB
    if wanted == "smaller_model":
        assert f"needs {need / GIB:.1f} GiB" in four_bit.because[0].text
    elif wanted == "sft+lora":
        assert experts < found.estimate.memory.need_bytes <= room
    else:
        assert four_bit.estimate.memory.low_bytes <= room


@pytest.mark.parametrize(
    ("model", "gpu"),
    [*[one for one in RUNS if RUNS[one] == "sft+lora"], ("Qwen/Qwen3-8B", "A100 80GB")],
)
def test_a_plan_corrects_attention_and_shared_layers(model, gpu, answers):
    """LoRA leaves experts and router alone and says so; a dense model has all layers corrected."""
    document = advise_document({**answers, "model": model, "gpu": {"name": gpu}})
    (stage,) = document["plan"]["stages"]
    mixes = model in EXPERTS
    assert stage["target_modules"] == ("attention-and-shared" if mixes else "all-linear")
    assert stage.get("quantization") is None
    said = " ".join(document["warnings"])
    assert ("not the routed experts" in said, "experts" in said) == (mixes, mixes)


def test_a_checkpoint_in_mxfp4_is_written_out_or_packed_again(answers):
    """gpt-oss in 16 bits or in NF4, on one GPU; its attention has no sdpa. FP8 is never packed."""
    stated = {**answers, "model": "openai/gpt-oss-20b", "gpu": {"name": "A100 80GB"}}
    advice = advise(stated)
    assert candidate(advice, "sft+qlora").verdict == "ranked_lower"
    assert any("written out in 16 bit" in warning for warning in advice.warnings)
    assert advice.recommendation.stages[0].reasons["attention"].value == "eager"
    fp8 = advise({**stated, "model": "Qwen/Qwen3-30B-A3B-FP8"})
    assert "cannot be quantised a second time" in candidate(fp8, "sft+qlora").because[0].text


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
