"""Rewards by verifiers, reward models and own functions, and what GRPO and RLOO learn."""

import json
import random
import shutil
from pathlib import Path

import pytest

from advisor.ground.errors import InputError, TrainingFailed
from tests.trainers.alignment import QUESTIONS, REWARD, SHORT, stage_of
from tests.trainers.conftest import job_in
from tests.trainers.runs import losses, metrics, trained, write_rows
from trainers.rewards.scoring import Answer, Reward
from trainers.rewards.sources import (
    build_rewards,
    matches,
    model_scores,
    same_answer,
    schema_validator,
)
from trainers.rows.preference import PAIRS
from trainers.rows.stage_rows import prepare_rows
from trainers.start.loading import load_tokenizer

OWN = {key: SHORT[key] for key in ("response_tokens", "generations", "micro_batch_size")}


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
    """It is what stands after ####, in the last box, the last number, or all; numbers by value."""
    assert same_answer(said, wanted) is right


@pytest.mark.light
def test_patterns_may_hold_the_wanted_answer():
    """{answer} is the row's answer, letter for letter; a format has to match the whole answer."""
    assert matches("call 911", r"\d{3}", None)
    answer = "<answer>{answer}</answer>"
    whole = rf"<think>.*</think>\s*{answer}"
    for text, pattern, fits in (
        ("<answer>4+4</answer>", answer, True),
        ("<answer>444</answer>", answer, False),
        (" <think>a\nb</think>\n<answer>4+4</answer>\n", whole, True),
        ("Well: <think>a</think><answer>4+4</answer>", whole, False),
        ("<think>a</think><answer>8</answer>", whole, False),
    ):
        assert matches(text, pattern, "4+4", whole=pattern == whole) is fits, text


@pytest.mark.light
def test_json_has_to_fit_its_schema(tmp_path):
    """JSON of the form counts, also in a code block; other or broken JSON or text around do not."""
    path = tmp_path / "schema.json"
    keys = {"type": "object", "required": ["name"], "additionalProperties": False}
    path.write_text(json.dumps({**keys, "properties": {"name": {"type": "string"}}}))
    valid = schema_validator(path)
    assert valid('{"name": "tea"}')
    assert valid('```json\n{"name": "tea"}\n```')
    assert not any(map(valid, ('{"name": 3}', 'Here: {"name": "tea"}', '{"name": "tea"')))
    path.write_text('{"type": "nothing"}')
    with pytest.raises(InputError, match="not a JSON schema"):
        schema_validator(path)


@pytest.mark.light
def test_a_reward_is_one_finite_number_an_answer():
    """NaN and a missing number end the run."""
    answers = [Answer("Well?", text, None, [1], [2]) for text in ("a", "b")]
    for found, said in (
        ([float("nan")] * 2, "gave nan as a reward"),
        ([1.0], "1 rewards for 2 answers"),
    ):
        with pytest.raises(TrainingFailed, match=said):
            Reward("r", lambda asked, found=found: found)(answers)


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
    """Missing, double, misspelt and unfitting sources are errors before a model is loaded."""
    (tmp_path / "own.py").write_text(REWARD)
    with pytest.raises(InputError, match=match):
        trained(align("grpo", **OWN, **keys))


def test_a_reward_model_of_another_tokenizer_is_refused(align, tiny_model, trained_once, tmp_path):
    """Token ids mean something else to it. A folder that writes and does not score is refused."""
    from transformers import AutoTokenizer

    other = tmp_path / "rm"
    shutil.copytree(trained_once("rm").output, other, ignore=shutil.ignore_patterns("checkpoints"))
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["<another>"])
    tokenizer.save_pretrained(other)
    for model, said in ((other, "another tokenizer"), (tiny_model, "gives no scores")):
        with pytest.raises(InputError, match=said):
            trained(align("rloo", reward_model=str(model), **OWN))


