"""What a run leaves to read: the report, one file that needs no other and says what run.json says, and the
summary, with what a person needs next, whatever state the run is in."""

import json
import re
import signal
from pathlib import Path

import pytest

from advisor.commands.chat import greet, interrupts_left_to_child
from advisor.export.exporter import ExportRequest, exporters
from advisor.ground.errors import InputError
from advisor.ground.units import GIB
from advisor.record.run import DryRun, DryRunRecord, FinishedRun, MachineRecord, RunRecord
from advisor.record.stage import RewardRecord
from advisor.render.blocks import Item, Items, PageTable, Section
from advisor.render.report import (
    ToPaste,
    html_templates,
    model_card,
    read_metrics,
    read_rollouts,
    render_html,
    report_page,
    write_report,
)
from advisor.render.report_stage import (
    Line,
    StackedBar,
    bar_chart,
    line_chart,
    metric_charts,
    sample_rows,
    thin,
)
from advisor.render.result_commands import serve_command, served_stages
from advisor.render.run import run_json, summary_lines
from tests.conftest import ROOT

STAGE = {
    "name": "sft", "task": None, "objective": "sft", "update": "lora", "quantization": None,
    "status": "done", "folder": "stages/sft", "steps": 3,
    "expected": {"counted_bytes": 2 * 2**30, "duration_s": 60.0}, "measured": {"peak_bytes": 2**30,
    "counter": "allocated", "train_s": 30.0},
    "data": {"train_rows": 180, "holdout_rows": 20, "dropped": 2, "truncated": 0,
    "notes": ["two rows were longer than 64 tokens"]},
    "evaluation": {
        "holdout_loss_before": 4.0, "holdout_loss_after": 2.0, "holdout_loss_interval": [-2.2,
        -1.8], "rows": 20,
        "metrics": {"exact_match": {"before": 0.1, "after": 0.6, "interval": [0.3, 0.7]}},
        "samples": [{"prompt": "<script>alert(1)</script>", "base": "no\nidea", "tuned": "yes",
        "expected": "yes"}],
        "confusion": {"labels": ["spam", "ham"], "counts": [[5, 1], [0, 9]]},
    },
    "checks": [{"name": "changes-the-base-model", "ok": True, "text": "changes the base"},
    {"name": "x", "ok": False, "text": "never ends"}],
}  # fmt: skip
RECORD = {
    "schema_version": 1, "name": "mine", "status": "done", "composition": "sft+lora", "model": "org/model",
    "advise_version": "0.1.0", "verdict": {"ok": True,
    "text": "better: loss 4.0 before, 2.0 after"},
    "stages": [STAGE], "resolved": {"sft": {"model": "org/model", "options": {"rank": 32}, "attention": "sdpa", "kernels": "liger",
    "trl": {"learning_rate": 1e-4}}}, "versions": {"torch": "2.13"}, "digests": {"plan": "abc"},
    "hardware": {"gpus": [], "cpu_cores": 2}, "started_at": "2026-11-25T10:00:00Z",
    "finished_at": "2026-11-25T10:02:00Z", "attempts": 2,
}  # fmt: skip
METRICS = [
    {"stage": "sft", "task": None, "step": step, "loss": 4.0 - step, "learning_rate": 1e-4}
    for step in range(3)
]


def page_of(document, folder, *, plan_text="", metrics=()):
    record = RunRecord.from_dict(document)
    return report_page(record, folder=folder, plan_text=plan_text, metrics=metrics)


def card_of(document, *folder):
    """The card of the first stage's result."""
    record = RunRecord.from_dict(document)
    return model_card(record, record.stages[0], *folder)


def test_it_needs_no_network_and_runs_nothing(tmp_path):
    """No script, link or picture from elsewhere; data are escaped, and only logged values drawn."""
    page = page_of(RECORD, tmp_path, plan_text="version: 1  # first\n", metrics=METRICS)
    assert re.findall(r"(?i)<script|<[^>]*\b(?:src|href)\s*=", page) == []
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert ("default-src 'none'" in page, page.count('<figure class="plot">')) == (True, 2)


