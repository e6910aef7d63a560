"""Settings, formats, then rows give way, never silently; a micro-batch is fast in little memory."""

import json
import random
from itertools import product
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.advice.planning import comment_of
from advisor.advice.search.micro_batches import HARDLY_FASTER, fastest_that_fits, trials_of
from advisor.advice.search.settings import MICRO_BATCHES
from advisor.estimate.memory.bands import HEAD_ROOM, memory_fits
from advisor.estimate.types import Estimate, MemoryEstimate
from advisor.ground.units import GIB
from advisor.render.words import what_to_do
from tests.advice.situations import advised, asked, fitted


def test_a_rank_that_rules_choose_gives_way_before_the_scheme():
    """Rules choose a rank four times as large: the plan says what that would need."""
    stated = {"task": "qa", "data_kind": "paired", "model": "Qwen/Qwen3-14B", "gpu": "T4"}
    below = advised(**stated, data_rows=100_000)
    above = advised(**stated, data_rows=100_001)
    assert str(below.recommendation.composition) == str(above.recommendation.composition)
    (stage,) = above.recommendation.stages
    rank = stage.reasons["rank"]
    assert rank.value == 16
    said = comment_of(rank)
    assert said.startswith("rank 128 would need ")
    assert said.endswith("(lora/rank-little-memory)")


def test_stages_that_train_one_module_give_way_together():
    """A module that is smaller in one stage is as small in the next."""
    stated = {"task": "chat_assistant", "data_kind": "preference", "data_rows": 20_000}
    gpus = ("RTX 4060 8GB", "RTX 4070 12GB", "T4", "RTX 4090")
    chosen = []
    for model, gpu in product(("Qwen/Qwen3-8B", "Qwen/Qwen3-14B"), gpus):
        advice = advised(**stated, model=model, gpu=gpu)
        for one in (advice.recommendation, *advice.alternatives):
            stages = [stage.reasons for stage in one.stages if stage.stage.objective != "rm"]
            ranks = {reasons["rank"].value for reasons in stages if "rank" in reasons}
            assert len(ranks) < 2, (model, gpu, str(one.composition))
            chosen += ranks if len(one.stages) > 1 else ()
    assert min(chosen) < 64


def test_what_is_a_little_too_big_may_fit():
    """Inside the estimate's band the answer is to try, with a warning, unless it is hardly likely."""
    likely = []
    for params in (21.5, 22.0, 22.5, 23.0, 23.5, 24.0, 24.5, 25.0, 25.5):
        advice = advised(
            task="qa", model="a model", model_params_b=params, gpu="T4",
            data_kind="paired", data_rows=5000,
        )  # fmt: skip
        cost = advice.recommendation.estimate
        if cost.fits != "may_fit":
            continue
        likely.append(cost.is_likely if cost.is_near else None)
        if not cost.is_near:  # no run is tried for it
            assert "smaller_model" in str(advice.recommendation.composition)
            continue
        assert cost.memory.need_low_bytes <= cost.limit_bytes < cost.memory.need_high_bytes
        assert any("may not fit" in warning for warning in advice.warnings)
    assert {*likely} == {True, False, None}


def test_rows_are_left_out_last_and_never_silently(tmp_path):
    """A few long rows decide what fits: they are counted, and the run does not stop at them."""
    rng, path = random.Random(3), tmp_path / "long.jsonl"
    with path.open("w") as file:
        for number in range(500):
            words = 6000 if number % 20 == 0 else rng.randint(20, 200)
            row = {"prompt": f"Question {number}?", "completion": "word " * words}
            file.write(json.dumps(row) + "\n")
    cut = 0
    models = ("Qwen/Qwen3-4B", "Qwen/Qwen3-8B", "Qwen/Qwen3-14B", "Qwen/Qwen3-32B")
    for gpu, model in product(("RTX 4060 8GB", "T4"), models):
        advice = advised(task="qa", model=model, gpu=gpu, data_path=str(path))
        for stage in [stage for stage in advice.recommendation.stages if stage.left_out]:
            cut += 1
            assert stage.reasons["truncation"].value == "drop"
            assert any(stage.left_out in warning for warning in advice.warnings)
            assert "of the 500 rows" in stage.left_out
    assert cut


