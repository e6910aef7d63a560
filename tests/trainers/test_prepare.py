"""Rows: what of them is learned, their length, the hold-out split, and how they share a batch."""

import io
import random
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from itertools import chain
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from rich.console import Console

from advisor.data.example import Example, Message
from advisor.ground.errors import InputError
from advisor.render.check_page import print_row
from tests.conftest import examples
from tests.trainers.fitting import (
    fit_rows,
    in_memory,
    prepare_stage_rows,
    sequence,
    split_rows,
    tokenise,
)
from tests.trainers.runs import chat as conversation
from tests.trainers.runs import losses, result_of, trained, whole_and_broken, write_rows
from trainers import sft
from trainers.keep.checkpoint_store import dependencies
from trainers.rows import IGNORED, Prepared, Row, Templater, dataset_columns, pack, stage_rows
from trainers.rows.batches import Batches, Rounds
from trainers.rows.packing import bins_of
from trainers.rows.preference import Feedback, feedback_columns
from trainers.rows.row import cut_row, ids_of, normalise_text, split_text
from trainers.rows.sequences import (
    Groups,
    Picked,
    copied_dataset,
    flattened,
    lengths,
    rows_dataset,
    values_of,
)
from trainers.rows.stage_rows import prepare_rows
from trainers.start.loading import load_tokenizer
from trainers.tools.show_row import show_row


def talk(*turns: str, row: int = 1, weights: tuple[float, ...] = (1.0,) * 10) -> Example:
    said = zip(("user", "assistant") * 5, turns, weights, strict=False)
    return Example(row=row, messages=tuple(Message(*turn) for turn in said))


def learned_text(tokenizer, row: Row) -> str:
    return tokenizer.decode([label for label in row.labels if label != IGNORED])


def test_a_row_without_a_token_to_learn_is_an_error_that_names_it(tiny_tokenizer):
    """A row whose answers all have weight 0 stops the run; all faulty rows are named together."""
    silent = talk("Two?", "Second.", row=7, weights=(1, 0))
    with pytest.raises(InputError, match=r"row 7: no token to learn[\s\S]*row 9: neither"):
        tokenise([talk("One?", "First."), silent, Example(row=9)], Templater(tiny_tokenizer))


@pytest.mark.light
def test_a_row_that_is_left_out_says_why(tmp_path):
    """A row that no trainer would use is shown with the reason."""
    rows = [conversation("Where is it?", "Here."), conversation("Nothing?", "")] * 30
    shown = show_row(write_rows(tmp_path / "data.jsonl", rows), row=2)
    console = Console(file=io.StringIO(), width=100)
    print_row(shown, console)
    why = "This row is left out of the training, and counted: no answer to learn from"
    assert why in console.file.getvalue()


def test_a_template_without_end_of_turn_gets_the_end_token(tiny_tokenizer):
    """The end token is added and counted, so that the model learns to stop."""
    bare = deepcopy(tiny_tokenizer)
    bare.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if"
        " add_generation_prompt %}assistant: {% endif %}"
    )
    templater = Templater(bare)
    (row,) = tokenise([talk("One?", "First.")], templater)
    assert row.labels[-1] == bare.eos_token_id
    assert learned_text(bare, row).startswith("First.")
    assert any("which the chat template leaves out" in note for note in templater.notes)


@pytest.mark.parametrize(
    ("example", "read", "learned", "keys"),
    [
        (talk("One?", "First."), "User: One?\n\nAssistant: First.<|im_end|>\n\n",
         " First.<|im_end|>", {}),
        (structs.replace(talk("Tea:", " green"), plain=True), "Tea: green<|im_end|>",
         " green<|im_end|>", {}),
        (Example(row=1, text="Is it broken?", label="complaint"),
         "User: Is it broken?\n\nAssistant: complaint<|im_end|>\n\n", " complaint<|im_end|>", {}),
        (talk("One?", "First."), "User: One?\n\nAssistant: First.<|im_end|>\n\n",
         "User: One?\n\nAssistant: First.<|im_end|>\n\n", {"learn_all": True}),
    ],
    ids=["chat", "prompt and completion", "label", "loss on all"],
)  # fmt: skip
def test_without_a_template_the_stated_plain_one_is_used_and_kept(
    example, read, learned, keys, tiny_tokenizer
):
    """Nothing is put around a plain prompt and its completion, which is learned with its end."""
    base = deepcopy(tiny_tokenizer)
    base.chat_template = None
    templater = Templater(base, **keys)
    (row,) = tokenise([example], templater)
    assert (base.decode(row.input_ids), learned_text(base, row)) == (read, learned)
    assert bool(base.chat_template) is not example.plain
    assert example.plain or "plain" in templater.template_source


