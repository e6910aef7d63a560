"""Packed rows come out as they do alone, or rows of similar length share a micro-batch."""

import random
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

torch = pytest.importorskip("torch")

import transformers
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3TextConfig, LlamaConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from advisor.ground.errors import InputError
from tests.conftest import examples
from tests.trainers.fitting import sequence
from tests.trainers.pretend_gpu import GPU, pretend_gpu
from trainers.rows import IGNORED, PackedBatches, Prepared, Row, dataset_columns
from trainers.rows.packing import check_packing, leak, packed_logits
from trainers.start import kernels as attention
from trainers.start import loading
from trainers.start.kernels import first_layers, unpacked_if_seen

SMALL = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
WINDOW = {"sliding_window": 4}
TINY = {
    "llama": ("LlamaConfig", SMALL),
    "mistral": ("MistralConfig", SMALL | WINDOW),
    "qwen3": ("Qwen3Config", SMALL | {"head_dim": 8}),
    "gemma3": (
        "Gemma3TextConfig",
        {**SMALL, **WINDOW, "head_dim": 8, "query_pre_attn_scalar": 8, "num_hidden_layers": 6},
    ),
    "phi3": ("Phi3Config", SMALL | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}),
    "gpt2": (
        "GPT2Config",
        {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    ),
}


def tiny(name: str, attention: str = "sdpa"):
    config_name, values = TINY[name]
    torch.manual_seed(0)
    config = getattr(transformers, config_name)(**values)
    kind = transformers.AutoModelForCausalLM
    return kind.from_config(config, attn_implementation=attention).eval()


def rows_of(lengths, seed: int = 0) -> list[Row]:
    draw = random.Random(seed)
    texts = [[draw.randrange(3, 96) for _ in range(length)] for length in lengths]
    return [sequence(place, ids) for place, ids in enumerate(texts, 1)]


def largest_difference(model, rows) -> float:
    texts = [row.input_ids for row in rows]
    with torch.no_grad():
        alone = [model(input_ids=torch.tensor([ids]), use_cache=False).logits[0] for ids in texts]
        return float((packed_logits(model, texts) - torch.cat(alone)).abs().max())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", TINY)
def test_a_packed_row_has_the_logits_of_the_row_alone(name, attention):
    """In one sequence the logits are those of each row alone, sliding windows included."""
    assert largest_difference(tiny(name, attention), rows_of([7, 1, 17, 2, 5])) < 2e-5


@examples(0.8, derandomize=True, suppress_health_check=list(HealthCheck))
@given(lengths=st.lists(st.integers(1, 20), min_size=2, max_size=6), seed=st.integers(0, 99))
def test_any_lengths_in_any_order_are_kept_apart(lengths, seed):
    """Whatever the lengths, nothing of one row reaches another."""
    assert largest_difference(tiny("llama"), rows_of(lengths, seed)) < 2e-5


def test_lines_of_a_batch_are_padded_without_being_seen():
    """Bins stand in lines of their own; padding has no label and changes no logit."""
    model = tiny("llama")
    groups = [tuple(rows_of([9, 4])), tuple(rows_of([6, 3]))]
    table = dataset_columns(groups, lengths=True)
    lines = [{name: column[line] for name, column in table.items()} for line in range(2)]
    batch = PackedBatches(0)(lines)
    assert "attention_mask" not in batch
    assert batch["input_ids"].shape == (2, 13)
    assert batch.pop("labels")[1, 9:].tolist() == [IGNORED] * 4
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits
        for line, group in enumerate(groups):
            found = logits[line, : sum(row.tokens for row in group)]
            alone = packed_logits(model, [row.input_ids for row in group])
            assert torch.allclose(found, alone, atol=2e-5)


def sharp(dtype: str):
    """A tiny Llama with logits near 30 as real ones have, in bfloat16 multiples of 0.125."""
    model = tiny("llama")
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.data *= 40 if "lm_head" in name else 6
    return model.to(getattr(torch, dtype))


def looks_across(model, layers=None):
    """The model, whose attention no longer keeps rows apart: everywhere, or in these layers."""

    def seeing_everything(module, args, keys):
        size = keys["hidden_states"].shape[1]
        return args, keys | {"attention_mask": torch.ones(1, 1, size, size).tril().bool()}

    for number, layer in enumerate(model.model.layers):
        if layers is None or number in layers:
            layer.self_attn.register_forward_pre_hook(seeing_everything, with_kwargs=True)
    return model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rounding_is_not_taken_for_a_look_across_rows(dtype):
    """16-bit log-probabilities of a packed row differ by a step of rounding from the row alone."""
    # Nor does it matter how much the model makes of its context.
    deaf = tiny("llama").to(getattr(torch, dtype))
    for parameter in deaf.model.layers.parameters():
        parameter.data.zero_()
    for model in (sharp(dtype), deaf):
        check_packing(model, rows_of([23, 31, 40, 61]), stage="cpt", attention="sdpa")


