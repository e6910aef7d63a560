"""Shipped files from the cache are as parsed, with positions; a broken cache is no matter."""

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
    assert places[0] == places[1]
    assert all(places[0])


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
        assert (tmp_path / "forged").read_text() == forged
        assert not kept.is_symlink()


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
