"""Files of our own: never written through somebody else's link, never open to everybody."""

import os

import pytest

from advisor.ground.files import TEMPORARY, restrict_umask, write_atomically
from tests.conftest import PAIRS

posix = pytest.mark.skipif(os.name != "posix", reason="modes and links of POSIX")


@pytest.fixture
def umask():
    """Sets the umask of this process, and puts the old one back."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@posix
def test_a_link_under_a_temporary_name_is_not_followed(tmp_path):
    """Whoever guesses the name cannot let a run overwrite another file."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / f"{TEMPORARY}{os.getpid()}-run.json").symlink_to(victim)
    write_atomically(tmp_path / "run.json", "new")
    assert victim.read_text() == "mine"
    assert (tmp_path / "run.json").read_text() == "new"
    assert not (tmp_path / "run.json").is_symlink()


@posix
@pytest.mark.parametrize(
    ("given", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600), (0o000, 0o664)]
)
def test_the_umask_holds_and_nothing_is_open_to_everybody(umask, tmp_path, given, mode):
    """The umask decides, but no file may be written by everybody, in children neither."""
    umask(given)
    restrict_umask()
    write_atomically(tmp_path / "run.json", "{}")
    assert (tmp_path / "run.json").stat().st_mode & 0o777 == mode


@posix
def test_every_command_keeps_others_out(call, umask, tmp_path):
    """`advise` sets it before it writes anything: here the launch file."""
    umask(0)
    (tmp_path / "d.jsonl").write_text(PAIRS)
    arguments = ("--task", "qa", "--gpu", "none", "--budget", "low", "--data", "d.jsonl")
    code, _, err = call(*arguments, "--json", "--model", "Qwen/Qwen3-0.6B", "--plan", "p.yaml")
    assert code == 0, err
    assert (tmp_path / "p.yaml").stat().st_mode & 0o777 == 0o664
