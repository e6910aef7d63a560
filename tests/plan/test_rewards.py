"""Keys of several rewards in a plan: every fault is located, and paths in them move along."""

import re

import pytest

from advisor.ground.errors import InputError
from advisor.ground.yaml_files import parse_yaml
from advisor.launch.earlier import read_inputs
from advisor.launch.prepare import Options, prepare_plan
from advisor.methods.rewards import models_that_score, overlong_tokens, reward_parts
from advisor.plan.entries import entries, with_paths
from advisor.plan.read import plan_from_data
from advisor.plan.write import plan_text

HEAD = """\
version: 1
model: Qwen/Qwen3-0.6B
data: {path: train.jsonl}
stages:
  - {name: sft, objective: sft, update: lora}
  - {name: rm, objective: rm, update: lora}
  - name: grpo
    objective: grpo
    update: lora
"""
GOOD = """\
    rewards:
      - {verifier: exact, weight: 2}
      - {verifier: format, pattern: "<a>.*</a>", weight: 0.5, name: tags}
      - {verifier: length, overlong_tokens: 100}
      - {reward: own/scores.py:judge, weight: -1}
      - {reward_model: rm}
      - {reward_model: ../their/rm, name: theirs}
"""


def plan_of(text):
    return plan_from_data(parse_yaml(HEAD + text, name="plan.yaml"))


def test_rewards_are_parts_with_weights_and_names():
    """Without a weight a part counts once, without a name it goes by its source."""
    plan = plan_of(GOOD)
    options = plan.stages[2].options
    assert [(part.name, part.weight, part.source) for part in reward_parts(options)] == [
        ("exact", 2.0, "verifier"),
        ("tags", 0.5, "verifier"),
        ("length", 1.0, "verifier"),
        ("judge", -1.0, "reward"),
        ("rm", 1.0, "reward_model"),
        ("theirs", 1.0, "reward_model"),
    ]
    odd = [{"reward_model": "../my rm/"}, {"reward_model": ".."}]
    assert [part.name for part in reward_parts({"rewards": odd})] == ["my-rm", "reward_model"]
    assert (models_that_score(options), entries(plan)[2].needs) == (2, ("sft", "rm"))
    assert overlong_tokens({}, 20_480) == 4_096  # DAPO's numbers
    assert plan_from_data(parse_yaml(plan_text(plan), name="plan.yaml")) == plan


def test_the_short_form_is_one_part():
    """A single key is the same as a list with one entry."""
    short = plan_of('    verifier: regex\n    pattern: "4"\n').stages[2].options
    long = plan_of('    rewards: [{verifier: regex, pattern: "4"}]').stages[2].options
    assert reward_parts(short) == reward_parts(long) != ()
    assert reward_parts({}) == ()
    assert entries(plan_of("    beta: 0.1\n"))[2].scored_by == ("rm",)
    assert entries(plan_of("    verifier: exact\n"))[2].scored_by == ()


def test_paths_in_rewards_move_along():
    """Files of functions and folders of models do; the name of a stage is no path."""
    moved = with_paths(plan_of(GOOD), lambda path: f"/there/{path}")
    values = [part.value for part in reward_parts(moved.stages[2].options)]
    assert values[3:] == ["/there/own/scores.py:judge", "rm", "/there/../their/rm"]


def test_files_of_rewards_are_inputs_of_the_run(tmp_path):
    """Another function in the same file makes it another run, as another data file does."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "scores.py").write_text("def judge(**_): ...")
    (tmp_path / "plan.yaml").write_text(HEAD + GOOD)
    found = read_inputs(prepare_plan(tmp_path / "plan.yaml", Options(output=tmp_path / "out")), {})
    assert list(found) == ["file ../own/scores.py"]


FAULTS = {
    "both forms": ("verifier: exact\n    rewards: [{reward: a.py:f}]", "11:14",
                   "verifier and rewards both say where the reward comes from"),
    "unknown verifier": ("rewards: [{verifier: exakt}]", "10:26", "`verifier` is 'exakt'"),
    "weight 0": ("rewards: [{verifier: exact, weight: 0}]", "10:41", "weight 0: no effect"),
    "no number": ("rewards: [{verifier: exact, weight: two}]", "10:41", "`weight` is 'two'"),
    "one name twice": ("rewards: [{reward: a.py:f}, {reward: b.py:f}]", "10:42",
                       "two rewards are called 'f' (the first is rewards[0])"),
    "a name that no metric can have": ("rewards: [{verifier: exact, name: a/b}]", "10:39", "name is 'a/b'"),
    "two sources": ("rewards: [{verifier: exact, reward: a.py:f}]", "10:41", "verifier and reward both say"),
    "no source": ("rewards: [{weight: 2}]", "10:15", "this reward names nothing that scores"),
    "no function": ("rewards: [{reward: judge}]", "10:24", "`reward` is 'judge'"),
    "no pattern": ("rewards: [{verifier: format}]", "10:26", "verifier format needs the key pattern"),
    "pattern no regex": ('rewards: [{verifier: regex, pattern: "("}]', "10:42", "not a regular expression"),
    "dead key": ("rewards: [{verifier: exact, ngram: 2}]", "10:40", "'ngram' has no effect: verifier is exact"),
    "dead short key": ("pattern: x\n    rewards: [{verifier: exact}]", "10:14", "'pattern' has no effect beside rewards"),
    "too long": ("rewards: [{verifier: exact}, {verifier: length, overlong_tokens: 2000}]", "10:70",
                 "overlong_tokens 2000 are more than response_tokens 1024"),
    "penalties alone": ("rewards: [{verifier: length}, {verifier: repetition}]", "10:14",
                        "length and repetition alone say only which answers are bad"),
    "a penalty alone": ("verifier: length", "10:15", "length alone says only which answers are bad"),
    "unknown key": ("rewards: [{verifier: exact, wieght: 1}]", "10:33", "unknown key 'wieght'"),
    "empty": ("rewards: []", "10:14", "`rewards` is an empty list"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_reward_is_located(name):
    """Each fault is told where it stands."""
    text, place, said = FAULTS[name]
    with pytest.raises(InputError) as raised:
        plan_of(f"    {text}\n")
    assert re.search(rf"^plan.yaml:{place}: .*{re.escape(said)}", raised.value.text(), re.MULTILINE)


def test_all_faults_of_one_plan_come_together():
    """Nobody has to start three times to hear of three mistakes."""
    wrong = "{verifier: exact, weight: 0}, {reward: judge}, {verifier: regex, ngram: 2}"
    with pytest.raises(InputError) as raised:
        plan_of(f"    rewards: [{wrong}]\n")
    assert len(raised.value.faults) == 4


def test_other_objectives_have_no_rewards():
    """The key belongs to those that learn from their own answers."""
    text = HEAD.replace("objective: grpo", "objective: sft") + GOOD
    with pytest.raises(InputError, match=r"(?s)`rewards` has no effect.*objective grpo"):
        plan_from_data(parse_yaml(text, name="plan.yaml"))
