"""Rows that are built in a stream, by one process or several, and read from the disk."""

import multiprocessing
import os
import pickle
import signal
from dataclasses import replace

import pytest

from advisor.data.example import Example
from advisor.ground.errors import InputError, MachineNotReady
from tests.trainers.runs import losses, trained
from trainers.rows import Kind, Row, Templater, building, prepared, workers
from trainers.rows import stage_rows as preparing
from trainers.rows.building import Limits
from trainers.rows.kinds import Marked
from trainers.rows.length import cut_row
from trainers.rows.preference import FEEDBACK, PAIRS
from trainers.rows.prepared import ANSWERS, build_rows, rows_digest
from trainers.rows.prompts import PROMPTS
from trainers.rows.row import ids_of
from trainers.rows.sequences import learned_counts, lengths, values_of
from trainers.rows.stage_rows import prepare_rows, sequences_of
from trainers.rows.stored import StoredRows
from trainers.say.processes import ConnectionLost, others_wait_for, wait_for


@pytest.fixture
def on_the_disk(monkeypatch):
    """Also few rows stay on the disk, in batches of a few."""

    def change(is_on: bool = True) -> None:
        monkeypatch.setattr(prepared, "MOST_ROWS", 0 if is_on else 10**9)

    monkeypatch.setattr(building, "CHUNK_EXAMPLES", 4)
    monkeypatch.setattr(prepared, "BATCH_ROWS", 8)
    change()
    return change


@pytest.fixture
def two_processes(monkeypatch):
    """Two workers build all rows but the first few."""
    monkeypatch.setattr(building, "CHUNK_EXAMPLES", 4)
    monkeypatch.setattr(workers, "ALONE_ROWS", 5)
    monkeypatch.setattr(prepared, "process_count", lambda: 2)
    yield
    assert not multiprocessing.active_children()


@pytest.fixture
def job(make, pairs):
    """A job on pairs, which every kind can be made of."""
    return make(job_data=pairs, holdout=0.2)


def prepared_in(job, folder, kind):
    from trainers.start.loading import load_tokenizer

    return prepare_rows(replace(job, run=folder), load_tokenizer(job), kind)


@pytest.mark.parametrize("kind", [ANSWERS, PAIRS, FEEDBACK, PROMPTS], ids=lambda kind: kind.name)
def test_rows_on_the_disk_are_those_in_memory(kind, job, tmp_path, on_the_disk):
    """In every field, number and digest, at every place and in slices; a row that is read is one of
    its kind.
    """
    stored = prepared_in(job, tmp_path / "one", kind)
    on_the_disk(False)
    whole = prepared_in(job, tmp_path / "other", kind)
    assert isinstance(stored.train, StoredRows)
    assert isinstance(whole.train, tuple)
    for lazy, rows in ((stored.train, whole.train), (stored.holdout, whole.holdout)):
        assert len(rows) > 2
        assert list(lazy) == list(rows) == [lazy[place] for place in range(len(rows))]
        assert tuple(lazy[1:3]) == rows[1:3]
        assert lazy[-1] == rows[-1]
        assert lengths(lazy).tolist() == [row.tokens for row in rows]
        assert learned_counts(lazy).tolist() == [row.learned for row in rows]
        assert list(values_of(lazy, "text")) == [row.text for row in rows]
        assert rows_digest(lazy) == rows_digest(rows)
        assert isinstance(lazy[0], kind.row)
        assert replace(lazy[0], number=0) == replace(rows[0], number=0)
        assert pickle.loads(pickle.dumps(lazy[0])) == rows[0]
        assert lazy[0] != rows[1]
        with pytest.raises(IndexError):
            lazy[len(rows)]
    assert stored.counts() == whole.counts()


def test_a_text_that_was_split_is_kept_once(make, tmp_path, on_the_disk):
    """Its pieces have one text between them in the file, and each gives it back."""
    path = tmp_path / "texts.txt"
    path.write_text("\n<|endoftext|>\n".join(f"word{number} " * 300 for number in range(6)))
    job = make(job_data=path, objective="cpt", seq_len=32, holdout=0.0)
    rows = prepared_in(job, tmp_path / "run", ANSWERS).train
    (file,) = (tmp_path / "run" / "prepared").glob("*.arrow")
    texts = list(values_of(rows, "text"))
    assert len(rows) > 60
    assert len(set(texts)) == 6
    assert [row.text for row in rows] == texts == [rows[place].text for place in range(len(rows))]
    assert file.stat().st_size < 2 * len("".join(set(texts))) + 12 * int(lengths(rows).sum())


