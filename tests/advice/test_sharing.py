"""How several GPUs share a training: chosen by the estimates of each way."""

import re
from functools import cache

import pytest

from advisor.advice.facts import situation_facts
from advisor.advice.planning import hardware_line
from advisor.advice.search.costs import Costs
from advisor.advice.search.strategies import speeds
from advisor.advice.types import NO_CONCESSIONS, Concessions
from advisor.estimate import hardware_machine
from advisor.ground.errors import InputError
from advisor.methods.composition import parse_composition
from advisor.methods.optimizers import OPTIMIZERS
from advisor.methods.strategies import refused_by
from advisor.situation.models import model_shape
from tests.advice.situations import RULES, asked


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
