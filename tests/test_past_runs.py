"""The file of past runs: appended whole or not at all, read whatever state it is in."""
# One screen offers a form of export, so --hide-extra leaves the module out: extras.gguf

import json
import os
import re
import subprocess
import sys
import time
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from advisor.estimate.past_runs import NO_RUNS, PastRun, Reading, machine_name
from advisor.ground.types import Gpu, Hardware
from advisor.probe.catalogue import find_gpu
from advisor.situation import past_runs
from advisor.situation.past_runs import note_past_run, past_runs_path, read_past_runs
from tests.conftest import ROOT, examples

RUN = PastRun(
    at="2026-11-27T02:00:00Z", machine="A Processor, 2 cores", family="llama", params=134_515_008,
    objective="sft", update="lora", steps=40,
    memory=(Reading(counter="rss_growth", expected_bytes=3 * 10**9, measured_bytes=2 * 10**9),),
    expected_step_s=2.0, measured_step_s=3.0,
)  # fmt: skip


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A file that is not there yet, and that ADVISE_RUNS names."""
    found = tmp_path / "below" / "runs.jsonl"
    monkeypatch.setenv("ADVISE_RUNS", str(found))
    return found


def runs_in(path):
    return list(read_past_runs(path)[0].runs)


@pytest.mark.parametrize(
    ("data", "place"),
    [("{}/data", "data/finetune-advisor"), ("data", ".local/share/finetune-advisor")],
    ids=["set", "relative"],
)
def test_the_file_stands_in_the_data_folder(tmp_path, monkeypatch, data, place):
    """$XDG_DATA_HOME, or ~/.local/share where that is not set or is relative."""
    monkeypatch.delenv("ADVISE_RUNS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", data.format(tmp_path))
    assert past_runs_path() == tmp_path / place / "runs.jsonl"


@pytest.mark.parametrize("word", ["off", "OFF", "no", "0"])
def test_it_can_be_switched_off(word, tmp_path, monkeypatch):
    """With ADVISE_RUNS=off nothing is read, and nothing written."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ADVISE_RUNS", word)
    assert (past_runs_path(), note_past_run(RUN), read_past_runs()) == (None, "", (NO_RUNS, ()))
    assert not list(tmp_path.iterdir())


def test_what_is_written_is_read(path):
    """Runs are lines for this user alone, without names or data, and deleting them unlearns all."""
    assert (note_past_run(RUN), note_past_run(replace(RUN, params=1))) == ("", "")
    assert (runs_in(path), read_past_runs()[1]) == ([RUN, replace(RUN, params=1)], ())
    assert path.stat().st_mode & 0o077 == 0
    found = json.loads(path.read_text().strip().splitlines()[0])
    assert not [text for text in map(str, found.values()) if "/" in text]
    assert not {"model", "name", "data", "path", "host", "user"} & set(found)
    path.unlink()
    assert read_past_runs() == (NO_RUNS, ())


def line_of(**changes):
    return json.dumps({**RUN.to_dict(), **changes})


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "[]",
        "null",
        "\x00\xff\xfe",
        '{"format": 1}',
        line_of(params="many"),
        line_of(params=0),
        line_of(measured_step_s=-1.0),
        line_of(format=2, params={"active": 1}),
        line_of()[:-40],
        "[" * 100_000,
    ],
)
def test_a_damaged_line_is_said_and_left_out(path, line):
    """The lines around it count, and a sentence names it."""
    note_past_run(RUN)
    with path.open("ab") as file:
        file.write(line.encode("latin-1") + b"\n")
    note_past_run(RUN)
    found, notes = read_past_runs()
    assert list(found.runs) == [RUN, RUN]
    assert notes == ((f"{path}: 1 line left out: damaged or of another version",) if line else ())


def test_runs_of_another_version_teach_nothing(path):
    """Its formula may be another: they are counted and left out, until there are new ones."""
    note_past_run(replace(RUN, advise_version="0.0.1"))
    note = f"{path}: 1 line left out: damaged or of another version"
    assert read_past_runs() == (NO_RUNS, (note,))
    note_past_run(RUN)
    assert (runs_in(path), read_past_runs()[1]) == ([RUN], ())


def test_lines_of_before_are_read(path):
    """What they say beyond machine, method and model is left alone."""
    before = {**RUN.to_dict(), "formula": "3f1c", "torch": "2.9.1", "settings": {"seq_len": 512}}
    del before["steps"]
    path.parent.mkdir()
    path.write_text(f"{json.dumps(before)}\n{line_of(watts=300)}\n")
    assert [one.to_dict()["memory"] for one in runs_in(path)] == [RUN.to_dict()["memory"]] * 2


