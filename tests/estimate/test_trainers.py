"""Trainers as stated traits (rules/trainers/): which one a description names, at which version, and
what is taken where none is named.
"""

import re

import pytest
from msgspec.structs import replace

from advisor.estimate.memory.bands import guess_note
from advisor.estimate.trainers import OUR_TRAITS, OURS, date_in, trainer_of, versions_in
from advisor.ground import resources
from advisor.ground.errors import InputError
from advisor.ground.resources import rules_dir
from advisor.ground.shape import check_shape
from advisor.ground.units import GIB
from advisor.ground.yaml_files import parse_yaml
from advisor.methods.trainers import TRAINER_FILE, TRAITS, UNKNOWN, lineage, trainers
from advisor.situation.models import model_shape
from tests.estimate.specs import RunSpec, memory_estimate, run_of, terms
from tools.generate.accuracy import answered, summary, without_trainer


def stack(text, library_versions=None, date=None):
    return trainer_of(text, library_versions or {}, date)


def estimate(spec, model):
    found = memory_estimate(spec, model_shape(model)[0])
    assert found is not None
    return found


LAYER = "backward pass through one layer"
LLAMA_8B, LLAMA_7B = "meta-llama/Llama-3.1-8B", "meta-llama/Llama-2-7b-hf"


def test_each_trait_of_the_files_is_read_by_a_formula():
    """A trait that no formula reads, or one that no file could state, is a mistake."""
    files = (resources.PACKAGE / "estimate").rglob("*.py")
    read = re.findall(r"trainer\[[\"'](\w+)", "\n".join(path.read_text("utf-8") for path in files))
    assert set(read) == set(TRAITS)
    assert set(OUR_TRAITS) <= set(TRAITS)


def test_every_trait_is_stated_by_some_file_and_says_what_the_code_does():
    """No trait exists for nobody."""
    stated = {name for trainer in trainers().values() for name in trainer.traits}
    assert stated | {"unties_head"} >= set(TRAITS)


def test_ours_need_no_file(monkeypatch):
    """Advice for our own trainers reads nothing under rules/trainers/."""
    monkeypatch.setattr("advisor.methods.trainers.named_by", None)
    assert run_of(RunSpec(), model_shape("gpt2")[0]).trainer is OURS


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
    found = stack(text)
    assert (found.id, found.is_known) == (trainer, trainer != UNKNOWN)


def test_what_a_trainer_does_not_say_is_that_of_what_it_stands_on():
    """TRL stands on the transformers Trainer, and that on accelerate and bitsandbytes."""
    assert lineage("trl")[:3] == ("trl", "transformers-trainer", "accelerate")
    assert stack("trl")["accelerate"]
    assert stack("trl")["keeps_quantised_inputs"] == stack("transformers")["keeps_quantised_inputs"]


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
        ("torchtitan 2026", {}, "chunks_plain_loss", True),
        ("unsloth 2025.6.1", {}, "whole_logits", True),
        ("unsloth 2025.10", {}, "whole_logits", False),
        ("torchtune May 2024", {}, "chunks", 0),
        ("torchtune Nov 2024", {}, "chunks", 8),
    ],
)
def test_a_trait_may_depend_on_version_or_date(text, spec, trait, value):
    """Versions stand in `library_versions` or in the text, a date in `date` or in the text."""
    assert stack(text, **spec)[trait] == value