def test_raw_text_is_learned_whole_and_cut_into_pieces(tiny_tokenizer):
    """Every token but the very first is learned exactly once."""
    rows = tokenise([Example(row=1, text="The shop sells tea. " * 40)], Templater(tiny_tokenizer))
    fit = fit_rows(rows, seq_len=32, truncation="stop")
    assert fit.split == 1
    assert [label for row in fit.rows for label in row.labels[1:]] == list(rows[0].input_ids)[1:]
    assert all(2 <= row.tokens <= 32 for row in fit.rows)
    assert rows[0].input_ids[-1] == tiny_tokenizer.eos_token_id


def rows_of(*lengths: int) -> list[Row]:
    """Rows of given lengths whose last token is learned."""
    return [
        sequence(place, tuple(range(length)), (IGNORED,) * (length - 1) + (length - 1,))
        for place, length in enumerate(lengths, 1)
    ]


@pytest.mark.light
def test_a_few_long_rows_are_left_out_and_too_many_stop_the_run():
    """`truncation: stop` leaves out and counts up to 5 %; the error says how many and how long."""
    fit = fit_rows(rows_of(*[5] * 19, 30), seq_len=10, truncation="stop")
    assert (len(fit.rows), fit.dropped) == (19, 1)
    assert fit.notes == ["1 of 20 rows were left out: longer than seq_len 10 (row 20)"]
    for sizes, keys, said in (
        (
            [*[5] * 18, 20, 30],
            {"seq_len": 10, "truncation": "stop", "cut": cut_row},
            r"2 of 20 rows are longer than seq_len 10 .*the longest has 30",
        ),
        ([20, 30], {"seq_len": 8, "truncation": "drop"}, "no row fits into seq_len 8"),
        # To cut them would leave prompts alone, and losses of 0.0 or NaN.
        (
            [20, 30],
            {"seq_len": 8, "truncation": "truncate", "cut": cut_row},
            "no row fits into seq_len 8",
        ),
    ):
        with pytest.raises(InputError, match=said):
            fit_rows(rows_of(*sizes), **keys)


QUICK = examples(3, derandomize=True)


@pytest.mark.light
@QUICK
@given(length=st.integers(2, 200), seq_len=st.integers(2, 40))
def test_a_parted_text_is_learned_whole_and_once(length, seq_len):
    """Each piece has something to predict, and stands in its context."""
    ids = list(range(1000, 1000 + length))
    found = list(split_text(sequence(1, ids, document=True), seq_len))
    assert [label for piece in found for label in piece.labels[1:] if label != IGNORED] == ids[1:]
    assert all(2 <= piece.tokens <= seq_len and piece.learned >= 1 for piece in found)
    for piece in found:
        assert [token - piece.input_ids[0] for token in piece.input_ids] == [*range(piece.tokens)]


@pytest.mark.light
@QUICK
@given(
    lengths=st.lists(st.tuples(st.integers(2, 30), st.integers(1, 29)), min_size=1, max_size=60),
    seq_len=st.integers(8, 20),
    truncation=st.sampled_from(["drop", "truncate"]),
)
def test_kept_cut_and_dropped_rows_add_up(lengths, seq_len, truncation):
    """Every row is kept, cut or counted as dropped; what is kept fits and has a token to learn."""
    rows = [sequence(0, [1, 2], [IGNORED, 2])]
    for place, (length, answer) in enumerate(lengths, 1):
        ids = range(length)
        labels = [IGNORED if at < max(1, length - answer) else at for at in ids]
        rows.append(sequence(place, ids, labels))
    fit = fit_rows(rows, seq_len=seq_len, truncation=truncation, cut=cut_row)
    assert len(fit.rows) + fit.dropped == len(rows)
    assert all(row.tokens <= seq_len and row.learned for row in fit.rows)
    assert fit.truncated == sum(row.tokens > seq_len for row in rows) - fit.dropped
    assert bool(fit.dropped) == any("left out" in note for note in fit.notes)
    assert bool(fit.truncated) == any("were cut" in note for note in fit.notes)


@pytest.mark.light
def test_the_seed_changes_which_rows_are_held_out():
    """As many of them with each."""
    rows = rows_of(*[5] * 40)
    first, other = (split_rows(rows, share=0.25, seed=seed)[1] for seed in (3, 4))
    assert first != other
    assert len(first) == len(other) == 10
    assert split_rows(rows, share=0.0, seed=3)[1] == []


QUESTION = st.sampled_from(["a", "A ", "b", "c", "d  d", "D d", "e", "f", "\uff41", ""])
ASKED = st.lists(st.tuples(QUESTION, QUESTION), min_size=1, max_size=40)


def rows_from(pairs) -> list[Row]:
    return [
        sequence(place, [1, 2], key=normalise_text(asked), text=normalise_text(f"{asked} {said}"))
        for place, (asked, said) in enumerate(pairs, 1)
    ]


