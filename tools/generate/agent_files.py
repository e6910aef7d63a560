"""What coding agents read to find the product: the skill, which is docs/agents.md, and manifests
that bring it and the server `advise mcp`.

The skill is that of agentskills.io. plugin.json and mcp.json are those of agent-plugins.org, which
Codex, Copilot, Cursor and others read; Claude Code reads .claude-plugin/ (Codex its marketplace
too), and Gemini CLI gemini-extension.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from advisor.ground.resources import NAME, docs_page
from advisor.ground.version import __version__

USE_WHEN = (
    "Says whether to fine-tune a language model at all, by which method (SFT, LoRA, QLoRA, DPO,"
    " GRPO, or retrieval instead) and settings, whether it fits the GPU, how long it takes and what"
    " it costs, and trains it. Use when somebody wants to fine-tune, train or adapt an LLM, asks"
    " whether a model fits a GPU or why training ran out of memory, has training data or a"
    " trainer's configuration to check, or must choose between prompting, retrieval and training."
)
SHORT = "Whether and how to fine-tune a language model: method, memory, time and cost, by rules"
NOT_IN_SKILL = "\n## Setting it up"  # what is left to people
SERVER: dict[str, Any] = {"command": "advise", "args": ["mcp"]}
AGENT_PLUGINS = "https://agent-plugins.org/schemas/1.0.0"
ABOUT = {"name": NAME, "version": __version__, "description": SHORT}
MORE = {"license": "Apache-2.0", "keywords": ["llm", "fine-tuning", "lora", "gpu"]}
MANIFESTS: dict[str, dict[str, Any]] = {
    "plugin.json": {"$schema": f"{AGENT_PLUGINS}/plugin.schema.json", **ABOUT, **MORE},
    "mcp.json": {
        "$schema": f"{AGENT_PLUGINS}/mcp.schema.json",
        "mcpServers": {NAME: {"type": "stdio", **SERVER}},
    },
    ".claude-plugin/plugin.json": {**ABOUT, **MORE, "mcpServers": {NAME: SERVER}},
    ".claude-plugin/marketplace.json": {
        "name": NAME,
        "owner": {"name": f"{NAME} maintainers"},
        "plugins": [{"name": NAME, "source": "./", "description": SHORT}],
    },
    "gemini-extension.json": {**ABOUT, "mcpServers": {NAME: SERVER}},
}


def skill() -> str:
    """SKILL.md: the page for coding agents, with the name and the moment to use it."""
    body = docs_page("agents").partition(NOT_IN_SKILL)[0]
    return f"---\nname: {NAME}\ndescription: {json.dumps(USE_WHEN)}\n---\n\n{body}"


def files(root: Path) -> dict[Path, str]:
    """Path -> content of each file."""
    made = {root / name: json.dumps(value, indent=2) + "\n" for name, value in MANIFESTS.items()}
    return {root / "skills" / NAME / "SKILL.md": skill(), **made}
