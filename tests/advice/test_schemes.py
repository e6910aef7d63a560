"""Which weights move, and whether the base is quantised (that more never lowers it: sanity.py)."""

import re
from itertools import product

import pytest
from msgspec.structs import replace

from advisor.advice.advise import advise, candidate_of, open_case, with_choice
from advisor.ground.types import Hardware
from advisor.ground.units import GIB
from advisor.methods.composition import parse_composition
from advisor.ruleset.facts import load_facts
from advisor.situation.build import situation_of
from tests.advice.situations import GUIDE, RULES, advised, asked, stated


def decided(**known):
    return open_case(asked(**known), RULES).decision


@pytest.mark.parametrize("card", ["RTX 4090", "RTX 3090", "A100 80GB"])
def test_a_newcomer_with_little_money_gets_lora_where_it_fits(card):
    """The same with the model named and not named, and no sentence says that it is not known."""
    known = {"task": "customer_service", "data_kind": "paired", "data_rows": 300, "budget": "low"}
    found = advised(**known, gpu=card)
    assert (str(found.recommendation.composition), found.facts["fits_lora"]) == ("sft+lora", "fits")
    every = (found.recommendation, *found.alternatives)
    assert not any("not known" in reason.text for one in every for reason in one.because)


@pytest.mark.parametrize("origin", ["probed", "stated"])
def test_a_known_gpu_alone_keeps_the_guides_answer(origin):
    """With no word about the data, what fits a suggestion is unknown, and the reasons say so."""
    named = {"task": "qa", "budget": "low", "gpu": "RTX 4090"}
    probed = replace(asked(**named).hardware, origin="probed")
    if origin == "probed":
        del named["gpu"]
    found = advise(situation_of(stated(**named), probed=probed), RULES, GUIDE)
    assert str(found.recommendation.composition) == "sft+qlora" == str(found.guide.composition)
    assert found.facts["fits_lora"] == "unknown"
    lora = next(one for one in found.alternatives if str(one.composition) == "sft+lora")
    assert "did not say what your data are" in lora.because[0].text


def test_several_gpus_are_never_worse_than_one_of_them():
    """Where a copy on each leaves too little room, one GPU alone trains, in one process."""
    known = {
        "task": "qa", "data_kind": "paired", "data_rows": 3000, "model": "Qwen/Qwen3-8B",
        "gpu": "RTX 4090",
    }  # fmt: skip
    order, used = {"full": 3, "lora": 2, "qlora": 1}, set()  # by what they can learn
    for tenths in range(190, 250, 5):
        one, two = (
            open_case(asked(**known, gpu_memory_gib=tenths / 10, gpus=count), RULES)
            for count in (1, 2)
        )
        alone, both = (order[case.decision.composition.scheme] for case in (one, two))
        assert both >= alone
        stages = two.cost_of(two.decision.composition)[0]
        used.add("ddp" if "sharding" in stages[0].reasons else "alone")
    assert used == {"ddp", "alone"}


@pytest.mark.parametrize(
    "kind", [kind for kind in load_facts()["data_kind"].values if kind != "none"]
)
@pytest.mark.parametrize("task", ["multi_department", "chat_assistant", "reasoning", "qa"])
def test_each_tenant_gets_a_lora(task, kind):
    """Whatever the model learns from, as long as a model that writes is trained."""
    found = decided(task=task, data_kind=kind, data_rows=20_000, n_tasks=20, gpu="unknown")
    assert not found.trains or str(found.composition).endswith("+lora@per_task")


TEAMS = {"task": "multi_department", "n_tasks": 9, "gpu": "unknown"}
TEXT = {"task": "domain_expertise", "data_kind": "raw_text", "gpu": "unknown"}
SMALL = {"task": "generation", "data_kind": "paired", "model": "Qwen/Qwen3-0.6B", "gpu": "H200"}


