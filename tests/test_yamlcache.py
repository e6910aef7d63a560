"""Shipped files from the cache are what parsing gives, positions included; a broken cache is no
matter.
"""

import json
import os

import pytest
from msgspec.json import encode

from advisor.ground import yaml_files as yamlcache
from advisor.ground.errors import InputError
from advisor.ground.resources import rules_dir
from advisor.ground.shape import Integer, Keys
from advisor.ground.yaml_files import read_shipped, read_yaml
from advisor.ruleset.load import load_rules


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setattr(yamlcache, "_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def test_a_second_reading_is_the_first_and_the_parser_s(folder):
    """Data, positions of keys and values, and the nearest place of a path that has none."""
    path = rules_dir() / "tables.yaml"
    parsed, first, second = (
        read_yaml(path, name="rules/tables.yaml"),
        read_shipped(path),
        read_shipped(path),
    )
    assert len(list(folder.glob("*.json"))) == 1
    assert first.data == second.data == parsed.data
    for place in parsed.positions[1]:
        assert second.at(place) == parsed.at(place)
        assert second.at(place, key=True) == parsed.at(place, key=True)
    assert second.positions == parsed.positions
    assert second.at(("tables", "nowhere", 3)) == parsed.at(("tables", "nowhere", 3))


def test_a_kept_rule_set_is_the_one_that_was_read(folder):
    """Every value of it, whole numbers and fractions told apart, and the places of its rules."""
    load_rules.cache_clear()
    read, kept = load_rules(), load_rules.__wrapped__()
    assert read is not kept
    assert read.rules["rank"][0] is not kept.rules["rank"][0]
    texts = [
        encode(one, enc_hook=lambda at: at.name, order="deterministic") for one in (read, kept)
    ]
    assert texts[0] == texts[1]
    for one, other in zip(read.rules["rank"], kept.rules["rank"], strict=True):
        assert one.at == other.at != ""
    load_rules.cache_clear()


@pytest.mark.parametrize("content", ["", "not json", "[]\n{}", "[]\n{}\n[", "[\n{}\n{}"])
def test_a_broken_cache_is_read_past(folder, content):
    """Whatever stands there, the file is parsed again."""
    path = rules_dir() / "tables.yaml"
    read_shipped(path)
    (kept,) = folder.glob("*.json")
    kept.write_text(content)
    assert read_shipped(path).data == read_yaml(path).data
    assert json.loads(kept.read_text()) == read_yaml(path).data


def test_a_changed_file_is_never_taken_from_the_cache(folder, tmp_path):
    """The name of what is kept follows from the bytes."""
    file = tmp_path / "a.yaml"
    file.write_text("a: 1\n")
    assert read_shipped(file, root=tmp_path).data == {"a": 1}
    file.write_text("a: 2\n")
    assert read_shipped(file, root=tmp_path).data == {"a": 2}


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    """The cache lies where a file is: nothing is kept, everything is read."""
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(yamlcache, "_folder", lambda: tmp_path / "file" / "below")
    assert read_shipped(rules_dir() / "tables.yaml").data["version"] == 1


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="files have no owner here")
@pytest.mark.parametrize("how", ["another user's", "open to others", "a link"])
def test_what_another_user_could_have_written_is_not_read(folder, monkeypatch, tmp_path, how):
    """The rules of a forged cache are ignored, and what is kept is for this user's eyes."""
    path = rules_dir() / "tables.yaml"
    read_shipped(path)
    (kept,) = folder.glob("*.json")
    assert kept.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    forged = '{"forged":1}'
    kept.write_text(forged)
    assert read_shipped(path).data == {"forged": 1}, "the case is what it seems"
    if how == "open to others":
        kept.chmod(0o602)
    elif how == "a link":
        kept.rename(tmp_path / "forged")
        kept.symlink_to(tmp_path / "forged")
    else:
        owner = os.getuid() + 1
        monkeypatch.setattr(os, "getuid", lambda: owner)
    assert read_shipped(path).data == read_yaml(path).data
    if how == "a link":
        assert (tmp_path / "forged").read_text() == forged
        assert not kept.is_symlink()


def test_what_was_found_to_have_its_shape_is_not_checked_again(folder, tmp_path, monkeypatch):
    """A faulty file is never kept as checked, and other code checks anew."""
    shape = Keys(keys={"a": Integer()})
    file = tmp_path / "a.yaml"
    file.write_text("a: text\n")
    for _ in range(2):
        with pytest.raises(InputError, match=r"a\.yaml:1:4"):
            read_shipped(file, root=tmp_path, shape=shape)
    file.write_text("a: 1\n")
    assert not read_shipped(file, root=tmp_path).checked, "kept, but nobody checked it"
    assert read_shipped(file, root=tmp_path, shape=shape).checked
    other = Keys(keys={"b": Integer()})
    assert read_shipped(file, root=tmp_path, shape=other).checked, "one shape for each file"
    monkeypatch.setattr(yamlcache, "_code", lambda: b"of another version")
    with pytest.raises(InputError, match="unknown key 'a'"):
        read_shipped(file, root=tmp_path, shape=other)
