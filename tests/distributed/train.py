"""Train many plans in one start of processes, and write what became of each; one process with
--judge checks what several have saved.

    torchrun --nproc-per-node 2 -m tests.distributed.train PLAN ...
    python -m tests.distributed.train --judge PLAN ...

torch takes ten seconds to start, and a tiny training two.
"""

from __future__ import annotations

import gc
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer

from advisor.ground.errors import AdviseError, InputError
from advisor.plan.read import read_plan
from trainers.job.job import JUDGE, TRAIN, Job, make_job
from trainers.job.machine import is_main_process, process_count
from trainers.say.processes import run_and_leave
from trainers.stage.objective import load_recipe

TRAINED, REFUSED, FAILED = "trained", "refused", "failed"


def outcome_file(plan: Path) -> Path:
    """Where the outcome of a plan stands."""
    return plan.with_suffix(".json")


def job_of(path: Path, part: str) -> Job:
    """The job of the plan's one stage, into a folder beside it."""
    plan = read_plan(path)
    (stage,) = plan.stages
    return make_job(
        plan, stage=stage.name, run=path.with_suffix(""), folder=path.parent, judge=False, part=part
    )


class Held:
    """What this process holds: the most memory of its own until the first micro-batch, and behind
    it the gradients that are whole, in bytes, and the parts of the reference model.
    """

    size: int | None = None
    reference_units: int | None = None

    def __init__(self) -> None:
        self.step = Trainer.training_step
        self.pages = Pages()

    def __enter__(self) -> Held:
        def step(trainer: Any, model: Any, *given: Any, **named: Any) -> Any:
            self.pages.stop()
            loss = self.step(trainer, model, *given, **named)
            if self.size is None:
                self.size = whole_gradient_bytes(model)
                self.reference_units = units(getattr(trainer, "ref_model", None))
            return loss

        Trainer.training_step = step
        self.pages.start()
        return self

    def __exit__(self, *_: object) -> None:
        Trainer.training_step = self.step
        self.pages.stop()


def whole_gradient_bytes(model: Any) -> int:
    """Of gradients that FSDP has not divided yet."""
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    groups = [group for unit in units for group in unit._get_fsdp_state()._fsdp_param_groups]
    found = [
        gradient
        for group in groups
        for one in group.fsdp_params
        for gradient in (one.unsharded_accumulated_grad, one.unsharded_param.grad)
        if gradient is not None
    ]
    return sum(one.numel() * one.element_size() for one in found)


class Pages:
    """The most memory that is this process's alone and was written to, beyond what it had before,
    in bytes: pages of a file that is read through a map are no part of it.
    """

    def start(self) -> None:
        self.before, self.most, self.over = dirty_bytes(), 0, Event()
        self.watch = Thread(target=self._look, daemon=True)
        self.watch.start()

    def _look(self) -> None:
        while not self.over.wait(0.01):
            self.most = max(self.most, dirty_bytes() - self.before)

    def stop(self) -> None:
        self.over.set()
        self.watch.join()


def dirty_bytes() -> int:
    """Private pages of this process that were written to."""
    text = Path("/proc/self/smaps_rollup").read_text("ascii")
    return 1024 * sum(map(int, re.findall(r"^Private_Dirty: +([0-9]+) kB$", text, re.MULTILINE)))


def of_all(value: Any) -> list[Any]:
    """A value of each process."""
    values: list[Any] = [value] * process_count()
    if process_count() > 1:
        torch.distributed.all_gather_object(values, value)
    return values


def units(model: Any) -> int:
    """In how many parts a model is divided that are put together one after the other."""
    modules = model.modules() if model is not None else ()
    return sum(isinstance(one, FSDPModule) for one in modules)


def outcome(path: Path, part: str = TRAIN) -> dict[str, Any]:
    """Train one plan, or judge what was: trained, refused with a reason, or failed."""
    began, environment = time.monotonic(), dict(os.environ)
    try:
        job = job_of(path, part)
        with Held() as held:
            load_recipe(job.stage.objective).train(job)
        most = None if held.size is None else max(of_all(held.size))
        found = {"status": TRAINED, "text": "", "held": most}
        found |= {"dirty": of_all(held.pages.most), "reference_units": held.reference_units}
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


def main(given: Sequence[str] = sys.argv[1:]) -> int:
    part = JUDGE if "--judge" in given else TRAIN
    for plan in (Path(one) for one in given if one != "--judge"):
        found = outcome(plan, part)
        gc.collect()
        if is_main_process():
            place = outcome_file(plan)
            draft = place.with_suffix(".draft")
            draft.write_text(json.dumps(found))
            draft.rename(place)
    return 0


if __name__ == "__main__":
    sys.exit(main() if process_count() == 1 else run_and_leave(main))
