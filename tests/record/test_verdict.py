"""The verdict on a run made by hand, and a next command whose every `--set` changes that run."""

import itertools
import json
import math
import shlex

import pytest
from msgspec import to_builtins

from advisor.plan.entries import entries
from advisor.plan.read import read_plan, set_values
from advisor.record.judge import run_verdict
from advisor.record.next_step import GENERAL, longer_setting, resume_command
from advisor.record.run import RunRecord
from advisor.record.smaller import as_settings, changes, weight_changes
from advisor.record.verdict import limits
from tests.conftest import ROOT

EVALUATION = {
    "holdout_loss_before": 4.27, "holdout_loss_after": 1.82,
    "holdout_loss_interval": [-2.64, -2.23], "rows": 20,
    "metrics": {
        "rouge_l": {"before": 0.12, "after": 0.48, "interval": [0.3, 0.4], "word": "better"}
    },
    "general": {
        "before": 1.58, "after": 1.60, "interval": [-0.1, 0.2], "rows": 24,
        "word": "not distinguishable",
    },
}  # fmt: skip
STAGE = {
    "name": "sft", "task": None, "objective": "sft", "update": "lora", "quantization": None,
    "status": "done", "folder": "stages/sft",
    "data": {"rows": 200, "train_rows": 180, "holdout_rows": 20},
    "evaluation": EVALUATION, "checks": [{"name": "x", "ok": True, "text": "fine"}],
}  # fmt: skip
FORGOT = {"before": 1.58, "after": 3.72, "interval": [1.2, 2.9], "rows": 24, "word": "worse"}
MARGIN = {"before": 0.1, "after": 0.9, "interval": [0.5, 1.1], "rows": 64, "word": "better"}


def judged(*stages, trainings=None, evaluation=None, stage=None, **run):
    """The verdict on a run of these stages, or of one that is changed so."""
    changed = {**STAGE, "evaluation": {**EVALUATION, **(evaluation or {})}, **(stage or {})}
    record = {
        "schema_version": 1, "name": "shop", "status": "done", "model": "m", "max_steps": None,
        "resolved": {"sft": {"trl": {"learning_rate": 1e-3}}}, "stages": list(stages) or [changed],
        **run,
    }  # fmt: skip
    more = {} if trainings is None else {"trainings": trainings}
    return run_verdict(RunRecord.from_dict(record), run="my runs/shop", **more)


def held_out(before, after, rows, interval):
    """The evaluation of a loss alone."""
    return {
        "holdout_loss_before": before, "holdout_loss_after": after, "rows": rows,
        "holdout_loss_interval": interval, "metrics": {},
    }  # fmt: skip


def samples(stopped, of, *, base=None, text="a fine answer"):
    ended = of if base is None else base
    return {
        "samples": [
            {
                "prompt": "q", "base": "b", "tuned": text, "tuned_stopped": place < stopped,
                "base_stopped": place < ended,
            }
            for place in range(of)
        ]
    }  # fmt: skip


def general(after, word):
    return {"evaluation": {"general": {**FORGOT, "after": after, "word": word}}}


