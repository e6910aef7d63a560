"""Which tool a file is for: by its keys, and never a data file."""

import json

import pytest

from advisor.extras.other_tools.file import looks_like_configuration, read_file, recognised
from advisor.ground.errors import InputError

TRL = {"model_name_or_path": "Qwen/Qwen3-0.6B", "dataset_name": "a/b", "max_length": 512}
LLAMAFACTORY = {
    "model_name_or_path": "Qwen/Qwen3-0.6B", "stage": "sft", "finetuning_type": "lora",
    "dataset": "identity", "template": "qwen3",
}  # fmt: skip
AXOLOTL = {"base_model": "Qwen/Qwen3-0.6B", "datasets": [{"path": "a/b", "type": "alpaca"}]}
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


@pytest.mark.parametrize(
    ("tool", "values"), [("trl", TRL), ("llamafactory", LLAMAFACTORY), ("axolotl", AXOLOTL)]
)
@pytest.mark.parametrize("ending", [".yaml", ".yml", ".json"])
def test_a_configuration_is_told_by_its_keys(tmp_path, tool, values, ending):
    """The three tools are told apart, as YAML and as JSON."""
    path = tmp_path / f"job{ending}"
    path.write_text(json.dumps(values, indent=2))
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


def test_a_key_that_one_tool_alone_has_counts_more(tmp_path):
    """One word of LLaMA-Factory among the keys of Hugging Face's Trainer decides."""
    shared = {"learning_rate": 1e-4, "num_train_epochs": 1, "output_dir": "x", "bf16": True}
    base = {"model_name_or_path": "m", **shared}
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
