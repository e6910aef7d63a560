"""How several GPUs share a training: chosen by the estimates of each way."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest

from advisor.advice.facts import situation_facts
from advisor.advice.planning import hardware_line
from advisor.advice.search.costs import Costs
from advisor.advice.search.strategies import speeds
from advisor.advice.types import NO_CONCESSIONS, Concessions
from advisor.estimate import hardware_machine
from advisor.ground.errors import InputError
from advisor.ground.types import Answer, AnswerSet
from advisor.methods.composition import parse_composition
from advisor.methods.optimizers import OPTIMIZERS
from advisor.methods.strategies import refused_by
from advisor.ruleset.load import load_rules
from advisor.situation.build import situation_of
from advisor.situation.models import model_shape
from tests.estimate.specs import RunSpec, memory_estimate

RULES = load_rules()
BAND = 1.45  # by which nine in ten steps took longer than estimated (advisor/estimate/time/step.py)
ROW_TOKENS = 500


@cache
def costs(model: str, gpu: str, gpus: int, nodes: int = 1, rows: int = 20_000) -> Costs:
    known: dict[str, Any] = {"task": "qa", "model": model, "gpu": gpu, "gpus": gpus}
    known |= {"data_kind": "paired", "data_rows": rows, "data_tokens": ROW_TOKENS * rows}
    known |= {"nodes": nodes} if nodes > 1 else {}
    answers = AnswerSet(
        known={name: Answer(value=value, origin="flag") for name, value in known.items()}
    )
    situation = situation_of(answers)
    return Costs(RULES, situation, situation_facts(situation))


def ways(composition: str, model: str, gpu: str, gpus: int, nodes: int = 1, rows: int = 20_000):
    found = costs(model, gpu, gpus, nodes, rows)
    return found.ways_of(parse_composition(composition))


@pytest.mark.parametrize("gpus", [2, 8])
@pytest.mark.parametrize("gpu", ["RTX 4090", "A100 PCIe 80GB", "H100 SXM5 80GB"])
@pytest.mark.parametrize("model", ["Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B", "Qwen/Qwen3-32B"])
def test_no_other_way_that_fits_is_much_faster(model, gpu, gpus):
    """Whatever is chosen, a way that fits as well is faster by no more than speeds are known."""
    for composition in ("sft+lora", "sft+full", "sft+qlora"):
        chosen, *others = ways(composition, model, gpu, gpus)
        for other in others:
            if other.cost.fits == "fits" and chosen.cost.is_likely:
                assert chosen.pace_s <= BAND * other.pace_s, (composition, other.name)


def test_a_whole_model_stands_on_each_gpu_where_it_fits():
    """8B with LoRA: eight GPUs are used with ddp; the answer knows what one and sharding take."""
    chosen, *others = ways("sft+lora", "Qwen/Qwen3-8B", "H100 SXM5 80GB", 8)
    assert chosen.name == "ddp on 8 GPUs"
    assert {way.name for way in others} == {"sharded over 8 GPUs", "one GPU"}
    assert all(way.pace_s > chosen.pace_s for way in others)
    said = r"ddp on 8 GPUs \d+ min, sharded over 8 GPUs \d+ min, one GPU \d+ min"
    assert re.fullmatch(said, speeds((chosen, *others)))


def test_what_fits_in_no_other_way_is_sharded():
    """All weights of 8B fit no RTX 4090, and eight of them together."""
    chosen, *others = ways("sft+full", "Qwen/Qwen3-14B", "A100 SXM4 80GB", 8)
    assert chosen.name == "sharded over 8 GPUs"
    assert not any(way.cost.fits == "fits" for way in others if way.strategy.name != "fsdp")


def test_sharding_gives_room_for_weights_that_lose_nothing():
    """Where ddp would round bfloat16 weights at random to fit, a fast link divides float32 ones."""
    stages, _ = costs("Qwen/Qwen3-8B", "A100 SXM4 80GB", 4).cost_of(parse_composition("sft+full"))
    settings = {key: one.value for key, one in stages[0].reasons.items()}
    assert settings["sharding"] == "fsdp"
    assert (settings["weights_dtype"], settings["optimizer"]) == ("float32", "adamw_fused")


def test_over_a_slow_link_only_what_fits_in_no_other_way_is_sharded():
    """Without peer-to-peer no estimate of a sharded run is asked for where ddp fits."""
    chosen, *_ = ways("sft+lora", "Qwen/Qwen3-8B", "RTX 4090", 4)
    assert chosen.name == "ddp on 4 GPUs"


def test_offloading_is_for_what_fits_in_no_other_way():
    """Nothing is offloaded unless nothing else fits; then the memory of the computer counts."""
    fits = costs("Qwen/Qwen3-8B", "RTX 4090", 4)
    full = parse_composition("sft+full")
    assert not fits.cost_of(full)[1].is_likely
    stages, cost = fits.cost_of(full, Concessions(offload=True))
    assert stages[0].reasons["offload"].value is True
    assert cost.is_likely
    # float32 weights, gradients and two moments: 16 bytes a weight.
    params = model_shape("Qwen/Qwen3-8B")[0].params
    assert cost.host_bytes == pytest.approx(16 * params, rel=0.02)
    assert fits.situation.hardware.host_memory_bytes > cost.host_bytes


def test_one_gpu_is_taken_where_it_is_as_fast():
    """Of two hundred short rows a step reads so few that two GPUs without peer-to-peer exchange
    gradients for longer than one of them computes.
    """
    found = ways("sft+full", "Qwen/Qwen3-0.6B", "RTX 4090", 2, rows=200)
    paces = {way.name: way.pace_s for way in found}
    assert found[0].name == "one GPU"
    assert paces["one GPU"] <= 1.05 * paces["ddp on 2 GPUs"]


@pytest.mark.parametrize("chain", ["sft>rm>ppo+lora", "ppo+qlora", "sft>rm>ppo+full"])
def test_ppo_is_never_sharded(chain):
    """Nor is a chain that holds it, whatever fits: all stages share the GPUs in one way."""
    for gpu in ("RTX 4090", "A100 SXM4 80GB"):
        found = costs("Qwen/Qwen3-32B", gpu, 8)
        for concessions in (NO_CONCESSIONS, Concessions(offload=True)):
            assert all(
                way.strategy.name != "fsdp"
                for way in found.ways_of(parse_composition(chain), concessions)
            )


@pytest.mark.parametrize(("strategy", "offload"), [("ddp", False), ("fsdp", False), ("fsdp", True)])
@pytest.mark.parametrize("update", ["full", "lora"])
def test_more_gpus_never_need_more_memory_on_each(update, strategy, offload):
    """With the same rows on each GPU."""
    shape = model_shape("Qwen/Qwen3-8B")[0]
    needs = []
    for gpus in (2, 4, 8, 16, 64):
        spec = RunSpec(
            update=update, gpus=gpus, sharding=strategy, offload_weights=offload,
            weights_dtype="float32" if update == "full" else "bfloat16", precision="mixed",
            micro_batch_size=2, seq_len=2048, grad_accum=2, counter="nvidia-smi",
        )  # fmt: skip
        needs.append(memory_estimate(spec, shape).need_bytes)
    assert needs == sorted(needs, reverse=True)


def test_a_4_bit_base_is_whole_on_each_gpu_while_it_is_loaded():
    """It is quantised there before it is divided, so that sharding needs room for all of it."""
    shape = model_shape("meta-llama/Llama-3.1-70B")[0]
    spec = RunSpec(quantization="nf4", gpus=8, sharding="fsdp", counter="nvidia-smi")
    found = memory_estimate(spec, shape)
    loading = next(moment for moment in found.moments if moment.name == "loading")
    base = sum(term.size_bytes for term in loading.terms if "weights" in term.name)
    assert found.need_bytes >= base > 0.5 * shape.params


def test_several_machines_share_a_network():
    """Two machines of eight H100 reach each other as fast as a network of 400 Gbit/s lets them."""
    one, two = (costs("Qwen/Qwen3-8B", "H100 SXM5 80GB", 16, nodes) for nodes in (1, 2))
    speeds = [
        hardware_machine(each.situation.hardware).link_s(1e9, 16) ** -1 for each in (one, two)
    ]
    assert speeds[1] == pytest.approx(0.6 * 50)
    assert speeds[0] > 5 * speeds[1]
    assert hardware_line(two.situation) == "16 x H100 SXM5 80GB in 2 machines (stated)"


def test_one_of_several_machines_is_enough_where_it_is_as_fast():
    """Sharding over a network is for what one machine does not hold."""
    chosen, *others = ways("sft+full", "Qwen/Qwen3-14B", "H100 SXM5 80GB", 16, 2)
    assert (chosen.machines, chosen.strategy.name) == (1, "fsdp")
    assert any(way.machines == 2 for way in others)
    chosen, *_ = ways("sft+full", "meta-llama/Llama-3.1-70B", "H100 SXM5 80GB", 32, 4)
    assert (chosen.machines, chosen.gpus) == (4, 32)


def test_machines_that_cannot_share_the_gpus_are_refused():
    """Each machine holds as many."""
    with pytest.raises(InputError, match="2 machines cannot share 15 GPUs"):
        costs("Qwen/Qwen3-8B", "RTX 4090", 15, 2)


def test_each_optimizer_says_whether_it_can_be_sharded():
    """Refused to plans and trainers by the same entry."""
    refused = {name for name in OPTIMIZERS if refused_by("fsdp", {"optimizer": name})}
    assert not refused & {"adamw", "adamw_fused", "sgd"}
    assert {name for name in OPTIMIZERS if name.startswith("paged")} <= refused
    assert not refused_by("ddp", {"optimizer": "paged_adamw_8bit", "objective": "ppo"})


def test_an_encoder_with_a_decoder_is_never_sharded():
    """Its plan could not be started; a decoder of that size is."""
    many = ways("encoder:sft+full", "google/flan-t5-large", "RTX 4060", 8)
    assert all(way.strategy.name != "fsdp" for way in many)
    assert refused_by("fsdp", {"head": "seq2seq"})