WORSE = {"holdout_loss_interval": [0.2, 0.9], "holdout_loss_after": 5.0, "metrics": {}}
# What differs from a sound record; what is said of it stands in tests/golden.
VERDICTS = {
    "learned and lost nothing: ship": {},
    # Every check of what was saved passed, and the loss of e^2.14 = 8.5 times the perplexity has a
    # word of its own, and the cure that was measured.
    "a general ability that halved is never good": {"evaluation": {"general": FORGOT}},
    # 1.2 times the perplexity is a loss higher by ln 1.2 = 0.182, and told from chance.
    "lost": general(1.58 + 0.19, "worse"),
    "not much, so kept": general(1.58 + 0.17, "worse"),
    "without a word, so lost": general(1.58 + 0.5, None),
    "chance, so kept": general(1.58 + 0.5, "not distinguishable"),
    # An interval narrows with the root of the rows: from 4 rows, half width 2 and difference -1, 16
    # are needed; there are 200 to hold out from.
    "too few rows: 16, a holdout of 0.08": {"evaluation": held_out(3.0, 2.0, 4, [-3.0, 1.0])},
    # A fifth of 20 rows cannot be 400.
    "too little data: 2,000 in all": {
        "evaluation": held_out(3.0, 2.8, 4, [-2.2, 1.8]), "stage": {"data": {"rows": 20}},
    },
    # Two rows give no interval: the objective's own number of held-out rows is named.
    "no interval: hold out 64": {"evaluation": held_out(3.0, 2.0, 2, None)},
    # Enough rows, and a change below 2 %.
    "did not learn: look at the data": {"evaluation": held_out(3.0, 2.99, 64, [-0.03, 0.01])},
    "half of the answers do not end: lost": {"evaluation": samples(8, 16)},
    "the base's did not end: kept": {"evaluation": samples(8, 16, base=4)},
    "most answers end: kept": {"evaluation": samples(9, 16)},
    # The same four words four times.
    "4 answers repeat themselves: lost": {
        "evaluation": samples(4, 4, text="we are very sorry " * 4)
    },
    "worse: a lower rate": {"evaluation": WORSE},
    "worse: the weights of the best step": {
        "evaluation": WORSE, "stage": {"held_out": {"best_step": 20, "last_step": 80}},
    },
    "a trial: run the whole": {"max_steps": 4},
    "a failed check: not ok, try it": {
        "stage": {"checks": [{"name": "x", "ok": False, "text": "never ends"}]}
    },
    **{
        f"{update} cannot be merged: chat": {"stage": {"update": update}}
        for update in ("prefix", "adapter")
    },
    "nothing was compared: measure": {"stage": {"evaluation": None}, "judge": False},
    "the objective's own metric decides": {
        "evaluation": {"decides": "preference margin", "metrics": {"preference margin": MARGIN}}
    },
}  # fmt: skip


@pytest.mark.parametrize("case", VERDICTS)
def test_what_is_said_of_a_result(approved, case):
    """Numbers before and after with interval and rows; what was lost; what to do next."""
    found = to_builtins(judged(**VERDICTS[case]))
    approved(json.loads(json.dumps(found).replace(str(ROOT), "ROOT")))


def test_the_limits_are_those_of_the_rules():
    """And what is not finished has no verdict."""
    assert limits()["general_lost"] == 1.2
    assert math.isclose(math.exp(3.72 - 1.58), 8.5, rel_tol=0.01)
    assert judged(stage={"status": "running"}) is None


def test_several_tasks_are_told_by_their_word():
    """One line each for all of them; the next step is that of the task that needs one."""
    forgot = {**EVALUATION, "general": FORGOT}
    tasks = [
        {**STAGE, "name": f"sft-{task}", "task": task, "evaluation": evaluation}
        for task, evaluation in (("legal", EVALUATION), ("hr", forgot))
    ]
    found = judged(*tasks)
    assert (found.is_good, found.word) == (False, "mixed")
    assert found.text == "better: legal; better at the task, worse in general: hr"
    assert found.task.text == "all of legal, hr"
    assert found.general.text == "kept: legal; lost: hr"
    assert found.next.text.startswith("hr: mix general questions")


@pytest.fixture
def trainings(tmp_path):
    """Those of a plan of two epochs."""
    path = tmp_path / "plan.yaml"
    path.write_text(
        f"model: m\ndata: {{path: {tmp_path}/my rows.jsonl}}\nstages:\n"
        "  - {name: sft, objective: sft, update: lora, learning_rate: 3e-4, epochs: 2}\n"
    )
    return entries(read_plan(path))


def test_general_rows_to_begin_with_are_named(trainings):
    """Where the base has no chat template to answer in; none of them is measured on."""
    plain = {"sft": {"plain_template": True}}
    found = judged(evaluation={"general": FORGOT}, trainings=trainings, resolved=plain)
    assert f"some to begin with: {GENERAL} (set `replay`" in found.next.text
    rows = [json.loads(line) for line in GENERAL.read_text(encoding="utf-8").splitlines()]
    asked = {row["messages"][0]["content"] for row in rows}
    assert len(asked) == len(rows) >= 40
    measured = (ROOT / "trainers" / "evaluation" / "general.jsonl").read_text(encoding="utf-8")
    assert not asked & {json.loads(line)["prompt"] for line in measured.splitlines()}


