"""Files of other tools: whose they are by their keys, what a change keeps, what they train on."""

import json
import re
from collections import Counter
from functools import partial

import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from advisor.extras.other_tools.data_sets import data_of, look_for_columns, recognise_set
from advisor.extras.other_tools.file import (
    command_line,
    looks_like_configuration,
    read_file,
    recognised,
)
from advisor.extras.other_tools.yaml_text import edited
from advisor.ground.errors import InputError
from tests.extras.other_tools import public_scripts
from tests.extras.other_tools.public_scripts import listed, said, truth, verdict

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


@pytest.mark.parametrize(
    "text",
    [
        '[{"prompt": "a", "completion": "b"}]',
        '{"prompt": "a", "completion": "b"}',
        '{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}',
        '{"messages": [{"role": "user", "content": "a"}]}',
        '{"data": [{"question": "a", "answer": "b"}], "version": "1.1"}',
        '{"train": [{"text": "a"}], "test": []}',
        '{"learning_rate": "a row about learning rates", "answer": "b", "question": "c"}',
        "{",
        "",
    ],
)
def test_rows_are_no_configuration(tmp_path, text):
    """A data file goes on to be read as data."""
    path = tmp_path / "rows.json"
    path.write_text(text)
    for there in (path, tmp_path / "rows.jsonl", tmp_path):
        assert not looks_like_configuration(there)


def test_a_key_that_one_tool_alone_has_counts_more():
    """One word of LLaMA-Factory among the keys of Hugging Face's Trainer decides."""
    base = {"model_name_or_path": "m", "learning_rate": 1e-4, "num_train_epochs": 1, "bf16": True}
    assert recognised({**base, "cutoff_len": 512}) == ("llamafactory", "")
    assert recognised({**base, "lora_r": 8}) == ("trl", "")
    tool, doubt = recognised(base)
    assert (tool, "LLaMA-Factory" in doubt) == ("trl", True)


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"version": 1, "model": "m", "stages": []}, " --dry-run` measures it"),
        (
            {"zero_optimization": {"stage": 2}, "train_batch_size": "auto"},
            "plans the same training",
        ),
        ({"learning_rate": 1e-4, "lora_r": 8}, "plans the same training"),
    ],
)
def test_other_files_are_refused_with_what_can_be_done(tmp_path, values, hint):
    """A file without a base model is nobody's that we know."""
    with pytest.raises(InputError, match="no configuration of a tool that we know") as caught:
        read(tmp_path, json.dumps(values), "other.yaml")
    assert looks_like_configuration(tmp_path / "other.yaml")
    (fault,) = caught.value.faults
    assert ("Axolotl" in fault.allowed, hint in fault.hint) == (True, True)


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
    (folder / name).write_text(text)
    return read_file(folder / name)


def test_a_command_of_llamafactory(tmp_path):
    """Nothing is filled in; a misspelt flag is a finding about the file."""
    file = read(tmp_path, LLAMAFACTORY)
    assert (file.tool, file.command.name, file.is_command_line) == ("llamafactory", "train", True)
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
    assert file.values.items() >= {
        "packing": True, "lora_target_modules": "q_proj", "gradient_checkpointing": False,
        "max_length": 512, "eos_token": "<|im_end|>",
    }.items()  # fmt: skip


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


