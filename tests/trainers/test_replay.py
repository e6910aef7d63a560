"""General rows beside a stage's own, against forgetting: the base's answers to bundled prompts, or a
file's rows.
"""

import json
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from advisor.estimate import whole_time
from advisor.ground.errors import InputError
from tests.trainers.runs import same, weights, whole_and_broken, write_rows
from trainers import sft
from trainers.evaluation.generation import GENERAL
from trainers.start.loading import load_tokenizer
from trainers.teachers import replay
from trainers.teachers.teacher import BLOCK, Answering, Written

ROWS = {"rows": 3 * BLOCK}


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The blocks that the base was asked for: every sixth answer is cut, the others end."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = []

    def answer(self, block, number):
        found.append(number)
        ids = [[self.tokenizer.eos_token_id] * 8 for _ in block]
        return [Written(one, ended=place % 6 > 0) for place, one in enumerate(ids)]

    monkeypatch.setattr(Answering, "__call__", answer)
    return found


def test_the_estimate_counts_what_is_written():
    assert (whole_time.REPLAY_BLOCK, whole_time.REPLAY_LIMIT) == (BLOCK, replay.ANSWER_TOKENS)


def rows_of(job):
    return sft.SFT.of(job).rows(job, load_tokenizer(job))


def test_the_bundled_prompts_are_five_hundred_and_none_of_them_is_measured_on():
    prompts = [json.loads(line)["prompt"] for line in replay.BUNDLED.open(encoding="utf-8")]
    measured = {json.loads(line)["prompt"].lower() for line in GENERAL.open(encoding="utf-8")}
    assert len(set(prompts)) == len(prompts) == 500
    assert not measured & {prompt.lower() for prompt in prompts}


def test_the_base_answers_as_many_prompts_as_the_share_asks_for(make, asked):
    """A third of the tokens are general rows, of which the cut ones are left out and counted; the
    rest of the prompts is not asked, held-out rows stay as they are, and both are said.
    """
    alone, mixed = rows_of(make()), rows_of(make(replay=ROWS, replay_share=1 / 3))
    general = mixed.tokens - alone.tokens
    assert general / mixed.tokens == pytest.approx(1 / 3, abs=0.04)
    assert list(alone.holdout) == list(mixed.holdout)
    assert asked == list(range(len(asked)))
    assert len(asked) < 3
    told = " ".join(mixed.notes)
    assert "rows of general text mixed in: 3" in told
    assert "answers were cut at 64 tokens and left out" in told
    assert mixed.digest != alone.digest
    assert mixed.learned_tokens - alone.learned_tokens == 8 * (len(mixed.train) - len(alone.train))


def test_answers_are_kept_for_this_run_and_the_next(make, asked, tmp_path):
    """A run that resumes, and another run of the same base, ask nothing twice; a damaged file is
    asked for again.
    """
    first = rows_of(make(replay=ROWS))
    count = len(asked)
    other = rows_of(make(replay=ROWS, job_run=tmp_path / "other"))
    again = rows_of(make(replay=ROWS))
    assert len(asked) == count > 0
    assert first.digest == other.digest == again.digest
    for path in (tmp_path / "cache").rglob("*.json"):
        path.write_text("{")
    assert rows_of(make(replay=ROWS, job_run=tmp_path / "third")).digest == first.digest
    assert len(asked) == 2 * count


def test_two_processes_come_to_the_rows_of_one(make, asked, monkeypatch):
    """Each writes its blocks, and the rows that are taken do not depend on how many there were."""
    job = make(replay=ROWS, replay_share=0.5)
    one = rows_of(job)
    monkeypatch.setattr(replay, "process_count", lambda: 2)
    two = rows_of(replace(job, run=job.run.parent / "two"))
    assert one.digest == two.digest


def test_a_dry_run_writes_no_answer(make, asked):
    """Stand-ins take their place, the first as long as an answer may be."""
    data = rows_of(make(replay=ROWS, job_dry_run=True))
    assert not asked
    assert max(row.learned for row in data.train) >= 64


def test_a_file_of_general_rows_is_mixed_in(make, tmp_path):
    general = write_rows(
        tmp_path / "general.jsonl",
        ({"prompt": f"What is {n} plus 1?", "completion": f"It is {n + 1}."} for n in range(40)),
    )
    data = rows_of(make(replay=str(general), replay_share=0.3))
    assert sum("What is" in row.prompt for row in data.train) > 5


def test_a_base_without_a_chat_template_is_refused(make, asked, monkeypatch):
    job = make(replay=ROWS)
    tokenizer = load_tokenizer(job)
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template, so that it cannot answer prompts"):
        sft.SFT.of(job).rows(job, tokenizer)


def test_nothing_is_mixed_in_where_every_answer_was_cut(make, monkeypatch, tmp_path):
    """It is said, and the stage trains on its own rows."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cut = lambda self, block, number: [Written([5], ended=False)] * len(block)  # noqa: E731
    monkeypatch.setattr(Answering, "__call__", cut)
    data = rows_of(make(replay={"rows": 10}))
    assert data.notes[-1] == "no general text is mixed in"


@pytest.mark.parametrize("update", ["lora", "full"])
def test_a_broken_run_resumes_with_the_same_weights(make, update, monkeypatch, tmp_path):
    """A run that reads the answers that are kept has the bits of one that loaded the base to write
    them. (A random base ends no answer: here the limit counts as its end.)
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write = Answering.__call__
    ends = lambda *asks: [one._replace(ended=True) for one in write(*asks)]  # noqa: E731
    monkeypatch.setattr(Answering, "__call__", ends)
    keys = {"update": update, "replay": {"rows": 40}, "save_steps": 1, "max_steps": 4}
    keys |= {"learning_rate": 1e-3}
    whole, broken = whole_and_broken(make, 2, monkeypatch, **keys)
    assert same(weights(whole), weights(broken))
    assert any("of general text mixed in" in note for note in rows_of(whole).notes)
