"""Rewards: built-in verifiers, reward models, functions of one's own; and what they teach by GRPO
and RLOO.
"""

import json
import random
from pathlib import Path

import pytest

from advisor.ground.errors import InputError, TrainingFailed
from tests.trainers.alignment import QUESTIONS, REWARD, SHORT, losses, stage_of, trained
from trainers.rewards.scoring import Answer, Reward
from trainers.rewards.verifiers import matches, same_answer, schema_validator

# --------------------------------------------------------------------------- verifiers


@pytest.mark.light
@pytest.mark.parametrize(
    ("said", "wanted", "right"),
    [
        ("So 3 + 4 = 7.", "7", True),
        ("It is 1,200 in all", "1200", True),
        ("#### 18", "Janet sells 9 eggs ... #### 18", True),
        (r"Hence \boxed{\frac{1}{2}}", r"\boxed{\frac{1}{2}}", True),
        (r"\boxed{4} no, \boxed{5}", "5", True),
        ("<think>7 or 8?</think> 8", "7", False),
        ("$18.00", "18", True),
        ("17 and then 18", "17", False),
        ("Paris.", "paris", True),
        ("It is Paris", "Paris", False),
        ("no number here", "7", False),
        ("", "yes", False),
    ],
)
def test_the_final_answer_decides(said, wanted, right):
    """What stands after ####, in the last box, the last number, or all of it; numbers by value,
    texts without case.
    """
    assert same_answer(said, wanted) is right


@pytest.mark.light
def test_patterns_may_hold_the_wanted_answer():
    """{answer} in a pattern is the row's answer, letter for letter."""
    assert matches("<answer>4+4</answer>", "<answer>{answer}</answer>", "4+4")
    assert not matches("<answer>444</answer>", "<answer>{answer}</answer>", "4+4")
    assert matches("call 911", r"\d{3}", None)


@pytest.mark.light
def test_json_has_to_fit_its_schema(tmp_path):
    """Valid JSON of the form counts, also in a code block; other JSON, text around it and broken
    JSON do not.
    """
    path = tmp_path / "schema.json"
    path.write_text(
        json.dumps(
            {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string"}},
                "additionalProperties": False,
            }
        )
    )
    valid = schema_validator(path)
    assert valid('{"name": "tea"}')
    assert valid('```json\n{"name": "tea"}\n```')
    assert not valid('{"name": 3}')
    assert not valid('Here: {"name": "tea"}')
    assert not valid('{"name": "tea"')
    path.write_text('{"type": "nothing"}')
    with pytest.raises(InputError, match="not a JSON schema"):
        schema_validator(path)


@pytest.mark.light
def test_a_reward_is_one_finite_number_an_answer():
    """NaN and a missing number end the run."""
    answers = [Answer("Well?", text, None, [1], [2]) for text in ("a", "b")]
    with pytest.raises(TrainingFailed, match="gave nan as a reward"):
        Reward("r", lambda asked: [float("nan")] * len(asked))(answers)
    with pytest.raises(TrainingFailed, match="1 rewards for 2 answers"):
        Reward("r", lambda asked: [1.0])(answers)


# --------------------------------------------------------------------------- where it comes from


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({}, "nothing says what reward an answer gets"),
        ({"verifier": "exact", "reward": "own.py:score"}, "verifier and reward both say"),
        ({"verifier": "regex"}, "verifier regex needs the key pattern"),
        ({"verifier": "regex", "pattern": "("}, "not a regular expression"),
        ({"verifier": "exact", "pattern": "x"}, "'pattern' has no effect"),
        ({"verifier": "json_schema", "schema": "missing.json"}, "no such file"),
        ({"reward": "own.py"}, "file.py:function"),
        ({"reward": "missing.py:score"}, "no such file"),
        ({"reward": "own.py:scores"}, "has no function 'scores'"),
        ({"reward_model": "nowhere"}, "holds no model"),
    ],
)
def test_a_reward_that_cannot_be_is_refused(keys, match, align, tmp_path):
    """Missing, double, misspelt and unfitting sources of reward are errors before a model is
    loaded.
    """
    (tmp_path / "own.py").write_text(REWARD)
    own = {key: SHORT[key] for key in ("response_tokens", "generations", "micro_batch_size")}
    with pytest.raises(InputError, match=match):
        trained(align("grpo", **own, **keys))


def test_an_unknown_verifier_is_refused_where_the_plan_is_read(tmp_path, tiny_model):
    """The plan's reader says which verifiers there are."""
    from advisor.plan.read import read_plan

    path = tmp_path / "plan.json"
    stage = {
        "name": "grpo",
        "objective": "grpo",
        "update": "lora",
        "learning_rate": 1e-3,
        "verifier": "exakt",
    }
    path.write_text(
        json.dumps(
            {"version": 1, "model": str(tiny_model), "data": {"path": "x.jsonl"}, "stages": [stage]}
        )
    )
    with pytest.raises(InputError, match="exact, regex, format, json_schema, length, repetition"):
        read_plan(path)


def test_a_reward_model_of_another_tokenizer_is_refused(align, tiny_model, tmp_path):
    """Token ids mean something else to it: refused before training, as is a folder that writes
    instead of scoring.
    """
    from transformers import AutoTokenizer

    rm = stage_of("rm")
    trained(align("rm", max_steps=2))
    own = {key: SHORT[key] for key in ("response_tokens", "generations", "micro_batch_size")}
    job = align("rloo", earlier=(rm,), **own)
    folder = job.run / "stages" / "rm"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<another>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match="another tokenizer"):
        trained(job)
    with pytest.raises(InputError, match="gives no scores"):
        trained(align("rloo", reward_model=str(tiny_model), **own))


