"""Train many plans in one start of processes, and write what became of each.

    torchrun --nproc-per-node 2 -m tests.distributed.train PLAN ...

torch takes ten seconds to start, and a tiny training two.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from advisor.ground.errors import AdviseError, InputError
from advisor.plan.read import read_plan
from trainers import load_recipe
from trainers.frame.job import TRAIN, Job, make_job
from trainers.frame.leaving import run_and_leave
from trainers.frame.machine import is_main_process, process_count

TRAINED, REFUSED, FAILED = "trained", "refused", "failed"


def outcome_file(plan: Path) -> Path:
    """Where the outcome of a plan stands."""
    return plan.with_suffix(".json")


def job_of(path: Path) -> Job:
    """The job of the plan's one stage, into a folder beside it."""
    plan = read_plan(path)
    (stage,) = plan.stages
    return make_job(
        plan,
        stage=stage.name,
        run=path.with_suffix(""),
        folder=path.parent,
        judge=False,
        part=TRAIN,
    )


def outcome(path: Path) -> dict[str, Any]:
    """Train one plan: trained, refused with a reason, or failed."""
    began, environment = time.monotonic(), dict(os.environ)
    try:
        job = job_of(path)
        load_recipe(job.stage.objective).train(job)
        found = {"status": TRAINED, "text": ""}
    except InputError as error:
        found = {"status": REFUSED, "text": error.text()}
    except AdviseError as error:
        found = {"status": FAILED, "text": error.text()}
    except Exception:
        found = {"status": FAILED, "text": traceback.format_exc()}
    finally:  # transformers leaves there how it divided the model
        os.environ.clear()
        os.environ.update(environment)
    return {**found, "seconds": round(time.monotonic() - began, 1)}


def main(plans: Sequence[str] = sys.argv[1:]) -> int:
    for plan in map(Path, plans):
        found = outcome(plan)
        gc.collect()
        if is_main_process():
            place = outcome_file(plan)
            draft = place.with_suffix(".draft")
            draft.write_text(json.dumps(found))
            draft.rename(place)
    return 0


if __name__ == "__main__":
    sys.exit(main() if process_count() == 1 else run_and_leave(main))
