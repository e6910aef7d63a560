"""Trainers as stated traits (rules/trainers/): which one is named, at which version, or assumed."""

import re

import pytest
from msgspec.structs import replace

from advisor.estimate.trainers import OUR_TRAITS, OURS, date_in, trainer_of, versions_in
from advisor.ground import resources
from advisor.ground.errors import InputError
from advisor.ground.resources import rules_dir
from advisor.ground.shape import check_shape
from advisor.ground.yaml_files import parse_yaml
from advisor.methods.trainers import TRAINER_FILE, TRAITS, UNKNOWN, lineage, trainers
from tests.estimate.specs import RunSpec, memory_estimate, run_of
from tools.generate.accuracy import answered, summary, without_trainer


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
    assert ["no_sync" in text for text in (*several, one[0])] == [True, False]
    assert not known


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
