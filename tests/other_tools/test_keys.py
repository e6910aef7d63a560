"""The key tables of other tools: what a command's file may hold, and by whose word."""

import pytest

from advisor.ground.errors import InputError
from advisor.other_tools.tables.keys import (
    ABSENT,
    PLAIN,
    keys_of,
    newest,
    plugin_classes,
    releases,
    tool_names,
    tool_release,
)

# Tool, command, key -> type and default, read in the tool's own source (exporters.md names them).
READ = [
    ("trl", "sft", "max_length", "integer", 1024),
    ("trl", "sft", "learning_rate", "number", 2e-5),
    ("trl", "dpo", "learning_rate", "number", 1e-6),
    ("trl", "sft", "lora_r", "integer", 16),
    ("trl", "grpo", "num_generations", "integer", 8),
    ("trl", "sft", "gradient_checkpointing", "flag", True),
    ("llamafactory", "train", "cutoff_len", "integer", 2048),
    ("llamafactory", "train", "lora_rank", "integer", 8),
    ("llamafactory", "train", "learning_rate", "number", 5e-5),
    ("axolotl", "train", "sequence_len", "integer", 512),
    ("axolotl", "train", "micro_batch_size", "integer", 1),
    ("axolotl", "train", "gradient_checkpointing", "flag", False),
]


@pytest.mark.parametrize(("tool", "command", "name", "kind", "default"), READ)
def test_a_command_has_its_keys_with_their_defaults(tool, command, name, kind, default):
    """A key has the type and the default of the class that the command parses last."""
    key = keys_of(newest(tool), command)[name]
    assert kind in key.types
    assert key.default == default


@pytest.mark.parametrize("tool", tool_names())
def test_every_name_in_a_table_leads_somewhere(tool):
    """Bases, nested classes and replacements are classes and keys of the same table."""
    for release in releases(tool):
        table = tool_release(tool, release)
        named = {name for one in table.classes.values() for name in one.bases}
        named |= {name for listed in table.commands.values() for name in listed}
        named |= {name for listed in table.plugins.values() for name in listed}
        keys = [key for one in table.classes.values() for key in one.keys.values()]
        named |= {name for key in keys for name in (*key.types, *key.of)} - set(PLAIN)
        assert named == set(table.classes)
        known = {key.name for key in keys}
        assert {key.instead for key in keys if key.instead} <= known


def test_a_class_says_only_what_it_changes():
    """TRL's checkpointing differs from transformers'; its seed does not."""
    classes = newest("trl").classes
    assert "gradient_checkpointing" in classes["_BaseConfig"].keys
    assert "seed" not in classes["_BaseConfig"].keys
    assert keys_of(newest("trl"), "sft")["seed"].default == 42


def test_a_key_without_a_stated_default_has_none():
    """What must be written has no default."""
    key = keys_of(newest("axolotl"), "train")["base_model"]
    assert key.required
    assert key.default is ABSENT


def test_a_key_stands_under_each_of_its_names():
    """Axolotl reads `model_type` and `type_of_model` as one."""
    keys = keys_of(newest("axolotl"), "train")
    assert keys["model_type"] == keys["type_of_model"]


def test_a_plugin_brings_its_keys():
    """Liger's keys are known only where the plugin is listed, by any of its paths."""
    table = newest("axolotl")
    assert "liger_rope" not in keys_of(table, "train")
    for path in ("liger.LigerPlugin", "liger.plugin.LigerPlugin"):
        keys = keys_of(table, "train", plugins=[f"axolotl.integrations.{path}"])
        assert keys["liger_rope"].types == ("flag", "null")
    assert plugin_classes(table, "mine.LigerPlugin") is None


def test_accelerates_keys_stand_behind_the_scripts_own():
    """`debug` is TrainingArguments' before it is a switch of `accelerate launch`."""
    keys = keys_of(newest("trl"), "sft")
    assert keys["num_processes"].types == ("integer",)
    assert "text" in keys["debug"].types
    assert keys["multi_gpu"].bare


def test_a_tool_without_a_table_is_refused():
    """The message names the tools that have one."""
    with pytest.raises(InputError, match="one of axolotl, llamafactory, trl"):
        newest("torchtune")
