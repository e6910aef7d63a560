"""PiSSA and OLoRA on a base that stays as it is, and what is saved of them."""

import json
import math

import pytest

from advisor.ground.errors import InputError
from tests.trainers.alignment import losses, stage_of, trained
from tests.trainers.runs import break_at
from trainers import sft

STARTS = ["pissa", "pissa_niter_4", "olora"]


@pytest.fixture
def started(make):
    """`started(value, **keys)`: the tiny model with a LoRA that starts so, and its plain base."""
    import torch
    from peft import get_peft_model

    from trainers.frame import loading
    from trainers.updates import lora

    def build(value, **keys):
        job = make(rank=4, peft={"init_lora_weights": value}, **keys)
        torch.manual_seed(0)
        base, fresh = (loading.load_base(job, torch.device("cpu")) for _ in range(2))
        model = get_peft_model(base, lora.peft_config(job.stage, job.options, base))
        said = lora.start(job.stage, job.options, model, None, [])
        assert f"the LoRA starts from {value}" in said
        return model.eval(), fresh.eval()

    return build


def train_a_little(model):
    """Other matrices, as training leaves them."""
    import torch

    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))


def answer(model):
    import torch

    with torch.no_grad():
        return model(input_ids=torch.arange(3, 20)[None], use_cache=False).logits


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("value", STARTS)
def test_the_result_is_a_plain_lora_on_the_original_base(value, rslora, started, tmp_path):
    """The base keeps its weights, the model begins as its base, and what is saved is the trained
    model in plain PEFT and as W + BA; a checkpoint of it trains on.
    """
    import torch
    from peft import PeftModel

    from trainers.evaluation.plain_lora import base_differs, plain_answer
    from trainers.frame.checkpoints import save_weights
    from trainers.frame.starts import load_plain

    model, fresh = started(value, rslora=rslora)
    folder = tmp_path / "saved"
    weights = {
        name.replace(".base_layer", "").removeprefix("base_model.model."): parameter
        for name, parameter in model.named_parameters()
        if "lora" not in name
    }
    for name, parameter in fresh.named_parameters():
        assert torch.equal(weights[name], parameter), name
    begun = answer(model)
    assert float((begun - answer(fresh)).abs().max()) < 1e-5
    # It is not a start from zero: the first gradients reach both matrices.
    assert all(
        float(parameter.detach().abs().sum()) > 0
        for name, parameter in model.named_parameters()
        if "lora_B" in name
    )
    train_a_little(model)
    there = answer(model)
    assert float((there - begun).abs().max()) > 0.1
    with model.disable_adapter():  # the reference model of DPO and GRPO
        assert torch.equal(answer(model), answer(fresh))
    save_weights(model, folder)
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 8
    assert base_differs(model, tmp_path) is None
    assert float((plain_answer(fresh, folder, answer) - there).abs().max()) < 1e-4
    assert float((answer(PeftModel.from_pretrained(fresh, folder)) - there).abs().max()) < 1e-4

    other, _ = started(value, rslora=rslora)
    load_plain(other, folder)
    assert torch.equal(answer(other), there)


def test_what_peft_makes_of_such_a_start_is_noticed(make, tmp_path):
    """An OLoRA as PEFT saves it is right in PEFT and another model in vLLM and llama.cpp: the check
    says so, with a second base and without.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    from trainers.evaluation.plain_lora import base_differs, check_plain, plain_answer
    from trainers.frame import loading

    job = make()
    base, fresh = (loading.load_base(job, torch.device("cpu")) for _ in range(2))
    config = LoraConfig(r=4, init_lora_weights="olora", target_modules="all-linear")
    model = get_peft_model(base, config).eval()
    train_a_little(model)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    there, plain = answer(model), plain_answer(fresh.eval(), tmp_path, answer)

    def check(plain, changed=None):
        (found,) = check_plain(
            tmp_path,
            plain,
            there,
            difference=lambda one, other: float((one - other).abs().max()),
            limit=1e-3,
            what="logits",
            changed=changed,
        )
        return found

    assert not check(plain).ok
    with model.disable_adapter():
        alone = plain_answer(model.get_base_model(), tmp_path, answer)
    assert check(alone).ok  # on the changed base, where only the weights on disk can tell
    from pathlib import Path

    changed = base_differs(model, Path(job.base_model))
    assert changed == "model.layers.0.self_attn.q_proj"
    assert not check(alone, changed).ok


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"peft": {"init_lora_weights": "pissa", "use_dora": True}}, "use_dora"),
        ({"peft": {"init_lora_weights": "orthogonal"}, "rank": 5}, "even rank"),
        ({"peft": {"init_lora_weights": "mica"}, "quantization": "nf4"}, "has replaced"),
        ({"peft": {"init_lora_weights": "orthogonal"}, "quantization": "nf4"}, "dtype of the base"),
        ({"peft": {"init_lora_weights": "pissa"}, "rank": 40}, "larger than the 32 components"),
    ],
)
def test_combinations_that_cannot_be_had_are_bad_input(keys, match, make):
    """What would be no plain LoRA, or what PEFT cannot start."""
    with pytest.raises(InputError, match=match):
        sft.train(make(**keys))


def test_ppo_refuses_a_start_that_takes_from_the_base(align):
    """The value model is a copy of the policy's module, which is not the whole of it here."""
    from trainers.updates import lora

    job = align("ppo", peft={"init_lora_weights": "olora"})
    assert any("value model" in fault.headline for fault in lora.faults(job.stage))


@pytest.mark.slow
def test_a_random_start_resumes_and_serves_the_next_stage(make, align, monkeypatch):
    """A run that begins with a random decomposition resumes with equal losses; DPO continues from
    it with the rank of the plan, and its reference is the model as the stage found it.
    """
    keys = {
        "rank": 4, "peft": {"init_lora_weights": "pissa_niter_4"}, "max_steps": 6, "save_steps": 2,
        "job_judge": False,
    }  # fmt: skip
    whole = make(**keys)
    sft.train(whole)
    broken = make(**keys, job_run=whole.run.parent / "broken")
    break_at(4, broken, monkeypatch)
    sft.train(broken)
    assert losses(broken) == pytest.approx(losses(whole), rel=1e-6)
    peft = {"init_lora_weights": "pissa_niter_4"}
    first = align("sft", rank=4, peft=peft, max_steps=2, job_judge=False)
    trained(first)
    after = align("dpo", earlier=(stage_of("sft", peft=peft),), rank=4, job_judge=False)
    result = trained(after)
    assert losses(after)[0] == pytest.approx(math.log(2), abs=1e-5)
    assert result["resolved"]["peft"]["r"] == 8
    alone = align("dpo", rank=4, peft=peft, job_judge=False, job_run=first.run.parent / "alone")
    assert trained(alone)["loss_first"] == pytest.approx(math.log(2), abs=1e-5)


def test_w_plus_ba_is_the_trained_model_in_16_bit_too(make):
    """bfloat16 rounds each layer's sum; applied without PEFT it is rounded in the same place."""
    keys = {"weights_dtype": "bfloat16", "learning_rate": 0.01}
    result = trained(make(rank=4, max_steps=4, **keys))
    (check,) = (one for one in result["checks"] if one["name"] == "the-same-without-peft")
    assert check["ok"]
    assert "differ by at most 0 (" in check["text"]
