"""A configuration of another tool, read: nothing of it is run, filled in or included.

What is wrong with single keys is in `faults`; only a file that cannot be read, or that is for no
tool that we know, is an error (InputError).
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from msgspec import Struct, field

from advisor.extras.other_tools.findings import ToolFinding
from advisor.extras.other_tools.mapping import ABSENT, at_key
from advisor.extras.other_tools.tool import TOOLS, Tool, known_names, meant_key, tool_named
from advisor.extras.other_tools.yaml_text import PlainData, edited, parsed, read_word, steps
from advisor.ground.errors import AdviseError, InputError
from advisor.ground.files import read_at_most
from advisor.ground.memory_errors import MemoryRanOut
from advisor.ground.shape import Path_
from advisor.ground.terminal import MASK, find_secrets, is_secret_key, mask_secrets
from advisor.ground.yaml_files import decode_utf8
from advisor.record.smaller import yaml_value

CONFIGURATIONS = (".yaml", ".yml", ".json")
MAX_BYTES = 256_000  # nobody writes more by hand
CODE = {".py": 1_000_000, ".ipynb": 64_000_000}  # what may be read of it: notebooks hold images
SCRIPTS = (".sh", ".bash", ".zsh", ".slurm", ".sbatch", ".toml", *CODE)
PINNED = r"\b{}(?:\[[^\]]*\])?\s*==\s*(\d+(?:\.\d+)*)"  # trl[peft]==0.15.2
OWN = 3  # what a key counts for that one tool alone has; one that several have counts once
PROGRAMS = {
    "llamafactory-cli": "llamafactory", "lmf": "llamafactory", "trl": "trl", "axolotl": "axolotl",
}  # fmt: skip
_FLAG = re.compile(r"(--?)?([A-Za-z_][\w.-]*)(?:=(.*))?$", re.DOTALL)
OF_TRL = re.compile(r"(?:\btrl|\bexamples)/scripts/(sft|dpo|kto|reward|grpo|rloo)\.py$")
_END = re.compile(r"[12]?>.*|[&<;|]+")


class Command(NamedTuple):
    """What the tool is asked to do: the word behind its name on the command line."""

    name: str
    assumed: str = ""  # a sentence, where the file does not say it
    likely: tuple[str, ...] = ()  # several, between which the keys do not decide


def looks_like_configuration(path: Path) -> bool:
    """Whether a file is a configuration, not data; of JSON the keys decide. Without errors."""
    ending = path.suffix.lower()
    if ending in (".yaml", ".yml", *SCRIPTS):
        return ending in (*CONFIGURATIONS, *CODE) or path.is_file()
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
    """The command of a file, which comments may name. Raises InputError if it trains nothing."""
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
    trains = values.get("do_train") or ("output_dir" in values and not values.get("do_predict"))
    merges, measures = values.get("export_dir"), values.get("do_predict") or "task" in values
    if trains or (not (merges or measures) and ("dataset" in values or "stage" in values)):
        return
    raise InputError(
        "nothing is trained with it: it merges, measures or answers",
        "`advise check` takes configurations of a training",
        "check the file that the model was trained with",
        where=name,
    )


class CommandLine(NamedTuple):
    """A tool, its command, the file that it is given too, and the words behind each flag."""

    tool: str
    command: str
    config: str
    flags: Mapping[str, Sequence[str]]


def command_line(text: str) -> CommandLine | None:
    """The first command in a text that starts one of the tools. It is read, never run."""
    for words in _commands(text):
        for at, (word, command) in enumerate(pairwise(words)):
            tool = PROGRAMS.get(word.rsplit("/", 1)[-1])
            if tool is not None and command in tool_named(tool).commands:
                return CommandLine(tool, command, *_flags(tool, words[at + 2 :]))
            if (own := OF_TRL.search(word)) is not None:  # TRL's own script takes the same flags
                return CommandLine("trl", own[1], *_flags("trl", words[at + 1 :]))
    return None


def script_line(text: str) -> tuple[str, dict[str, Any]] | None:
    """The first Python script that a command starts, and its flags with their values."""
    for words in _commands(text):
        for at, word in enumerate(words):
            if word.endswith(".py") and at and not word.startswith("-"):
                return word, flag_values(words[at + 1 :])
    return None


def flag_values(words: Sequence[Any]) -> dict[str, Any]:
    """The flags among the words of a command line."""
    return _flag_values(_flags("trl", [str(one) for one in words])[1], None)


def _commands(text: str) -> Iterator[list[str]]:
    # Blanks behind a backslash end a command in a shell; people paste them all the same.
    for line in re.sub(r"\\[ \t]*\n", " ", text).splitlines():
        with suppress(ValueError):  # a quote that does not end
            yield shlex.split(line, comments=True)


def _flags(tool: str, words: Sequence[str]) -> tuple[str, Mapping[str, Sequence[str]]]:
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


AROUND = 2  # lines of a diff beside a change
MOST = 100  # faults of keys
UP = 4  # folders above the file in which a relative path is looked for
PLAN_IT = "`advise` plans the same training, from questions about model, data and machine"
CHECK_PLAN = "this is a plan of `advise`: `advise run {} --dry-run` measures it"


class ToolFile(Struct, kw_only=True):
    """A configuration of another tool."""

    checked: ClassVar[str] = "configuration"
    path: Path
    name: str  # as the user wrote it
    text: str  # secrets and all; empty for a command line
    about: Tool
    command: Command
    values: dict[str, Any]  # plain data; secrets are ***
    marks: Mapping[Path_, tuple[int, int]]  # (line, column) from 1
    secrets: Mapping[Path_, Any]  # what stands there in `text`, and is *** in `values`
    meant: dict[str, Any] = field(default_factory=dict)  # the values under the names that are meant
    notes: list[str] = field(default_factory=list)  # what was assumed
    faults: list[ToolFinding] = field(
        default_factory=list
    )  # of keys, and of the data that they name
    ran_out: MemoryRanOut | None = None  # what its own output says, of a notebook
    not_estimated: str = ""  # why, of a training that is none of ours
    judged_as: str = ""  # the command whose findings count; empty: its own
    unsaid: Sequence[str] = ()  # findings that do not hold for it
    stated: dict[str, Any] = field(default_factory=dict)  # what an estimate hears beside the plan
    left_out: Mapping[str, Any] = field(default_factory=dict)  # keys whose value is not known

    @property
    def tool(self) -> str:
        """Its id."""
        return self.about.id

    @property
    def pinned(self) -> dict[str, str]:
        """The release of the tool that the file asks for, or requirements.txt beside it; empty if
        neither does.
        """
        beside = self.path.parent / "requirements.txt"
        texts = [self.text]
        with suppress(OSError, ValueError):
            texts.append(read_at_most(beside, MAX_BYTES).decode("utf-8", "replace"))
        found = re.search(PINNED.format(self.tool), "\n".join(texts))
        return {} if found is None else {self.tool: found[1]}

    @property
    def is_command_line(self) -> bool:
        """Whether a command line was read, not a file."""
        return not self.text

    @property
    def defaults(self) -> dict[str, Any]:
        """Key -> the tool's own default for this command."""
        return self.about.defaults_of(self.command.name)

    def shown_key(self, key: str) -> str:
        """What the file calls a key."""
        return key

    def shown_value(self, key: str, value: Any) -> str:
        """How the file says the value of a key."""
        return yaml_value(value)

    def left_open(self) -> dict[str, Sequence[Any]]:
        """Keys whose value is not known -> values between which it is looked for."""
        return {}

    def reads_column(self, name: str) -> bool:
        """Whether code of the file looks at a column of the rows itself."""
        return False

    def told(self) -> dict[str, Any]:
        """What the document says of this kind of file alone."""
        return {}

    def at(self, key: str) -> str:
        """file:line:column of a dotted key, or of the nearest one around it; else the file."""
        path = steps(key)
        while path and path not in self.marks:
            path = path[:-1]
        line, column = self.marks.get(path, (0, 0)) if path else (0, 0)
        return f"{self.name}:{line}:{column}" if line else self.name

    def taken_by(self, key: str) -> str:
        """Where a change of a key is made: its line, or that it is new."""
        if self.is_command_line:
            return "a flag"
        line = self.at(key).removeprefix(self.name).strip(":").partition(":")[0]
        return f"line {line}" if at_key(self.values, key) is not ABSENT and line else "a new key"

    def fault(
        self, severity: str, key: str, what: str, instead: Mapping[str, Any] | None = None
    ) -> None:
        """Add what is wrong with a key; an error is one with which the tool does not start."""
        self.faults.append(
            ToolFinding(
                id=f"key/{key}", severity=severity, refused=severity == "error",
                text=what, where=self.at(key), instead=instead or None,
            )
        )  # fmt: skip

    def with_changes(self, changes: Mapping[str, Any]) -> str | None:
        """The text with these changes, secrets too; None for a script, or if it takes a hand."""
        if self.is_command_line:
            return None
        renamed = {old: new for old in changes if (new := meant_key(self.tool, old)) is not None}
        kept = {renamed.get(str(path[0]), path[0]): value for path, value in self.secrets.items()}
        changes = {
            key: kept.get(key, value) if value == MASK else value for key, value in changes.items()
        }
        return edited(self.text, changes, renamed)

    def diff(self, changes: Mapping[str, Any]) -> list[str]:
        """Lines of a unified diff without secrets; empty for a script, for none, or by hand."""
        after = self.with_changes(changes) if changes else None
        return [] if after is None else self.lines_of_diff(self.text, after)

    def lines_of_diff(self, before: str, after: str, of: str = "") -> list[str]:
        """The same of two texts, or of a part of them."""
        names = (f"{self.name}{of}", f"{self.name}{of} (changed)")
        both = before.splitlines(), after.splitlines()
        lines = list(difflib.unified_diff(*both, *names, lineterm="", n=AROUND))
        for secret in map(str, self.secrets.values()):
            lines = [line.replace(secret, MASK) for line in lines]
        return [mask_secrets(line) for line in lines]

    def by_hand(self, changes: Mapping[str, Any]) -> list[str]:
        """The changes one by one: flags of a command line, or keys where a diff takes a hand."""
        dash, colon = ("--", "") if self.is_command_line else ("", ":")
        return [
            f"- {dash}{key}" if value is None else f"+ {dash}{key}{colon} {yaml_value(value)}"
            for key, value in changes.items()
        ]


