"""Finished runs and dry runs teach the next one on the same machine, and never stop a run."""

import json
from contextlib import nullcontext

import pytest
from msgspec.structs import replace

from advisor.estimate.padding import row_lengths
from advisor.ground.errors import AdviseError
from advisor.ground.types import DataProfile, TokenStats
from advisor.launch import teaching
from advisor.launch.expected import StageEstimator
from advisor.launch.teaching import run_as_measured
from advisor.plan.entries import entries
from advisor.plan.read import read_plan
from advisor.record.stage import Measured
from advisor.render.report import write_report
from advisor.render.run import summary_lines
from advisor.situation.of_plan import plan_run, plan_shape
from tests.launch.conftest import MACHINE, run

HERE = replace(MACHINE, cpu_model="A Processor")
NOTE = teaching._note


@pytest.fixture
def runs(shop, monkeypatch):
    """The file of past runs of this test; by default a result says all that can be measured."""
    path = shop / "runs.jsonl"
    monkeypatch.setenv("ADVISE_RUNS", str(path))
    measure(monkeypatch, largest_batch_tokens=100, counter="rss_growth")
    return path


def measure(monkeypatch, **values):
    """What the stand-in's result says that it measured."""

    monkeypatch.setattr(
        teaching, "_note", lambda *args, **keys: NOTE(*args[:2], replace(args[2], **values), **keys)
    )


def lines(path):
    found = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in found if line]


def test_a_run_is_noted_and_corrects_the_next(shop, runs, capsys):
    """run.json keeps the formula beside; page and report name the runs behind it."""
    first = run(hardware=HERE, output="one").record.stages[0]
    assert first.expected.learned is None
    (line,) = lines(runs)
    assert (line["kind"], line["machine"]) == ("run", "A Processor, 2 cores")
    assert (line["family"], line["objective"], line["update"]) == ("llama", "sft", "lora")
    assert line["memory"][0]["measured_bytes"] == first.measured.peak_bytes
    assert line["expected_step_s"] == first.expected.step_s
    done = run(hardware=HERE, output="two")
    second = done.record.stages[0].expected
    assert second.learned.memory_runs == second.learned.time_runs == 1
    assert second.learned.formula_bytes == first.expected.peak_bytes
    assert second.learned.formula_step_s == pytest.approx(first.expected.step_s)
    assert first.expected.step_s < second.step_s < first.measured.step_s  # at most six times
    assert lines(runs)[1]["expected_step_s"] == pytest.approx(first.expected.step_s)
    assert "warning" not in capsys.readouterr().err
    assert "corrected by 1 run here: memory x " in " ".join(summary_lines(done))
    write_report(done.folder, done.record)
    assert "corrected by 1 run here" in (done.folder / "report.html").read_text()


def test_a_dry_run_teaches_too(shop, runs):
    """Its steps had the longest rows, and the formula is asked about those."""
    run(hardware=HERE, dry_run=True, output="one")
    (line,) = lines(runs)
    assert (line["kind"], line["measured_step_s"]) == ("dry_run", 0.5)
    assert run(hardware=HERE, output="two").record.stages[0].expected.learned.memory_runs == 1


def test_a_run_teaches_only_what_it_knows(shop, runs, monkeypatch):
    """A peak without its largest batch could mean anything, and time needs counted rows."""
    with monkeypatch.context() as patch:
        measure(patch, largest_batch_tokens=None)
        run(hardware=HERE, output="one")
    expect = StageEstimator.expect
    monkeypatch.setattr(
        StageEstimator, "expect", lambda one, entry: expect(replace(one, profiles={}), entry)
    )
    run(hardware=HERE, output="two")
    of_time, of_memory = lines(runs)
    assert (of_time["memory"], of_time["measured_step_s"]) == ([], 0.2)
    assert of_memory["measured_step_s"] is None
    assert of_memory["memory"]


