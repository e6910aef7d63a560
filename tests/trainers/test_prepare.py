"""Rows: their length, the hold-out split, how one process or several build, keep and read them."""

import json
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
from collections import Counter
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from advisor.data.example import Example, Message
from advisor.ground.errors import InputError, MachineNotReady
from tests.conftest import ROOT, examples
from tests.trainers.fitting import (
    fit_rows,
    in_memory,
    prepare_stage_rows,
    sequence,
    split_rows,
    tokenise,
)
from trainers.rows import (
    ANSWERS,
    IGNORED,
    Kind,
    Prepared,
    Row,
    Templater,
    dataset_columns,
    pack,
    sequences,
    stage_rows,
)
from trainers.rows.preference import FEEDBACK, PAIRS, Feedback, feedback_columns
from trainers.rows.row import LeftOut, Limits, cut_row, ids_of, normalise_text, split_text
from trainers.rows.sequences import (
    Groups,
    Picked,
    StoredRows,
    copied_dataset,
    flattened,
    lengths,
    rows_dataset,
    values_of,
)
from trainers.rows.stage_rows import Preparation, prepare_rows
from trainers.start.loading import load_tokenizer

torch = pytest.importorskip("torch")
from advisor.data import read_examples, recognise
from advisor.ground.files import Disk
from tests.trainers.runs import chat, write_rows
from trainers.job.machine import ConnectionLost, others_wait_for, wait_for
from trainers.rows import stage_rows as preparing
from trainers.rows.conversation import PROMPTS


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


@pytest.fixture
def two_processes(monkeypatch):
    """Two workers build all rows but the first few."""
    for name, value in (("CHUNK_EXAMPLES", 4), ("ALONE_ROWS", 5), ("builders", lambda: 2)):
        monkeypatch.setattr(preparing, name, value)
    yield
    assert not multiprocessing.active_children()


@pytest.fixture
def job(make, pairs):
    """A job on pairs, which every kind can be made of."""
    return make(job_data=pairs, holdout=0.2)


def prepared_in(job, folder, kind, tokenizer=None):
    return prepare_rows(replace(job, run=folder), tokenizer or load_tokenizer(job), kind)


@pytest.mark.parametrize("kind", [ANSWERS, PAIRS, FEEDBACK, PROMPTS], ids=lambda kind: kind.name)
def test_rows_are_read_as_they_were_built(kind, job, tmp_path, monkeypatch):
    """Every field and number is equal, whichever row or slice is read first."""
    monkeypatch.setattr(preparing, "CHUNK_EXAMPLES", 4)  # record batches of a few rows
    monkeypatch.setattr(sequences, "READ_AT_ONCE", 3)  # pages are given back all the time
    found = prepared_in(job, tmp_path / "one", kind)
    templater = Templater(load_tokenizer(job))
    built = kind.rows(read_examples(recognise(str(job.data_path))), templater, LeftOut())
    expected = [replace(row, key="", text="") for row in built]
    held = {row.number for row in found.holdout}
    assert 0 < len(held) < len(expected)
    for rows, is_held in ((found.train, False), (found.holdout, True)):
        whole = tuple(rows)
        assert isinstance(rows.parts[0], StoredRows)
        assert isinstance(rows[0], kind.row)
        assert whole == tuple(row for row in expected if (row.number in held) is is_held)
        assert whole == tuple(rows[place] for place in reversed(range(len(rows))))[::-1]
        assert (tuple(rows[1:3]), rows[-1]) == (whole[1:3], whole[-1])
        assert lengths(rows).tolist() == [row.tokens for row in whole]
        for name in {"learned", "shown", "label"} & set(dir(kind.row)):
            assert values_of(rows, name).tolist() == [getattr(row, name) for row in whole]
        assert tuple(pickle.loads(pickle.dumps(rows))) == whole
        with pytest.raises(IndexError):
            rows[len(rows)]


@pytest.mark.parametrize("kind", [ANSWERS, PAIRS, PROMPTS], ids=lambda kind: kind.name)
@pytest.mark.parametrize("template", [True, False], ids=["template", "no template"])
def test_several_processes_prepare_the_same_file(
    kind, template, job, tmp_path, two_processes, monkeypatch
):
    """Byte for byte, with the same notes and the same template for a tokenizer that has none."""
    found = []
    for name, processes in (("one", 1), ("two", 2)):
        monkeypatch.setattr(preparing, "builders", lambda count=processes: count)
        tokenizer = load_tokenizer(job)
        if not template:
            tokenizer.chat_template = None
        data = in_memory(prepared_in(job, tmp_path / name, kind, tokenizer))
        kept = {file.name: file.read_bytes() for file in (tmp_path / name / "prepared").iterdir()}
        found.append((data, tokenizer.chat_template, kept))
    assert found[0] == found[1]
    assert len(kept) == 3  # nothing temporary is left