@pytest.mark.light
@QUICK
@given(ASKED, st.sampled_from([0.0, 0.05, 0.2, 0.5, 0.85]), st.integers(0, 5))
def test_what_says_the_same_is_never_on_both_sides(pairs, share, seed):
    """Rows equal but for case, space and ways to write a letter stay together; none is lost."""
    rows = rows_from(pairs)
    train, held = split_rows(rows, share=share, seed=seed)
    assert sorted(row.number for row in (*train, *held)) == [row.number for row in rows]
    assert not {row.text for row in train} & {row.text for row in held}
    assert train
    if 2 * len({row.key for row in rows}) >= len(rows):
        assert not ({row.key for row in train} & {row.key for row in held}) - {""}
    assert len(held) <= max(1, round(share * len(rows)))


@pytest.mark.light
@QUICK
@given(ASKED, st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_split_follows_from_content_and_seed(pairs, seed, draw):
    """Another order of the same rows holds out the same texts."""
    rows = rows_from(pairs)
    shuffled = draw.sample(rows, len(rows))
    assert split_rows(rows, share=0.3, seed=seed) == split_rows(shuffled, share=0.3, seed=seed)


@pytest.mark.light
def test_packing_never_predicts_the_first_token_of_a_row():
    """It would be from the row before."""
    table = dataset_columns(pack(rows_of(6, 5, 4, 3, 2, 10, 7), 10), lengths=True)
    for labels, sizes in zip(table["labels"], table["seq_lengths"], strict=True):
        assert len(labels) == sum(sizes)
        assert all(labels[sum(sizes[:place])] == IGNORED for place in range(len(sizes)))


def test_rows_are_prepared_once_and_come_back_the_same(make, monkeypatch):
    """A second call takes equal rows from the run folder, and does not read the data again."""
    job = make(seq_len=64)
    first = prepared(job)
    monkeypatch.setattr(stage_rows, "read_examples", lambda *_, **__: pytest.fail("prepared again"))
    assert prepared(job) == first
    assert first.digest


@pytest.mark.parametrize(
    "change",
    [
        {"seq_len": 60},
        {"holdout": 0.2},
        {"seed": 5},
        {"truncation": "drop"},
        {"loss_on": "all"},
        "data",
        "template",
        "mapping",
    ],
)
def test_anything_the_rows_depend_on_prepares_them_again(change, make, chats, tmp_path):
    """Another length, split, mask, content or chat template is another file; the old one goes."""
    data = tmp_path / "copy.jsonl"
    data.write_bytes(chats.read_bytes())
    job = make(seq_len=64, job_data=data)
    tokenizer = load_tokenizer(job)
    prepare_rows(job, tokenizer)
    (before,) = (job.run / "prepared").glob("*.json")
    if change == "data":
        data.write_bytes(chats.read_bytes().replace(b"kettle", b"teapot"))
    elif change == "template":
        tokenizer.chat_template += "{# another #}"
    elif change == "mapping":
        mapped = structs.replace(job.data, mapping={"messages": "messages"})
        job = replace(job, entry=structs.replace(job.entry, data=mapped))
    else:
        job = make(**{"seq_len": 64, "job_data": data, **change})
    prepare_rows(job, tokenizer)
    (after,) = (job.run / "prepared").glob("*.json")
    assert after.name != before.name


def prepared(job) -> Prepared:
    return in_memory(prepare_rows(job, load_tokenizer(job)))


@pytest.mark.parametrize("damage", ["cut", "bit", "checksum"])
def test_a_broken_file_is_prepared_again(damage, make):
    """A file that is cut short or has one changed bit is neither an error nor trained on."""
    job = make(seq_len=64)
    first = prepared(job)
    (file,) = (job.run / "prepared").glob("*-rows.arrow")
    whole = file.read_bytes()
    token = whole.index(ids_of(first.train[0].input_ids).tobytes())
    if damage == "checksum":
        file.with_name(file.name.replace("-rows.arrow", ".json")).unlink()
    else:
        bit = whole[:token] + bytes([whole[token] ^ 1]) + whole[token + 1 :]
        file.write_bytes({"cut": whole[:-200], "bit": bit}[damage])
    assert (prepared(job), file.read_bytes(), prepared(job)) == (first, whole, first)


def test_the_plain_template_comes_back_with_the_rows(make):
    """Rows prepared before bring it too, so that it is saved with the result."""
    job = make(seq_len=64)
    tokenizers = [load_tokenizer(job) for _ in range(2)]
    for tokenizer in tokenizers:
        tokenizer.chat_template = None
        assert prepare_rows(job, tokenizer).template.startswith("plain")
        assert "Assistant:" in tokenizer.chat_template
    assert tokenizers[0].chat_template == tokenizers[1].chat_template


SEVEN = tuple(sequence(n, ids_of(range(n, n + 2 + n % 3)), prompt="") for n in range(1, 8))


@pytest.mark.light
def test_picked_rows_are_those_of_all_parts_in_the_order_asked_for():
    """Places run through all parts; groups of one row have its length and flatten to the rows."""
    picked = Picked([SEVEN[:3], SEVEN[3:]], [6, 0, 3])
    assert list(picked) == [SEVEN[6], SEVEN[0], SEVEN[3]] == [picked[place] for place in range(3)]
    assert lengths(picked).tolist() == [len(row.input_ids) for row in picked]
    assert (list(picked[1:]), list(values_of(picked, "number"))) == (
        [SEVEN[0], SEVEN[3]],
        [7, 1, 4],
    )
    groups = Groups(SEVEN)
    assert (groups[2], list(groups)) == ((SEVEN[2],), [(one,) for one in SEVEN])
    assert lengths(groups).tolist() == lengths(SEVEN).tolist()
    assert flattened(groups) is SEVEN
    assert flattened([SEVEN[:2], SEVEN[2:3]]) == list(SEVEN[:3])


def test_the_dataset_gives_what_a_copy_of_all_columns_would_give():
    """By place, by places, one by one, with columns removed and rows changed."""
    from datasets import Dataset

    def columns(groups):
        return dataset_columns(groups, lengths=True)

    expected = Dataset.from_dict(columns(Groups(SEVEN)))
    for made in (rows_dataset(Groups(SEVEN), columns), copied_dataset(Groups(SEVEN), columns)):
        for look in (
            lambda table: table.column_names,
            len,
            lambda table: table[3],
            lambda table: table[2:5],
            lambda table: table.__getitems__([5, 1]),
            list,
            lambda table: table.remove_columns(["labels"])[0],
            lambda table: list(table["labels"]),
            lambda table: list(table.select([4, 0])),
        ):
            assert look(made) == look(expected)


def test_each_answer_has_the_one_before_it_in_its_batch():
    """The batches that a trainer fetches give the prompt the answer of the row before it."""
    rows = [Feedback(number, ids_of([1]), ids_of([number]), True, "", "") for number in range(9)]
    batch = rows_dataset(rows, feedback_columns).__getitems__([4, 5, 6, 7])
    assert [one["KL_completion_ids"] for one in batch] == [[7], [4], [5], [6]]


def test_rows_of_a_trainer_are_not_filtered():
    """Its data set's `map` does nothing: a filter, which goes through it, is refused."""
    made = rows_dataset([1, 2, 3], lambda rows: {"number": list(rows)})
    assert made.map(lambda row: row) is made
    assert made[:]["number"] == [1, 2, 3]
    with pytest.raises(TypeError, match="chosen already"):
        made.filter(lambda row: False)


WORDS = [f"word{number}" for number in range(500)]


def told(seed: int, length: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=length))


