"""Rewards by verifiers, models and own functions, one or several; rollouts.jsonl, and what is learned."""

import json
import random
import shutil
import statistics
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.ground.errors import InputError, TrainingFailed
from advisor.methods.rewards import rollout_warnings
from tests.conftest import examples
from tests.trainers.alignment import OWN, QUESTIONS, REWARD, SHORT, TWO, check_two_rewards, stage_of
from tests.trainers.conftest import job_in
from tests.trainers.runs import break_at, lines_of, losses, metrics, trained, write_rows
from trainers.rewards.rollout_log import MOST_LINES, SAMPLES, RolloutLog, sampled, shortened
from trainers.rewards.scoring import Answer, Reward, Rewards, check_scored, filled
from trainers.rewards.sources import (
    build_rewards,
    load_user_reward,
    matches,
    model_scores,
    overlong_penalty,
    repetition_penalty,
    same_answer,
    schema_validator,
)
from trainers.rewards.watch import Watch, differ_check, is_gamed, rewards_in, watching
from trainers.rows.preference import PAIRS
from trainers.rows.stage_rows import prepare_rows
from trainers.start.loading import load_tokenizer

WRITES = {key: SHORT[key] for key in ("response_tokens", "generations", "micro_batch_size")}


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
            trained(align("rloo", reward_model=str(model), **WRITES))


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


KEYS = {key: value for key, value in SHORT.items() if key != "reward"}

NUMBERS = st.floats(-1e3, 1e3)
COUNT = st.shared(st.integers(1, 4))


def as_many(one):
    """A list of these, with one for each reward."""
    return COUNT.flatmap(lambda count: st.lists(one, min_size=count, max_size=count))


@pytest.mark.light
@examples(1)
@given(
    st.lists(as_many(st.none() | NUMBERS), min_size=1, max_size=5), as_many(NUMBERS.filter(bool))
)
def test_the_sum_is_that_of_trl(answers, weights):
    """Rewards that score an answer count for it, and an answer that none scores has no sum."""
    torch = pytest.importorskip("torch")
    scores = [[float("nan") if score is None else score for score in own] for own in answers]
    tensor = torch.tensor(scores, dtype=torch.float64)
    theirs = (tensor * torch.tensor(weights, dtype=torch.float64)).nansum(dim=1).tolist()
    rewards = Rewards([Reward("", None, weight=weight) for weight in weights])
    ours = rewards.sums([list(column) for column in zip(*answers, strict=True)])
    assert [value or 0.0 for value in ours] == pytest.approx(theirs, abs=1e-6)
    assert [value is None for value in ours] == tensor.isnan().all(1).tolist()


@pytest.mark.light
def test_answers_that_nothing_scores_end_the_run():
    """If every reward gives None to every answer there is nothing to learn from."""
    check_scored([None, 0.0])
    with pytest.raises(TrainingFailed, match="no reward scored any of 2 answers"):
        check_scored([None, None])


@pytest.mark.light
@pytest.mark.parametrize("tokens", [0, 1, 80, 81, 90, 99, 100, 120])
def test_the_length_penalty_is_that_of_dapo(tokens):
    """Equation 13 of DAPO, as TRL computes it."""
    rewards = pytest.importorskip("trl.rewards")
    theirs = rewards.get_soft_overlong_punishment(100, 20)([[0] * tokens])
    assert [overlong_penalty(tokens, limit=100, overlong=20)] == pytest.approx(theirs)


@pytest.mark.light
@pytest.mark.parametrize(
    ("text", "ngram", "penalty"),
    [
        ("a b c d e", 3, 0.0),
        ("a b", 3, 0.0),
        ("", 3, 0.0),
        ("go go go go go", 3, -2 / 3),
        ("Yes no yes NO", 2, -1 / 3),
    ],
)
def test_the_repetition_penalty_is_the_share_of_repeated_sequences(text, ngram, penalty):
    """Counted by hand: of three sequences `go go go` two are repeated."""
    assert repetition_penalty(text, ngram=ngram) == pytest.approx(penalty)


def rollout(reward=0.0, **other):
    usual = {"prompt": "P", "answer": "A", "reward": reward, "rewards": {"exact": reward}}
    return {**usual, "advantage": 0.5, "tokens": 3, "ended": True, **other}


