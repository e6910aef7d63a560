"""Bottleneck adapters and prefixes act as papers say, in any architecture, as PEFT methods do."""

import json
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from peft import (
    AutoPeftModelForCausalLM,
    PeftModel,
    PeftType,
    PrefixTuningConfig,
    get_peft_model,
    initialize_kv_prefix_from_past_key_values,
)
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    LlamaConfig,
    MambaConfig,
    T5Config,
)

from advisor.peft_adapter import (
    CANNOT_BE_MERGED,
    NOT_SERVED_BY,
    BottleneckConfig,
    BottleneckLayer,
    UnsupportedModel,
    find_places,
)
from advisor.peft_adapter.model import register
from tests.conftest import ROOT
from tests.peft_adapter.shapes import (
    ALL,
    DECODERS,
    HIDDEN,
    LAYERS,
    config_of,
    inputs,
    randomised,
    task_type,
    tiny,
)
from trainers.start.loading import keep_weights_unpacked

GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
PLACEMENTS = ("houlsby", "pfeiffer", "parallel")


def every(names):
    """Each architecture with each placement, but OPT in parallel, which is refused."""
    pairs = [(name, placement) for name in names for placement in PLACEMENTS]
    return [pair for pair in pairs if pair != ("opt", "parallel")]


def adapted(model=None, task="CAUSAL_LM", **settings):
    """The model, or else a tiny Llama, with an adapter."""
    keys = {"bottleneck": 4, "placement": "houlsby", **settings}
    config = BottleneckConfig(task_type=task, **keys)
    return get_peft_model(tiny("llama") if model is None else model, config).eval()


def with_adapter(name, **settings):
    return adapted(tiny(name), task_type(name), **settings)


def logits(model):
    with torch.no_grad():
        return model(**inputs()).logits.float()


@pytest.mark.parametrize(("name", "placement"), every(ALL))
def test_a_new_adapter_changes_nothing_and_a_trained_one_can_be_switched_off(name, placement):
    """Each place trains two matrices with biases, 2·H·D + D + H numbers, and nothing else."""
    base = logits(tiny(name))
    model = with_adapter(name, placement=placement, bottleneck=5, activation="gelu")
    places = LAYERS * (2 if placement == "houlsby" else 1)
    trained = {key: one for key, one in model.named_parameters() if one.requires_grad}
    assert sum(one.numel() for one in trained.values()) == places * (2 * HIDDEN * 5 + 5 + HIDDEN)
    assert torch.equal(logits(model), base)
    randomised(model)
    assert (logits(model) - base).abs().max() > 1e-2
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    model(**inputs()).logits.square().mean().backward()
    reached = {
        key for key, one in model.named_parameters() if one.grad is not None and one.grad.any()
    }
    assert reached == {key for key, _ in model.named_parameters() if ".bottleneck_" in key}


def by_hand(layer, x):
    """A(x), from the stored matrices."""
    down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
    return torch.relu(x @ down.weight.T + down.bias) @ up.weight.T + up.bias


# Where the output of attention and of the MLP is to be seen in a plain model, before the residual
# is added, and the input of the MLP.
OF_BLOCK = ("attention.output.dense", "output.dense", "intermediate")
OF_FALCON = ("self_attention.dense", "mlp.dense_4h_to_h", "mlp")
SUBLAYERS = {
    "llama": ("model.layers.{}.", "self_attn.o_proj", "mlp.down_proj", "mlp"),
    "gpt2": ("transformer.h.{}.", "attn.c_proj", "mlp.c_proj", "mlp"),
    "falcon": ("transformer.h.{}.", *OF_FALCON),
    "bloom": ("transformer.h.{}.", *OF_FALCON),
    "bert": ("bert.encoder.layer.{}.", *OF_BLOCK),
    "opt": ("model.decoder.layers.{}.", "self_attn.out_proj", "fc2", ""),
}