HELD = {
    "every": 2, "rows": 6, "best_step": 2, "best_loss": 1.5, "last_step": 6, "last_loss": 2.5,
    "kept_step": 2, "planned_steps": 9, "stopped_early": True, "waited": 2,
}  # fmt: skip
WITH_HELD_OUT = [
    {**METRICS[0], "step": step, "loss": 4.0 - step / 2, **({"holdout_loss": held} if held else {})}
    for step, held in enumerate((None, 1.5, None, 2.0, None, 2.5), 1)
]


def test_two_lines_are_told_apart_without_colour(approved):
    """Lines differ in dashes and named ends; text stands outside the drawing to keep its size."""
    line = Line(name="Training loss", points=[(1, 4.0), (10, 1.80)])
    beside = Line(name="Held-out loss", points=[(5, 2.5), (10, 1.82)])
    page = "".join(map(html_of, line_chart(line, beside=beside)))
    approved(page)
    ends = re.findall(r'<span style="top:([\d.]+)%">(training 1.8|held-out 1.82)</span>', page)
    assert 10 <= abs(float(ends[0][0]) - float(ends[1][0])) <= 100
    assert "<text" not in page


EXPECTED = {
    "peak_bytes": 3 * GIB, "low_bytes": 5 * GIB // 2, "high_bytes": 4 * GIB, "limit_bytes": 8 * GIB,
    "counted_bytes": 2 * GIB,
    "terms": [{"name": "weights", "bytes": 2 * GIB}, {"name": "activations", "bytes": GIB}],
}  # fmt: skip
SAMPLES = [
    {"prompt": f"q{n}", "base": f"base {n}", "tuned": f"tuned {n}", "expected": f"wanted {n}",
     "score_before": 0.5, "score_after": after}
    for n, after in enumerate((0.5, 0.9, 0.1, 0.6, 0.7))
]  # fmt: skip
SAMPLED = {**STAGE["evaluation"], "samples": SAMPLES, "sample_metric": "rouge_l"}
TEAMS = [
    {"name": f"sft-{task}", "task": task, "folder": f"stages/sft-{task}"} for task in ("a", "b")
]
CROSS = {"a": {"base": 4.0, "a": 1.5, "b": 4.5}, "b": {"base": 3.0, "a": 3.5, "b": 1.25}}
FAILED = {"status": "failed", "error": {"what": "out of memory"}}
LOCAL = {"resolved": {"sft": {"model": "/home/me/my m", "options": {"rank": 8}}}}
WHOLE = {  # changes of the record and of its stages
    "finished": ({}, [{}]),
    # Memory by its parts against what was free; samples by rule, the same question once.
    "memory and samples": ({}, [{"expected": EXPECTED, "evaluation": SAMPLED, "held_out": HELD}]),
    "held-out loss beside the training loss": ({}, [{"held_out": HELD}]),
    "trial": ({"max_steps": 4, "name": "it's & so"} | LOCAL, [{}]),
    "failed": ({"verdict": None, **FAILED}, [FAILED]),
    "stopped": ({"status": "stopped", "verdict": None}, [{"status": "stopped"}, {"status": "pending"}]),
    # Every module on every task, the base first.
    "teams": ({"cross_evaluation": CROSS}, TEAMS),
    **{head: ({"resolved": {"sft": {"options": {"head": head}}}}, [{}]) for head in ("classes", "seq2seq")},
    "scores": ({}, [{"objective": "rm", "update": "full"}]),
    **{name: ({}, [{"update": name}]) for name in ("full", "adapter", "prefix")},
}  # fmt: skip


@pytest.mark.parametrize("what", WHOLE)
def test_a_report_and_its_cards_are(approved, monkeypatch, what):
    """What the run was, and what came of it, in a folder and by a Python with odd names."""
    monkeypatch.setattr("sys.executable", "/opt/my py/bin/python")
    record, stages = WHOLE[what]
    document = {**RECORD, **record, "stages": [{**STAGE, **changes} for changes in stages]}
    folder = Path("runs/it's & so")
    metrics = WITH_HELD_OUT if "held" in what else METRICS
    page = page_of(document, folder, plan_text="epochs: 2  # <b>\n", metrics=metrics)
    approved(re.sub(r"(?s)<style>.*?</style>", "", page) + card_of(document, folder))


