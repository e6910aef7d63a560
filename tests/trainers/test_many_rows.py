"""Ten million rows, prepared and trained a few steps in flat memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

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
    """The process that trains never holds more than its libraries and a hundred bytes a row, and no
    worker more than the libraries; the result counts every row.
    """
    data = tmp_path / "rows.jsonl"
    with data.open("w") as file:
        for row in range(ROWS):
            messages = [
                {"role": "user", "content": f"What is item {row}?"},
                {"role": "assistant", "content": f"It is number {row * 7}."},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tiny_model), str(data), str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    times, peaks = map(json.loads, done.stdout.splitlines())
    print(times, peaks)
    counts = json.loads((tmp_path / "run" / "stages" / "sft" / "result.json").read_text())["data"]
    assert counts["rows"] == counts["train_rows"] + counts["holdout_rows"] == ROWS
    assert peaks["own_bytes"] < LIBRARIES_BYTES + ROW_BYTES * ROWS
    assert peaks["worker_bytes"] < LIBRARIES_BYTES
