"""Anybody's files are read within limits; ours follow nobody's link and are not open to all."""

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest

from advisor.ground.errors import InputError
from advisor.ground.files import (
    TEMPORARY,
    Disk,
    bytes_of,
    restrict_umask,
    text_of,
    write_atomically,
)
from advisor.ground.resources import install_line
from tests.conftest import PAIRS, ROOT
from tests.fake_model import write_fake_model

CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 256,
}  # fmt: skip


def test_a_regular_file_is_read(tmp_path):
    """As `Path.read_text` does, line ends included; a link to one counts as the file."""
    path = tmp_path / "a"
    path.write_bytes("é\r\nb\rc\n".encode())
    (tmp_path / "link").symlink_to(path)
    for one in (path, tmp_path / "link"):
        assert text_of(one) == path.read_text("utf-8")
        assert bytes_of(one, most_bytes=8) == path.read_bytes()


def endless(path, kind):
    """A file that never ends."""
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", ["pipe", "device", "large"])
def test_what_never_ends_is_refused(tmp_path, kind):
    """Under both names: an input that is wrong, and a file that cannot be read."""
    path = tmp_path / "a"
    endless(path, kind) if kind != "large" else path.write_bytes(b"1234")
    for error in (InputError, OSError):
        with pytest.raises(error) as caught:
            bytes_of(path, most_bytes=3)
        expected = "is larger than 0 MiB" if kind == "large" else "is not a regular file"
        assert caught.value.strerror == expected
        assert f"{path}: {expected}" in caught.value.text()
    with pytest.raises(IsADirectoryError):  # as where a folder is opened
        bytes_of(tmp_path)


BOTH = """
import sys
from advisor.cli import main
for name in sys.argv[1:]:
    for line in ("--json --task qa --gpu none", "check train.jsonl"):
        sys.argv = ["advise", *line.split(), "--model", f"./{name}"]
        try:
            main()
        except SystemExit as left:
            print("ended", name, left.code, file=sys.stderr)
"""
LIMITED = ("bash", "-c", 'ulimit -v 3000000; exec "$@"', "-")  # KiB
FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
         "generation_config.json", "README.md", "special_tokens_map.json")  # fmt: skip


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_model_folder_with_an_endless_file_ends(tmp_path, kind):
    """An answer and a check end, with 0 or 2, and never take more than some memory."""
    for name in FILES:
        path = tmp_path / f"with {name}" / name
        write_fake_model(path.parent, CONFIG)
        path.unlink(missing_ok=True)
        endless(path, kind)
    (tmp_path / "train.jsonl").write_text(PAIRS)
    done = subprocess.run(
        [*LIMITED, sys.executable, "-c", BOTH, *(f"with {name}" for name in FILES)],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    ended = re.findall(r"(?m)^ended with (\S+) ([02])$", done.stderr)
    assert [name for name, _ in ended] == [name for name in FILES for _ in "ab"], done.stderr
    assert ended[0] == ("config.json", "2")


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
    assert (victim.read_text(), (tmp_path / "run.json").read_text()) == ("mine", "new")
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


def test_the_names_of_new_folders_are_synced(tmp_path):
    """Each in the folder above it, so that a power loss takes none; nothing of one that is there."""
    disk, synced = Disk(), []
    disk.sync = synced.append
    for folder in (tmp_path / "a" / "b", tmp_path / "a"):
        disk.make_folder(folder)
    assert synced == [tmp_path, tmp_path / "a"]


@posix
def test_every_command_keeps_others_out(call, umask, tmp_path):
    """`advise` sets it before it writes anything: here the launch file."""
    umask(0)
    (tmp_path / "d.jsonl").write_text(PAIRS)
    arguments = ("--task", "qa", "--gpu", "none", "--budget", "low", "--data", "d.jsonl")
    code, _, err = call(*arguments, "--json", "--model", "Qwen/Qwen3-0.6B", "--plan", "p.yaml")
    assert code == 0, err
    assert (tmp_path / "p.yaml").stat().st_mode & 0o777 == 0o664


@pytest.mark.parametrize(
    ("extra", "found", "inside", "line"),
    [
        # Quoted where the shell needs it, -e where it was so, `.` where one stands in it.
        ("train", {"url": "FOLDER", "dir_info": {}}, "", "pip install 'FOLDER[train]'"),
        ("gpu", {"url": "FOLDER", "dir_info": {"editable": True}}, "", "pip install -e 'FOLDER[gpu]'"),
        ("train", {"url": "FOLDER", "dir_info": {}}, ".", "pip install '.[train]'"),
        # pip does not reach into the environment of a uv tool.
        ("train", {"url": "FOLDER", "dir_info": {}}, "uv-receipt.toml",
         "uv tool install --force 'FOLDER[train]'"),
        ("train", {"url": "https://example.org/a.git", "vcs_info": {"vcs": "git"}}, "",
         "pip install 'finetune-advisor[train] @ git+https://example.org/a.git'"),
        # A wheel that is gone is no source; what has none is a checkout or came from an index.
        *(("train", found, "", "pip install 'finetune-advisor[train]'")
          for found in (None, {}, [], {"url": "file:///gone/a-1.whl"})),
    ],
)  # fmt: skip
def test_the_line_is_true(monkeypatch, tmp_path, extra, found, inside, line):
    """For the way that the installer wrote down, and for the folder of the environment."""
    folder = tmp_path / "the advisor"
    folder.mkdir()
    text = json.dumps(found).replace("FOLDER", folder.as_uri())
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    copy = SimpleNamespace(read_text=lambda name: None if found is None else text)
    monkeypatch.setattr(metadata, "distribution", lambda name: copy)
    monkeypatch.setattr("advisor.ground.resources.resource_root", lambda: None)
    if inside == ".":
        monkeypatch.chdir(folder)
    elif inside:
        (tmp_path / inside).touch()
    assert install_line(extra) == line.replace("FOLDER", str(folder))