@pytest.mark.parametrize(
    ("keys", "command"),
    [
        ({}, "advise run 'my runs/shop/plan.yaml' --set 'stages.sft.replay={rows: 500}'"),
        (
            {"replay": {"rows": 90}},
            "advise run 'my runs/shop/plan.yaml' --set stages.sft.replay_share=0.4",
        ),
        ({"replay": {"rows": 90}, "replay_share": 0.3}, None),
    ],
)
def test_what_was_lost_has_a_cure_that_can_be_pasted(trainings, tmp_path, keys, command):
    """The base's own answers are mixed in, and more of them where they are already."""
    settings = [f"stages.sft.{key}={value}" for key, value in keys.items()]
    plan = set_values(read_plan(tmp_path / "plan.yaml"), settings)
    found = judged(evaluation={"general": FORGOT}, trainings=entries(plan)).next
    assert (found.action, found.command) == ("mix_general", command)
    if command:
        (again,) = shlex.split(command)[4:]
        assert set_values(plan, [again]).stages[0].options["replay"]


ENDS = {"best_step": 9, "last_step": 9}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        # 2 % or more from the last evaluation but one to the last.
        ({"held_out": {"fell": 0.02, **ENDS}}, ""),
        ({"held_out": {"fell": 0.019, **ENDS}}, None),
        # Fewer steps than the objective's file asks for, and no curve that says they were enough.
        (
            {"steps": 22},
            "train again from the beginning, with 4 epochs: 22 optimizer steps are few, 100 are usual",
        ),
        ({"steps": 22, "held_out": {"fell": 0.001}}, None),
        ({"steps": 100}, None),
        (
            {"evaluation": {**EVALUATION, **samples(2, 4, base=2)}},
            "train again from the beginning, with 4 epochs: only 2 of 4 answers end by themselves",
        ),
    ],
)
def test_a_good_result_that_is_not_finished_is_trained_longer(trainings, changes, why):
    """A loss that still falls, few steps, or answers that run on."""
    found = judged(stage=changes, trainings=trainings).next
    assert found.action == ("ship" if why is None else "train_longer")
    assert not why or found.text == why
    assert judged(stage=changes).next.action == "ship"  # without its plan: which key decides?


LENGTHS = ({}, {"epochs": 5.0}, {"max_steps": 60}, {"epochs": 3.0, "max_steps": 7})
UPDATES = ({"update": "lora"}, {"update": "lora", "quantization": "nf4"}, {"update": "full"})
OVERRIDES = (None, {}, {"epochs": 4.0}, {"max_steps": 9}, {"micro_batch_size": 2, "seq_len": 600})


@pytest.mark.parametrize(
    ("length", "update", "override"), itertools.product(LENGTHS, UPDATES, OVERRIDES)
)
def test_every_setting_that_is_advised_changes_its_stage(tmp_path, length, update, override):
    """In what decides: `max_steps` where the plan has it, a task's own key where it has one."""
    stage = {
        "name": "sft", "objective": "sft", "micro_batch_size": 4, "learning_rate": 1e-4,
        **length, **update,
    }  # fmt: skip
    data = {"path": "a.jsonl"}
    tasks = {"tasks": [{"name": "hr", "data": data, "overrides": override}]}
    rows = {"data": data} if override is None else tasks
    path = tmp_path / "plan.yaml"
    path.write_text(json.dumps({"model": "m", **rows, "stages": [stage]}))
    plan = read_plan(path)
    (entry,) = entries(plan)
    (longer,) = entries(set_values(plan, [longer_setting(entry)]))
    steps, more = entry.stage.max_steps, longer.stage.max_steps
    assert (more == 2 * steps) if steps else (longer.stage.epochs == 2 * entry.stage.epochs)
    for change in (*changes(entry.stage), *weight_changes(entry.stage)):
        words = as_settings(entry, change).replace("--set ", "").split()
        (smaller,) = entries(set_values(plan, words))
        values = {key: value for key, value in change.values.items() if value is not None}
        assert {key: getattr(smaller.stage, key) for key in values} == values
        assert not any(getattr(entry.stage, key) == value for key, value in values.items())


def test_a_command_can_be_pasted():
    """Spaces are quoted, a folder is no option, and what the call was given is there."""
    assert resume_command("my runs/shop", only="legal", max_steps=3, judge=False) == (
        "advise run 'my runs/shop' --only legal --max-steps 3 --no-judge"
    )
    assert resume_command("-x") == "advise run ./-x"
