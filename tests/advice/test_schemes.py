"""The scheme that is taken, and the way in which several GPUs share a training."""

import re
from functools import cache
from itertools import product

import pytest
from msgspec.structs import replace

from advisor.advice.advise import advise, candidate_of, open_case, with_choice
from advisor.advice.facts import situation_facts
from advisor.advice.planning import hardware_line
from advisor.advice.search.costs import Costs
from advisor.advice.search.strategies import speeds
from advisor.advice.types import NO_CONCESSIONS, Concessions
from advisor.estimate import hardware_machine
from advisor.ground.errors import InputError
from advisor.ground.types import Hardware
from advisor.ground.units import GIB
from advisor.methods.composition import parse_composition
from advisor.methods.optimizers import OPTIMIZERS
from advisor.methods.strategies import refused_by
from advisor.ruleset.facts import load_facts
from advisor.situation.build import situation_of
from advisor.situation.models import model_shape
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


@cache
def costs(model, gpu, gpus, nodes=1, rows=20_000):
    situation = asked(
        task="qa", model=model, gpu=gpu, gpus=gpus, data_kind="paired", data_rows=rows,
        data_tokens=500 * rows, **({"nodes": nodes} if nodes > 1 else {}),
    )  # fmt: skip
    return Costs(RULES, situation, situation_facts(situation))


def ways(composition, *machine, concessions=NO_CONCESSIONS, **more):
    return costs(*machine, **more).ways_of(parse_composition(composition), concessions)


@pytest.mark.parametrize("gpus", [2, 8])
@pytest.mark.parametrize("gpu", ["RTX 4090", "A100 PCIe 80GB", "H100 SXM5 80GB"])
@pytest.mark.parametrize("model", ["Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B", "Qwen/Qwen3-32B"])
def test_no_other_way_that_fits_is_much_faster(model, gpu, gpus):
    """No way that fits is faster by more than speeds are known (estimate/time/step.py: 1.45)."""
    for composition in ("sft+lora", "sft+full", "sft+qlora"):
        chosen, *others = ways(composition, model, gpu, gpus)
        for other in others:
            if other.cost.fits == "fits" and chosen.cost.is_likely:
                assert chosen.pace_s <= 1.45 * other.pace_s, (composition, other.name)


@pytest.mark.parametrize(
    ("composition", "model", "gpu", "gpus", "rows", "chosen"),
    [
        ("sft+lora", "Qwen/Qwen3-32B", "H100 SXM5 80GB", 4, 20_000, "sharded over 4 GPUs"),
        # A whole model stands on each GPU where it fits, and over a slow link whatever fits.
        ("sft+lora", "Qwen/Qwen3-8B", "H100 SXM5 80GB", 8, 20_000, "ddp on 8 GPUs"),
        ("sft+lora", "Qwen/Qwen3-8B", "RTX 5090", 4, 20_000, "ddp on 4 GPUs"),
        ("sft+full", "Qwen/Qwen3-14B", "A100 SXM4 80GB", 8, 20_000, "sharded over 8 GPUs"),
        # A step of two hundred short rows reads so few that two GPUs without peer-to-peer exchange
        # gradients for longer than one of them computes.
        ("sft+full", "Qwen/Qwen3-0.6B", "RTX 4090", 2, 200, "one GPU"),
    ],
)
def test_the_fastest_way_that_fits_is_chosen(composition, model, gpu, gpus, rows, chosen):
    """One GPU where it is as fast, sharding where nothing else surely fits."""
    first, *others = ways(composition, model, gpu, gpus, rows=rows)
    assert first.name == chosen
    if chosen == "one GPU":
        assert first.pace_s <= 1.05 * {way.name: way.pace_s for way in others}["ddp on 2 GPUs"]
    if chosen.startswith("sharded"):
        assert not any(way.cost.fits == "fits" for way in others if way.strategy.name != "fsdp")


def test_the_answer_knows_what_each_way_takes():
    """8B with LoRA: what one GPU and sharding take stands beside what was chosen."""
    chosen, *others = ways("sft+lora", "Qwen/Qwen3-8B", "H100 SXM5 80GB", 8)
    assert {way.name for way in others} == {"sharded over 8 GPUs", "one GPU"}
    assert all(way.pace_s > chosen.pace_s for way in others)
    said = r"ddp on 8 GPUs \d+ min, sharded over 8 GPUs \d+ min, one GPU \d+ min"
    assert re.fullmatch(said, speeds((chosen, *others)))
    # One RTX 4090 surely holds 8B with LoRA; a whole model on each of four may not fit.
    found = ways("sft+lora", "Qwen/Qwen3-8B", "RTX 4090", 4)
    assert re.match(r"one GPU [^,]+, ddp on 4 GPUs \d+ min \(may fit\), ", speeds(found))


