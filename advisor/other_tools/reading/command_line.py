"""A command line that starts a tool, as people keep it in scripts and paste it into issues:
`llamafactory-cli train --stage sft ...`, `trl sft --config job.yaml --max_length 512`.

It is read, never run: variables are filled in only where the script itself or the environment says
their value.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from advisor.ground.yaml_reader import Path_

MAX_COMMANDS = 2000  # lines of a script that are looked at
# The stem of a script -> command of TRL.
TRL_SCRIPTS = {
    "sft": "sft", "dpo": "dpo", "kto": "kto", "reward": "reward", "reward_modeling": "reward",
    "grpo": "grpo", "rloo": "rloo",
}  # fmt: skip
MARKED_LINES = 400  # of one command
REDIRECTIONS = (">", ">>", "2>", "2>&1", "&", "&>", "<")
LLAMAFACTORY_SCRIPTS = ("src/train.py", "src/train_bash.py", "llamafactory/launcher.py")
_ASSIGNED = re.compile(r"\s*(?:export\s+|local\s+|readonly\s+)?([A-Za-z_]\w*)=(.*)$")
_FLAG = re.compile(r"--?([A-Za-z][\w.-]*)(?:=(.*))?$", re.DOTALL)
# A flag, or a key before `=`, where it begins.
_WORD = re.compile(r"(?:--?|(?<=\s))([A-Za-z_][\w.-]*)(?=[\s=\\]|$)")
_NUMBER = re.compile(r"-\.?\d")
_PAIR = re.compile(r"([A-Za-z_][\w.]*)=(.*)$", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class CommandLine:
    """A tool and what it is given.

    Attributes:
        command: The word behind the tool's name; empty where the file decides.
        config: The file that it is given too; empty without one.
        values: Key -> text, list of texts, or True for a flag without a value.
        key_marks: Where each flag stands in the script.
        variables: What the script assigns before.
        line: Of the script, from 0, where the command begins.
    """

    tool: str
    command: str = ""
    config: str = ""
    values: Mapping[str, str | list[str] | bool] = field(default_factory=dict)
    key_marks: Mapping[Path_, tuple[int, int]] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    line: int = 0


def command_lines(text: str) -> list[CommandLine]:
    """Every command in a script that starts one of the tools, in order."""
    found, variables = [], dict[str, str]()
    for line, words in _logical_lines(text):
        if len(words) == 1 and (assigned := _ASSIGNED.match(words[0])):
            variables[assigned[1]] = assigned[2]
            continue
        if words[:1] == ["export"]:
            for word in words[1:]:
                if assigned := _ASSIGNED.match(word):
                    variables[assigned[1]] = assigned[2]
            continue
        one = started(words)
        if one is not None:
            tool, command, rest = one
            config, values = _arguments(tool, rest)
            found.append(
                CommandLine(
                    tool=tool,
                    command=command,
                    config=config,
                    values=values,
                    key_marks=_marks(text, line, values),
                    variables=dict(variables),
                    line=line,
                )
            )
    return found


def _logical_lines(text: str) -> Iterator[tuple[int, list[str]]]:
    """The line, from 0, and the words of every command; lines joined by a backslash are one."""
    lines = text.splitlines()[: 20 * MAX_COMMANDS]
    at = 0
    for _ in range(MAX_COMMANDS):
        if at >= len(lines):
            return
        first, whole = at, lines[at]
        at += 1
        # Blanks behind a backslash end a command in a shell; people paste them all the same.
        while whole.rstrip().endswith("\\") and at < len(lines):
            whole = f"{whole.rstrip()[:-1]} {lines[at]}"
            at += 1
        whole = whole.rstrip().removesuffix("\\")  # of a text that was cut off
        prompt = re.sub(r"^\s*[$!>%]\s+", "", whole)
        for part in re.split(r"\s(?:&&|\|\||;|\|)\s|;\s*$", prompt):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:  # a quote that does not end
                words = part.split()
            if words:
                yield first, words


def started(words: list[str]) -> tuple[str, str, list[str]] | None:
    """The tool, its command, and what it is given."""
    for at, word in enumerate(words):
        base, rest = word.rsplit("/", 1)[-1], words[at + 1 :]
        following = rest[0] if rest else ""
        if base in ("llamafactory-cli", "lmf") and following == "train":
            return "llamafactory", "train", rest[1:]
        if word.endswith(LLAMAFACTORY_SCRIPTS) or base == "train_bash.py":
            return "llamafactory", "train", rest
        if base == "trl" and following in TRL_SCRIPTS:
            return "trl", TRL_SCRIPTS[following], rest[1:]
        stem = base.removesuffix(".py")
        if base.endswith(".py") and stem in TRL_SCRIPTS and _is_trl(words):
            return "trl", TRL_SCRIPTS[stem], rest
        if base == "axolotl" and following in ("train", "preprocess"):
            return "axolotl", "", rest[1:]
        if word == "-m" and following in ("axolotl.cli.train", "axolotl.cli.preprocess"):
            return "axolotl", "", rest[1:]
    return None


def flag_of(tool: str, word: str) -> str:
    """The name of the flag that a word is, with `_`; empty for a value."""
    flag = None if _NUMBER.match(word) else _FLAG.match(word)
    if flag is not None:
        return flag[1].replace("-", "_")
    pair = _PAIR.match(word) if tool == "llamafactory" else None
    return pair[1] if pair is not None else ""


def _is_trl(words: list[str]) -> bool:
    """Whether a script called sft.py is TRL's: it is given TRL's names."""
    flags = ("--model_name_or_path", "--model_name", "--dataset_name", "--config", "--use_peft")
    return any(word.split("=")[0] in flags for word in words)


def _arguments(tool: str, words: list[str]) -> tuple[str, dict[str, str | list[str] | bool]]:
    """The file that is given, and every flag with its value."""
    config, found = "", dict[str, str | list[str] | bool]()
    ends = [at for at, word in enumerate(words) if word in REDIRECTIONS]
    words = words[: ends[0]] if ends else words
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        flag = None if _NUMBER.match(word) else _FLAG.match(word)
        if flag is None:
            pair = _PAIR.match(word)
            if pair is not None and tool == "llamafactory":
                found[pair[1]] = pair[2]
            elif word.endswith((".yaml", ".yml", ".json")) and not config:
                config = word
            continue
        name, values = flag[1].replace("-", "_"), []
        if flag[2] is not None:
            values = [flag[2]]
        else:
            # All words up to the next flag belong to this one.
            while at < len(words) and (_NUMBER.match(words[at]) or not _FLAG.match(words[at])):
                values.append(words[at])
                at += 1
        if name == "config" and values:
            config = values[0]
        else:
            found[name] = True if not values else values[0] if len(values) == 1 else values
    return config, found


def _marks(text: str, line: int, values: Mapping[str, object]) -> dict[Path_, tuple[int, int]]:
    """Where each flag stands, from the line at which the command begins."""
    found: dict[Path_, tuple[int, int]] = {}
    lines = text.splitlines()
    for number in range(line, min(len(lines), line + MARKED_LINES)):
        for match in _WORD.finditer(lines[number]):
            name = match[1].replace("-", "_")
            if name in values:
                found.setdefault((name,), (number + 1, match.start() + 1))
    return found
