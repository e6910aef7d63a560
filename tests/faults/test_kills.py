"""A few real kills and damages; `python -m tests.faults` does many (docs/reliability.md)."""

import signal
import sys

import pytest

pytest.importorskip("trl")
if sys.platform != "linux":
    pytest.skip("looks at processes as Linux shows them", allow_module_level=True)

from tests.faults import kills
from tests.faults.kills import BOTH, PARENT, RESUMES, SAVING, STOPPED, TRAINER, TRAINING, Kill

pytestmark = [pytest.mark.smoke, pytest.mark.train]


@pytest.fixture
def project(tmp_path):
    """A folder with tiny models, data and the plans."""
    kills.fill(tmp_path / "project")
    return tmp_path / "project"


def test_a_run_killed_in_a_save_and_stopped_in_a_step_ends_the_same(project, tmp_path):
    """The bytes are the same also where the newest checkpoint is torn and the folder has moved."""
    scene = kills.make_scene(project, "sft")
    struck = [
        Kill(signal.SIGKILL, BOTH, SAVING, nth=2),
        Kill(signal.SIGTERM, PARENT, TRAINING),
        Kill(signal.SIGHUP, TRAINER, kills.LOADING),
    ]
    rows = kills.survive(scene, "killed", struck)
    assert [row.wrong for row in rows] == [[]] * 3
    kills.stop_after(scene, STOPPED, 6)

    def tear_and_move(folder, run):
        kills.flip(kills.newest_checkpoint(run) / "adapter_model.safetensors")
        return folder.rename(f"{folder}-moved")

    assert kills.try_damage(scene, ("torn", tear_and_move, RESUMES), tmp_path / "other").wrong == []


def test_a_divided_4_bit_base_ends_the_same(project):
    """One of two killed while they load, both stopped in a step, all killed behind the last step."""
    struck = [
        Kill(signal.SIGKILL, kills.WORKER, kills.LOADING),
        Kill(signal.SIGTERM, PARENT, TRAINING, share=0),
        Kill(signal.SIGKILL, BOTH, kills.LOADING, nth=2, share=0),  # by who judges
    ]
    rows = kills.survive(kills.make_scene(project, "fsdp, nf4"), "killed", struck)
    assert [row.wrong for row in rows] == [[]] * 3


def test_ppo_resumes_from_its_own_checkpoint(project):
    """SIGKILL of all processes behind the first checkpoint of PPO."""
    scene = kills.make_scene(project, "ppo")
    (row,) = kills.survive(scene, "killed", [Kill(signal.SIGKILL, kills.GROUPS, SAVING, nth=3)])
    assert row.wrong == []
    assert row.lost_steps < 6
