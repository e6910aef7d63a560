"""The line that installs an extra is true for the way this copy was installed."""

import json
from importlib import metadata

import pytest

from advisor.ground.resources import install_line


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Set what the installer wrote down, and the folder of the environment."""
    monkeypatch.setattr("sys.prefix", str(tmp_path))

    def set_source(found):
        text = None if found is None else json.dumps(found)
        copy = type("Copy", (), {"read_text": lambda self, name: text})()
        monkeypatch.setattr(metadata, "distribution", lambda name: copy)

    return set_source


def test_a_folder_is_named_with_its_path(installed, tmp_path):
    """Quoted where the shell needs it, `.` where one stands in it, -e where it was so."""
    folder = tmp_path / "the advisor"
    folder.mkdir()
    installed({"url": folder.as_uri(), "dir_info": {}})
    assert install_line() == f"pip install '{folder}[train]'"
    installed({"url": folder.as_uri(), "dir_info": {"editable": True}})
    assert install_line("gpu") == f"pip install -e '{folder}[gpu]'"


def test_the_folder_one_stands_in_is_a_dot(installed, tmp_path, monkeypatch):
    """As the README writes it."""
    installed({"url": tmp_path.as_uri(), "dir_info": {}})
    monkeypatch.chdir(tmp_path)
    assert install_line() == "pip install '.[train]'"


def test_uv_installs_its_tools_by_its_own_command(installed, tmp_path):
    """pip does not reach into the environment of a uv tool."""
    (tmp_path / "uv-receipt.toml").touch()
    installed({"url": tmp_path.as_uri(), "dir_info": {}})
    assert install_line() == f"uv tool install --force '{tmp_path}[train]'"


def test_a_repository_is_named_with_its_address(installed):
    """As pip takes it."""
    installed({"url": "https://example.org/a.git", "vcs_info": {"vcs": "git"}})
    assert install_line() == (
        "pip install 'finetune-advisor[train] @ git+https://example.org/a.git'"
    )


@pytest.mark.parametrize("found", [None, {}, [], {"url": "file:///gone/a-1.whl"}])
def test_a_copy_without_a_source_is_a_checkout_or_came_from_an_index(installed, found, monkeypatch):
    """A wheel that is gone is no source."""
    installed(found)
    monkeypatch.setattr("advisor.ground.resources.resource_root", lambda: None)
    assert install_line() == "pip install 'finetune-advisor[train]'"
