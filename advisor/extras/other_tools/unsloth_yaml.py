"""The file of `unsloth train --config`, read as a configuration of TRL: its keys stand in
sections, and have other names (rules/tools/scripts.yaml).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from yaml.nodes import MappingNode, Node

from advisor.extras.other_tools.file import Command, ToolFile, take_secrets
from advisor.extras.other_tools.mapping import ABSENT, at_key, leaves
from advisor.extras.other_tools.script import MASKED, library_tool, table, unsloth_states
from advisor.extras.other_tools.yaml_text import PlainData, parsed
from advisor.ground.errors import InputError
from advisor.record.smaller import yaml_value

SECTIONS = ("data", "training", "lora", "logging")
KEPT = {True: "unsloth", False: "none"}


class UnslothYaml(ToolFile, kw_only=True):
    """Such a file, whose `values` have TRL's names."""

    own_defaults: dict[str, Any]

    @property
    def defaults(self) -> dict[str, Any]:
        return {**self.about.defaults_of(self.command.name), **self.own_defaults}

    def at(self, key: str) -> str:
        return super().at(_their_name(key.split(".")[0]))

    def shown_key(self, key: str) -> str:
        return _their_name(key)

    def shown_value(self, key: str, value: Any) -> str:
        return _theirs(key, value)

    def with_changes(self, changes: Mapping[str, Any]) -> str | None:
        """The text with these settings, comments kept; None if that takes a hand."""
        text = self.text
        for key, value in changes.items():
            name = _their_name(key)
            if (
                value is None
                or name == key
                or (made := _with(text, name, _theirs(key, value))) is None
            ):
                return None
            text = made
        with suppress(InputError):
            again = read_unsloth(self.path, self.name, text)
            if again is not None and again.values == {**self.values, **changes}:
                return text
        return None

    def by_hand(self, changes: Mapping[str, Any]) -> list[str]:
        return [f"+ {_their_name(key)}: {_theirs(key, value)}" for key, value in changes.items()]


def read_unsloth(path: Path, name: str, text: str) -> UnslothYaml | None:
    """The file; None if it is none of Unsloth's. Raises InputError for what is no YAML."""
    found = PlainData(parsed(text, name=name), name=name)
    given = found.value
    if not isinstance(given, dict) or not isinstance(given.get("training"), dict):
        return None
    if not isinstance(given.get("model"), str) or given.keys() - {"model", *SECTIONS}:
        return None
    secrets = take_secrets(given)
    names, values = table()["unsloth_yaml"]["keys"], dict[str, Any]()
    for theirs in leaves(given):
        key, value = names.get(theirs, theirs), at_key(given, theirs)
        if value is not None and not theirs.startswith("logging."):
            values[key] = _ours(key, value)
    kept = at_key(given, "training.gradient_checkpointing")
    defaults = {**table()["defaults"]["unsloth"], **table()["unsloth_yaml"]["defaults"]}
    if isinstance(rows := values.pop("datasets", None), list) and rows:
        values["datasets"] = [{"path": "json", "data_files": rows}]
    about = library_tool("unsloth", "unsloth train --config")
    return UnslothYaml(
        path=path, name=name, text=text, about=about, command=Command("sft"), values=values,
        marks=found.marks, secrets=secrets, meant=dict(values), own_defaults=defaults,
        stated=unsloth_states("unsloth" if kept is ABSENT else kept, "sft"),
        unsaid=[*table()["unsaid"]["unsloth"], *MASKED, "trl/no-evaluation"],
        notes=[f"judged by what {about.title} does, the release known here"],
    )  # fmt: skip


def _their_name(key: str) -> str:
    names = table()["unsloth_yaml"]["keys"]
    return next((theirs for theirs, ours in names.items() if ours == key), key)


def _ours(key: str, value: Any) -> Any:
    if key == "use_peft":
        return str(value).strip().lower() != "full"
    if key == "gradient_checkpointing":
        return str(value).strip().lower() not in ("none", "false", "0", "no", "off")
    if key == "lora_target_modules":
        return [one.strip() for one in str(value).split(",") if one.strip()]
    return -1 if key == "max_steps" and value == 0 else value


def _theirs(key: str, value: Any) -> str:
    if key == "use_peft":
        return "lora" if value else "full"
    if key == "gradient_checkpointing":
        return KEPT[bool(value)]
    if key == "lora_target_modules" and isinstance(value, list):
        return ",".join(value)
    return yaml_value(value)


def _with(text: str, name: str, value: str) -> str | None:
    """The text with one scalar of a section changed, or written as the first of it, or with it."""
    section, _, key = name.rpartition(".")
    node: Node | None = parsed(text, name="")
    for step in (section, key):
        if not isinstance(node, MappingNode):
            return None
        inner = next((one for own, one in node.value if own.value == step), None)
        if inner is None and step == section and not node.flow_style:
            return f"{text.rstrip()}\n{section}:\n  {key}: {value}\n"
        if inner is None and step == key and not node.flow_style:
            at, column = node.start_mark.index, node.start_mark.column
            return f"{text[:at]}{key}: {value}\n{' ' * column}{text[at:]}"
        node = inner
    if node is None or isinstance(node, MappingNode):
        return None
    return text[: node.start_mark.index] + value + text[node.end_mark.index :]
