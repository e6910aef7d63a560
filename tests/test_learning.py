"""What past runs change is said wherever the number is said: page, JSON, estimates; never for another
GPU.
"""

import json

import pytest
from msgspec.structs import replace

from advisor.estimate.past_runs import PastRun, Reading
from advisor.ground.types import Gpu, Hardware
from advisor.probe.catalogue import find_gpu
from advisor.situation.past_runs import note_past_run

ADVICE = (
    "--task", "qa", "--model", "Qwen/Qwen3-8B", "--data-kind", "paired", "--data-rows", "5000",
    "--data-tokens", "1500000", "--budget", "low",
)  # fmt: skip
SPEC = ("--model", "Qwen/Qwen3-8B", "--update", "lora", "--rank", "16", "--seq-len", "2048")


def noted(path, *, machine, times=3, memory=0.9, time=2.0, counters=("allocated", "reserved")):
    """Runs of LoRA on Qwen3-8B that measured so many times what the formula said."""
    run = PastRun(
        machine=machine, family="qwen3", params=8_190_735_360, objective="sft", update="lora",
        steps=50,
        memory=tuple(
            Reading(counter=one, expected_bytes=10**10, measured_bytes=round(memory * 10**10))
            for one in counters
        ),
        expected_step_s=1.0, measured_step_s=time,
    )  # fmt: skip
    for _ in range(times):
        assert note_past_run(run, path) == ""


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """The file of past runs of this test."""
    path = tmp_path / "runs.jsonl"
    monkeypatch.setenv("ADVISE_RUNS", str(path))
    return path


def test_advice_says_what_runs_here_changed(call, runs):
    """On the first screen, with what is alike on the whole page (`--why`), and in JSON beside the
    estimate, where a term makes the sum.
    """
    asked = ("--json", *ADVICE, "--gpu", "A100 80GB")
    plain = json.loads(call(*asked)[1])["recommendation"]
    assert plain["estimate"]["learned"] is None
    noted(runs, machine=find_gpu("A100 80GB").spec.name)
    taught = json.loads(call(*asked)[1])["recommendation"]
    found = taught["estimate"]["learned"]
    assert found["memory_runs"] == found["speed_runs"] == 3
    assert 0.9 < found["memory_scale"] < 0.92  # the context stays as it is
    assert found["speed_scale"] == 0.5
    assert taught["estimate"]["hours"] > 1.4 * plain["estimate"]["hours"]
    terms = {term["name"]: term["gib"] for term in taught["estimate"]["terms"]}
    assert terms["learned from runs here"] < 0
    for more, said in (
        ([], "Learned from 3 runs here: memory x 0.9"),
        (["--why"], "Corrected by 3 runs here: memory x 0.9"),
        (["--why"], "docs/learning.md"),
    ):
        assert said in " ".join(call(*ADVICE, "--gpu", "A100 80GB", *more)[1].split())


def test_runs_of_one_gpu_say_nothing_of_another(call, runs):
    """The whole document is as without them."""
    alone = call("--json", *ADVICE, "--gpu", "RTX 4090")[1]
    noted(runs, machine=find_gpu("A100 80GB").spec.name)
    assert call("--json", *ADVICE, "--gpu", "RTX 4090")[1] == alone


def test_a_spec_is_corrected_where_it_names_the_gpu(call, runs):
    """`advise estimate` says so in JSON and in text; a spec of another framework, of another GPU or
    of none gets the formula.
    """
    flags = ("estimate", *SPEC, "--gpu", "L4")
    before = json.loads(call(*flags, "--json")[1])
    noted(runs, machine=find_gpu("L4").spec.name, memory=1.2)
    after = json.loads(call(*flags, "--json")[1])
    assert after["peak_gib"] > before["peak_gib"]
    assert after["need_gib"] > before["need_gib"]
    assert after["step_s"] == pytest.approx(
        before["step_s"] / after["learned"]["speed_scale"], 1e-3
    )
    assert after["learned"]["formula_peak_gib"] == pytest.approx(before["peak_gib"], abs=0.01)
    assert "corrected by 3 runs here: memory x 1." in " ".join(call(*flags)[1].split())
    for other in ({"gpu": "A10G"}, {"gpu": "L4", "framework": "axolotl"}, {}):
        spec = {"model": "Qwen/Qwen3-8B", "update": "lora", **other}
        (runs.parent / "specs.json").write_text(json.dumps([spec]))
        (found,) = json.loads(call("estimate", "--specs", runs.parent / "specs.json", "--json")[1])
        assert "learned" not in found


def test_the_processor_is_this_machines_own(call, runs, monkeypatch):
    """`--gpu none` means the processor here, whose runs correct it."""
    here = Hardware(kind="cpu", origin="stated", cpu_model="A Processor", cpu_cores=2)
    monkeypatch.setattr("advisor.commands.estimate.cpu_hardware", lambda: here)
    noted(runs, machine="A Processor, 2 cores", memory=2.0, counters=("rss_growth",))
    found = json.loads(call("estimate", *SPEC, "--gpu", "none", "--json")[1])
    assert found["learned"]["memory_scale"] > 1.1
    assert found["learned"]["speed_runs"] == 0  # a spec says nothing of its cores


def test_what_cannot_be_read_is_a_warning(call, runs):
    """In advice, in one estimate, and on stderr beside a list of answers."""
    runs.write_text("{\n")
    said = f"{runs}: 1 line left out: damaged or of another version"
    for asked in (("--json", *ADVICE, "--gpu", "L4"), ("estimate", *SPEC, "--json")):
        assert said in json.loads(call(*asked)[1])["warnings"]
    (runs.parent / "specs.json").write_text("[]")
    assert said in call("estimate", "--specs", runs.parent / "specs.json", "--json")[2]


def test_a_machine_is_known_by_its_gpu_not_by_its_name():
    """A probed GPU and a stated one of the same kind are one; a slice of it is another."""
    from advisor.estimate.past_runs import machine_name

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
    assert code == 2
    assert "a path begins with ~ and the name of nobody on this machine" in err