@pytest.mark.parametrize(("name", "placement"), every(SUBLAYERS))
def test_the_logits_are_those_of_the_formula_put_in_by_hand(name, placement):
    """Hooks that add A(h) to the sublayer's output, or A(x) of the MLP's input, give the same."""
    model = randomised(with_adapter(name, placement=placement))
    layers = iter([module for module in model.modules() if isinstance(module, BottleneckLayer)])
    plain, seen = tiny(name), {}
    modules = dict(plain.named_modules())

    def add(place, layer, entrance=None):
        def hook(module, args, out):
            return out + by_hand(layer, out if entrance is None else seen[entrance])

        modules[place].register_forward_hook(hook)

    for number in range(LAYERS):
        block, *parts = SUBLAYERS[name]
        attention, mlp, entrance = (block.format(number) + part for part in parts)
        if placement == "houlsby":
            add(attention, next(layers))
        if placement == "parallel":
            modules[entrance].register_forward_pre_hook(
                lambda module, args, place=entrance: seen.update({place: args[0]})
            )
        add(mlp, next(layers), entrance if placement == "parallel" else None)
    assert torch.allclose(logits(model), logits(plain), atol=1e-5)


@pytest.mark.parametrize("name", [*DECODERS])
def test_generation_with_the_cache_equals_generation_without(name):
    """An adapter acts on the token it is given, so cached decoding says the same."""
    model = randomised(with_adapter(name, placement="parallel" if name != "opt" else "houlsby"))
    with torch.no_grad():
        assert torch.equal(
            model.generate(**inputs(), use_cache=True, **GREEDY),
            model.generate(**inputs(), use_cache=False, **GREEDY),
        )


MAMBA = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
NO_PLACE = {
    "a layer that is not there": (
        lambda: tiny("llama"), ("houlsby", [1, 3]),
        "layers names 3, but LlamaForCausalLM has layers 0 to 2",
    ),
    "loose linear layers": (
        lambda: tiny("opt"), ("parallel",),
        r"layer model\.decoder\.layers\.0 .*two loose linear layers \(fc1, fc2\)",
    ),
    "no MLP": (
        lambda: AutoModelForCausalLM.from_config(MambaConfig(**MAMBA)), ("pfeiffer",),
        "no single part recognised as its MLP",
    ),
    "parts in a list": (
        lambda: AutoModelForSeq2SeqLM.from_config(T5Config(**T5, decoder_start_token_id=0)),
        ("pfeiffer",), "no part recognised as attention",
    ),
    "no layers": (lambda: torch.nn.Linear(3, 3), ("pfeiffer",), "names no hidden_size"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "wanted", "said"), NO_PLACE.values(), ids=NO_PLACE)
def test_what_has_no_place_is_refused_with_the_reason(make, wanted, said):
    """No adapter is put where it cannot act."""
    with pytest.raises(UnsupportedModel, match=said):
        find_places(make(), *wanted)


def test_an_encoder_with_a_head_trains_head_and_adapter():
    """For classification PEFT trains the new head too, and stores it beside the adapter."""
    model = get_peft_model(
        AutoModelForSequenceClassification.from_config(config_of("bert")),
        BottleneckConfig(task_type="SEQ_CLS", placement="pfeiffer"),
    )
    trained = [key for key, one in model.named_parameters() if one.requires_grad]
    assert {key.split(".")[2] for key in trained} == {"bert", "classifier"}