@pytest.mark.parametrize(
    ("rows", "note"),
    {
        # 40 rows, each with a copy in which the last words of question and answer differ.
        "copies": (
            [
                (f"{told(n, 30)} {end}?", f"{told(n + 1000, 20)} {end}")
                for n in range(40)
                for end in "ab"
            ],
            "80 of 80 rows are nearly the same as others: they are held out together, or trained"
            " on together",
        ),
        "templated": (
            [(f"{told(1, 40)} number {n}?", f"It is {n}.") for n in range(80)],
            "80 of 80 rows are nearly the same as others, too many to keep apart",
        ),
        "different": ([(told(n, 30), told(n + 1000, 20)) for n in range(1, 81)], None),
    }.values(),
    ids=["copies", "templated", "different"],
)
def test_rows_that_are_nearly_the_same_are_held_out_together(tiny_tokenizer, rows, note):
    """With other words in a few places they would flatter the result; where all rows are alike it
    is said, and rows are held out all the same. The order of the file changes nothing.
    """
    data = [talk(*turns, row=number) for number, turns in enumerate(rows, 1)]
    settings = {"seq_len": 512, "truncation": "stop", "holdout": 0.2, "seed": 3}
    found = prepare_stage_rows(data, Templater(tiny_tokenizer), **settings)
    assert len(found.holdout) == 16
    said = [line for line in found.notes if "nearly the same" in line]
    assert [line.startswith(note) for line in said] == ([True] if note else [])
    copies = Counter((row.number - 1) // 2 for row in found.holdout)
    assert note is None or "too many" in note or {*copies.values()} == {2}
    turned = prepare_stage_rows(data[::-1], Templater(tiny_tokenizer), **settings)
    assert {row.number for row in turned.holdout} == {row.number for row in found.holdout}


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
