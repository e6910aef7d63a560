"""LoRA well set: its scale, its rank against the layers, trained embeddings, and PEFT's variants
through `peft:`.
"""

import json

import pytest

from advisor.ground.errors import InputError
from tests.trainers.runs import trained
from trainers import sft


def test_rank_stabilised_scaling_is_alpha_over_the_root_of_the_rank(make):
    """alpha / rank by default, alpha / sqrt(rank) with rslora (Kalajdzievski 2023)."""
    import torch
    from peft import get_peft_model
    from peft.tuners.lora import LoraLayer

    from trainers.start import loading
    from trainers.updates import load_update

    for rslora, scale in ((False, 8 / 16), (True, 8 / 4)):
        job = make(rank=16, alpha=8.0, rslora=rslora)
        model = loading.load_base(job, torch.device("cpu"))
        adapted = get_peft_model(
            model, load_update("lora").peft_config(job.stage, job.options, model)
        )
        assert {
            module.scaling["default"]
            for module in adapted.modules()
            if isinstance(module, LoraLayer)
        } == {scale}


def test_a_rank_larger_than_every_layer_is_bad_input(make):
    """Rank 65 on layers 64 wide is refused with the widest one named; named targets count alone."""
    with pytest.raises(
        InputError,
        match=r"rank 65 is larger than every layer it would correct: the widest is 64 \(\w+_proj\)",
    ):
        sft.train(make(rank=65))
    with pytest.raises(InputError, match=r"rank 33 is larger than .*: the widest is 32 \(v_proj\)"):
        sft.train(make(rank=33, target_modules=["v_proj"]))


def test_a_rank_larger_than_some_layers_is_said(make, capsys):
    """Rank 64 is more than the key and value projections are wide: it trains, and says so."""
    trained(make(rank=64, job_judge=False))
    assert (
        "rank 64 is larger than the width of some layers (k_proj 32, v_proj 32)"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_can_be_trained_too(tied, make, tiny_model, tmp_path):
    """train_embeddings trains them and the output layer whole, stores them in the adapter, and
    plain PEFT loads them.
    """
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    if not tied:
        base.config.tie_word_embeddings = False
        base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().clone())
    folder = tmp_path / "base"
    base.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    job = make(rank=4, train_embeddings=True, job_judge=False)
    from dataclasses import replace

    from msgspec import structs

    job = replace(job, plan=structs.replace(job.plan, model=str(folder)))
    result = trained(job)
    assert all(check["ok"] for check in result["checks"][:2])
    vocabulary = base.get_input_embeddings().weight.numel()
    plain = trained(make(rank=4, job_judge=False, job_run=tmp_path / "plain"))
    assert result["resolved"]["trainable_parameters"] - plain["resolved"][
        "trainable_parameters"
    ] == vocabulary * (1 if tied else 2)
    again = AutoPeftModelForCausalLM.from_pretrained(job.output, dtype=torch.float32)
    assert not torch.equal(again.get_input_embeddings().weight, base.get_input_embeddings().weight)
    if tied:
        assert torch.equal(
            again.get_input_embeddings().weight, again.get_output_embeddings().weight
        )


def test_single_tokens_can_be_trained_through_peft(make):
    """peft: {trainable_token_indices} trains the rows of new tokens alone, beside LoRA."""
    result = trained(make(rank=4, peft={"trainable_token_indices": [1, 2]}, job_judge=False))
    config = json.loads((make().output / "adapter_config.json").read_text())
    assert config["trainable_token_indices"] == [1, 2]
    assert result["checks"][0]["ok"]


@pytest.mark.parametrize(
    ("passed", "field", "quantization"),
    [
        ({"use_dora": True}, "use_dora", None),
        ({"use_dora": True}, "use_dora", "nf4"),
        ({"init_lora_weights": "orthogonal"}, "init_lora_weights", None),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern", None),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern", "nf4"),
    ],
)
def test_variants_of_peft_go_through(passed, field, quantization, make):
    """DoRA, another start and ranks by layer arrive verbatim, learn, and what was saved is what was
    trained.
    """
    result = trained(make(rank=4, peft=passed, quantization=quantization, max_steps=8))
    assert result["resolved"]["peft"][field] == passed[field]
    assert result["loss_last"] < result["loss_first"]
    assert all(check["ok"] for check in result["checks"][:2])


@pytest.mark.parametrize(
    "key",
    [
        "r",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
        "use_rslora",
        "task_type",
        "peft_type",
        "inference_mode",
        "base_model_name_or_path",
    ],
)
def test_what_the_plan_owns_is_refused_in_peft(key, make):
    """A key with two homes would make one of them a lie."""
    with pytest.raises(InputError, match=f"'{key}' is set by the plan's own key"):
        sft.train(make(peft={key: None}))


@pytest.mark.parametrize(
    ("peft", "quantization", "match"),
    [
        ({"init_lora_weights": "pissa"}, None, "no start that these trainers make"),
        ({"init_lora_weights": "pissa"}, "nf4", "it changes the base"),
        ({"init_lora_weights": "olora"}, None, "no start that these trainers make"),
        ({"init_lora_weights": "eva"}, None, "a pass over the data"),
        ({"init_lora_weights": "orthogonal"}, "nf4", "dtype of the base"),
    ],
)
def test_starts_that_cannot_be_had_are_bad_input(peft, quantization, match, make, monkeypatch):
    """A way to start the matrices that changes the base or needs more than this trainer does is
    refused, in one line, before a model is loaded.
    """
    monkeypatch.setattr("trainers.start.loading.load_base", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(InputError, match=match) as caught:
        sft.train(make(peft=peft, quantization=quantization))
    assert len(caught.value.faults) == 1


def test_an_orthogonal_start_has_an_even_rank(make):
    """PEFT halves the rank for it."""
    with pytest.raises(InputError, match="even rank"):
        sft.train(make(rank=5, peft={"init_lora_weights": "orthogonal"}))


@pytest.mark.parametrize(
    ("options", "is_ok", "said"),
    [
        ({}, True, "can be applied as W + BA"),
        ({"init_lora_weights": "olora"}, False, "changes the base by its start, olora"),
        ({"use_dora": True, "bias": "all"}, True, "DoRA and biases cannot be applied"),
        ({"use_rslora": True, "modules_to_save": ["lm_head"]}, True, "lm_head saved whole"),
    ],
)
def test_what_other_engines_cannot_apply_is_noticed(options, is_ok, said, tmp_path):
    """An OLoRA as PEFT saves it is right in PEFT and another model in vLLM and llama.cpp."""
    from peft import LoraConfig

    from trainers.evaluation.saved_result import plain_lora

    LoraConfig(r=4, target_modules="all-linear", **options).save_pretrained(tmp_path)
    (found,) = plain_lora(tmp_path)
    assert found.ok is is_ok
    assert said in found.text


@pytest.mark.parametrize(
    "keys",
    [{"rank": 4}, {"update": "prefix", "prefix_tokens": 4}, {"update": "full"}],
    ids=["lora", "prefix", "full"],
)
def test_without_room_for_a_second_model_saved_tensors_are_compared(keys, make, monkeypatch):
    """With those in memory; an adapter is not loaded beside itself."""
    room = "trainers.evaluation.saved_result._room_for_second"
    monkeypatch.setattr(room, lambda *_: False)
    (check, _, *_) = trained(make(max_steps=3, job_judge=False, **keys))["checks"]
    assert check["ok"]
    assert "the saved tensors are those in memory" in check["text"]
