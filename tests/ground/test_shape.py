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
    """What is wrong, each fault with its lines."""
    found = check_shape(parse_yaml(text, name="gpus.yaml"), shape)
    return ["\n".join(fault.lines()) for fault in found]


# Every kind of value, null where it may be, whole numbers also as 16.0.
WHOLE = """\
name: T4
memory_gb: null
lanes: 16.0
vendor: nvidia
unified: false
checked: "2026-11-25"
release: "7.5"
sizes: [1, 2.5]
tasks: any
prices: {aws: 0.5}
more: {a: [null]}
"""
KNOWN = (
    "  known: checked, lanes, memory_gb, more, name, prices, release, sizes, tasks, unified, vendor"
)
MISSING = "gpus.yaml:1:1: `name` is missing\n  a text"
ENTRIES = Keys(keys={"gpus": MapOf(of=GPU)})  # the fault stands at the entry's own name
# Where a person states what is known, null says nothing; a required key is then missing.
STATED = Keys(keys={"name": Text(), "rows": Number()}, required=("name",), nulls=True)


@pytest.mark.parametrize(
    ("text", "shape", "expected"),
    [
        (WHOLE, GPU, []),
        ("name: T4\ntasks: [qa]\n", GPU, []),
        ("{name: qa, rows: null}", STATED, []),
        ("{name: null}", STATED, [MISSING]),
        (
            "gpus:\n  t4: {vendor: nvidia}\n",
            ENTRIES,
            ["gpus.yaml:2:3: `name` is missing in 't4'\n  a text"],
        ),
        # A misspelt key is never ignored, and the other faults come with it.
        (
            "vendor: amd\nnmae: T4\n",
            GPU,
            [f"gpus.yaml:2:1: unknown key 'nmae'\n{KNOWN}\n  did you mean 'name'?", MISSING],
        ),
    ],
)
def test_all_faults_are_told_with_the_nearest_name(text, shape, expected):
    """What has the shape has none."""
    assert faults(text, shape) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{name: 4090}", "gpus.yaml:1:8: `name` is 4090\n  a text\n  quote it"),
        ("{name: ''}", "gpus.yaml:1:8: `name` is empty\n  a text"),
        ("{name: a, memory_gb: 0}", "gpus.yaml:1:22: `memory_gb` is 0\n  a number above 0"),
        ("{name: a, lanes: 1.5}", "gpus.yaml:1:18: `lanes` is 1.5\n  a whole number from 1 to 16"),
        (
            "{name: a, lanes: true}",
            "gpus.yaml:1:18: `lanes` is true\n  a whole number from 1 to 16",
        ),
        (
            "{name: a, vendor: nvida}",
            "gpus.yaml:1:19: `vendor` is 'nvida'\n"
            "  one of amd, apple, nvidia\n  did you mean 'nvidia'?",
        ),
        ("{name: a, unified: 1}", "gpus.yaml:1:20: `unified` is 1\n  true or false"),
        (
            '{name: a, checked: "2026-13-30"}',
            "gpus.yaml:1:20: `checked` is '2026-13-30'\n  a text such as 2026-11-25, in quotes",
        ),
        (
            "{name: a, release: 12.8}",
            'gpus.yaml:1:20: `release` is 12.8\n  a text such as "12.8"\n  quote it',
        ),
        (
            "{name: a, sizes: [1]}",
            "gpus.yaml:1:18: `sizes` is a list\n  a list of 2 values, each a number of at least 0",
        ),
        ("{name: a, sizes: [1, -1]}", "gpus.yaml:1:22: `sizes[1]` is -1\n  a number of at least 0"),
        ("{name: a, tasks: [1]}", "gpus.yaml:1:19: `tasks[0]` is 1\n  a text\n  quote it"),
        (
            "{name: a, tasks: anny}",
            "gpus.yaml:1:18: `tasks` is 'anny'\n"
            "  any, or a list that is not empty, each value a text\n  did you mean 'any'?",
        ),
        ("{name: a, prices: {AWS: 1}}", "gpus.yaml:1:20: the name is 'AWS'\n  a text such as aws"),
        (
            "{name: a, vendor: null}",
            "gpus.yaml:1:19: `vendor` is empty\n  one of amd, apple, nvidia",
        ),
        ("{vendor: amd}", MISSING),
        ("[]", f"gpus.yaml:1:1: the file is an empty list\n  {GPU.words()}"),
    ],
)
def test_a_value_out_of_shape_is_told_with_its_place(text, said):
    """What stands there and where, what is allowed, the nearest known value."""
    assert faults(text) == [said]


def test_a_value_without_lines_goes_by_its_name():
    """A flag, or JSON that came in a list, is named by its path."""
    found = check_shape(NamedValue("[2]", {"lanes": 0, "nam": "x"}), GPU)
    told = [fault.headline for fault in found]
    assert told == ["[2].lanes is 0", "[2]: unknown key 'nam'", "[2]: `name` is missing"]
    assert check_shape(NamedValue("--gpus", 0.5), Number(whole=True))[0].headline == "--gpus is 0.5"


def test_a_part_of_a_file_can_be_checked_alone():
    """A path names the part, and places are those of the whole file."""
    document = parse_yaml("gpus:\n  - {name: T4}\n  - {nme: T4}\n", name="gpus.yaml")
    assert check_shape(document, GPU, ("gpus", 0)) == []
    assert check_shape(document, GPU, ("gpus", 1))[0].headline == "gpus.yaml:3:6: unknown key 'nme'"


@pytest.mark.parametrize(
    ("known", "said"),
    [
        (["chat_assistant", "qa"], "did you mean 'chat_assistant'?"),
        (["chat_assistant", "chat_summariser"], ""),
        (["chatter_box_of_words", "qa"], ""),
    ],
)
def test_a_word_that_one_name_alone_begins_with_is_understood(known, said):
    """ "chat" is far from "chat_assistant" by its letters; of two such names neither is meant."""
    assert did_you_mean("chat", known) == said