def job_of(**keys):
    return SimpleNamespace(stage=SimpleNamespace(name="grpo"), task=None, **keys)


def log_in(folder, steps=4):
    return RolloutLog(job_of(output=folder / "grpo"), steps)


@pytest.mark.light
def test_a_line_of_rollouts(tmp_path):
    """A line holds the answer with everything it was worth, escaped, and without secrets."""
    secret = "hf_" + "a" * 34
    one = rollout(
        1 / 3, prompt="Löse\n" + secret, answer="\x1b[31mrot", rewards={"exact": 1.0, "own": None}
    )
    assert log_in(tmp_path).line(7, one) == (
        '{"stage": "grpo", "task": null, "step": 7, "prompt": "Löse\\n***", "answer":'
        ' "\\u001b[31mrot", "reward": 0.333333, "rewards": {"exact": 1.0, "own": null},'
        ' "advantage": 0.5, "tokens": 3, "ended": true, "engine": "transformers"}\n'
    )


@pytest.mark.light
@pytest.mark.parametrize("text", ["x" * 9000, "漢" * 9000, "\x1b" * 9000, '"' * 9000])
def test_long_texts_lose_their_middle(text):
    """The line stays within its size, and says how much was left out."""
    short = shortened(text, 1000)
    assert len(json.dumps(short, ensure_ascii=False).encode()) < 1200
    assert "characters left out" in short
    assert (short[0], short[-1]) == (text[0], text[-1])


@pytest.mark.light
def test_the_best_the_worst_and_a_cut_answer_are_sampled():
    """Whatever else is taken, these are, and no more than asked for."""
    answers = [rollout(place % 7, ended=place != 33) for place in range(50)]
    answers[41], answers[42] = rollout(99.0), rollout(-99.0)
    places = sampled(answers)
    assert {41, 42, 33} <= set(places)
    assert (len(places), sampled(answers[:3])) == (SAMPLES, [0, 1, 2])
    assert sampled([rollout(None), rollout(None)]) == [0, 1]


@pytest.mark.light
def test_a_long_run_is_thinned(tmp_path):
    """About a thousand lines a stage, the first and the last step among them."""
    log, due = log_in(tmp_path, steps=5000), []
    for step in filter(log.is_due, range(1, 5001)):
        due.append(step)
        log.last = step
    assert (due[0], due[-1]) == (1, 5000)
    assert len(due) * SAMPLES <= MOST_LINES + 2 * SAMPLES


def watched(*lines):
    """What is said of the lines of a run."""
    see = Watch().see
    return [text for step, line in enumerate(lines, 1) for text in see({**line, "step": step})]


@pytest.mark.light
@pytest.mark.parametrize(
    ("name", "key", "said"),
    [
        ("zero_spread", "frac_reward_zero_std", "% of the groups of answers to one prompt got"),
        ("cut", "completions_clipped_ratio", "% of the answers were cut at response_tokens"),
        ("clipped", "clip_ratio_region_mean", "clipped"),
        ("clipped", "clip_fraction", "clipped"),
    ],
)
def test_a_share_above_its_limit_is_said_once(name, key, said):
    """After as many lines as the limit wants, with the number; not below it."""
    limit = rollout_warnings()[name]
    high, low = {key: limit.limit + 0.1}, {key: limit.limit - 0.05}
    assert watched(*[high] * (limit.lines - 1)) == []
    assert watched(*[low] * 20) == watched(*[high, high, {}] * 7) == []
    (text,) = watched(*[high] * 20)
    assert [one for one in (said, f"{limit.limit + 0.1:.0%}") if one not in text] == []


@pytest.mark.light
def test_a_reward_that_rises_with_length_is_said():
    """Longer answers alone are fine, and so is a reward that rises at the same length."""
    long = 100 * (rollout_warnings()["length"].limit + 0.5)

    def run(reward, tokens):
        lines = [{"reward": 0.1, "completions_mean_length": 100}] * 3
        return watched(*lines, *[{"reward": reward, "completions_mean_length": tokens}] * 10)

    assert run(0.1, long) == run(0.6, 100) == []
    (text,) = run(0.6, long)  # once four of the last five lines are long ones
    assert "the reward rose from 0.1 to 0.5 while answers grew from 100 to 220 tokens" in text


