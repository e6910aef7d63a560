"""The guide's six scenarios, by the guide's rules alone and by default."""

import json
import shlex

import pytest
from click.testing import CliRunner

from advisor.cli import advise

SCENARIOS = [  # what a scenario states, and what the guide's row answers
    (
        "Scenario 1: Customer Service Bots, Business Q&A",
        ["--task", "customer_service"],
        {"sft+lora", "sft+qlora"},
    ),
    (
        "Scenario 1: Customer Service Bots, Business Q&A",
        ["--task", "qa"],
        {"sft+lora", "sft+qlora"},
    ),
    (
        "Scenario 2: Injecting Domain Expertise (Law, Medicine)",
        ["--task", "domain_expertise"],
        {"cpt>sft+full", "cpt>sft+lora"},
    ),
    (
        "Scenario 3: Multi-Department Enterprise AI",
        ["--task", "multi_department"],
        {"sft+adapter@per_task"},
    ),
    (
        "Scenario 4: Building a ChatGPT-like Assistant",
        ["--task", "chat_assistant"],
        {"sft>rm>ppo+lora", "sft>rm>ppo+full", "sft>rm>ppo+qlora"},
    ),
    (
        "Scenario 5: Limited Budget, One GPU",
        ["--task", "other", "--budget", "low", "--gpus", "1"],
        {"sft+qlora"},
    ),
    (
        "Scenario 6: Text Generation (Writing, Summaries, Rewriting)",
        ["--task", "generation"],
        {"sft+lora"},
    ),
]


def answer(*flags, code=0):
    """The JSON document of one call."""
    done = CliRunner().invoke(advise, ["--json", *flags], catch_exceptions=False)
    assert done.exit_code == code, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("layers", [["--rules", "document"], []], ids=["guide-alone", "default"])
@pytest.mark.parametrize(
    ("row", "flags", "accepted"),
    SCENARIOS,
    ids=[row.split(":")[0].replace(" ", "-") + "-" + flags[1] for row, flags, _ in SCENARIOS],
)
def test_a_scenario_is_answered_as_the_guide_does(row, flags, accepted, layers):
    """Given only what a scenario states, the answer is the guide's, and its row is named."""
    hardware = [] if "--gpus" in flags else ["--gpu", "unknown"]
    document = answer(*flags, *layers, *(hardware or ["--gpu-memory", "24"]))
    assert document["recommendation"]["composition"] in accepted
    assert document["guide"]["composition"] == document["recommendation"]["composition"]
    assert row in document["guide"]["row"]


def test_every_method_of_the_guide_is_answered_for():
    """Full, adapter, LoRA, QLoRA, SFT and RLHF appear as the recommendation or with a reason why
    not.
    """
    document = answer(
        *shlex.split("--task customer_service --budget low --gpu 'RTX 4090' --model Qwen/Qwen3-8B")
    )
    said = [
        document["recommendation"]["composition"],
        *(item["composition"] for item in document["alternatives"]),
    ]
    for scheme in ("full", "adapter", "lora", "qlora", "prefix"):
        assert any(text.endswith(f"+{scheme}") for text in said), scheme
    assert any("rm>ppo" in text for text in said)
    assert all(item["because"] for item in document["alternatives"])


def test_what_does_not_fit_says_so_in_numbers():
    """Full fine-tuning of 8B on 24 GiB is ruled out by two numbers."""
    document = answer("--task", "qa", "--gpu", "RTX 4090", "--model", "Qwen/Qwen3-8B")
    full = next(item for item in document["alternatives"] if item["composition"] == "sft+full")
    assert full["verdict"] == "too_big"
    reason = full["because"][0]
    assert reason["unit"] == "GiB"
    assert reason["needs"] > 60  # 8 bytes a weight of 8.19e9 weights alone are 61 GiB
    assert 23 < reason["has"] < 24.1


@pytest.mark.parametrize(
    "flags",
    [
        (
            "--task",
            "domain_expertise",
            "--budget",
            "high",
            "--data-kind",
            "paired",
            "--data-rows",
            "200000",
        ),
        ("--task", "domain_expertise", "--data-kind", "raw_text", "--data-tokens", "2000000000"),
        ("--task", "qa"),
    ],
)
def test_another_card_that_is_said_to_change_the_answer_does(flags):
    """Asked again with the card, the answer is the promised one; a card that changes nothing is not
    named.
    """
    question = (*flags, "--model", "Qwen/Qwen3-8B")
    flips = [
        flip for flip in answer(*question, "--gpu", "RTX 4090")["flips"] if "gpu" in flip["change"]
    ]
    assert flips or flags == ("--task", "qa")
    assert len({flip["to"] for flip in flips}) == len(flips)
    for flip in flips:
        assert (
            answer(*question, "--gpu", flip["change"]["gpu"])["recommendation"]["composition"]
            == flip["to"]
        )