def ignores_positions(model):
    forward = model.forward
    model.forward = lambda *args, position_ids=None, **kwargs: forward(*args, **kwargs)
    return model


@pytest.mark.parametrize(
    "spoil",
    [looks_across, lambda model: looks_across(model, {1}), ignores_positions],
    ids=["everywhere", "in-one-layer", "no-positions"],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_model_that_looks_across_rows_is_refused(dtype, spoil):
    """One such layer, or no use of positions, is enough; the refusal names the way out."""
    model = spoil(sharp(dtype))
    with pytest.raises(InputError, match="lets packed rows see each other") as caught:
        check_packing(model, rows_of([23, 31, 40]), stage="sft", attention="sdpa")
    assert caught.value.faults[0].hint == "set packing: false"


@pytest.mark.long
def test_smollm_may_be_packed_in_every_dtype(smollm):
    """With one of its 30 layers looking across rows the real model may not be packed."""
    tokenizer = AutoTokenizer.from_pretrained(smollm)
    texts = [
        "The kettle is an old device. It heats water until the steam makes it whistle.",
        "Thyroid hormones control how quickly the body uses energy, and so most of its organs.",
        "A parcel that was sent on Monday arrives on Wednesday, if nothing holds it up.",
        "def mean(values):\n    return sum(values) / len(values)  # of numbers, not of texts",
    ]
    rows = [sequence(place, tokenizer(text)["input_ids"]) for place, text in enumerate(texts)]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = AutoModelForCausalLM.from_pretrained(smollm, dtype=dtype).eval()
        for pair in (rows[:2], rows[2:], rows[1:3]):
            assert leak(model, pair) is None
        assert leak(looks_across(model, {15}), rows[:2])


FLASH = "refuses-the-host"


@pytest.fixture
def flash():
    """An attention that takes tensors of the GPU alone, as flash attention does."""
    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attention(module, query, *args, **rest):
        if query.device != GPU:
            raise RuntimeError("FlashAttention only supports CUDA tensors")
        return plain(module, query, *args, **rest)

    ALL_ATTENTION_FUNCTIONS.register(FLASH, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(FLASH, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    yield
    for table in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
        table._global_mapping.pop(FLASH)


def test_rows_are_packed_where_attention_takes_the_gpu_alone(make, flash, monkeypatch):
    """A plan for several GPUs that packs rows with flash attention is tried, and stays packed."""
    monkeypatch.setattr(attention, "reads_once", lambda job: True)
    job = make(weights_dtype="bfloat16", packing=True, attention=FLASH)
    with pretend_gpu():
        model = loading.load_base(job, torch.device("cpu"))  # on the host, as before a division
        data = SimpleNamespace(train=rows_of([9, 12]))
        assert unpacked_if_seen(job, data, model, GPU) == (job, data)
        assert next(model.parameters()).device.type == "cpu"


def test_the_first_layers_hold_each_kind():
    """Two layers, or as many as hold one of each kind; lists by layer are cut as well."""
    found = [first_layers(LlamaConfig(num_hidden_layers=n)).num_hidden_layers for n in (30, 1)]
    assert found == [2, 1]
    mixed = first_layers(Gemma3TextConfig(num_hidden_layers=26))
    assert mixed.num_hidden_layers == len(mixed.layer_types) == 6
    assert set(mixed.layer_types) == {"sliding_attention", "full_attention"}


def test_rows_that_are_not_packed_keep_to_what_memory_had_room_for(make, monkeypatch):
    """After a restart with a quarter of the sequences a step still learns as many rows."""
    refuse = Mock(side_effect=InputError("stage sft: packing cannot be used: rows see each other"))
    monkeypatch.setattr(attention, "check_packing", refuse)
    job = make(packing=True, group_by_length=True, seq_len=32, micro_batch_size=4, grad_accum=2)
    data = Prepared(train=rows_of([8] * 64), holdout=[], rows=64)
    sizes = []
    for room in (None, 1):
        found, _ = unpacked_if_seen(replace(job, most_rows=room), data, None, None)
        sizes.append((found.stage.micro_batch_size, found.stage.grad_accum))
        assert not found.stage.packing
    assert sizes == [(16, 2), (4, 8)]
