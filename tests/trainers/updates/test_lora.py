"""LoRA well set: its scale, its rank against the layers, trained embeddings, and PEFT's variants
through `peft:`.
"""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
from msgspec import structs
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from advisor.ground.errors import InputError
from tests.trainers.fitting import sequence
from tests.trainers.rollouts.vllm_stand_in import scored
from tests.trainers.runs import trained, weights
from trainers.evaluation.loss import log_prob_sums
from trainers.evaluation.saved_result import plain_lora
from trainers.job.files import read_json
from trainers.rollouts import Answers
from trainers.start import loading
from trainers.updates import load_update


def test_rank_stabilised_scaling_is_alpha_over_the_root_of_the_rank(make):
    """alpha / rank by default, alpha / sqrt(rank) with rslora (Kalajdzievski 2023)."""
    for rslora, scale in ((False, 8 / 16), (True, 8 / 4)):
        job = make(rank=16, alpha=8.0, rslora=rslora)
        model = loading.load_base(job, torch.device("cpu"))
        config = load_update("lora").peft_config(job.stage, job.options, model)
        layers = [one for one in get_peft_model(model, config).modules() if hasattr(one, "scaling")]
        assert layers
        assert {layer.scaling["default"] for layer in layers} == {scale}


def test_a_module_scheme_without_its_config_is_refused(monkeypatch):
    """Else every weight of the model would be trained, without a word."""
    monkeypatch.setattr("trainers.updates.lora.CONFIG", "")
    with pytest.raises(InputError, match=r"'lora' trains a module, and .* has no CONFIG"):
        load_update("lora")


def test_a_rank_larger_than_every_layer_is_bad_input(make):
    """Rank 65 on layers 64 wide is refused with the widest one named; named targets count alone."""
    for keys, said in (
        ({"rank": 65}, r"every layer it would correct: the widest is 64 \(\w+_proj\)"),
        ({"rank": 33, "target_modules": ["v_proj"]}, r".*: the widest is 32 \(v_proj\)"),
    ):
        with pytest.raises(InputError, match=f"rank {keys['rank']} is larger than {said}"):
            trained(make(**keys))


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_can_be_trained_too(tied, make, tiny_model, tmp_path):
    """train_embeddings trains them and the output layer whole, stores them in the adapter, and
    plain PEFT loads them.
    """
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    if not tied:
        base.config.tie_word_embeddings = False
        base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().clone())
    folder = tmp_path / "base"
    base.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    job = make(rank=4, train_embeddings=True, job_judge=False)
    job = replace(job, plan=structs.replace(job.plan, model=str(folder)))
    result = trained(job)
    assert all(check["ok"] for check in result["checks"][:2])
    low = sum(tensor.numel() for name, tensor in weights(job).items() if "lora_" in name)
    whole = base.get_input_embeddings().weight.numel() * (1 if tied else 2)
    assert result["resolved"]["trainable_parameters"] == low + whole
    again = AutoPeftModelForCausalLM.from_pretrained(job.output, dtype=torch.float32)
    found = again.get_input_embeddings().weight
    assert not torch.equal(found, base.get_input_embeddings().weight)
    assert not tied or torch.equal(found, again.get_output_embeddings().weight)


@pytest.mark.parametrize(
    ("passed", "quantization"),
    [
        ({"use_dora": True, "rank_pattern": {"q_proj": 2}}, None),
        ({"use_dora": True, "rank_pattern": {"q_proj": 2}}, "nf4"),
        ({"init_lora_weights": "orthogonal", "trainable_token_indices": [1, 2]}, None),
    ],
)
def test_variants_of_peft_go_through(passed, quantization, make):
    """DoRA, another start, ranks by layer and the rows of new tokens arrive verbatim, learn, and what
    was saved is what was trained.
    """
    job = make(rank=4, peft=passed, quantization=quantization, max_steps=8)
    result = trained(job)
    assert passed.items() <= result["resolved"]["peft"].items()
    assert passed.items() <= read_json(job.output / "adapter_config.json").items()
    assert result["loss_last"] < result["loss_first"]
    assert all(check["ok"] for check in result["checks"][:2])


@pytest.mark.parametrize(
    ("start", "rank", "quantization", "match"),
    [
        ("pissa", 8, None, "no start that these trainers make"),
        ("pissa", 8, "nf4", "it changes the base"),
        ("olora", 8, None, "no start that these trainers make"),
        ("eva", 8, None, "a pass over the data"),
        ("orthogonal", 8, "nf4", "dtype of the base"),
        ("orthogonal", 5, None, "even rank"),  # PEFT halves it
    ],
)
def test_starts_that_cannot_be_had_are_bad_input(start, rank, quantization, match, make, unloaded):
    """A way to start the matrices that changes the base or needs more than this trainer does is
    refused, in one line, before a model is loaded.
    """
    with pytest.raises(InputError, match=match) as caught:
        trained(make(rank=rank, peft={"init_lora_weights": start}, quantization=quantization))
    assert len(caught.value.faults) == 1


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
    LoraConfig(r=4, target_modules="all-linear", **options).save_pretrained(tmp_path)
    (found,) = plain_lora(tmp_path)
    assert found.ok is is_ok
    assert said in found.text


@pytest.mark.parametrize(
    "keys",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [4, 5]},
    ],
    ids=["corrected", "whole", "tokens"],
)
def test_what_is_trained_of_the_output_layer_is_evaluated(keys, tiny_model):
    """The log-probabilities of rows are those of the model's own logits, whatever is put on its head."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    if "lm_head" in str(keys):  # no longer the embeddings
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    config = LoraConfig(r=4, init_lora_weights=False, task_type="CAUSAL_LM", **keys)
    model = get_peft_model(model, config).eval()
    for one in model.parameters():
        if one.requires_grad:
            torch.nn.init.normal_(one)
    # (what is read, what is learned behind it)
    texts = Answers([[3, 4], [9]], [[5, 6, 7], [10, 11]], [True, True])
    wanted = [sum(one) for one in scored(model, texts, 1.0)]
    rows = [sequence(1, [3, 4, 5, 6, 7], [-100, -100, 5, 6, 7]), sequence(2, [9, 10, 11])]
    assert log_prob_sums(model, rows, 0, at_once=2) == pytest.approx(wanted, abs=1e-3)


NARROW = "rank 64 is larger than the width of some layers (k_proj 32, v_proj 32)"


@pytest.mark.parametrize(
    ("update", "keys", "said"),
    [
        ("lora", {"rank": 64}, NARROW),
        ("prefix", {"prefix_tokens": 4}, "the prefix starts from the keys and values"),
        ("full", {}, "rows to train on"),
    ],
)
def test_without_room_for_a_second_model_saved_tensors_are_compared(
    update, keys, said, make, monkeypatch, capsys
):
    """With those in memory; an adapter is not loaded beside itself. Each says how it starts."""
    room = "trainers.evaluation.saved_result._room_for_second"
    monkeypatch.setattr(room, lambda *_: False)
    (check, *_) = trained(make(update=update, max_steps=2, job_judge=False, **keys))["checks"]
    assert check["ok"]
    assert "the saved tensors are those in memory" in check["text"]
    assert said in capsys.readouterr().err
