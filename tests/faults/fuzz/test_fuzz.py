"""What the fuzzers have found, each as the smallest input that showed it."""

import io
import json
from pathlib import Path

import pytest

DEEP = "[" * 5000 + "1" + "]" * 5000
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
    # One bad entry of a list, an integer beyond a float, is told in its place.
    ({"specs.json": '[{"seq_len": 1%s}]' % ("0" * 400)}, "estimate --specs specs.json", 0, "seq_len"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "command", "code", "words"), FOUND)
def test_what_was_found_stays_mended(call, tmp_path, files, command, code, words):
    """A fault of the input is told, with exit code 2."""
    for name, content in {"plan.yaml": PLAN, "rows.jsonl": ROWS, **files}.items():
        path = Path(tmp_path, name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(parquet(*content) if isinstance(content, tuple) else content.encode())
    ended, out, err = call(*command.split())
    assert ended == code, err
    assert words in (err if code else out)


def test_lines_of_metrics_that_are_damaged_are_left_out(tmp_path):
    """The report shows the lines that can be read, whatever lies between them."""
    from advisor.render.report import read_metrics

    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\xff\xfe\n[]\n' + DEEP.encode() + b'\n{"step": 2}\n{"st')
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]
