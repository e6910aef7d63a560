"""Processes that share a training come to the same as one, and hold what is estimated."""

import math
from dataclasses import replace

import pytest

pytest.importorskip("trl")

from advisor.estimate.memory import static
from tests.distributed.cells import FSDP, MIXED, ONE, PRECISIONS, PURE, WORLD, Cell, write_plan
from tests.distributed.models import MIXTURE, MODEL, fill
from tests.distributed.results import (
    LARGE,
    LAYERS,
    measure,
    memory_cells,
    run_on_gpus,
    save_large,
    train_cells,
    train_plans,
    wrong,
)
from tests.distributed.train import TRAINED

pytestmark = pytest.mark.train
TRAINED_FOR = (("sft", "full"), ("sft", "lora"), ("sft", "lora, nf4"), ("dpo", "full"))


@pytest.mark.smoke
def test_both_precisions_come_to_the_same_as_in_one_process(tmp_path):
    """No process holds whole gradients after a micro-batch; an unchanged policy has loss ln 2; a
    divided run that stopped goes on with its weights and moments.
    """
    fill(tmp_path)
    cells = [
        Cell(strategy, update, objective, precision)
        for strategy in (ONE, FSDP)
        for objective, update in TRAINED_FOR
        for precision in PRECISIONS
    ]
    one, divided = (Cell(strategy, "full", setting=WORLD) for strategy in (ONE, FSDP))
    cells += [one, divided, replace(divided, after=divided)]
    found = train_cells(tmp_path, cells)
    assert (wrong(found.values()), {one.status for one in found.values()}) == ([], {TRAINED})
    first = [found[cell].left.losses[0] for cell in cells if cell.objective == "dpo"]
    assert first == [pytest.approx(math.log(2), abs=1e-6)] * 4


@pytest.mark.slow
def test_processes_hold_what_is_estimated(tmp_path):
    """A reference is gathered by block as the model is; one process reads the base for both."""
    fill(tmp_path)
    cells = [cell for cell in memory_cells(2) if (cell.objective, cell.precision) == ("dpo", MIXED)]
    (one,) = measure(tmp_path, cells)
    assert (one.faults(), one.found["reference units"]) == ([], LAYERS + 1)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("like", [MODEL, MIXTURE])
def test_a_4_bit_base_is_divided_while_it_loads(like, processes, tmp_path):
    """A process holds a part of each packed matrix, of a mixture some of each layer's experts,
    before and after the model is divided."""
    fill(tmp_path)
    save_large(tmp_path, like)
    keys = {"model": LARGE, "max_steps": 1, "micro_batch_size": 1}
    cell = Cell(FSDP, "lora, nf4", precision=PURE, processes=processes, keys=keys)
    plan = write_plan(tmp_path, cell)
    outcome = train_plans([plan], processes)[plan]
    assert outcome["status"] == TRAINED, outcome["text"]
    run = run_on_gpus(tmp_path, plan)
    *kept, matrix = static.base_while_loading(run)
    parts = sum(term.size_bytes for term in kept)
    packed_matrix = matrix.size_bytes / (
        5 if like == MODEL else 10
    )  # of its 2.5 or 5 bytes a weight
    on_the_host = run.weight_bytes * run.dims.embedding_params * (1 - 1 / processes)
    for one in outcome["held"]:
        assert one["loaded"] == pytest.approx(parts + packed_matrix + on_the_host, rel=0.03)
        assert one["weights"] < parts < run.quantisable / 2
