"""Data sets of the model hub, with a hub that is a folder; folders whose files belong to one team each."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from advisor.data import find_data, profile
from advisor.data.measure import Depth
from advisor.data.read import hub
from advisor.data.read.source import team_files
from advisor.ground.errors import InputError, MachineNotReady
from advisor.ground.resources import install_line

ROW = '{"question": "Q", "answer": "A"}\n'


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A hub with one data set in the cache, `calls` that were made and a `size` of it."""
    folder = tmp_path / "cache" / "snapshot"

    def snapshot_download(repo, **options):
        found.calls.append({"repo": repo, **options})
        return str(folder)

    def repo_info(*_args, **_options):
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename="a.jsonl", size=found.size)])

    found = SimpleNamespace(
        snapshot_download=snapshot_download, __spec__=object(), folder=folder, calls=[], size=100,
        HfApi=lambda: SimpleNamespace(repo_info=repo_info),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "huggingface_hub", found)
    monkeypatch.setattr(hub, "find_spec", lambda _name: object())
    monkeypatch.setattr(hub, "_fetched", {})
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for place in (folder, tmp_path / "here"):
        place.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    return found


def test_a_hub_name_is_read_from_the_hub(stand_in, monkeypatch, approved):
    """`owner/name` is fetched, or taken from the cache when offline, unless it is on the disk."""
    files = {"README.md": "# A data set", "data/train.jsonl": ROW * 3, "data/test.jsonl": ROW}
    put(stand_in.folder, files)
    found = profile("someone/some-data", Depth(strict=False))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cached = len(find_data("someone/data").files)
    approved([found.path, found.rows, found.format, stand_in.calls, cached])
    stand_in.calls.clear()
    put(Path("someone/data"), {"a.jsonl": ROW})
    assert (len(find_data("someone/data").files), stand_in.calls) == (1, [])


def test_several_configurations_have_to_be_told_apart(stand_in):
    """A data set of two configurations is two data sets; naming one reads it alone."""
    configs = "- config_name: main\n- config_name: socratic\n"
    files = {"main/train.jsonl": ROW, "socratic/train.jsonl": ROW}
    put(stand_in.folder, {**files, "README.md": f"---\nconfigs:\n{configs}---\n"})
    with pytest.raises(InputError, match="several configurations: main, socratic"):
        find_data("openai/gsm8k")
    assert len(find_data("openai/gsm8k/main").files) == 1
    with pytest.raises(InputError, match="it has: main, socratic"):
        find_data("openai/gsm8k/other")


def test_a_huge_data_set_is_not_fetched_by_the_way(stand_in, monkeypatch):
    """Beyond 5 GiB the error says how to fetch it, without a hub client what to install."""
    stand_in.size = 40 << 30
    with pytest.raises(InputError, match="40 GiB") as caught:
        find_data("someone/huge")
    assert "hf download --repo-type dataset someone/huge" in str(caught.value)
    monkeypatch.setattr(hub, "find_spec", lambda _name: None)
    with pytest.raises(MachineNotReady, match=re.escape(install_line())):
        find_data("someone/data")
    assert stand_in.calls == []


NOT_FOUND = type("RepositoryNotFoundError", (Exception,), {})  # as the hub's client raises it


@pytest.mark.parametrize(
    ("raised", "error", "said"),
    [
        (NOT_FOUND("404"), InputError, "no such data set that you may read"),
        (ConnectionError("no route to host"), MachineNotReady, "cannot be reached"),
    ],
)
def test_a_name_the_hub_does_not_know_is_an_input_error(stand_in, raised, error, said):
    """Not found, or not allowed, is for the user to repair; a dead network is the machine's."""
    stand_in.snapshot_download = Mock(side_effect=raised)
    with pytest.raises(error, match=said):
        find_data("someone/nothing")


@pytest.mark.parametrize(
    "text",
    ["./a/b", "/a/b", "~/a", "train.jsonl", "data/train.jsonl", "a/b/c.csv", "name", "there/x",
     "a b/c"],
)  # fmt: skip
def test_paths_are_never_taken_for_hub_names(tmp_path, monkeypatch, text):
    """What looks like a path, or lies in a folder that is there, asks nobody."""
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    assert not hub.is_hub_id(text)


def put(where: Path, files: dict[str, str]) -> Path:
    """Files with these texts under this folder."""
    for name, text in files.items():
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        (where / name).write_text(text)
    return where


def test_files_and_folders_are_teams_named_after_them(tmp_path):
    """A file or a folder of files is one team, its name one that a plan may have; also a file that
    is still empty, which is said when it is read.
    """
    names = ("Legal.jsonl", "Human Resources.csv.gz", "sales/a.txt", "README.md")
    assert team_files(put(tmp_path, {**dict.fromkeys(names, ROW), "it.csv": ""})) == {
        "human-resources": str(tmp_path / "Human Resources.csv.gz"),
        "it": str(tmp_path / "it.csv"),
        "legal": str(tmp_path / "Legal.jsonl"),
        "sales": str(tmp_path / "sales"),
    }


@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl", "test.jsonl"),
        ("my-train.jsonl", "my_validation.jsonl"),
        ("part-1.jsonl", "part-2.jsonl", "part-10.jsonl"),
        ("2023.csv", "2024.csv"),
        ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"),
        ("legal.jsonl",),
        ("a.md", "b.md"),
        ("dataset_dict.json", "a.jsonl", "b.jsonl"),
        ("legal.jsonl", "Legal!.csv"),  # one team, so that one of them would be hidden
        (),
    ],
)
def test_one_data_set_in_several_files_is_no_folder_of_teams(tmp_path, names):
    """Splits, parts, documents and a single file belong together; nothing at all is no folder."""
    assert team_files(put(tmp_path / "data", dict.fromkeys(names, ROW))) == {}
