"""Which tool a file is for: by its keys, and never a data file."""

import json

import pytest

from advisor.ground.errors import InputError
from advisor.other_tools.reading.file import read_file
from advisor.other_tools.reading.recognise import looks_like_configuration, names_of, recognised
from advisor.other_tools.tables.other_files import other_files

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
    assert recognised({**base, "cutoff_len": 512}).tool == "llamafactory"
    assert recognised({**base, "lora_r": 8}).tool == "trl"
    unsure = recognised(base)
    assert unsure.tool == "trl"
    assert not unsure.is_sure
    assert "LLaMA-Factory" in unsure.why


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"zero_optimization": {"stage": 2}, "train_batch_size": "auto"}, "DeepSpeed"),
        ({"compute_environment": "LOCAL_MACHINE", "distributed_type": "FSDP"}, "accelerate"),
        ({"version": 1, "model": "m", "stages": []}, "plan of `advise`"),
        ({"task": "qa", "budget": "low"}, "answers file"),
        ({"a": {"file_name": "a.json"}, "b": {"hf_hub_url": "a/b"}}, "dataset_info.json"),
        ({"model": {"_component_": "x"}, "tokenizer": {}}, "torchtune"),
        ({"model": "m", "training": {"max_seq_length": 8, "training_type": "lora"}}, "Unsloth"),
        ({"model": "m", "train_type": "lora", "dataset": ["a"]}, "ms-swift"),
        ({"architectures": ["x"], "model_type": "llama"}, "configuration of a model"),
        ({"peft_type": "LORA", "r": 8}, "trained adapter"),
        ({"some": "thing", "else": 1}, "no configuration of a tool that we know"),
    ],
)
def test_other_files_are_named_with_what_can_be_done(tmp_path, values, what):
    """A file that is not read says what it is, which ones are read, and the next step."""
    path = tmp_path / "other.yaml"
    path.write_text(json.dumps(values))
    assert looks_like_configuration(path)
    with pytest.raises(InputError, match=what) as caught:
        read_file(path)
    (fault,) = caught.value.faults
    assert "Axolotl" in fault.allowed
    assert fault.hint


def test_the_kinds_of_other_files_do_not_hide_a_tool():
    """No key that tells another file makes a file of a tool that one."""
    assert len(other_files()) > 20
    for values, tool in ((TRL, "trl"), (LLAMAFACTORY, "llamafactory"), (AXOLOTL, "axolotl")):
        for kind in other_files():
            for key in (*kind.any[:1], *kind.all):
                more = {**values, key.split(".")[0]: {key.split(".")[-1]: 1}}
                if key not in ("base_model", "model_name_or_path"):
                    assert recognised(more).tool == tool, (kind.id, key)


def test_what_the_user_says_wins():
    """A tool named with the file is taken; an unknown one is an error with the nearest."""
    assert recognised(TRL, tool="axolotl").tool == "axolotl"
    with pytest.raises(InputError, match="did you mean 'axolotl'"):
        recognised(TRL, tool="axolotle")


def test_the_names_of_a_tool_hold_those_of_its_plugins():
    """Keys that a plugin brings tell the tool too."""
    assert "liger_rope" in names_of("axolotl")
    assert "lora_r" in names_of("trl")
