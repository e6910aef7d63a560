"""Packed rows come out as they do alone, in every kind of attention that runs here."""

import random

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from advisor.ground.errors import InputError
from tests.conftest import examples
from trainers.rows import IGNORED, PackedBatches, Row, dataset_columns
from trainers.rows.packing import check_packing, leak, packed_logits

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
TINY = {
    "llama": ("LlamaConfig", SMALL),
    "mistral": ("MistralConfig", SMALL | {"sliding_window": 4}),
    "qwen3": ("Qwen3Config", SMALL | {"head_dim": 8}),
    "gemma3": (
        "Gemma3TextConfig",
        SMALL
        | {"head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8, "num_hidden_layers": 6},
    ),
    "phi3": ("Phi3Config", SMALL | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}),
    "gpt2": (
        "GPT2Config",
        {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    ),
}


def tiny(name: str, attention: str):
    import torch
    import transformers

    config_name, values = TINY[name]
    torch.manual_seed(0)
    config = getattr(transformers, config_name)(**values)
    return transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation=attention
    ).eval()


def rows_of(lengths, seed: int = 0) -> list[Row]:
    draw = random.Random(seed)
    return [
        Row(
            number=place,
            input_ids=(ids := [draw.randrange(3, 96) for _ in range(length)]),
            labels=ids,
            prompt="",
            shown="",
            expected="",
            key=str(place),
            text=str(place),
        )
        for place, length in enumerate(lengths, 1)
    ]


def largest_difference(model, rows) -> float:
    import torch

    with torch.no_grad():
        together = packed_logits(model, [row.input_ids for row in rows])
        alone = torch.cat(
            [
                model(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits[0]
                for row in rows
            ]
        )
    return float((together - alone).abs().max())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", TINY)
def test_a_packed_row_has_the_logits_of_the_row_alone(name, attention):
    """Rows of lengths 1 to 17 in one sequence: the logits are those of each row alone, sliding
    windows included.
    """
    assert largest_difference(tiny(name, attention), rows_of([7, 1, 17, 2, 5])) < 2e-5


def test_any_lengths_in_any_order_are_kept_apart():
    """Whatever the lengths, nothing of one row reaches another."""
    model = tiny("llama", "sdpa")

    @examples(0.8, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(lengths=st.lists(st.integers(1, 20), min_size=2, max_size=6), seed=st.integers(0, 99))
    def check(lengths, seed):
        assert largest_difference(model, rows_of(lengths, seed)) < 2e-5

    check()


def test_lines_of_a_batch_are_padded_without_being_seen():
    """Bins of different lengths stand in lines of their own; padding has no label and changes no
    logit.
    """
    import torch

    model = tiny("llama", "sdpa")
    rows = rows_of([9, 4, 6, 3])
    groups = [tuple(rows[:2]), tuple(rows[2:])]
    table = dataset_columns(groups, lengths=True)
    batch = PackedBatches(0)(
        [{name: column[line] for name, column in table.items()} for line in range(2)]
    )
    assert "attention_mask" not in batch
    assert batch["input_ids"].shape == (2, 13)
    assert batch["labels"][1, 9:].tolist() == [IGNORED] * 4
    with torch.no_grad():
        logits = model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
        ).logits
        for line, group in enumerate(groups):
            assert torch.allclose(
                logits[line, : sum(row.tokens for row in group)],
                packed_logits(model, [row.input_ids for row in group]),
                atol=2e-5,
            )


def sharp(dtype: str, attention: str = "sdpa"):
    """A tiny Llama that looks at its context, with logits near 30, as those of a real model are:
    in bfloat16 they are multiples of 0.125.
    """
    import torch

    model = tiny("llama", attention)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.data *= 40 if "lm_head" in name else 6
    return model.to(getattr(torch, dtype))


def looks_across(model, layers=None):
    """The model, whose attention no longer keeps rows apart: everywhere, or in these layers."""
    import torch

    def seeing_everything(attention):
        original = attention.forward

        def forward(hidden_states, attention_mask=None, **others):
            size = hidden_states.shape[1]
            mask = torch.ones(1, 1, size, size, dtype=torch.bool).tril()
            return original(hidden_states, attention_mask=mask, **others)

        attention.forward = forward

    for number, layer in enumerate(model.model.layers):
        if layers is None or number in layers:
            seeing_everything(layer.self_attn)
    return model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rounding_is_not_taken_for_a_look_across_rows(dtype):
    """A model may be packed in each dtype, though 16-bit log-probabilities of a packed row differ
    from those of the row alone by a step of rounding.
    """
    import torch

    model = sharp(dtype)
    rows = rows_of([23, 31, 40, 61])
    check_packing(model, rows, stage="cpt", attention="sdpa")
    # Nor does it matter how much the model makes of its context.
    deaf = tiny("llama", "sdpa").to(getattr(torch, dtype))
    for parameter in deaf.model.layers.parameters():
        parameter.data.zero_()
    check_packing(deaf, rows, stage="cpt", attention="sdpa")


@pytest.mark.parametrize("layers", [None, {1}], ids=["everywhere", "in-one-layer"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_model_that_looks_across_rows_is_refused(dtype, layers):
    """A model that lets rows see each other, be it in a single layer, is not packed: the refusal
    names the way out.
    """
    model = looks_across(sharp(dtype), layers)
    with pytest.raises(InputError, match="lets packed rows see each other") as caught:
        check_packing(model, rows_of([23, 31, 40]), stage="sft", attention="sdpa")
    assert caught.value.faults[0].hint == "set packing: false"


def test_a_model_that_ignores_positions_is_refused():
    """A model that makes nothing of positions cannot tell where a row begins."""
    model = sharp("bfloat16")
    forward = model.forward
    model.forward = lambda *args, position_ids=None, **kwargs: forward(*args, **kwargs)
    with pytest.raises(InputError, match="lets packed rows see each other"):
        check_packing(model, rows_of([5, 6, 9]), stage="sft", attention="sdpa")


@pytest.mark.long
def test_smollm_may_be_packed_in_every_dtype(smollm):
    """The real model is packed in float32, bfloat16 and float16; with one of its 30 layers looking
    across rows it is not.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm)
    texts = [
        "The kettle is an old device. It heats water until the steam makes it whistle.",
        "Thyroid hormones control how quickly the body uses energy, and so most of its organs.",
        "A parcel that was sent on Monday arrives on Wednesday, if nothing holds it up.",
        "def mean(values):\n    return sum(values) / len(values)  # of numbers, not of texts",
    ]
    rows = [
        Row(place, ids, ids, "", "", "", str(place), text)
        for place, text in enumerate(texts)
        for ids in [tuple(tokenizer(text)["input_ids"])]
    ]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = AutoModelForCausalLM.from_pretrained(smollm, dtype=dtype).eval()
        for pair in (rows[:2], rows[2:], rows[1:3]):
            assert leak(model, pair) is None
        assert leak(looks_across(model, {15}), rows[:2])
