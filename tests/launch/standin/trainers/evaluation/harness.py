"""Stands in for the process that asks the benchmarks: STAND_IN_SCORES holds the share of right
answers, by name of the model; `fails` and `stopped` say how it ends instead.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from advisor.plan.benchmark_record import ModelScores, Score, Scored
from advisor.plan.benchmarks import limit_of, missing_tasks, read_scores, scores_key, scores_path
from advisor.plan.read import read_plan
from advisor.plan.record_files import read_record

run = Path(sys.argv[sys.argv.index("--run") + 1])
names = [word for before, word in zip(sys.argv, sys.argv[1:], strict=False) if before == "--on"]
told = os.environ.get("STAND_IN_SCORES", "{}")
(run / "benchmarks").mkdir(exist_ok=True)
with (run / "asked.txt").open("a") as log:
    log.write(f"{' '.join(names)}\n")
if told == "fails":
    error = {
        "kind": "InputError",
        "what": "evaluation.tasks: own.yaml: no such column",
        "hint": "mend it",
    }
    (run / "benchmarks" / "error.json").write_text(json.dumps({**error, "exit_code": 2}))
    sys.exit(2)
if told == "stopped":
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(20)
plan, record = read_plan(Path(sys.argv[1])), read_record(run)
for name in names:
    right = json.loads(told).get(name, 0.5)
    limit = limit_of(plan, record.max_steps)
    rows = limit or 100
    values = tuple(float(number < round(right * rows)) for number in range(rows))
    done = dict(read_scores(run, name).tasks)
    for task in missing_tasks(plan, run, run, record, name):
        key = scores_key(plan, run, record, name, task, limit=limit)
        score = Score(
            benchmark=Path(task).stem,
            metric="acc",
            value=right,
            stderr=0.05,
            rows=rows,
            values=values,
        )
        done[task] = Scored(key=key, seconds=2.0, scores=(score,))
    text = json.dumps(ModelScores(chat_template=True, tasks=done).to_dict())
    scores_path(run, name).write_text(text)
