"""Bottleneck adapters find their place in every architecture, and do exactly what the papers say
there.
"""

import pytest

torch = pytest.importorskip("torch")

from peft import get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    MambaConfig,
    T5Config,
)

from advisor.peft_adapter import BottleneckConfig, BottleneckLayer, UnsupportedModel, find_places
from tests.peft_adapter.shapes import (
    ALL,
    DECODERS,
    HIDDEN,
    LAYERS,
    config_of,
    inputs,
    randomise,
    task_type,
    tiny,
)

PLACEMENTS = ("houlsby", "pfeiffer", "parallel")


def every(names):
    """Each architecture with each placement, but OPT in parallel, which is refused."""
    pairs = [(name, placement) for name in names for placement in PLACEMENTS]
    return [pair for pair in pairs if pair != ("opt", "parallel")]


def with_adapter(name, **settings):
    return get_peft_model(
        tiny(name), BottleneckConfig(task_type=task_type(name), **{"bottleneck": 4, **settings})
    ).eval()


def logits(model):
    with torch.no_grad():
        return model(**inputs()).logits


@pytest.mark.parametrize(("name", "placement"), every(ALL))
def test_a_new_adapter_changes_nothing_and_a_trained_one_can_be_switched_off(name, placement):
    """Before training the logits are the base's, bit for bit; afterwards they differ, and without
    the adapter they are the base's again. Each place has a down and an up matrix with biases,
    2·H·D + D + H numbers; a backward pass reaches each of them, and nothing else.
    """
    base = logits(tiny(name))
    model = with_adapter(name, placement=placement, bottleneck=5, activation="gelu")
    places = LAYERS * (2 if placement == "houlsby" else 1)
    trained = {key: one for key, one in model.named_parameters() if one.requires_grad}
    assert sum(one.numel() for one in trained.values()) == places * (2 * HIDDEN * 5 + 5 + HIDDEN)
    assert torch.equal(logits(model), base)
    randomise(model)
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
    """Hooks on a plain model that add A(h) to the sublayer's output, or A(x) of the MLP's input,
    give the same logits.
    """
    model = with_adapter(name, placement=placement)
    randomise(model)
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
    model = with_adapter(name, placement="parallel" if name != "opt" else "houlsby")
    randomise(model)
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with torch.no_grad():
        assert torch.equal(
            model.generate(**inputs(), use_cache=True, **settings),
            model.generate(**inputs(), use_cache=False, **settings),
        )


def test_layers_chosen_by_number_alone_get_an_adapter():
    """layers: [0, 2] leaves the middle one as it is."""
    places = find_places(tiny("llama"), "houlsby", [0, 2])
    assert list(places) == [
        f"model.layers.{number}.{part}" for number in (0, 2) for part in ("self_attn", "mlp")
    ]
    with pytest.raises(
        UnsupportedModel, match="layers names 3, but LlamaForCausalLM has layers 0 to 2"
    ):
        find_places(tiny("llama"), "houlsby", [1, 3])


def test_what_has_no_place_is_refused_with_the_reason():
    """Loose linear layers cannot hold a parallel adapter, a Mamba has no MLP, T5 keeps its parts in
    a list, a plain module has no layers.
    """
    with pytest.raises(
        UnsupportedModel,
        match=r"layer model\.decoder\.layers\.0 .*two loose linear layers \(fc1, fc2\)",
    ):
        find_places(tiny("opt"), "parallel")
    mamba = AutoModelForCausalLM.from_config(
        MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4)
    )
    with pytest.raises(UnsupportedModel, match="no single part recognised as its MLP"):
        find_places(mamba, "pfeiffer")
    sizes = {
        "vocab_size": 64,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
    }
    t5 = AutoModelForSeq2SeqLM.from_config(T5Config(**sizes, decoder_start_token_id=0))
    with pytest.raises(UnsupportedModel, match="no part recognised as attention"):
        find_places(t5, "pfeiffer")
    with pytest.raises(UnsupportedModel, match="names no hidden_size"):
        find_places(torch.nn.Linear(3, 3), "pfeiffer")


def test_an_encoder_with_a_head_trains_head_and_adapter():
    """For classification PEFT trains the new head too, and stores it beside the adapter."""
    model = get_peft_model(
        AutoModelForSequenceClassification.from_config(config_of("bert")),
        BottleneckConfig(task_type="SEQ_CLS", placement="pfeiffer"),
    )
    trained = {
        key.split(".")[2] for key, parameter in model.named_parameters() if parameter.requires_grad
    }
    assert trained == {"bert", "classifier"}