PROMPTS = {
    "task": "customer_service", "data_kind": "prompts_with_verifier", "data_rows": 400_000,
    "data_tokens": 80_000_000, "model": "Qwen/Qwen3-1.7B", "gpu": "A10",
}  # fmt: skip


def test_a_limit_that_is_not_enough_trains_on_a_part():
    """The answer is the training, its plan ends in time, and the page says what part and why."""
    advice = advised(**PROMPTS, budget_usd=20)
    assert str(advice.recommendation.composition) == "grpo+lora"
    assert advice.recommendation.estimate.cost_usd < 20
    (stage,) = advice.recommendation.stages
    assert stage.part is not None
    assert 1_000 < stage.part.rows < 400_000
    assert stage.reasons["max_steps"].because.startswith("$20 is enough for about so many of")
    assert "of your 400,000 rows" in what_to_do(advice)
    assert any("only a part of the data is used" in warning for warning in advice.warnings)


@pytest.mark.parametrize("limit", ["budget_usd", "budget_hours"])
def test_more_money_or_time_is_never_less_data(limit):
    """The part grows with the limit until all of the data is read, under the same scheme."""
    shares = []
    for amount in (0.02, 0.2, 1, 3, 10, 20, 60, 100, 150, 200, 1000):
        advice = advised(**PROMPTS, **{limit: amount})
        assert str(advice.recommendation.composition) == "grpo+lora", amount
        (stage,) = advice.recommendation.stages
        shares.append(1.0 if stage.part is None else stage.part.share)
    assert (shares, shares[-1]) == (sorted(shares), 1.0)


def test_no_money_at_all_is_a_machine_of_ones_own():
    """$0 rents nothing: the GPU counts as the person's own, and the answer says so."""
    stated = {**PROMPTS, "data_kind": "paired", "data_rows": 5_000, "data_tokens": 2_000_000}
    free, low = (advised(**stated, **limit) for limit in ({"budget_usd": 0}, {"budget": "low"}))
    assert str(free.recommendation.composition) == str(low.recommendation.composition)
    assert any("a budget of $0" in warning for warning in free.warnings)


FLOAT32 = ("float32", "mixed", "adamw_fused")
SPLIT = ("bfloat16", "pure", "adamw_split")
MOMENTS = ("float32", "mixed", "adamw_8bit")  # where there is no bfloat16
STOCHASTIC = ("bfloat16", "pure", "adamw_stochastic")


def fitted_on(model, gpu, composition="sft+full"):
    return fitted(composition, asked(task="other", model=model, gpu=gpu, data_rows=20_000))


def formats(stage):
    return tuple(stage.reasons[key].value for key in ("weights_dtype", "precision", "optimizer"))


