"""Cells trained, refused or failed: how far each is from one process, and memory beside the estimate."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from advisor.estimate.memory import static
from advisor.estimate.run import Run
from advisor.estimate.spec import SPEC, run_of_spec
from advisor.situation.models import model_shape
from tests.distributed.cells import (
    FSDP,
    HALF,
    LAST,
    PRECISIONS,
    PURE,
    Apart,
    Cell,
    Left,
    apart,
    left_by,
    write_plan,
)
from tests.distributed.models import MODEL
from tests.distributed.train import FAILED, REFUSED, TRAINED, outcome_file
from tests.faults.table import table
from trainers.keep.checkpoint_store import CHANGED

ROOT = Path(__file__).resolve().parents[2]
QUIET_S = 240.0  # without a plan done: the processes wait for each other
TAIL = 1500  # characters of the output that are shown
ANEW = CHANGED["divided"]  # what a run says that cannot go on from a checkpoint


@dataclass
class Result:
    """What became of a cell."""

    cell: Cell
    status: str  # TRAINED, REFUSED or FAILED
    text: str = ""  # why it is refused, or how it failed
    said: str = ""  # by its processes
    held: list[dict[str, int]] = field(default_factory=list)  # by each process
    left: Left | None = None
    apart: Apart | None = None  # from its reference

    @property
    def far(self) -> float | None:
        """How far it is from its reference; None: it has none."""
        if self.apart is None:
            return None
        return self.apart.loss if self.cell.losses_alone else self.apart.most

    def fail(self, text: str) -> None:
        """It is not as it should be."""
        self.status, self.text = FAILED, text


# --------------------------------------------------------------------------- processes


def train_plans(
    plans: Sequence[Path], processes: int, *, judge: bool = False
) -> dict[Path, dict[str, Any]]:
    """Plan -> what became of it; ended or hung processes are started again for the rest."""
    for plan in plans:
        outcome_file(plan).unlink(missing_ok=True)
    left, found = list(plans), {}
    while left:
        log = left[0].with_suffix(".log")
        ended, here = _start(left, processes, log, judge=judge), left
        said = log.read_text("utf-8", errors="replace")
        left = [plan for plan in left if not outcome_file(plan).exists()]
        for plan in (plan for plan in here if plan not in left):
            found[plan] = json.loads(outcome_file(plan).read_text("utf-8"))
            found[plan]["said"], _, said = said.partition(f"{outcome_file(plan).name} ")
        if left:
            found[left[0]] = {"status": FAILED, "text": f"{ended}: {said[-TAIL:]}", "said": said}
            left = left[1:]
    return found


def _start(plans: Sequence[Path], processes: int, log: Path, *, judge: bool) -> str:
    """How processes ended that were to train the plans."""
    launcher = [
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
    ]  # fmt: skip
    command = [
        sys.executable, "-P", *(launcher if processes > 1 else []),
        "-m", "tests.distributed.train", *(["--judge"] if judge else []), *map(str, plans),
    ]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as file:
        started = subprocess.Popen(
            command, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    done, since = -1, time.monotonic()
    while started.poll() is None:
        time.sleep(0.1)
        count = sum(outcome_file(plan).exists() for plan in plans)
        if count > done:
            done, since = count, time.monotonic()
        if time.monotonic() - since > QUIET_S:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()
            return f"nothing happened for {QUIET_S:.0f} s"
    return f"exit code {started.returncode}"


def train_alone(plans: Sequence[Path], *, judge: bool = False) -> dict[Path, dict[str, Any]]:
    """The same by two processes that know nothing of each other, each with half of the plans."""
    with ThreadPoolExecutor(2) as pool:
        halves = pool.map(lambda half: train_plans(half, 1, judge=judge), (plans[::2], plans[1::2]))
        return {plan: one for found in halves for plan, one in found.items()}


# --------------------------------------------------------------------------- cells


def train_cells(folder: Path, cells: Iterable[Cell]) -> dict[Cell, Result]:
    """Train the cells, grouped by processes, those that resume last; compare and judge them."""
    found: dict[Cell, Result] = {}

    def order(cell: Cell) -> tuple[bool, int, str]:
        return cell.after is not None, cell.count, cell.strategy

    for (resumes, count, _), group in groupby(sorted(cells, key=order), order):
        plans = {write_plan(folder, cell): cell for cell in group}
        if resumes:
            for plan, cell in plans.items():
                half(cell.after.plan(folder).with_suffix(""), plan.with_suffix(""))
        outcomes = train_alone(list(plans)) if count == 1 else train_plans(list(plans), count)
        for plan, cell in plans.items():
            found[cell] = _result(cell, plan, outcomes[plan])
    shared = {
        cell.plan(folder): one
        for cell, one in found.items()
        if one.status == TRAINED and cell.count > 1
    }
    for plan, judged in train_alone(list(shared), judge=True).items():
        if judged["status"] != TRAINED:
            shared[plan].fail(f"judged: {judged['text']}")
    for result in found.values():
        other = found.get(result.cell.reference) if result.cell.reference else None
        if result.left is not None and other is not None and other.left is not None:
            try:
                result.apart = apart(other.left, result.left)
            except ValueError as error:
                result.fail(f"it left something else: {error}")
    return found


def half(run: Path, into: Path) -> None:
    """A copy of a finished run as it was behind its first checkpoint."""
    shutil.copytree(run, into)
    (stage,) = (into / "stages").iterdir()
    for path in stage.iterdir():
        if path.name == "checkpoints":
            shutil.rmtree(path / f"checkpoint-{LAST}")
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _result(cell: Cell, plan: Path, one: Mapping[str, Any]) -> Result:
    """What became of a cell; it failed if the model was not shared as the plan says."""
    result = Result(cell, one["status"], one["text"], one["said"], one.get("held", []))
    if result.status != TRAINED:
        return result
    try:
        result.left = left_by(plan.with_suffix(""))
    except (OSError, ValueError) as error:
        result.fail(f"it left nothing to compare: {error}")
        return result
    divided = result.left.launch["sharded_tensors"]
    whole = max(one.get("whole gradients", 0) for one in result.held)
    if (divided > 0) != (cell.strategy == FSDP):
        result.fail(f"{divided} tensors are divided")
    elif whole:
        result.fail(f"{whole} bytes of whole gradients are held behind a micro-batch")
    elif cell.begins_anew and ANEW not in result.said:
        result.fail("it does not say why it begins anew")
    elif cell.after and not cell.begins_anew and "resuming after step" not in result.said:
        result.fail("it does not resume from the checkpoint")
    return result


LOCATED = re.compile(r"(\S+\.yaml:\d+:\d+|launch\.\w+|stage \w+)")  # where in the plan


def wrong(results: Iterable[Result]) -> list[str]:
    """What may not be: failed plans, refusals without a place, numbers far from the reference's."""
    told = []
    for one in results:
        name = f"{one.cell.name}, {one.cell.world}"
        if one.status == FAILED:
            told.append(f"{name}: {one.text}")
        elif one.status == REFUSED and not LOCATED.match(one.text):
            told.append(f"{name}: refused without a place: {one.text}")
        if one.far is not None and not one.far <= one.cell.limit:
            told.append(f"{name}: {one.far}, and at most {one.cell.limit} is allowed")
    return told


