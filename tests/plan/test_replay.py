"""The key `replay` of a plan: what it may hold, where it is refused, and what it does to amounts."""

import json

import pytest

from advisor.ground.errors import InputError
from advisor.ground.types import DataProfile, TokenStats
from advisor.ground.yaml_files import parse_yaml
from advisor.plan.read import plan_from_data
from advisor.situation.of_plan import amounts

STAGE = {"name": "a", "objective": "sft", "update": "lora", "learning_rate": 1e-4, "holdout": 0.0}


def plan(launch=None, **keys):
    document = {"model": "m", "data": {"path": "d.jsonl"}, "stages": [{**STAGE, **keys}]}
    document |= {"launch": launch} if launch else {}
    return plan_from_data(parse_yaml(json.dumps(document), name="plan.yaml"))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"replay": {"rows": 501}}, "from 1 to 500"),
        ({"replay": {"rows": 5, "share": 1}}, "unknown key 'share'"),
        ({"replay": 500}, "a file or folder, or a map with the keys rows"),
        ({"replay_share": 0.3}, "`replay_share` has no effect: there is no `replay`"),
        ({"replay": {"rows": 5}, "head": "classes"}, "head: classes trains no model that answers"),
        ({"replay": "a.jsonl", "head": "seq2seq"}, "head: seq2seq trains no model that answers"),
        ({"replay": {"rows": 5}, "objective": "dpo"}, "replay"),
        (
            {"replay": {"rows": 5}, "launch": {"processes": 2, "strategy": "fsdp"}},
            "a base whose weights are divided answers nothing before training",
        ),
    ],
)
def test_where_it_cannot_help_it_is_refused(keys, said):
    with pytest.raises(InputError, match=said):
        plan(**keys)


@pytest.mark.parametrize("objective", ["sft", "cpt"])
def test_its_tokens_count(objective):
    """A fifth of all tokens is a quarter of the stage's own; 10 bundled rows a pass are less; the
    rows of a file are as long as the stage's.
    """
    counts = {"p50": 100, "p90": 110, "p95": 120, "p99": 130, "longest": 140}
    stats = TokenStats(total=100_000, mean=100.0, counted_by="x", **counts)
    about = {"format": "messages", "mapping": {}, "objectives": (objective,)}
    data = DataProfile(path="d", kind="paired", rows=1000, tokens=stats, **about)
    given = {"objective": objective, "epochs": 2, "replay_share": 0.2, "packing": False}

    def read(**keys):
        found = plan(**{**given, **keys})
        return amounts(found, found.stages[0], data, None)

    plain = plan(objective=objective, epochs=2)
    own = amounts(plain, plain.stages[0], data, None)
    assert (own, read(replay="general.jsonl")) == ((200_000, 2000), (250_000, 2500))
    assert read(replay={"rows": 500}) == (250_000, 2000 + round(50_000 / 90))
    assert read(replay={"rows": 10}) == (200_000 + 2 * 10 * 90, 2020)
