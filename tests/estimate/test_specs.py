"""Run specs: a list in, a list of the same length out, and no crash on anything; and which trainer a
spec names, at which version, or assumes (rules/trainers/)."""

import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from advisor.estimate.answers import run_specs
from advisor.estimate.spec import SPEC, request_of
from advisor.estimate.trainers import OUR_TRAITS, OURS, date_in, trainer_of, versions_in
from advisor.ground import resources
from advisor.ground.errors import InputError
from advisor.ground.resources import rules_dir
from advisor.ground.shape import check_shape
from advisor.ground.yaml_files import parse_yaml
from advisor.methods.trainers import TRAINER_FILE, TRAITS, UNKNOWN, lineage, trainers
from advisor.probe.catalogue import find_gpu
from advisor.render.estimate import estimate_text
from advisor.situation.models import model_shape
from tests.conftest import examples
from tests.estimate.specs import RunSpec, memory_estimate, run_of
from tools.generate.accuracy import answered, summary, without_trainer

MODEL = {"model": "Qwen/Qwen3-8B"}
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 100}
PAGE = Path(__file__).parents[2] / "docs" / "estimates.md"
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
    """docs/estimates.md has each key of a spec and of an answer, and an example that works."""
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
    assert (len(more), all(words in more[0] for words in said)) == (bool(said), True)
    assert not any(words in text for words in said[:1] for text in plain["warnings"])


def test_packed_rows_fill_the_sequence():
    """More than twice as much as rows of a sixteenth of it."""
    packed, alone = answers(*({**one, "lengths": [[512, 10]]} for one in (PACKED, EIGHT)))
    assert packed["peak_gib"] > 2 * alone["peak_gib"]


def test_each_trait_is_stated_by_a_file_and_read_by_a_formula():
    """A trait that no formula reads, that no file could state, or that nobody has is a mistake."""
    files = (resources.PACKAGE / "estimate").rglob("*.py")
    read = re.findall(r"trainer\[[\"'](\w+)", "\n".join(path.read_text("utf-8") for path in files))
    assert set(read) == set(TRAITS)
    assert set(OUR_TRAITS) <= set(TRAITS)
    assert {name for trainer in trainers().values() for name in trainer.traits} >= set(TRAITS)


def test_ours_need_no_file(monkeypatch):
    """Advice for our own trainers reads nothing under rules/trainers/."""
    monkeypatch.setattr("advisor.methods.trainers.named_by", None)
    assert run_of(RunSpec(), "gpt2").trainer is OURS


LLAMA_8B = "meta-llama/Llama-3.1-8B"


@pytest.mark.parametrize(
    ("text", "trainer"),
    [
        ("HF Trainer, CUDA 11.8, torch 2.0", "transformers-trainer"),
        ("fms-hf-tuning (TRL SFTTrainer)", "fms-hf-tuning"),
        ("TRL", "trl"),
        ("unsloth 2025.10.1 with TRL's SFTTrainer", "unsloth"),
        ("LLaMA-Factory", "llama-factory"),
        ("lit-gpt 8641822; torch 2.1.0+cu121", "litgpt"),
        ("Lightning Fabric 2.0.2, torch 2.0, transformers 4.28.1", "lightning"),
        ("NeMo Automodel, torch 2.8", "nemo-automodel"),
        ("NeMo 2.0", "nemo"),
        ("ArcticTraining / DeepSpeed (per the text)", "arctic-training"),
        ("fsdp_qlora train.py, torch 2.2", "fsdp-qlora"),
        ("DeepSpeed ZeRO-3 by the HF Trainer", "transformers-trainer"),
        ("DeepSpeed", "deepspeed"),
        ("scripts of my own", UNKNOWN),
        ("", UNKNOWN),
    ],
)
def test_a_description_names_its_trainer(text, trainer):
    """Of several names the one that stands on the others counts, then the first."""
    found = trainer_of(text, {}, None)
    assert (found.id, found.is_known) == (trainer, trainer != UNKNOWN)


def test_what_a_trainer_does_not_say_is_that_of_what_it_stands_on():
    """TRL stands on the transformers Trainer, and that on accelerate and bitsandbytes."""
    assert lineage("trl")[:3] == ("trl", "transformers-trainer", "accelerate")
    trl, transformers = (trainer_of(name, {}, None) for name in ("trl", "transformers"))
    assert trl["accelerate"]
    assert trl["keeps_quantised_inputs"] == transformers["keeps_quantised_inputs"]


@pytest.mark.parametrize(
    ("text", "spec", "trait", "value"),
    [
        ("transformers 4.48", {}, "shifts_labels", False),
        ("transformers 4.49.1", {}, "shifts_labels", True),
        ("axolotl", {"library_versions": {"transformers": "4.51"}}, "shifts_labels", True),
        ("axolotl", {"date": "2024-11"}, "shifts_labels", False),
        ("axolotl", {"date": "2025"}, "shifts_labels", True),  # the middle of the year
        ("axolotl", {}, "linear_experts", True),
        # A version that no entry is compared with says nothing: the usual one holds.
        ("axolotl 0.13", {}, "adds_up_whole_gradients", False),
        ("axolotl", {"date": "2026-02"}, "adds_up_whole_gradients", True),
        ("axolotl, transformers==5.2", {}, "linear_experts", False),
        ("transformers, torch 2.0.1", {}, "adam_copies", 2),
        ("transformers, torch 2.1.0+cu121", {}, "adam_copies", 1),
        ("torchtitan Dec 2024", {}, "compiles_loss", True),
        ("torchtitan Feb 2025", {}, "compiles_loss", False),
        ("torchtune May 2024", {}, "chunks", 0),
        ("torchtune Nov 2024", {}, "chunks", 8),
    ],
)
def test_a_trait_may_depend_on_version_or_date(text, spec, trait, value):
    """Versions stand in `library_versions` or in the text, a date in `date` or in the text."""
    given = {"library_versions": {}, "date": None, **spec}
    assert trainer_of(text, *given.values())[trait] == value


