"""What a configuration trains on: every data set it names, where it is, and how a plan holds it."""

import json

import pytest
import yaml

from advisor.extras.other_tools.data_sets import data_of, look_for_columns, recognise_set
from advisor.extras.other_tools.file import read_file

PAIRS = [{"instruction": "a", "input": "", "output": "b"}] * 3
CHATS = [{"talk": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}] * 3
CHOICES = [{"ask": "a", "good_one": "b", "bad_one": "c"}] * 3


def put(path, rows):
    """Rows as JSONL, or as JSON where the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "\n".join(json.dumps(row) for row in rows)
    path.write_text(json.dumps(rows) if path.suffix == ".json" else lines + "\n")
    return path


def read(folder, values, name="job.yaml"):
    """The file and its data."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    file = read_file(path)
    return file, data_of(file)


def trl(**more):
    """A file of TRL."""
    return {"model_name_or_path": "m", "lora_r": 8, "output_dir": "o", **more}


def llamafactory(**more):
    """A file of LLaMA-Factory."""
    return {"model_name_or_path": "m", "stage": "sft", "do_train": True, "output_dir": "o", **more}


def axolotl(**more):
    """A file of Axolotl."""
    return {"base_model": "m", "micro_batch_size": 1, **more}


KEYS = {"place", "hub", "path", "lost", "roles", "why_not", "evaluates"}


def shown(ref, folder):
    """What a case below may say of a data set."""
    found = {key: getattr(ref, key) for key in KEYS} | {"files": [one.name for one in ref.files]}
    return found | {"path": ref.path.replace(f"{folder}/", "")}