@pytest.mark.parametrize("case", ["off", "no name", "failed"])
def test_what_teaches_nothing(shop, runs, monkeypatch, case):
    """Where it is switched off, of a machine without a name, and of a run that failed."""
    if case == "off":
        monkeypatch.setenv("ADVISE_RUNS", "off")
    with pytest.raises(AdviseError) if case == "failed" else nullcontext():
        run(mode={"failed": "oom"}.get(case), hardware=MACHINE if case == "no name" else HERE)
    assert not runs.exists()


@pytest.mark.parametrize("damaged", [True, False])
def test_a_file_that_cannot_be_used_stops_no_run(shop, runs, capsys, damaged):
    """The run is done, what went wrong is said, and the rest of a damaged file counts."""
    _ = runs.write_bytes(b"\x00{\n") if damaged else runs.mkdir()
    assert run(hardware=HERE).record.status == "done"
    said = capsys.readouterr().err
    if damaged:
        assert f"{runs}: 1 line left out: damaged" in said
    else:
        assert f"{runs}: no plain file" in said or f"{runs}: Is a directory" in said
        assert "ADVISE_RUNS=off" in said


def stats(**changes):
    """Rows of 10 to 600 tokens, most of them short."""
    found = TokenStats(
        total=60_000, mean=60.0, p50=40, p90=120, p95=200, p99=400, longest=600,
        counted_by="tokenizer of m", histogram=((64, 800), (128, 150), (512, 45), (1024, 5)),
    )  # fmt: skip
    return replace(found, **changes)


def test_an_expectation_counts_rows_as_long_as_the_data_are(shop):
    """Memory follows the longest row of the data where that is shorter than seq_len."""
    plan = read_plan(shop / "plan.yaml")
    entry, llama = entries(plan)[0], plan_shape(plan, shop / "plan.yaml")
    run = plan_run(plan, plan.stages[0], llama, HERE)
    assert run_as_measured(run, Measured(largest_batch_tokens=1318)).longest_tokens == 330
    assert run_as_measured(run, Measured()) is None
    shape = replace(llama, architecture="gemma3_text")
    data = DataProfile(path="d", kind="paired", format="messages", mapping={}, rows=1000,
                       tokens=stats(), objectives=("sft",))  # fmt: skip

    def peak(seq_len, profile=data, model=shape, hardware=HERE):
        one = replace(entry, stage=replace(entry.stage, seq_len=seq_len))
        profiles = {entry.data.path: profile}
        estimator = StageEstimator(plan=plan, shape=model, hardware=hardware, profiles=profiles)
        return estimator.expect(one).peak_bytes

    assert peak(1024) == peak(2048) == peak(600)
    assert peak(512) < peak(600) < peak(1024, None)
    # Rows of a llama are laid end to end on the CPU.
    assert peak(1024, model=replace(shape, architecture="llama")) < peak(1024)


def test_a_longest_row_that_is_not_certain_gets_a_margin():
    """Of a sample, or of characters, a row may be longer than the longest seen; a bin has a row."""
    approximate, whole = stats(counted_by="characters / 4 (approximation)"), (800, 150, 45, 5)
    for counted, seq_len, share, edges, rows in (
        (stats(), 4096, 1, (64, 128, 512, 600), whole),
        (stats(), 4096, 0.001, (64, 128, 512, 600), (1, 1, 1, 1)),
        (stats(sampled_rows=1000, total=600_000), 4096, 0.5,
         (64, 128, 512, 750), (4000, 750, 225, 25)),
        (approximate, 4096, 1, (88, 152, 536, 774), whole),
        (approximate, 512, 1, (88, 152, 512), (800, 150, 50)),
    ):  # fmt: skip
        lengths = tuple(zip(edges, rows, strict=True))
        assert row_lengths(counted, seq_len=seq_len, share=share) == lengths
    assert row_lengths(stats(histogram=()), seq_len=512) == ()
