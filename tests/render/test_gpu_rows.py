"""The rows of docs/gpu.md that a run on a GPU prints."""

import json
from html import escape
from pathlib import Path

from advisor.plan.record import RunRecord
from advisor.render.gpu_rows import COLUMNS, WHERE_ROWS_GO, gpu_rows
from advisor.render.report import report_page

STORED = json.loads((Path(__file__).parent / "gpu_run.json").read_text())


def record(**changes):
    return RunRecord.from_dict({**STORED, **changes})


def test_a_row_has_the_numbers_of_the_run():
    """Machine, method, settings, expected and measured memory and time stand in one line."""
    (row,) = gpu_rows(record())
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert dict(zip(COLUMNS, cells, strict=True)) == {
        "GPU": "NVIDIA GeForce RTX 4090",
        "driver": "570.86.15",
        "model": "Qwen/Qwen3-0.6B",
        "method": "sft, lora on nf4",
        "settings": "bfloat16, autocast bfloat16, batch 4 x 4, 1024 tokens, rank 16, recomputed,"
        " paged_adamw_8bit, sdpa, 120 steps",
        "expected GiB": "2.00",
        "allocated GiB": "1.50",
        "reserved GiB": "1.75",
        "expected time": "110 s",
        "measured time": "98 s",
        "tokens/s": "5120",
        "versions": "torch 2.13.0, trl 1.16.0",
    }


def test_nothing_private_is_in_a_row():
    """No path, no name of the run, its data or its user's files."""
    (row,) = gpu_rows(record(model="/home/me/models/secret-merger"))
    for private in ("secret", "/home", "merger-letters", "takeover", "runs/"):
        assert private not in row
    assert "a local model, 0.60 B" in row


def test_only_a_finished_stage_on_a_gpu_has_a_row():
    """A run on a CPU, and a stage that failed, have nothing to contribute."""
    assert gpu_rows(record(hardware={"kind": "cpu"})) == []
    assert gpu_rows(record(stages=[{**STORED["stages"][0], "status": "failed"}])) == []


def test_the_report_shows_the_row(tmp_path):
    """It is there to copy, and says that nothing has been sent."""
    page = report_page(record(), folder=tmp_path, plan_text="", metrics=())
    assert WHERE_ROWS_GO in page
    assert escape(gpu_rows(record())[0]) in page


def test_the_page_has_the_columns():
    """docs/gpu.md has a table with these columns."""
    page = (Path(__file__).parents[2] / "docs" / "gpu.md").read_text()
    assert f"| {' | '.join(COLUMNS)} |" in page