def build_alone(example, templater):
    """Rows without a tokenizer; some examples end their process."""
    if example.text == "refused":
        raise InputError(f"row {example.row}: refused", hint="repair it")
    if example.text == "broken":
        raise ValueError(f"row {example.row} is a bug")
    if example.text == "killed" and multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return [sequence(example.row, ids_of([1, 2, 3, example.row]))]


ALONE: Kind[Row] = Kind(name="answers", row=Row, build=build_alone, cut=cut_row)


def preparation(tokenizer, kind=ALONE, holdout=0.0) -> Preparation:
    limits = Limits(seq_len=8, truncation="stop", seed=1)
    return Preparation(templater=Templater(tokenizer), limits=limits, holdout=holdout, kind=kind)


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("refused", InputError, "row 37: refused\n  repair it"),
        ("broken", ValueError, "row 37 is a bug"),
        ("killed", MachineNotReady, "ended from outside"),
    ],
)
def test_a_row_that_fails_in_a_worker_ends_all_with_its_own_error(
    text, error, match, tiny_tokenizer, two_processes, tmp_path
):
    """The first one in the order of the file, as with one process; no worker and no file stays."""
    examples = [Example(row=row, text=text if row in (37, 41) else "") for row in range(1, 60)]
    with pytest.raises(error, match=match):
        preparation(tiny_tokenizer).write(tmp_path / "rows.json", examples)
    assert not list(tmp_path.iterdir())


def test_a_stop_ends_the_workers(tiny_tokenizer, two_processes, tmp_path):
    """Ctrl-C, which the workers leave to their parent, ends them and removes what was kept."""

    def examples():
        yield from (Example(row=row, text="") for row in range(1, 100))
        children = multiprocessing.active_children()
        assert len(children) == 2
        assert list(tmp_path.iterdir())
        for child in children:
            os.kill(child.pid, signal.SIGINT)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        preparation(tiny_tokenizer).write(tmp_path / "rows.json", examples())
    assert not list(tmp_path.iterdir())


def kill_at(moment: int) -> None:
    """End this process before it does something to a file after so many times."""
    left = iter(range(moment))

    def killing(done):
        def method(self, *paths):
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return done(self, *paths)

        return method

    for name in ("write", "sync", "rename", "remove", "digest"):
        setattr(Disk, name, killing(getattr(Disk, name)))


def test_a_kill_at_any_moment_leaves_nothing_that_is_taken_for_whole(tiny_tokenizer, tmp_path):
    """After a kill before any step of writing, what is read is all of the file or nothing."""
    examples = [Example(row=row, text="") for row in range(1, 9)]
    prepares, path = preparation(tiny_tokenizer, holdout=0.3), tmp_path / "rows.json"
    prepares.write(path, examples, "digest")
    whole = in_memory(prepares.read(path, "digest"))
    outcomes, status = [], -1
    while status != 0:
        for file in tmp_path.iterdir():
            file.unlink()
        pid = os.fork()
        if pid == 0:
            kill_at(len(outcomes))
            prepares.write(path, examples, "digest")
            os._exit(0)
        status = os.waitpid(pid, 0)[1]
        outcomes.append(in_memory(prepares.read(path, "digest")))
        assert outcomes[-1] in (None, whole)
        assert len(outcomes) < 100
    assert len(outcomes) > 9
    assert None in outcomes
    assert outcomes[-1] == whole


class CountedRow(Row):
    """A row that counts how many of its kind are there."""

    __slots__ = ()
    alive = most = 0

    def __new__(cls, *args, **kwargs):
        CountedRow.alive += 1
        CountedRow.most = max(CountedRow.most, CountedRow.alive)
        return object.__new__(cls)

    def __del__(self):
        CountedRow.alive -= 1


def build_counted(example, templater):
    (row,) = build_alone(example, templater)
    return [CountedRow(*(getattr(row, field.name) for field in fields(Row)))]


def test_many_rows_are_never_all_in_memory(tiny_tokenizer, tmp_path, monkeypatch):
    """Of twenty thousand rows no more than a batch are objects at a time, whatever is done."""
    monkeypatch.setattr(preparing, "CHUNK_EXAMPLES", 512)
    monkeypatch.setattr(preparing, "builders", lambda: 1)
    kind = replace(ALONE, row=CountedRow, build=build_counted)
    examples = (Example(row=row, text="") for row in range(1, 20_001))
    CountedRow.alive = CountedRow.most = 0
    prepares = preparation(tiny_tokenizer, kind, holdout=0.1)
    prepares.write(tmp_path / "rows.json", examples, "digest")
    data = prepares.read(tmp_path / "rows.json", "digest")
    assert ((len(data.train), len(data.holdout)), data.counts().tokens) == ((18_000, 2_000), 72_000)
    dataset = rows_dataset(
        pack(data.train, 8), lambda groups: dataset_columns(groups, lengths=True)
    )
    assert len(dataset) == 9_000
    for step in range(0, 9_000, 90):
        assert len(dataset.__getitems__([step, step + 45])) == 2
    assert 512 <= CountedRow.most < 1024