@pytest.mark.parametrize("kind", [ANSWERS, PAIRS, PROMPTS], ids=lambda kind: kind.name)
@pytest.mark.parametrize("template", [True, False], ids=["template", "no template"])
def test_several_processes_prepare_the_same_file(
    kind, template, job, tmp_path, two_processes, monkeypatch
):
    """Byte for byte, with the same notes and the same template for a tokenizer that has none, also
    if the rows go over the disk before they are divided.
    """
    from trainers.start.loading import load_tokenizer

    found = []
    for name, processes in (("one", 1), ("two", 2)):
        monkeypatch.setattr(prepared, "process_count", lambda count=processes: count)
        monkeypatch.setattr(building, "IN_MEMORY_BYTES", 1 << 20 if processes == 1 else 0)
        tokenizer = load_tokenizer(job)
        if not template:
            tokenizer.chat_template = None
        data = prepare_rows(replace(job, run=tmp_path / name), tokenizer, kind)
        files = (tmp_path / name / "prepared").iterdir()
        found.append(
            (data, tokenizer.chat_template, {file.name: file.read_bytes() for file in files})
        )
    assert found[0] == found[1]
    assert len(found[1][2]) == 2  # nothing temporary is left


def build_alone(examples, templater, left):
    """Rows without a tokenizer; some examples end their process."""
    for example in examples:
        if example.text == "refused":
            raise InputError(f"row {example.row}: refused", hint="repair it")
        if example.text == "broken":
            raise ValueError(f"row {example.row} is a bug")
        if example.text == "killed" and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        ids = ids_of([1, 2, 3, example.row])
        yield Row(example.row, ids, ids, "", "", "", f"key {example.row}", f"text {example.row}")


