"""One check for what a file may hold: every fault, with its place and what is allowed."""

import pytest

from advisor.ground.errors import did_you_mean
from advisor.ground.shape import (
    Choice,
    Date,
    Flag,
    Keys,
    ListOf,
    MapOf,
    NamedValue,
    Number,
    OneOf,
    Shape,
    Text,
    check_shape,
)
from advisor.ground.yaml_files import parse_yaml

GPU = Keys(
    keys={
        "name": Text(),
        "memory_gb": Number(above=0, null=True),
        "lanes": Number(whole=True, min=1, max=16),
        "vendor": Choice(values=("amd", "apple", "nvidia")),
        "unified": Flag(),
        "checked": Date(),
        "release": Text(pattern=r"\d+\.\d+", such_as='"12.8"'),
        "sizes": ListOf(of=Number(min=0), least=2, most=2),
        "tasks": OneOf(options=(Choice(values=("any",)), ListOf(of=Text(), least=1))),
        "prices": MapOf(of=Number(above=0), named=Text(pattern="[a-z]+", such_as="aws")),
        "more": Shape(),
    },
    required=("name",),
)


def faults(text, shape=GPU):
    """What is wrong, each fault as its lines."""
    return [fault.lines() for fault in check_shape(parse_yaml(text, name="gpus.yaml"), shape)]


def test_what_has_the_shape_has_no_fault():
    """Every kind of value, null where it may be, whole numbers also as 16.0."""
    text = (
        "name: T4\nmemory_gb: null\nlanes: 16.0\nvendor: nvidia\nunified: false\n"
        'checked: "2026-11-25"\nrelease: "7.5"\nsizes: [1, 2.5]\ntasks: any\n'
        "prices: {aws: 0.5}\nmore: {a: [null]}\n"
    )
    assert faults(text) == []
    assert faults("name: T4\ntasks: [qa]\n") == []


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("{name: 4090}", ["gpus.yaml:1:8: `name` is 4090", "  a text", "  quote it"]),
        ("{name: ''}", ["gpus.yaml:1:8: `name` is empty", "  a text"]),
        ("{name: a, memory_gb: 0}", ["gpus.yaml:1:22: `memory_gb` is 0", "  a number above 0"]),
        (
            "{name: a, lanes: 1.5}",
            ["gpus.yaml:1:18: `lanes` is 1.5", "  a whole number from 1 to 16"],
        ),
        (
            "{name: a, lanes: true}",
            ["gpus.yaml:1:18: `lanes` is true", "  a whole number from 1 to 16"],
        ),
        (
            "{name: a, vendor: nvida}",
            [
                "gpus.yaml:1:19: `vendor` is 'nvida'",
                "  one of amd, apple, nvidia",
                "  did you mean 'nvidia'?",
            ],
        ),
        ("{name: a, unified: 1}", ["gpus.yaml:1:20: `unified` is 1", "  true or false"]),
        (
            '{name: a, checked: "2026-13-30"}',
            ["gpus.yaml:1:20: `checked` is '2026-13-30'", "  a text such as 2026-11-25, in quotes"],
        ),
        (
            "{name: a, release: 12.8}",
            ["gpus.yaml:1:20: `release` is 12.8", '  a text such as "12.8"', "  quote it"],
        ),
        (
            "{name: a, sizes: [1]}",
            [
                "gpus.yaml:1:18: `sizes` is a list",
                "  a list of 2 values, each a number of at least 0",
            ],
        ),
        (
            "{name: a, sizes: [1, -1]}",
            ["gpus.yaml:1:22: `sizes[1]` is -1", "  a number of at least 0"],
        ),
        ("{name: a, tasks: [1]}", ["gpus.yaml:1:19: `tasks[0]` is 1", "  a text", "  quote it"]),
        (
            "{name: a, tasks: anny}",
            [
                "gpus.yaml:1:18: `tasks` is 'anny'",
                "  any, or a list that is not empty, each value a text",
                "  did you mean 'any'?",
            ],
        ),
        (
            "{name: a, prices: {AWS: 1}}",
            ["gpus.yaml:1:20: the name is 'AWS'", "  a text such as aws"],
        ),
        (
            "{name: a, vendor: null}",
            ["gpus.yaml:1:19: `vendor` is empty", "  one of amd, apple, nvidia"],
        ),
        ("{vendor: amd}", ["gpus.yaml:1:1: `name` is missing", "  a text"]),
        ("[]", ["gpus.yaml:1:1: the file is an empty list", f"  {GPU.words()}"]),
    ],
)
def test_a_value_out_of_shape_is_told_with_its_place(text, lines):
    """What stands there and where, what is allowed, the nearest known value."""
    assert faults(text) == [lines]


def test_an_unknown_key_is_a_fault_with_the_nearest_name():
    """A misspelt key is never ignored, and the other faults come with it."""
    (unknown, missing) = faults("vendor: amd\nnmae: T4\n")
    assert unknown[0] == "gpus.yaml:2:1: unknown key 'nmae'"
    assert unknown[2] == "  did you mean 'name'?"
    assert missing[0] == "gpus.yaml:1:1: `name` is missing"


def test_the_entry_that_lacks_a_key_is_named():
    """In a map of entries the fault stands at the entry's own name."""
    (fault,) = faults("gpus:\n  t4: {vendor: nvidia}\n", Keys(keys={"gpus": MapOf(of=GPU)}))
    assert fault[0] == "gpus.yaml:2:3: `name` is missing in 't4'"


def test_null_may_count_as_left_out():
    """Where a person states what is known, null says nothing; a required key is then missing."""
    shape = Keys(keys={"task": Text(), "rows": Number()}, required=("task",), nulls=True)
    assert faults("{task: qa, rows: null}", shape) == []
    assert faults("{task: null}", shape) == [["gpus.yaml:1:1: `task` is missing", "  a text"]]


def test_a_value_without_lines_goes_by_its_name():
    """A flag, or JSON that came in a list, is named by its path."""
    told = [
        fault.headline for fault in check_shape(NamedValue("[2]", {"lanes": 0, "nam": "x"}), GPU)
    ]
    assert told == ["[2].lanes is 0", "[2]: unknown key 'nam'", "[2]: `name` is missing"]
    assert check_shape(NamedValue("--gpus", 0.5), Number(whole=True))[0].headline == "--gpus is 0.5"


def test_a_part_of_a_file_can_be_checked_alone():
    """A path names the part, and places are those of the whole file."""
    document = parse_yaml("gpus:\n  - {name: T4}\n  - {nme: T4}\n", name="gpus.yaml")
    assert check_shape(document, GPU, ("gpus", 0)) == []
    assert check_shape(document, GPU, ("gpus", 1))[0].headline == "gpus.yaml:3:6: unknown key 'nme'"


def test_a_word_that_one_name_alone_begins_with_is_understood():
    """ "chat" is far from "chat_assistant" by its letters; of two such names neither is meant."""
    assert did_you_mean("chat", ["chat_assistant", "qa"]) == "did you mean 'chat_assistant'?"
    assert did_you_mean("chat", ["chat_assistant", "chat_summariser"]) == ""
    assert did_you_mean("chat", ["chatter_box_of_words", "qa"]) == ""