LARGE, LAYERS = "large", 8
SIZE = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": LAYERS}
SIZE_OF_EXPERTS = {"moe_intermediate_size": 768, "num_experts": 16}
MOST = 0.1  # of the estimate that may be wrong
OTHERS = 0.5  # of the base that the others may hold beyond their parts: buffers, and gaps in malloc
WHAT = {
    **{part: part for part in ("weights", "gradients", "optimizer", "reference")},
    "after": "written after loading",
    "loading": "more while loading: the first",
    "others": "the others (at most)",
}


@dataclass(frozen=True)
class Measured:
    """A cell with bytes of the process that holds most, and those of the estimate, by part (WHAT)."""

    cell: Cell
    found: Mapping[str, int]
    said: Mapping[str, int]

    @property
    def name(self) -> str:
        """What is trained, and by how many micro-batches a step."""
        return f"{self.cell.name}, {self.cell.keys['grad_accum']}"

    def faults(self) -> list[str]:
        """Where the estimate is not what was measured."""
        return [
            f"{self.name}, {self.cell.world}, {part}: {found:,} bytes, and {said:,} are estimated"
            for part, said in self.said.items()
            if (found := self.found[part]) > (1 + MOST) * said
            or (found < (1 - MOST) * said and part != "others")
        ]


def memory_cells(processes: int) -> list[Cell]:
    """What is measured with so many processes."""
    keys = {"model": LARGE, **HALF, "max_steps": 2, "micro_batch_size": 1}
    trained = (("sft", "full", 1), ("sft", "full", 2), ("dpo", "full", 1), ("sft", "lora", 1))
    return [
        Cell(
            FSDP, update, objective, precision, processes=processes, keys={**keys, "grad_accum": n}
        )
        for objective, update, n in trained
        for precision in PRECISIONS
    ]