@given(st.binary(max_size=300))
@examples(1)
def test_any_bytes_are_read(tmp_path_factory, content):
    """No content of the file raises."""
    path = tmp_path_factory.mktemp("runs") / "runs.jsonl"
    path.write_bytes(content)
    read_past_runs(path)


def test_what_a_killed_process_left_is_closed_off(path):
    """Half a line at the end spoils neither the next line nor those before it."""
    note_past_run(RUN)
    path.write_bytes(path.read_bytes() + path.read_bytes()[:100])
    assert (note_past_run(RUN), runs_in(path)) == ("", [RUN, RUN])


def test_a_full_disk_leaves_the_file_as_it_was(path, monkeypatch):
    """A line that could be written in part only is taken back, and that is said."""
    note_past_run(RUN)
    before, write = path.read_bytes(), os.write
    full = OSError(28, "No space left on device")
    parts = iter([lambda fd, data: write(fd, data[:100]), Mock(side_effect=full)])
    monkeypatch.setattr(past_runs.os, "write", lambda fd, data: next(parts)(fd, data))
    assert ("No space left on device" in note_past_run(RUN), path.read_bytes()) == (True, before)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_said(path):
    """A run goes on without teaching."""
    path.parent.mkdir(mode=0o500)
    assert "Permission denied" in note_past_run(RUN)


NO_FILES = {
    "folder": lambda path: path.mkdir(parents=True),
    "file above": lambda path: path.parent.write_text(""),
    "pipe": lambda path: (path.parent.mkdir(), os.mkfifo(path)),
    "loop": lambda path: (path.parent.mkdir(), path.symlink_to(path)),
}


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_said(path, kind):
    """Neither reading nor writing waits or raises."""
    NO_FILES[kind](path)
    assert str(path) in note_past_run(RUN)
    found, notes = read_past_runs()
    assert found is NO_RUNS
    assert kind == "file above" or str(path) in notes[0]


def noting(loop):
    """A process that notes runs in this loop."""
    code = f"""
import json, sys
from advisor.estimate.past_runs import PastRun
from advisor.situation.past_runs import note_past_run
RUN = PastRun.from_dict(json.loads(sys.argv[1]))
{loop}: note_past_run(RUN)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code, line_of()], env=environment)


def test_two_runs_at_once_keep_both_lines(path):
    """Lines of several processes stand whole beside each other."""
    assert [child.wait(60) for child in [noting("for _ in range(60)") for _ in range(4)]] == [0] * 4
    assert (len(runs_in(path)), read_past_runs()[1]) == (4 * 60, ())


def test_a_huge_file_is_read_from_its_end(path, monkeypatch):
    """Somebody's log by the same name costs no more than its last lines."""
    note_past_run(RUN)
    line = path.read_bytes()
    path.write_bytes(b"x" * 10**6 + line * 3)
    monkeypatch.setattr(past_runs, "MOST_BYTES", 2 * len(line) + 10)
    assert (runs_in(path), read_past_runs()[1]) == ([RUN] * 2, ())


def test_a_process_killed_while_it_appends_costs_its_own_line_alone(path):
    """It costs at most half its line, counted: the kernel ends a write between two pages."""
    note_past_run(RUN)
    for kills in (1, 2, 3):
        size = path.stat().st_size
        with noting("while True") as child:
            while child.poll() is None and path.stat().st_size < size + 5000:
                time.sleep(0.001)
            child.kill()
        assert note_past_run(RUN) == ""
        torn = [int(re.search(r": (\d+) lines? left out", note)[1]) for note in read_past_runs()[1]]
        assert sum(torn) <= kills
    assert len(runs_in(path)) > 15


ADVICE = (
    "--task", "qa", "--model", "Qwen/Qwen3-8B", "--data-kind", "paired", "--data-rows", "5000",
    "--data-tokens", "1500000", "--budget", "low",
)  # fmt: skip
SPEC = ("--model", "Qwen/Qwen3-8B", "--update", "lora", "--rank", "16", "--seq-len", "2048")


def noted(
    *, machine, memory=0.9, time=2.0, counters=("allocated", "reserved"), size=2 * 10**10,
    step_s=1.0,
):  # fmt: skip
    """Three runs of LoRA on Qwen3-8B that measured so many times what the formula said."""
    run = PastRun(
        machine=machine, family="qwen3", params=8_190_735_360, objective="sft", update="lora",
        steps=50,
        memory=tuple(
            Reading(counter=one, expected_bytes=size, measured_bytes=round(memory * size))
            for one in counters
        ),
        expected_step_s=step_s, measured_step_s=time * step_s,
    )  # fmt: skip
    assert [note_past_run(run) for _ in range(3)] == [""] * 3