ALONE: Kind[Row] = Kind(name="answers", row=Row, build=build_alone, cut=cut_row)
LIMITS = Limits(seq_len=8, truncation="stop", seed=1)


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("refused", InputError, "row 37: refused\n  repair it"),
        ("broken", RuntimeError, "(?s)ValueError: row 37 is a bug.*Traceback.*build_alone"),
        ("killed", MachineNotReady, "ended from outside .exit code -9."),
    ],
)
def test_a_row_that_fails_in_a_worker_ends_all_with_its_own_error(
    text, error, match, tokenizer, two_processes, tmp_path
):
    """The first one in the order of the file, as with one process; no worker and no file stays."""
    examples = [Example(row=row, text=text if row in (37, 41) else "") for row in range(1, 60)]
    with (
        pytest.raises(error, match=match),
        build_rows(
            examples, Templater(tokenizer), LIMITS, holdout=0.0, kind=ALONE, folder=tmp_path
        ),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_a_stop_ends_the_workers(tokenizer, two_processes, monkeypatch, tmp_path):
    """Ctrl-C, which the workers leave to their parent, ends them and removes what was kept."""
    monkeypatch.setattr(building, "IN_MEMORY_BYTES", 0)

    def examples():
        for row in range(1, 200):
            if row == 100:
                assert len(multiprocessing.active_children()) == 2
                assert list(tmp_path.iterdir())
                for child in multiprocessing.active_children():
                    os.kill(child.pid, signal.SIGINT)
                raise KeyboardInterrupt
            yield Example(row=row, text="")

    with (
        pytest.raises(KeyboardInterrupt),
        build_rows(
            examples(), Templater(tokenizer), LIMITS, holdout=0.0, kind=ALONE, folder=tmp_path
        ),
    ):
        pass
    assert not list(tmp_path.iterdir())


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


def build_counted(examples, templater, left):
    for row in build_alone(examples, templater, left):
        yield CountedRow(*(getattr(row, name) for name in Row.__dataclass_fields__))


def test_many_rows_are_never_all_in_memory(tokenizer, tmp_path, monkeypatch):
    """Of twenty thousand rows no more than those of a batch are objects at one time: while they are
    built, written, digested, packed and read for a training step. The same for what is kept of them
    on the way.
    """
    from trainers.rows import dataset_columns, pack
    from trainers.rows.cache import read_written, write_prepared
    from trainers.rows.rows_dataset import rows_dataset

    monkeypatch.setattr(building, "IN_MEMORY_BYTES", 100_000)
    monkeypatch.setattr(prepared, "MOST_ROWS", 1000)
    monkeypatch.setattr(prepared, "BATCH_ROWS", 1000)
    monkeypatch.setattr(prepared, "process_count", lambda: 1)
    kind = replace(ALONE, row=CountedRow, build=build_counted)
    examples = (Example(row=row, text="") for row in range(1, 20_001))
    CountedRow.alive = CountedRow.most = 0
    file = tmp_path / "rows.arrow"
    with build_rows(
        examples, Templater(tokenizer), LIMITS, holdout=0.1, kind=kind, folder=tmp_path
    ) as built:
        assert built.store.batches == []
        write_prepared(file, built, built.summary, chat_template=None)
    data = read_written(file, kind, tokenizer)
    assert (len(data.train), len(data.holdout)) == (18_000, 2_000)
    rows_digest(data.train)
    assert data.counts().tokens == 72_000
    dataset = rows_dataset(
        pack(data.train, 8), lambda groups: dataset_columns(groups, lengths=True)
    )
    assert len(dataset) == 9_000
    for step in range(0, 9_000, 90):
        assert len(dataset.__getitems__([step, step + 45])) == 2
    assert 512 <= CountedRow.most < 1024


@pytest.mark.parametrize("packing", [False, True], ids=["rows", "packed"])
def test_training_from_the_disk_is_training_from_memory(packing, make, on_the_disk):
    """The same batches in the same order, and the same losses to the bit."""
    from trainers.start.loading import load_tokenizer

    found = []
    for where in ("disk", "memory"):
        on_the_disk(where == "disk")
        job = make(packing=packing, job_run=make().run / where, job_judge=False, max_steps=2)
        rows = prepare_rows(job, load_tokenizer(job)).train
        assert isinstance(rows, StoredRows) == (where == "disk")
        record = trained(job)
        groups = [list(group) for group in sequences_of(job, rows, None)]
        found.append((losses(job), record["data"], groups))
    assert found[0] == found[1]


# --------------------------------------------------------------------------- several ranks


def test_only_the_main_process_prepares(job, tmp_path, monkeypatch):
    """The others read what it wrote, however long they have to wait for it."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    first = prepared_in(job, tmp_path, PAIRS)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(preparing, "_built", lambda *args, **keys: pytest.fail("prepared again"))
    files = {path: path.read_bytes() for path in (tmp_path / "prepared").iterdir()}
    for path in files:
        path.unlink()

    def write_later(pause_s: float) -> None:
        for path, content in files.items():
            path.write_bytes(content)

    monkeypatch.setattr("trainers.say.processes.time.sleep", write_later)
    assert prepared_in(job, tmp_path, PAIRS) == first


def test_a_main_process_that_fails_leaves_nobody_waiting(make, tmp_path, monkeypatch):
    """The others end with an error that points to it, and a new start waits again."""
    path = tmp_path / "bad.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "only a question"}]}\n' * 3)
    job = make(job_data=path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError):
        prepared_in(job, tmp_path, ANSWERS)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ConnectionLost, match="process 0 could not prepare the rows"):
        prepared_in(job, tmp_path, ANSWERS)


def test_who_waits_ends_with_its_launcher(tmp_path, monkeypatch):
    """A process whose parent is another one than before waits for nothing."""
    parents = iter([7, 7, 1, 1, 1])
    monkeypatch.setattr("trainers.say.processes.os.getppid", lambda: next(parents))
    with pytest.raises(ConnectionLost, match="launcher"):
        wait_for(tmp_path / "rows.arrow", lambda: None)


def test_a_failure_of_an_earlier_start_is_forgotten(tmp_path, monkeypatch):
    """The main process removes what it said of the file before."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    file = tmp_path / "rows.arrow"
    with pytest.raises(ValueError, match="first"), others_wait_for(file):
        raise ValueError("first")
    with pytest.raises(ConnectionLost):
        wait_for(file, lambda: None)
    with others_wait_for(file):
        pass
    assert not list(tmp_path.iterdir())


def test_rows_of_one_text_with_two_marks_are_contrary():
    """All rows of such a text, in the order of the file, and no others."""
    import numpy

    rows = Marked(
        numbers=numpy.array([1, 2, 3, 4, 5]),
        texts=numpy.array([7, 8, 7, 9, 8], numpy.uint64),
        marks=numpy.array([1, 1, 2, 1, 1], numpy.uint64),
        names={},
    )
    assert rows.contrary() == [1, 3]
