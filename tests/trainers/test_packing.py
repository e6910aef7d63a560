"""Packed rows come out as they do alone, or rows of similar length share a micro-batch."""

import random
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

torch = pytest.importorskip("torch")

from itertools import chain

import numpy as np
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
from tests.trainers.runs import losses, result_of, trained, whole_and_broken
from trainers import sft
from trainers.keep.checkpoint_store import dependencies
from trainers.rows import IGNORED, PackedBatches, Prepared, Row, dataset_columns
from trainers.rows.batches import Batches, Rounds
from trainers.rows.packing import bins_of, check_packing, leak, packed_logits
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


LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=400)


def batches_of(lengths, micro, accum, *, seed=0, grouped=True, processes=1):
    lengths = np.array(lengths, dtype=np.int32)
    return Batches(lengths, micro, micro * accum, seed, grouped, processes)


@pytest.mark.light
@examples(3)
@given(
    lengths=LENGTHS,
    micro=st.integers(1, 9),
    accum=st.integers(1, 5),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 3),
)
def test_an_epoch_has_every_row_once_and_little_padding(lengths, micro, accum, seed, epoch):
    """A pool pads at most one longest micro-batch; the longest row is in the first whole step."""
    batches = batches_of(lengths, micro, accum, seed=seed)
    order = batches.order(epoch)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    rest = order[len(order) - len(order) % micro :]
    pool_count = -(-len(order) // batches.pool_rows)
    bound = sum(lengths) + (pool_count * micro + len(rest)) * max(lengths)
    assert batches.computed(order) <= bound
    steps = order[: len(order) - len(order) % batches.per_step]
    if len(steps):
        assert max(lengths[row] for row in order[:micro]) == max(lengths[row] for row in steps)


@pytest.mark.light
def test_grouping_saves_the_padding_of_rows_at_random():
    """A third of a random batch is padding, a few per cent of a grouped one; steps stay mixed."""
    lengths = np.clip(np.random.default_rng(0).lognormal(4.4, 0.7, 2000), 20, 800).astype(int)
    batches = batches_of(lengths, 4, 4)
    assert replace(batches, grouped=False).padding() > 0.3
    assert batches.padding() < 0.04
    steps = lengths[batches.order(0)].reshape(-1, 16)
    assert np.median(steps.max(axis=1) / steps.min(axis=1)) > 2
    assert not np.array_equal(batches.order(0), batches.order(1)), "each epoch has another order"
    assert "share a batch: " in batches.describe(2000)


@pytest.mark.light
@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize(("processes", "done"), [(1, 0), (1, 7), (2, 0), (2, 7), (4, 7)])
def test_a_step_has_the_same_rows_on_any_number_of_processes(grouped, processes, done):
    """Micro-batches are handed out as accelerate does, from the start or after a resume."""
    pytest.importorskip("torch")
    from accelerate.data_loader import prepare_data_loader, skip_first_batches
    from torch.utils.data import DataLoader

    lengths = [7 * row % 61 + 1 for row in range(64)]
    batches = batches_of(lengths, 2, 8, grouped=grouped)  # four steps of 16 rows
    from trainers.stage.trl_trainer import StageTrainer

    trainer = SimpleNamespace(batches=batches, state=SimpleNamespace(global_step=done))
    shares = []
    for process in range(processes):
        loader = prepare_data_loader(
            DataLoader(range(64), batch_size=2, sampler=StageTrainer._get_train_sampler(trainer)),
            num_processes=processes,
            process_index=process,
            put_on_device=False,
        )
        skipped = done % 4 * 8 // processes
        loader = skip_first_batches(loader, skipped) if skipped else loader
        shares.append([batch.tolist() for batch in loader])
    found = list(chain.from_iterable(chain.from_iterable(zip(*shares, strict=True))))
    assert found == batches.order(done // 4)[done % 4 * 16 :].tolist()


@pytest.mark.light
@examples(40)
@given(
    rows=st.integers(1, 70), micro=st.integers(1, 5), accum=st.integers(1, 3),
    processes=st.integers(1, 8),
)  # fmt: skip
def test_the_last_step_of_a_pass_has_the_same_rows_on_any_number_of_processes(
    rows, micro, accum, processes
):
    """Each row comes once, unless there are fewer rows than processes."""
    pytest.importorskip("torch")
    from accelerate.data_loader import BatchSamplerShard

    shards = [
        list(
            BatchSamplerShard(
                Rounds(range(rows), micro=micro, processes=processes),
                num_processes=processes, process_index=process, even_batches=False,
            )
        )
        for process in range(processes)
    ]  # fmt: skip
    assert len({len(shard) for shard in shards}) == 1
    size = micro * processes * accum
    doubled = batches_of([1] * rows, micro, accum * processes, processes=processes).doubled
    for start in range(0, len(shards[0]), accum):
        own = [row for shard in shards for batch in shard[start : start + accum] for row in batch]
        first = start * micro * processes
        wanted = list(range(first, min(rows, first + size)))
        is_last = start + accum >= len(shards[0])
        assert (sorted(set(own)), len(own)) == (wanted, len(wanted) + (doubled if is_last else 0))


@pytest.mark.light
@examples(3)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=120), room=st.integers(0, 30))
def test_packing_loses_and_doubles_no_row_and_overfills_no_sequence(lengths, room):
    """Every row is in one bin, no bin is over seq_len, and no two of them would fit into one."""
    seq_len = max(lengths) + room
    order, ends = bins_of(np.array(lengths, dtype=np.int32), seq_len)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    bins = np.split(order, ends[:-1])
    sums = [sum(lengths[row] for row in rows) for rows in bins]
    assert min(map(len, bins)) > 0
    assert max(sums) <= seq_len
    assert len(sums) < 2 or sum(sorted(sums)[:2]) > seq_len


