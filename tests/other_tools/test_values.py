"""What other tools' parsers make of values. Each case was tried with the tool's own parser:
TRL 1.16.0, LLaMA-Factory 0.9.5, Axolotl 0.19.0; test_tables_long.py tries every key.
"""

import pytest

from advisor.other_tools.tables.keys import keys_of, newest
from advisor.other_tools.tables.tool import tool_named
from advisor.other_tools.tables.values import allowed, check_value

CASES = [
    # tool, command, key, value, what becomes of it, and the value that the tool goes on with
    ("trl", "sft", "learning_rate", "2e-5", "turned", 2e-5),
    ("trl", "sft", "learning_rate", "abc", "refused", "abc"),
    ("trl", "sft", "learning_rate", [1], "passed", [1]),
    ("trl", "sft", "max_length", 3.5, "passed", 3.5),
    ("trl", "sft", "max_length", "3.5", "refused", "3.5"),
    ("trl", "sft", "max_length", "none", "turned", None),
    ("trl", "sft", "packing", "no", "turned", False),
    ("trl", "sft", "packing", "maybe", "refused", "maybe"),
    ("trl", "sft", "packing_strategy", "bogus", "passed", "bogus"),
    ("trl", "sft", "lora_target_modules", "q_proj", "passed", "q_proj"),
    ("trl", "sft", "liger_kernel_config", "abc", "refused", "abc"),
    ("trl", "sft", "datasets", "a", "refused", "a"),
    ("trl", "sft", "num_processes", 4, "meant", 4),
    ("trl", "sft", "num_processes", "x", "refused", "x"),
    ("trl", "sft", "mixed_precision", "bogus", "refused", "bogus"),
    ("trl", "sft", "multi_gpu", True, "refused", True),
    ("llamafactory", "train", "learning_rate", "2e-5", "passed", "2e-5"),
    ("llamafactory", "train", "packing", "no", "passed", "no"),
    ("llamafactory", "train", "cutoff_len", 3.5, "passed", 3.5),
    ("axolotl", "train", "learning_rate", "2e-5", "meant", "2e-5"),
    ("axolotl", "train", "weight_decay", "1e-2", "turned", 0.01),
    ("axolotl", "train", "sequence_len", "2048", "turned", 2048),
    ("axolotl", "train", "sequence_len", 2048.5, "refused", 2048.5),
    ("axolotl", "train", "sample_packing", "off", "turned", False),
    ("axolotl", "train", "sample_packing", "maybe", "refused", "maybe"),
    ("axolotl", "train", "base_model", 3, "refused", 3),
    ("axolotl", "train", "merge_method", "bogus", "refused", "bogus"),
]


@pytest.mark.parametrize(("tool", "command", "name", "value", "outcome", "goes_on"), CASES)
def test_a_value_is_taken_as_the_tool_takes_it(tool, command, name, value, outcome, goes_on):
    """Texts as numbers, wrong types and wrong choices: each tool in its own way."""
    key = keys_of(newest(tool), command)[name]
    taken = check_value(tool_named(tool).parsing["values"], key, value)
    assert (taken.outcome, taken.value) == (outcome, goes_on)


@pytest.mark.parametrize(
    ("tool", "command", "name", "words"),
    [
        ("trl", "sft", "max_length", "a whole number, or null"),
        ("trl", "sft", "save_strategy", "one of no, steps, epoch, best"),
        ("trl", "sft", "report_to", "a text, or a list of texts, or null"),
        (
            "axolotl",
            "train",
            "relora_prune_ratio",
            "a number of at least 0 and at most 1, or null",
        ),
        ("axolotl", "train", "torch_compile", "true or false, or one of auto, or null"),
        ("axolotl", "train", "fsdp_config", "a map of its keys, or null"),
    ],
)
def test_what_is_allowed_is_said_in_words(tool, command, name, words):
    """A message can name what a key may hold."""
    assert allowed(keys_of(newest(tool), command)[name]) == words
