"""Bottleneck adapters behave like any other PEFT method: saved, loaded, switched, refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from peft import AutoPeftModelForCausalLM, PeftModel, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig

from advisor.peft_adapter import CANNOT_BE_MERGED, NOT_SERVED_BY, BottleneckConfig, UnsupportedModel
from advisor.peft_adapter.model import register
from tests.peft_adapter.shapes import inputs, randomise, tiny
from trainers.start.loading import keep_weights_unpacked

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def base(tmp_path):
    """The folder of a tiny Llama."""
    tiny("llama").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def loaded(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def adapted(model, **settings):
    keys = {"bottleneck": 4, "placement": "houlsby", **settings}
    return get_peft_model(model, BottleneckConfig(task_type="CAUSAL_LM", **keys)).eval()


def logits(model):
    with torch.no_grad():
        return model(**inputs()).logits.float()


def test_it_is_saved_and_loaded_in_pefts_layout(base, tmp_path):
    """adapter_config.json and one safetensors file; PeftModel and AutoPeftModel give the same
    logits again.
    """
    model = adapted(loaded(base), activation="silu", scale=2.0, layers=[0, 2])
    randomise(model)
    folder = tmp_path / "adapter"
    model.save_pretrained(folder)
    names = {path.name for path in folder.iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "BOTTLENECK"
    assert (config["base_hidden_size"], config["base_layers"]) == (32, 3)
    for again in (
        PeftModel.from_pretrained(loaded(base), folder),
        PeftModel.from_pretrained(loaded(base), folder, low_cpu_mem_usage=True),
        AutoPeftModelForCausalLM.from_pretrained(folder),
    ):
        assert torch.equal(logits(again), logits(model))


CODE = """
import sys, torch
from peft import AutoPeftModelForCausalLM
from tests.peft_adapter.shapes import inputs
folder, logits = sys.argv[1:]
try:
    AutoPeftModelForCausalLM.from_pretrained(folder)
except Exception as error:
    print("BOTTLENECK" in str(error))