def test_versions_and_dates_are_read_from_a_text():
    assert versions_in("unsloth 2024.8, Pytorch: 2.3.1+cu121.") == {
        "unsloth": (2024, 8), "torch": (2, 3, 1), "cuda": (12, 1),
    }  # fmt: skip
    found = versions_in("HF Trainer, torch 2.1.0+cu121, bitsandbytes==0.41.1, transformers 5")
    assert found["torch"] == (2, 1, 0)
    assert found["bitsandbytes"] == (0, 41, 1)
    assert found["transformers"] == (5,)
    assert found["cuda"] == (12, 1)
    assert versions_in("lit-gpt 8641822") == {}
    assert date_in("torchtitan Dec 2024") == "2024-12"
    assert date_in("litgpt 2024") == "2024"
    assert date_in("torch 2.1.1") is None


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
    (warning,) = estimate(spec, LLAMA_8B).warnings
    assert "'acme' is not known" in warning
    assert "no_sync" in warning
    assert "no_sync" not in estimate(replace(spec, grad_accum=1), LLAMA_8B).warnings[0]
    assert not estimate(replace(spec, framework="axolotl"), LLAMA_8B).warnings


def test_without_the_names_of_trainers_the_error_stays_within_1_4_times():
    """What is known of single trainers does not carry the accuracy."""
    named = summary(answered("cases"))["median_error"]
    unnamed = summary(answered("cases", without_trainer))["median_error"]
    assert unnamed <= 1.4 * named


def test_an_unknown_trainer_is_guessed_by_what_the_spec_says():
    """Adapters on unpacked rows differ in length; who offloads weights has no room for whole
    gradients; a chunked loss mostly comes with fused layers.
    """

    def run(**spec):
        found = RunSpec(framework="acme", gpus=2, sharding="fsdp", grad_accum=2, **spec)
        return run_of(found, model_shape("meta-llama/Llama-3.1-8B")[0])

    assert 0 < run().ragged < 1
    assert not run(packing=True).ragged
    assert not run(update="full").ragged
    assert not run(lengths=((512, 9),)).ragged
    assert run(update="full").adds_up_whole
    large = RunSpec(framework="acme", gpus=8, sharding="fsdp", grad_accum=4)
    assert not run_of(large, model_shape("meta-llama/Llama-3.1-70B")[0]).flat_adapters
    assert not run(update="full", offload_weights=True).adds_up_whole
    assert run(loss="chunked").has_fused_layers
    assert not run(loss="full").has_fused_layers
    assert not run(loss="chunked", gradient_checkpointing=False).has_fused_layers


def test_a_four_bit_product_kept_its_input_before_bitsandbytes_0_43():
    """Results of both norms and the MLP's last input stay without checkpointing."""
    spec = RunSpec(
        framework="transformers", quantization="nf4", gradient_checkpointing=False,
        target_modules=("q_proj", "v_proj"), seq_len=1024,
    )  # fmt: skip
    old, new = (
        terms(replace(spec, library_versions={"bitsandbytes": version}), LLAMA_8B, LAYER)
        for version in ("0.42", "0.43.1")
    )
    assert old["activations"] - new["activations"] >= 1024 * 32 * 2 * (2 * 4096)


def test_gradients_of_earlier_micro_batches_are_whole_under_no_sync():
    """Llama 2 7B by lit-gpt on two GPUs: adapters and frozen weights are one flat parameter, so
    13 GB of gradients stay on each; accelerate wraps adapters for themselves.
    """
    spec = RunSpec(framework="lit-gpt", gpus=2, sharding="fsdp", grad_accum=128, loss="chunked")
    whole, one, own, summed = (
        terms(replace(spec, **changed), LLAMA_7B, LAYER).get("gradients of earlier micro-batches")
        for changed in (
            {}, {"grad_accum": 1}, {"framework": "transformers"}, {"framework": "torchtune"},
        )
    )  # fmt: skip
    assert whole == pytest.approx(12.1 * GIB, rel=0.02)
    assert own < 0.02 * whole
    assert one is summed is None