@pytest.mark.parametrize(
    ("composition", "model", "gpu", "wanted", "fits"),
    [
        # 1.7e9, 4.0e9 and 8.2e9 weights at 16 to 18, 10 and 8 bytes, with gradients of earlier
        # micro-batches, on 80, 48 and 24 GB.
        ("sft+full", "Qwen/Qwen3-1.7B", "H100", FLOAT32, "fits"),
        ("sft+full", "Qwen/Qwen3-4B", "A100 80GB", SPLIT, "fits"),
        # Of SPLIT the upper end is above 48 GiB.
        ("sft+full", "Qwen/Qwen3-4B", "RTX A6000", STOCHASTIC, "fits"),
        # Of STOCHASTIC the upper end is above 79.6 GiB, and nothing smaller is left.
        ("sft+full", "Qwen/Qwen3-8B", "H100", STOCHASTIC, "may_fit"),
        ("sft+full", "Qwen/Qwen3-1.7B", "RTX 4090", SPLIT, "fits"),
        # Nothing says that memory is short.
        ("sft+full", "Qwen/Qwen3-8B", "unknown", FLOAT32, "unknown"),
        ("sft+full", "Qwen/Qwen3-0.6B", "T4", FLOAT32, "fits"),  # no bfloat16 there
        ("sft+full", "Qwen/Qwen3-4B", "T4", MOMENTS, "too_big"),
        # Of formats that are all too big the smallest is kept: that is what must fit.
        ("sft+full", "Qwen/Qwen3-8B", "RTX 4090", STOCHASTIC, "too_big"),
        # A module that does not fit is told as usual: its trained part is float32 anyway.
        ("sft+lora", "meta-llama/Llama-3.1-70B", "RTX 4090",
         ("bfloat16", "mixed", "adamw_fused"), "too_big"),
    ],
)  # fmt: skip
def test_the_memory_decides_the_format(composition, model, gpu, wanted, fits):
    """float32 weights if they fit, else two bfloat16 halves, else bfloat16 rounded at random."""
    stage = fitted_on(model, gpu, composition)
    assert (formats(stage), stage.cost.fits) == (wanted, fits)
    assert formats(fitted_on("Qwen/Qwen3-4B", "none"))[::2] == ("float32", "adamw_fused")


def test_the_comment_says_what_the_format_before_would_need():
    """Beside the value stands why it is not float32, in GiB, and the rule."""
    text = comment_of(fitted_on("Qwen/Qwen3-4B", "A100 80GB").reasons["weights_dtype"])
    assert text.startswith("weights_dtype float32 would need ")
    assert " GiB, and there are 80.0 GiB: bfloat16 weights" in text
    assert text.endswith("(base/split-weights-on-gpu)")
    need = float(text.split("would need ")[1].split(" GiB")[0])
    assert need > 16 * 4.02e9 / 2**30  # 16 bytes a weight, of 4.02e9 weights
    text = comment_of(fitted_on("Qwen/Qwen3-8B", "H100").reasons["optimizer"])
    assert "optimizer adamw_split would need" in text
    assert "and there are 79.6 GiB" in text


@pytest.mark.parametrize("gpu", ["H100", "RTX 4090"])
@pytest.mark.parametrize("objective", ["dpo", "sft>rm>ppo", "grpo", "rm", "kto"])
def test_every_objective_keeps_small_updates(objective, gpu):
    """Preference and reinforcement stages at 1e-6 and less need it most."""
    stage = fitted_on("Qwen/Qwen3-1.7B", gpu, f"{objective}+full")
    assert formats(stage) in (FLOAT32, SPLIT, STOCHASTIC)


BAND = 0.12


def cost(need_gib, limit_gib):
    """An estimate with a band of 12 %."""
    need = round(need_gib * GIB)
    memory = MemoryEstimate(
        moments=(), low_bytes=need, high_bytes=need, need_bytes=need,
        need_low_bytes=round(need * (1 - BAND)), need_high_bytes=round(need * (1 + BAND)),
    )  # fmt: skip
    limit = round(limit_gib * GIB)
    return Estimate(fits=memory_fits(memory, limit), memory=memory, limit_bytes=limit)


@st.composite
def searches(draw):
    """Trials: more rows need more and are no slower; recomputing needs less and is no faster."""
    base, row, again = draw(st.floats(1, 60)), draw(st.floats(0.05, 10)), draw(st.floats(0.02, 1))
    launches, slower = draw(st.floats(0, 4)), draw(st.floats(1, 1.5))
    trials = trials_of(16, MICRO_BATCHES, recompute=True)
    need = {one: base + one.micro * row * (again if one.recompute else 1) for one in trials}
    pace = {one: (1 + launches / one.micro) * (slower if one.recompute else 1) for one in trials}
    return trials, need, pace, draw(st.sampled_from([8, 16, 24, 48, 80]))


