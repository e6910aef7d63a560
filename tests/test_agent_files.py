"""The skill and the manifests are what the agents that read them ask for."""

import json
import re

import pytest
import yaml

from advisor.cli import COMMANDS
from advisor.ground.resources import docs_page
from tests.conftest import ROOT
from tools.generate.agent_files import MANIFESTS

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