def test_fsdp_2_with_offload_holds_a_units_gradient_and_what_is_on_its_way():
    """axolotl's example of gpt-oss 20B on two GPUs of 24 GB takes 21 GiB: three gathered layers, two
    of gradients, and a gradient of all experts' gates beside their sum.
    """
    spec = RunSpec(
        update="full", framework="axolotl", gpus=2, sharding="fsdp", offload_weights=True,
        gradient_checkpointing="offload", seq_len=4096, packing=True, grad_accum=2,
        loss="chunked", counter="unknown", precision="pure", attention="flash_attention_2",
    )  # fmt: skip
    assert estimate(spec, "openai/gpt-oss-20b").peak_bytes == pytest.approx(21 * GIB, rel=0.15)
    grouped = replace(spec, library_versions={"transformers": "5.1"})
    first = [terms(one, "openai/gpt-oss-20b", LAYER)["first gradients"] for one in (spec, grouped)]
    one_layer = 32 * 3 * 2880 * 2880 * 2
    assert first[0] - first[1] == pytest.approx(one_layer * 2 / 3, rel=0.01)


def test_an_evaluation_that_does_not_happen_has_no_peak():
    """TrainingArguments evaluate only if asked to; a spec may say otherwise."""
    for spec, evaluates in (
        (RunSpec(framework="transformers"), False),
        (RunSpec(framework="transformers", evaluation=True), True),
        (RunSpec(), True),
        (RunSpec(evaluation=False), False),
    ):
        moments = [one.name for one in estimate(spec, LLAMA_8B).moments]
        assert ("evaluation" in moments) is evaluates, spec


def test_zero3_steps_on_one_group_of_float32_gradients_at_a_time():
    """sub_group_size is 1e9: a device's share of a 70B model is stepped on in parts."""
    spec = RunSpec(
        update="full", framework="DeepSpeed", gpus=8, sharding="zero3", fp32_master_weights=True,
        optimizer="adamw",
    )  # fmt: skip
    assert terms(spec, "meta-llama/Llama-3.1-70B")["float32 gradients"] == 4_000_000_000


def test_a_gradient_shard_may_wait_on_the_card_for_an_optimizer_on_the_host():
    """DeepSpeed moves gradients as they come; ColossalAI's ZeRO keeps them until its step."""
    spec = RunSpec(
        update="full", framework="ColossalAI", gpus=4, sharding="zero2", optimizer="adamw_cpu",
    )  # fmt: skip
    assert terms(spec, LLAMA_7B)["gradients"] == pytest.approx(6738415616 * 2 / 4, rel=0.001)
    assert "gradients" not in terms(replace(spec, framework="DeepSpeed"), LLAMA_7B)


@pytest.mark.parametrize(
    ("changed", "sizes"),
    [
        ({"optimizer": "adamw_hf"}, 2 * 128256 * 2048),
        ({"optimizer": "adamw"}, 2 * 1235814400),
        ({"optimizer": "adamw", "library_versions": {"torch": "2.0.1"}}, 4 * 1235814400),
    ],
)
def test_adam_in_a_loop_has_no_copies_of_whole_lists(changed, sizes):
    """transformers' own AdamW steps on one parameter at a time, PyTorch's on lists of all."""
    spec = RunSpec(update="full", framework="transformers", **changed)
    assert terms(spec, "meta-llama/Llama-3.2-1B")["optimizer temporaries"] == sizes


def test_the_example_of_the_readme_is_a_trainer():
    """Whoever adds a trainer copies it from there."""
    text = (rules_dir() / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(id: acme\n.*?)```", text, re.DOTALL)
    document = parse_yaml(example.encode(), name="README")
    assert check_shape(document, TRAINER_FILE) == []
    assert set(document.data["stands_on"]) <= set(trainers())


def test_a_guess_that_the_spec_answers_is_not_named():
    """Evaluation that was stated, and dropout where there are no adapters, are no guesses."""
    silent = RunSpec(framework="my own loop")
    for stated, trait in (
        (replace(silent, evaluation=False), "evaluates"),
        (replace(silent, update="full"), "drops_adapter_inputs"),
    ):
        words = TRAITS[trait].help
        model = model_shape("gpt2")[0]
        assert words in guess_note(run_of(silent, model))
        assert words not in guess_note(run_of(stated, model))