def found_near(path: Path, named: str) -> Path | None:
    """The file or folder meant: beside `path`, in the folders above it, or in the current one."""
    if not named or len(named) > 1000:
        return None
    own = path.absolute().parent
    for folder in dict.fromkeys((path.parent, Path(), own, *list(own.parents)[:UP])):
        try:
            wanted = folder / Path(named).expanduser()
            if wanted.exists():
                return wanted
        except (OSError, ValueError, RuntimeError):  # RuntimeError: a user without a known home
            continue
    return None


def read_file(path: str | os.PathLike[str], text: str | None = None) -> ToolFile:
    """The file, as it would be with another `text`. Raises InputError for what is no such file, or
    trains nothing.
    """
    where, name = Path(path), os.fspath(path)
    text = read_text(where, name=name) if text is None else text
    notes, marks = list[str](), dict[Path_, tuple[int, int]]()
    read = f"read are files of {', '.join(tool_named(tool).name for tool in TOOLS)}"
    if where.suffix.lower() in CONFIGURATIONS:
        values, marks = _read_values(text, name)
        tool, doubt = recognised(values)
        if not tool:
            raise InputError(
                "no configuration of a tool that we know", read,
                CHECK_PLAN.format(shlex.quote(name))
                if {"stages", "model"} <= values.keys()
                else PLAN_IT,
                where=name,
            )  # fmt: skip
        about = tool_named(tool)
        command = command_of(about, values, text, name=name)
        if doubt:
            notes.append(f"read as a file of {about.name}: {doubt}")
    else:
        line = command_line(text)
        if line is None:
            raise InputError(
                "nothing in it starts a tool that is read here",
                f"{read}, and a command that starts one: `trl sft ...`, `llamafactory-cli train"
                " ...`, `axolotl train ...`",
                "of Python code it reads what builds a trainer, such as SFTTrainer or Trainer; for"
                " another training give the values as such a file",
                where=name,
            )
        about, text = tool_named(line.tool), ""
        values = _command_values(line, about, where, name)
        command = command_of(about, values, f"# {about.id} {line.command}", name=name)
        if line.config:
            notes.append(f"with {line.config}, which the flags overrule")
    file = ToolFile(
        path=where, name=name, text=text, about=about, command=command, values=values, marks=marks,
        secrets=take_secrets(values), notes=notes,
    )  # fmt: skip
    _judge(file)
    return file