def test_only_the_main_process_prepares(job, tmp_path, monkeypatch):
    """The others read what it wrote, however long they have to wait for it."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    first = in_memory(prepared_in(job, tmp_path, PAIRS))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(Preparation, "write", lambda *_, **__: pytest.fail("prepared again"))
    files = {path: path.read_bytes() for path in (tmp_path / "prepared").iterdir()}
    for path in files:
        path.unlink()

    def write_later(pause_s: float) -> None:
        for path, content in files.items():
            path.write_bytes(content)

    monkeypatch.setattr("trainers.job.machine.time.sleep", write_later)
    assert in_memory(prepared_in(job, tmp_path, PAIRS)) == first


def test_a_main_process_that_fails_leaves_nobody_waiting(make, tmp_path, monkeypatch):
    """The others end with an error that points to it, and a new start waits again."""
    question = {"messages": [{"role": "user", "content": "only a question"}]}
    job = make(job_data=write_rows(tmp_path / "bad.jsonl", [question] * 3))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError):
        prepared_in(job, tmp_path, ANSWERS)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ConnectionLost, match="process 0 could not prepare the rows"):
        prepared_in(job, tmp_path, ANSWERS)


def test_a_failure_of_an_earlier_start_is_forgotten(tmp_path, monkeypatch):
    """The main process removes its old message; a process of another parent waits for nothing."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    file = tmp_path / "rows.arrow"
    with pytest.raises(ValueError, match="first"), others_wait_for(file):
        raise ValueError("first")
    with pytest.raises(ConnectionLost):
        wait_for(file, lambda: None)
    with others_wait_for(file):
        pass
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("trainers.job.machine.os.getppid", Mock(side_effect=[7, 7, 1, 1, 1]))
    with pytest.raises(ConnectionLost, match="launcher"):
        wait_for(file, lambda: None)


# Of this many short rows all are prepared, and a few steps trained.
ROWS = int(os.environ.get("ADVISE_TEST_ROWS", 10_000_000))
LIBRARIES_BYTES = 1 << 30  # torch, transformers, the tiny model and a batch of rows
ROW_BYTES = 100  # of numbers, with what sorting them takes; no text and no token
SCRIPT = """
import json, resource, sys, time
from pathlib import Path

from advisor.plan.model import Plan, PlanData, Stage
from trainers import sft
from trainers.stage import load
from trainers.job.job import make_job

model, data, run = sys.argv[1:]
keys = {"max_steps": 3, "micro_batch_size": 4, "seq_len": 64, "learning_rate": 1e-3}
plan = Plan(
    name="many",
    model=model,
    data=PlanData(path=data),
    stages=(Stage(name="sft", objective="sft", update="lora", **keys),),
)
job = make_job(plan, stage="sft", run=Path(run), folder=Path(run))
prepare, began_s = load.prepare, time.monotonic()

def timed(*args):
    found = prepare(*args)
    print(json.dumps({"prepared_s": time.monotonic() - began_s}), flush=True)
    return found

load.prepare = timed
sft.train(job)
peaks = [resource.getrusage(who).ru_maxrss << 10
         for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(json.dumps({"own_bytes": peaks[0], "worker_bytes": peaks[1]}))
"""


@pytest.mark.long
def test_ten_million_rows_take_flat_memory(tiny_model: Path, tmp_path: Path):
    """The trainer holds its libraries and at most a hundred bytes a row, a worker no rows."""
    data = tmp_path / "rows.jsonl"
    with data.open("w") as file:
        rows = (chat(f"What is item {row}?", f"It is number {row * 7}.") for row in range(ROWS))
        file.writelines(json.dumps(row) + "\n" for row in rows)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tiny_model), str(data), str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    print(done.stdout)
    _, peaks = map(json.loads, done.stdout.splitlines())
    counts = json.loads((tmp_path / "run" / "stages" / "sft" / "result.json").read_text())["data"]
    assert counts["rows"] == counts["train_rows"] + counts["holdout_rows"] == ROWS
    assert peaks["own_bytes"] < LIBRARIES_BYTES + ROW_BYTES * ROWS
    assert peaks["worker_bytes"] < LIBRARIES_BYTES
