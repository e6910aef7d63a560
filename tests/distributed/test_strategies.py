"""Every strategy with every update and objective; `python -m tests.distributed` writes the tables."""

import pytest

pytest.importorskip("trl")

from tests.distributed.cells import setting_cells, table_cells, world_cells
from tests.distributed.models import fill
from tests.distributed.results import train_cells, wrong
from tests.distributed.train import REFUSED, TRAINED

pytestmark = [pytest.mark.long, pytest.mark.train]


def test_every_cell_is_trained_or_refused(tmp_path):
    """Each pair of update and objective trains in one process, and shared by two as ddp and as fsdp,
    with the same losses and weights; or the plan is refused at its place. So do settings of a stage,
    and one, two and four processes, also from a checkpoint of another number; between ddp and fsdp
    they begin anew and say why.
    """
    fill(tmp_path)
    found = train_cells(tmp_path, [*table_cells(), *setting_cells(), *world_cells()])
    assert len(found) == 546 + 180 + 30
    assert wrong(found.values()) == []
    assert {one.status for one in found.values()} == {TRAINED, REFUSED}
