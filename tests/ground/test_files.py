"""Anybody's files are read within limits, ours follow nobody's link and are not open to all; and shipped files
from the cache are as parsed."""

import errno
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest
from msgspec.json import encode

from advisor.ground import yaml_files as yamlcache
from advisor.ground.errors import InputError
from advisor.ground.files import (
    TEMPORARY,
    Disk,
    bytes_of,
    refused_by_system,
    restrict_umask,
    text_of,
    write_atomically,
)
from advisor.ground.resources import install_line, rules_dir
from advisor.ground.shape import Integer, Keys
from advisor.ground.yaml_files import read_shipped, read_yaml
from advisor.ruleset.load import load_rules
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
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
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


TABLES = rules_dir() / "tables.yaml"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setattr(yamlcache, "_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def kept(folder):
    """The file in which a shipped file is kept, after it was read once."""
    read_shipped(TABLES)
    (found,) = folder.glob("*.json")
    return found


def test_a_second_reading_is_the_first_and_the_parser_s(kept):
    """Data, positions of keys and values, and the nearest place of a path that has none."""
    parsed, second = read_yaml(TABLES, name="rules/tables.yaml"), read_shipped(TABLES)
    assert second.data == parsed.data
    for place in (*parsed.positions[1], ("tables", "nowhere", 3)):
        assert second.at(place) == parsed.at(place)
        assert second.at(place, key=True) == parsed.at(place, key=True)
    assert second.positions == parsed.positions


def test_a_kept_rule_set_is_the_one_that_was_read(folder):
    """Every value of it, whole numbers and fractions told apart, and the places of its rules."""
    read, kept = load_rules.__wrapped__(), load_rules.__wrapped__()
    assert read.rules["rank"][0] is not kept.rules["rank"][0]
    first, second = (
        encode(one, enc_hook=lambda at: at.name, order="deterministic") for one in (read, kept)
    )
    assert first == second
    places = [[rule.at for rule in one.rules["rank"]] for one in (read, kept)]
    assert (places[0], all(places[0])) == (places[1], True)


@pytest.mark.parametrize("content", ["", "not json", "[]\n{}", "[]\n{}\n[", "[\n{}\n{}"])
def test_a_broken_cache_is_read_past(kept, content):
    """Whatever stands there, the file is parsed again."""
    kept.write_text(content)
    assert read_shipped(TABLES).data == json.loads(kept.read_text()) == read_yaml(TABLES).data


def test_a_changed_file_is_never_taken_from_the_cache(folder, tmp_path, monkeypatch):
    """A kept file's name follows from its bytes; where nothing can be kept all is read."""
    file = tmp_path / "a.yaml"
    for number in (1, 2):
        file.write_text(f"a: {number}\n")
        assert read_shipped(file, root=tmp_path).data == {"a": number}
    monkeypatch.setattr(yamlcache, "_folder", lambda: file / "below")
    assert read_shipped(TABLES).data["version"] == 1


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="files have no owner here")
@pytest.mark.parametrize("how", ["another user's", "open to others", "a link"])
def test_what_another_user_could_have_written_is_not_read(kept, monkeypatch, tmp_path, how):
    """The rules of a forged cache are ignored, and what is kept is for this user's eyes."""
    assert (kept.stat().st_mode & 0o777, kept.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    forged = '{"forged":1}'
    kept.write_text(forged)
    assert read_shipped(TABLES).data == {"forged": 1}, "the case is what it seems"
    if how == "open to others":
        kept.chmod(0o602)
    elif how == "a link":
        kept.rename(tmp_path / "forged")
        kept.symlink_to(tmp_path / "forged")
    else:
        owner = os.getuid() + 1
        monkeypatch.setattr(os, "getuid", lambda: owner)
    assert read_shipped(TABLES).data == read_yaml(TABLES).data
    if how == "a link":
        assert ((tmp_path / "forged").read_text(), kept.is_symlink()) == (forged, False)


def test_what_was_found_to_have_its_shape_is_not_checked_again(folder, tmp_path, monkeypatch):
    """A faulty file is never kept as checked, and other code checks anew."""
    file = tmp_path / "a.yaml"

    def read(key="a"):
        return read_shipped(file, root=tmp_path, shape=Keys(keys={key: Integer()}))

    file.write_text("a: text\n")
    for _ in range(2):
        with pytest.raises(InputError, match=r"a\.yaml:1:4"):
            read()
    file.write_text("a: 1\n")
    assert not read_shipped(file, root=tmp_path).checked, "kept, but nobody checked it"
    assert read().checked
    assert read("b").checked, "one shape for each file"
    monkeypatch.setattr(yamlcache, "_code", lambda: b"of another version")
    with pytest.raises(InputError, match="unknown key 'a'"):
        read("b")


@pytest.mark.parametrize(
    ("number", "told"),
    [(errno.EROFS, "the disk is for reading alone"), (errno.EACCES, "no permission to write here")],
)
def test_what_cannot_be_written_is_named_as_the_person_calls_it(tmp_path, number, told):
    """No name of a temporary file; a disk that is mounted for reading alone lacks no permission."""
    error = OSError(number, "", str(tmp_path / ".advise-tmp-4711-x.jsonl"))
    said = refused_by_system(error).text()
    assert f"{tmp_path}/x.jsonl: " in said
    assert told in said
