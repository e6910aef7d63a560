"""A command line that starts a tool, as people keep it in scripts and paste it into issues:
`llamafactory-cli train --stage sft ...`, `trl sft --config job.yaml --max_length 512`.

It is read, never run: variables are filled in only where the script itself says their value.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from advisor.ground.yaml_reader import Path_

MAX_LINES = 20_000
# The stem of a script -> command of TRL.
TRL_SCRIPTS = {
    "sft": "sft", "dpo": "dpo", "kto": "kto", "reward": "reward", "reward_modeling": "reward",
    "grpo": "grpo", "rloo": "rloo",
}  # fmt: skip
TRL_FLAGS = ("--model_name_or_path", "--model_name", "--dataset_name", "--config", "--use_peft")
LLAMAFACTORY_SCRIPTS = ("src/train.py", "train_bash.py", "llamafactory/launcher.py")
_ASSIGNED = re.compile(r"(?:export\s+|local\s+|readonly\s+)?([A-Za-z_]\w*)=(\S*)$")
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_FLAG = re.compile(r"--?([A-Za-z][\w.-]*)(?:=(.*))?$", re.DOTALL)
_PAIR = re.compile(r"()([A-Za-z_][\w.]*)=(.*)$", re.DOTALL)
_WORD = re.compile(r"(?:--?|(?<=\s))([A-Za-z_][\w.-]*)(?=[\s=\\]|$)")  # a flag where it begins
_END = re.compile(r"[12]?>.*|&|<")


@dataclass(frozen=True, kw_only=True, slots=True)
class CommandLine:
    """A tool and what it is given.

    Attributes:
        command: The word behind the tool's name; empty where the file decides.
        config: The file that it is given too; empty without one.
        values: Key -> text, list of texts, or True for a flag without a value.
        marks: Where each flag stands in the script.
    """

    tool: str
    command: str = ""
    config: str = ""
    values: Mapping[str, str | list[str] | bool] = field(default_factory=dict)
    marks: Mapping[Path_, tuple[int, int]] = field(default_factory=dict)


def command_lines(text: str) -> list[CommandLine]:
    """Every command in a script that starts one of the tools, in order."""
    lines = text.splitlines()[:MAX_LINES]
    found, variables = [], dict[str, str]()
    for first, last, words in _commands(lines):
        words = [_filled(word, variables) for word in words]
        for word in words[1:] if words[0] == "export" else words[:1] if len(words) == 1 else ():
            if assigned := _ASSIGNED.match(word):
                variables[assigned[1]] = assigned[2]
        if (one := _started(words)) is not None:
            tool, command, rest = one
            config, values = _arguments(tool, rest)
            marks = _marks(lines[first:last], first, values)
            found.append(
                CommandLine(tool=tool, command=command, config=config, values=values, marks=marks)
            )
    return found


def _filled(word: str, variables: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda match: variables.get(match[1] or match[2], match[0]), word)


def _commands(lines: list[str]) -> Iterator[tuple[int, int, list[str]]]:
    """First line, line behind it, and the words of every command; lines that a backslash joins are
    one.
    """
    at = 0
    while at < len(lines):
        first, parts = at, [lines[at].rstrip()]
        at += 1
        # Blanks behind a backslash end a command in a shell; people paste them all the same.
        while parts[-1].endswith("\\") and at < len(lines):
            parts.append(lines[at].rstrip())
            at += 1
        whole = " ".join(part.removesuffix("\\") for part in parts)
        for part in re.split(r"\s(?:&&|\|\||;|\|)\s|;\s*$", re.sub(r"^\s*[$!>%]\s+", "", whole)):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:  # a quote that does not end
                words = part.split()
            if words:
                yield first, at, words


def _started(words: list[str]) -> tuple[str, str, list[str]] | None:
    """The tool, its command, and what it is given."""
    for at, word in enumerate(words):
        base, rest = word.rsplit("/", 1)[-1], words[at + 1 :]
        following = rest[0] if rest else ""
        if base in ("llamafactory-cli", "lmf") and following == "train":
            return "llamafactory", "train", rest[1:]
        if word.endswith(LLAMAFACTORY_SCRIPTS):
            return "llamafactory", "train", rest
        if base == "trl" and following in TRL_SCRIPTS:
            return "trl", TRL_SCRIPTS[following], rest[1:]
        stem = base.removesuffix(".py")
        is_trl = any(one.split("=")[0] in TRL_FLAGS for one in words)  # a script may be called so
        if base != stem and stem in TRL_SCRIPTS and is_trl:
            return "trl", TRL_SCRIPTS[stem], rest
        if (base, following) in (("axolotl", "train"), ("-m", "axolotl.cli.train")):
            return "axolotl", "", rest[1:]
    return None


def _is_value(word: str) -> bool:
    return not _FLAG.match(word) or word[1:2].isdigit()


def _arguments(tool: str, words: list[str]) -> tuple[str, dict[str, str | list[str] | bool]]:
    """The file that is given, and every flag with its value."""
    config, found = "", dict[str, str | list[str] | bool]()
    end = next((at for at, word in enumerate(words) if _END.fullmatch(word)), len(words))
    words, at = words[:end], 0
    while at < len(words):
        word = words[at]
        at += 1
        flag = _FLAG.match(word)
        pair = _PAIR.match(word) if tool == "llamafactory" else None
        if flag is None and pair is not None:
            found[pair[2]] = pair[3]
        elif flag is None and word.endswith((".yaml", ".yml", ".json")):
            config = config or word
        if flag is None:
            continue
        name, values = flag[1].replace("-", "_"), [] if flag[2] is None else [flag[2]]
        while flag[2] is None and at < len(words) and _is_value(words[at]):
            values.append(words[at])  # all words up to the next flag belong to this one
            at += 1
        if name == "config" and values:
            config = values[0]
        else:
            found[name] = True if not values else values[0] if len(values) == 1 else values
    return config, found


def _marks(
    lines: list[str], first: int, values: Mapping[str, object]
) -> dict[Path_, tuple[int, int]]:
    found: dict[Path_, tuple[int, int]] = {}
    for number, line in enumerate(lines, first + 1):
        for match in _WORD.finditer(line):
            name = match[1].replace("-", "_")
            if name in values:
                found.setdefault((name,), (number, match.start() + 1))
    return found