def test_a_grouped_run_resumes_bit_for_bit(make, monkeypatch, capsys):
    """Losses and weights are an unbroken run's; computed, read and learned tokens are recorded."""
    keys = {
        "group_by_length": True, "max_steps": None, "epochs": 2.0, "grad_accum": 3, "dropout": 0.1,
        "micro_batch_size": 3, "save_steps": 1, "holdout": 0.1,
    }  # fmt: skip
    whole, broken = whole_and_broken(make, 5, monkeypatch, **keys)
    assert "rows of similar length share a batch: " in capsys.readouterr().err
    assert losses(broken) == losses(whole)
    result = result_of(whole)
    weights = [(job.output / "adapter_model.safetensors").read_bytes() for job in (whole, broken)]
    assert weights[0] == weights[1]
    measured, data = result["measured"], result["data"]
    assert measured["tokens"] == 2 * data["tokens"]
    assert measured["learned_tokens"] == 2 * data["learned_tokens"]
    assert measured["tokens"] < measured["computed_tokens"] < 1.2 * measured["tokens"]
    # Rows are laid end to end: the largest micro-batch of three has no padding.
    longest = data["longest"]
    assert longest < measured["largest_batch_tokens"] <= 3 * longest
    assert result["resolved"]["group_by_length"] is True


def test_packed_tokens_are_counted_without_padding(make, capsys):
    """Without an attention mask, too: what is counted are the rows, not the lines of the batch."""
    keys = {"packing": True, "micro_batch_size": 2, "max_steps": None, "epochs": 1.0}
    result = trained(make(**keys, job_judge=False))
    assert "packed sequences, about " in capsys.readouterr().err
    assert result["measured"]["tokens"] == result["data"]["tokens"]
    assert result["measured"]["computed_tokens"] > result["data"]["tokens"]


def test_a_run_groups_where_rows_would_see_each_other(make, monkeypatch, capsys):
    """A plan with both keys goes on without packing and says so; packing alone is refused."""
    seen = InputError("stage sft: packing cannot be used: rows see each other")
    monkeypatch.setattr("trainers.start.kernels.check_packing", Mock(side_effect=seen))
    keys = {"packing": True, "micro_batch_size": 1, "seq_len": 256, "max_steps": 2, "warmup": 0.0}
    with pytest.raises(InputError, match="rows see each other"):
        sft.train(make(**keys, job_judge=False))
    result = trained(make(**keys, group_by_length=True, job_judge=False))
    said = capsys.readouterr().err
    assert "WARNING: packing cannot be used: rows see each other: rows of similar length" in said
    assert any("share a micro-batch instead" in note for note in result["data"]["notes"])
    resolved = result["resolved"]
    assert (resolved["packing"], resolved["group_by_length"]) == (False, True)
    args = resolved["trl"]
    per_step = args["per_device_train_batch_size"] * args["gradient_accumulation_steps"]
    packed = 256 / (result["data"]["tokens"] / result["data"]["train_rows"])
    assert per_step == pytest.approx(packed, rel=0.25)


def test_checkpoints_depend_on_the_micro_batch_only_where_rows_are_grouped(make):
    """Rows at random are the effective batch's; checkpoints from before the key still count."""

    def grouping(**keys):
        return dependencies(make(**keys), {}, steps=1).settings.get("micro_batch_size")

    assert (grouping(), grouping(group_by_length=True, packing=True)) == (None, None)
    assert grouping(group_by_length=True) == 4
