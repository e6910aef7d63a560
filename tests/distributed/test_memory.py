"""What each process of a divided stage holds is what the estimate says of a GPU."""

import pytest

pytest.importorskip("trl")

from tests.distributed.cells import MIXED
from tests.distributed.memory import LAYERS, measure, memory_cells
from tests.distributed.models import fill

pytestmark = [pytest.mark.slow, pytest.mark.train]


def test_processes_hold_what_is_estimated(tmp_path):
    """Two processes that train all weights under mixed precision beside a reference: its parts are
    gathered block by block as the model's are, and one process reads the base for both.
    """
    fill(tmp_path)
    cells = [cell for cell in memory_cells(2) if (cell.objective, cell.precision) == ("dpo", MIXED)]
    (one,) = measure(tmp_path, cells)
    assert one.faults() == []
    assert one.found["reference units"] == LAYERS + 1
