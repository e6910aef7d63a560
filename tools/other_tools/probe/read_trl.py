"""Read the key table of the installed TRL."""

from __future__ import annotations

import argparse
import importlib
import importlib.resources
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import version
from typing import Any

from accelerate.commands.launch import launch_command_parser
from trl.scripts._hf_argparser import HfArgumentParser

from tools.other_tools.probe.dataclass_keys import Classes, table
from tools.other_tools.probe.trials import pretend_gpu

COMMANDS = ("sft", "dpo", "kto", "reward", "grpo", "rloo")
# The parser's own key, and the one that `trl` makes into accelerate's --config_file.
PARSER, LAUNCHER = "TrlParser", "accelerate.launch"
# The function that reads a text -> what it makes of it.
READ_AS = {
    "int": "integer", "float": "number", "str": "text", "dict": "map",
    "string_to_bool": "flag", "str_to_bool": "flag",
}  # fmt: skip


def launcher_keys() -> dict[str, Any]:
    """What `accelerate launch` takes: keys that a script does not know are handed to it."""
    keys: dict[str, Any] = {}
    for action in launch_command_parser()._actions:
        if not action.option_strings or action.dest == "help":
            continue
        if action.nargs == 0:
            entry: dict[str, Any] = {"types": ["flag"], "bare": True}
        else:
            word = READ_AS.get(getattr(action.type, "__name__", "str"), "text")
            entry = {"types": [word]}
            if action.choices:
                entry["choices"] = list(action.choices)
        if action.default not in (None, argparse.SUPPRESS):
            entry["default"] = action.default
        # A file's key becomes an option of that very name.
        names = [name.removeprefix("--") for name in action.option_strings]
        keys[action.dest if action.dest in names else max(names, key=len)] = entry
    folder = importlib.resources.files("trl.accelerate_configs")
    names = [item.name for item in folder.iterdir() if item.name.endswith(".yaml")]
    names = sorted(name.removesuffix(".yaml") for name in names)
    keys["accelerate_config"] = {"types": ["text"], "choices": names, "open": True}
    return keys


class ArgparseClasses(Classes):
    """Classes whose values TRL hands to argparse as defaults: texts are read as on a command line,
    everything else is taken as it is.
    """

    def __init__(self, package: str, parsed: Iterable[type]) -> None:
        super().__init__(package)
        self.parsed = {base for cls in parsed for base in cls.__mro__}

    def as_text(self, cls: type, key: str, entry: Mapping[str, Any]) -> dict[str, Any]:
        if cls not in self.parsed:  # a map inside a map reaches no parser
            return {}
        action = next(item for item in parser_of(cls)._actions if item.dest == key)
        word = READ_AS.get(getattr(action.type, "__name__", ""))
        others = "text" in entry["types"] and word != "text"
        if word is None or (not others and word in (*entry["types"], *entry.get("of", ()))):
            return {}
        return {"text_is": word}

    def takes(self, cls: type, key: str, value: Any) -> bool:
        if isinstance(value, str) and cls in self.parsed:
            read = next(item for item in parser_of(cls)._actions if item.dest == key).type
            try:
                value = read(value) if callable(read) else value
            except (TypeError, ValueError, argparse.ArgumentTypeError):
                return False
        return super().takes(cls, key, value)


@cache
def parser_of(cls: type) -> HfArgumentParser:
    return HfArgumentParser([cls])


def main() -> dict[str, Any]:
    pretend_gpu()
    commands = {
        name: importlib.import_module(f"trl.scripts.{name}").make_parser().dataclass_types
        for name in COMMANDS
    }
    classes = ArgparseClasses("trl", (cls for listed in commands.values() for cls in listed))
    made = table(classes, commands)
    made["commands"] = {
        name: [*listed, PARSER, LAUNCHER] for name, listed in made["commands"].items()
    }
    made["classes"][PARSER] = {"keys": {"env": {"types": ["map"], "of": ["text"]}}}
    made["classes"][LAUNCHER] = {"arguments": True, "keys": launcher_keys()}
    made["release"] = version("trl")
    made["made_with"] = {name: version(name) for name in ("transformers", "accelerate", "peft")}
    return made