AXOLOTL = """\
# A job of ours.
base_model: Qwen/Qwen3-8B  # the base

datasets:
  - path: rows.jsonl   # our rows
    type: chat_template
  # - path: more.jsonl
micro_batch_size: 8 # too much
sequence_len: 8192
lora_target_modules:
  - q_proj
  - v_proj
gradient_checkpointing:
fsdp_config: {offload_params: true, version: 2}
chat_template_jinja: |
  {% for m in messages %}
  {{ m }}
  {% endfor %}
# the end
"""


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"micro_batch_size": 1}, "micro_batch_size: 1 # too much\n"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing: true\n"),
        ({"learning_rate": 2e-5}, "# the end\nlearning_rate: 2.0e-05\n"),
        ({"sequence_len": None}, "micro_batch_size: 8 # too much\nlora_target_modules:\n"),
        ({"lora_target_modules": ["all"]}, "lora_target_modules: [all]\ngradient_checkpointing:\n"),
        ({"lora_target_modules": None}, "sequence_len: 8192\ngradient_checkpointing:\n"),
        ({"fsdp_config.version": 1}, "fsdp_config: {offload_params: true, version: 1}\n"),
        ({"fsdp_config.version": None}, "fsdp_config: {offload_params: true}\n"),
        ({"fsdp_config.offload_params": None}, "fsdp_config: {version: 2}\n"),
        ({"fsdp_config.reshard": "yes"}, "version: 2, reshard: 'yes'}\n"),
        ({"eval_strategy": "no"}, "eval_strategy: 'no'\n"),
        ({"gradient_checkpointing.inner": 1}, "gradient_checkpointing: {inner: 1}\n"),
        ({"model_config.rope": 2}, "model_config: {rope: 2}\n"),
        ({"chat_template_jinja": None}, "version: 2}\n"),
        ({"absent": None}, "# the end\n"),
    ],
)
def test_one_place_changes_and_the_rest_stays(changes, part):
    """Comments are still there, and the new text reads as the change says."""
    new = edited(AXOLOTL, changes)
    for kept in (part, "# A job of ours.", "# the base", "# our rows", "# too much"):
        assert kept in new
    for key, value in changes.items():
        found = yaml.safe_load(new)
        for step in key.split("."):
            found = (found or {}).get(step)
        assert found == value
    assert len(set(AXOLOTL.splitlines()) - set(new.splitlines())) <= 5


def test_json_keeps_its_indentation():
    """A JSON file stays one, key by key."""
    old = '{\n    "base_model": "m",\n    "micro_batch_size": 8,\n\t"deep": {"a": 1}\n}\n'
    new = edited(old, {"micro_batch_size": 1, "sequence_len": 512, "deep.a": None})
    assert '\n    "base_model": "m",\n    "micro_batch_size": 1,\n' in new
    values = {"base_model": "m", "micro_batch_size": 1, "deep": {}, "sequence_len": 512}
    assert json.loads(new) == values
    assert json.loads(edited('{"a": 1}', {"b": [1], "a": None})) == {"b": [1]}


def test_lines_that_nobody_changed_keep_their_form():
    """Comments stay with the key they speak of; a value that an anchor shares is not edited."""
    text = "base_model:  m   # two blanks\nbf16: True\ntokens: {\n  a: b }\nlora_r: 8\n"
    new = edited(text, {"lora_r": 16, "bf16": None})
    assert new == text.replace("bf16: True\n", "").replace("8", "16")
    assert edited("a: 1\nb: 2  # of b\n# of c\nc: 3\n", {"b": None}) == "a: 1\n# of c\nc: 3\n"
    assert edited("a: &one {b: 1}\nc: *one\n", {"a": 2}) is None
    assert edited("a: &one {b: 1}\nc: *one\n", {"c": 2}) == "a: &one {b: 1}\nc: 2\n"
    assert edited("{a: 1}\n", {"a": 2}) is None


KEYS = st.sampled_from(["a", "b", "c", "a b", "ü", "x-y"])
SCALARS = st.one_of(
    st.booleans(), st.integers(-5, 10**6), st.floats(1e-8, 1e8).map(lambda number: float(f"{number:.6g}")),
    st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), max_size=12),
    st.sampled_from(["yes", "1e-4", "null", "# no", "a: b", "- x", "*a", "{{ x }}", "", "'", '"']),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=8,
)
MAPS = st.dictionaries(KEYS, VALUES, min_size=1, max_size=5)


@settings(max_examples=80, deadline=None)
@example(values={"a": 1}, changes={"a": [1e-08]}, style=1)
@example(values={"a": 1e-08}, changes={}, style=2)
@given(values=MAPS, changes=st.dictionaries(KEYS, VALUES, max_size=3), style=st.integers(0, 2))
def test_what_is_written_reads_as_the_changes_say(values, changes, style):
    """For any file and any changes, in block style, with maps in one line, and as JSON."""
    text, read = json.dumps(values, indent=2, ensure_ascii=False), json.loads
    if style != 2:
        read, style = yaml.safe_load, (False, None)[style]
        text = yaml.safe_dump(values, default_flow_style=style, allow_unicode=True)
        assume(not text.startswith("{"))
    assert read(edited(text, changes)) == {**values, **changes}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"lora_rnak": None, "lora_rank": 1e-4}, "lora_rank: 0.0001  # why\nother: 2\n"),
        ({"lora_rnak": None, "lora_rank": 8}, "lora_rank: 8  # why\nother: 2\n"),
        ({"lora_rnak": None, "other": 3}, "other: 3\n"),
    ],
)
def test_a_misspelt_key_is_renamed_at_its_place(changes, expected):
    """A key taken away with a new one behind it keeps its line, its comment and its number."""
    text = "lora_rnak: 1.0e-4  # why\nother: 2\n"
    assert edited(text, changes, {"lora_rnak": "lora_rank"}) == expected