def test_a_reward_model_without_a_padding_token_scores_text_by_text():
    """Some configs of the hub name -1, which has no embedding to pad with."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=2, num_labels=1, pad_token_id=-1)
    model = transformers.LlamaForSequenceClassification(config)
    answers = [Answer("", "", None, [3, 4], [5] * size) for size in (1, 4)]
    each = [model_scores(model, [answer], at_once=1)[0] for answer in answers]
    assert model_scores(model, answers, at_once=2) == pytest.approx(each)


def test_a_reward_model_scores_as_it_does_alone(align, trained_once):
    """A reward is what the reward model, loaded plainly, says of prompt and answer."""
    import torch
    from peft import AutoPeftModelForSequenceClassification

    folder = trained_once("rm").output
    job = align("rloo", reward_model=str(folder))
    tokenizer = load_tokenizer(job)
    reward = build_rewards(job, tokenizer, [], torch.device("cpu"))
    rows = prepare_rows(job, tokenizer, PAIRS).train[:5]
    told = reward.parts[0](
        [Answer("", "", None, list(row.prompt_ids), list(row.chosen_ids)) for row in rows]
    )
    kind = AutoPeftModelForSequenceClassification
    model = kind.from_pretrained(folder, num_labels=1, dtype=torch.float32).eval()
    texts = [torch.tensor([[*row.prompt_ids, *row.chosen_ids]]) for row in rows]
    with torch.no_grad():
        alone = [float(model(input_ids=text).logits[0, 0]) for text in texts]
    assert told == pytest.approx(alone, abs=1e-4)


def question(number):
    return f"{QUESTIONS[number % 5]}, order {number}?"


@pytest.fixture(scope="session")
def undecided(tiny_model, tmp_path_factory) -> Path:
    """The tiny model after it learned to say yes or no, as chance will have it."""
    folder, draw = tmp_path_factory.mktemp("undecided"), random.Random(0)
    rows = [
        {"prompt": question(number), "completion": draw.choice(("yes", "no", "no"))}
        for number in range(200)
    ]
    stage = stage_of(
        "sft", update="full", learning_rate=5e-3, max_steps=110, micro_batch_size=16, holdout=0.0
    )
    data = write_rows(folder / "data.jsonl", rows)
    job = job_in(folder, (stage,), model=tiny_model, data=data, judge=False)
    trained(job)
    return job.output


@pytest.mark.parametrize(
    ("objective", "own", "said"),
    [
        ("grpo", {"verifier": "exact"}, "the verifier exact"),
        ("rloo", {}, "the verifier exact, since every row has an answer that can be verified"),
    ],
)
def test_the_exact_verifier_raises_the_reward(objective, own, said, align, undecided, tmp_path):
    """A model that says yes one time in three learns to, without a key where rows have answers."""
    rows = [{"prompt": question(number), "ground_truth": "yes"} for number in range(40)]
    job = align(
        objective, job_data=write_rows(tmp_path / "asked.jsonl", rows), job_model=undecided,
        response_tokens=4, generations=8, micro_batch_size=4, learning_rate=5e-3, max_steps=12,
        scheduler="constant", warmup=0.0, **own,
    )  # fmt: skip
    result = trained(job)
    rewards = [line["reward"] for line in metrics(job)]
    assert sum(rewards[:2]) / 2 < 0.5
    assert sum(rewards[-6:]) / 6 > 0.6
    measured = result["evaluation"]["metrics"]["reward"]
    assert measured["before"] < 0.1
    assert measured["after"] > 0.9
    assert any(said in note for note in result["data"]["notes"])


@pytest.mark.parametrize(
    ("kind", "key", "values", "answer"),
    [
        ("regex", "pattern", ("e", "x"), "tea"),
        ("json_schema", "schema", ("integer.json", "string.json"), "3"),
    ],
)
def test_what_a_verifier_needs_changes_the_run(kind, key, values, answer, align, tmp_path):
    """Pattern and schema decide which answers are rewarded."""
    for name in ("integer", "string"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"type": name}))
    jobs = [align("grpo", verifier=kind, **{key: value}) for value in values]
    rewards = [build_rewards(job, None, [], None).parts[0] for job in jobs]
    assert [score([Answer("", answer, None, [], [])]) for score in rewards] == [[1.0], [0.0]]


def test_steps_count_prompts(align, tmp_path):
    """An epoch uses each prompt once: thirty, two at once and twice gathered, are eight steps."""
    (tmp_path / "own.py").write_text(REWARD)
    own = {"max_steps": None, "generations": 2, "grad_accum": 2, "response_tokens": 2}
    job = align("grpo", **{**SHORT, **own}, job_judge=False)
    assert trained(job)["steps"] == 8 == len(losses(job))