def _command_values(line: CommandLine, about: Tool, path: Path, name: str) -> dict[str, Any]:
    """The values of a command line: those of its file, and the flags, which overrule them."""
    values: dict[str, Any] = {}
    if line.config:
        beside = found_near(path, line.config)
        if beside is None:
            raise InputError(
                f"it starts {about.name} with {line.config}, which is not here",
                hint="give that file to `advise check`, or put it beside the script",
                where=name,
            )
        values, _ = _read_values(read_text(beside, name=str(beside)), str(beside))
    return values | _flag_values(line.flags, about.id)


def _flag_values(flags: Mapping[str, Sequence[str]], tool: str | None) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, words in flags.items():
        positive = key.removeprefix("no_")
        if not words and positive != key and tool is not None and positive in known_names(tool):
            values[positive] = False
        elif len(words) < 2:
            values[key] = read_word(words[0]) if words else True
        else:
            values[key] = [read_word(word) for word in words]
    return values


def _judge(file: ToolFile) -> None:
    """Say which keys are misspelt. What the tool refuses trains nothing: what is meant counts."""
    file.notes.append(f"judged by what {file.about.title} does, the release known here")
    does = "stops at" if file.about.refuses_unknown else "ignores"
    file.meant = dict(file.values)
    for key, value in file.values.items():
        near = meant_key(file.tool, key) if key not in known_names(file.tool) else None
        if near is None:
            continue
        said = (
            f"'{key}' is called '{near}' today"
            if key in file.about.renamed
            else f"'{key}' is not known here; did you mean '{near}'? {file.about.name} {does} it"
        )
        instead: dict[str, Any] = {key: None}
        if near not in file.values:
            instead[near] = MASK if is_secret_key(near) else value
            if file.about.refuses_unknown or key in file.about.renamed:
                file.meant[near] = file.meant.pop(key)
        if len(file.faults) < MOST:
            file.fault("warning", key, said, instead)