def test_sharding_gives_room_for_weights_that_lose_nothing():
    """Where ddp would round bfloat16 weights at random to fit, a fast link divides float32 ones."""
    stages, _ = costs("Qwen/Qwen3-8B", "A100 SXM4 80GB", 4).cost_of(parse_composition("sft+full"))
    settings = {key: one.value for key, one in stages[0].reasons.items()}
    assert settings["sharding"] == "fsdp"
    assert (settings["weights_dtype"], settings["optimizer"]) == ("float32", "adamw_fused")


def test_offloading_is_for_what_fits_in_no_other_way():
    """Nothing is offloaded unless nothing else fits; then the memory of the computer counts."""
    fits = costs("Qwen/Qwen3-8B", "RTX 4090", 4)
    full = parse_composition("sft+full")
    assert not fits.cost_of(full)[1].is_likely
    stages, cost = fits.cost_of(full, Concessions(offload=True))
    assert stages[0].reasons["offload"].value is True
    assert cost.is_likely
    # float32 weights, gradients and two moments: 16 bytes a weight.
    assert cost.host_bytes == pytest.approx(16 * model_shape("Qwen/Qwen3-8B")[0].params, rel=0.02)
    assert fits.situation.hardware.host_memory_bytes > cost.host_bytes


@pytest.mark.parametrize("concessions", [NO_CONCESSIONS, Concessions(offload=True)])
@pytest.mark.parametrize(
    ("chain", "model", "gpu"),
    [
        *((chain, "Qwen/Qwen3-32B", gpu)
          for chain in ("sft>rm>ppo+lora", "ppo+qlora", "sft>rm>ppo+full")
          for gpu in ("RTX 4090", "A100 SXM4 80GB")),
        ("encoder:sft+full", "google/flan-t5-large", "RTX 4060"),  # a plan could not be started
    ],
)  # fmt: skip
def test_some_trainings_are_never_sharded(chain, model, gpu, concessions):
    """PPO, a chain that holds it, and an encoder with a decoder, whatever fits."""
    found = ways(chain, model, gpu, 8, concessions=concessions)
    assert all(way.strategy.name != "fsdp" for way in found)


def test_several_machines_share_a_network():
    """Two machines of eight H100 share 400 Gbit/s; those that cannot share GPUs are refused."""
    one, two = (costs("Qwen/Qwen3-8B", "H100 SXM5 80GB", 16, nodes).situation for nodes in (1, 2))
    alone, shared = (hardware_machine(each.hardware).link_s(1e9, 16) ** -1 for each in (one, two))
    assert shared == pytest.approx(0.6 * 50)
    assert alone > 5 * shared
    assert hardware_line(two) == "16 x H100 SXM5 80GB in 2 machines (stated)"
    with pytest.raises(InputError, match="2 machines cannot share 15 GPUs"):
        costs("Qwen/Qwen3-8B", "RTX 4090", 15, 2)
    # Sharding over a network is for what one machine does not hold.
    chosen, *others = ways("sft+full", "Qwen/Qwen3-14B", "H100 SXM5 80GB", 16, 2)
    assert (chosen.machines, chosen.strategy.name) == (1, "fsdp")
    assert any(way.machines == 2 for way in others)
    chosen, *_ = ways("sft+full", "meta-llama/Llama-3.1-70B", "H100 SXM5 80GB", 32, 4)
    assert (chosen.machines, chosen.gpus) == (4, 32)


def test_each_optimizer_says_whether_it_can_be_sharded():
    """Refused to plans and trainers by the same entry."""
    refused = {name for name in OPTIMIZERS if refused_by("fsdp", {"optimizer": name})}
    assert not refused & {"adamw", "adamw_fused", "sgd"}
    assert {name for name in OPTIMIZERS if name.startswith("paged")} <= refused
    assert not refused_by("ddp", {"optimizer": "paged_adamw_8bit", "objective": "ppo"})
    assert refused_by("fsdp", {"head": "seq2seq"})
