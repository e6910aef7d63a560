"""What is wrong with keys and values: found at its place, judged as the tool does, with a way out."""

import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from advisor.ground.errors import InputError
from advisor.other_tools.checking.edit import edited
from advisor.other_tools.reading.file import read_file
from advisor.other_tools.reading.tool_file import dotted
from advisor.other_tools.tables.keys import keys_of, newest, tool_names
from advisor.other_tools.tables.old_keys import old_keys, prefixes

FILES = {
    "trl": {
        "model_name_or_path": "Qwen/Qwen3-0.6B", "dataset_name": "a/b", "output_dir": "out",
        "max_length": 512, "packing": True, "learning_rate": 2e-5, "lora_r": 8, "use_peft": True,
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4,
    },
    "llamafactory": {
        "model_name_or_path": "Qwen/Qwen3-0.6B", "stage": "sft", "finetuning_type": "lora",
        "do_train": True, "dataset": "identity", "template": "qwen3", "cutoff_len": 512,
        "output_dir": "out", "lora_rank": 8, "learning_rate": 2e-5, "dataset_dir": "ONLINE",
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4,
    },
    "axolotl": {
        "base_model": "Qwen/Qwen3-0.6B", "datasets": [{"path": "a/b", "type": "alpaca"}],
        "output_dir": "out", "sequence_len": 512, "adapter": "lora", "lora_r": 8,
        "learning_rate": 2e-5, "micro_batch_size": 2, "gradient_accumulation_steps": 4,
    },
}  # fmt: skip


def read(folder, values, **more):
    """The file with these values, read."""
    path = folder / "job.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values, sort_keys=False))
    return read_file(path, **more)


@pytest.mark.parametrize("tool", tool_names())
def test_a_good_file_has_no_faults(tmp_path, tool):
    """Nothing is said of what the tool takes as it is meant."""
    file = read(tmp_path, FILES[tool])
    assert file.tool == tool
    assert [one.what for one in file.faults] == []


