"""Which tool a configuration file is for, and which of the tool's commands, told by its keys.

A key that one tool alone has says more than one that several share; without the key that names the
base model there is nothing to train.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from advisor.extras.other_tools.tool import TOOLS, Tool, known_names, tool_named
from advisor.ground.errors import AdviseError, InputError
from advisor.ground.files import read_at_most

SCRIPTS = (".sh", ".bash", ".zsh", ".slurm", ".sbatch", ".py", ".toml")
MAX_BYTES = 256_000  # of a JSON file that may be one
OWN = 3  # what a key counts for that one tool alone has; one that several have counts once


@dataclass(frozen=True, kw_only=True, slots=True)
class Recognised:
    """Whose file it is: the id of a tool, empty for nobody's that we know."""

    tool: str = ""
    why: str = ""
    is_sure: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """What the tool is asked to do: the word behind its name on the command line."""

    name: str
    assumed: str = ""  # a sentence, where the file does not say it
    likely: tuple[str, ...] = ()  # several, between which the keys do not decide


def looks_like_configuration(path: Path) -> bool:
    """Whether `advise check` should take a file as a configuration, not as data: no data file ends
    as YAML or a script does, and of JSON the keys decide. Without errors: whoever reads it says
    why it cannot be read.
    """
    ending = path.suffix.lower()
    if ending in (".yaml", ".yml", *SCRIPTS):
        return ending in (".yaml", ".yml") or path.is_file()
    if ending != ".json" or not path.is_file() or path.stat().st_size > MAX_BYTES:
        return False
    try:
        values = json.loads(read_at_most(path, MAX_BYTES))
    except (OSError, ValueError, RecursionError, AdviseError):
        return False
    return isinstance(values, dict) and bool(recognised(values).tool)


def recognised(values: Mapping[str, Any]) -> Recognised:
    """Whose a file with these values is; nobody's without the key of a base model."""
    tools = [tool for tool in TOOLS if tool_named(tool).base_key in values]
    if not tools:
        return Recognised()
    points = {
        tool: sum(OWN if _owners(key) == (tool,) else tool in _owners(key) for key in values)
        for tool in tools
    }
    # A file of LLaMA-Factory nearly always has a key that it alone has, so a tie is TRL's.
    best = max(tools, key=lambda tool: (points[tool], tool == "trl"))
    rivals = [tool for tool in tools if tool != best and points[tool] == points[best]]
    if rivals:
        both = " and ".join(tool_named(tool).name for tool in (best, *rivals))
        return Recognised(tool=best, why=f"its keys are those of {both}", is_sure=False)
    return Recognised(tool=best)


@cache
def _owners(key: str) -> tuple[str, ...]:
    return tuple(
        tool for tool in TOOLS if key in known_names(tool) or key in tool_named(tool).renamed
    )


# --------------------------------------------------------------------------- command


def command_of(
    tool: Tool, values: Mapping[str, Any], text: str, *, name: str, stated: str = ""
) -> Command:
    """The command that a file is for. Raises InputError for one with which nothing is trained."""
    if tool.id == "llamafactory":
        _refuse_other_purposes(values, name)
    known = list(tool.commands)
    named = stated or _in_comments(tool, text)
    if named in known or len(known) == 1:
        return Command(name=named if named in known else known[0])
    counts = {one: sum(tool.has(key, one) for key in values) for one in known}
    likely = [one for one in known if counts[one] == max(counts.values())]
    said = f"read as a file of `{tool.id} {likely[0]}`"
    if len(likely) == 1:
        return Command(name=likely[0], assumed=f"{said}, which alone knows all of its keys")
    return Command(
        name=likely[0],
        assumed=f"{said}: its keys do not tell it from {', '.join(likely[1:])}",
        likely=tuple(likely),
    )


def _in_comments(tool: Tool, text: str) -> str:
    """The command that comments name, as in `# trl reward --config trl.yaml`; empty where they name
    none, or several.
    """
    words = "|".join(map(re.escape, tool.commands))
    named = set(re.findall(rf"(?m)^\s*#.*\b{tool.id} ({words})\b", text))
    return named.pop() if len(named) == 1 else ""


def _refuse_other_purposes(values: Mapping[str, Any], name: str) -> None:
    if values.get("do_train") or ("output_dir" in values and not values.get("do_predict")):
        return
    what = "it is for answers of a model (`llamafactory-cli chat`, `api`)"
    if values.get("export_dir"):
        what = "it merges an adapter into its base (`llamafactory-cli export`)"
    elif values.get("do_predict") or "task" in values:
        what = "it measures a model"
    elif "dataset" in values or "stage" in values:
        return
    raise InputError(
        f"{what}, and nothing is trained with it",
        "`advise check` takes configurations of a training",
        "check the file that the model was trained with",
        where=name,
    )
