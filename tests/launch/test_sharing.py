"""Several GPUs for one training: what is told before minutes are lost."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from advisor.ground.errors import AdviseError, InputError
from advisor.ground.types import Gpu, GpuSpec
from advisor.launch.checks import run_checks
from advisor.launch.checks.device import uneven_gpus_warning
from advisor.launch.expected import StageEstimator
from advisor.plan.checks import launch_faults
from advisor.plan.entries import entries
from advisor.plan.read import read_plan
from advisor.situation.of_plan import plan_run, plan_shape

from .conftest import MACHINE, PLAN, call_of

GIB = 2**30


def gpu(name="RTX 4090", gib=24.0):
    spec = GpuSpec(
        id=name, name=name, vendor="nvidia", memory_bytes=round(gib * GIB),
        compute_capability=(8, 9), bf16=True, bf16_flops=165e12, achieved_flops=None,
        bandwidth_bytes_per_s=1e12, power_w=450, price_usd_per_h=None,
    )  # fmt: skip
    return Gpu(
        name=name, memory_total_bytes=round(gib * GIB), memory_free_bytes=round(gib * GIB),
        compute_capability=(8, 9), bf16=True, spec=spec,
    )  # fmt: skip


def machine(*gpus):
    return replace(MACHINE, kind="cuda", origin="probed", gpus=gpus)


@pytest.fixture
def planned(shop):
    """`planned(launch)`: the plan with that line of launch, and its entries."""

    def build(launch, plan=PLAN):
        (shop / "plan.yaml").write_text(f"{plan}launch: {launch}\n")
        found = read_plan("plan.yaml")
        return found, entries(found)

    return build


def test_a_plan_for_more_gpus_says_what_fewer_take(planned, shop, monkeypatch):
    """How many are too few, and the line that runs it so, which reads as many rows a step."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    planned("{device: cuda, processes: 2, strategy: fsdp}")
    with pytest.raises(AdviseError) as refused:
        run_checks(call_of(hardware=machine(gpu())))
    (fault,) = [one for one in refused.value.faults if one.where == "launch.processes"]
    assert "wants 2 processes, one per GPU, and 1 can be used here: 1 too few" in fault.what
    settings = "--set launch.processes=1 --set launch.strategy=null --set stages.sft.grad_accum=2"
    assert settings in fault.hint


def test_deepspeed_names_the_setting_to_use(planned):
    """What is estimated and not started is refused with what divides as much."""
    plan, _ = planned("{device: cuda, processes: 2, strategy: zero3}")
    (fault,) = launch_faults(plan)
    assert "launch.strategy is zero3, which is estimated and not started" in fault.what
    assert "--set launch.strategy=fsdp" in fault.hint
    assert "launch.offload=true" in fault.hint


@pytest.mark.parametrize(
    ("launch", "stage", "words", "way_out"),
    [
        ("processes: 2, strategy: fsdp", {"objective: sft": "objective: ppo"}, "objective ppo",
         "grpo"),
        ("processes: 2, strategy: fsdp", {"rank: 8": "quantization: int8\n    rank: 8"},
         "quantization int8", "nf4"),
        ("processes: 2, strategy: fsdp", {"rank: 8": "optimizer: paged_adamw_8bit\n    rank: 8"},
         "optimizer paged_adamw_8bit", "adamw_fused"),
        ("processes: 2, strategy: ddp, offload: true", {}, "`offload` has an effect with", "fsdp"),
        ("strategy: fsdp", {}, "`strategy` has no effect", "processes"),
        ("processes: 2, device: mps", {}, "an Apple GPU trains by itself", "1"),
    ],
)  # fmt: skip
def test_what_cannot_be_shared_is_refused_at_its_place(planned, launch, stage, words, way_out):
    """Each pair that no run can do has one located fault with the way out; the same pairs are
    refused to advice (rules/strategies.yaml).
    """
    text = PLAN
    for old, new in stage.items():
        text = text.replace(old, new)
    with pytest.raises(InputError) as refused:
        planned(f"{{{'' if 'device' in launch else 'device: cuda, '}{launch}}}", text)
    (fault,) = [one for one in refused.value.faults if words in one.what]
    assert fault.where.startswith("plan.yaml:")
    assert way_out in f"{fault.allowed} {fault.hint}"


def test_gpus_that_differ_are_told_with_the_one_that_binds():
    """A warning names them, and the memory that decides what fits."""
    plan = read_plan_of("processes: 2, strategy: ddp")
    said = uneven_gpus_warning(plan, (gpu("RTX 4090", 24), gpu("RTX 3060", 12)))
    assert "RTX 4090, RTX 3060" in said
    assert "the smallest with 12.0 GiB" in said
    assert uneven_gpus_warning(plan, (gpu(), gpu(gib=23.9))) == ""
    assert uneven_gpus_warning(read_plan_of(""), (gpu("RTX 4090"), gpu("RTX 3060", 12))) == ""


def read_plan_of(launch):
    """A plan with these keys of launch, without a file."""
    from advisor.plan.model import Launch, Plan, Stage

    stage = Stage(name="sft", objective="sft", update="lora", learning_rate=1e-4)
    keys = dict(part.split(": ") for part in launch.split(", ") if part)
    if "processes" in keys:
        keys["processes"] = int(keys["processes"])
    return Plan(model="org/it", stages=(stage,), launch=Launch(device="cuda", **keys))


def test_fewer_rows_than_processes_are_refused(planned, shop, monkeypatch):
    """A row for each process is the least there can be."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    planned("{device: cuda, processes: 2000, strategy: ddp}")
    with pytest.raises(InputError, match="cannot be shared by 2000 processes"):
        run_checks(call_of(hardware=machine(gpu())))


def test_what_saves_memory_is_something_that_can_be_started(planned, shop):
    """No optimizer that a sharded stage refuses is offered where memory runs out."""
    plan, todo = planned("{device: cuda, processes: 2, strategy: fsdp}")
    shape = plan_shape(plan, shop / "plan.yaml")
    estimator = StageEstimator(plan=plan, shape=shape, hardware=machine(gpu(), gpu()))
    peak_of = estimator.peak_bytes
    assert peak_of(todo[0].stage)
    assert peak_of(replace(todo[0].stage, optimizer="adamw_8bit")) is None
    ddp, _ = planned("{device: cuda, processes: 2, strategy: ddp}")
    peak_of = replace(estimator, plan=ddp).peak_bytes
    assert peak_of(replace(todo[0].stage, optimizer="adamw_8bit"))


def test_a_plan_is_estimated_as_it_is_started(planned):
    """Strategy, processes of all machines and offloading reach the estimate."""
    plan, todo = planned("{device: cuda, processes: 4, nodes: 2, strategy: fsdp, offload: true}")
    hardware = machine(gpu(), gpu())
    device = plan_run(
        plan, todo[0].stage, plan_shape(plan, Path("shop") / "plan.yaml"), hardware
    ).device
    assert (device.gpus, device.sharding, device.offloads) == (8, "fsdp", True)
