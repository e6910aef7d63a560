"""What agents are told is true: docs/agents.md runs in order, the skill is that page, and each manifest holds
what its reader knows."""

import io
import json
import re
import shlex
import sys
from functools import reduce
from operator import getitem

import pytest
import yaml

from advisor.cli import COMMANDS
from advisor.commands.mcp import TOOLS
from advisor.ground.resources import docs_page
from advisor.ruleset.load import load_rules
from advisor.schema.build import schemas
from advisor.situation.answers import signals
from tests.conftest import ROOT
from tests.fake_model import write_fake_model
from tests.launch.conftest import CONFIG, MACHINE, STAND_IN
from tools.generate.agent_files import MANIFESTS

PAGE = docs_page("agents")
LINE = re.compile(r"^ *((?:echo .* \| )?advise .+)$|`(advise \w+ [^`]+)`", re.MULTILINE)
LINES = [
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


@pytest.mark.extra("jobs", "other_tools", "benchmarks", "hub")
def test_every_command_runs_in_order(call, project, monkeypatch):
    """From the first look at the data to the trained model, as they stand on the page."""
    assert len(LINES) >= 9
    printed = {}
    for words in LINES:
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


@pytest.mark.extra("jobs", "other_tools", "benchmarks", "hub")
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


SKILL = ROOT / "skills" / "finetune-advisor" / "SKILL.md"
# agent-plugins.org/specification (5.2 to 5.5), code.claude.com/docs/en/plugins/manifest-reference,
# geminicli.com/docs/extensions/reference: the keys they know, those that must be there.
PORTABLE = {"$schema", "name", "version", "description", "author", "license", "keywords"}
KNOWN = {
    "plugin.json": (PORTABLE, {"$schema", "name"}),
    ".claude-plugin/plugin.json": ((PORTABLE - {"$schema"}) | {"mcpServers"}, {"name"}),
    "gemini-extension.json": (
        {"name", "version", "description", "mcpServers"},
        {"name", "version"},
    ),
    "mcp.json": ({"$schema", "mcpServers"}, {"$schema", "mcpServers"}),
    ".claude-plugin/marketplace.json": ({"name", "owner", "plugins"}, {"name", "owner", "plugins"}),
}
NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")


def test_the_skill_is_the_page_for_agents_with_a_name_and_a_moment():
    """agentskills.io/specification: the folder's name, at most 1,024 characters of description,
    fewer than 500 lines. tests/test_agents_page.py runs every command of the page.
    """
    _, front, body = SKILL.read_text("utf-8").split("---\n", 2)
    about = yaml.safe_load(front)
    assert (about.keys(), about["name"]) == ({"name", "description"}, SKILL.parent.name)
    assert NAME.fullmatch(about["name"])
    assert len(about["description"]) <= 1024
    assert " Use when " in about["description"]
    page = docs_page("agents")
    assert page.startswith(body.strip())
    assert page.removeprefix(body.strip()).lstrip().startswith("## Setting it up\n")
    assert len(body.splitlines()) < 500


@pytest.mark.parametrize("name", KNOWN)
def test_a_manifest_holds_what_its_reader_knows(name):
    """No other key, no missing one, the product's name, and a server that is a command of ours."""
    found = json.loads((ROOT / name).read_text("utf-8"))
    known, needed = KNOWN[name]
    assert needed <= found.keys() <= known
    assert NAME.fullmatch(found.get("name", "x"))
    for server, words in found.get("mcpServers", {}).items():
        assert NAME.fullmatch(server)
        assert words.keys() - {"type"} == {"command", "args"}
        assert (words.get("type", "stdio"), words["command"]) == ("stdio", "advise")
        assert words["args"][0] in COMMANDS
    assert KNOWN.keys() == MANIFESTS.keys()


def test_the_marketplace_points_at_a_plugin_in_the_repository():
    """code.claude.com/docs/en/plugins/marketplace-reference: a relative source begins with `./`."""
    listed = json.loads((ROOT / ".claude-plugin" / "marketplace.json").read_text("utf-8"))
    assert listed["owner"]["name"]
    for plugin in listed["plugins"]:
        assert plugin["source"].startswith("./")
        manifest = ROOT / plugin["source"] / ".claude-plugin" / "plugin.json"
        assert json.loads(manifest.read_text("utf-8"))["name"] == plugin["name"]
