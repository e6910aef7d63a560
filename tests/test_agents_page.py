"""docs/agents.md: every command on it runs, and every name on it exists."""

import io
import json
import re
import shlex
import sys
from functools import reduce
from operator import getitem

import pytest

from advisor.commands.mcp import TOOLS
from advisor.ground.resources import docs_page
from advisor.ruleset.load import load_rules
from advisor.schema.build import schemas
from advisor.situation.answers import signals
from tests.fake_model import write_fake_model
from tests.launch.conftest import CONFIG, MACHINE, STAND_IN

PAGE = docs_page("agents")
LINE = re.compile(r"^ *((?:echo .* \| )?advise .+)$|`(advise \w+ [^`]+)`", re.MULTILINE)
COMMANDS = [
    shlex.split(" ".join((block or inline).split()))
    for block, inline in LINE.findall(PAGE)
    if not (block or inline).endswith("rules agents")
]


def test_the_page_is_short_and_is_printed(call):
    """At most 180 lines; `advise rules agents` prints it, and `advise --help` names that."""
    assert len(PAGE.splitlines()) <= 180
    assert call("rules", "agents")[1] == PAGE
    assert "advise rules agents" in " ".join(call("--help")[1].split())


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with data, a model, and trainers that stand in for the real ones."""
    row = '{{"prompt": "Where is order {0}?", "completion": "Order {0} left us on day {1}."}}\n'
    (tmp_path / "train.jsonl").write_text("".join(row.format(n, n % 30) for n in range(600)))
    write_fake_model(tmp_path / "model", CONFIG)
    monkeypatch.setattr("advisor.launch.call.trainers_root", lambda: STAND_IN)
    monkeypatch.setattr("advisor.launch.call.probe", lambda: MACHINE)
    return tmp_path


def type_in(monkeypatch, text):
    """Give this to the next command on standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def test_every_command_runs_in_order(call, project, monkeypatch):
    """From the first look at the data to the trained model, as they stand on the page."""
    assert len(COMMANDS) >= 9
    printed = {}
    for words in COMMANDS:
        if words[0] == "echo":
            type_in(monkeypatch, words[1])
            words = words[3:]
        code, out, err = call(*words[1:])
        assert code == 0, (words, err)
        if "--json" in words:
            printed[" ".join(words)] = json.loads(out)
    assert len(printed) >= 6
    assert printed["advise run plan.yaml --json"]["status"] == "done"


def properties_of(schema, root):
    """Name -> schema of the keys that a schema allows."""
    while "$ref" in schema:
        schema = reduce(getitem, schema["$ref"].removeprefix("#/").split("/"), root)
    found = dict(schema.get("properties", {}))
    for option in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), schema.get("items", {})):
        found |= properties_of(option, root) if option and isinstance(option, dict) else {}
    return found


def test_every_path_of_the_answer_exists():
    """The first column of the table of the answer names keys of its schema."""
    root = schemas(load_rules())["advice"]
    table = PAGE.split("## What to read in the answer")[1].split("Of `advise run`")[0]
    paths = re.findall(r"`([\w.]+)`", " ".join(re.findall(r"^\| (`.*?) \|", table, re.M)))
    assert len(paths) > 15
    for path in paths:
        node = root
        for key in path.split("."):
            known = properties_of(node, root)
            assert key in known, f"{path}: {sorted(known)}"
            node = known[key]


def vocabulary(value):
    """Every key, enumerated value and constant in a schema or document."""
    if isinstance(value, dict):
        return {*value}.union(*map(vocabulary, value.values()))
    if isinstance(value, list):
        return set().union(*map(vocabulary, value))
    return {value} if isinstance(value, str) else set()


# Commands, methods, tools and what they return.
OTHER = {"sft", "dpo", "qlora", "prompting", "HF_HUB_OFFLINE", *TOOLS, "isError", "specs", "id"}


def test_every_name_is_one(call, project):
    """A word in code style is a key or value of a schema, or of a document that is printed."""
    printed = [
        json.loads(call(*line.split())[1])
        for line in ("check train.jsonl --json", "--json --task qa --gpu none")
    ]
    known = OTHER | vocabulary([*schemas(load_rules()).values(), *printed])
    names = set(re.findall(r"`([A-Za-z_][\w.]*)`", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)))
    assert len(names) > 90
    assert {name for name in names if not set(name.split(".")) <= known} == set()


def test_every_fact_that_can_be_stated_is_named():
    """Values of each question and every signal, so that the page is enough to state facts."""
    facts = load_rules().facts
    words = {word for pair in re.findall(r"`([\w.]+)`|\b(\w+)(?=:)", PAGE) for word in pair}
    asked = ("task", "data_kind", "depth", "budget", "serve_with", "priority", "teacher")
    assert {*signals(facts)}.union(*(facts[name].values for name in asked)) - words == set()


@pytest.mark.parametrize("gpu", [{"vram_gib": 24}, {"vram_gib": 24, "count": 2}, {"name": "T4"}])
def test_a_part_of_the_gpu_can_stand_alone(call, monkeypatch, gpu):
    """A card of which its memory alone is known is enough for the question whether it fits."""
    asked = {"task": "qa", "model": "Qwen/Qwen3-0.6B", "gpu": gpu, "data": {"rows": None}}
    type_in(monkeypatch, json.dumps(asked))
    code, out, _ = call("--json", "--answers", "-")
    assert (code, json.loads(out)["recommendation"]["estimate"]["fits"]) == (0, "fits")
