"""Nothing that a person or a file can say is a bug of ours: exit code 2, place and next step."""

import json
import os

import pytest

from advisor.commands.output import print_json
from advisor.ground.errors import InputError
from advisor.record.files import read_record
from tests.conftest import ROOT

RECORD = json.loads((ROOT / "tests" / "record" / "records" / "finished.json").read_text())


@pytest.mark.parametrize("size", ["0", "-3", "x", "²", "1", "5", "9" * 30])
def test_any_size_of_the_screen_prints(call, monkeypatch, size):
    """COLUMNS and LINES of 0, as some editors set them, and other nonsense do not stop output."""
    for name in ("COLUMNS", "LINES"):
        monkeypatch.setenv(name, size)
    code, out, _ = call("rules", "lora/lr")
    assert (code, "lora/lr" in out) == (0, True)
    assert max(map(len, out.splitlines())) <= 1000


FILES = {
    "a pipe that nobody writes into": ("estimate", "pipe.yaml"),
    "a folder": ("estimate", "folder.yaml"),
    "a file without an end": ("estimate", "endless.yaml"),
    "the home of nobody": ("run", "~nobody-has-this-name/plan.yaml"),
    "a name with a zero byte": ("estimate", "a\0b.yaml"),
    "data for a plan": ("run", "calls.jsonl"),
    "data for answers": ("--answers", "calls.jsonl"),
    "answers that end as a text does": ("--answers", "nowhere.txt"),
    "a plan with a space": ("a b.yaml", "--why"),
    "an address": ("check", "https://a.org/b.jsonl"),
    "a bucket": ("check", "s3://a/b.jsonl"),
    "questions of nothing": ("check", "nulls.jsonl"),
    "calls of nothing": ("check", "calls.jsonl"),
    "an infinite weight": ("check", "weights.jsonl"),
    "a huge weight": ("check", "huge.jsonl"),
}


@pytest.mark.parametrize("line", FILES.values(), ids=FILES.keys())
def test_no_file_is_a_bug(call, tmp_path, line, approved):
    """What cannot be read is named, with what is wrong."""
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "endless.yaml").symlink_to("/dev/zero")
    (tmp_path / "nulls.jsonl").write_text('{"prompt": null, "completion": "Hello"}\n' * 9)
    turn = {"role": "assistant", "content": "Hello", "name": "shop"}
    for file, more in (
        ("calls", {"tool_calls": [1]}),
        ("weights", {"weight": float("inf")}),
        ("huge", {"weight": 10**400}),
    ):
        row = {"messages": [{"role": "user", "content": "Hi"}, {**turn, **more}]}
        (tmp_path / f"{file}.jsonl").write_text(json.dumps(row) + "\n")
    code, out, err = call(*line)
    assert code == 2
    approved([out.splitlines(), err.splitlines()])


RECORDS = {
    "too deep": ("[" * 100_000, "nested too deeply"),
    "too long a number": ('{"schema_version": ' + "1" * 5000 + "}", "digits"),
    "no number": ('{"schema_version": 1e999}', "too large for a number"),
    "half a character": ('{"schema_version": 1, "name": "\\ud800"}', "surrogate"),
    "no text": (b"\xff\xfe", "cannot be read"),
    "a list": ("[]", "no schema_version"),
    "a stage without its objective": (
        json.dumps({**RECORD, "stages": [{"name": "sft"}]}),
        "stages[0].objective is missing",
    ),
    "a stage elsewhere": (
        json.dumps({**RECORD, "stages": [{**RECORD["stages"][0], "folder": "../../etc"}]}),
        "a folder inside the run folder",
    ),
}


@pytest.mark.parametrize(("content", "told"), RECORDS.values(), ids=RECORDS.keys())
def test_a_damaged_record_is_named(tmp_path, content, told):
    """run.json with anything else in it is refused, with its path."""
    content = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_record(tmp_path, hint="run the plan again")
    said = ("run.json", told, "run the plan again")
    assert [words for words in said if words not in caught.value.text()] == []


@pytest.mark.parametrize(
    ("make", "told"),
    [(lambda path: path.symlink_to("/dev/zero"), "cannot be read"), (os.mkfifo, "is a pipe")],
    ids=["endless", "pipe"],
)
def test_a_record_that_never_ends_is_not_read(tmp_path, monkeypatch, make, told):
    """A link to /dev/zero, or a pipe, does not fill memory or wait for ever."""
    monkeypatch.setattr("advisor.record.files.MOST_BYTES", 1000)
    make(tmp_path / "run.json")
    with pytest.raises(InputError, match=told):
        read_record(tmp_path)


def test_json_holds_whatever_a_row_does(capsys):
    """A number that is not finite, and half a character, are printed as JSON can hold them."""
    print_json({"sample": [float("inf"), 1.5], "file": "caf\udce9.jsonl"})
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"sample": ["inf", 1.5], "file": "caf\udce9.jsonl"}


def test_the_answers_of_a_person_need_no_file(call):
    """`--answers` takes what the shell hands over as a pipe, with `<(...)`."""
    reading, writing = os.pipe()
    os.write(writing, b"{task: qa, gpu: RTX 4090}")
    os.close(writing)
    code, out, _ = call("--json", "--answers", f"/dev/fd/{reading}")
    assert (code, json.loads(out)["plan"]) == (0, None)


NAMES = ("name", "objective", "update", "quantization", "scheduler")
NO_TEXT = {
    (key, value) for key in NAMES for value in ("[sft]", "{a: 1}", "[[lora]]", "3", "null")
} - {("quantization", "null")}  # that is none


@pytest.mark.parametrize(("key", "value"), sorted(NO_TEXT))
def test_a_name_that_is_no_text_has_a_place(call, tmp_path, key, value):
    """What is looked up in a table may be anything in a plan; the line says what it should be."""
    stage = {"name": "sft", "objective": "sft", "update": "lora", "quantization": "nf4"}
    lines = "".join(f"    {name}: {text}\n" for name, text in {**stage, key: value}.items())
    (tmp_path / "plan.yaml").write_text(
        "version: 1\nname: shop\nmodel: Qwen/Qwen3-4B\ndata: {path: train.jsonl}\nstages:\n  -\n"
        f"{lines}    epochs: 1\n"
    )
    code, _, err = call("estimate", "plan.yaml")
    assert (code, f"`{key}`" in err, "plan.yaml:" in err) == (2, True, True), err
