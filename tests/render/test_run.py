"""The summary of a run says what a person needs next, whatever state the run is in."""

import re
from pathlib import Path

import pytest

from advisor.ground.errors import InputError
from advisor.ground.units import GIB
from advisor.record.files import writing_stages
from advisor.record.run import DryRun, DryRunRecord, FinishedRun, RunRecord
from advisor.render.result_commands import serve_command, served_stages
from advisor.render.run import run_json, summary_lines
from tests.conftest import ROOT

STAGE = {
    "name": "sft", "task": None, "objective": "sft", "update": "lora", "quantization": "nf4",
    "status": "done", "steps": 63, "loss_first": 3.21, "loss_last": 1.4, "folder": "stages/sft",
    "expected": {"peak_bytes": 3 * GIB, "counted_bytes": 2 * GIB, "duration_s": 120.0,
                 "limit_bytes": 6 * GIB},
    "measured": {"peak_bytes": int(1.8 * GIB), "counter": "allocated", "train_s": 130.0,
                 "step_s": 2.06, "tokens_per_s": 243.0, "tokens": 88, "computed_tokens": 100},
    "evaluation": {"holdout_loss_before": 3.1, "holdout_loss_after": 1.6, "rows": 9,
                   "perplexity_before": 22.2, "perplexity_after": 4.95},
    "data": {"train_rows": 171, "dropped": 3, "truncated": 0, "notes": ["no system prompt"]},
    "checks": [{"name": "effect", "ok": True, "text": "the adapter changes the output"},
               {"name": "stop", "ok": False, "text": "answers do not stop"}],
}  # fmt: skip
BETTER = {**STAGE["evaluation"], "holdout_loss_interval": [-1.7, -1.3]}


def record(**changes):
    return {
        "schema_version": 1,
        "name": "shop",
        "status": "done",
        "model": "m",
        "max_steps": None,
        "resolved": {"sft": {"model": "/m", "options": {"rank": 32}}},
        "stages": [{**STAGE, **changes}],
    }


def summary(document, **options):
    """The lines after a run of this record."""
    record_ = RunRecord.from_dict(document)
    return summary_lines(FinishedRun(**{"folder": Path("/runs/shop-1"), **options}, record=record_))


def text(document, **options):
    return "\n".join(summary(document, **options))


WORSE = {**STAGE["evaluation"], "holdout_loss_after": 3.9, "holdout_loss_interval": [0.5, 1.1]}
TIMES = {"total_s": 300.0, "load_s": 60, "before_s": 30, "train_s": 150, "after_s": 60}
NOTHING = {"evaluation": None, "expected": {}, "measured": {}, "data": {}, "checks": []}
LONG = {
    "evaluation": {
        **BETTER,
        "metrics": {"rouge_l": {"before": 0.1, "after": 0.4, "word": "better"}},
        "general": {"before": 1.5, "after": 3.6, "interval": [1, 3], "rows": 24, "word": "worse"},
        "sample_metric": "rouge_l",
        "samples": [
            {"prompt": "Where is it? " * 9, "base": "b " * 90, "tuned": "t\n" * 90, "expected": "e",
             "score_before": 0.1, "score_after": place / 10, "tuned_stopped": True}
            for place in range(6)
        ],
    },
    "times": {"total_s": 300.0, "train_s": 150},
    "adjusted": [{"micro_batch_size": 1, "grad_accum": 8, "why": "no room", "setting": "x=1"}],
    "checks": [{"name": f"c{n}", "ok": False, "text": f"warning {n}"} for n in range(9)],
}  # fmt: skip


WHOLE = {  # changes of the stage, and of the record
    "finished": ({}, {}),
    "the whole time beside what was expected": (
        {"times": TIMES, "expected": {**STAGE["expected"], "times": {"total_s": 240.0}}}, {},
    ),
    "worse": ({"evaluation": WORSE}, {}),
    "a trial": ({}, {"max_steps": 5}),
    "missing numbers are left out": (NOTHING, {}),
    "single batches": ({"steps": 13, "loss_first": 0.7, "loss_last": 2.01}, {}),
    "better": ({"evaluation": BETTER, "checks": []}, {}),
    "the result comes first": (LONG, {}),
    "full": ({"update": "full", "quantization": None}, {}),
    "prefix": ({"update": "prefix", "quantization": None}, {}),
    "scores": ({"objective": "rm"}, {}),
    **{
        head: ({}, {"resolved": {"sft": {"options": {"head": head}}}})
        for head in ("classes", "seq2seq")
    },
    "tasks": ({}, {"stages": [
        {**STAGE, "name": f"sft-{n}", "task": f"t{n}", "folder": f"stages/sft-{n}", "checks": []}
        for n in range(9)
    ]}),
    **{
        status: ({"status": status, "error": {"what": "out of memory"}}, {"status": status})
        for status in ("stopped", "failed")
    },
}  # fmt: skip


