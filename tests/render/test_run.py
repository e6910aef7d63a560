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


def sampled(*samples, **of_stage):
    """Changes of a stage after which these answers are shown, and little else."""
    evaluation = {**STAGE["evaluation"], "samples": [*samples], "sample_metric": "rouge_l"}
    return {"checks": [], "data": {}, "evaluation": evaluation, **of_stage}


SAMPLE = {"prompt": "Where?", "base": "b", "score_before": 0.1, "score_after": 0.5}
BEGIN = "The library opens at nine on every day but Sunday and holidays, and so "
FALLING = {"evaluation": BETTER, "held_out": {"fell": 0.1}, "checks": []}
STOPPED = {"stopped_early": True, "best_loss": 1.0, "best_step": 5, "fell": 0.5}
DRY = {"longest_batch_duration_s": 300.0}
WHOLE = {  # changes of the stage, and of the record; keys of the plan that lies in the folder
    "finished": ({}, {}),
    "finished before": ({}, {}),
    "the whole time beside what was expected": (
        {"times": TIMES, "expected": {**STAGE["expected"], "times": {"total_s": 240.0}}}, {},
    ),
    "worse": ({"evaluation": WORSE}, {}),
    "a trial": ({}, {"max_steps": 5}),
    "missing numbers are left out": (NOTHING, {}),
    "single batches": ({"steps": 13, "loss_first": 0.7, "loss_last": 2.01}, {}),
    "better": ({"evaluation": BETTER, "checks": []}, {}),
    "the result comes first": (LONG, {}),
    "the best, the worst and the middle answer": (sampled(*LONG["evaluation"]["samples"]), {}),
    "a long answer ends with where the whole of it is": (
        sampled({**SAMPLE, "tuned": "word " * 200}), {},
    ),
    "answers are wrapped between words, equal ones shown once": (
        sampled(
            {**SAMPLE, "base": f"{BEGIN}nobody comes.", "tuned": f"{BEGIN}come early."},
            {**SAMPLE, "base": "All of us.", "tuned": "All of us.", "score_after": 0.1},
        ), {},
    ),
    "it may train longer": (FALLING, {}, ""),
    "it may take more steps": (FALLING, {}, "\n    max_steps: 60"),
    "a trial becomes the whole plan": (FALLING, {"max_steps": 3}, ""),
    "stopped early": ({**FALLING, "held_out": STOPPED}, {}, ""),
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
    "dry, and it fits": (DRY, {}),
    "dry, and it does not fit": (DRY | {"expected": {**STAGE["expected"], "limit_bytes": GIB}}, {}),
}  # fmt: skip
PLAN = "model: m\ndata: {{path: x.jsonl}}\nstages:\n  - name: sft\n    objective: sft\n    update: lora{}\n"


@pytest.mark.parametrize("what", WHOLE)
def test_a_summary_is(approved, tmp_path, monkeypatch, what):
    """Never dressed up, never longer than what was measured, and its lines can be pasted."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.executable", "/opt/my py/bin/python")
    folder = Path("runs/it's & so")
    (folder / "stages" / "sft").mkdir(parents=True)
    (folder / "report.html").touch()
    stage, run, *keys = WHOLE[what]
    if keys:
        (folder / "plan.yaml").write_text(PLAN.format(*keys))
    document = {**record(**stage), **run}
    if what.startswith("dry"):
        done = DryRun(folder=folder, record=DryRunRecord.from_dict(document))
    else:
        again = what == "finished before"
        done = FinishedRun(folder=folder, record=RunRecord.from_dict(document), already_done=again)
    found = "\n".join(summary_lines(done)).replace(str(ROOT), "ROOT")
    own = [line for line in found.splitlines() if not re.search("advise |python|it's & so", line)]
    assert max(map(len, own)) <= 80
    approved(found)


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


def test_json_is_the_record_with_its_folder(approved):
    """`advise run --json` prints run.json and where it lies."""
    run = FinishedRun(folder=Path("/runs/shop-1"), record=RunRecord.from_dict(record()))
    approved(run_json(run))


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
