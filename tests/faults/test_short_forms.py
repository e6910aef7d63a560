"""What fuzzers have found, each as the smallest input that showed it; and load in short form."""

import io
import json
import tracemalloc
from pathlib import Path

import pytest

from advisor.data.checks import repeats
from advisor.data.measure import Depth, profile
from advisor.data.read import lines
from advisor.render.report import read_metrics
from tests.faults import load
from tests.faults.table import rows_of
from tests.launch.conftest import write_rows
from tests.render.test_report import METRICS as LINES
from tests.render.test_report import RECORD, page_of

DEEP = "[" * 200_000 + "1" + "]" * 200_000  # Python 3.13 reads 10,000
DIGITS = "9" * 5000
PLAN = """\
name: shop
model: ./model
data: {path: rows.jsonl}
stages: [{name: sft, objective: sft, update: lora, learning_rate: 1e-4}]
"""
ROWS = json.dumps({"question": "How much?", "answer": "A lot."}) + "\n"


def parquet(old: bytes, new: bytes) -> bytes:
    """Rows as Parquet, with some bytes of their text replaced."""
    pytest.importorskip("pyarrow")
    from pyarrow import Table
    from pyarrow.parquet import write_table

    file = io.BytesIO()
    table = Table.from_pylist([{"question": "How much?", "answer": "A lot."}] * 8)
    write_table(table, file, compression="none", use_dictionary=False)
    return file.getvalue().replace(old, new)


# What is written beside the plan and the rows, the command, its exit code, words of its error.
FOUND = [
    ({"run/run.json": DEEP}, "run plan.yaml --output run", 2, "nested too deeply"),
    ({"model/config.json": DEEP}, "estimate plan.yaml", 2, "nested too deeply"),
    ({"model/config.json": DIGITS}, "estimate plan.yaml", 2, "not valid JSON"),
    ({"rows.parquet": (b"How much?", b"How \x86uch?")}, "check rows.parquet", 2, "not a readable parquet"),
    ({"model/chat_template.jinja": b"\xff", "model/config.json": "{}", "model/tokenizer.json": "{}"}, "check rows.jsonl --model ./model", 2, "not UTF-8"),
    # One bad entry of a list, an integer beyond a float, is told in its place.
    ({"specs.json": '[{"seq_len": 1%s}]' % ("0" * 400)}, "estimate --specs specs.json", 0, "seq_len"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "command", "code", "words"), FOUND)
def test_what_was_found_stays_mended(call, tmp_path, files, command, code, words):
    """A fault of the input is told, with exit code 2."""
    for name, content in {"plan.yaml": PLAN, "rows.jsonl": ROWS, **files}.items():
        path = Path(tmp_path, name)
        path.parent.mkdir(exist_ok=True)
        content = parquet(*content) if isinstance(content, tuple) else content
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    ended, out, err = call(*command.split())
    assert ended == code, err
    assert words in (err if code else out)


@pytest.mark.smoke
@pytest.mark.train
@pytest.mark.parametrize(
    ("module", "words"), [("fuzz.run", (5, 60)), ("attacks", ("stages/sft/", "pipe"))]
)
def test_a_few_inputs_and_attacks_are_survived(module, words):
    """`python -m tests.faults` tries many more; a third of the inputs gets past the readers."""
    rows = rows_of(module, *words)
    assert [row.wrong for row in rows if row.wrong] == []
    assert sum(row.count for row in rows) > 10
    read = [row for row in rows if row.fault == "fuzzed input" and row.past is not None]
    assert 3 * sum(row.past for row in read) >= sum(row.count for row in read)


def test_lines_of_metrics_that_are_damaged_are_left_out(tmp_path):
    """The report shows the lines that can be read, whatever lies between them."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\xff\xfe\n[]\n' + DEEP.encode() + b'\n{"step": 2}\n{"st')
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]


def test_several_advices_at_once_are_one_answer(tmp_path):
    """They share a cache of parsed rules, which the first fills while the others read it."""
    assert load.at_once(tmp_path, 4).wrong == []


def test_memory_of_a_check_stays_with_the_rows_compared(tmp_path, monkeypatch):
    """Rows beyond the limit of comparing cost time and no memory."""
    monkeypatch.setattr(repeats, "COMPARED_ROWS", 200)
    monkeypatch.setattr(lines, "PIECE_BYTES", 4096)  # of the file, which is in memory in any case
    peaks = []
    for count in (400, 2_000):
        path = tmp_path / f"{count}.jsonl"
        rows = ({"prompt": f"What is {n}?", "completion": f"{2 * n}."} for n in range(count))
        write_rows(path, rows)
        tracemalloc.start()
        profile(path, Depth(whole=True, thorough=True))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def test_a_report_of_many_steps_is_no_longer_than_one_of_some(tmp_path):
    """Curves keep what a screen shows: the lowest and the highest of each span."""
    sizes = []
    for steps in (1_000, 20_000):
        lines = [{**LINES[0], "step": step, "loss": 1 / (step + 1)} for step in range(steps)]
        sizes.append(len(page_of(RECORD, tmp_path, metrics=lines)))
    assert sizes[1] < 1.1 * sizes[0]
