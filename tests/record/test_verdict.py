"""The verdict on a run: learned, lost, next; worked out from records made by hand."""

import json
import math
from pathlib import Path

import pytest

from advisor.plan.entries import entries
from advisor.plan.read import read_plan
from advisor.record.judge import run_verdict
from advisor.record.next_step import GENERAL
from advisor.record.run import RunRecord
from advisor.record.verdict import limits

ROOT = Path(__file__).parents[2]
STAGE = {
    "name": "sft",
    "task": None,
    "objective": "sft",
    "update": "lora",
    "quantization": None,
    "status": "done",
    "folder": "stages/sft",
    "data": {"rows": 200, "train_rows": 180, "holdout_rows": 20},
    "evaluation": {
        "holdout_loss_before": 4.27,
        "holdout_loss_after": 1.82,
        "holdout_loss_interval": [-2.64, -2.23],
        "rows": 20,
        "metrics": {
            "rouge_l": {"before": 0.12, "after": 0.48, "interval": [0.3, 0.4], "word": "better"}
        },
        "general": {
            "before": 1.58, "after": 1.60, "interval": [-0.1, 0.2], "rows": 24,
            "word": "not distinguishable",
        },
    },
    "checks": [{"name": "x", "ok": True, "text": "fine"}],
}  # fmt: skip
FORGOT = {"before": 1.58, "after": 3.72, "interval": [1.2, 2.9], "rows": 24, "word": "worse"}


def judged(*stages, evaluation=None, **run):
    """The verdict on a run of these stages, or of one whose evaluation is changed so."""
    changed = {**STAGE, "evaluation": {**STAGE["evaluation"], **(evaluation or {})}}
    record = {
        "schema_version": 1,
        "name": "shop",
        "status": "done",
        "model": "m",
        "max_steps": None,
        "resolved": {"sft": {"trl": {"learning_rate": 1e-3}}},
        "stages": list(stages) or [changed],
        **run,
    }
    return run_verdict(RunRecord.from_dict(record), run="runs/shop")


def samples(stopped, of, *, base=None, text="a fine answer"):
    return [
        {
            "prompt": "q", "base": "b", "tuned": text,
            "tuned_stopped": place < stopped, "base_stopped": place < (of if base is None else base),
        }
        for place in range(of)
    ]  # fmt: skip


def test_a_result_that_learned_and_lost_nothing_is_to_be_shipped():
    """Numbers before and after with interval and rows; nothing lost; the command that merges."""
    found = judged()
    assert (found.ok, found.word, found.is_good) == (True, "better", True)
    assert found.task.status == "better"
    assert found.task.text == (
        "held-out loss 4.27 -> 1.82 (95 % interval -2.64 to -2.23), 20 rows held out;"
        " rouge l 0.12 -> 0.48"
    )
    assert found.general.status == "kept"
    assert found.general.text == "loss on 24 fixed general prompts 1.58 -> 1.60"
    assert found.next.action == "ship"
    assert found.next.command == "advise export runs/shop --to merged"


def test_a_general_ability_that_halved_is_never_good():
    """Loss 1.58 to 3.72 is e^2.14 = 8.5 times the perplexity: its own word and status, and the
    cure that was measured, general rows.
    """
    found = judged(evaluation={"general": FORGOT})
    assert found.ok  # every check of what was saved passed
    assert not found.is_good
    assert found.word == "better at the task, worse in general"
    assert (found.task.status, found.general.status) == ("better", "lost")
    assert "perplexity 8.5 times as high (each token half as likely or less)" in found.general.text
    assert found.next.action == "mix_general"
    assert found.next.text.startswith("mix general questions into the data, one for every 4 rows")
    assert math.isclose(math.exp(3.72 - 1.58), 8.5, rel_tol=0.01)


@pytest.mark.parametrize(
    ("after", "word", "status"),
    [(1.58 + 0.19, "worse", "lost"), (1.58 + 0.17, "worse", "kept"), (1.58 + 0.5, None, "lost"),
     (1.58 + 0.5, "not distinguishable", "kept")],
)  # fmt: skip
def test_what_counts_as_lost_is_the_limit_in_the_rules(after, word, status):
    """1.2 times the perplexity is a loss higher by ln 1.2 = 0.182, and told from chance."""
    assert limits()["general_lost"] == 1.2
    found = judged(evaluation={"general": {**FORGOT, "after": after, "word": word}})
    assert found.general.status == status