def _leaves(value: Any, path: Path_) -> Iterator[tuple[Path_, Any]]:
    if isinstance(value, dict | list):
        for step, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(one, (*path, step))
    else:
        yield path, value


def take_secrets(values: dict[str, Any]) -> dict[Path_, Any]:
    """Put *** in the place of secrets, told by their form or a key around them; return them."""
    found = {}
    for path, value in list(_leaves(values, ())):
        if any(find_secrets({"": value, **{str(step): value for step in path}})):
            found[path] = value
            node: Any = values
            for step in path[:-1]:
                node = node[step]
            node[path[-1]] = MASK
    return found


def read_text(path: Path, *, name: str, most_bytes: int = MAX_BYTES) -> str:
    """The text of a file. Raises InputError for anything that is none."""
    try:
        raw = read_at_most(path, most_bytes)
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise InputError(f"cannot be read: {said}", where=name, hint="check the path") from None
    if len(raw) > most_bytes:
        what = f"more than {most_bytes:,} bytes"
        raise InputError(what, where=name, hint="no such file is as long")
    return decode_utf8(raw, name).replace("\r\n", "\n")


def _read_values(text: str, name: str) -> tuple[dict[str, Any], dict[Path_, tuple[int, int]]]:
    found = PlainData(parsed(text, name=name), name=name)
    if not isinstance(found.value, dict):
        kind = (
            "a list" if isinstance(found.value, list) else "one value" if found.value else "nothing"
        )
        raise InputError(f"it holds {kind}, no map of keys and values", PLAN_IT, where=name)
    return found.value, found.marks
