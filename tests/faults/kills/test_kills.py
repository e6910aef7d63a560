"""A few real kills and damages; `python -m tests.faults` does many (docs/reliability.md)."""

import signal
import sys

import pytest

pytest.importorskip("trl")
if sys.platform != "linux":
    pytest.skip("watches folders with inotify", allow_module_level=True)

from tests.faults.kills import harm
from tests.faults.kills.scenes import fill, make_scene

pytestmark = [pytest.mark.smoke, pytest.mark.train]


def kill(number, target, moment, nth):
    return harm.Kill(number, target, harm.Moment("", harm.MOMENTS[moment][0], nth=nth))


@pytest.fixture
def project(tmp_path):
    """A folder with a tiny model, data and a plan for each objective."""
    fill(tmp_path / "project")
    return tmp_path / "project"


def test_a_run_killed_in_a_save_and_stopped_in_a_step_ends_the_same(project, tmp_path):
    """The bytes are the same also where the newest checkpoint is torn and the folder has moved."""
    scene = make_scene(project, "sft")
    saves = [at for at, path in enumerate(scene.events) if "checkpoint-4" in path]
    before = sum("/checkpoints/" in path for path in scene.events[: saves[0]])
    kills = [
        kill(signal.SIGKILL, harm.BOTH, harm.SAVING, before + len(saves) // 3),
        kill(signal.SIGTERM, harm.PARENT, harm.STEP, 3),
    ]
    assert [row.wrong for row in harm.survive(scene, "killed", kills)] == [[], []]
    harm.stop_after(scene, harm.STOPPED, 6)

    def tear_and_move(folder, run):
        harm.tear("adapter_model.safetensors", "with one bit turned")(folder, run)
        return harm.move(folder, run)

    assert (harm.newest_checkpoint(project / harm.STOPPED) / "adapter_model.safetensors").exists()
    torn = harm.Damage("torn and moved", "", tear_and_move)
    assert harm.try_damage(scene, torn, tmp_path / "other").wrong == []


def test_ppo_resumes_from_its_own_checkpoint(project):
    """SIGKILL of all processes behind the first checkpoint of PPO."""
    scene = make_scene(project, "ppo")
    kills = [kill(signal.SIGKILL, harm.GROUPS, harm.STEP, 6)]
    (row,) = harm.survive(scene, "killed", kills)
    assert row.wrong == []
    assert row.lost_steps < 6
