"""Each long part of a stage says how far it is, whatever the objective.

The trainers run with a board that hears of every item. A part that generated, scored or measured
many items in silence would show as a wait without steps, or as a jump.
"""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise

import pytest

from tests.trainers.alignment import SHORT, trained
from trainers.rows.stage_rows import CHUNK_EXAMPLES

# Every objective measures before and after, and trains.
ALWAYS = {
    "loading rows and model",
    "reading and tokenising",
    "reading weights",
    "training",
    "saving the result",
    "checking the saved result",
}
WRITES = {"losses", "sample answers", "generating answers"}
ROLLOUTS = {"generating answers"}
LONGEST_JUMP = 32  # items between two signs of life


@pytest.fixture
def heard(monkeypatch):
    """What is waited for -> (how many items there are, each number of items that was heard)."""
    from advisor.ground.progress import BYTES, board

    found = defaultdict(list)

    def hear(wait):
        if wait.unit != BYTES:
            found[wait.what].append((wait.done, wait.total))

    monkeypatch.setattr(board, "heard", hear)
    return found


def check(heard, *names):
    """Each of them was heard, counted without long jumps, and reached its end."""
    missing = set(names) - set(heard)
    assert not missing, f"{missing} in {sorted(heard)}"
    for what, seen in heard.items():
        done = [number for number, _ in seen]
        jumps = [after - before for before, after in pairwise(done)]
        longest = CHUNK_EXAMPLES if what == "reading and tokenising" else LONGEST_JUMP
        assert max(jumps, default=0) <= longest, what
    counted = {what for what, seen in heard.items() if any(total for _, total in seen)}
    assert counted >= {"training", "reading weights"}
    ends_early = {"generating answers", "learning from the answers", "this step"}
    for what in counted - ends_early:
        assert any(done == total for done, total in heard[what]), what


@pytest.mark.parametrize(
    ("objective", "own"),
    [
        ("sft", WRITES | {"held-out rows", "general prompts"}),
        ("dpo", {"losses"}),
        ("kto", {"losses"}),
        ("orpo", {"losses"}),
        ("rm", {"scores"}),
        ("grpo", WRITES - {"losses"} | ROLLOUTS),
        ("rloo", WRITES - {"losses"} | ROLLOUTS),
    ],
)
def test_an_objective_shows_each_of_its_parts(objective, own, align, tmp_path, heard):
    """Rows, weights, the model before, the steps, the result."""
    (tmp_path / "own.py").write_text(
        "def score(prompts, completions, **columns):\n"
        "    return [float(len(text)) for text in completions]\n"
    )
    keys = SHORT if objective in ("grpo", "rloo") else {"max_steps": 2}
    trained(align(objective, **keys))
    check(heard, *ALWAYS, *own)


def test_held_out_loss_on_the_way_is_shown(align, heard):
    """Inside the training."""
    trained(align("sft", max_steps=4, early_stopping=9))
    check(heard, "held-out loss")


def test_micro_batches_of_a_long_step_are_shown(align, heard):
    """A step of many of them may take minutes."""
    trained(align("sft", max_steps=2, grad_accum=4, micro_batch_size=1))
    check(heard, "this step")
    assert (3, 4) in heard["this step"]


def test_classes_show_their_predictions(make, tmp_path, heard):
    """A classifier writes nothing."""
    path = tmp_path / "labels.jsonl"
    rows = [
        {"text": f"order {number} is {'late' if number % 2 else 'here'}", "label": number % 2}
        for number in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = make(head="classes", job_data=path, max_steps=2, holdout=0.2)
    trained(job)
    check(heard, "predictions")


def test_distillation_shows_the_answers_of_its_teacher(make, tiny_model, tmp_path, heard):
    """Before training, block by block."""
    path = tmp_path / "requests.jsonl"
    rows = [{"prompt": f"Where is order {number}?", "ground_truth": "1"} for number in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = make(
        objective="distill", name="sft", teacher=str(tiny_model), job_data=path, holdout=0.2,
        response_tokens=6, max_steps=2, micro_batch_size=4,
    )  # fmt: skip
    trained(job)
    check(heard, "answers of the teacher", "generating answers", "distance to the teacher")


def test_each_part_of_an_update_of_ppo_is_shown(align, tmp_path, heard):
    """Answers, scores, probabilities and minibatches: an update of 64 prompts may take minutes."""
    (tmp_path / "own.py").write_text(
        "def score(prompts, completions, **columns):\n"
        "    return [float(len(text)) for text in completions]\n"
    )
    keys = {"response_tokens": 6, "micro_batch_size": 4, "reward": "own.py:score", "max_steps": 2}
    trained(align("ppo", **keys))
    check(
        heard,
        *(ALWAYS - {"reading weights"}),
        "generating answers",
        "probabilities under the policy",
        "probabilities under the reference model",
        "values",
        "learning from the answers",
    )
    answers = heard["generating answers"]
    assert len({done for done, total in answers if total}) > 2