PAIRS = [{"instruction": "a", "input": "", "output": "b"}] * 3
CHATS = [{"talk": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}] * 3
CHOICES = [{"ask": "a", "good_one": "b", "bad_one": "c"}] * 3


def put(path, rows):
    """Rows as JSONL, or as JSON where the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "\n".join(json.dumps(row) for row in rows)
    path.write_text(json.dumps(rows) if path.suffix == ".json" else lines + "\n")
    return path


def read_data(folder, values, name="job.yaml"):
    """The file and its data."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    file = read_file(path)
    return file, data_of(file)


# A file of each tool with more keys.
trl_file = partial(dict, model_name_or_path="m", lora_r=8, output_dir="o")
axolotl_file = partial(dict, base_model="m", micro_batch_size=1)
llamafactory_file = partial(
    dict, model_name_or_path="m", stage="sft", do_train=True, output_dir="o"
)


def shown(ref, folder):
    """What a case below may say of a data set."""
    keys = ("place", "hub", "lost", "roles", "why_not", "evaluates")
    found = {key: getattr(ref, key) for key in keys} | {"files": [one.name for one in ref.files]}
    return found | {"path": ref.path.replace(f"{folder}/", "")}


OWN_PROMPT = {"field_instruction": "q", "field_output": "a", "format": "Q: {instruction}"}
MIXTURE = [
    {"path": "json", "data_files": ["rows.jsonl", "b.jsonl"], "fraction": 0.5},
    {"path": "a/b", "name": "en", "split": "test", "columns": ["prompt"]},
]  # fmt: skip
PARTS = trl_file(datasets=[{"path": "json", "data_files": "parts/*.jsonl"}])
NAMED = {  # a configuration, and what is known of each data set that it names
    "a file": (trl_file(dataset_name="rows.jsonl"), [{"place": "file", "files": ["rows.jsonl"]}]),
    "the hub": (trl_file(dataset_name="a/b"), [{"place": "hub", "hub": "a/b", "path": "a/b"}]),
    # `datasets` takes the place of dataset_name; shares and splits cannot be carried. Two files
    # have no folder of their own.
    "the mixture of trl_file": (
        trl_file(dataset_name="x/y", datasets=MIXTURE),
        [{"files": ["rows.jsonl", "b.jsonl"], "path": "", "lost": ("fraction: 0.5",)},
         {"hub": "a/b/en", "lost": ("split: test", "columns: ['prompt']")}],
    ),
    "all files of a folder": (PARTS, [{"files": ["a.jsonl", "b.jsonl"], "path": "parts"}]),
    # Types of Axolotl say the roles; a prompt of its own is named as lost.
    **{
        str(entry["type"]): (axolotl_file(datasets=[{"path": "a/b", **entry}]), [{"roles": roles}])
        for entry, roles in (
            ({"type": "alpaca"}, {}), ({"type": "strange.one"}, {}),
            ({"type": "completion", "field": "body"}, {"text": "body"}),
            ({"type": "chat_template", "field_messages": "talk"}, {"messages": "talk"}),
            ({"type": OWN_PROMPT}, {"question": "q", "answer": "a"}),
        )
    },
    "lists of axolotl_file": (
        axolotl_file(
            datasets=[{"type": "alpaca", **one} for one in (
                {"path": "rows.jsonl"},
                {"path": "json", "data_files": "rows.jsonl", "ds_type": "json"},
                {"path": "a/b", "data_files": ["x.json"], "shards": 10},
                {"path": "s3://bucket/rows"},
            )],
            test_datasets=[{"path": "rows.jsonl", "type": "alpaca", "split": "test"}],
        ),
        [{"place": "file"}, {"place": "file"}, {"place": "hub"}, {"place": "elsewhere"},
         {"evaluates": True}],
    ),
    **{
        f"texts to pretrain on: {texts}": (
            axolotl_file(pretraining_dataset=texts), [{"roles": {"text": "text"}}],
        )
        for texts in ("a/b", {"path": "a/b", "text_column": "text"}, [{"path": "a/b"}])
    },
}  # fmt: skip


