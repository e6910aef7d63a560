"""Generation behind a prefix says what the model says behind the real prompt."""

import pytest

torch = pytest.importorskip("torch")

import advisor.peft_adapter  # noqa: F401
from tests.peft_adapter.shapes import DECODERS, inputs, tiny

LENGTH = 5
GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def prefixed(name):
    """A tiny model with the keys and values of a prompt as its prefix, the plain model, and the
    prompt.
    """
    from peft import PrefixTuningConfig, get_peft_model, initialize_kv_prefix_from_past_key_values

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


def by_hand(model, prompt, ids):
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
        expected = by_hand(model, prompt, rows["input_ids"])
        whole = torch.cat([prompt.expand(2, -1), rows["input_ids"]], dim=1)
        logits = model(input_ids=whole).logits[:, LENGTH:]
        assert torch.allclose(tuned(**rows).logits, logits, atol=1e-5)
        assert torch.equal(tuned.generate(**rows, **GREEDY), expected)
        padded = {key: torch.nn.functional.pad(row, (3, 0)) for key, row in rows.items()}
        assert torch.equal(tuned.generate(**padded, **GREEDY)[:, 3:], expected)
        assert torch.equal(tuned.generate(**rows, use_cache=False, **GREEDY), expected)


def test_switched_off_it_generates_what_the_base_generates():
    """disable_adapter takes the prefix out of generation too."""
    tuned, model, _ = prefixed("llama")
    with torch.no_grad(), tuned.disable_adapter():
        plain = model.generate(**inputs(), **GREEDY)
        assert torch.equal(tuned.generate(**inputs(), **GREEDY), plain)


def test_beams_and_samples_run():
    """Beam search and several samples a row work behind a prefix."""
    tuned, _, _ = prefixed("llama")
    sampled = {**GREEDY, "do_sample": True, "num_return_sequences": 2}
    with torch.no_grad():
        assert tuned.generate(**inputs(), **GREEDY, num_beams=3).shape == (2, 13)
        assert tuned.generate(**inputs(), **sampled).shape == (4, 13)


def test_its_own_stop_tokens_end_an_answer():
    """The adapter's generation config counts, as it does for LoRA."""
    tuned, model, prompt = prefixed("llama")
    expected = by_hand(model, prompt, inputs(1)["input_ids"])
    tuned.generation_config.eos_token_id = int(expected[0, 8])
    greedy = {key: value for key, value in GREEDY.items() if key != "eos_token_id"}
    with torch.no_grad():
        answer = tuned.generate(**inputs(1), **greedy)
    assert answer.shape[1] == 9