SEVERAL_STAGES = shlex.split(
    "--task chat_assistant --depth alignment --data-kind preference --data-rows 20000 "
    "--budget high --signal base_model_untuned"
)


@pytest.mark.parametrize(
    ("model", "card", "cards"),
    [
        ("Qwen/Qwen3-8B", "RTX 4090", 2),
        ("Qwen/Qwen3-14B", "A100 SXM4 40GB", 4),
        ("meta-llama/Llama-3.1-70B", "RTX 4090", 8),
    ],
)
def test_several_cards_share_every_stage_in_one_way(model, card, cards):
    """A whole model on each card wherever some method fits so; else one model over all of them, and
    the answer says how long each way would take.
    """
    document = answer(*SEVERAL_STAGES, "--model", model, "--gpu", card, "--gpus", str(cards))
    used = {settings["sharding"]["value"] for settings in document["recommendation"]["settings"]}
    assert document["recommendation"]["estimate"]["fits"] == "fits"
    assert used == ({"fsdp"} if "70B" in model else {"ddp"})
    (chosen, *others) = document["recommendation"]["ways"]
    assert (chosen["strategy"], chosen["gpus"], chosen["chosen"]) == (*used, cards, True)
    assert {way["strategy"] for way in others} >= {None}


def test_a_base_is_split_over_gpus_with_a_fast_link():
    """LoRA on 70B fits eight cards only when it is divided: over NVLink that counts as fitting."""
    document = answer(
        *shlex.split(
            "--task qa --data-kind paired --data-rows 5000 --model meta-llama/Llama-3.1-70B "
            "--gpu 'A100 SXM4 80GB' --gpus 8"
        )
    )
    assert document["recommendation"]["composition"] == "sft+lora"
    assert document["situation"]["facts"]["fits_lora"] == "fits"
    assert document["recommendation"]["ways"][0]["strategy"] == "fsdp"


def test_a_base_that_would_be_split_over_a_slow_link_is_quantised_for_that_reason():
    """Cards without peer-to-peer take a day to gather what 4 bit holds on each of them."""
    flags = ("--task", "qa", "--data-kind", "paired", "--data-rows", "5000")
    document = answer(*flags, "--model", "Qwen/Qwen3-32B", "--gpu", "RTX 5090", "--gpus", "4")
    assert document["recommendation"]["composition"] == "sft+qlora"
    assert "evidence/lora-would-be-split" in document["recommendation"]["decided_by"]
    assert document["situation"]["facts"]["fits_lora"] == "split"
    assert document["recommendation"]["ways"][0]["strategy"] == "ddp"


def test_a_choice_by_hand_brings_its_own_warnings():
    """Every weight of 8B is too much for one card, so the model is split; the recommended module is
    not.
    """
    flags = (*SEVERAL_STAGES, "--model", "Qwen/Qwen3-8B", "--gpu", "A100 SXM4 80GB", "--gpus", "8")
    free, chosen = answer(*flags), answer(*flags, "--choose", "sft>dpo+full", "--force")
    assert ["(ddp)" in " ".join(document["warnings"]) for document in (free, chosen)] == [
        True,
        False,
    ]
    assert "(fsdp)" in " ".join(chosen["warnings"])


def test_a_limit_of_time_is_answered_with_what_keeps_it():
    """Rows that take longer than the limit are trained on in part, with the same method."""
    flags = ("--task", "qa", "--data-kind", "paired", "--data-rows", "5000")
    flags += ("--data-tokens", "1500000", "--model", "Qwen/Qwen3-8B", "--gpu", "RTX 4090")
    document = answer(*flags, "--budget", "hours=0.1,usd=5")
    recommendation = document["recommendation"]
    assert recommendation["composition"] == answer(*flags)["recommendation"]["composition"]
    assert recommendation["estimate"]["hours"] <= 0.1
    assert any("of your 5,000 rows" in warning for warning in document["warnings"])


def test_a_stated_number_of_tasks_asks_for_modules():
    """Only a stated n_tasks counts: then each task gets its own module on one base."""
    assert (
        answer("--task", "qa", "--n-tasks", "12", "--gpu", "unknown")["recommendation"][
            "composition"
        ]
        == "sft+adapter@per_task"
    )
    assert answer("--task", "qa", "--gpu", "unknown")["recommendation"]["composition"] == "sft+lora"