import advisor.peft_adapter
model = AutoPeftModelForCausalLM.from_pretrained(folder)
print(torch.equal(model(**inputs()).logits, torch.load(logits)))
"""


def test_a_new_process_loads_it_after_the_import_alone(base, tmp_path):
    """`import advisor.peft_adapter` is all a program needs; without it PEFT does not know the
    type.
    """
    model = adapted(loaded(base))
    randomise(model)
    model.save_pretrained(tmp_path / "adapter")
    torch.save(logits(model), tmp_path / "logits.pt")  # a test's own scratch file
    done = subprocess.run(
        [sys.executable, "-c", CODE, tmp_path / "adapter", tmp_path / "logits.pt"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_two_adapters_on_one_base_are_each_as_alone(base, tmp_path):
    """set_adapter switches between adapters of different placement and size; deleting one leaves
    the other.
    """
    alone = {}
    settings = {"one": {"placement": "houlsby"}, "two": {"placement": "parallel", "bottleneck": 7}}
    for seed, (name, chosen) in enumerate(settings.items(), 1):
        model = adapted(loaded(base), **chosen)
        randomise(model, seed=seed)
        model.save_pretrained(tmp_path / name)
        alone[name] = logits(model)
    both = PeftModel.from_pretrained(loaded(base), tmp_path / "one", adapter_name="one").eval()
    both.load_adapter(tmp_path / "two", "two")
    assert torch.equal(logits(both), alone["one"])
    for name in ("two", "one"):
        both.set_adapter(name)
        assert torch.equal(logits(both), alone[name])
    with both.disable_adapter():
        assert torch.equal(logits(both), logits(loaded(base)))
    both.delete_adapter("one")
    both.set_adapter("two")
    assert torch.equal(logits(both), alone["two"])


def test_the_adapter_in_use_alone_is_trained(base):
    """A second adapter stays frozen until it is set, and training goes where set_adapter points."""
    model = adapted(loaded(base))
    model.add_adapter("more", BottleneckConfig(task_type="CAUSAL_LM", bottleneck=3))
    for name in ("default", "more"):
        model.set_adapter(name)
        trained = {key for key, one in model.named_parameters() if one.requires_grad}
        assert trained == {key for key, _ in model.named_parameters() if f".{name}." in key}


def test_merging_is_refused_with_the_reason_and_unloading_gives_the_base(base):
    """It cannot be merged, and says so; unload() takes it out again."""
    model = adapted(loaded(base))
    randomise(model)
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(ValueError, match="cannot be merged: there is an activation"):
            merge()
    assert "import advisor.peft_adapter" in CANNOT_BE_MERGED
    assert {"vllm", "ollama"} <= set(NOT_SERVED_BY)
    assert torch.equal(logits(model.unload()), logits(loaded(base)))


def test_an_adapter_of_another_base_is_refused(base, tmp_path):
    """The error names both sizes, before any tensor is looked at."""
    adapted(loaded(base)).save_pretrained(tmp_path / "adapter")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24}
    config = LlamaConfig(vocab_size=64, num_attention_heads=2, **sizes)
    said = "hidden size 32 and 3 layers, and LlamaForCausalLM has hidden size 16 and 2 layers"
    with pytest.raises(UnsupportedModel, match=said):
        PeftModel.from_pretrained(AutoModelForCausalLM.from_config(config), tmp_path / "adapter")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"placement": "serial"}, "allowed are houlsby, pfeiffer, parallel"),
        ({"activation": "swish"}, "allowed are relu, gelu, silu, tanh"),
        ({"bottleneck": 0}, "bottleneck is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"scale": 0}, "scale is 0"),
        ({"layers": []}, r"layers is \[\]"),
        ({"layers": [-1], "bottleneck": True}, "bottleneck is True.*; layers is"),
    ],
)
def test_bad_settings_are_refused_together(settings, match):
    """Each fault names the value and what is allowed."""
    with pytest.raises(ValueError, match=match):
        BottleneckConfig(**settings)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_on_a_16_bit_base_the_adapter_stays_in_float32(base, dtype):
    """As with LoRA: small updates would be lost in 16 bit.

    The base's logits are untouched until it is trained.
    """
    plain = logits(loaded(base, dtype=dtype))
    model = adapted(loaded(base, dtype=dtype))
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {
        torch.float32
    }
    assert torch.equal(logits(model), plain)
    randomise(model)
    assert not torch.equal(logits(model), plain)


def test_on_a_4_bit_base(base, tmp_path):
    """A base quantised to nf4 keeps its logits under a new adapter, trains, and gives the trained
    logits again after loading.
    """
    pytest.importorskip("bitsandbytes")

    def four_bit():
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        return keep_weights_unpacked(
            loaded(base, quantization_config=config, device_map={"": "cpu"})
        )

    model = adapted(four_bit())
    assert torch.equal(logits(model), logits(four_bit()))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(5):
        loss = model(**inputs(), labels=inputs()["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(four_bit(), tmp_path / "adapter")
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("placement", ["houlsby", "parallel"])
def test_gradient_checkpointing_gives_the_same_loss_and_gradients(base, reentrant, placement):
    """Recomputing in the backward pass changes neither."""

    def step(checkpointing):
        model = adapted(loaded(base), placement=placement)
        randomise(model)
        model.train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        loss = model(**inputs(), labels=inputs()["input_ids"], use_cache=False).loss
        loss.backward()
        return loss.detach(), {
            key: one.grad for key, one in model.named_parameters() if one.requires_grad
        }

    (plain, gradients), (again, others) = step(False), step(True)
    assert torch.equal(plain, again)
    assert gradients
    for key, gradient in gradients.items():
        assert torch.allclose(gradient, others[key], atol=1e-7), key


def test_dropout_acts_in_training_alone(base):
    """With dropout two training passes differ, two evaluations do not."""
    model = adapted(loaded(base), dropout=0.5)
    randomise(model)
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))


def test_post_norm_encoders_take_both_kinds_in_one_order():
    """In BERT a sequential adapter sits inside the place of a parallel one: the other order is
    refused with the reason.
    """

    def config(placement):
        return BottleneckConfig(bottleneck=4, placement=placement)

    model = get_peft_model(tiny("bert"), config("houlsby"))
    model.add_adapter("beside", config("parallel"))
    model.set_adapter("beside")
    randomise(model, "beside")
    alone = get_peft_model(tiny("bert"), config("parallel"))
    randomise(alone)
    assert torch.equal(logits(model.eval()), logits(alone.eval()))
    with pytest.raises(UnsupportedModel, match="add the other one first"):
        alone.add_adapter("inside", config("houlsby"))


def test_importing_twice_registers_once():
    """A reload does not trip over PEFT's registry."""
    register()
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.BOTTLENECK] is BottleneckConfig
    assert list(PeftType).count(PeftType("BOTTLENECK")) == 1
