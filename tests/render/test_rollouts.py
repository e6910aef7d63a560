"""What a report shows of rewards and of the answers that were learned from."""

import json

from advisor.record.stage import RewardRecord
from advisor.render.report import read_rollouts
from advisor.render.report_stage import metric_charts, reward_row, sample_rows


def line(step, reward, *, ended=True, **other):
    return {
        "step": step, "prompt": "Why?\n", "answer": f"a{reward}", "reward": reward, "tokens": 3,
        "rewards": {"exact": reward}, "ended": ended, **other,
    }  # fmt: skip


def test_the_first_and_the_last_step_are_shown(tmp_path):
    """The best and the worst answer of each, and one that was cut; damaged lines are left out."""
    lines = [line(step, reward) for step in (1, 2, 9) for reward in (0.5, 1.0, 0.0)]
    lines.insert(1, line(1, 0.25, ended=False))
    path = tmp_path / "rollouts.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in lines) + '{"step": 9, "pro')
    rows = list(sample_rows(read_rollouts(path)))
    assert [(row[0], row[1], row[3]) for row in rows] == [
        ("1", "best", "a1.0"),
        ("1", "worst", "a0.0"),
        ("1", "cut", "a0.25"),
        ("9", "best", "a1.0"),
        ("9", "worst", "a0.0"),
    ]
    assert rows[0][2] == "Why?"
    both = line(1, 0.5, rewards={"exact": 1.0, "own": None})
    assert next(sample_rows([both]))[4] == "0.5 (exact 1, own none)"
    assert list(sample_rows([])) == []


def test_each_reward_has_a_row_and_a_picture():
    """A reward that was always the same says so in place of its spread."""
    exact = RewardRecord(name="exact", weight=2.0, first=0.1, last=0.5, spread=0.3)
    own = RewardRecord(name="own", first=1.0, last=1.0, spread=0.0, missing=0.25, constant=True)
    assert [reward_row(exact), reward_row(own)] == [
        ("exact", "2", "0.1", "0.5", "0.3", ""),
        ("own", "1", "1", "1", "always the same", "25.0%"),
    ]
    metrics = [{"step": step, "rewards/exact/mean": step / 10} for step in (1, 2)]
    (chart,) = metric_charts(metrics)
    assert "Mean of reward exact from 0.1 at step 1 to 0.2 at step 2" in chart.says