OWN_PROMPT = {"field_instruction": "q", "field_output": "a", "format": "Q: {instruction}"}
MIXTURE = [
    {"path": "json", "data_files": ["rows.jsonl", "b.jsonl"], "fraction": 0.5},
    {"path": "a/b", "name": "en", "split": "test", "columns": ["prompt"]},
]  # fmt: skip
PARTS = trl(datasets=[{"path": "json", "data_files": "parts/*.jsonl"}])
NAMED = {  # a configuration, and what is known of each data set that it names
    "a file": (trl(dataset_name="rows.jsonl"), [{"place": "file", "files": ["rows.jsonl"]}]),
    "the hub": (trl(dataset_name="a/b"), [{"place": "hub", "hub": "a/b", "path": "a/b"}]),
    # `datasets` takes the place of dataset_name; shares and splits cannot be carried. Two files
    # have no folder of their own.
    "the mixture of trl": (
        trl(dataset_name="x/y", datasets=MIXTURE),
        [{"files": ["rows.jsonl", "b.jsonl"], "path": "", "lost": ("fraction: 0.5",)},
         {"hub": "a/b/en", "lost": ("split: test", "columns: ['prompt']")}],
    ),
    "all files of a folder": (PARTS, [{"files": ["a.jsonl", "b.jsonl"], "path": "parts"}]),
    # Types of Axolotl say the roles; a prompt of its own is named as lost.
    **{
        str(entry["type"]): (axolotl(datasets=[{"path": "a/b", **entry}]), [{"roles": roles}])
        for entry, roles in (
            ({"type": "alpaca"}, {}), ({"type": "strange.one"}, {}),
            ({"type": "completion", "field": "body"}, {"text": "body"}),
            ({"type": "chat_template", "field_messages": "talk"}, {"messages": "talk"}),
            ({"type": OWN_PROMPT}, {"question": "q", "answer": "a"}),
        )
    },
    "lists of axolotl": (
        axolotl(
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
            axolotl(pretraining_dataset=texts), [{"roles": {"text": "text"}}],
        )
        for texts in ("a/b", {"path": "a/b", "text_column": "text"}, [{"path": "a/b"}])
    },
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_each_data_set_is_found_with_what_is_said_of_it(tmp_path, name):
    """Where it is, its roles, and what cannot be carried."""
    values, expected = NAMED[name]
    for file in ("rows.jsonl", "b.jsonl", "parts/a.jsonl", "parts/b.jsonl"):
        put(tmp_path / file, PAIRS)
    _, data = read(tmp_path, values)
    found = [shown(ref, tmp_path) for ref in data]
    assert [
        {key: one[key] for key in wanted} for one, wanted in zip(found, expected, strict=True)
    ] == expected


def test_what_is_lost_or_missing_of_data_is_said(tmp_path, monkeypatch):
    """Files are looked for beside the configuration and in the current folder; a folder with others
    in it is no set of them.
    """
    monkeypatch.chdir(tmp_path)
    rows = put(tmp_path / "data" / "rows.jsonl", PAIRS)
    (ref,) = read(tmp_path, trl(dataset_name="data/rows.jsonl"), "examples/deep/job.yaml")[1]
    assert ref.files[0].samefile(rows)
    file, data = read(tmp_path, trl(dataset_name="data/rowz.jsonl"))
    assert data[0].place == "missing"
    assert "is not here" in file.faults[0].text
    assert file.faults[0].where.endswith("job.yaml:4:1")
    file, _ = read(tmp_path, trl(dataset_name="x/y", datasets=MIXTURE))
    assert "key/dataset_name" in [one.id for one in file.faults]
    for kind, lost in {"alpaca": 2, "strange.one": 2, "chat_template": 1}.items():
        (ref,) = read(tmp_path, axolotl(datasets=[{"path": "a/b", "type": kind, "shards": 10}]))[1]
        assert len(ref.lost) == lost, kind
    (ref,) = read(tmp_path, axolotl(datasets=[{"path": "s3://bucket/rows", "type": "alpaca"}]))[1]
    assert "another machine" in ref.why_not
    for name in ("a.jsonl", "b.jsonl", "c.json"):
        put(tmp_path / "parts" / name, PAIRS)
    assert read(tmp_path, PARTS)[1][0].path == ""


def test_trl_misses_its_columns(tmp_path):
    """TRL goes by the names of columns: others are an error, with the way to write them."""

    def looked(row, **more):
        put(tmp_path / "rows.jsonl", [row] * 3)
        file, data = read(tmp_path, trl(dataset_name="rows.jsonl", **more))
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
    _, data = read(tmp_path, llamafactory(dataset=names, eval_dataset="pairs"))
    refs = {ref.named: ref for ref in data if not ref.evaluates}
    assert list(refs) == list(INFO)
    assert [ref.named for ref in data if ref.evaluates] == ["pairs"]
    assert refs["choices"].roles == {"question": "ask", "chosen": "good_one", "rejected": "bad_one"}
    assert refs["texts"].roles == {"text": "body"}
    assert (refs["there"].hub, refs["there"].lost) == ("a/b/en", ("num_samples: 5",))
    assert refs["scope"].lost == ("ms_hub_url: a/b",)
    assert "images" in refs["seen"].why_not
    kinds = {"pairs": "paired", "talks": "paired", "choices": "preference", "texts": "raw_text"}
    found = {name: recognise_set(refs[name]) for name in kinds}
    assert {name: one.recognition.kind for name, one in found.items()} == kinds
    assert found["pairs"].mapping is None  # the names say it
    assert found["talks"].mapping in (None, {"messages": "talk"})
    assert found["choices"].recognition.mapping == refs["choices"].roles


def test_llamafactory_without_its_list_of_data(tmp_path):
    """Its built-in names stand for files of its own repository: said, and nothing guessed."""
    file, data = read(tmp_path, llamafactory(dataset="identity,alpaca_en_demo"))
    assert [ref.place for ref in data] == ["missing", "missing"]
    assert "dataset_info.json is not here" in data[0].why_not
    assert any("data/dataset_info.json" in note for note in file.notes)
    assert file.faults == []
    (tmp_path / "data").mkdir()
    for text, what in (("{", "no JSON"), ("[]", "no map"), ('{"other": {}}', "no data set 'ident")):
        (tmp_path / "data" / "dataset_info.json").write_text(text)
        (fault, *_) = read(tmp_path, llamafactory(dataset="identity"))[0].faults
        assert what in fault.text
        assert fault.severity == "error"


ODD = [None, 3, "", "a\0b", [], [None, 3, "x"], {}, {"path": 3}, [{"path": None}], [{"type": 3}],
       "~nobody/x", "x" * 5000, [{"path": "json", "data_files": {"train": ["*.jsonl"]}}],
       [{"path": "[", "data_files": "**/*"}]]  # fmt: skip


@pytest.mark.parametrize("value", ODD, ids=range(len(ODD)))
def test_odd_values_are_no_errors(tmp_path, value):
    """Whatever stands where data are named."""
    for values in (
        trl(dataset_name=value),
        trl(datasets=value),
        llamafactory(dataset=value, dataset_dir=value),
        axolotl(datasets=value, test_datasets=value, pretraining_dataset=value),
    ):
        for ref in read(tmp_path, values)[1]:
            recognise_set(ref)
