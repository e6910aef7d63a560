"""A finished run says by digests what it was made of, and `advise check RUN` compares them."""

import hashlib
import json
import os
import platform
from pathlib import Path

import pytest

from advisor.render.report import write_report
from tests.launch.conftest import run

pytestmark = pytest.mark.extra("other_tools")
SAME = dict.fromkeys(("plan", "rows", "base", "result", "versions"), "same")


@pytest.fixture
def done(call, shop):
    """The folder of a finished run. Its stand-in trainer notes neither versions of this machine nor
    the folder of the base.
    """
    folder = run(output="out", on_end=write_report).folder
    record = json.loads((folder / "run.json").read_text())
    record["identity"]["versions"] = {"python": platform.python_version()}
    record["resolved"]["sft"]["model"] = str(shop / "model")
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def check(call, *flags):
    code, out, err = call("check", "out", *flags)
    assert "Traceback" not in err
    return code, json.loads(out) if "--json" in flags else out


RECORD, ROWS = "out/run.json", "data ../train.jsonl"
WEIGHTS = "out/stages/sft/adapter_model.safetensors"
LONG = "x" * 999


def rewrite(name, *parts):
    """Changes bytes of a file without changing its size or its times."""
    path = Path(name)
    text, times = path.read_bytes(), path.stat()
    path.write_bytes(text.replace(*(part.encode() for part in parts)))
    assert path.read_bytes() != text
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_finished_run_is_what_it_was(call, done):
    """Its digests are those that anyone can compute; a project that is moved is the same run."""
    identity = json.loads((done / "run.json").read_text())["identity"]
    rows = hashlib.sha256(Path("train.jsonl").read_bytes()).hexdigest()
    assert (identity["rows"], identity["seed"]) == (rows, 42)
    assert {len(identity[part]) for part in ("plan", "rows", "base", "result")} == {64}
    code, document = check(call, "--json")
    assert (code, document["verified"], "error" in document) == (0, SAME, False)
    code, page = check(call)
    assert (code, "Verified: everything is as it was" in page) == (0, True)
    os.chdir(Path.cwd().rename(Path.cwd().with_name("moved")))
    assert check(call, "--json")[1]["verified"] == SAME
    card = (Path("out") / "stages" / "sft" / "README.md").read_text()
    assert "what has changed.\n\n| setting | value |" in card
    assert all(identity[part] in card for part in ("plan", "rows", "base", "result"))


@pytest.mark.parametrize(
    ("change", "part", "word", "said"),
    [
        (lambda: rewrite("train.jsonl", "number", "Number"), "rows", "changed", "other content (the same size)"),
        (lambda: os.remove("train.jsonl"), "rows", "missing", "train.jsonl is gone"),
        (lambda: rewrite("model/config.json", '"llama"', '"LLAMA"'), "base", "changed", "config.json has"),
        (lambda: Path("model").rename("elsewhere"), "base", "missing", "model.safetensors is gone"),
        (lambda: Path("model/model-2.safetensors").touch(), "base", "changed", "model-2.safetensors is new"),
        (lambda: rewrite("out/plan.yaml", "0.0002", "0.0003"), "plan", "changed", "other values"),
        (lambda: rewrite("out/plan.yaml", "stages:", "stages!"), "plan", "changed", "plan.yaml"),
        (lambda: os.remove("out/plan.yaml"), "plan", "missing", "plan.yaml"),
        (lambda: rewrite(WEIGHTS, "\0", "\1"), "result", "changed", "has other content"),
        (lambda: os.remove(WEIGHTS), "result", "missing", "is gone"),
        (lambda: rewrite(RECORD, '"seed": 42,', '"rows": "00",'), "rows", "changed", "another digest"),
        (lambda: rewrite(RECORD, ROWS, f"{ROWS}\\u0000{LONG}"), "rows", "missing", "the rows are gone since"),
        (lambda: rewrite(RECORD, "stages/sft\"", f's/{LONG}"'), "result", "missing", "the result is gone since"),
    ],
)  # fmt: skip
def test_what_is_not_as_it_was_is_named(call, done, change, part, word, said):
    """With the file, though size and times are kept; the document is whole, with the error."""
    change()
    code, document = check(call, "--json")
    assert (code, document["verified"]) == (2, SAME | {part: word})
    assert document["learned"]["verdict"]
    (error,) = document["error"]
    assert said in error["what"]
    code, page = check(call)
    assert code == 2
    assert "since" in said or said in " ".join(page.split())
    assert f"  {part:<14}{word}:" in page


def test_what_does_not_count(call, done):
    """A comment, when to save, the machine, and other versions, which are told."""
    plan = done / "plan.yaml"
    plan.write_text(
        "# note\n" + plan.read_text().replace("    micro", "    save_steps: 9\n    micro")
    )
    assert check(call, "--json")[1]["verified"] == SAME
    rewrite(RECORD, '"python": "3', '"python": "2')
    code, document = check(call, "--json")
    assert (code, document["verified"]) == (0, SAME | {"versions": "changed"})
    assert "now" in check(call)[1]
    rewrite(RECORD, '"python": "2', '"nothon": "2')
    assert check(call, "--json")[1]["verified"] == SAME | {"versions": "missing"}


def test_a_run_without_an_identity_says_why(call, done):
    """One of an earlier version, and one that is not done."""
    text = (done / "run.json").read_text()
    rewrite(RECORD, '"identity"', '"identitx"')
    code, document = check(call, "--json")
    assert (code, document["verified"]) == (0, None)
    assert "an earlier version wrote run.json" in document["notes"][0]
    (done / "run.json").write_text(text.replace('"identity"', '"x"').replace('"done"', '"failed"'))
    assert "it is not done" in check(call)[1]
