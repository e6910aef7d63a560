"""Data that a stage cannot be trained on is refused by the first call and by every later one."""

import json
from functools import cache
from importlib import import_module

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.data import read_examples
from advisor.ground.errors import InputError
from advisor.ground.yaml_files import parse_yaml
from advisor.launch.data import check_data
from advisor.methods import objectives
from advisor.plan.entries import entries
from advisor.plan.model import Plan, Stage
from advisor.plan.read import PlanOnDisk, plan_from_data
from tests.conftest import examples
from tests.launch.conftest import chat, write_rows

ROWS = range(20)


KINDS = {
    "chats": [chat(f"What is {n}?", f"It is number {n} of twenty.") for n in ROWS],
    "sums": [{"question": f"{n} + 1?", "answer": f"One more.\n#### {n + 1}"} for n in ROWS],
    "classes": [{"text": f"mail {n}", "label": ("spam", "ham")[n % 2]} for n in ROWS],
    "texts": [{"text": f"A text about number {n} and other things."} for n in ROWS],
    "pairs": [{"prompt": f"{n}?", "chosen": f"It is {n}.", "rejected": "no"} for n in ROWS],
    "feedback": [
        {"prompt": f"{n}?", "completion": f"It is {n}.", "label": n % 2 == 0} for n in ROWS
    ],
    "checked": [{"prompt": f"{n}?", "ground_truth": str(n)} for n in ROWS],
}
# Trainers of trainers/: the default head, and a head with classes.
PURPOSES = [*((name, {}) for name in objectives()), ("sft", {"head": "classes"})]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """A folder with one file of each kind."""
    folder = tmp_path_factory.mktemp("kinds")
    for name, rows in KINDS.items():
        write_rows(folder / f"{name}.jsonl", rows)
    write_rows(folder / "my chats.jsonl", KINDS["chats"])
    return folder


def planned(folder, *stages):
    """The entries of a plan; a stage is (objective, file name, options)."""
    data = {
        "model": "owner/model",
        "stages": [
            {
                "name": f"s{place}", "objective": name, "update": "lora", "learning_rate": 1e-4,
                "data": f"{file}.jsonl", **options,
            }
            for place, (name, file, options) in enumerate(stages)
        ],
    }  # fmt: skip
    return entries(plan_from_data(parse_yaml(json.dumps(data), name="plan.yaml"), base=folder))


def checked(folder, todo):
    stage = Stage(name="s", objective="sft", update="lora", learning_rate=1e-4)
    plan = Plan(model="owner/model", stages=(stage,))
    return check_data(PlanOnDisk(plan=plan, path=folder / "plan.yaml"), todo)


def faults(folder, todo):
    return [fault.headline for fault in checked(folder, todo).faults]


def test_a_file_is_checked_for_every_stage_that_reads_it(kinds):
    """A file that suits the first stage and not the second is refused before the first begins."""
    todo = planned(kinds, ("sft", "my chats", {}), ("dpo", "my chats", {}))
    assert InputError(faults=checked(kinds, todo).faults).text() == (
        "my chats.jsonl: cannot train objective dpo: it holds paired (messages)\n"
        "  it can train: sft\n  advise check 'my chats.jsonl'"
    )
    assert faults(kinds, todo[1:]) == faults(kinds, todo)
    todo = planned(kinds, ("sft", "chats", {}), ("rm", "pairs", {}), ("ppo", "chats", {}))
    assert [faults(kinds, todo[done:]) for done in range(4)] == [[]] * 4