def test_report_and_cards_are_written_beside_the_results(tmp_path):
    """The run has report.html and each finished stage README.md, even if the metrics are cut."""
    (tmp_path / "stages" / "sft").mkdir(parents=True)
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": "sft", "task": null, "step": 1, "loss": 1.0}\n{"stage": "sf')
    assert len(read_metrics(path)) == 1
    report = write_report(tmp_path, RunRecord.from_dict(RECORD))
    assert report.read_text().startswith("<!doctype html>")
    card = (tmp_path / "stages" / "sft" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\nbase_model: org/model\n")
    assert "4.000 before, 2.000 after" in card
    local = {**RECORD, "resolved": {}, "model": "/home/me/m"}
    assert "base_model" not in card_of(local)  # a folder is not on the hub


def test_a_curve_keeps_every_spike():
    """Thinning keeps each span's lowest and highest finite values; one point is no curve."""
    points = [(float(step), 1.0) for step in range(10_000)]
    points[5_678] = (5_678.0, 99.0)
    assert max(value for _, value in thin(points)) == 99.0
    assert len(thin(points)) <= 400
    assert line_chart(Line(name="x", points=[(0.0, 1.0), (1.0, float("nan"))])) == []
    (chart,) = line_chart(Line(name="x", points=[(0.0, 1.0), (3.0, 1.0)]))
    assert "step 3" in html_of(chart)


def line(step, reward, *, ended=True, **other):
    return {
        "step": step, "prompt": "Why?\n", "answer": f"a{reward}", "reward": reward, "tokens": 3,
        "rewards": {"exact": reward}, "ended": ended, **other,
    }  # fmt: skip


def test_the_first_and_the_last_step_are_shown(approved, tmp_path):
    """The best and the worst answer of each, and one that was cut; damaged lines are left out."""
    lines = [line(step, reward) for step in (1, 2, 9) for reward in (0.5, 1.0, 0.0)]
    lines.insert(1, line(1, 0.25, ended=False))
    path = tmp_path / "rollouts.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in lines) + '{"step": 9, "pro')
    both = line(1, 0.5, rewards={"exact": 1.0, "own": None})
    approved([list(sample_rows(rows)) for rows in (read_rollouts(path), [both], [])])


def test_each_reward_has_a_row_and_a_picture(approved):
    """A reward that was always the same says so in place of its spread."""
    exact = RewardRecord(name="exact", weight=2.0, first=0.1, last=0.5, spread=0.3)
    own = RewardRecord(name="own", first=1.0, last=1.0, spread=0.0, missing=0.25, constant=True)
    macro = html_templates().get_template("stage.html").module.rewards((exact, own))
    metrics = [{"step": step, "rewards/exact/mean": step / 10} for step in (1, 2)]
    approved([str(macro).splitlines(), [chart.says for chart in metric_charts(metrics)]])


def test_a_chat_begins_with_the_verdict(approved, tmp_path, monkeypatch, capsys):
    """Its three lines go to standard error; an unreadable record is left for chat to explain."""
    monkeypatch.chdir(tmp_path)
    record = Path("run.json")
    record.write_text(json.dumps(RECORD))
    greet(Path())
    approved(capsys.readouterr())
    record.write_text("{")
    greet(Path())
    greet(Path("nothing"))
    assert capsys.readouterr().err == ""


def test_ctrl_c_is_the_chats_while_it_runs_and_then_ours_again():
    before = signal.getsignal(signal.SIGINT)
    with interrupts_left_to_child():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


HOSTILE = "<script>alert(1)</script>"


def html_of(block):
    """One block as the report shows it."""
    macros = html_templates().get_template("blocks.html").module
    return str(getattr(macros, type(block).__name__)(block))


def test_text_from_outside_is_shown_not_run():
    """A name or a path that holds markup appears as the characters it is made of."""
    blocks = (
        Items(items=(Item(text=HOSTILE, detail=HOSTILE, commands=(HOSTILE,)),)),
        Items(items=(Item(text="say `--gpu <b>` now"),)),  # code is marked, and escaped too
        PageTable(columns=(HOSTILE,), rows=((HOSTILE,),)),
        ToPaste(what=HOSTILE, line=HOSTILE),
    )
    record = RunRecord(
        schema_version=1, name=HOSTILE, model=HOSTILE, status="failed", stages=(),
        versions={HOSTILE: HOSTILE},
        advise_version=f"{HOSTILE} \x1b[2J",
    )  # fmt: skip
    page = render_html("report.html", {
        "record": record, "state": HOSTILE, "tone": "", "goes_on": None, "verdict": (), "command": None,
        "machine": MachineRecord(gpus=(HOSTILE,)), "what": HOSTILE, "stages": (),
        "title": HOSTILE, "plain": HOSTILE, "samples": (), "how_picked": "", "checked": {HOSTILE: 1},
        "warnings": {HOSTILE: 1},
        "tasks": {HOSTILE: {HOSTILE: 1.0}, "b": {}}, "sections": (Section(title=HOSTILE, blocks=blocks),),
        "plan_text": HOSTILE, "digests": {HOSTILE: HOSTILE},
    })  # fmt: skip
    assert "<script" not in page.lower()
    assert "say <code>--gpu &lt;b&gt;</code> now" in page
    assert (page.count("&lt;script&gt;alert(1)&lt;/script&gt;"), "\x1b" in page) == (28, False)


BARS = {  # parts, what else is said of the bar, its limit, and how wide the parts are
    # 8 and 2 of a limit of 20: two fifths and a tenth of the width; both named with amounts.
    "limit": (
        {"weights": 8, "activations": 2}, {"band": (9, 12)}, ("memory of the GPU", 20),
        [40 / 1.02, 10 / 1.02],
    ),
    # A correction below nothing is listed and not drawn; the total is said as it is.
    "correction": ({"a": 5, "learned": -1}, {"whole": 4}, None, [98.04]),
    # Ten times as much as a limit is said and not drawn.
    "far": ({"a": 2}, {}, ("free", 20), [98.04]),
    # A part may be named after a task of the user's.
    "hostile": ({HOSTILE: 1}, {}, None, [98.04]),
}  # fmt: skip


@pytest.mark.parametrize("name", BARS)
def test_bars_say_in_words_and_numbers_what_they_draw(approved, name):
    """Parts are as wide as their share, and stand in a numbered list."""
    parts, more, limit, wide = BARS[name]
    bar = StackedBar(name="e", parts=parts, **more)
    (chart,) = bar_chart("Memory", [bar], show="{:g} GiB".format, limit=limit)
    page = html_of(chart)
    drawn = map(float, re.findall(r'<rect class="part[^>]*width="([\d.]+)%"', page))
    assert (list(drawn), "<script" in page) == (pytest.approx(wide, abs=0.05), False)
    approved(page)


@pytest.mark.parametrize("bars", [[], [StackedBar(name="a", parts={})]])
def test_nothing_is_drawn_of_nothing(bars):
    assert bar_chart("x", bars, show=str) == []


RUN_STAGE = {
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
BETTER = {**RUN_STAGE["evaluation"], "holdout_loss_interval": [-1.7, -1.3]}


def record(**changes):
    return {
        "schema_version": 1,
        "name": "shop",
        "status": "done",
        "model": "m",
        "max_steps": None,
        "resolved": {"sft": {"model": "/m", "options": {"rank": 32}}},
        "stages": [{**RUN_STAGE, **changes}],
    }


WORSE = {**RUN_STAGE["evaluation"], "holdout_loss_after": 3.9, "holdout_loss_interval": [0.5, 1.1]}
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
    evaluation = {**RUN_STAGE["evaluation"], "samples": [*samples], "sample_metric": "rouge_l"}
    return {"checks": [], "data": {}, "evaluation": evaluation, **of_stage}


SAMPLE = {"prompt": "Where?", "base": "b", "score_before": 0.1, "score_after": 0.5}
BEGIN = "The library opens at nine on every day but Sunday and holidays, and so "
FALLING = {"evaluation": BETTER, "held_out": {"fell": 0.1}, "checks": []}
STOPPED = {"stopped_early": True, "best_loss": 1.0, "best_step": 5, "fell": 0.5}
KEPT = {
    "at": "2026-12-01", "versions": {"torch": "2.13.0+cpu", "transformers": "5.24.0"},
    "device": "cpu",
}  # fmt: skip
DRY = {"longest_batch_duration_s": 300.0}
ENDED = {  # changes of the stage, and of the record; keys of the plan that lies in the folder
    "finished": ({}, {}),
    "finished before": ({}, {}),
    "the whole time beside what was expected": (
        {"times": TIMES, "expected": {**RUN_STAGE["expected"], "times": {"total_s": 240.0}}}, {},
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
    "a base that was measured before": ({"checks": [], "evaluation": {**BETTER, "kept_base": KEPT}}, {}),
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
        {**RUN_STAGE, "name": f"sft-{n}", "task": f"t{n}", "folder": f"stages/sft-{n}", "checks": []}
        for n in range(9)
    ]}),
    **{
        status: ({"status": status, "error": {"what": "out of memory"}}, {"status": status})
        for status in ("stopped", "failed")
    },
    "dry, and it fits": (DRY, {}),
    "dry, and it does not fit": (DRY | {"expected": {**RUN_STAGE["expected"], "limit_bytes": GIB}}, {}),
}  # fmt: skip
PLAN = "model: m\ndata: {{path: x.jsonl}}\nstages:\n  - name: sft\n    objective: sft\n    update: lora{}\n"


