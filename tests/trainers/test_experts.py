"""Mixtures of experts: trained, evaluated, saved and loaded like any model."""

import json
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from types import SimpleNamespace

from datasets import Dataset
from msgspec import structs
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig

from advisor.ground.errors import InputError
from advisor.plan.model import Launch
from advisor.plan.write import plan_text
from tests.trainers.alignment import FULL, REWARD, keys_of, stage_of
from tests.trainers.conftest import job_in
from tests.trainers.families import byte_level
from tests.trainers.moe import FAMILIES, tiny_mixture, train_all
from tests.trainers.runs import break_at, result_of, same, torchrun, trained, weights
from trainers import sft
from trainers.evaluation.saved_result import _same_tensors
from trainers.job.job import JUDGE, TRAIN
from trainers.keep.results import save_weights
from trainers.stage.trl_trainer import SFT
from trainers.updates import load_update
from trainers.updates.experts import find_experts, silence_routers
from trainers.updates.lora import is_refused


def generates(model, tokenizer):
    """Plain transformers' answers to two prompts of different lengths, one of them padded."""
    batch = tokenizer(
        ["hello", "where is my parcel, please?"], padding=True, padding_side="left",
        return_tensors="pt", return_token_type_ids=False,
    )  # fmt: skip
    with torch.no_grad():
        return model.generate(**batch, max_new_tokens=4, do_sample=False)


@pytest.fixture
def moe(make, tiny_moe):
    """A job on the tiny mixture of experts."""
    return lambda **keys: make(**{"rank": 4, "max_steps": 2, **keys}, job_model=tiny_moe)


def test_a_lora_is_evaluated_and_loads_everywhere(moe, capsys):
    """LoRA on a mixture corrects attention alone, and is the same model in PEFT and as W + BA."""
    job = moe()
    result = trained(job)
    said = capsys.readouterr().err
    assert "trained without the load-balancing loss, because experts and routers are frozen" in said
    names = ", ".join(f"self_attn.{name}_proj" for name in "koqv")
    assert f"target_modules all-linear corrects {names}, not" in said
    assert result["evaluation"]["holdout_loss_after"] < result["evaluation"]["holdout_loss_before"]
    checks = {check["name"]: check for check in result["checks"]}
    assert checks["saved-model-is-the-trained-one"]["ok"]
    assert checks["the-same-without-peft"]["ok"]
    assert "can be applied as W + BA" in checks["the-same-without-peft"]["text"]
    again = AutoPeftModelForCausalLM.from_pretrained(job.output, dtype=torch.float32)
    assert generates(again, AutoTokenizer.from_pretrained(job.output)).shape[0] == 2


def test_a_whole_mixture_is_resumed_judged_and_saved_with_the_settings_of_its_base(
    moe, tiny_moe, monkeypatch, tmp_path, capsys
):
    """transformers holds all experts in one tensor and saves each by itself, so what reads them
    must get the trained ones; without routers in config.json, plain generate takes a padded batch.
    """
    keys = {**FULL, "save_steps": 1, "max_steps": 3, "job_judge": False}
    whole, broken = (moe(**keys, job_run=tmp_path / name) for name in ("whole", "broken"))
    trained(whole)
    assert "trained with the load-balancing loss, weight 0.001" in capsys.readouterr().err
    break_at(3, broken, monkeypatch)
    sft.train(replace(broken, part=TRAIN))
    assert same(weights(broken), weights(whole))
    assert all(check["ok"] for check in trained(replace(broken, part=JUDGE))["checks"])
    saved, base = (
        json.loads((folder / "config.json").read_text()) for folder in (whole.output, tiny_moe)
    )
    kept = {"output_router_logits", "router_aux_loss_coef"}
    assert {key: saved[key] for key in kept} == {key: base[key] for key in kept}
    again = AutoModelForCausalLM.from_pretrained(whole.output, dtype=torch.float32)
    assert generates(again, AutoTokenizer.from_pretrained(whole.output)).shape[0] == 2


