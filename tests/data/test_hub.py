"""Data sets of the model hub, with a hub that is a folder: no test goes to the network."""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path

import pytest

from advisor.data import find_data, profile
from advisor.data.measure import Depth
from advisor.data.read import hub
from advisor.ground.errors import InputError, MachineNotReady
from advisor.ground.resources import install_line

ROW = '{"question": "Q", "answer": "A"}\n'


@pytest.fixture
def snapshot(tmp_path, monkeypatch):
    """A data set in the cache of a stand-in hub, and the calls that were made."""
    folder = tmp_path / "cache" / "snapshot"
    folder.mkdir(parents=True)
    calls: list[dict[str, object]] = []

    def snapshot_download(repo: str, **options: object) -> str:
        calls.append({"repo": repo, **options})
        return str(folder)

    class HfApi:
        size = 100

        def repo_info(self, *_args: object, **_options: object) -> object:
            return types.SimpleNamespace(
                siblings=[types.SimpleNamespace(rfilename="train.jsonl", size=self.size)]
            )

    stand_in = types.SimpleNamespace(
        snapshot_download=snapshot_download, HfApi=HfApi, __spec__=object()
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)
    monkeypatch.setattr(hub, "find_spec", lambda _name: object())
    monkeypatch.setattr(hub, "_fetched", {})
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder, calls, HfApi


def test_a_hub_name_is_read_from_the_hub(snapshot):
    """`owner/name` is fetched as a data set and profiled like a folder; its README is no data."""
    folder, calls, _ = snapshot
    (folder / "README.md").write_text("# A data set")
    (folder / "data").mkdir()
    (folder / "data" / "train.jsonl").write_text(ROW * 3)
    (folder / "data" / "test.jsonl").write_text(ROW)
    found = profile("someone/some-data", Depth(strict=False))
    assert (found.path, found.rows, found.format) == ("someone/some-data", 3, "question_answer")
    assert {call["repo"] for call in calls} == {"someone/some-data"}
    assert calls[0]["repo_type"] == "dataset"


def test_offline_takes_the_cache_alone(snapshot, monkeypatch):
    """With HF_HUB_OFFLINE nothing is asked of the network."""
    folder, calls, _ = snapshot
    (folder / "train.jsonl").write_text(ROW)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert len(find_data("someone/data").files) == 1
    assert calls[0]["local_files_only"] is True


def test_several_configurations_have_to_be_told_apart(snapshot):
    """A data set of two configurations is two data sets; naming one reads it alone."""
    folder, _, _ = snapshot
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n- config_name: socratic\n---\n"
    )
    for name in ("main", "socratic"):
        (folder / name).mkdir()
        (folder / name / "train.jsonl").write_text(ROW)
    with pytest.raises(InputError, match="several configurations: main, socratic"):
        find_data("openai/gsm8k")
    assert len(find_data("openai/gsm8k/main").files) == 1
    with pytest.raises(InputError, match="it has: main, socratic"):
        find_data("openai/gsm8k/other")


def test_a_huge_data_set_is_not_fetched_by_the_way(snapshot):
    """Beyond 5 GiB the error says how to fetch it on purpose."""
    _, calls, api = snapshot
    api.size = 40 << 30
    with pytest.raises(InputError, match="40 GiB") as caught:
        find_data("someone/huge")
    assert "hf download --repo-type dataset someone/huge" in str(caught.value)
    assert calls == []


def test_a_name_the_hub_does_not_know_is_an_input_error(snapshot, monkeypatch):
    """Not found, or not allowed, is for the user to repair; a dead network is the machine's."""

    class RepositoryNotFoundError(Exception):
        pass

    def not_there(*_args: object, **_options: object) -> str:
        raise RepositoryNotFoundError("404")

    def dead(*_args: object, **_options: object) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(sys.modules["huggingface_hub"], "snapshot_download", not_there)
    with pytest.raises(InputError, match="no such data set that you may read"):
        find_data("someone/nothing")
    monkeypatch.setattr(sys.modules["huggingface_hub"], "snapshot_download", dead)
    with pytest.raises(MachineNotReady, match="cannot be reached"):
        find_data("someone/nothing")


def test_without_the_package_the_line_to_install_is_named(tmp_path, monkeypatch):
    """The core install has no hub client, and says so."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "find_spec", lambda _name: None)
    with pytest.raises(MachineNotReady, match=re.escape(install_line())):
        find_data("someone/data")


@pytest.mark.parametrize(
    "text",
    [
        "./a/b",
        "/a/b",
        "~/a",
        "train.jsonl",
        "data/train.jsonl",
        "a/b/c.csv",
        "name",
        "there/x",
        "a b/c",
    ],
)
def test_paths_are_never_taken_for_hub_names(tmp_path, monkeypatch, text):
    """What looks like a path, or lies in a folder that is there, asks nobody."""
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    assert not hub.is_hub_id(text)


def test_a_folder_called_like_a_hub_name_is_the_folder(snapshot, tmp_path):
    """What is on the disk comes first."""
    _, calls, _ = snapshot
    Path("someone/data").mkdir(parents=True)
    Path("someone/data/a.jsonl").write_text(json.dumps({"text": "x"}) + "\n")
    assert len(find_data("someone/data").files) == 1
    assert calls == []
