"""Train plans, one after another in the same processes, and write what became of each; one process
with --judge checks what several have saved.

    torchrun --nproc-per-node 2 -m tests.distributed.train PLAN ...
    python -m tests.distributed.train --judge PLAN ...

torch takes ten seconds to start, and a tiny training one.
"""

import gc
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from advisor.ground.errors import AdviseError, InputError
from advisor.plan.read import read_plan
from tests.distributed.held import held, of_all
from trainers.job.job import JUDGE, TRAIN, make_job
from trainers.job.machine import is_main_process, process_count, run_and_leave
from trainers.stage.objective import load_recipe

TRAINED, REFUSED, FAILED = "trained", "refused", "failed"


def outcome_file(plan: Path) -> Path:
    """Where the outcome of a plan stands."""
    return plan.with_suffix(".json")


def outcome(path: Path, part: str) -> dict[str, Any]:
    """Train one plan, or judge what was: trained, refused with a reason, or failed."""
    environment = dict(os.environ)
    try:
        plan = read_plan(path)
        (stage,) = plan.stages
        run = path.with_suffix("")  # a folder beside it
        job = make_job(plan, stage=stage.name, run=run, folder=path.parent, judge=False, part=part)
        with held() as found:
            load_recipe(job.stage.objective).train(job)
        return {"status": TRAINED, "text": "", "held": of_all(found)}
    except InputError as error:
        return {"status": REFUSED, "text": error.text()}
    except AdviseError as error:
        return {"status": FAILED, "text": error.text()}
    except Exception:
        return {"status": FAILED, "text": traceback.format_exc()}
    finally:  # transformers leaves there how it divided the model
        os.environ.clear()
        os.environ.update(environment)


def main(given: Sequence[str] = sys.argv[1:]) -> int:
    part = JUDGE if "--judge" in given else TRAIN
    for number, plan in enumerate(Path(one) for one in given if not one.startswith("--")):
        found = outcome(plan, part)
        gc.collect()
        if number == 0:  # a million objects of libraries, which a look for garbage takes 0.2 s for
            gc.freeze()
        if is_main_process():
            place = outcome_file(plan)
            print(f"{place.name} {found['status']}", flush=True)  # `said` ends here
            draft = place.with_suffix(".draft")
            draft.write_text(json.dumps(found))
            draft.rename(place)
    return 0


if __name__ == "__main__":
    sys.exit(main() if process_count() == 1 else run_and_leave(main))
