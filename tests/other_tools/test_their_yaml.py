"""YAML as the tools' own loaders read it: the same values, and a word about what surprises."""

import datetime
import re
from contextlib import suppress

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from advisor.ground.errors import InputError
from advisor.other_tools.reading.their_yaml import OMEGACONF, read_text, their_text

SAME = [
    "a: yes\nb: off\nc: On\nd: n\n",
    "a: 1e-4\nb: 1.0e-4\nc: 1_000\nd: .5\ne: -3\n",
    "a: 010\nb: 0x1F\nc: 0b11\nd: 1:30\n",
    "base: &b {x: 1, y: [1, 2]}\nuse:\n  <<: *b\n  x: 2\nlist: *b\n",
    "a: &a {x: 1}\nb: &b {x: 2, z: 3}\nc:\n  <<: [*a, *b]\nd:\n  <<: *a\n  <<: *b\n",
    "a: 1\nb: 2\na: 3\n",
    "a: |\n  two\n  lines\nb: >-\n  one\n  line\n",
    "\ufeffa: 1\n",
    "a: 1\r\nb:\r\n  - x\r\n",
    "a:\nb: ~\nc: null\nd: ''\n",
    "---\na: 1\n...\n",
    '{\n\t"a": 1,\n\t"b": [true, null, 1.5e3]\n}',
    "a: !!str 1\nb: !!int '3'\n",
    "a: 'it''s'\nb: \"\\u00e9\"\nc: x # comment\n",
]


@pytest.mark.parametrize("text", SAME)
def test_values_are_those_of_pyyaml(text):
    """What TRL and Axolotl read is what is read here."""
    plain = text.replace("\t", " ").removeprefix("\ufeff")
    assert their_text(text, name="f").values == yaml.safe_load(plain)


def test_omegaconf_reads_exponents_as_numbers():
    """LLaMA-Factory's loader: checked against OmegaConf 2.4."""
    text = "a: 1e-4\nb: 5E3\nc: 1.5e-2\nd: '1e-4'\ne: 2024-01-01\nf: yes\n"
    assert their_text(text, name="f", loader=OMEGACONF).values == {
        "a": 1e-4, "b": 5000.0, "c": 0.015, "d": "1e-4", "e": "2024-01-01", "f": True,
    }  # fmt: skip
    assert their_text(text, name="f").values["a"] == "1e-4"


SURPRISES = [
    ("a: 1\nb: 2\na: 3\n", "given twice .first on line 1.: the last one counts", (3, 1), False),
    ("x: !include y.yaml\n", "tag !include", (1, 4), True),
    ("x: !!python/object:os.system {}\n", "tag !!python", (1, 4), True),
    ("x: !!binary aGk=\n", "tag !!binary", (1, 4), True),
    ("x: &x [*x]\n", "nested without end", (1, 4), True),
    ("run: 2024-01-01\n", "read as a date", (1, 6), False),
    ("a: 010\n", "010 is read as 8", (1, 4), False),
    ("time: 1:30\n", "1:30 is read as 90", (1, 7), False),
    ("a: .inf\n", "no usable number", (1, 4), False),
    ("on: 1\n", "the key on is no text", (1, 1), True),
    ("[1, 2]: 3\n", "a key that is no text", (1, 1), True),
    ("a: 1\n<<: 3\n", "a merge key", (2, 5), True),
]


@pytest.mark.parametrize(("text", "what", "mark", "refused"), SURPRISES)
def test_what_surprises_is_said_at_its_place(text, what, mark, refused):
    """Line and column, and whether the tool stops there."""
    found = their_text(text, name="f").surprises[0]
    assert re.search(what, found.what)
    assert found.mark == mark
    assert found.refused is refused


def test_a_key_that_is_given_twice_is_refused_by_omegaconf():
    """LLaMA-Factory does not start with it."""
    (found,) = their_text("a: 1\na: 2\n", name="f", loader=OMEGACONF).surprises
    assert found.refused
    assert "OmegaConf refuses" in found.what


REFUSED = [
    (b"a: [1, 2", "not valid YAML"),
    (b"a:\n\t- b\n", "replace the tabs"),
    (b"a: *nobody\n", "undefined alias"),
    (b"a: 1\n---\nb: 2\n", "not valid YAML"),
    (b"\xff\xfea\x00", "UTF-16"),
    (b"a: \xe9\n", "not UTF-8"),
    (b"a: \x00\n", "NUL"),
    (b"a: " + b"[" * 5000, "nested deeper"),
    (b"a: 1\n" * 70_000, "more than 60,000 values"),
    (b"x" * 1_000_001, "larger than"),
]


@pytest.mark.parametrize(("raw", "what"), REFUSED, ids=[what for _, what in REFUSED])
def test_what_no_loader_reads_is_an_error(tmp_path, raw, what):
    """Located, and with the next step."""
    path = tmp_path / "f.yaml"
    path.write_bytes(raw)
    with pytest.raises(InputError, match=what):
        their_text(read_text(path, name="f.yaml"), name="f.yaml")


def test_aliases_are_followed_for_a_bounded_number_of_values():
    """Ten lines that stand for a billion values end in an error, soon."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    with pytest.raises(InputError, match="aliases followed"):
        their_text("\n".join(lines), name="f")
    merged = ["b0: &b0 {x: 1}"] + [f"b{n}: &b{n} {{<<: *b{n - 1}, k{n}: 1}}" for n in range(1, 900)]
    with pytest.raises(InputError, match="aliases followed"):
        their_text("\n".join(merged), name="f")


def test_positions_are_those_of_the_keys():
    """A key that an anchor brings has the place where it stands."""
    read = their_text("d: &d\n  deep: 1\nuse:\n  <<: *d\n  own: 2\n", name="f")
    assert read.key_marks[("use", "own")] == (5, 3)
    assert read.key_marks[("use", "deep")] == (2, 3)
    assert read.value_marks[("d", "deep")] == (2, 9)


YAML_TEXT = st.text(
    st.sampled_from(list("ab1e-0:,. \n\t[]{}&*!|>#'\"%@`?<~\u00e9\ufeff\x07yno")), max_size=60
)


@settings(max_examples=400, deadline=None)
@given(text=YAML_TEXT)
@example(text="a: !!float x\n")
@example(text="? a\n: b\n")
@example(text="a: !!int 0x\n")
@example(text="!!timestamp x: 1\n")
@example(text="a: 1__0:99\n")
def test_any_text_is_read_or_refused_without_another_error(text):
    """And where PyYAML reads plain data without a surprise, the values are the same."""
    try:
        read = their_text(text, name="f")
    except InputError:
        return
    their_text(text, name="f", loader=OMEGACONF)
    if read.surprises:
        return
    try:
        wanted = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, TypeError):
        return
    assert read.values == wanted or isinstance(wanted, datetime.date | set)


@settings(max_examples=200, deadline=None)
@given(raw=st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(tmp_path_factory, raw):
    """A file may hold anything."""
    path = tmp_path_factory.mktemp("any") / "f.yaml"
    path.write_bytes(raw)
    with suppress(InputError):
        their_text(read_text(path, name="f"), name="f")