@pytest.mark.parametrize(
    ("text", "versions", "date"),
    [
        ("unsloth 2024.8, Pytorch: 2.3.1+cu121.",
         {"unsloth": (2024, 8), "torch": (2, 3, 1), "cuda": (12, 1)}, None),
        ("torch 2.1.0+cu121, bitsandbytes==0.41.1, transformers 5",
         {"torch": (2, 1, 0), "cuda": (12, 1), "bitsandbytes": (0, 41, 1), "transformers": (5,)}, None),
        ("HF Trainer, torch 2.1.1", {"torch": (2, 1, 1)}, None),
        ("lit-gpt 8641822", {}, None),
        ("torchtitan Dec 2024", {}, "2024-12"),
        ("litgpt 2024", None, "2024"),
    ],
)  # fmt: skip
def test_versions_and_dates_are_read_from_a_text(text, versions, date):
    """As published tables write them."""
    assert versions is None or versions_in(text) == versions
    assert date_in(text) == date


def test_a_base_that_does_not_exist_is_named(tmp_path, monkeypatch):
    """A newcomer is one file; a slip in it says where and what is meant."""
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers" / "mine.yaml").write_text(
        "id: mine\nabout: mine\nnames: [mine]\nstands_on: [transformer]\ntraits: {}\n"
    )
    (tmp_path / "trainers" / "transformers.yaml").write_text(
        "id: transformers\nabout: models\ntraits: {}\n"
    )
    monkeypatch.setattr("advisor.methods.trainers.rules_dir", lambda: tmp_path)
    assert resources.rules_dir() != tmp_path
    with pytest.raises(InputError, match=r"mine\.yaml: unknown trainer 'transformer'") as raised:
        trainers.__wrapped__()
    assert "did you mean 'transformers'" in raised.value.text()


def test_an_unknown_trainer_says_what_was_guessed():
    """Silence would look like knowledge."""
    spec = RunSpec(framework="acme", gpus=2, sharding="fsdp", grad_accum=4)
    several, one, known = (
        memory_estimate(replace(spec, **changed), LLAMA_8B).warnings
        for changed in ({}, {"grad_accum": 1}, {"framework": "axolotl"})
    )
    assert "'acme' is not known" in several[0]
    assert (["no_sync" in text for text in (*several, one[0])], not known) == ([True, False], True)


def test_without_the_names_of_trainers_the_error_stays_below_a_tenth():
    """What is known of single trainers does not carry the accuracy."""
    assert summary(answered("cases", without_trainer))["median_error"] <= 0.1


@pytest.mark.parametrize(
    ("spec", "trait", "guessed"),
    [
        # Adapters on unpacked rows differed in length, by less than those of many tasks.
        ({"date": "2024"}, "ragged", True),
        ({}, "ragged", False),
        ({"packing": True}, "ragged", False),
        ({"update": "full"}, "ragged", False),
        ({"lengths": ((512, 9),)}, "ragged", False),
        # Who offloads weights has no room for whole gradients.
        ({"update": "full", "date": "2024"}, "adds_up_whole", True),
        ({"update": "full", "date": "2024", "offload_weights": True}, "adds_up_whole", False),
        ({"update": "full"}, "adds_up_whole", False),
        ({"model": "meta-llama/Llama-3.1-70B", "gpus": 8, "grad_accum": 4}, "flat_adapters", False),
        # A chunked loss mostly comes with fused layers.
        ({"loss": "chunked"}, "has_fused_layers", True),
        ({"loss": "full"}, "has_fused_layers", False),
        ({"loss": "chunked", "gradient_checkpointing": False}, "has_fused_layers", False),
    ],
)
def test_an_unknown_trainer_is_guessed_by_what_the_spec_says(spec, trait, guessed):
    """Each guess is what most trainers do with such a spec."""
    spec = {"gpus": 2, "grad_accum": 2, "model": LLAMA_8B, **spec}
    model = spec.pop("model")
    found = getattr(run_of(RunSpec(framework="acme", sharding="fsdp", **spec), model), trait)
    assert bool(found) is guessed
    assert found < 1 or trait != "ragged"


@pytest.mark.parametrize(
    ("spec", "evaluates"),
    [({"framework": "transformers"}, True), ({}, True), ({"evaluation": False}, False)],
)
def test_an_evaluation_that_does_not_happen_has_no_peak(spec, evaluates):
    """An evaluation is counted unless a spec says that there is none."""
    moments = [one.name for one in memory_estimate(RunSpec(**spec), LLAMA_8B).moments]
    assert ("evaluation" in moments) is evaluates


def test_the_example_of_the_readme_is_a_trainer():
    """Whoever adds a trainer copies it from there."""
    text = (rules_dir() / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(id: acme\n.*?)```", text, re.DOTALL)
    document = parse_yaml(example.encode(), name="README")
    assert check_shape(document, TRAINER_FILE) == []
    assert set(document.data["stands_on"]) <= set(trainers())
