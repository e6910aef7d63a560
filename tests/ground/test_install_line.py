"""The line that installs an extra is true for the way this copy was installed."""

import json
from importlib import metadata
from types import SimpleNamespace

import pytest

from advisor.ground.resources import install_line


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