@pytest.mark.light
def test_a_reward_that_was_constant_over_the_run_is_named():
    """Also if only an earlier attempt of a resumed run saw it vary."""
    rewards = [Reward("verifier exact", None, key="exact"), Reward("own", None, key="own")]
    lines = [
        {"rewards/exact/mean": mean, "rewards/exact/std": 0.0, "rewards/own/mean": 2.0,
         "rewards/own/std": 0.0}
        for mean in (0.0, 1.0)
    ]  # fmt: skip
    records, (check,) = rewards_in(lines, rewards)
    assert [(one.name, one.first, one.last, one.constant) for one in records] == [
        ("exact", 0.0, 1.0, False),
        ("own", 2.0, 2.0, True),
    ]
    assert (check.name, check.ok) == ("reward-own-differs", False)
    silent = [Reward("", None, key="long", is_penalty=True), Reward("", None, key="other")]
    _, (fine,) = rewards_in([{"rewards/long/mean": 0.0}], silent)
    assert fine.ok
    assert rewards_in(lines, rewards[:1]) == ((), [])


@pytest.mark.light
def test_grpo_learns_from_two_rewards(align, tmp_path):
    """Both are logged, sampled and recorded, one below 0; a score that is missing is left out."""
    (tmp_path / "own.py").write_text(OWN)
    job = align("grpo", rewards=TWO, **KEYS)
    result = trained(job)
    rollouts = check_two_rewards(job, result)
    for place in range(0, len(rollouts), 4):  # the answers to one prompt
        group = rollouts[place : place + 4]
        rewards = [line["reward"] for line in group]
        mean, spread = statistics.mean(rewards), statistics.stdev(rewards) + 1e-4
        advantages = [line["advantage"] for line in group]
        assert advantages == pytest.approx([(one - mean) / spread for one in rewards], abs=1e-3)
    for line in metrics(job):
        cut = [not one["ended"] for one in rollouts if one["step"] == line["step"]]
        assert line["completions_clipped_ratio"] == pytest.approx(sum(cut) / len(cut))
    assert list(result["evaluation"]["metrics"])[:3] == ["reward", "reward has-e", "reward some"]


@pytest.mark.light
def test_rloo_learns_from_two_rewards(align, tmp_path, monkeypatch):
    """Killed before its last step, it resumes without a step twice in rollouts.jsonl: what was
    written after the checkpoint is removed, half a line too.
    """
    (tmp_path / "own.py").write_text(OWN)
    job = align("rloo", rewards=TWO, save_steps=1, **KEYS, job_judge=False)
    break_at(2, job, monkeypatch)
    path = job.output / "rollouts.jsonl"
    before = path.read_bytes()
    assert [line["step"] for line in lines_of(path)] == [1] * 8 + [2] * 8
    path.write_bytes(before + b'{"stage": "rloo", "step": 3, "pro')
    rollouts = check_two_rewards(job, trained(job))
    assert [line["step"] for line in rollouts] == [1] * 8 + [2] * 8 + [3] * 8
    assert path.read_bytes().startswith(before.partition(b'"step": 2')[0])


@pytest.mark.train
def test_a_resumed_stage_knows_what_earlier_attempts_saw(tmp_path, capsys):
    """Lines of metrics.jsonl from before count for warnings and for constant rewards."""
    line = {"stage": "grpo", "task": None, "loss": 0.0, "reward_std": 0.1}
    cut = {"completions_clipped_ratio": 0.9}
    write_rows(tmp_path / "metrics.jsonl", [{**line, "step": step, **cut} for step in range(1, 5)])
    job, watch = job_of(run=tmp_path), Watch()
    callback = watching(job, watch, ["completions/clipped_ratio"])
    state = SimpleNamespace(global_step=5)
    callback.on_train_begin(None, state, None)
    assert differ_check(lines_of(tmp_path / "metrics.jsonl"), Rewards([])).ok
    callback.on_log(None, state, None, logs={"loss": 0.0, "completions/clipped_ratio": 1.0})
    assert "grpo: WARNING: 92% of the answers were cut" in capsys.readouterr().err


