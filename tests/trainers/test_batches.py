"""Rows of similar length share a micro-batch, on any number of processes and after a resume."""

from dataclasses import replace
from itertools import chain
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.ground.errors import InputError
from tests.conftest import examples
from tests.trainers.runs import losses, result_of, trained, whole_and_broken
from trainers import sft
from trainers.keep.checkpoint_store import dependencies
from trainers.rows.batches import Batches, Rounds
from trainers.rows.packing import bins_of

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
        assert sorted(set(own)) == wanted
        assert len(own) == len(wanted) + (doubled if is_last else 0)


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

    assert grouping() is None
    assert grouping(group_by_length=True, packing=True) is None
    assert grouping(group_by_length=True) == 4
