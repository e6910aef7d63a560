"""Every strategy with every update and objective; `python -m tests.distributed` writes the tables."""

import pytest

pytest.importorskip("trl")

from tests.distributed.cells import all_cells, fill
from tests.distributed.train import REFUSED, TRAINED
from tests.distributed.trained import wrong
from tests.distributed.whole import train_settings, train_table, wrong_worlds
from tests.distributed.worlds import RESUMES, UPDATES, WORLDS, train_worlds

pytestmark = [pytest.mark.long, pytest.mark.train]


@pytest.fixture
def folder(tmp_path):
    """Models and rows."""
    fill(tmp_path)
    return tmp_path


def test_every_cell_is_trained_or_refused(folder):
    """Each pair of update and objective trains in one process, and shared by two as ddp and as fsdp,
    with the same losses and weights; or the plan is refused at its place.
    """
    found = train_table(folder)
    assert len(found) == len(list(all_cells())) == 546
    assert wrong(found.values()) == []
    assert {one.status for one in found.values()} == {TRAINED, REFUSED}


def test_settings_come_to_the_same(folder):
    """Optimizers, precision, packing, mixtures of experts and the rest: shared as in one process."""
    assert wrong(train_settings(folder).values()) == []


def test_the_same_training_on_any_number_of_processes(folder):
    """One, two and four processes, and runs that go on from a checkpoint of another number; between
    ddp and fsdp they begin anew and say why.
    """
    found = train_worlds(folder)
    assert len(found) == (len(WORLDS) + len(RESUMES)) * len(UPDATES)
    assert wrong_worlds(found) == []
