"""A command line that starts a tool, from a script or an issue: read as a file with its keys."""

import pytest

from advisor.extras.other_tools.file import command_line, read_file
from advisor.ground.errors import InputError

LLAMAFACTORY = """\
#!/bin/bash
CUDA_VISIBLE_DEVICES=0,1 llamafactory-cli train \\
    --stage sft --do_train True \\
    --model_name_or_path Qwen/Qwen3-0.6B \\
    --finetuning_type lora --lora_target q_proj,v_proj --lora_rnk 8 \\
    --learning-rate 5e-05 --packing False --dataset x --template qwen3 \\
    --output_dir runs/a --run_name $NAME > log.txt 2>&1 &
"""
TRL = """\
trl sft --model_name_or_path m --dataset_name a/b --output_dir o --packing --use_peft \\
  --lora_target_modules q_proj --no_gradient_checkpointing --max_length=512 \\
  --model_init_kwargs '{"a": 1}' --learning_rate 2e-4 --eos_token '<|im_end|>'
"""


def read(folder, text, name="job.sh"):
    """The script, read."""
    path = folder / name
    path.write_text(text)
    return read_file(path)


def test_a_command_of_llamafactory(tmp_path):
    """Nothing is filled in; a misspelt flag is a finding about the file."""
    file = read(tmp_path, LLAMAFACTORY)
    assert (file.tool, file.command.name, file.is_script) == ("llamafactory", "train", True)
    assert file.values["model_name_or_path"] == "Qwen/Qwen3-0.6B"
    assert file.values["output_dir"] == "runs/a"
    assert file.values["learning_rate"] == 5e-5
    assert file.values["packing"] is False
    assert file.values["run_name"] == "$NAME"
    (fault,) = [one for one in file.faults if one.id == "key/lora_rnk"]
    assert fault.where.endswith("job.sh")
    assert fault.instead == {"lora_rnk": None, "lora_rank": 8}


def test_a_command_of_trl(tmp_path):
    """Flags without a value, lists of one word, `--no_`, JSON in quotes."""
    file = read(tmp_path, TRL)
    assert file.command.name == "sft"
    assert file.faults == []
    assert file.values["packing"] is True
    assert file.values["lora_target_modules"] == "q_proj"
    assert file.values["gradient_checkpointing"] is False
    assert file.values["max_length"] == 512
    assert file.values["eos_token"] == "<|im_end|>"


def test_a_file_that_flags_overrule(tmp_path):
    """`--config FILE`, a file behind `train`, and OmegaConf's key=value."""
    (tmp_path / "job.yaml").write_text(
        "base_model: m\nmicro_batch_size: 8\nlearning_rate: 1.0e-4\n"
    )
    text = "axolotl train job.yaml --micro_batch_size=2 --num-epochs 3\n"
    file = read(tmp_path, text)
    assert file.tool == "axolotl"
    assert file.values["micro_batch_size"] == 2
    assert file.values["num_epochs"] == 3
    assert file.values["base_model"] == "m"
    (tmp_path / "l.yaml").write_text("model_name_or_path: m\nstage: sft\ndo_train: true\n")
    file = read(tmp_path, "llamafactory-cli train l.yaml learning_rate=1e-5 stage=dpo\n")
    assert file.values["learning_rate"] == 1e-5
    assert file.values["stage"] == "dpo"
    with pytest.raises(InputError, match=r"gone\.yaml, which is not here"):
        read(tmp_path, "trl sft --config gone.yaml\n")


@pytest.mark.parametrize(
    ("text", "tool", "command"),
    [
        ("FORCE_TORCHRUN=1 lmf train --stage sft", "llamafactory", "train"),
        ("$ axolotl train job.yml", "axolotl", "train"),
        ("cd x && trl grpo --config a.yaml ; echo done", "trl", "grpo"),
    ],
)
def test_the_ways_in_which_tools_are_started(text, tool, command):
    """By their own program, with whatever stands before it."""
    assert command_line(text)[:2] == (tool, command)


@pytest.mark.parametrize(
    "text", ["", "echo hello\n", "python sft.py\n", "x='\n", "\\\n" * 50, "# trl sft --a b\n"]
)
def test_other_scripts_are_refused(tmp_path, text):
    """With what is read, and what to do with Python code."""
    with pytest.raises(InputError, match="nothing in it starts a tool") as caught:
        read(tmp_path, text, name="train.py")
    assert "give the values as such a file" in caught.value.faults[0].hint