@pytest.fixture(scope="module")
def cached(kinds):
    """`faults` that profiles each file once."""
    from advisor.data.measure import profile as module

    known = cache(lambda path: module.profile(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("advisor.data.profile", lambda path, **_: known(path), raising=False)
        yield lambda todo: faults(kinds, todo)


@examples(1)
@given(data=st.data())
def test_what_is_left_is_refused_exactly_if_the_whole_plan_is(kinds, cached, data):
    """Whichever stages are done, a later call refuses what the first one would."""
    stage = st.tuples(st.sampled_from(PURPOSES), st.sampled_from(sorted(KINDS)))
    stages = data.draw(st.lists(stage, min_size=1, max_size=5))
    todo = planned(kinds, *((name, file, options) for (name, options), file in stages))
    left = data.draw(st.lists(st.sampled_from(todo), unique_by=lambda entry: entry.name))
    whole = cached(todo)
    assert set(cached(left)) <= set(whole)
    assert set().union(*(cached([entry]) for entry in todo)) == set(whole)


def test_reinforcement_without_a_reward_is_refused_before_it_starts(kinds):
    """Questions alone teach nothing: something has to score the answers."""
    (found,) = faults(kinds, planned(kinds, ("ppo", "pairs", {})))
    assert "nothing says what reward an answer gets" in found
    assert faults(kinds, planned(kinds, ("ppo", "pairs", {"verifier": "exact"}))) == []
    assert faults(kinds, planned(kinds, ("grpo", "sums", {}))) == []
    todo = planned(kinds, ("sft", "texts", {}), ("rm", "pairs", {}), ("ppo", "chats", {}))
    (warning,) = checked(kinds, todo).warnings
    assert warning.startswith("texts.jsonl holds raw text, and objective sft is meant for paired")


@pytest.mark.train
@pytest.mark.parametrize("name", sorted(KINDS))
def test_what_is_refused_is_what_the_trainer_cannot_prepare(kinds, tiny_model, name):
    """The launcher accepts a file if and only if the trainer can prepare its rows."""
    from transformers import AutoTokenizer

    from tests.trainers.fitting import prepare_stage_rows
    from trainers.rows import Templater

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    path = kinds / f"{name}.jsonl"
    for purpose, options in PURPOSES:
        if purpose in ("ppo", "grpo", "rloo"):
            options = {"verifier": "regex", "pattern": "1"}
        try:
            prepare_stage_rows(
                read_examples(path), Templater(tokenizer, learn_all=False), seq_len=256, seed=1,
                truncation="stop", holdout=0.1, kind=kind_of(purpose, options, name),
            )  # fmt: skip
            is_prepared = True
        except InputError:
            is_prepared = False
        refused = faults(kinds, planned(kinds, (purpose, name, options)))
        assert (refused == []) == is_prepared, (purpose, options, refused)


def kind_of(purpose, options, name):
    """What the trainer of an objective prepares of such data."""
    from trainers.heads import Classifier
    from trainers.rows.conversation import PROMPTS
    from trainers.stage.objective import Objective

    if options.get("head") == "classes":
        return Classifier.kind
    # PPO has a loop of its own; a teacher answers what the data do not.
    if purpose == "ppo" or (purpose == "distill" and name == "checked"):
        return PROMPTS
    name = f"trainers.{purpose}"
    kinds = (value for value in vars(import_module(name)).values() if isinstance(value, type))
    return next(one.kind for one in kinds if one.__module__ == name and issubclass(one, Objective))


FORGETS = (
    "stage sft: few rows read several times make it forget; its own answers to general questions"
    " keep what it can do: the same command with --set 'stages.sft.replay={rows: 500}'"
)


@pytest.mark.parametrize(
    ("model", "keys", "told"),
    [
        ("owner/model-Instruct", {}, [FORGETS]),
        ("owner/model-Base", {}, [FORGETS.partition(";")[0]]),
        ("owner/model-Instruct", {"replay": {"rows": 9}}, []),
        ("owner/model-Instruct", {"epochs": 1}, []),
        ("owner/model-Instruct", {"head": "classes"}, []),
    ],
)
def test_a_plan_that_is_likely_to_forget_says_so_before_it_trains(kinds, model, keys, told):
    """With the setting that is the cure, where the base can answer; the rules say when."""
    stage = {"name": "sft", "objective": "sft", "update": "lora", "epochs": 3, **keys}
    stage |= {"learning_rate": 1e-4}
    path = str(kinds / "chats.jsonl")
    text = json.dumps({"model": model, "data": {"path": path}, "stages": [stage]})
    plan = plan_from_data(parse_yaml(text, name="plan.yaml"))
    found = check_data(PlanOnDisk(plan=plan, path=kinds / "plan.yaml"), entries(plan)).warnings
    assert len(found) == len(told)
    assert all(line.startswith(start) for line, start in zip(found, told, strict=True))