@pytest.mark.parametrize("what", WHOLE)
def test_a_summary_is(approved, tmp_path, monkeypatch, what):
    """Never dressed up, never longer than what was measured, and its lines can be pasted."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.executable", "/opt/my py/bin/python")
    folder = Path("runs/it's & so")
    (folder / "stages" / "sft").mkdir(parents=True)
    (folder / "report.html").touch()
    stage, run = WHOLE[what]
    document = {**record(**stage), **run}
    found = text(document, folder=folder).replace(str(ROOT), "ROOT")
    own = [line for line in found.splitlines() if not re.search("advise |python|it's & so", line)]
    assert max(map(len, own)) <= 80
    approved(found)


def test_a_run_that_was_finished_before_says_so():
    assert (
        text(record(), already_done=True)
        .split("\n\n")[2]
        .startswith("Finished before, nothing to do: shop, in /runs/shop-1\n")
    )


def test_the_best_the_worst_and_the_middle_answer_are_shown():
    """By their score, with what was answered before and after; a long one ends with where the whole
    of it stands.
    """
    found = text(record(**{**LONG, "checks": [], "adjusted": [], "data": {}}))
    places = [found.index(f"  {which}: Where") for which in ("Gained most", "Lost most")]
    assert places < [found.index("  In the middle: Where")]
    assert found.count("    before b b b") == found.count("    after  t t t") == 3
    long = text(record(**{**LONG, "evaluation": evaluated([{**SAMPLE, "tuned": "word " * 200}])}))
    assert re.search(r"word \.\.\. \(whole in report\.html\)\n", long)


def test_answers_are_shown_whole():
    """Wrapped between words; equal answers are shown once."""
    begin = "The library opens at nine on every day but Sunday and holidays, and so "
    samples = [
        {"prompt": "When?", "base": f"{begin}nobody comes.", "tuned": f"{begin}come early."},
        {"prompt": "Who?", "base": "All of us.", "tuned": "All of us."},
    ]
    samples[0] |= {"score_before": 0.1, "score_after": 0.5}
    samples[1] |= {"score_before": 0.2, "score_after": 0.2}
    evaluation = {**STAGE["evaluation"], "samples": samples, "sample_metric": "rouge_l"}
    found = text(record(evaluation=evaluation, checks=[], data={}))
    assert f"    before {begin[:-4]}\n           so nobody comes." in found
    assert "    both   All of us." in found


SAMPLE = {"prompt": "Where?", "base": "b", "score_before": 0.1, "score_after": 0.5}


def evaluated(samples):
    return {**STAGE["evaluation"], "samples": samples, "sample_metric": "rouge_l"}


STOPPED = {"stopped_early": True, "best_loss": 1.0, "best_step": 5, "fell": 0.5}


@pytest.mark.parametrize(
    ("keys", "max_steps", "held_out", "words"),
    [
        ("", None, {"fell": 0.1}, "plan.yaml --set stages.sft.epochs=2"),
        ("\n    max_steps: 60", None, {"fell": 0.1}, "plan.yaml --set stages.sft.max_steps=120"),
        ("", 3, {"fell": 0.1}, "shop/plan.yaml --output"),
        ("", None, STOPPED, ""),
    ],
)
def test_what_to_do_next_fits_the_plan(tmp_path, keys, max_steps, held_out, words):
    """A run may train longer by a key unless it stopped early; a trial becomes the whole plan."""
    folder = tmp_path / "shop"
    folder.mkdir()
    stage = f"  - name: sft\n    objective: sft\n    update: lora{keys}\n"
    (folder / "plan.yaml").write_text(f"model: m\ndata: {{path: x.jsonl}}\nstages:\n{stage}")
    falling = {**record(evaluation=BETTER, held_out=held_out, checks=[]), "max_steps": max_steps}
    found = text(falling, folder=folder)
    assert words in found
    assert ("--set" in found) is ("--set" in words)


@pytest.mark.parametrize(
    ("limit", "fits"), [(6 * GIB, "6.0 GiB free on the device: it fits"), (GIB, "it does not fit")]
)
def test_a_dry_run_says_whether_it_fits(approved, limit, fits):
    """Measured beside expected, the whole run's time and the room on the device."""
    expected = {**STAGE["expected"], "limit_bytes": limit}
    stage = {**STAGE, "longest_batch_duration_s": 300.0, "expected": expected}
    document = DryRunRecord.from_dict({"schema_version": 1, "name": "shop", "stages": [stage]})
    found = "\n".join(summary_lines(DryRun(folder=Path("/runs/shop-1"), record=document)))
    approved(found)
    assert fits in found


@pytest.mark.parametrize(
    ("stage", "options", "hint"),
    [
        ({"status": "stopped"}, {}, "to resume the run: advise run 'my runs/shop'"),
        ({}, {"head": "classes"}, "use it with advise chat 'my runs/shop'"),
        ({}, {"head": "seq2seq"}, "use it with AutoModelForSeq2SeqLM (see report.html)"),
    ],
)
def test_what_does_not_write_is_not_exported(stage, options, hint):
    """And what to do with it instead can be pasted."""
    document = {**record(**stage), "resolved": {"sft": {"options": options}}}
    with pytest.raises(InputError) as caught:
        writing_stages(Path("my runs/shop"), RunRecord.from_dict(document))
    assert caught.value.faults[0].hint == hint


def test_json_is_the_record_with_its_folder():
    """`advise run --json` prints run.json and where it lies."""
    run = FinishedRun(folder=Path("/runs/shop-1"), record=RunRecord.from_dict(record()))
    document = run_json(run)
    assert document["folder"] == "/runs/shop-1"
    assert document["stages"][0]["loss_last"] == 1.4
    assert (document["already_done"], document["dry_run"]) == (False, False)


def test_a_model_in_the_project_is_served_by_its_relative_path(tmp_path, monkeypatch):
    """Lines to paste name no folder of this machine if a path from here serves."""
    monkeypatch.chdir(tmp_path)
    inside = {"sft": {"model": str(tmp_path / "model"), "options": {"rank": 8}}}
    run = FinishedRun(
        folder=tmp_path / "runs" / "shop-1",
        record=RunRecord.from_dict({**record(quantization=None), "resolved": inside}),
    )
    found = serve_command(run.record, served_stages(run.record), run.folder)
    assert found.startswith("vllm serve model --enable-lora")
    assert str(tmp_path) not in found
