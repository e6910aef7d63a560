"""docs/agents.md: every command on it runs, and every name on it exists."""

import io
import json
import re
import shlex
import sys

import pytest

from advisor.ground.resources import agents_page
from advisor.ruleset.load import load_rules
from advisor.schema.build import schemas
from advisor.situation.answers import signals
from tests.fake_model import write_fake_model
from tests.launch.conftest import CONFIG, MACHINE, STAND_IN

PAGE = agents_page().read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(" ".join(line.split()))
    for line in re.findall(
        r"^ *((?:echo .* \| )?advise .+)$|`(advise \w+ [^`]+)`", PAGE, re.MULTILINE
    )
    for line in line
    if line and not line.endswith("rules agents")
]


def test_the_page_is_short_and_is_printed(call):
    """At most 150 lines; `advise rules agents` prints it, and `advise --help` names that."""
    assert len(PAGE.splitlines()) <= 150
    assert call("rules", "agents")[1] == PAGE
    assert "advise rules agents" in " ".join(call("--help")[1].split())


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with data, a model, and trainers that stand in for the real ones."""
    rows = (
        {"prompt": f"Where is order {n}?", "completion": f"Order {n} left us on day {n % 30}."}
        for n in range(600)
    )
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_fake_model(tmp_path / "model", CONFIG)
    monkeypatch.setattr("advisor.launch.call.trainers_root", lambda: STAND_IN)
    monkeypatch.setattr("advisor.launch.call.probe", lambda: MACHINE)
    return tmp_path


def test_every_command_runs_in_order(call, project, monkeypatch):
    """From the first look at the data to the trained model, as they stand on the page."""
    assert len(COMMANDS) >= 9
    printed = {}
    for words in COMMANDS:
        if words[0] == "echo":
            piped = io.TextIOWrapper(io.BytesIO(words[1].encode()))
            monkeypatch.setattr(sys, "stdin", piped)
            words = words[3:]
        code, out, err = call(*words[1:])
        assert code == 0, (words, err)
        if "--json" in words:
            printed[" ".join(words)] = json.loads(out)
    assert len(printed) >= 6
    (trained,) = (value for name, value in printed.items() if name == "advise run plan.yaml --json")
    assert trained["status"] == "done"


def properties_of(schema, root):
    """Name -> schema of the keys that a schema allows."""
    while "$ref" in schema:
        node = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            node = node[part]
        schema = node
    found = dict(schema.get("properties", {}))
    for option in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), schema.get("items", {})):
        if isinstance(option, dict):
            found |= properties_of(option, root) if option else {}
    return found


def test_every_path_of_the_answer_exists():
    """The first column of the table of the answer names keys of its schema."""
    root = schemas(load_rules())["advice"]
    table = PAGE.split("## What to read in the answer")[1].split("Of `advise run`")[0]
    paths = [
        path
        for row in re.findall(r"^\| (`.*?) \|", table, re.M)
        for path in re.findall(r"`([\w.]+)`", row)
    ]
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
        for key, part in value.items():
            yield key
            yield from vocabulary(part)
    elif isinstance(value, list):
        for part in value:
            yield from vocabulary(part)
    elif isinstance(value, str):
        yield value


OTHER = {"advise", "sft", "dpo", "qlora", "prompting", "HF_HUB_OFFLINE"}  # commands and methods


def test_every_name_is_one(call, project):
    """A word in code style is a key or value of a schema, or of a document that is printed."""
    known = set(OTHER)
    for schema in schemas(load_rules()).values():
        known |= set(vocabulary(schema))
    for command in (
        ["check", "train.jsonl", "--json"],
        ["--json", "--task", "qa", "--gpu", "none"],
    ):
        known |= set(vocabulary(json.loads(call(*command)[1])))
    prose = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
    names = set(re.findall(r"`([A-Za-z_][\w.]*)`", prose))
    unknown = {name for name in names if not set(name.split(".")) <= known}
    assert len(names) > 90
    assert not unknown


def test_every_fact_that_can_be_stated_is_named():
    """Values of each question and every signal, so that the page is enough to state facts."""
    facts = load_rules().facts
    named = set(re.findall(r"`([\w.]+)`|\b(\w+)(?=:)", PAGE))
    words = {word for pair in named for word in pair if word}
    wanted = set(signals(facts))
    for fact_id in ("task", "data_kind", "depth", "budget", "serve_with", "priority", "teacher"):
        wanted |= set(facts[fact_id].values)
    assert wanted - words == set()


@pytest.mark.parametrize("gpu", [{"vram_gib": 24}, {"vram_gib": 24, "count": 2}, {"name": "T4"}])
def test_a_part_of_the_gpu_can_stand_alone(call, monkeypatch, gpu):
    """A card of which its memory alone is known is enough for the question whether it fits."""
    asked = {"task": "qa", "model": "Qwen/Qwen3-0.6B", "gpu": gpu, "data": {"rows": None}}
    piped = io.TextIOWrapper(io.BytesIO(json.dumps(asked).encode()))
    monkeypatch.setattr(sys, "stdin", piped)
    code, out, _ = call("--json", "--answers", "-")
    assert code == 0
    assert json.loads(out)["recommendation"]["estimate"]["fits"] == "fits"
