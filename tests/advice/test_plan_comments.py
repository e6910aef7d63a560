"""A comment in a plan agrees with the value beside it, also after --set."""

import random
import re

import pytest

from advisor.advice.planning import comment_of, make_plan, missing_for_plan
from advisor.advice.search.micro_batches import StageCost
from advisor.advice.search.rows import steps_in
from advisor.advice.search.settings import MICRO_BATCHES, StageCase
from advisor.ground.errors import InputError
from advisor.plan.comments import BY_SET, comments_after, comments_of
from advisor.plan.keys import key_specs
from advisor.plan.read import set_values
from advisor.plan.write import plan_data, plan_text
from tests.advice.situations import RULES, asked, fitted, random_advices
from tests.conftest import scaled

WITH_PLANS = {"runnable": True, "flips": False}
WORDS = {"one": 1, "once": 1, "two": 2, "twice": 2, "three": 3, "four": 4, "five": 5}
COUNT = "|".join(WORDS)
NUMBER = r"(\d[\d,]*(?:\.\d+)?(?:e-?\d+)?)"
# What a comment beside a key may say about its value: a number, or from one number to another.
CLAIMS = {
    "epochs": rf"^(\d+) passes|\b({COUNT})(?: to ({COUNT}))? (?:pass|passes|times|documented)\b|\b(?:used|read) ({COUNT})\b",
    "rank": rf"\branks? (?:from )?{NUMBER}(?: to {NUMBER})?",
    "beta": rf"\bbeta between {NUMBER} and {NUMBER}|\bbeta {NUMBER}|, {NUMBER} is usual",
    "learning_rate": rf"{NUMBER}(?: to |, [^:]*? |[^:]*? where ){NUMBER}",
    "prefix_tokens": rf"{NUMBER} tokens for tables to {NUMBER}",
    "generations": rf"{NUMBER} to {NUMBER} answers",
    "bottleneck": rf"fixed size of {NUMBER}",
}


def number(text):
    return WORDS[text] if text in WORDS else float(text.replace(",", ""))