def save_large(folder: Path, like: str = MODEL) -> None:
    """The tiny model's tokenizer with a model that is large beside what a process needs anyway."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree(folder / like, folder / LARGE)
    config = AutoConfig.from_pretrained(folder / like)
    config.update(SIZE if like == MODEL else SIZE | SIZE_OF_EXPERTS)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder / LARGE)


def measure(folder: Path, cells: Iterable[Cell]) -> list[Measured]:
    """Train the cells and look at their processes. Raises RuntimeError if one fails."""
    save_large(folder)
    measured = []
    for count, group in groupby(cells, lambda cell: cell.count):
        mine = {write_plan(folder, cell): cell for cell in group}
        # The first trainings import what all need: their pages are looked at by nobody.
        first = {write_plan(folder, replace(one, keys={}, precision=PURE)) for one in mine.values()}
        outcomes = train_plans([*first, *mine], count)
        for plan, cell in mine.items():
            if outcomes[plan]["status"] != TRAINED:
                raise RuntimeError(outcomes[plan]["text"])
            held = outcomes[plan]["held"]
            more = [one["written"] - one["weights"] - one["reference"] for one in held]
            most = {name: max(one[name] for one in held) for name in held[0]}
            most |= {"loading": max(more[0], held[0]["mapped"]), "others": max(more[1:])}
            measured.append(Measured(cell, most, estimated(folder, plan)))
    return measured


def run_on_gpus(folder: Path, plan: Path) -> Run:
    """The plan for the estimate, as if its processes had a GPU each."""
    told = yaml.safe_load(plan.read_text("utf-8"))
    (stage,), gpus = told["stages"], told["launch"]["processes"]
    spec = {key: stage[key] for key in SPEC.keys if key in stage}
    shape, _ = model_shape(str(folder / told["model"]))
    return run_of_spec({**spec, "gpus": gpus, "sharding": FSDP}, shape)


def estimated(folder: Path, plan: Path) -> dict[str, int]:
    """What the estimate says of a plan, by part."""
    run = run_on_gpus(folder, plan)
    kept = static.earlier_gradients(run) or static.gradients(run)
    parts = {
        "weights": static.weights(run), "gradients": kept, "reference": static.other_roles(run),
        "optimizer": [static.optimizer_states(run)],
    }  # fmt: skip
    found = {name: sum(term.size_bytes for term in terms) for name, terms in parts.items()}
    host = {one.name: one.size_bytes for one in static.host_moments(run)}
    found |= {"after": found["weights"] + found["reference"], "loading": host["loading"]}
    return {**found, "others": round(OTHERS * host["loading"])}


def section(measured: list[Measured]) -> str:
    """The part about memory of docs/scale.md."""
    cells: dict[str, list[list[str]]] = {}
    for one in measured:
        told = (f"{one.found[part] / 1e6:.1f} ({one.said[part] / 1e6:.1f})" for part in WHAT)
        cells.setdefault(one.name, []).append([str(one.cell.count), *told])
    rows = [[name, *map("; ".join, zip(*told, strict=True))] for name, told in cells.items()]
    params = measured[0].said["weights"] * measured[0].cell.count / 2e6
    header = ["trained, micro-batches a step", "processes", *WHAT.values()]
    about = f"A model of {params:.0f} million weights; both may differ by {MOST:.0%}.\n"
    return f"{about}\n{table(header, rows)}"