def test_a_page_says_when_a_base_was_measured_that_is_not_measured_again(tmp_path):
    """Below the numbers before and after."""
    said = "<p>Base: measured on 2026-12-01 (cpu, torch 2.13.0+cpu, transformers 5.24.0) and kept, "
    kept = {**STAGE, "evaluation": {**STAGE["evaluation"], "kept_base": KEPT}}
    assert said in page_of({**RECORD, "stages": [kept]}, tmp_path)
    assert "<p>Base:" not in page_of(RECORD, tmp_path)


@pytest.mark.parametrize("what", ENDED)
def test_a_summary_is(approved, tmp_path, monkeypatch, what):
    """Never dressed up, never longer than what was measured, and its lines can be pasted."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.executable", "/opt/my py/bin/python")
    folder = Path("runs/it's & so")
    (folder / "stages" / "sft").mkdir(parents=True)
    (folder / "report.html").touch()
    stage, run, *keys = ENDED[what]
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


@pytest.mark.extra("gguf", "merged", "vllm")
@pytest.mark.parametrize(
    ("stage", "options", "said"),
    [
        ({"status": "stopped"}, {}, "to resume the run: advise run 'my runs/shop'"),
        (
            {},
            {"head": "classes"},
            "sorts texts into classes: .*advise chat 'my runs/shop', or from",
        ),
        ({}, {"head": "seq2seq"}, "rewrites texts and .*it as it is: from Python"),
        ({"objective": "rm"}, {}, "stages/sft, scores answers: it does not write answers"),
    ],
)
def test_what_does_not_write_is_not_exported(tmp_path, monkeypatch, stage, options, said):
    """It is refused before a library is loaded; what to do with it instead can be pasted."""
    monkeypatch.chdir(tmp_path)
    run = Path("my runs/shop")
    run.mkdir(parents=True)
    document = {**record(**stage), "resolved": {"sft": {"options": options}}}
    (run / "run.json").write_text(json.dumps(document))
    for name in ("gguf", "merged", "ollama", "vllm"):
        wanted = ExportRequest(source=run, out=None, only=None, say=print, run_tool=pytest.fail)
        with pytest.raises(InputError, match=f"(?s){said}"):
            exporters()[name].export(wanted)


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


@pytest.mark.parametrize(("counter", "is_apart"), [("rss_growth", True), ("allocated", False)])
def test_memory_on_the_cpu_says_what_it_leaves_out(counter, is_apart):
    """The line on the way counts the whole process, the comparison what training adds to it."""
    measured = {"peak_bytes": 2**30, "counter": counter, "train_s": 30.0}
    found = FinishedRun(folder=Path("r"), record=RunRecord.from_dict(record(measured=measured)))
    said = " ".join(" ".join(summary_lines(found)).split())
    assert "1.0 GiB measured, 2.0 GiB expected" in said
    assert ("both without Python and its libraries" in said) is is_apart
