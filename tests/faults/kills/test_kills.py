"""A few real kills and damages; `python -m tests.faults` does many (docs/reliability.md)."""

import signal
import sys

import pytest

pytest.importorskip("trl")
if sys.platform != "linux":
    pytest.skip("watches folders with inotify", allow_module_level=True)

from tests.faults.kills import damage
from tests.faults.kills.kill import (
    BOTH,
    GROUPS,
    MOMENTS,
    PARENT,
    SAVING,
    STEP,
    Kill,
    Moment,
    survive,
)
from tests.faults.kills.scenes import fill, make_scene

pytestmark = [pytest.mark.smoke, pytest.mark.train]


@pytest.fixture
def project(tmp_path):
    """A folder with a tiny model, data and a plan for each objective."""
    fill(tmp_path / "project")
    return tmp_path / "project"


def test_a_run_killed_in_a_save_and_stopped_in_a_step_ends_the_same(project, tmp_path):
    """SIGKILL while the second checkpoint is written, then SIGTERM: exit code 130 and `stopped`; the
    last call ends with the same bytes. So it does where the newest checkpoint is torn and the folder
    has moved.
    """
    scene = make_scene(project, "sft")
    saves = [at for at, path in enumerate(scene.events) if "checkpoint-4" in path]
    before = sum("/checkpoints/" in path for path in scene.events[: saves[0]])
    kills = [
        Kill(signal.SIGKILL, BOTH, Moment("", MOMENTS[SAVING][0], nth=before + len(saves) // 3)),
        Kill(signal.SIGTERM, PARENT, Moment("", MOMENTS[STEP][0], nth=3)),
    ]
    assert [row.wrong for row in survive(scene, "killed", kills)] == [[], []]
    damage.stop_after(scene, damage.STOPPED, 6)

    def tear_and_move(folder, run):
        damage.tear("adapter_model.safetensors", "with one bit turned")(folder, run)
        return damage.move(folder, run)

    assert (
        damage.newest_checkpoint(project / damage.STOPPED) / "adapter_model.safetensors"
    ).exists()
    torn = damage.Damage("torn and moved", "", tear_and_move)
    assert damage.try_damage(scene, torn, tmp_path / "other").wrong == []


def test_ppo_resumes_from_its_own_checkpoint(project):
    """SIGKILL of all processes behind the first checkpoint of PPO."""
    scene = make_scene(project, "ppo")
    kill = Kill(signal.SIGKILL, GROUPS, Moment("", MOMENTS[STEP][0], nth=6))
    (row,) = survive(scene, "killed", [kill])
    assert row.wrong == []
    assert row.lost_steps < 6