def test_advice_says_what_runs_here_changed(approved, call, path):
    """It is on the first screen, in full with --why and in JSON; other GPUs' runs say nothing."""
    asked = ("--json", *ADVICE, "--gpu", "A100 80GB")
    other = ("--json", *ADVICE, "--gpu", "RTX 4090")
    plain = json.loads(call(*asked)[1])["recommendation"]["estimate"]
    alone = call(*other)[1]
    noted(machine=find_gpu("A100 80GB").spec.name)
    taught = json.loads(call(*asked)[1])["recommendation"]["estimate"]
    assert taught["hours"] > 1.4 * plain["hours"]
    learned = [one["learned"] for one in (plain, taught)]
    approved([learned, taught["terms"], *(call(*asked[1:], *more)[1] for more in ((), ("--why",)))])
    assert call(*other)[1] == alone


def test_runs_of_another_gpu_or_size_say_nothing(call, path):
    """The whole document is as without them: of a GPU, and of runs four times as large or small."""
    alone = call("--json", *ADVICE, "--gpu", "RTX 4090")[1]
    noted(machine=find_gpu("A100 80GB").spec.name)
    for size, step_s in ((10**9, 0.01), (10**12, 1000.0)):
        noted(machine=find_gpu("RTX 4090").spec.name, size=size, step_s=step_s)
    assert call("--json", *ADVICE, "--gpu", "RTX 4090")[1] == alone


def test_a_spec_is_corrected_where_it_names_the_gpu(call, path):
    """`advise estimate` says so; another framework, another GPU or none gets the formula."""
    flags = ("estimate", *SPEC, "--gpu", "L4")
    before = json.loads(call(*flags, "--json")[1])
    noted(machine=find_gpu("L4").spec.name, memory=1.2)
    after = json.loads(call(*flags, "--json")[1])
    learned = after["learned"]
    assert after["peak_gib"] > before["peak_gib"]
    assert after["need_gib"] > before["need_gib"]
    assert after["step_s"] == pytest.approx(before["step_s"] / learned["speed_scale"], 1e-3)
    assert learned["formula_peak_gib"] == pytest.approx(before["peak_gib"], abs=0.01)
    assert "corrected by 3 runs here: memory x 1." in " ".join(call(*flags)[1].split())
    others = ({"gpu": "A10G"}, {"gpu": "L4", "framework": "axolotl"}, {})
    specs = [{"model": "Qwen/Qwen3-8B", "update": "lora", **other} for other in others]
    path.with_name("specs.json").write_text(json.dumps(specs))
    found = json.loads(call("estimate", "--specs", path.with_name("specs.json"), "--json")[1])
    assert ["learned" in one for one in found] == [False] * 3


def test_the_processor_is_this_machines_own(call, path, monkeypatch):
    """`--gpu none` means the processor here, whose runs correct it."""
    here = Hardware(kind="cpu", origin="stated", cpu_model="A Processor", cpu_cores=2)
    monkeypatch.setattr("advisor.commands.estimate.cpu_hardware", lambda: here)
    noted(machine="A Processor, 2 cores", memory=2.0, counters=("rss_growth",))
    found = json.loads(call("estimate", *SPEC, "--gpu", "none", "--json")[1])
    assert found["learned"]["memory_scale"] > 1.1
    assert found["learned"]["speed_runs"] == 0  # a spec says nothing of its cores


def test_what_cannot_be_read_is_a_warning(call, path):
    """In advice, in one estimate, and on stderr beside a list of answers."""
    path.parent.mkdir()
    path.write_text("{\n")
    said = f"{path}: 1 line left out: damaged or of another version"
    for asked in (("--json", *ADVICE, "--gpu", "L4"), ("estimate", *SPEC, "--json")):
        assert said in json.loads(call(*asked)[1])["warnings"]
    path.with_name("specs.json").write_text("[]")
    assert said in call("estimate", "--specs", path.with_name("specs.json"), "--json")[2]


def test_a_machine_is_known_by_its_gpu_not_by_its_name():
    """A probed GPU and a stated one of the same kind are one; a slice of it is another."""
    card = find_gpu("A100 80GB").spec
    probed = Gpu(name="NVIDIA A100-SXM4-80GB", memory_total_bytes=1, uuid="GPU-1", spec=card)
    stated = Gpu(name="A100", memory_total_bytes=1, spec=card)
    one, other, part = (
        machine_name(Hardware(kind="cuda", origin="probed", gpus=(gpu,)))
        for gpu in (probed, stated, replace(probed, mig_profile="1g.10gb"))
    )
    assert one == other != part


def test_a_path_of_nobody_is_refused(call, monkeypatch):
    """ADVISE_RUNS=~nobody-here/runs.jsonl is a slip, and not the same as off."""
    monkeypatch.setenv("ADVISE_RUNS", "~nobody-here/runs.jsonl")
    code, _, err = call(*ADVICE, "--gpu", "L4")
    said = "a path begins with ~ and the name of nobody on this machine"
    assert (code, said in err) == (2, True), err
