"""Each long part of a stage says how far it is, whatever the objective.

The trainers run with a board that hears of every item. A part that generated, scored or measured
many items in silence would show as a wait without steps, or as a jump.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from itertools import pairwise

import pytest

pytest.importorskip("torch")

import transformers

from advisor.ground.progress import BYTES, board, track
from tests.trainers.alignment import REWARD, SHORT
from tests.trainers.conftest import waits_heard
from tests.trainers.runs import trained, write_rows
from trainers.job.libraries import quiet_libraries, watch_downloads, watch_loading
from trainers.rows.stage_rows import CHUNK_EXAMPLES
from trainers.say.progress import BEFORE, LOAD, TRAIN, Parts

# Every objective measures before and after, and trains.
ALWAYS = {
    "loading rows and model",
    "reading and tokenising",
    "reading weights",
    "training",
    "saving the result",
    "checking the saved result",
}
ANSWERS = {"sample answers", "generating answers"}
LONGEST_JUMP = 32  # items between two signs of life
ENDS_EARLY = {"generating answers", "learning from the answers", "this step"}


def check(waits, *names):
    """Each of them was heard, counted without long jumps, and reached its end; what of it was heard:
    wait -> (how far, of how many).
    """
    heard = defaultdict(list)
    for what, done, total in waits:
        heard[what].append((done, total))
    missing = set(names) - set(heard)
    assert not missing, f"{missing} in {sorted(heard)}"
    for what, seen in heard.items():
        jumps = [after - before for (before, _), (after, _) in pairwise(seen)]
        longest = CHUNK_EXAMPLES if what == "reading and tokenising" else LONGEST_JUMP
        assert max(jumps, default=0) <= longest, what
    counted = {what for what, seen in heard.items() if any(total for _, total in seen)}
    assert counted >= {"training", "reading weights"}
    for what in counted - ENDS_EARLY:
        assert any(done == total for done, total in heard[what]), what
    return heard


@pytest.mark.parametrize(
    ("objective", "own"),
    [
        ("dpo", {"losses"}),
        ("kto", {"losses"}),
        ("orpo", {"losses"}),
        ("rm", {"scores"}),
        ("grpo", ANSWERS),
        ("rloo", ANSWERS),
    ],
)
def test_an_objective_shows_each_of_its_parts(objective, own, trained_once):
    """Rows, weights, the model before, the steps, the result."""
    check(
        json.loads((trained_once(objective).run.parent / "heard.json").read_text()), *ALWAYS, *own
    )


def test_answers_of_a_chat_and_the_micro_batches_of_a_long_step_are_shown(align):
    """A step of many micro-batches may take minutes, and so may held-out loss on the way."""
    with waits_heard() as waits:
        trained(align("sft", max_steps=2, grad_accum=4, micro_batch_size=1, early_stopping=9))
    own = {"losses", "held-out rows", "general prompts", "held-out loss", "this step"}
    assert (3, 4) in check(waits, *ALWAYS, *ANSWERS, *own)["this step"]


def test_classes_show_their_predictions(make, tmp_path):
    """A classifier writes nothing."""
    rows = [
        {"text": f"order {number} is {'late' if number % 2 else 'here'}", "label": number % 2}
        for number in range(40)
    ]
    data = write_rows(tmp_path / "labels.jsonl", rows)
    with waits_heard() as waits:
        trained(make(head="classes", job_data=data, max_steps=2, holdout=0.2))
    check(waits, "predictions")


def test_distillation_shows_the_answers_of_its_teacher(make, tiny_model, tmp_path):
    """Before training, block by block."""
    rows = [{"prompt": f"Where is order {number}?", "ground_truth": "1"} for number in range(40)]
    job = make(
        objective="distill", name="sft", teacher=str(tiny_model), holdout=0.2, response_tokens=6,
        max_steps=2, job_data=write_rows(tmp_path / "requests.jsonl", rows),
    )  # fmt: skip
    with waits_heard() as waits:
        trained(job)
    check(waits, "answers of the teacher", "generating answers", "distance to the teacher")


def test_each_part_of_an_update_of_ppo_is_shown(align, tmp_path):
    """Answers, scores, probabilities and minibatches: an update of 64 prompts may take minutes."""
    (tmp_path / "own.py").write_text(REWARD)
    keys = {key: SHORT[key] for key in ("response_tokens", "reward")}
    with waits_heard() as waits:
        trained(align("ppo", **keys, max_steps=2))
    heard = check(
        waits,
        *(ALWAYS - {"reading weights"}),
        "generating answers",
        "probabilities under the policy",
        "probabilities under the reference model",
        "values",
        "learning from the answers",
    )
    assert len({done for done, total in heard["generating answers"] if total}) > 2


# --------------------------------------------------------------------------- parts of a stage


def test_a_part_is_said_and_is_a_wait(capsys):
    """What goes on inside it is a wait inside; the steps are a wait of their own."""
    with Parts("sft", shown=True) as parts:
        parts.begin(LOAD)
        assert [wait.what for wait in board.waits] == ["loading rows and model"]
        parts.begin(BEFORE)
        for _ in track([1, 2, 3], "losses"):
            told = ["measuring the model before training", "losses"]
            assert [wait.what for wait in board.waits] == told
            time.sleep(0.02)
        parts.begin(TRAIN)
        assert board.waits == []
    said = capsys.readouterr().err
    assert said == "sft: loading rows and model\nsft: measuring the model before training\n"
    assert parts.times().before_s >= 0.06
    with Parts("sft", shown=False) as parts:  # another process than the main one
        parts.begin(LOAD)
    assert capsys.readouterr().err == ""


def test_an_error_leaves_no_wait_behind():
    """Nothing is shown once the stage has ended, however it did."""
    with pytest.raises(ValueError, match="in the midst"), Parts("sft", shown=True) as parts:  # noqa: PT012
        parts.begin(BEFORE)
        for place in track(range(0, 16, 4), "sample answers", each=4, of=16):
            if place == 8:
                raise ValueError("in the midst")
    assert board.waits == []


# --------------------------------------------------------------------------- of the libraries


@pytest.fixture
def bars():
    """A class of bars as the hub has it, watched."""
    from huggingface_hub.utils import tqdm

    class Bars(tqdm):
        if getattr(tqdm, "is_watched", False):  # by a test before this one: its own counts as well
            __init__ = tqdm.__init__.__wrapped__

    Bars.is_watched = False
    watch_downloads(Bars)
    return Bars


def test_files_that_come_at_the_same_time_are_one_wait(bars):
    """In bytes, with those of an earlier attempt; the hub counts compressed bytes beside them."""
    first = bars(unit="B", total=100, initial=40, desc="a.safetensors", disable=True)
    packed = bars(unit="B", total=70, desc="Downloading bytes", disable=True)
    second = bars(unit="B", total=60, desc="b.safetensors", disable=True)
    packed.update(9)
    first.update(10)
    second.update(5)
    (wait,) = board.waits
    assert (wait.done, wait.total, wait.unit) == (55, 160, BYTES)
    first.close()
    assert board.waits == [wait]
    second.total = 80
    second.update(75)
    assert (wait.done, wait.total) == (130, 180)
    second.close()
    packed.close()
    assert list(bars([1, 2], desc="Fetching 2 files", disable=True)) == [1, 2]  # no download
    assert board.waits == []


def test_the_libraries_are_watched_once_they_are_quiet():
    """The classes and hooks are there in the versions that are installed."""
    import huggingface_hub.utils

    quiet_libraries()
    assert huggingface_hub.utils.tqdm.is_watched
    assert transformers.utils.logging.set_tqdm_hook(watch_loading) is watch_loading