def test_a_base_that_returns_router_logits_is_silent_until_it_is_saved(tmp_path):
    """A model in memory can generate, and what is saved has the base's own settings."""
    model = silence_routers(tiny_mixture("mixtral", output_router_logits=True))
    assert model.config.output_router_logits is False
    model.config.router_aux_loss_coef = 0.0
    silence_routers(model)
    assert model.config.router_aux_loss_coef == 0.001
    save_weights(model, tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert (saved["output_router_logits"], saved["router_aux_loss_coef"]) == (True, 0.001)
    assert model.config.output_router_logits is False


def test_4_bit_leaves_experts_as_they_are_and_says_so(moe, tiny_moe, capsys):
    """bitsandbytes quantises linear layers; how many parameters it leaves is in the record."""
    result = trained(moe(quantization="nf4", max_steps=1, job_max_steps=1, job_judge=False))
    assert "of them in routed experts" in capsys.readouterr().err
    # By hand: 2 layers, 4 experts, 3 matrices of 32 x 16; embeddings and head of V x 32; routers of
    # 4 x 32; norms: two of 32 and two of 8 in a layer, one of 32 at the end.
    vocabulary = AutoConfig.from_pretrained(tiny_moe).vocab_size
    routed, rest = 2 * 4 * 3 * 32 * 16, 2 * 4 * 32 + 2 * (2 * 32 + 2 * 8) + 32
    assert result["resolved"]["unquantised_parameters"] == routed + 2 * vocabulary * 32 + rest


@pytest.fixture
def base_trainer(tmp_path):
    """Our SFT trainer on a mixture that balances its experts, without a run around it."""

    def build(**arguments):
        model = silence_routers(tiny_mixture("qwen3_moe"))
        config = SFTConfig(
            output_dir=str(tmp_path), use_cpu=True, report_to="none", bf16=False,
            dataset_kwargs={"skip_prepare_dataset": True}, router_aux_loss_coef=0.5, **arguments,
        )  # fmt: skip
        rows = Dataset.from_dict({"input_ids": [[3, 4, 5, 6]], "labels": [[-100, 4, 5, 6]]})
        tokenizer = byte_level(("<e>",), eos="<e>")
        trainer = SFT(model=model, args=config, train_dataset=rows, processing_class=tokenizer)
        silence_routers(model)
        return trainer

    return build


def batch_of():
    ids = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 10, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def test_training_adds_the_balancing_loss(base_trainer):
    """The model's balancing loss times its weight is shared by accumulated steps."""
    trainer = base_trainer()
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 4
    batch = batch_of()
    with torch.no_grad():
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        there = trainer.model(**inputs, output_router_logits=True)
        logits, labels = there.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
        tokens = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        alone = trainer.compute_loss(trainer.model, dict(batch))
        count = torch.tensor(20)
        shared = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count)
    assert float(there.aux_loss) > 1  # it is 2 if every expert gets as many tokens
    assert float(alone) == pytest.approx(float(tokens / 6 + 0.5 * there.aux_loss), rel=1e-5)
    assert float(shared) == pytest.approx(float(tokens / 20 + 0.5 * there.aux_loss / 4), rel=1e-5)


@pytest.mark.parametrize("arguments", [{}, {"label_smoothing_factor": 0.1}, {"loss_type": "dft"}])
def test_evaluation_is_the_plain_loss_without_other_processes(arguments, base_trainer, monkeypatch):
    """It counts the tokens alone and asks nothing of processes that are in training already."""
    trainer = base_trainer(**arguments)
    why = "a collective operation in an evaluation"
    monkeypatch.setattr(trainer.accelerator, "gather_for_metrics", lambda *_: pytest.fail(why))
    trainer.model.eval()
    batch = batch_of()
    with torch.no_grad():
        found = float(trainer.compute_loss(trainer.model, dict(batch)))
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        logits = trainer.model(**inputs).logits[:, :-1]
    labels = batch["labels"][:, 1:].flatten()
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels)
    assert found == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("family", "wanted"),
    [
        ("qwen3_moe", "attention-and-shared"),
        *((family, wanted) for family in FAMILIES for wanted in ("all-linear", "with-experts")),
    ],
)
def test_lora_never_corrects_a_router(family, wanted, tmp_path):
    """Only with-experts adds routed experts, and plain PEFT loads the result."""
    keys = {
        "rank": 2, "alpha": None, "dropout": 0.0, "rslora": False, "train_embeddings": False,
        "target_modules": wanted,
    }  # fmt: skip
    stage = stage_of("sft", target_modules=wanted)
    base = tiny_mixture(family)
    experts = find_experts(base)
    model = get_peft_model(base, load_update("lora").peft_config(stage, keys, base)).eval()
    names = [
        name.removeprefix("base_model.model.").replace(".base_layer", "")
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]

    def within(parts):
        return [name for name in names if any(f"{part}." in name for part in parts)]

    assert not within(experts.routers)
    routed = within(experts.modules)
    # Two tensors of experts in a layer, A and B for each.
    assert len(routed) == (4 * len(experts.modules) if wanted == "with-experts" else 0)
    assert any("q_" in name for name in names)
    if family in ("deepseek_v3", "llama4_text"):
        assert any(".shared_expert" in name for name in names)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    ids = torch.arange(3, 13)[None]
    there = model(input_ids=ids).logits
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    again = PeftModel.from_pretrained(tiny_mixture(family), tmp_path).eval()
    assert torch.equal(again(input_ids=ids).logits, there)