# tool, changes of the good file, severity, key, words of the fault, what mends it
CASES = [
    ("trl", {"weight_dacay": 0.1}, "error", "weight_dacay", "refuses the file.*'weight_decay'",
     {"weight_dacay": None, "weight_decay": 0.1}),
    ("axolotl", {"micro_batchsize": 4}, "warning", "micro_batchsize",
     "ignores it without a word.*'micro_batch_size'", {"micro_batchsize": None}),
    ("llamafactory", {"lora-dropout": 0.1}, "error", "lora-dropout", "'lora_dropout'",
     {"lora-dropout": None, "lora_dropout": 0.1}),
    ("trl", {"sequence_len": 9}, "error", "sequence_len", "Axolotl's name; TRL calls it 'max_leng",
     {"sequence_len": None}),
    ("axolotl", {"max_seq_length": 9}, "warning", "max_seq_length", "calls it 'sequence_len'",
     {"max_seq_length": None}),
    ("trl", {"loss_weights": [1.0]}, "error", "loss_weights", "a key of `trl dpo`", {}),
    ("axolotl", {"liger_rope": True}, "warning", "liger_rope", "needs the plugin.*LigerPlugin", {}),
    ("trl", {"torch_dtype": "bfloat16"}, "error", "torch_dtype", "it is now `dtype`",
     {"torch_dtype": None, "dtype": "bfloat16"}),
    ("axolotl", {"flash_attention": True}, "note", "flash_attention", "flash_attention_2",
     {"flash_attention": None, "attn_implementation": "flash_attention_2"}),
    ("axolotl", {"max_packed_sequence_len": 9}, "error", "max_packed_sequence_len", "no longer accepts", {}),
    ("llamafactory", {"warmup_ratio": 0.1}, "note", "warmup_ratio", "'warmup_steps'",
     {"warmup_ratio": None, "warmup_steps": 0.1}),
    ("axolotl", {"sequence_len": "long"}, "error", "sequence_len", "refuses it.*whole number", {}),
    ("trl", {"packing": "maybe"}, "error", "packing", "true or false", {}),
    ("trl", {"max_length": 3.5}, "warning", "max_length", "unchecked", {}),
    ("trl", {"packing_strategy": "bdf"}, "warning", "packing_strategy", "did you mean 'bfd'",
     {"packing_strategy": "bfd"}),
    ("llamafactory", {"stage": "sftt"}, "warning", "stage", "did you mean 'sft'", {"stage": "sft"}),
    ("llamafactory", {"packing": "no"}, "warning", "packing", "did you mean false",
     {"packing": False}),
    ("axolotl", {"datasets": [{"path": "a/b", "typ": "alpaca"}]}, "warning", "datasets.0.typ",
     "'type'", {"datasets.0.typ": None, "datasets.0.type": "alpaca"}),
    ("trl", {"datasets": [{"path": "a/b", "splitt": "x"}]}, "error", "datasets.0.splitt",
     "'split'", {"datasets.0.splitt": None, "datasets.0.split": "x"}),
    ("axolotl", {"fsdp_config": {"fsdp_offload_params": True}}, "note",
     "fsdp_config.fsdp_offload_params", "reads it as 'offload_params'",
     {"fsdp_config.fsdp_offload_params": None, "fsdp_config.offload_params": True}),
    ("trl", {"quite_unknown_thing": 1}, "error", "quite_unknown_thing", "newer release", {}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("tool", "changes", "severity", "key", "words", "instead"),
    CASES,
    ids=[f"{case[0]}-{case[3]}-{index}" for index, case in enumerate(CASES)],
)
def test_each_kind_of_fault_is_found(tmp_path, tool, changes, severity, key, words, instead):
    """With its line, what is allowed, the next step, and whether the tool stops."""
    file = read(tmp_path, {**FILES[tool], **changes})
    (fault,) = [one for one in file.faults if one.key == key]
    said = " ".join((fault.what, fault.allowed, fault.hint))
    assert fault.severity == severity, said
    assert words.split(".*")[0] in said
    assert words.split(".*")[-1] in said
    line = file.text.splitlines()[int(fault.where.split(":")[-2]) - 1]
    assert key.split(".")[-1] in line
    assert dict(instead).items() <= dict(fault.instead).items()


def test_what_mends_a_file_leaves_no_fault(tmp_path):
    """The changes that faults name, made together, end in a file that the tool takes."""
    mended = 0
    for tool, changes, _, _, _, instead in CASES:
        file = read(tmp_path, {**FILES[tool], **changes})
        wanted = {k: v for one in file.faults for k, v in one.instead.items()}
        if not instead or not wanted:
            continue
        again = read(tmp_path, edited(file.text, wanted, loader=file.loader))
        assert [one.what for one in again.faults] == [], (tool, changes)
        mended += 1
    assert mended > 10


def test_what_was_meant_is_known_of_a_refused_file(tmp_path):
    """A key of an earlier release is read under its new name; an ignored one stays ignored."""
    trl = {key: one for key, one in FILES["trl"].items() if key != "max_length"}
    assert read(tmp_path, {**trl, "max_seq_length": 4096}).mended["max_length"] == 4096
    file = read(tmp_path, {**FILES["axolotl"], "micro_batchsize": 9})
    assert file.mended == file.values


def test_a_required_key_is_missed(tmp_path):
    """A file without what the tool needs is refused there."""
    values = {key: one for key, one in FILES["axolotl"].items() if key != "learning_rate"}
    required = [name for name, key in keys_of(newest("axolotl"), "train").items() if key.required]
    faults = [one.what for one in read(tmp_path, values).faults]
    assert [
        f"Axolotl 0.19.0 needs the key '{name}'" for name in required if name not in values
    ] == (faults)


def test_a_text_that_the_tool_reads_as_a_number_is_one(tmp_path):
    """PyYAML takes 1e-5 for a text; TRL's parser and Axolotl's read it as a number all the same."""
    for tool in ("trl", "axolotl"):
        text = yaml.safe_dump(FILES[tool]).replace("2.0e-05", "1e-5")
        file = read(tmp_path, text)
        assert file.values["learning_rate"] == 1e-5
        assert file.written["learning_rate"] == "1e-5"
        assert file.faults == []


def test_a_reference_is_looked_up_and_said(tmp_path):
    """No tool fills in ${NAME}: its value is taken from the environment, the file or its default."""
    values = {
        **FILES["llamafactory"], "model_name_or_path": "${MODEL}", "output_dir": "out/${stage}",
        "template": "${oc.env:TEMPLATE,qwen3}", "run_name": "{{ name }}", "lora_rank": "${R:-16}",
    }  # fmt: skip
    file = read(tmp_path, values, environment={"MODEL": "a/b", "HF_TOKEN": "secret"})
    assert file.values["model_name_or_path"] == "a/b"
    assert file.values["output_dir"] == "out/sft"
    assert file.values["template"] == "qwen3"
    assert file.written["model_name_or_path"] == "${MODEL}"
    assert dict(file.open) == {"run_name": "{{ name }}"}
    about = {one.key: one.what for one in file.faults}
    assert set(about) == {
        "model_name_or_path", "output_dir", "template", "run_name", "lora_rank",
    }  # fmt: skip
    assert "does not fill in ${MODEL}" in about["model_name_or_path"]


def test_secrets_are_not_filled_in(tmp_path):
    """A token of the environment does not appear in what is read."""
    values = {**FILES["trl"], "hub_token": "${HF_TOKEN}"}
    file = read(tmp_path, values, environment={"HF_TOKEN": "hf_verysecret"})
    assert "verysecret" not in repr(file.values) + repr(file.faults)


def test_references_in_a_circle_end(tmp_path):
    """A value that names itself over another one stays as it is."""
    values = {**FILES["trl"], "run_name": "${output_dir}x", "output_dir": "${run_name}y"}
    file = read(tmp_path, values, environment={})
    assert set(file.open) == {"run_name", "output_dir"}


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"model_name_or_path": "m", "adapter_name_or_path": "a", "export_dir": "e"}, "merges"),
        ({"model_name_or_path": "m", "template": "qwen3", "infer_backend": "vllm"}, "answers of"),
        ({"model_name_or_path": "m", "template": "qwen3", "task": "mmlu_test"}, "measures"),
    ],
)
def test_a_file_that_trains_nothing_is_named(tmp_path, values, what):
    """LLaMA-Factory merges, chats and measures by files of the same keys."""
    with pytest.raises(InputError, match=what):
        read(tmp_path, values)


