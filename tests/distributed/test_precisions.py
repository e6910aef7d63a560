"""One model held by two processes trains as in one process, whatever precision the plan says."""

import math

import pytest

pytest.importorskip("trl")

from tests.distributed.cells import FSDP, ONE, PRECISIONS, Cell
from tests.distributed.models import fill
from tests.distributed.results import train_cells, wrong
from tests.distributed.train import TRAINED

pytestmark = [pytest.mark.slow, pytest.mark.train]
TRAINED_FOR = (("sft", "full"), ("sft", "lora"), ("sft", "lora, nf4"), ("dpo", "full"))


def test_both_precisions_come_to_the_same_as_in_one_process(tmp_path):
    """Losses and weights of four trainings are those of one process, the saved results are the
    trained models, no process holds whole gradients behind a micro-batch, and a policy that is
    still its reference has the loss ln 2.
    """
    fill(tmp_path)
    cells = [
        Cell(strategy, update, objective, precision)
        for strategy in (ONE, FSDP)
        for objective, update in TRAINED_FOR
        for precision in PRECISIONS
    ]
    found = train_cells(tmp_path, cells)
    assert wrong(found.values()) == []
    assert {one.status for one in found.values()} == {TRAINED}
    first = [found[cell].left.losses[0] for cell in cells if cell.objective == "dpo"]
    assert first == [pytest.approx(math.log(2), abs=1e-6)] * 4