@pytest.fixture
def base(tmp_path):
    """The folder of a tiny Llama."""
    tiny("llama").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def loaded(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def test_it_is_saved_and_loaded_in_pefts_layout(base, tmp_path):
    """adapter_config.json and one safetensors file hold all that PEFT needs for the same logits."""
    model = randomised(adapted(loaded(base), activation="silu", scale=2.0, layers=[0, 2]))
    folder = tmp_path / "adapter"
    model.save_pretrained(folder)
    names = {path.name for path in folder.iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    config = json.loads((folder / "adapter_config.json").read_text())
    known = [config[key] for key in ("peft_type", "base_hidden_size", "base_layers")]
    assert known == ["BOTTLENECK", 32, 3]
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
    """`import advisor.peft_adapter` is all a program needs for PEFT to know the type."""
    model = randomised(adapted(loaded(base)))
    model.save_pretrained(tmp_path / "adapter")
    torch.save(logits(model), tmp_path / "logits.pt")  # a test's own scratch file
    done = subprocess.run(
        [sys.executable, "-c", CODE, tmp_path / "adapter", tmp_path / "logits.pt"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_two_adapters_on_one_base_are_each_as_alone(tmp_path):
    """Adapters of different placement and size are switched, and deleting one leaves the other."""
    alone = {}
    settings = {"one": {"placement": "houlsby"}, "two": {"placement": "parallel", "bottleneck": 7}}
    for seed, (name, chosen) in enumerate(settings.items(), 1):
        model = randomised(adapted(**chosen), seed=seed)
        model.save_pretrained(tmp_path / name)
        alone[name] = logits(model)
    both = PeftModel.from_pretrained(tiny("llama"), tmp_path / "one", adapter_name="one").eval()
    both.load_adapter(tmp_path / "two", "two")
    assert torch.equal(logits(both), alone["one"])
    for name in ("two", "one"):
        both.set_adapter(name)
        assert torch.equal(logits(both), alone[name])
    with both.disable_adapter():
        assert torch.equal(logits(both), logits(tiny("llama")))
    both.delete_adapter("one")
    both.set_adapter("two")
    assert torch.equal(logits(both), alone["two"])


def test_the_adapter_in_use_alone_is_trained():
    """A second adapter stays frozen until it is set, and training goes where set_adapter points."""
    model = adapted()
    model.add_adapter("more", BottleneckConfig(task_type="CAUSAL_LM", bottleneck=3))
    for name in ("default", "more"):
        model.set_adapter(name)
        trained = {key for key, one in model.named_parameters() if one.requires_grad}
        assert trained == {key for key, _ in model.named_parameters() if f".{name}." in key}


def test_merging_is_refused_with_the_reason_and_unloading_gives_the_base():
    """It cannot be merged, and says so; unload() takes it out again."""
    model = randomised(adapted())
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(ValueError, match="cannot be merged: there is an activation"):
            merge()
    assert "import advisor.peft_adapter" in CANNOT_BE_MERGED
    assert {"vllm", "ollama"} <= set(NOT_SERVED_BY)
    assert torch.equal(logits(model.unload()), logits(tiny("llama")))


def test_an_adapter_of_another_base_is_refused(tmp_path):
    """The error names both sizes, before any tensor is looked at."""
    adapted().save_pretrained(tmp_path / "adapter")
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
    """As with LoRA, small updates would be lost in 16 bit."""
    plain = logits(loaded(base, dtype=dtype))
    model = adapted(loaded(base, dtype=dtype))
    assert {one.dtype for one in model.parameters() if one.requires_grad} == {torch.float32}
    assert torch.equal(logits(model), plain)
    randomised(model)
    assert not torch.equal(logits(model), plain)


def test_on_a_4_bit_base(base, tmp_path):
    """An nf4 base keeps its logits under a new adapter, which trains and loads exactly."""
    pytest.importorskip("bitsandbytes")

    def four_bit():
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        return keep_weights_unpacked(
            loaded(base, quantization_config=config, device_map={"": "cpu"})
        )

    model = adapted(four_bit())
    assert torch.equal(logits(model), logits(four_bit()))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, losses = torch.optim.AdamW(trained, lr=1e-2), []
    for _ in range(5):
        optimizer.zero_grad()
        losses.append(model(**inputs(), labels=inputs()["input_ids"]).loss)
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(four_bit(), tmp_path / "adapter")
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("placement", ["houlsby", "parallel"])
def test_gradient_checkpointing_gives_the_same_loss_and_gradients(reentrant, placement):
    """Recomputing in the backward pass changes neither."""

    def step(checkpointing):
        model = randomised(adapted(placement=placement))
        model.train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        loss = model(**inputs(), labels=inputs()["input_ids"], use_cache=False).loss
        loss.backward()
        return loss.detach(), [one.grad for one in model.parameters() if one.requires_grad]

    (plain, gradients), (again, others) = step(False), step(True)
    assert torch.equal(plain, again)
    assert gradients
    torch.testing.assert_close(others, gradients, atol=1e-7, rtol=1e-5)


def test_dropout_acts_in_training_alone():
    """With dropout two training passes differ, two evaluations do not."""
    model = randomised(adapted(dropout=0.5))
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))


def test_post_norm_encoders_take_both_kinds_in_one_order():
    """In BERT a sequential adapter sits inside the place of a parallel one, so it comes second."""
    model, alone = (with_adapter("bert", placement=one) for one in ("houlsby", "parallel"))
    model.add_adapter("beside", BottleneckConfig(bottleneck=4, placement="parallel"))
    model.set_adapter("beside")
    randomised(model, "beside")
    randomised(alone)
    assert torch.equal(logits(model.eval()), logits(alone))
    with pytest.raises(UnsupportedModel, match="add the other one first"):
        alone.add_adapter("inside", BottleneckConfig(bottleneck=4, placement="houlsby"))


def test_importing_twice_registers_once():
    """A reload does not trip over PEFT's registry."""
    register()
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.BOTTLENECK] is BottleneckConfig
    assert list(PeftType).count(PeftType("BOTTLENECK")) == 1


LENGTH = 5


def prefixed(name):
    """A tiny model with a prompt's keys and values as prefix, the plain model, and the prompt."""
    model, prompt = tiny(name), inputs(1, LENGTH)["input_ids"]
    with torch.no_grad():
        cache = model(input_ids=prompt, use_cache=True).cache
    _, heads, _, width = cache.layers[0].keys.shape
    sizes = {"num_layers": len(cache.layers), "num_attention_heads": heads}
    config = PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=LENGTH, token_dim=heads * width, **sizes
    )
    tuned = get_peft_model(tiny(name), config).eval()
    initialize_kv_prefix_from_past_key_values(
        tuned, past_key_values=[(layer.keys, layer.values) for layer in cache.layers]
    )
    return tuned, model, prompt