@pytest.mark.light
def test_rewards_can_be_normalised_before_the_sum(align, tmp_path):
    """GDPO's way, of TRL, is taken with several rewards and refused with one."""
    (tmp_path / "own.py").write_text(OWN)

    def train(rewards, trl):
        keys = {**KEYS, "max_steps": 1, "warmup": 0.0, "trl": trl}
        return trained(align("grpo", rewards=rewards, job_judge=False, **keys))

    normalised = {"multi_objective_aggregation": "normalize_then_sum"}
    train(TWO, normalised)
    for rewards, trl, said in (
        (TWO[:1], normalised, "several entries in the stage's rewards"),
        (TWO, {"log_completions": True}, r"rollouts\.jsonl in the stage's folder"),
    ):
        with pytest.raises(InputError, match=said):
            train(rewards, trl)


@pytest.mark.light
def test_ppo_gives_an_answer_without_a_score_the_mean_of_the_others():
    """Such an answer is made neither likelier nor less likely for its reward."""
    assert filled([1.0, None, 4.0]) == [1.0, 2.5, 4.0]


@pytest.mark.light
def test_checkpoints_depend_on_the_files_of_every_reward(align, tmp_path):
    """Other code in a function of the list is another training."""
    from trainers.keep.checkpoint_store import dependencies

    found = []
    for code in (OWN, OWN + "# changed"):
        (tmp_path / "own.py").write_text(code)
        found.append(dependencies(align("grpo", rewards=TWO), {"rows": "x" * 16}, steps=3))
    first, other = found
    assert "own.py" in first.parts
    assert first.parts != other.parts
    assert (first.settings, first.settings["rewards"][1]["weight"]) == (other.settings, -0.5)


@pytest.mark.train
def test_code_of_the_user_that_ends_the_program_is_a_failed_reward(tmp_path):
    """`sys.exit(3)` would end the trainer with the code that says that nothing fits."""
    (tmp_path / "own.py").write_text("import sys\n\ndef leaves(**_):\n    sys.exit(3)\n")
    score = load_user_reward("own.py:leaves", tmp_path)
    with pytest.raises(TrainingFailed, match=r"own\.py:leaves failed: SystemExit: 3"):
        score([Answer("a", "b", None, [], [])])


FINE = {"kl": 0.1, "reward": 0.5, "reward_spread": 0.2, "entropy": 2.0, "response_tokens": 40.0}


def told(*changes, before=3):
    watch = Watch(kl_limit=1.0)
    watch.see_earlier({**FINE, "step": 1, **change} for change in (*[{}] * before, *changes))
    return {finding.name: finding for finding in watch.found}


@pytest.mark.light
@pytest.mark.parametrize(
    ("changes", "name", "stops"),
    [
        ([{"kl": 1.2}], "kl", True),
        ([{"reward_spread": 0.0}] * 5, "constant-reward", True),
        ([{"entropy": 0.3}], "entropy", False),
        ([{"response_tokens": 5.0}], "short", True),
    ],
)
def test_each_trouble_has_its_name_and_says_what_to_change(changes, name, stops):
    """One finding, with a hint; those that cannot be lived with stop the run."""
    found = told(*changes)
    assert list(found) == [name]
    assert found[name].stops is stops
    assert found[name].hint


SAME = [{"reward_spread": 0.0}] * 4


@pytest.mark.light
@pytest.mark.parametrize("lines", [[], [{}, {}], SAME, [*SAME, {"reward_spread": 0.1}, *SAME[:1]]])
def test_nothing_is_told_of_a_run_that_goes_well(lines):
    """A rare reward is not a constant one: four updates without a difference are borne."""
    assert told(*lines) == {}


@pytest.mark.light
def test_a_reward_is_gamed_where_it_rises_and_held_out_answers_lose():
    """16 prompts: 4 won and 12 lost is 2 standard errors below even; 6 and 10 is 1."""
    for first, now, wins, lost, gamed in (
        (0.1, 0.5, 4, 12, True),
        (0.1, 0.5, 6, 10, False),
        (0.5, 0.4, 4, 12, False),
        (0.1, 0.5, 0, 4, False),
    ):
        line = {"reward": now, "holdout_wins": wins, "holdout_losses": lost}
        assert is_gamed(line, first) is gamed
    assert list(told({"reward": 0.9, "holdout_wins": 1, "holdout_losses": 15})) == ["gamed"]
