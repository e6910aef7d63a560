"""Digests of files and folders, and when a file is read again."""

import os
import shutil

import pytest

from advisor.ground.errors import InputError
from advisor.record import content
from advisor.record.content import (
    digest_of,
    file_content,
    file_digest,
    folder_digest,
    model_files,
    read_contents,
)


@pytest.fixture
def settled(monkeypatch):
    """Files need no rest before their times are trusted, so that tests need not wait."""
    monkeypatch.setattr(content, "FRESH_NS", -(10**10))


@pytest.fixture
def model(tmp_path):
    """A folder with a configuration, weights, a tokenizer and files that do not matter."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md", "result.json"):
        (folder / name).write_text(f"this is {name}")
    return folder


def held(folder):
    """What the files of a model hold."""
    return read_contents(model_files(folder))


def test_the_digest_is_sha256_of_the_whole_file(tmp_path):
    """`sha256sum` shows the same digest."""
    (tmp_path / "weights").write_bytes(b"abc")
    found = file_content(tmp_path / "weights")
    # NIST, FIPS 180-4, the example "abc"
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert (found.sha256, found.bytes) == (digest, 3)


def test_a_folder_is_its_names_and_contents_wherever_it_lies(model, tmp_path):
    """A copy under another name has the same digest; the notes beside the model do not count."""
    shutil.copytree(model, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("other notes")
    assert folder_digest(model) == folder_digest(tmp_path / "copy")
    assert list(held(model)) == ["config.json", "model.safetensors", "tokenizer.json"]
    # The links of the hub's cache are followed.
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for path in model.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert folder_digest(snapshot) == folder_digest(model)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_any_change_of_the_same_size_changes_the_digest(model, name):
    """One other byte in weights, configuration or tokenizer is another model."""
    before = held(model)
    (model / name).write_bytes((model / name).read_bytes()[:-1] + b"!")
    after = held(model)
    assert digest_of(after) != digest_of(before)
    assert [key for key in after if after[key].sha256 != before[key].sha256] == [name]


def test_pickled_weights_count_only_without_safetensors(model):
    """Of two copies of the weights, those that are loaded count."""
    before = folder_digest(model)
    (model / "pytorch_model.bin").write_text("pickled")
    assert folder_digest(model) == before
    (model / "model.safetensors").unlink()
    assert "pytorch_model.bin" in held(model)


def test_a_change_that_keeps_the_time_of_writing_is_noticed(model, settled):
    """A tool that sets the old mtime again cannot hide other content."""
    known = held(model)
    path = model / "model.safetensors"
    times = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_mtime_ns == times.st_mtime_ns
    assert folder_digest(model, known) != digest_of(known)


def test_a_file_that_was_written_just_now_is_read_again(model):
    """Two changes within one tick of the clock look alike: such times are not kept."""
    found = held(model)
    assert all(part.mtime_ns is None and part.ctime_ns is None for part in found.values())
    assert "mtime_ns" not in next(iter(found.values())).to_dict()


def test_a_file_that_is_gone_is_the_users_error(tmp_path):
    """What cannot be read is named, with exit code 2."""
    with pytest.raises(InputError, match="weights: cannot be read: No such file"):
        file_digest(tmp_path / "weights")


def test_a_folder_that_is_several_things_of_a_run_is_read_once(model, settled, monkeypatch):
    """A reward model is a file of the plan, too; written again, it is read again."""
    first = folder_digest(model)
    with monkeypatch.context() as patch:
        patch.setattr(content.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
        assert folder_digest(model) == first
    (model / "model.safetensors").write_bytes(b"two")
    assert folder_digest(model) != first