@pytest.mark.parametrize(
    ("known", "composition"),
    [
        # The guide's scenario with a number of tasks; anything else makes it a LoRA each.
        (TEAMS, "sft+adapter@per_task"),
        ({**TEAMS, "data_kind": "paired"}, "sft+lora@per_task"),
        ({**TEAMS, "budget": "low"}, "sft+lora@per_task"),
        ({**TEAMS, "model": "Qwen/Qwen3-8B"}, "sft+lora@per_task"),
        # Text trains every weight with a billion tokens or a high budget; alone the guide decides.
        (TEXT, "cpt>sft+lora"),
        ({**TEXT, "data_tokens": 600_000_000, "depth": "domain_knowledge"}, "cpt>sft+lora"),
        ({**TEXT, "data_tokens": 2_000_000_000}, "cpt>sft+full"),
        ({**TEXT, "budget": "high"}, "cpt>sft+full"),
        ({"task": "domain_expertise", "gpu": "unknown"}, "cpt>sft+full"),
        # A small model is trained whole from 2,000 rows on, unless something speaks for a module.
        ({**SMALL, "data_rows": 2000}, "sft+full"),
        ({**SMALL, "data_rows": 1999}, "sft+lora"),
        ({**SMALL, "data_rows": 5000, "priority": "retain_general_ability"}, "sft+lora"),
        ({**SMALL, "data_rows": 5000, "signals": ("host_memory_limited",)}, "sft+lora"),
        ({**SMALL, "data_rows": 5000, "n_tasks": 3}, "sft+lora@per_task"),
    ],
)
def test_what_is_stated_decides_what_is_trained(known, composition):
    """Several rules together, beside the scenarios of each."""
    assert str(decided(**known).composition) == composition


def is_last_resort(found):
    return found.composition.quantization is None or found.facts["fits_lora"] == "too_big"


@pytest.mark.parametrize("gib", [3, 4, 5, 6, 8, 12, 24])
@pytest.mark.parametrize("model", ["Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B"])
def test_a_small_base_is_quantised_only_where_it_does_not_fit_otherwise(model, gib):
    """Whatever there is of money and rows."""
    known = {"task": "code", "data_kind": "paired", "model": model, "gpu": "RTX 4090"}
    for budget, rows in product(load_facts()["budget"].values, (300, 5000, 200_000)):
        found = decided(**known, data_rows=rows, budget=budget, gpu_memory_gib=gib)
        assert is_last_resort(found), (budget, rows)


@pytest.mark.parametrize("gib", [4, 8, 16, 32, 64])
@pytest.mark.parametrize("model", ["Qwen/Qwen3-1.7B", "Qwen/Qwen3-4B"])
def test_four_bit_is_the_last_resort_on_a_processor(model, gib):
    """LoRA wherever it fits at all, however little money there is."""
    named = {"task": "qa", "data_kind": "paired", "data_rows": 900, "budget": "low"}
    machine = Hardware(kind="cpu", origin="probed", cpu_cores=4, ram_total_bytes=gib * GIB)
    situation = situation_of(stated(**named, model=model), probed=machine)
    assert is_last_resort(open_case(situation, RULES).decision)


@pytest.mark.parametrize(
    ("stated", "composition"),
    [
        # What generates holds weights of its own: 8B in 16 bit twice is more than 24 GB.
        ({"data_kind": "prompts_with_verifier", "model": "Qwen/Qwen3-8B"}, "grpo+qlora"),
        ({"data_kind": "prompts_with_verifier", "model": "Qwen/Qwen3-1.7B"}, "grpo+lora"),
        # Experts stay in 16 bit, so that 4 bit saves 1.5 GiB of 80: not worth it.
        ({"data_kind": "paired", "model": "Qwen3.5-35B-A3B", "gpu": "H100 80GB"}, "sft+lora"),
    ],
)
def test_four_bit_is_for_room_that_it_makes(stated, composition):
    """RL on one card counts what generates answers; a tenth of the card is the least to save."""
    known = {"task": "reasoning", "data_rows": 5000, "gpu": "RTX 4090", **stated}
    assert str(advised(**known).recommendation.composition) == composition


def test_offloading_never_fits_while_the_computers_memory_is_unknown():
    """Whether it fits is not known then; seconds a step stand beside it."""
    advice = advised(task="qa", model="Qwen/Qwen3-8B", gpu="RTX 4090", gpus=4)
    ruleset, parts = RULES, parse_composition("sft+full")
    found = candidate_of(advice, ruleset, parts, offload=True)
    assert found.stages[0].offloads
    assert found.estimate.fits == "unknown"
    said = " ".join(with_choice(advice, found, ruleset).warnings)
    assert re.search(r"lie in the computer's own memory.* s a step\)", said)


def test_a_small_add_on_is_not_explained_by_reasons_for_every_weight():
    """The rules ask for all of a small model; where that does not fit, they are no reason."""
    known = {"task": "qa", "model": "Qwen/Qwen3-0.6B", "data_kind": "paired", "data_rows": 2000}
    small, large = (advised(**known, gpu=gpu) for gpu in ("GTX 1050", "RTX 4090"))
    named = [[one.rule for one in found.recommendation.because] for found in (small, large)]
    assert (
        [str(one.recommendation.composition) for one in (small, large)],
        ["evidence/every-weight" in one for one in named],
    ) == (["sft+qlora", "sft+full"], [False, True])
