"""Training on several machines by torch itself: two that meet on the loopback."""

import hashlib
import shutil

import pytest

from tests.launch.conftest import wait_for
from tests.launch.test_machines import Machines, codes
from tests.launch.test_real import shop as real_shop  # noqa: F401

pytest.importorskip("torch")
ONE, TWO = "launch: {device: cpu, processes: 2}\n", "launch: {device: cpu, nodes: 2}\n"
REAL = {"hardware": None, "judge": False}


@pytest.fixture
def machines(real_shop):  # noqa: F811
    """Two machines of a plan for the tiny model, with real trainers."""
    plan = (real_shop / "plan.yaml").read_text()
    plan = plan.replace("max_steps: 12", "max_steps: 120").replace("steps: 2", "steps: 10")
    (real_shop / "one.yaml").write_text(plan + ONE)
    (real_shop / "plan.yaml").write_text(plan + TWO)
    made = Machines(real_shop, trainers=None)
    yield made
    for process in made.started:
        process.kill()
        process.wait()


def weights(machines, folder):
    file = machines.folder / folder / "stages" / "sft" / "adapter_model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.long
def test_two_machines_train_what_two_processes_of_one_do(machines):
    """Bit for bit; also if the run was stopped, or lost a machine, and was resumed."""
    alone = machines.start(0, plan="one.yaml", output="alone", environ={"NNODES": ""}, **REAL)
    assert codes(alone) == [0], machines.said(0)
    assert codes(*machines.both(**REAL)) == [0, 0]
    assert weights(machines, "out") == weights(machines, "alone")
    shutil.rmtree(machines.folder / "out")
    for victim in (1, 0):
        before = machines.checkpoints()
        both = machines.both(**REAL)
        wait_for(lambda before=before: machines.checkpoints() - before, seconds=400)
        both[victim].kill()
        assert codes(both[1 - victim]) == [75]
    assert codes(*machines.both(**REAL)) == [0, 0]
    assert weights(machines, "out") == weights(machines, "alone")