def test_too_few_rows_say_how_many_would_do():
    """An interval narrows with the root of the rows: from 4 rows, half width 2 and difference -1,
    16 are needed; there are 200 to hold out from.
    """
    few = {
        "holdout_loss_before": 3.0, "holdout_loss_after": 2.0, "rows": 4,
        "holdout_loss_interval": [-3.0, 1.0], "metrics": {},
    }  # fmt: skip
    found = judged(evaluation=few)
    assert found.word == "not distinguishable"
    assert "a difference as small as this takes about 16 rows to tell" in found.task.text
    assert found.next.action == "hold_out_more"
    assert found.next.command.endswith("--set stages.sft.holdout=0.08")


def test_with_too_little_data_more_of_it_is_asked_for():
    """A fifth of 20 rows cannot be 400."""
    few = {
        "holdout_loss_before": 3.0, "holdout_loss_after": 2.8, "rows": 4,
        "holdout_loss_interval": [-2.2, 1.8], "metrics": {},
    }  # fmt: skip
    stage = {**STAGE, "data": {"rows": 20}, "evaluation": {**STAGE["evaluation"], **few}}
    found = judged(stage)
    assert found.next.action == "more_data"
    assert found.next.text == "collect more rows, about 2,000 in all"


def test_no_interval_at_all_names_the_usual_number():
    """Two rows give no interval; the objective's own number of held-out rows is named."""
    few = {
        "holdout_loss_before": 3.0, "holdout_loss_after": 2.0, "rows": 2,
        "holdout_loss_interval": None, "metrics": {},
    }  # fmt: skip
    assert "hold out more, 64 tell small differences" in judged(evaluation=few).task.text


def test_a_loss_that_did_not_move_says_so():
    """Enough rows, and a change below 2 %: it did not learn, look at its rows."""
    same = {
        "holdout_loss_before": 3.0, "holdout_loss_after": 2.99, "rows": 64,
        "holdout_loss_interval": [-0.03, 0.01], "metrics": {},
    }  # fmt: skip
    found = judged(evaluation=same)
    assert found.next.action == "look_at_data"
    assert "did not learn" in found.next.text


def test_answers_that_do_not_end_are_a_loss():
    """Half of the answers run on, all of the base's ended; with a base that ran on as well nothing
    is lost.
    """
    found = judged(evaluation={"samples": samples(8, 16)})
    assert found.general.status == "lost"
    assert "8 of 16 sample answers end by themselves (base 16)" in found.general.text
    assert judged(evaluation={"samples": samples(8, 16, base=4)}).general.status == "kept"
    assert judged(evaluation={"samples": samples(9, 16)}).general.status == "kept"


def test_answers_that_repeat_themselves_are_counted():
    """The same four words four times; half of all answers so are a loss."""
    found = judged(evaluation={"samples": samples(4, 4, text="we are very sorry " * 4)})
    assert found.general.status == "lost"
    assert "4 repeat themselves" in found.general.text


def test_a_result_that_got_worse_says_what_to_change():
    """Where held-out loss was lower before the end those weights are kept; else a lower rate."""
    worse = {"holdout_loss_interval": [0.2, 0.9], "holdout_loss_after": 5.0, "metrics": {}}
    found = judged(evaluation=worse)
    assert (found.word, found.next.action) == ("worse", "lower_rate")
    stage = {
        **STAGE,
        "evaluation": {**STAGE["evaluation"], **worse},
        "held_out": {"best_step": 20, "last_step": 80},
    }
    found = judged(stage)
    assert found.next.action == "train_shorter"
    assert found.next.command.endswith("--set stages.sft.keep=best")


def test_a_trial_is_followed_by_the_whole_run():
    """Whatever a trial of a few steps came to."""
    found = judged(max_steps=4)
    assert found.next.action == "run_whole"
    assert found.next.command == "advise run runs/shop/plan.yaml --output runs/shop-whole"


def test_a_failed_check_comes_before_shipping():
    """What was saved has a warning: it is looked at first."""
    found = judged({**STAGE, "checks": [{"name": "x", "ok": False, "text": "never ends"}]})
    assert found.next.action == "try_it"
    assert not found.ok


@pytest.mark.parametrize("update", ["prefix", "adapter"])
def test_what_cannot_be_merged_is_not_told_to_be(update):
    """The next step of such a result is to talk to it."""
    found = judged({**STAGE, "update": update})
    assert found.next.command == "advise chat runs/shop"