@pytest.mark.parametrize(("values", "expected"), NAMED.values(), ids=NAMED)
def test_each_data_set_is_found_with_what_is_said_of_it(tmp_path, values, expected, approved):
    """Where it is, its roles, and what cannot be carried."""
    for file in ("rows.jsonl", "b.jsonl", "parts/a.jsonl", "parts/b.jsonl"):
        put(tmp_path / file, PAIRS)
    file, data = read_data(tmp_path, values)
    found = [shown(ref, tmp_path) for ref in data]
    approved([file.faults, file.notes, *data])
    assert [
        {key: one[key] for key in wanted} for one, wanted in zip(found, expected, strict=True)
    ] == expected


def test_what_is_lost_or_missing_of_data_is_said(tmp_path, monkeypatch):
    """Data are sought beside the configuration and in the current folder, not in mixed ones."""
    monkeypatch.chdir(tmp_path)
    rows = put(tmp_path / "data" / "rows.jsonl", PAIRS)
    (ref,) = read_data(
        tmp_path, trl_file(dataset_name="data/rows.jsonl"), "examples/deep/job.yaml"
    )[1]
    assert ref.files[0].samefile(rows)
    file, data = read_data(tmp_path, trl_file(dataset_name="data/rowz.jsonl"))
    assert (data[0].place, "is not here" in file.faults[0].text) == ("missing", True)
    assert file.faults[0].where.endswith("job.yaml:4:1")
    file, _ = read_data(tmp_path, trl_file(dataset_name="x/y", datasets=MIXTURE))
    assert "key/dataset_name" in [one.id for one in file.faults]
    for kind, lost in {"alpaca": 2, "strange.one": 2, "chat_template": 1}.items():
        (ref,) = read_data(
            tmp_path, axolotl_file(datasets=[{"path": "a/b", "type": kind, "shards": 10}])
        )[1]
        assert len(ref.lost) == lost, kind
    (ref,) = read_data(
        tmp_path, axolotl_file(datasets=[{"path": "s3://bucket/rows", "type": "alpaca"}])
    )[1]
    assert "another machine" in ref.why_not
    for name in ("a.jsonl", "b.jsonl", "c.json"):
        put(tmp_path / "parts" / name, PAIRS)
    assert read_data(tmp_path, PARTS)[1][0].path == ""


def test_trl_misses_its_columns(tmp_path):
    """TRL goes by the names of columns: others are an error, with the way to write them."""

    def looked(row, **more):
        put(tmp_path / "rows.jsonl", [row] * 3)
        file, data = read_data(tmp_path, trl_file(dataset_name="rows.jsonl", **more))
        found = recognise_set(data[0]).recognition
        look_for_columns(file, data[0], found)
        return file.faults, found

    (fault,), _ = looked({"question": "a", "answer": "b"})
    assert "messages or prompt + completion or text" in fault.text
    assert "its columns: question, answer" in fault.text
    faults, found = looked({"body": "a"}, dataset_text_field="body")
    assert (faults, found.kind) == ([], "raw_text")


INFO = {
    "pairs": {"file_name": "pairs.json"},
    "talks": {"file_name": "talks.jsonl", "formatting": "sharegpt",
     "columns": {"messages": "talk"}},
    "choices": {"file_name": "choices.jsonl", "ranking": True,
     "columns": {"prompt": "ask", "chosen": "good_one", "rejected": "bad_one"}},
    "there": {"hf_hub_url": "a/b", "subset": "en", "num_samples": 5},
    "scope": {"ms_hub_url": "a/b"},
    "seen": {"file_name": "pairs.json", "columns": {"prompt": "p", "images": "i"}},
    "texts": {"file_name": "texts.jsonl", "columns": {"prompt": "body"}},
}  # fmt: skip


def test_llamafactory_names_its_data_in_a_file_of_their_own(tmp_path):
    """Names joined by commas; columns, tags and ranking say the roles."""
    files = {
        "pairs.json": PAIRS, "talks.jsonl": CHATS, "choices.jsonl": CHOICES,
        "texts.jsonl": [{"body": "some text", "other": "x"}] * 3, "dataset_info.json": INFO,
    }  # fmt: skip
    for name, rows in files.items():
        put(tmp_path / "data" / name, rows)
    names = "pairs, talks,choices,there,scope,seen,texts"
    _, data = read_data(tmp_path, llamafactory_file(dataset=names, eval_dataset="pairs"))
    refs = {ref.named: ref for ref in data if not ref.evaluates}
    assert (list(refs), [ref.named for ref in data if ref.evaluates]) == (list(INFO), ["pairs"])
    assert refs["choices"].roles == {"question": "ask", "chosen": "good_one", "rejected": "bad_one"}
    assert refs["texts"].roles == {"text": "body"}
    assert (refs["there"].hub, refs["there"].lost) == ("a/b/en", ("num_samples: 5",))
    assert (refs["scope"].lost, "images" in refs["seen"].why_not) == (("ms_hub_url: a/b",), True)
    kinds = {"pairs": "paired", "talks": "paired", "choices": "preference", "texts": "raw_text"}
    found = {name: recognise_set(refs[name]) for name in kinds}
    assert {name: one.recognition.kind for name, one in found.items()} == kinds
    assert found["pairs"].mapping is None  # the names say it
    assert found["talks"].mapping in (None, {"messages": "talk"})
    assert found["choices"].recognition.mapping == refs["choices"].roles


