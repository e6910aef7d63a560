"""Which tool a configuration is for, and which of the tool's commands, told by its keys; or by the
words of a command line, as people paste it into issues.

A key that one tool alone has says more than one that several share; without the key that names the
base model there is nothing to train.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from advisor.extras.other_tools.tool import TOOLS, Tool, known_names, tool_named
from advisor.ground.errors import AdviseError, InputError
from advisor.ground.files import read_at_most

CONFIGURATIONS = (".yaml", ".yml", ".json")
SCRIPTS = (".sh", ".bash", ".zsh", ".slurm", ".sbatch", ".py", ".toml")
MAX_BYTES = 256_000  # nobody writes more by hand
OWN = 3  # what a key counts for that one tool alone has; one that several have counts once
PROGRAMS = {
    "llamafactory-cli": "llamafactory", "lmf": "llamafactory", "trl": "trl", "axolotl": "axolotl",
}  # fmt: skip
_FLAG = re.compile(r"(--?)?([A-Za-z_][\w.-]*)(?:=(.*))?$", re.DOTALL)
_END = re.compile(r"[12]?>.*|[&<;|]+")


class Command(NamedTuple):
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
        return ending in CONFIGURATIONS or path.is_file()
    if ending != ".json" or not path.is_file() or path.stat().st_size > MAX_BYTES:
        return False
    try:
        values = json.loads(read_at_most(path, MAX_BYTES))
    except (OSError, ValueError, RecursionError, AdviseError):
        return False
    return isinstance(values, dict) and bool(recognised(values)[0])


def recognised(values: Mapping[str, Any]) -> tuple[str, str]:
    """The tool whose file this is, empty without the key of a base model; and a doubt about it."""
    tools = [tool for tool in TOOLS if tool_named(tool).base_key in values]
    if not tools:
        return "", ""
    points = {
        tool: sum(OWN if _owners(key) == (tool,) else tool in _owners(key) for key in values)
        for tool in tools
    }
    # A file of LLaMA-Factory nearly always has a key that it alone has, so a tie is TRL's.
    best = max(tools, key=lambda tool: (points[tool], tool == "trl"))
    equal = [tool_named(tool).name for tool in tools if points[tool] == points[best]]
    return best, f"its keys are those of {' and '.join(equal)}" if len(equal) > 1 else ""


@cache
def _owners(key: str) -> tuple[str, ...]:
    return tuple(
        tool for tool in TOOLS if key in known_names(tool) or key in tool_named(tool).renamed
    )


def command_of(tool: Tool, values: Mapping[str, Any], text: str, *, name: str) -> Command:
    """The command that a file is for, which comments may name, as in `# trl reward --config x`.
    Raises InputError for one with which nothing is trained.
    """
    if tool.id == "llamafactory":
        _refuse_other_purposes(values, name)
    known = list(tool.commands)
    words = "|".join(map(re.escape, known))
    named = set(re.findall(rf"(?m)^\s*#.*\b{tool.id} ({words})\b", text))
    if len(known) == 1 or len(named) == 1:
        return Command(named.pop() if len(named) == 1 else known[0])
    counts = {one: sum(tool.has(key, one) for key in values) for one in known}
    likely = tuple(one for one in known if counts[one] == max(counts.values()))
    said = f"read as a file of `{tool.id} {likely[0]}`"
    if len(likely) == 1:
        return Command(likely[0], f"{said}, which alone knows all of its keys")
    others = ", ".join(likely[1:])
    return Command(likely[0], f"{said}: its keys do not tell it from {others}", likely)


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


# --------------------------------------------------------------------------- a command line


class CommandLine(NamedTuple):
    """A tool, its command, the file that it is given too, and the words behind each flag."""

    tool: str
    command: str
    config: str
    flags: Mapping[str, Sequence[str]]


def command_line(text: str) -> CommandLine | None:
    """The first command in a text that starts one of the tools. It is read, never run; lines that a
    backslash joins are one.
    """
    # Blanks behind a backslash end a command in a shell; people paste them all the same.
    for line in re.sub(r"\\[ \t]*\n", " ", text).splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # a quote that does not end
            continue
        for at, (word, command) in enumerate(pairwise(words)):
            tool = PROGRAMS.get(word.rsplit("/", 1)[-1])
            if tool is not None and command in tool_named(tool).commands:
                return CommandLine(tool, command, *_flags(tool, words[at + 2 :]))
    return None


def _flags(tool: str, words: Sequence[str]) -> tuple[str, Mapping[str, Sequence[str]]]:
    """The file that is given, and the words behind every flag."""
    config, last = "", ""
    found: dict[str, list[str]] = {}
    for word in words:
        if _END.fullmatch(word):
            break
        flag = _FLAG.match(word)
        is_pair = tool == "llamafactory" and not last and "=" in word  # OmegaConf's key=value
        if flag is not None and (flag[1] or is_pair):
            name = flag[2].replace("-", "_")
            found[name] = [] if flag[3] is None else [flag[3]]
            last = name if flag[3] is None else ""
        elif last:
            found[last].append(word)
        elif word.endswith(CONFIGURATIONS):
            config = word
    return config or " ".join(found.pop("config", ())), found
