"""Which tool a file is for: by its keys, and never a data file."""

import json

import pytest

from advisor.extras.other_tools.file import (
    command_line,
    looks_like_configuration,
    read_file,
    recognised,
)
from advisor.ground.errors import InputError

ROWS = [
    '[{"prompt": "a", "completion": "b"}]',
    '{"prompt": "a", "completion": "b"}',
    '{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}',
    '{"messages": [{"role": "user", "content": "a"}]}',
    '{"data": [{"question": "a", "answer": "b"}], "version": "1.1"}',
    '{"train": [{"text": "a"}], "test": []}',
    '{"learning_rate": "a row about learning rates", "answer": "b", "question": "c"}',
    "{",
    "",
]


TOOL_FILES = {
    "trl": {"model_name_or_path": "Qwen/Qwen3-0.6B", "dataset_name": "a/b", "max_length": 512},
    "llamafactory": {"model_name_or_path": "Qwen/Qwen3-0.6B", "stage": "sft",
     "finetuning_type": "lora", "dataset": "identity", "template": "qwen3"},
    "axolotl": {"base_model": "Qwen/Qwen3-0.6B", "datasets": [{"path": "a/b", "type": "alpaca"}]},
}  # fmt: skip


@pytest.mark.parametrize("tool", TOOL_FILES)
@pytest.mark.parametrize("ending", [".yaml", ".yml", ".json"])
def test_a_configuration_is_told_by_its_keys(tmp_path, tool, ending):
    """The three tools are told apart, as YAML and as JSON."""
    path = tmp_path / f"job{ending}"
    path.write_text(json.dumps(TOOL_FILES[tool], indent=2))
    assert looks_like_configuration(path)
    assert read_file(path).tool == tool


@pytest.mark.parametrize("text", ROWS)
def test_rows_are_no_configuration(tmp_path, text):
    """A data file goes on to be read as data."""
    path = tmp_path / "rows.json"
    path.write_text(text)
    assert not looks_like_configuration(path)
    assert not looks_like_configuration(tmp_path / "rows.jsonl")
    assert not looks_like_configuration(tmp_path)


def test_a_key_that_one_tool_alone_has_counts_more():
    """One word of LLaMA-Factory among the keys of Hugging Face's Trainer decides."""
    base = {"model_name_or_path": "m", "learning_rate": 1e-4, "num_train_epochs": 1, "bf16": True}
    assert recognised({**base, "cutoff_len": 512}) == ("llamafactory", "")
    assert recognised({**base, "lora_r": 8}) == ("trl", "")
    tool, doubt = recognised(base)
    assert tool == "trl"
    assert "LLaMA-Factory" in doubt


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"version": 1, "model": "m", "stages": []}, "advise run FILE --dry-run"),
        ({"zero_optimization": {"stage": 2}, "train_batch_size": "auto"}, "advise --model MODEL"),
        ({"learning_rate": 1e-4, "lora_r": 8}, "advise --model MODEL"),
    ],
)
def test_other_files_are_refused_with_what_can_be_done(tmp_path, values, hint):
    """A file without a base model is nobody's that we know."""
    path = tmp_path / "other.yaml"
    path.write_text(json.dumps(values))
    assert looks_like_configuration(path)
    with pytest.raises(InputError, match="no configuration of a tool that we know") as caught:
        read_file(path)
    (fault,) = caught.value.faults
    assert "Axolotl" in fault.allowed
    assert hint in fault.hint


# -------------------------------------------------------------------------- command lines


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


TRL_VALUES = {
    "packing": True, "lora_target_modules": "q_proj", "gradient_checkpointing": False,
    "max_length": 512, "eos_token": "<|im_end|>",
}  # fmt: skip


def read(folder, text, name="job.sh"):
    """The script, read."""
    (folder / name).write_text(text)
    return read_file(folder / name)


def test_a_command_of_llamafactory(tmp_path):
    """Nothing is filled in; a misspelt flag is a finding about the file."""
    file = read(tmp_path, LLAMAFACTORY)
    assert (file.tool, file.command.name, file.is_script) == ("llamafactory", "train", True)
    assert file.values.items() >= {
        "model_name_or_path": "Qwen/Qwen3-0.6B", "output_dir": "runs/a", "learning_rate": 5e-5,
        "packing": False, "run_name": "$NAME",
    }.items()  # fmt: skip
    (fault,) = [one for one in file.faults if one.id == "key/lora_rnk"]
    assert fault.where.endswith("job.sh")
    assert fault.instead == {"lora_rnk": None, "lora_rank": 8}


def test_a_command_of_trl(tmp_path):
    """Flags without a value, lists of one word, `--no_`, JSON in quotes."""
    file = read(tmp_path, TRL)
    assert (file.command.name, file.faults) == ("sft", [])
    assert {key: file.values[key] for key in TRL_VALUES} == TRL_VALUES


def test_a_file_that_flags_overrule(tmp_path):
    """`--config FILE`, a file behind `train`, and OmegaConf's key=value."""
    (tmp_path / "job.yaml").write_text("base_model: m\nmicro_batch_size: 8\n")
    file = read(tmp_path, "axolotl train job.yaml --micro_batch_size=2 --num-epochs 3\n")
    assert file.tool == "axolotl"
    assert file.values == {"base_model": "m", "micro_batch_size": 2, "num_epochs": 3}
    (tmp_path / "l.yaml").write_text("model_name_or_path: m\nstage: sft\ndo_train: true\n")
    values = read(tmp_path, "llamafactory-cli train l.yaml learning_rate=1e-5 stage=dpo\n").values
    assert (values["learning_rate"], values["stage"]) == (1e-5, "dpo")
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