def test_llamafactory_without_its_list_of_data(tmp_path):
    """Its built-in names stand for files of its own repository: said, and nothing guessed."""
    file, data = read_data(tmp_path, llamafactory_file(dataset="identity,alpaca_en_demo"))
    assert [ref.place for ref in data] == ["missing", "missing"]
    assert "dataset_info.json is not here" in data[0].why_not
    assert (any("data/dataset_info.json" in note for note in file.notes), file.faults) == (True, [])
    (tmp_path / "data").mkdir()
    for text, what in (("{", "no JSON"), ("[]", "no map"), ('{"other": {}}', "no data set 'ident")):
        (tmp_path / "data" / "dataset_info.json").write_text(text)
        (fault, *_) = read_data(tmp_path, llamafactory_file(dataset="identity"))[0].faults
        assert (what in fault.text, fault.severity) == (True, "error")


ODD = [None, 3, "", "a\0b", [], [None, 3, "x"], {}, {"path": 3}, [{"path": None}], [{"type": 3}],
       "~nobody/x", "x" * 5000, [{"path": "json", "data_files": {"train": ["*.jsonl"]}}],
       [{"path": "[", "data_files": "**/*"}]]  # fmt: skip


@pytest.mark.parametrize("value", ODD, ids=range(len(ODD)))
def test_odd_values_are_no_errors(tmp_path, value):
    """Whatever stands where data are named."""
    for values in (
        trl_file(dataset_name=value),
        trl_file(datasets=value),
        llamafactory_file(dataset=value, dataset_dir=value),
        axolotl_file(datasets=value, test_datasets=value, pretraining_dataset=value),
    ):
        for ref in read_data(tmp_path, values)[1]:
            recognise_set(ref)


def test_the_lists_of_public_scripts_and_memory_errors_are_well_formed():
    """Ids count up, keys are known, each value has its place in the file, no repository is overdone."""
    scripts, errors = listed("scripts"), listed("memory_errors")
    assert [one["id"] for one in scripts] == [f"s{n:03}" for n in range(1, 61)]
    assert [one["id"] for one in errors] == [f"m{n:02}" for n in range(1, len(errors) + 1)]
    assert max(Counter(one["repository"] for one in scripts).values()) <= 4
    for one in scripts:
        assert one["path"].endswith("." + one["kind"])
        assert set(one["holds"]) <= set(public_scripts.KEYS)
        for held in one["holds"].values():
            assert isinstance(held, str) or re.fullmatch(r"\d+|c\d+:\d+", str(held[1])), one["id"]
    assert all(one["address"].startswith("https://github.com/") for one in errors)
    numbers = [value for one in errors for key, value in one.items() if key.endswith("_gib")]
    assert all(isinstance(value, float | list) for value in numbers)


def test_a_reading_is_compared_with_the_list():
    """Found right and wrong, named as unknown, left to the default, and not named."""
    entry = {"holds": {"command": "sft", "lora_r": [{"flag_default": 8}, 3], "max_steps": [60, 9]}}
    document = {
        "found": {"lora_r": {"value": 8}, "max_steps": {"value": 50}, "bf16": {"value": True}},
        "unknown": [{"key": "dataset_name"}],
    }
    keys = ("command", "model_name_or_path", "lora_r", "precision")
    assert {key: verdict(truth(entry, key), said(document, key)) for key in keys} == {
        "command": "not named", "model_name_or_path": "default", "lora_r": "right",
        "precision": "wrong",
    }  # fmt: skip
    assert verdict(truth(entry, "max_steps"), said(document, "max_steps")) == "wrong"
    assert verdict(truth(entry, "dataset"), said(document, "dataset")) == "unknown"
