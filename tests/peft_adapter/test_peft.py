"""Bottleneck adapters behave like any other PEFT method: saved, loaded, switched, refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from advisor.peft_adapter import CANNOT_BE_MERGED, NOT_SERVED_BY, BottleneckConfig, UnsupportedModel
from tests.peft_adapter.shapes import inputs, randomise, tiny

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def base(tmp_path):
    """The folder of a tiny Llama."""
    tiny("llama").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def loaded(folder, **options):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def adapted(model, **settings):
    from peft import get_peft_model

    return get_peft_model(
        model,
        BottleneckConfig(
            task_type="CAUSAL_LM", **{"bottleneck": 4, "placement": "houlsby", **settings}
        ),
    ).eval()


def logits(model):
    with torch.no_grad():
        return model(**inputs()).logits.float()


def test_it_is_saved_and_loaded_in_pefts_layout(base, tmp_path):
    """adapter_config.json and one safetensors file; PeftModel and AutoPeftModel give the same
    logits again.
    """
    from peft import AutoPeftModelForCausalLM, PeftModel

    model = adapted(loaded(base), activation="silu", scale=2.0, layers=[0, 2])
    randomise(model)
    model.save_pretrained(tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["peft_type"] == "BOTTLENECK"
    assert (config["base_hidden_size"], config["base_layers"]) == (32, 3)
    expected = logits(model)
    assert torch.equal(
        logits(PeftModel.from_pretrained(loaded(base), tmp_path / "adapter")), expected
    )
    assert torch.equal(
        logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")), expected
    )
    assert torch.equal(
        logits(
            PeftModel.from_pretrained(loaded(base), tmp_path / "adapter", low_cpu_mem_usage=True)
        ),
        expected,
    )


def test_a_new_process_loads_it_after_the_import_alone(base, tmp_path):
    """`import advisor.peft_adapter` is all a program needs; without it PEFT does not know the
    type.
    """
    model = adapted(loaded(base))
    randomise(model)
    model.save_pretrained(tmp_path / "adapter")
    torch.save(logits(model), tmp_path / "logits.pt")  # a test's own scratch file
    code = (
        "import sys, torch\n{}\nfrom peft import AutoPeftModelForCausalLM\nfrom"
        " tests.peft_adapter.shapes import inputs\nmodel ="
        f" AutoPeftModelForCausalLM.from_pretrained({str(tmp_path / 'adapter')!r})\nprint(torch.equal(model(**inputs()).logits,"
        f" torch.load({str(tmp_path / 'logits.pt')!r})))"
    )
    with_import = subprocess.run(
        [sys.executable, "-c", code.format("import advisor.peft_adapter")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert with_import.stdout.strip() == "True", with_import.stderr
    without = subprocess.run(
        [sys.executable, "-c", code.format("")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert without.returncode == 1
    assert "BOTTLENECK" in without.stderr


def test_two_adapters_on_one_base_are_each_as_alone(base, tmp_path):
    """set_adapter switches between adapters of different placement and size; deleting one leaves
    the other.
    """
    settings = {
        "one": {"placement": "houlsby", "seed": 1},
        "two": {"placement": "parallel", "bottleneck": 7, "seed": 2},
    }
    alone = {}
    for name, chosen in settings.items():
        seed = chosen.pop("seed")
        model = adapted(loaded(base), **chosen)
        randomise(model, seed=seed)
        model.save_pretrained(tmp_path / name)
        alone[name] = logits(model)
    from peft import PeftModel

    both = PeftModel.from_pretrained(loaded(base), tmp_path / "one", adapter_name="one").eval()
    both.load_adapter(tmp_path / "two", "two")
    assert torch.equal(logits(both), alone["one"])
    both.set_adapter("two")
    assert torch.equal(logits(both), alone["two"])
    both.set_adapter("one")
    assert torch.equal(logits(both), alone["one"])
    with both.disable_adapter():
        assert torch.equal(logits(both), logits(loaded(base)))
    both.delete_adapter("one")
    both.set_adapter("two")
    assert torch.equal(logits(both), alone["two"])


def test_the_adapter_in_use_alone_is_trained(base):
    """A second adapter stays frozen until it is set, and training goes where set_adapter points."""
    model = adapted(loaded(base))
    model.add_adapter("more", BottleneckConfig(task_type="CAUSAL_LM", bottleneck=3))

    def trained():
        return {
            "more" if ".more." in key else "default"
            for key, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    assert trained() == {"default"}
    model.set_adapter("more")
    assert trained() == {"more"}


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
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, LlamaConfig

    adapted(loaded(base)).save_pretrained(tmp_path / "adapter")
    other = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=64,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
        )
    )
    with pytest.raises(
        UnsupportedModel,
        match="hidden size 32 and 3 layers, and LlamaForCausalLM has hidden size 16 and 2 layers",
    ):
        PeftModel.from_pretrained(other, tmp_path / "adapter")


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
    from peft import PeftModel
    from transformers import BitsAndBytesConfig

    from trainers.start.loading import keep_weights_unpacked

    def four_bit():
        return keep_weights_unpacked(
            loaded(
                base,
                quantization_config=BitsAndBytesConfig(
                    load_in_4bit=True, bnb_4bit_quant_type="nf4"
                ),
                device_map={"": "cpu"},
            )
        )

    plain = logits(four_bit())
    model = adapted(four_bit())
    assert torch.equal(logits(model), plain)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-2
    )
    losses = []
    for _ in range(5):
        loss = model(**inputs(), labels=inputs()["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path / "adapter")
    assert torch.equal(
        logits(PeftModel.from_pretrained(four_bit(), tmp_path / "adapter")), logits(model)
    )


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
            key: parameter.grad
            for key, parameter in model.named_parameters()
            if parameter.requires_grad
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
    from peft import get_peft_model

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
    from advisor.peft_adapter.model import register

    register()
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.BOTTLENECK] is BottleneckConfig
    assert PeftType("BOTTLENECK") is PeftType.BOTTLENECK
    assert "BOTTLENECK" in list(PeftType)


def test_trls_trainer_trains_it(base, tmp_path, tiny_model):
    """Inside plain TRL: the loss falls, the base stays, and what the trainer saves loads again."""
    from datasets import Dataset
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    rows = Dataset.from_list(
        [
            {"prompt": f"Where is parcel {number}?", "completion": " Thank you, we look."}
            for number in range(16)
        ]
    )
    arguments = SFTConfig(
        output_dir=str(tmp_path / "out"), max_steps=25, per_device_train_batch_size=4,
        learning_rate=2e-2, report_to="none", use_cpu=True, bf16=False,
        gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False},
        logging_steps=1, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    trainer = SFTTrainer(
        model=loaded(tiny_model),
        args=arguments,
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
        peft_config=BottleneckConfig(task_type="CAUSAL_LM", bottleneck=16),
    )
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    assert losses[-1] < losses[0] - 0.2
    trainer.save_model(str(tmp_path / "saved"))
    again = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    assert torch.allclose(logits(again), logits(trainer.model.eval()), atol=1e-5)
