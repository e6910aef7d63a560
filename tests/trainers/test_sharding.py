"""What a model needs before it is divided among processes; tests/distributed divides some."""

import pytest

pytest.importorskip("torch")

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from advisor.ground.errors import InputError
from trainers.step.sharding import make_divisible


def with_copies(folder, *names, tied=False):
    """The tiny model, whose embeddings are its output layer, with copies of modules that train."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    config = LoraConfig(
        target_modules=["q_proj"], modules_to_save=list(names), ensure_weight_tying=tied
    )
    return get_peft_model(model, config)


def ties(model):
    """The names of parameters that are one tensor."""
    found = {}
    for name, one in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(one), []).append(name)
    return [names for names in found.values() if len(names) > 1]


def test_what_was_tied_is_tied_again_and_nothing_else(tiny_model):
    """Moving a model takes its ties apart. transformers' own way to tie them fails at copies that
    train.
    """
    model = with_copies(tiny_model, "embed_tokens", "lm_head", tied=True)
    before = ties(model)
    assert before
    make_divisible(model, mixed=False)
    model.to("meta")
    model.tie_weights()
    assert ties(model) == before


def test_embeddings_whose_original_is_the_output_are_refused(tiny_model):
    """The copy and the original would be parts of different units."""
    with pytest.raises(InputError, match="modules_to_save names the embeddings alone"):
        make_divisible(with_copies(tiny_model, "embed_tokens"), mixed=False)


def test_each_parameter_has_memory_of_its_own(tiny_model):
    """A process that reads no weights has a new head without; addresses tell parameters apart."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=2)
    model.score = torch.nn.Linear(64, 2, device="meta")
    make_divisible(model, mixed=False)
    addresses = [one.data_ptr() for one in model.parameters()]
    assert 0 not in addresses
    assert len(set(addresses)) == len(addresses)


def test_what_trains_under_mixed_precision_needs_no_copy(tiny_model):
    """Parameters of a process that reads no weights are float32 where accelerate would copy them,
    and tied ones stay one.
    """
    model = AutoModelForCausalLM.from_pretrained(
        tiny_model, dtype=torch.bfloat16, device_map={"": "meta"}
    )
    model.lm_head.weight = model.model.embed_tokens.weight
    model.model.norm.weight.requires_grad_(False)
    make_divisible(model, mixed=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.dtype == torch.float32
    assert model.model.norm.weight.dtype == torch.bfloat16