def test_the_command_of_trl_is_told(tmp_path):
    """By keys that one command has, by the rows, else it is said that it was assumed."""
    base = {"model_name_or_path": "m", "dataset_name": "a/b", "output_dir": "o"}
    assert (
        read(tmp_path, {**base, "num_generations": 4, "num_iterations": 1}).command.name == "grpo"
    )
    assert read(tmp_path, {**base, "desirable_weight": 1.0}).command.name == "kto"
    assumed = read(tmp_path, base)
    assert assumed.command.name == "sft"
    assert any("`trl sft`" in note and "dpo" in note for note in assumed.notes)
    rows = tmp_path / "pairs.jsonl"
    rows.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    assert read(tmp_path, {**base, "dataset_name": "pairs.jsonl"}).command.name == "dpo"
    assert read(tmp_path, base, command="reward").command.name == "reward"
    with pytest.raises(InputError, match="did you mean 'reward'"):
        read(tmp_path, base, command="rewards")


def test_old_keys_are_known_nowhere_else():
    """What is called old is not in the newest table, or is marked there; its heir is."""
    for tool in tool_names():
        release = newest(tool)
        known = {
            name: key
            for command in release.commands
            for name, key in keys_of(release, command).items()
        }
        for name, old in old_keys(tool).items():
            if tool != "axolotl" and not (name in known and known[name].deprecated):
                assert name not in known, (tool, name)
            heirs = [old.instead] if old.instead else list(old.becomes)
            assert all(heir in known for heir in heirs), (tool, name)
            assert heirs or old.say
        assert all(name in known for name in prefixes(tool))


NAMES = st.text(st.sampled_from("abcdefghijklmnopqrstuvwxyz_"), min_size=3, max_size=20)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), tool=st.sampled_from(tool_names()))
def test_a_key_with_one_wrong_letter_is_found(tmp_path_factory, data, tool):
    """Any key of any tool, misspelt: a fault names it, and the next step is the key meant."""
    values = FILES[tool]
    key = data.draw(st.sampled_from([key for key in values if key not in BASE]))
    at = data.draw(st.integers(1, len(key) - 1))
    wrong = data.draw(
        st.sampled_from(
            [key[:at] + key[at + 1 :], key[:at] + "q" + key[at:], key[:at] + "z" + key[at + 1 :]]
        )
    )
    release = newest(tool)
    if any(wrong in keys_of(release, command) for command in release.commands):
        return
    mutated = {(wrong if name == key else name): one for name, one in values.items()}
    file = read(tmp_path_factory.mktemp("m"), mutated, tool=tool)
    (fault,) = [one for one in file.faults if one.key == wrong]
    assert key in fault.hint or "did you mean" in fault.hint or "name" in fault.hint


BASE = ("model_name_or_path", "base_model")
WRONG = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.sampled_from("ab"), st.none(), max_size=2),
)  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(data=st.data(), tool=st.sampled_from(tool_names()), value=WRONG)
def test_any_value_of_any_key_is_judged_without_an_error(tmp_path_factory, data, tool, value):
    """Whatever stands in a file, it is read and judged, and its changes can be shown."""
    release = newest(tool)
    command = next(iter(release.commands))
    key = data.draw(st.sampled_from(sorted(keys_of(release, command))))
    file = read(tmp_path_factory.mktemp("v"), {**FILES[tool], key: value}, tool=tool)
    for fault in file.faults:
        assert fault.what
        assert "\n" not in fault.what
        edited(file.text, fault.instead, loader=file.loader)
    assert dotted(("a", 1)) == "a.1"
