"""Rows that are built in a stream, by one process or several, and read from the disk."""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from unittest.mock import Mock

import pytest

torch = pytest.importorskip("torch")


from advisor.data import read_examples, recognise
from advisor.data.example import Example
from advisor.ground.errors import InputError, MachineNotReady
from advisor.ground.files import Disk
from tests.conftest import ROOT
from tests.trainers.fitting import in_memory, sequence
from tests.trainers.runs import chat, write_rows
from trainers.job.machine import ConnectionLost, others_wait_for, wait_for
from trainers.rows import ANSWERS, Kind, Row, Templater, dataset_columns, pack, sequences
from trainers.rows import stage_rows as preparing
from trainers.rows.conversation import PROMPTS
from trainers.rows.preference import FEEDBACK, PAIRS
from trainers.rows.row import LeftOut, Limits, cut_row, ids_of
from trainers.rows.sequences import StoredRows, lengths, rows_dataset, values_of
from trainers.rows.stage_rows import Preparation, prepare_rows
from trainers.start.loading import load_tokenizer


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
        assert tuple(rows[1:3]) == whole[1:3]
        assert rows[-1] == whole[-1]
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
    assert (len(data.train), len(data.holdout)) == (18_000, 2_000)
    assert data.counts().tokens == 72_000
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