def behind_prompt(model, prompt, ids):
    """Greedy decoding of the plain model behind the prompt, without any cache."""
    for _ in range(GREEDY["max_new_tokens"]):
        logits = model(input_ids=torch.cat([prompt.expand(len(ids), -1), ids], dim=1)).logits
        ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids


@pytest.mark.parametrize("name", DECODERS)
def test_it_generates_what_the_prompted_model_generates(name):
    """With and without the cache, and with rows padded on the left."""
    tuned, model, prompt = prefixed(name)
    rows = inputs()
    with torch.no_grad():
        expected = behind_prompt(model, prompt, rows["input_ids"])
        whole = torch.cat([prompt.expand(2, -1), rows["input_ids"]], dim=1)
        logits = model(input_ids=whole).logits[:, LENGTH:]
        assert torch.allclose(tuned(**rows).logits, logits, atol=1e-5)
        assert torch.equal(tuned.generate(**rows, **GREEDY), expected)
        padded = {key: torch.nn.functional.pad(row, (3, 0)) for key, row in rows.items()}
        assert torch.equal(tuned.generate(**padded, **GREEDY)[:, 3:], expected)
        assert torch.equal(tuned.generate(**rows, use_cache=False, **GREEDY), expected)


def test_a_prefix_is_switched_off_and_works_with_beams_and_samples():
    """disable_adapter holds in generation, and beams and several samples a row have the prefix."""
    tuned, model, _ = prefixed("llama")
    sampled = {**GREEDY, "do_sample": True, "num_return_sequences": 2}
    with torch.no_grad():
        with tuned.disable_adapter():
            off = tuned.generate(**inputs(), **GREEDY)
        assert torch.equal(off, model.generate(**inputs(), **GREEDY))
        assert tuned.generate(**inputs(), **GREEDY, num_beams=3).shape == (2, 13)
        assert tuned.generate(**inputs(), **sampled).shape == (4, 13)


def test_its_own_stop_tokens_end_an_answer():
    """The adapter's generation config counts, as it does for LoRA."""
    tuned, model, prompt = prefixed("llama")
    expected = behind_prompt(model, prompt, inputs(1)["input_ids"])
    tuned.generation_config.eos_token_id = int(expected[0, 8])
    greedy = {key: value for key, value in GREEDY.items() if key != "eos_token_id"}
    with torch.no_grad():
        assert tuned.generate(**inputs(1), **greedy).shape[1] == 9