def test_layers_that_peft_refuses_are_left_out():
    """The output projections of Mamba layers, whose kernels read the weights themselves."""
    model = SimpleNamespace(config=SimpleNamespace(model_type="nemotron_h"))
    assert is_refused("backbone.layers.0.mixer.out_proj", model)
    assert not is_refused("backbone.layers.0.mixer.in_proj", model)


@pytest.mark.parametrize(
    ("model", "keys", "match"),
    [
        ("dense", {}, "needs a mixture of experts"),
        ("mixture", {"target_modules": ["q_proj", "gate"]}, "names no layer of this model: gate"),
        ("mixture", {"target_modules": "with-expert"}, "matches none"),
        ("mixture", {"dropout": 0.1}, "cannot have dropout"),
        ("mixture", {"peft": {"use_dora": True}}, "cannot have peft"),
        ("mixture", {"peft": {"init_lora_weights": "orthogonal"}},
         "added to one tensor of all of them"),
    ],
)  # fmt: skip
def test_targets_that_cannot_be_had_are_bad_input(model, keys, match, make, moe):
    """A dense model's experts, routers, misspelt names and unfit combinations are refused."""
    build = moe if model == "mixture" else make
    with pytest.raises(InputError, match=match):
        sft.train(build(**{"target_modules": "with-experts", **keys}))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_every_objective_is_judged_whatever_number_of_processes_trained_it(
    processes, tiny_moe, pairs, tmp_path
):
    """What one process or two have saved loads and generates in another."""
    (tmp_path / "own.py").write_text(REWARD)
    jobs, plans = {}, []
    for name, update in (("sft", "full"), ("dpo", "lora"), ("grpo", "lora")):
        stages = (stage_of(name, **keys_of(name, update, max_steps=2)),)
        jobs[name] = job_in(tmp_path, stages, model=tiny_moe, data=pairs, run=tmp_path / name)
        plan = structs.replace(jobs[name].plan, launch=Launch(processes=processes))
        plans.append(tmp_path / f"{name}.yaml")
        plans[-1].write_text(plan_text(plan))
    if processes == 1:
        train_all(plans)
    else:
        torchrun("tests.trainers.moe", *plans)
        train_all(plans, part=JUDGE)
    for name, job in jobs.items():
        result = result_of(job)
        assert result["evaluation"] is not None
        found = {check["name"]: check["ok"] for check in result["checks"]}
        assert found["saved-model-is-the-trained-one"]
        if name != "sft":
            assert found["the-same-without-peft"]
            model = AutoPeftModelForCausalLM.from_pretrained(job.output, dtype=torch.float32)
            assert generates(model, AutoTokenizer.from_pretrained(job.output)).shape[0] == 2


def test_saved_experts_are_no_damage_where_a_second_model_has_no_room(tmp_path):
    """transformers saves them under other names than it keeps them; what has a name is compared."""
    model = tiny_mixture("qwen3_moe")
    model.save_pretrained(tmp_path)
    assert _same_tensors(model, tmp_path)
    with torch.no_grad():
        model.get_input_embeddings().weight[3] += 1
    assert not _same_tensors(model, tmp_path)


@pytest.mark.parametrize("update", ["lora", "adapter", "prefix", "ia3"])
def test_a_module_whose_tensor_goes_by_another_name_is_not_the_trained_one(
    update, trained_once, tmp_path
):
    """Where a second model has no room, every tensor of a module has to be on the disk."""
    model = AutoPeftModelForCausalLM.from_pretrained(trained_once("sft", update).output)
    saved = load_file(trained_once("sft", update).output / "adapter_model.safetensors")
    save_file(saved, tmp_path / "adapter_model.safetensors")
    assert _same_tensors(model, tmp_path)
    saved["other"] = saved.pop(next(iter(saved)))
    save_file(saved, tmp_path / "adapter_model.safetensors")
    assert not _same_tensors(model, tmp_path)