def disagreements(values, because, cards):
    """Each comment that says what the value beside it, or those beside that, deny."""
    micro, accum = values["micro_batch_size"], values["grad_accum"]
    held_out = re.match(r"([\d,]+) of ([\d,]+) rows", because.get("holdout", ""))
    for key, text in because.items():
        value, wrong = values.get(key), []
        claims = [
            [number(part) for part in match.groups() if part]
            for match in re.finditer(CLAIMS.get(key, r"(?!)"), text)
        ]
        if claims:
            wrong.append(not any(min(claim) <= value <= max(claim) for claim in claims))
        if found := re.match(r"(\d+) rows? a step", text):
            wrong.append(int(found[1]) != micro * accum * cards)
        if found := re.match(r"([\d,]+) of ([\d,]+) rows(, a fifth)?", text):
            held, of = number(found[1]), number(found[2])
            wrong.append(abs(held - value * of) > 0.5 + held / 1000)
            wrong.append(found[3] and held != of // 5)
        steps = re.search(r"(?:this leaves about ([\d,]+)|: about ([\d,]+) optimizer steps)", text)
        if steps and held_out and not values.get("packing"):
            trained = number(held_out[2]) - number(held_out[1])
            epochs = values.get("epochs", 1.0)
            counted = steps_in(trained, per_step=micro * accum * cards, epochs=epochs)
            told = number(steps[1] or steps[2])
            wrong.append(told < counted or (told > counted and not values.get("replay")))
        if found := re.search(r"reads at most ([\d,]+) tokens", text):
            wrong.append(value != number(found[1]))
        if found := re.match(r"holds [^(]*\(([\d,]+) tokens", text):
            wrong.append(value < number(found[1]))
        wrong += [
            "the whole batch at once" in text and accum != 1,
            text.startswith("the smallest") and value != 1,
            "recomputes activations" in text and value is not True,
            "enough memory without recomputing" in text and value is not False,
        ]
        if any(wrong):
            yield f"{key}: {value}  # {text}, with {micro} x {accum} rows, {cards} cards"


@pytest.mark.parametrize(
    ("key", "value", "text", "agrees"),
    [
        ("epochs", 1.0, "few rows are read three times (sft/epochs-small)", False),
        ("epochs", 4, "two passes are usual, one to three documented", False),
        ("rank", 64, "rank 8 to 16 holds what up to about 10,000 rows teach", False),
        ("grad_accum", 4, "16 rows a step: usual", False),
        ("seq_len", 512, "holds the longest row (600 tokens)", False),
        ("micro_batch_size", 2, "the whole batch at once", False),
        ("epochs", 3, "5 passes instead of the usual 1", False),
        ("holdout", 0.05, "18 of 91 rows, a fifth", False),
        ("learning_rate", 1e-5, "rates between 5e-6 to 8e-6 are documented", False),
        ("epochs", 3, "read three times", True),
    ],
)
def test_the_check_finds_what_it_is_for(key, value, text, agrees):
    """What an earlier version wrote fails."""
    values = {"micro_batch_size": 2, "grad_accum": 4, key: value}
    assert ([*disagreements(values, {key: text}, 1)] == []) is agrees


@pytest.mark.parametrize("batch", range(6))
def test_every_reason_of_a_setting_agrees_with_it(batch, situation_files):
    """Whatever chose the value: a rule, a refusal, the fit search, the stage before."""
    stages = 0
    for seed, advice in random_advices(range(batch, scaled(120), 6), situation_files, flips=False):
        cards = max(1, len(advice.situation.hardware.gpus))
        for candidate in (advice.recommendation, *advice.alternatives):
            for stage in candidate.stages:
                values = {key: chosen.value for key, chosen in stage.reasons.items()}
                because = {key: comment_of(chosen) for key, chosen in stage.reasons.items()}
                used = cards if "sharding" in values else 1  # one of several, where that fits
                wrong = list(disagreements(values, because, used))
                assert not wrong, (seed, str(candidate.composition), stage.stage.objective, wrong)
                axes = {"objective": stage.stage.objective, "update": stage.stage.update}
                assert not key_specs().refused({**values, **axes}), (seed, axes, values)
                said = " ".join(because.values())
                counted = re.search(r"this leaves about ([\d,]+)|: about ([\d,]+) optimizer", said)
                if counted and stage.told_steps is not None and "max_steps" not in values:
                    assert stage.told_steps == number(counted[1] or counted[2]), (seed, said)
                stages += 1
    assert stages > scaled(100)


@pytest.mark.parametrize(("objective", "rows"), [("kto", 4), ("sft", 1)])
def test_no_batch_is_smaller_than_the_trainer_takes(objective, rows):
    """KTO needs four rows in a micro-batch, also where fewer would fit better."""
    situation = asked(task="chat_assistant", model="Qwen/Qwen3-8B", gpu="RTX 4060 8GB")
    assert fitted(f"{objective}+qlora", situation).reasons["micro_batch_size"].value == rows


def test_what_is_said_of_a_micro_batch_is_true(situation_files):
    """The next larger one leaves less memory free than said, or is no more than 5 % faster."""
    largest = no_faster = 0
    for seed, advice in random_advices(range(scaled(120)), situation_files, **WITH_PLANS):
        for found, stage in ((one, stage) for one in advice.alternatives for stage in one.stages):
            plain = {key: chosen.value for key, chosen in stage.reasons.items()}
            micro = stage.reasons["micro_batch_size"]
            said = micro.because  # of the many that more rows would not make faster one in three
            free = re.match(r"the largest that leaves ([\d.]+) GiB free", said)
            if not free and "more rows at once" not in said:
                continue
            more = {
                **plain,
                "micro_batch_size": MICRO_BATCHES[MICRO_BATCHES.index(micro.value) - 1],
                "grad_accum": max(1, plain["grad_accum"] // 2),
            }
            axes = (advice.situation, advice.facts, found.composition, stage.stage.objective)
            case = StageCase(RULES, *axes)
            if free:
                cost = StageCost(case, more).estimate({})
                left = (cost.limit_bytes - cost.memory.need_bytes) / 2**30
                assert left < float(free[1]) + 0.06, (seed, stage.stage.objective, said)
                largest += 1
            elif seed % 3 == 0 and (before := StageCost(case, plain).row_s({})) is not None:
                assert before <= 1.051 * StageCost(case, more).row_s({}), (seed, said)
                no_faster += 1
    assert largest >= scaled(3)
    assert no_faster >= scaled(7)


CHANGES = {
    "epochs": (1, 2, 5), "learning_rate": (1e-6, 3e-3), "micro_batch_size": (1, 2, 3),
    "grad_accum": (1, 3), "seq_len": (128, 256), "rank": (4, 200), "max_steps": (7,),
    "holdout": (0.01, 0.3), "warmup": (0,), "quantization": ("null",),
    "gradient_checkpointing": ("true", "false"),
}  # fmt: skip
COUNTS_STEPS = (
    "micro_batch_size", "grad_accum", "epochs", "max_steps", "holdout", "packing", "seq_len",
)  # fmt: skip


@pytest.mark.parametrize("batch", range(4))
def test_a_changed_value_loses_its_reason_and_says_who_changed_it(batch, situation_files):
    """Every other comment still agrees with its value, or says what it was chosen before."""
    changed_plans = 0
    for seed, advice in random_advices(range(batch, scaled(280), 4), situation_files, **WITH_PLANS):
        rng, chosen = random.Random(seed), advice.recommendation
        if not chosen.composition.chain or missing_for_plan(advice, chosen):
            continue
        plan, comments = make_plan(advice, chosen, RULES)
        keys = rng.sample(sorted(CHANGES), rng.choice((1, 1, 2, 3)))
        texts = [f"stages.0.{key}={rng.choice(CHANGES[key])}" for key in keys]
        try:
            changed = set_values(plan, texts)
        except InputError:  # the method has no such key, or refuses the value
            continue
        text = plan_text(changed, comments_after(comments, plan, changed))
        found = comments_of(text, name="plan.yaml")
        stage = plan_data(changed, found)["stages"][0]
        before = plan_data(plan, comments)["stages"][0]
        beside = {key: said for (*place, key), said in found.items() if place == ["stages", 0]}
        above = found["stages", 0].split("\n")[0]
        product = re.search(r"^([\d,]+) .* = (\d+) .* x (\d+) .* x (\d+) ", above)
        assert product, above
        count, micro, accum, cards = (int(number(part)) for part in product.groups())
        assert (count, micro) == (micro * accum * cards, changed.stages[0].micro_batch_size)
        assert accum == changed.stages[0].grad_accum
        # The steps in all were those of the plan before.
        same = all(stage[key] == before.get(key) for key in COUNTS_STEPS if key in stage)
        assert same or "about" not in above
        other = [key for key in stage if stage[key] != before.get(key)]
        assert [key for key in other if beside[key] != BY_SET] == [], seed
        kept = {key: said for key, said in beside.items() if BY_SET not in said}
        wrong = list(disagreements(stage, kept, changed.launch.processes))
        assert not wrong, (seed, texts, wrong)
        changed_plans += 1
    assert changed_plans > scaled(10)