def search(trials, need, pace, limit, *, trains_all=False):
    return fastest_that_fits(
        trials,
        cost_of=lambda one: cost(need[one], limit),
        pace_of=pace.__getitem__,
        on_cpu=True,  # no more than the head-room is left free
        trains_all=trains_all,
    )


@given(searches())
def test_what_is_chosen_is_nearly_as_fast_as_what_fits_and_needs_least(found):
    """Nothing that surely fits is 5 % faster; nothing that is as near to it needs less."""
    trials, need, pace, limit = found
    chosen, least = search(*found), min(need.values())
    if cost(least, limit).fits not in ("fits", "tight"):
        assert need[chosen.trial] == least
        return
    roomy = [
        one
        for one in trials
        if need[one] <= limit - chosen.spare_bytes / GIB and need[one] * (1 + BAND) <= limit
    ]
    assert chosen.trial in roomy or need[chosen.trial] == least
    fastest = min(pace[one] for one in roomy)
    assert pace[chosen.trial] <= HARDLY_FASTER * fastest * (1 + 1e-9)
    near = [one for one in roomy if pace[one] <= HARDLY_FASTER * fastest]
    assert need[chosen.trial] == min(need[one] for one in near)
    assert chosen.trial.micro * chosen.trial.grad_accum == 16
    assert chosen.spare_bytes <= round(HEAD_ROOM * limit * GIB)


@given(searches())
def test_no_trial_is_asked_about_twice(found):
    """No trial is estimated or timed twice: thousands of searches stand behind an answer."""
    trials, need, pace, limit = found
    cost_of = Mock(side_effect=lambda one: cost(need[one], limit))
    pace_of = Mock(side_effect=pace.__getitem__)
    fastest_that_fits(trials, cost_of=cost_of, pace_of=pace_of, on_cpu=True, trains_all=True)
    costs, paces = ([call.args for call in one.call_args_list] for one in (cost_of, pace_of))
    assert len(costs) <= len(set(costs)) + 1  # the whole batch at once may be asked about again
    assert len(paces) == len(set(paces))


def test_recomputing_that_costs_nothing_is_taken():
    """Memory stays free; where it costs, one row is enough if more take as long for each."""
    trials = trials_of(16, MICRO_BATCHES, recompute=True)
    need = {one: 18 + one.micro * (0.7 if one.recompute else 6) for one in trials}
    found = search(trials, need, {one: 10 + 0.3 * one.recompute for one in trials}, 80)
    assert (found.trial.micro, found.trial.recompute) == (1, True)
    assert found.slowdown == pytest.approx(0.03)
    bound = search(trials, need, {one: 1 + 0.3 * one.recompute for one in trials}, 80)
    assert (bound.trial.micro, bound.trial.recompute) == (1, False)
    assert bound.slowdown == pytest.approx(0.3)
    # Full tuning with a single micro-batch keeps no gradients beside its activations.
    trials = trials_of(4, MICRO_BATCHES[2:], recompute=True)
    need = {one: 20 + one.micro * 0.5 + (8 if one.grad_accum > 1 else 0) for one in trials}
    found = search(trials, need, dict.fromkeys(trials, 1.0), 24, trains_all=True)
    assert (found.trial.micro, found.trial.grad_accum) == (4, 1)


@pytest.mark.parametrize("rows", [479, 9580])
def test_answers_that_are_written_together_give_way_before_the_model(rows):
    """More rows have more of them in a step, whose keys and values lie in memory at once."""
    stage = advised(
        task="customer_service", model="Qwen/Qwen3-14B", gpu="RTX 4090", teacher="model",
        data_kind="paired", data_rows=rows, data_tokens=2000 * rows,
        verifiable_rewards_available=True,
    ).recommendation.stages[0].stage  # fmt: skip
    assert (stage.objective, stage.micro_batch_size * stage.grad_accum) == ("distill", 16)
