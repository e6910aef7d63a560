"""Memory of divided stages by tensors, and pages while the base loads, beside the estimate."""

import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import yaml

from advisor.estimate.memory import static
from advisor.estimate.spec import SPEC, run_of_spec
from advisor.situation.models import model_shape
from tests.distributed.cells import FSDP, HALF, PRECISIONS, PURE, Cell, write_plan
from tests.distributed.models import MODEL
from tests.distributed.results import train_plans
from tests.distributed.train import TRAINED
from tests.faults.table import table

LARGE, LAYERS = "large", 8
SIZE = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": LAYERS}
MOST = 0.1  # of the estimate that may be wrong
OTHERS = 0.5  # of the base that the others may hold beyond their parts: buffers, and gaps in malloc
WHAT = {
    **{part: part for part in ("weights", "gradients", "optimizer", "reference")},
    "after": "written after loading",
    "loading": "more while loading: the first",
    "others": "the others (at most)",
}
TITLE = "## Memory of divided stages\n"
HEAD = f"""\
{TITLE}
A random model of {{params:.0f}} million weights in bfloat16, divided by `fsdp` among processes on the
CPU. Each number is what the process that holds most has, in MB, and in brackets what the
[estimate](estimate.md) says of a GPU with the same settings; they may differ by {MOST:.0%}. Weights,
gradients behind the first micro-batch, states and reference are counted from the tensors of each
process. Pages are counted by the kernel. After loading, those that were written (anonymous ones) are
the parts of weights and reference, which a GPU would hold. While it loads, the first process has
the whole base besides: in pages of its file, which the kernel can take back (`pure`, modules), or
written in float32 (all weights under `mixed`). The others have the buffers that weights come in, and
what malloc keeps of these. `python -m tests.distributed --memory --write docs/strategies.md`
measures it.
"""


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


def measure(folder: Path, cells: Iterable[Cell]) -> list[Measured]:
    """Train the cells and look at their processes. Raises RuntimeError if one fails."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    # The tiny model's tokenizer with a model that is large beside what a process needs anyway.
    shutil.copytree(folder / MODEL, folder / LARGE)
    config = AutoConfig.from_pretrained(folder / MODEL)
    config.update(SIZE)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder / LARGE)
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


def estimated(folder: Path, plan: Path) -> dict[str, int]:
    """What the estimate says of a plan, as if its processes had a GPU each."""
    told = yaml.safe_load(plan.read_text("utf-8"))
    (stage,), gpus = told["stages"], told["launch"]["processes"]
    spec = {key: stage[key] for key in SPEC.keys if key in stage}
    shape, _ = model_shape(str(folder / told["model"]))
    run = run_of_spec({**spec, "gpus": gpus, "sharding": FSDP}, shape)
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
    """The part of docs/strategies.md."""
    rows = [
        [one.name, str(one.cell.count)]
        + [f"{one.found[part] / 1e6:.1f} ({one.said[part] / 1e6:.1f})" for part in WHAT]
        for one in measured
    ]
    params = measured[0].said["weights"] * measured[0].cell.count / 2e6
    header = ["trained, micro-batches a step", "processes", *WHAT.values()]
    return f"{HEAD.format(params=params)}\n{table(header, rows)}\n"


def in_page(text: str, written: str) -> str:
    """The page with this section in place of its own."""
    rest = re.sub(rf"{TITLE}.*?(?=^## )", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"(?=^## Why)", lambda _: written, rest, count=1, flags=re.MULTILINE)