def test_nothing_compared_is_not_called_good():
    """No evaluation: not measured, and how to have one."""
    found = judged({**STAGE, "evaluation": None}, judge=False)
    assert found.word is None
    assert found.task.status == "not measured"
    assert found.next.action == "measure"
    assert judged({**STAGE, "status": "running"}) is None


def test_the_metric_that_decides_is_the_objective_s_own():
    """Of a preference stage the margin, though answers have a loss."""
    margin = {"before": 0.1, "after": 0.9, "interval": [0.5, 1.1], "rows": 64, "word": "better"}
    found = judged(
        evaluation={"decides": "preference margin", "metrics": {"preference margin": margin}}
    )
    assert found.task.text.startswith("preference margin 0.1 -> 0.9")


def test_several_tasks_are_told_by_their_word():
    """One line each for all of them; the next step is that of the task that needs one."""
    tasks = [
        {**STAGE, "name": f"sft-{task}", "task": task, "evaluation": evaluation}
        for task, evaluation in (
            ("legal", STAGE["evaluation"]),
            ("hr", {**STAGE["evaluation"], "general": FORGOT}),
        )
    ]
    found = judged(*tasks)
    assert (found.is_good, found.word) == (False, "mixed")
    assert found.text == "better: legal; better at the task, worse in general: hr"
    assert found.task.text == "all of legal, hr"
    assert found.general.text == "kept: legal; lost: hr"
    assert found.next.text.startswith("hr: mix general questions")


def plan_of(tmp_path, **data):
    """The trainings of a plan with this data."""
    lines = "".join(f", {key}: {value}" for key, value in data.items())
    path = tmp_path / "plan.yaml"
    path.write_text(
        f"model: m\ndata: {{path: {tmp_path}/rows.jsonl{lines}}}\nstages:\n"
        "  - {name: sft, objective: sft, update: lora, learning_rate: 3e-4, epochs: 2}\n"
    )
    return entries(read_plan(path))


def test_general_rows_to_begin_with_are_named(tmp_path):
    """The rows named are there, and none of them is among the prompts that measure general
    ability.
    """
    stage = {**STAGE, "evaluation": {**STAGE["evaluation"], "general": FORGOT}}
    record = RunRecord.from_dict(
        {"schema_version": 1, "name": "s", "status": "done", "model": "m", "stages": [stage]}
    )
    found = run_verdict(record, run="r", trainings=plan_of(tmp_path))
    assert found.next.text.endswith(f"some to begin with: {GENERAL}")
    rows = [json.loads(line) for line in GENERAL.read_text(encoding="utf-8").splitlines()]
    asked = {row["messages"][0]["content"] for row in rows}
    assert len(asked) == len(rows) >= 40
    measured = (ROOT / "trainers" / "evaluation" / "general.jsonl").read_text(encoding="utf-8")
    assert not asked & {json.loads(line)["prompt"] for line in measured.splitlines()}


def test_a_loss_that_still_falls_is_trained_longer(tmp_path):
    """2 % or more from the last evaluation but one to the last: twice the epochs, by the key that
    decides on them.
    """
    for fell, action in ((0.02, "train_longer"), (0.019, "ship")):
        stage = {**STAGE, "held_out": {"fell": fell, "best_step": 9, "last_step": 9}}
        record = RunRecord.from_dict(
            {"schema_version": 1, "name": "s", "status": "done", "model": "m", "stages": [stage]}
        )
        found = run_verdict(record, run="r", trainings=plan_of(tmp_path))
        assert found.next.action == action
    assert run_verdict(record, run="r").next.action == "ship"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"steps": 22}, "22 optimizer steps are few, 100 are usual"),
        ({"steps": 22, "held_out": {"fell": 0.001}}, None),
        ({"steps": 100}, None),
        ({"evaluation": {**STAGE["evaluation"], "samples": samples(2, 4, base=2)}},
         "only 2 of 4 answers end by themselves"),
    ],
)  # fmt: skip
def test_a_good_result_that_is_not_finished_is_trained_longer(tmp_path, changes, why):
    """Answers that run on, or fewer steps than the objective's file asks for and no curve that
    says they were enough.
    """
    record = RunRecord.from_dict(
        {
            "schema_version": 1, "name": "s", "status": "done", "model": "m",
            "stages": [{**STAGE, **changes}],
        }
    )  # fmt: skip
    found = run_verdict(record, run="r", trainings=plan_of(tmp_path)).next
    assert found.action == ("train_longer" if why else "ship")
    assert why is None or found.text == f"train longer: {why}"
