"""The engine `transformers`: what it generates, and what it leaves as it was."""

from contextlib import nullcontext

import pytest

torch = pytest.importorskip("torch")

from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from trainers.rollouts.engine import Sampling
from trainers.rollouts.merged import mergeable_layers, merged
from trainers.rollouts.transformers_engine import TransformersEngine

PROMPTS = [[1, 5, 6], [1, 7, 8, 9, 10, 11, 12], [1, 4]]


def adapted(tiny_model, dtype=torch.float32, **keys):
    """The tiny model with a LoRA that has learned something."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=dtype)
    model = get_peft_model(
        model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **keys)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return model


def engine_of(model, **keys):
    return TransformersEngine(lambda: nullcontext(model), pad_id=0, models=lambda: [model], **keys)


def drawn(model, **keys):
    torch.manual_seed(0)
    sampling = Sampling(limit=8, stops=[2], temperature=0.7)
    return engine_of(model, **keys).generate(PROMPTS, sampling, n=2, keep_log_probs=True)


def test_merged_weights_generate_the_same_and_leave_every_bit(tiny_model, monkeypatch):
    """With the LoRA merged the answers and their probabilities are those of the layers side by
    side, and the weights are afterwards the same tensors.
    """
    model = adapted(tiny_model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merges = drawn(model)
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    assert not any(layer.merged for layer in mergeable_layers(model))
    with merged(model) as done:
        assert done
        assert not torch.equal(
            mergeable_layers_weight(model), before[f"{mergeable_name(model)}.weight"]
        )
    monkeypatch.setattr("trainers.rollouts.transformers_engine.merged", nullcontext)
    beside = drawn(model)
    assert merges.ids == beside.ids
    assert merges.prompts == [prompt for prompt in PROMPTS for _ in range(2)]
    for one, other in zip(merges.log_probs, beside.log_probs, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def mergeable_name(model):
    return next(name for name, _ in model.named_modules() if name.endswith("q_proj.base_layer"))


def mergeable_layers_weight(model):
    return model.get_submodule(mergeable_name(model)).weight


def test_weights_that_rounding_would_swallow_are_not_merged(tiny_model):
    """16-bit weights, autocast and DoRA keep their adapters beside; a crash restores too."""
    assert not mergeable_layers(adapted(tiny_model, torch.bfloat16))
    assert not mergeable_layers(adapted(tiny_model, use_dora=True))
    model = adapted(tiny_model)
    with torch.autocast("cpu", torch.bfloat16):
        assert not mergeable_layers(model)
    before = mergeable_layers_weight(model).clone()
    with pytest.raises(ZeroDivisionError), merged(model):
        raise ZeroDivisionError
    assert torch.equal(mergeable_layers_weight(model), before)
    assert mergeable_layers(model)


def test_parts_hold_prompts_of_similar_length(tiny_model, monkeypatch):
    """Answers in parts: the longest prompts first, each answer back in its place, greedy ones the
    same as all at once.
    """
    from trainers.rollouts import transformers_engine as module

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    greedy = Sampling(limit=6, stops=[2], temperature=0)
    together = engine_of(model).generate(PROMPTS, greedy)
    lengths, real = [], module.generate_batch

    def watched(model, prompts, *others, **keys):
        lengths.append([len(prompt) for prompt in prompts])
        return real(model, prompts, *others, **keys)

    monkeypatch.setattr(module, "generate_batch", watched)
    monkeypatch.setattr(module, "rows_at_once", lambda models, **_: 2)
    parts = engine_of(model).generate(PROMPTS, greedy)
    assert lengths == [[7, 3], [2]]
    assert (parts.ids, parts.ended, parts.prompts) == (together.ids, together.ended, PROMPTS)
