"""Changes of a command line in a script: the flags that change, and nothing beside them."""

import subprocess

import pytest

from advisor.other_tools.checking.edit_script import edited_script
from advisor.other_tools.reading.command_line import command_lines

LONG = """\
#!/bin/sh
export MODEL=acme/m
trl sft \\
    --model_name_or_path $MODEL \\
    --max_seq_length 512 \\
    --packing \\
    --lora_target_modules q_proj v_proj \\
    --output_dir "my out"
echo done
"""
SHORT = "cd x && llamafactory-cli train a.yaml lora_rank=8 bf16=true > log.txt  # first try\n"


@pytest.mark.parametrize(
    ("text", "changes", "old", "new"),
    [
        (LONG, {"max_seq_length": None, "max_length": 512}, "max_seq_length", "max_length"),
        (LONG, {"max_seq_length": 64}, "length 512", "length 64"),
        (LONG, {"packing": False}, "--packing", "--packing false"),
        (LONG, {"packing": None}, "    --packing \\\n", ""),
        (LONG, {"output_dir": None}, ' \\\n    --output_dir "my out"', ""),
        (LONG, {"output_dir": "a b"}, '"my out"', "'a b'"),
        (LONG, {"lora_target_modules": ["all-linear"]}, "q_proj v_proj", "all-linear"),
        (LONG, {"lr": 2e-4}, '"my out"', '"my out" \\\n    --lr 0.0002'),
        (SHORT, {"lora_rank": 16}, "lora_rank=8", "lora_rank=16"),
        (SHORT, {"tf32": True}, "bf16=true", "bf16=true tf32=true"),
        ("axolotl train a.yaml --lora-r 8\n", {"tf32": False}, "-r 8", "-r 8 --no-tf32"),
    ],
)  # fmt: skip
def test_one_flag_changes_and_the_rest_stays(text, changes, old, new):
    """Renamed, changed, taken away or added, in the style of the command."""
    assert text.count(old) == 1
    assert edited_script(text, changes) == text.replace(old, new)


def test_several_changes_at_once_are_a_script_that_a_shell_takes(tmp_path):
    """All flags are read back as they were meant, and `sh -n` finds no fault."""
    new = edited_script(LONG, {"output_dir": None, "packing": None, "lr": 1e-5, "bf16": True})
    values = command_lines(new)[0].values
    assert values == {
        "model_name_or_path": "$MODEL", "max_seq_length": "512", "lr": "1e-05", "bf16": "true",
        "lora_target_modules": ["q_proj", "v_proj"],
    }  # fmt: skip
    (tmp_path / "new.sh").write_text(new)
    assert subprocess.run(["sh", "-n", tmp_path / "new.sh"], check=False).returncode == 0
    assert new.endswith("\necho done\n")


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        (LONG, {"model_init_kwargs.dtype": "bfloat16"}), (LONG, {"model_init_kwargs": {"a": 1}}),
        ("trl sft --config a.yaml\n", {"packing": None}), ("echo trl\n", {"packing": True}),
    ],
)  # fmt: skip
def test_what_no_flag_can_say_is_not_written(text, changes):
    """Maps, and keys that only the file beside the command names."""
    assert edited_script(text, changes) is None


def test_secrets_do_not_come_back():
    """Neither of a flag nor of a variable."""
    text = "export HF_TOKEN=hf_abc\ntrl sft --hub_token hf_def --packing\n"
    assert "hf_" not in edited_script(text, {"packing": False})