def test_a_reward_model_scores_as_it_does_alone(align):
    """The reward of an answer is what the reward model, loaded plainly, says of prompt and
    answer.
    """
    import torch
    from peft import AutoPeftModelForSequenceClassification

    from trainers.rewards.sources import build_rewards
    from trainers.rows.preference import PAIRS
    from trainers.rows.stage_rows import prepare_rows
    from trainers.start.loading import load_tokenizer

    trained(align("rm"))
    job = align("rloo", earlier=(stage_of("rm"),))
    tokenizer = load_tokenizer(job)
    reward = build_rewards(job, tokenizer, [], torch.device("cpu"))
    rows = prepare_rows(job, tokenizer, PAIRS).train[:5]
    told = reward.parts[0](
        [Answer("", "", None, list(row.prompt_ids), list(row.chosen_ids)) for row in rows]
    )
    model = AutoPeftModelForSequenceClassification.from_pretrained(
        job.run / "stages" / "rm", num_labels=1, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        alone = [
            float(model(input_ids=torch.tensor([[*row.prompt_ids, *row.chosen_ids]])).logits[0, 0])
            for row in rows
        ]
    assert told == pytest.approx(alone, abs=1e-4)


# --------------------------------------------------------------------------- what it teaches


@pytest.fixture(scope="session")
def asked(tmp_path_factory) -> Path:
    """Questions whose answer is yes."""
    path = tmp_path_factory.mktemp("asked") / "asked.jsonl"
    path.write_text(
        "".join(
            json.dumps(
                {"prompt": f"{QUESTIONS[number % 5]}, order {number}?", "ground_truth": "yes"}
            )
            + "\n"
            for number in range(40)
        )
    )
    return path


@pytest.fixture(scope="session")
def undecided(tiny_model, tmp_path_factory) -> Path:
    """The tiny model after it learned to say yes or no, as chance will have it."""
    from advisor.plan.model import Plan, PlanData
    from trainers import sft
    from trainers.job.job import make_job

    folder = tmp_path_factory.mktemp("undecided")
    draw = random.Random(0)
    rows = [
        {
            "prompt": f"{QUESTIONS[number % 5]}, order {number}?",
            "completion": draw.choice(("yes", "no", "no")),
        }
        for number in range(200)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = stage_of(
        "sft", update="full", learning_rate=5e-3, max_steps=110, micro_batch_size=16, holdout=0.0
    )
    job = make_job(
        Plan(
            name="undecided",
            model=str(tiny_model),
            data=PlanData(path="data.jsonl"),
            stages=(stage,),
        ),
        stage="sft",
        run=folder / "run",
        folder=folder,
        judge=False,
    )
    sft.train(job)
    return job.output


@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_the_exact_verifier_raises_the_reward(objective, align, asked, undecided):
    """A model that says yes one time in three learns to say it: the reward rises in training and on
    held-out prompts.
    """
    keys = {
        "verifier": "exact",
        "response_tokens": 4,
        "generations": 8,
        "micro_batch_size": 4,
        "learning_rate": 5e-3,
        "max_steps": 12,
        "scheduler": "constant",
        "warmup": 0.0,
    }
    job = align(objective, job_data=asked, job_model=undecided, **keys)
    result = trained(job)
    rewards = [
        json.loads(line)["reward"] for line in (job.run / "metrics.jsonl").read_text().splitlines()
    ]
    assert sum(rewards[:2]) / 2 < 0.5
    assert sum(rewards[-6:]) / 6 > 0.6
    assert result["evaluation"]["metrics"]["reward"]["before"] < 0.1
    assert result["evaluation"]["metrics"]["reward"]["after"] > 0.9
    assert any("verifier exact" in note for note in result["data"]["notes"])


def test_verifiable_answers_need_no_key(align, asked):
    """Where every row has an answer that can be verified, the exact verifier is taken, and the
    notes say so.
    """
    own = {key: SHORT[key] for key in ("response_tokens", "generations", "micro_batch_size")}
    result = trained(align("grpo", job_data=asked, max_steps=1, job_max_steps=1, **own))
    assert (
        "the reward is the verifier exact, since every row has an answer that can be verified"
        in result["data"]["notes"]
    )


@pytest.mark.parametrize(("key", "value"), [("pattern", "e"), ("schema", "schema.json")])
def test_what_a_verifier_needs_changes_the_run(key, value, align, tmp_path):
    """Pattern and schema decide which answers are rewarded."""
    from trainers.rewards.sources import build_rewards

    (tmp_path / "schema.json").write_text('{"type": "integer"}')
    (tmp_path / "other.json").write_text('{"type": "string"}')
    kind = {"pattern": "regex", "schema": "json_schema"}[key]
    answer = {"pattern": "tea", "schema": "3"}[key]
    told = [
        build_rewards(align("grpo", verifier=kind, **{key: given}), None, [], None).parts[0](
            [Answer("", answer, None, [], [])]
        )
        for given in (value, {"pattern": "x", "schema": "other.json"}[key])
    ]
    assert told == [[1.0], [0.0]]


def test_steps_count_prompts(align, tmp_path):
    """An epoch uses every prompt once: thirty prompts, two at once, twice gathered, are eight
    steps.
    """
    (tmp_path / "own.py").write_text(REWARD)
    job = align(
        "grpo",
        **{**SHORT, "max_steps": None, "generations": 2, "grad_accum": 2, "response_tokens": 2},
        job_judge=False,
    )
    result = trained(job)
    assert result["steps"] == 8 == len(losses(job))