def test_a_reward_model_needs_preference_pairs():
    """With paired data alone the guide's pipeline for assistants is ruled out by its own
    requirement.
    """
    document = answer("--task", "chat_assistant", "--data-kind", "paired", "--gpu", "unknown")
    assert document["recommendation"]["composition"] == "sft+lora"
    ppo = next(item for item in document["alternatives"] if "ppo" in item["composition"])
    assert ppo["verdict"] == "forbidden"
    assert ppo["because"][0]["rule"] == "document/rlhf-needs-preference-data"


def test_limits_of_money_and_time_change_the_method():
    """usd and hours are constraints: what breaks them is ruled out with both numbers."""
    flags = shlex.split(
        "--task domain_expertise --data-kind paired --data-rows 200000 "
        "--data-tokens 100000000 --model Qwen/Qwen3-8B --gpu H200"
    )
    free = answer(*flags)
    assert free["recommendation"]["composition"] == "sft+full"
    full_hours = free["recommendation"]["estimate"]["hours"]
    assert full_hours > 1
    bound = answer(*flags, "--budget", f"hours={full_hours * 0.95:.2f}")
    assert bound["recommendation"]["composition"] != "sft+full"
    full = next(item for item in bound["alternatives"] if item["composition"] == "sft+full")
    assert full["because"][0]["unit"] == "h"


def test_nothing_fits_still_answers():
    """A model far too large for the card: exit code 3, the nearest method, what is to blame and
    what would help.
    """
    document = answer(
        *shlex.split("--task qa --gpu 'RTX 3060' --model meta-llama/Llama-3.1-70B"), code=3
    )
    assert document["recommendation"]["composition"] == "smaller_model"
    assert document["nothing_fits"]["nearest"] == "sft+qlora"
    assert [reason["text"].split(":")[0] for reason in document["nothing_fits"]["blame"]] == [
        "the model",
        "the hardware",
    ]
    smaller, card = document["nothing_fits"]["ways_out"]
    assert smaller["command"].startswith("advise run --task qa --gpu 'RTX 3060' --model Qwen/")
    assert "$" in card["text"]
    assert card["command"] == "advise run --task qa --model meta-llama/Llama-3.1-70B"
    for way in (smaller, card):  # what is promised comes true
        change = way["change"]
        again = answer(
            "--task",
            "qa",
            "--gpu",
            change.get("gpu", "RTX 3060"),
            "--model",
            change.get("model", "meta-llama/Llama-3.1-70B"),
        )
        assert again["recommendation"]["composition"] == way["to"]
    assert document["recommendation"]["estimate"]["fits"] == "too_big"
    assert any(flip["effort"] == "money" for flip in document["flips"])


def test_without_hardware_and_model_nothing_is_ruled_out():
    """Fit is unknown, which forbids no method."""
    document = answer("--task", "qa", "--gpu", "unknown")
    assert document["recommendation"]["estimate"]["fits"] == "unknown"
    assert {item["verdict"] for item in document["alternatives"]} == {"ranked_lower"}
    assert "gpu" in document["unknown"]


def test_without_hardware_the_settings_are_those_that_need_least(tmp_path):
    """A card nobody named may be small: one row at a time, recomputed; a card that is named gets
    what fits it.
    """
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        "".join(
            json.dumps(
                {
                    "prompt": f"Question {i}?",
                    "chosen": f"A good answer {i}.",
                    "rejected": f"Bad {i}.",
                }
            )
            + "\n"
            for i in range(600)
        )
    )
    flags = [
        *shlex.split("--task chat_assistant --model Qwen/Qwen3-8B --depth alignment --data"),
        str(path),
    ]
    unknown, large = (answer(*flags, "--gpu", gpu) for gpu in ("unknown", "H200"))
    assert [
        (stage["micro_batch_size"], stage["gradient_checkpointing"])
        for stage in unknown["plan"]["stages"]
    ] == [(1, True)] * len(unknown["plan"]["stages"])
    assert large["plan"]["stages"][0]["micro_batch_size"] > 1
    assert (
        unknown["recommendation"]["estimate"]["peak_gib"]
        < large["recommendation"]["estimate"]["peak_gib"]
    )


def test_choose_takes_another_candidate(tmp_path):
    """--choose needs --force for what is ranked lower, and never takes what cannot run."""
    base = ["--json", "--task", "qa", "--gpu", "RTX 4090", "--model", "Qwen/Qwen3-8B"]
    refused = CliRunner().invoke(advise, [*base, "--choose", "sft+qlora"])
    assert "not recommended" in str(refused.exception)
    assert (
        answer(*base[1:], "--choose", "sft+qlora", "--force")["recommendation"]["composition"]
        == "sft+qlora"
    )
    impossible = CliRunner().invoke(advise, [*base, "--choose", "sft+full", "--force"])
    assert "cannot be taken" in str(impossible.exception)
