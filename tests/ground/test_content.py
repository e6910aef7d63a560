"""Digests of files and folders, and when a file is read again."""

import hashlib
import os
import shutil
import subprocess
import sys

import pytest

from advisor.ground import content
from advisor.ground.content import KnownFiles, file_digest, folder_digest
from advisor.ground.errors import InputError


@pytest.fixture
def settled(monkeypatch):
    """Files need no rest before their times are trusted, so that tests need not wait."""
    monkeypatch.setattr(content, "FRESH_NS", -(10**10))


@pytest.fixture
def small_limits(monkeypatch):
    """Files of more than 1,000 bytes are sampled: ten blocks of 10 bytes, and 20 at each end."""
    for name, value in (
        ("FULL_BYTES", 1000),
        ("SAMPLED_BLOCKS", 10),
        ("SAMPLED_BLOCK_BYTES", 10),
        ("SAMPLED_EDGE_BYTES", 20),
    ):
        monkeypatch.setattr(content, name, value)


@pytest.fixture
def model(tmp_path):
    """A folder with a configuration, weights, a tokenizer and files that do not matter."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md", "result.json"):
        (folder / name).write_text(f"this is {name}")
    return folder


def test_the_digest_is_sha256_of_the_whole_file(tmp_path):
    """Up to the limit, `sha256sum` shows the same digest."""
    (tmp_path / "weights").write_bytes(b"abc")
    found = file_digest(tmp_path / "weights")
    # NIST, FIPS 180-4, the example "abc"
    assert found.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert found.bytes == 3
    assert found.sampled is None


def test_a_folder_is_its_names_and_contents_wherever_it_lies(model, tmp_path):
    """A copy under another name has the same digest; the notes beside the model do not count."""
    shutil.copytree(model, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("other notes")
    assert folder_digest(model).digest == folder_digest(tmp_path / "copy").digest
    assert sorted(folder_digest(model).files) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_any_change_of_the_same_size_changes_the_digest(model, name):
    """One other byte in weights, configuration or tokenizer is another model."""
    before = folder_digest(model)
    text = (model / name).read_bytes()
    (model / name).write_bytes(text[:-1] + b"!")
    after = folder_digest(model)
    assert after.digest != before.digest
    changed = [key for key in after.files if not after.files[key].holds_the_same(before.files[key])]
    assert changed == [name]


def test_a_hub_snapshot_counts_as_the_files_it_links_to(model, tmp_path):
    """The links of the hub's cache are followed."""
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for path in model.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert folder_digest(snapshot).digest == folder_digest(model).digest


def test_pickled_weights_count_only_without_safetensors(model):
    """Of two copies of the weights, those that are loaded count."""
    before = folder_digest(model).digest
    (model / "pytorch_model.bin").write_text("pickled")
    assert folder_digest(model).digest == before
    (model / "model.safetensors").unlink()
    assert "pytorch_model.bin" in folder_digest(model).files


def test_an_unchanged_file_is_not_read_again(model, settled, monkeypatch):
    """Size and times decide whether a known file has to be read."""
    known = folder_digest(model)
    monkeypatch.setattr(content, "_whole", lambda fd: pytest.fail("it was read again"))
    assert folder_digest(model, known=KnownFiles(known.files.items())) == known


def test_a_moved_folder_is_not_read_again(model, settled, monkeypatch, tmp_path):
    """A folder under another name is known by the names, sizes and times of its files."""
    known = folder_digest(model)
    model.rename(tmp_path / "renamed")
    monkeypatch.setattr(content, "_whole", lambda fd: pytest.fail("it was read again"))
    assert folder_digest(tmp_path / "renamed", known=KnownFiles(known.files.items())) == known


def test_a_change_that_keeps_the_time_of_writing_is_noticed(model, settled):
    """A tool that sets the old mtime again cannot hide other content."""
    known = folder_digest(model)
    path = model / "model.safetensors"
    times = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_mtime_ns == times.st_mtime_ns
    assert folder_digest(model, known=KnownFiles(known.files.items())).digest != known.digest


def test_a_file_that_was_written_just_now_is_read_again(model):
    """Two changes within one tick of the clock look alike: such times are not kept."""
    found = folder_digest(model)
    assert all(part.mtime_ns is None and part.ctime_ns is None for part in found.files.values())
    assert "mtime_ns" not in next(iter(found.files.values())).to_dict()


@pytest.mark.parametrize("place", [0, 19, 1500, 2980, 2999])
def test_a_large_file_is_sampled_and_says_so(tmp_path, small_limits, place):
    """Beginning, end and blocks between them are read; a changed byte in one of them is found."""
    path = tmp_path / "weights"
    path.write_bytes(bytes(3000))
    before = file_digest(path)
    assert before.sampled is True
    assert before.bytes == 3000
    # blocks begin at 20 + 2950 * i // 9: number 4 at 1331, number 5 at 1658
    data = bytearray(3000)
    data[{1500: 1335}.get(place, place)] = 1
    path.write_bytes(data)
    assert not file_digest(path).holds_the_same(before)


def test_sampling_reads_blocks_and_misses_what_lies_between(tmp_path, small_limits):
    """A sampled digest is not a proof: the record says `sampled`."""
    path = tmp_path / "weights"
    path.write_bytes(bytes(3000))
    before = file_digest(path)
    data = bytearray(3000)
    data[1500] = 1
    path.write_bytes(data)
    assert file_digest(path).holds_the_same(before)
    assert before.sampled


def test_the_limit_counts_all_files_of_a_folder(model, small_limits):
    """Two files that together pass the limit are both sampled, unless they are small."""
    for name in ("model-1.safetensors", "model-2.safetensors"):
        (model / name).write_bytes(bytes(600))
    found = folder_digest(model)
    assert found.is_sampled
    assert found.files["model-1.safetensors"].sampled
    assert found.files["config.json"].sampled is None


def test_a_file_that_is_gone_is_the_users_error(tmp_path):
    """What cannot be read is named, with exit code 2."""
    with pytest.raises(InputError, match="weights: cannot be read: No such file"):
        file_digest(tmp_path / "weights")


def test_records_read_back_as_they_were(model, settled):
    """What run.json keeps of a file is what the next run compares with."""
    found = folder_digest(model).files["config.json"]
    assert content.FileContent.from_dict(found.to_dict()) == found
    assert found.sha256 == hashlib.sha256(b"this is config.json").hexdigest()


def test_digests_need_no_heavy_package():
    """Launcher and trainers use the same digests: no torch."""
    code = "import sys, advisor.ground.content; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_place_of_the_base_is_no_content_of_an_adapter(tmp_path):
    """A module of a moved project is the same module; another rank is another one."""
    config = '{\n  "base_model_name_or_path": "%s",\n  "r": %d\n}'
    path = tmp_path / "adapter_config.json"
    path.write_text(config % (r"/here/a \\ \"model\"", 8))
    before = folder_digest(tmp_path).digest
    assert content.base_path_in(path.read_bytes()) == '/here/a \\ "model"'
    path.write_bytes(content.with_base_path(path.read_bytes(), "/there/model"))
    assert path.read_text() == config % ("/there/model", 8)
    assert folder_digest(tmp_path).digest == before
    path.write_text(config % ("/there/model", 4))
    assert folder_digest(tmp_path).digest != before
