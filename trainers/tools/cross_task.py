"""Every task's module, and the base, on every task's held-out rows: the loss of each, with one base
in memory.

Run: python -P -m trainers.tools.cross_task PLAN --run FOLDER [--max-steps N]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from advisor.ground.progress import board, track, waiting
from advisor.plan.read import read_plan
from advisor.record.run import CROSS, CrossEvaluation
from trainers.evaluation.loss import held_out, log_prob_sums
from trainers.job.evaluating import evaluating
from trainers.job.files import write_json
from trainers.job.job import make_job
from trainers.job.machine import torch_device
from trainers.rows.stage_rows import prepare_rows
from trainers.tools import command
from trainers.tools.results import load_results, results_of

ROWS, TRIAL_ROWS = 32, 8
AT_ONCE = 2  # of the longest rows


def compare(given: Any) -> None:
    """Write, for each task and module (or the base), the mean loss per learned token on the task's
    held-out rows; None if nothing was held out.

    Raises InputError for data that cannot be read.
    """
    plan, folder, run = read_plan(given.plan), given.plan.resolve().parent, given.run.resolve()
    device, results = torch_device(plan.launch.device), results_of(run)
    limit = ROWS if given.max_steps is None else TRIAL_ROWS
    board.label, board.folder = "comparing", run
    with waiting("loading the modules"):
        loaded = load_results(results, device)
    found: dict[str, dict[str, float | None]] = {}
    for result in track(results, "modules on each other's rows", unit="tasks"):
        # Those that the training of the task held out.
        stage, task = plan.stages[-1].name, result.label
        job = make_job(plan, stage=stage, run=run, folder=folder, task=task)
        held = held_out(prepare_rows(job, loaded.tokenizers[task]).holdout, limit=limit)
        found[task] = {}
        for label in loaded.labels:
            with loaded.use(label) as (model, tokenizer), evaluating(model):
                sums = log_prob_sums(model, held, tokenizer.pad_token_id, at_once=AT_ONCE)
            learned = max(1, sum(row.learned for row in held))
            found[task][label] = -sum(sums) / learned if held else None
    write_json(run / CROSS, CrossEvaluation(losses=found).to_dict())


OPTIONS: dict[str, dict[str, Any]] = {
    "plan": {"type": Path},
    "--run": {"type": Path, "required": True},
    "--max-steps": {"type": int},
}
main = command(compare, OPTIONS)

if __name__ == "__main__":
    sys.exit(main())
