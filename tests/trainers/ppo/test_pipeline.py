"""sft > rm > ppo, rloo or grpo in one plan through `advise run`: per-stage status, and --only."""

import json

import pytest

pytest.importorskip("trl")

from advisor.launch import Options, run_plan

KEYS = "update: lora, rank: 4, max_steps: 6, micro_batch_size: 4, seq_len: 96, holdout: 0.2"
PLAN = f"""\
name: shop
model: MODEL
data: {{path: pairs.jsonl}}
stages:
  - {{name: sft, objective: sft, learning_rate: 1e-2, {KEYS}}}
  - {{name: rm, objective: rm, learning_rate: 1e-2, {KEYS}}}
  - {{name: ppo, objective: ppo, learning_rate: 1e-3, {KEYS}, grad_accum: 2, response_tokens: 8,
     kl_limit: 100}}
"""


@pytest.fixture
def shop(tmp_path, monkeypatch, toy_model):
    """A folder with forty pairs and a plan of three stages; it is the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    names = [a + b for a in "abcdefgh" for b in "klmno"]
    rows = [
        {"prompt": f"where is {name}", "chosen": f"{name} is here", "rejected": f"no {name}"}
        for name in names
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "plan.yaml").write_text(PLAN.replace("MODEL", str(toy_model)))
    return tmp_path


def statuses(record):
    return [(stage.name, stage.status) for stage in record.stages]


@pytest.mark.smoke
def test_one_stage_at_a_time(shop):
    """--only runs one stage; PPO asks for the stages it needs by name; a last call of all does what
    is left.
    """
    from advisor.ground.errors import InputError

    with pytest.raises(InputError, match="starts from sft"):
        run_plan("plan.yaml", Options(only="ppo", output="run", judge=False))
    assert statuses(
        run_plan("plan.yaml", Options(only="sft", output="run", judge=False)).record
    ) == [("sft", "done"), ("rm", "pending"), ("ppo", "pending")]
    with pytest.raises(InputError, match="is scored by rm"):
        run_plan("plan.yaml", Options(only="ppo", output="run", judge=False))
    assert (
        run_plan("plan.yaml", Options(only="ppo", output="run", dry_run=True)).record.stages[0].why
        == "needs rm, which is not trained yet"
    )
    run_plan("plan.yaml", Options(only="rm", output="run", judge=False))
    measured = run_plan("plan.yaml", Options(only="ppo", output="run", dry_run=True)).record.stages[
        0
    ]
    assert measured.measured.peak_bytes > 0
    done = run_plan("plan.yaml", Options(output="run"))
    assert statuses(done.record) == [("sft", "done"), ("rm", "done"), ("ppo", "done")]
    resolved = done.record.resolved["ppo"]
    assert resolved.start_from.endswith("stages/sft")
    assert resolved.extra["reward"] == "the reward is the model rm"
    assert resolved.extra["one_base"] is True
    reward = done.record.stages[2].evaluation.metrics["reward"]
    assert reward.rows == 8


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["rloo", "grpo"])
def test_attempts_are_scored_by_the_reward_model_of_the_stage_before(shop, objective):
    """Preference pairs are enough for all three stages: the last one takes their requests."""
    plan = shop / "plan.yaml"
    own = f"objective: {objective}, generations: 2"
    text = plan.read_text().replace("objective: ppo", own).replace("kl_limit: 100", "warmup: 0.0")
    plan.write_text(text.replace("max_steps: 6", "max_steps: 2"))
    record = run_plan("plan.yaml", Options(output="run", judge=False)).record
    assert [status for _, status in statuses(record)] == ["done"] * 3
