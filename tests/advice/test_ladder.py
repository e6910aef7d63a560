"""What gives way before a model counts as too big: settings first, then rows, never silently."""

from __future__ import annotations

from dataclasses import replace

import pytest

from advisor.advice import advise as advising
from advisor.advice.case import Case
from advisor.advice.planning import comment_of
from advisor.ground.errors import InputError
from advisor.ground.types import Answer, Answers
from advisor.ruleset.load import load_rules
from advisor.situation.build import situation_of
from tests.advice.situations import UNKNOWN_MACHINE, random_answers, write_data
from tests.conftest import scaled

RULES, GUIDE = load_rules(), load_rules(("document",))
BEST_FIRST = ("fits", "split", "tight", "too_big")


def asked(**known):
    return situation_of(
        Answers(known={key: Answer(value=value, origin="flag") for key, value in known.items()}),
        probed=UNKNOWN_MACHINE,
    )


def advised(monkeypatch, **known):
    monkeypatch.setattr(advising, "find_flips", lambda *_: ())
    return advising.advise(asked(**known), RULES, GUIDE)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


def random_situation(seed, data=None):
    try:
        return situation_of(random_answers(seed, data), probed=UNKNOWN_MACHINE)
    except InputError:
        return None


# --------------------------------------------------------------------------- a lower rank


def test_a_rank_that_rules_choose_gives_way_before_the_scheme(monkeypatch):
    """One row more, and rules choose a rank four times as large: the same scheme, with the rank that fits, and the
    plan says what the usual one would need.
    """
    stated = {"task": "qa", "data_kind": "paired", "model": "Qwen/Qwen3-14B", "gpu": "T4"}
    below = advised(monkeypatch, **stated, data_rows=100_000)
    above = advised(monkeypatch, **stated, data_rows=100_001)
    assert str(below.recommendation.composition) == str(above.recommendation.composition)
    (stage,) = above.recommendation.stages
    rank = stage.settings["rank"]
    assert rank.value == 16
    said = comment_of(rank)
    assert said.startswith("rank 128 would need ")
    assert said.endswith("(lora/rank-little-memory)")


def test_stages_that_train_one_module_give_way_together(monkeypatch):
    """A module that is smaller in one stage is as small in the next."""
    stated = {"task": "chat_assistant", "data_kind": "preference", "data_rows": 20_000}
    smaller = 0
    for model in ("Qwen/Qwen3-8B", "Qwen/Qwen3-14B"):
        for gpu in ("RTX 4060 8GB", "RTX 4070 12GB", "T4", "RTX 4090"):
            advice = advised(monkeypatch, **stated, model=model, gpu=gpu)
            for one in (advice.recommendation, *advice.alternatives):
                ranks = {
                    stage.settings["rank"].value
                    for stage in one.stages
                    if "rank" in stage.settings and stage.objective != "rm"
                }
                assert len(ranks) < 2, (model, gpu, str(one.composition))
                smaller += len(one.stages) > 1 and bool(ranks) and max(ranks) < 64
    assert smaller


def test_more_rows_never_fit_less():
    """What fits does not depend on how many rows there are, for any scheme on any machine."""
    checked = 0
    for seed in range(scaled(60)):
        situation = random_situation(seed)
        if situation is None or situation.model is None:
            continue
        fits = []
        for rows in (2_000, 10_000, 10_001, 100_000, 100_001, 3_000_000):
            known = {
                name: answer
                for name, answer in situation.answers.known.items()
                if name not in ("data_tokens", "budget_usd", "budget_hours")
            }
            known["data_rows"] = Answer(value=rows, origin="flag")
            case = Case.build(replace(situation, answers=Answers(known=known)), RULES)
            fits.append(case.costs.coarse_fits("sft", per_task=False))
        for scheme in ("lora", "qlora"):
            assert len({found[scheme] for found in fits}) == 1, (seed, scheme, fits)
        checked += 1
    assert checked > scaled(20)
