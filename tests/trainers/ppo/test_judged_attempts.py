"""sft > rm > rloo and sft > rm > grpo in one plan: the model practises against the judge that the
same pairs trained.
"""

import json

import pytest

pytest.importorskip("trl")

from advisor.launch import Options, run_plan

COMMON = """update: lora, rank: 4, max_steps: 2, micro_batch_size: 4, seq_len: 96, holdout: 0.2"""
PLAN = f"""\
name: shop
model: MODEL
data: {{path: pairs.jsonl}}
stages:
  - {{name: sft, objective: sft, learning_rate: 1e-2, {COMMON}}}
  - {{name: rm, objective: rm, learning_rate: 1e-2, {COMMON}}}
  - {{name: practice, objective: OBJECTIVE, start_from: sft, learning_rate: 1e-3, generations: 2,
     response_tokens: 8, {COMMON}}}
"""


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["rloo", "grpo"])
def test_attempts_are_scored_by_the_reward_model_of_the_stage_before(
    tmp_path, monkeypatch, toy_model, objective
):
    """Preference pairs are enough for all three stages: the last one takes their requests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    names = [a + b for a in "abcdefgh" for b in "klmno"]
    (tmp_path / "pairs.jsonl").write_text(
        "".join(
            json.dumps(
                {
                    "prompt": f"where is {name}",
                    "chosen": f"{name} is here",
                    "rejected": f"no {name}",
                }
            )
            + "\n"
            for name in names
        )
    )
    plan = PLAN.replace("MODEL", str(toy_model)).replace("OBJECTIVE", objective)
    (tmp_path / "plan.yaml").write_text(plan)
    record = run_plan("plan.yaml", Options(output="run", judge=False)).record
    assert [stage.status for stage in record.stages] == ["done"] * 3
