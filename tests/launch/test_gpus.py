"""Which GPUs a run takes, whether they have room, and the vLLM server of a stage."""

import json
import os
from contextlib import nullcontext

import pytest
from msgspec.structs import replace

from advisor.ground.errors import AdviseError, InputError, MachineNotReady
from advisor.ground.types import GpuProcess, as_free_now
from advisor.launch.call import ChosenGpus, choose_gpus
from advisor.launch.checks import memory, run_checks
from advisor.launch.checks.device import uneven_gpus_warning
from advisor.launch.expected import StageEstimator
from advisor.launch.trainer_process import TrainerStarter
from advisor.methods import kernels
from advisor.plan.entries import entries
from advisor.plan.read import read_plan
from advisor.probe import software
from advisor.record.stage import Expected
from advisor.situation.of_plan import plan_run, plan_shape
from tests.launch.conftest import FULL, GIB, PLAN, call_of, gpu, machine, refused, run

BUSY = GpuProcess(pid=4242, name="python", memory_bytes=18 * GIB)


@pytest.fixture
def planned(shop):
    """`planned(processes, device)`: the plan and its entries; `launch` is the whole line."""

    def build(processes=1, device="cuda", more="", *, launch="", plan=PLAN):
        several = f", processes: {processes}, strategy: ddp" if processes > 1 else ""
        launch = launch or f"device: {device}{several}"
        (shop / "plan.yaml").write_text(f"{plan}{more}launch: {{{launch}}}\n")
        found = read_plan("plan.yaml")
        return found, entries(found)

    return build


OLD = gpu(0, 31, total=32, bf16=False, compute_capability=(7, 0), name="V100")
BY_NUMBER = (gpu(0, 3, uuid=False), gpu(1, 20, uuid=False))
FOUR = (gpu(0, 3), gpu(1, 20), gpu(2, 23.5), gpu(3, 1))


@pytest.mark.parametrize(
    ("gpus", "keys", "own"),
    [
        (FOUR, {}, ""),
        (FOUR, {"processes": 2}, ""),
        ((gpu(0, 3),), {}, ""),
        ((gpu(0, 23), gpu(1, 23)), {}, ""),
        ((gpu(0, None), gpu(1, None)), {}, ""),
        # An old GPU without bfloat16 is no choice for a bfloat16 plan, however free it is.
        ((OLD, gpu(1, 10)), {"more": "    weights_dtype: bfloat16\n"}, ""),
        # Numbers count among the GPUs that the user's own list shows, so its words are kept.
        *((BY_NUMBER, {}, own) for own in ("", "5,3", "MIG-a,MIG-b")),
    ],
)
def test_the_gpus_with_most_free_memory_are_taken(planned, gpus, keys, own, approved):
    """A busy GPU is left to its program if another one is free, and the run says which it took."""
    environ = {"CUDA_VISIBLE_DEVICES": own} if own else {}
    found = choose_gpus(*planned(**keys), machine(*gpus), environ)
    approved([found.environment, found.server, found.why])


def test_rocm_gpus_are_taken_by_their_number(planned, monkeypatch):
    """One of eight AMD GPUs is visible to the trainer, whatever CUDA_VISIBLE_DEVICES said."""
    here = machine(*(gpu(n, 100 + n, total=192) for n in range(8)), kind="rocm")
    found = choose_gpus(*planned(device="rocm"), here, {})
    assert found.environment == {"HIP_VISIBLE_DEVICES": "7", "CUDA_VISIBLE_DEVICES": None}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")
    env = starter(found.environment, device="rocm")._environment()
    assert env["HIP_VISIBLE_DEVICES"] == "7"
    assert "CUDA_VISIBLE_DEVICES" not in env


def starter(gpus, *, device="cuda"):
    call = call_of(set_values=[f"launch.device={device}"])
    call.__dict__["gpus"] = ChosenGpus(environment=gpus)
    return TrainerStarter(call=call, lock_fd=0)


def test_cuda_runs_get_memory_segments_that_grow(shop, monkeypatch):
    """A setting of the user's own stays, under today's name and the older one."""
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    assert starter({})._environment()["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "own")
            env = starter({})._environment()
        assert {env.get("PYTORCH_ALLOC_CONF"), env.get("PYTORCH_CUDA_ALLOC_CONF")} <= {None, "own"}
    cpu = starter({}, device="cpu")._environment()
    assert (cpu["CUDA_VISIBLE_DEVICES"], cpu.get("PYTORCH_ALLOC_CONF")) == ("", None)


def test_a_trainer_is_told_in_one_word_that_nothing_is_learned(shop, monkeypatch):
    """However a person has said so; a file of their own stays as it is."""
    for said, told in (("OFF", "off"), ("no", "off"), ("own.jsonl", "own.jsonl")):
        monkeypatch.setenv("ADVISE_RUNS", said)
        assert starter({}, device="cpu")._environment()["ADVISE_RUNS"] == told


def preflight(planned, hardware, **keys):
    planned(**keys)
    return run_checks(call_of(hardware=hardware))


def told(planned, hardware, *, kind=MachineNotReady, **keys):
    """The text of what is refused of the plan on this machine."""
    with pytest.raises(kind) as caught:
        preflight(planned, hardware, **keys)
    return caught.value.text()


@pytest.mark.parametrize(("plan", "dtype"), [(PLAN, "float16"), (FULL, "float32")])
def test_a_gpu_too_old_for_bfloat16_is_refused_with_what_to_write(planned, plan, dtype):
    """Before anything starts: the GPU, its compute capability, and the values that it can run."""
    old = gpu(0, 15, total=16, bf16=False, compute_capability=(7, 5), name="Tesla T4")
    planned(more="    weights_dtype: bfloat16\n", plan=plan)
    said = refused(hardware=machine(old))
    assert "stage sft: weights_dtype is bfloat16, and Tesla T4 (compute capability 7.5" in said
    assert f"--set stages.sft.weights_dtype={dtype} --set stages.sft.precision=mixed" in said


@pytest.mark.parametrize(
    ("cuda", "driver", "words"),
    [
        ("13.0", "12.4", "needs a newer NVIDIA driver: 550"),
        # Not replaced by the CPU for which this torch was built.
        (None, "13.0", "cannot use it"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_refused(planned, monkeypatch, cuda, driver, words):
    """The GPU, the driver's CUDA and what to install, before anything starts."""
    build = software.TorchBuild(version="2.11.0", cuda=cuda, hip=None)
    monkeypatch.setattr(software, "torch_build", lambda: build)
    versions = {"cuda_version": driver, "driver_version": "550.90"}
    text = told(planned, machine(gpu(0, 20), origin="probed", **versions))
    assert [one for one in (words, "pip install") if one not in text] == []


@pytest.fixture
def installed(monkeypatch):
    """The packages and programs that this machine is said to have: a set to change."""
    there = set()
    monkeypatch.setattr(kernels, "is_installed", there.__contains__)
    monkeypatch.setattr(kernels.shutil, "which", lambda name: name if name in there else None)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    return there


@pytest.mark.train
def test_attention_without_its_package_is_refused(planned, installed, monkeypatch):
    """flash_attention_2 needs a package that has it; `auto`, which a rule may set, needs none."""
    preflight(planned, machine(gpu(0, 20)), more="    attention: auto\n    kernels: auto\n")
    more = "    attention: flash_attention_2\n    weights_dtype: bfloat16\n"
    text = told(planned, machine(gpu(0, 20)), more=more)
    assert "needs the package flash-attn or kernels" in text
    assert "pip install 'kernels>=0.18" in text
    installed.add("kernels")
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.17.2")
    found = "kernels 0.17.2 is installed, and transformers tak"
    assert found in told(planned, machine(gpu(0, 20)), more=more)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.18.3")
    preflight(planned, machine(gpu(0, 20)), more=more)


@pytest.mark.parametrize(
    ("there", "more"),
    [
        ("flash_attn_interface", "attention: flash_attention_3"),
        ("triton gcc", "kernels: liger"),
        ("liger_kernel", "kernels: liger"),
        ("liger_kernel triton", "kernels: liger"),
        ("triton", "compile: true"),
        ("triton", "attention: flex_attention"),
    ],
)
def test_a_kernel_that_cannot_run_here_is_told_before_anything_starts(
    planned, installed, there, more, approved
):
    """A GPU too old, a package or a compiler that is missing: exit code 4, and what to do."""
    installed.update(there.split())
    approved(told(planned, machine(gpu(0, 20)), more=f"    {more}\n"))


@pytest.mark.parametrize("word", ["liger", "hub"])
def test_fused_layers_without_a_gpu_are_told_before_anything_starts(planned, monkeypatch, word):
    """Not after torch has been loaded; Triton's interpreter runs Liger, and nothing of the hub."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    keys = {"device": "cpu", "more": f"    kernels: {word}\n"}
    said = f"kernels is {word}, which needs a CUDA or ROCm GPU, and `launch.device` is cpu"
    assert said in told(planned, machine(kind="cpu"), **keys)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with nullcontext() if word == "liger" else pytest.raises(MachineNotReady, match=said):
        preflight(planned, machine(kind="cpu"), **keys)


def need(low, peak, high):
    return Expected(
        need_bytes=int(peak * GIB), need_low_bytes=int(low * GIB), need_high_bytes=int(high * GIB)
    )


def test_advice_plans_with_installed_memory_and_a_run_with_free_memory():
    """Another program that holds 20 GiB while somebody asks does not make the plan smaller."""
    here = machine(gpu(0, 4), gpu(1, 23))
    assert (here.device_memory_bytes, as_free_now(here).device_memory_bytes) == (24 * GIB, 4 * GIB)
    display = replace(here.gpus[0], kept_free_bytes=GIB)
    assert replace(here, gpus=(display,)).device_memory_bytes == 23 * GIB
    shared = replace(here.gpus[0], shares_ram=True, kept_free_bytes=3 * GIB)
    assert replace(here, gpus=(shared,)).device_memory_bytes == 21 * GIB
    assert as_free_now(replace(here, gpus=(shared,))).device_memory_bytes == 4 * GIB
    cpu = replace(here, kind="cpu", gpus=(), ram_total_bytes=16 * GIB, ram_kept_free_bytes=2 * GIB)
    for free in (5 * GIB, 12 * GIB):
        busy = replace(cpu, ram_free_bytes=free)
        assert (busy.device_memory_bytes, as_free_now(busy).device_memory_bytes) == (14 * GIB, free)


def expecting(expected, *gpus):
    """A call whose stage is expected to need so much, on these GPUs."""
    call = call_of(hardware=machine(*gpus))
    call.__dict__["expected"] = {"sft": expected}
    return call


def test_too_little_free_memory_is_refused_with_who_holds_it(planned, monkeypatch, approved):
    """Clearly too little is refused, what may be enough is a warning, what fits is nothing."""
    planned()
    full = replace(gpu(0, 5), other_processes=(BUSY,))

    def check(expected, measured=None):
        monkeypatch.setattr(memory, "measured_need", lambda _: measured or {})
        return memory.check(expecting(expected, full))

    found = {
        "too little": check(need(18, 20, 22)),
        "perhaps": check(need(4.5, 5.5, 6)),
        "fits": check(need(3, 4, 4.9)),
        "not known": check(Expected()),
        # Waiting does not help.
        "larger than the whole GPU": check(need(30, 33, 36)),
        # A dry run counts instead of the estimate.
        "measured to fit": check(need(18, 20, 22), {"sft": 4 * GIB}),
        "measured not to": check(need(3, 4, 4.5), {"sft": 8 * GIB}),
        # It has no free memory to check.
        "a GPU that is named": memory.check(expecting(need(30, 33, 36), gpu(0, None))),
    }
    approved(found)


def test_a_dry_run_of_another_plan_does_not_count(shop):
    """What was measured is used for the very plan that it was measured with."""
    stage = {"name": "sft", "objective": "sft", "update": "lora", "status": "done"}
    record = {"schema_version": 1, "stages": [{**stage, "measured": {"reserved_bytes": 7}}]}
    call = call_of(output=shop / "out")
    assert memory.measured_need(call) == {}
    (shop / "out").mkdir()
    for digest, found in ((call.run.digests["plan"], {"sft": 7}), ("other", {})):
        record["digests"] = {"plan": digest}
        (shop / "out" / "dry_run.json").write_text(json.dumps(record))
        assert memory.measured_need(call) == found


def test_a_run_is_refused_before_it_writes_anything(planned, shop, capsys, monkeypatch):
    """The whole way: the fullest GPU is not taken, and if all are too full nothing is started."""
    planned()
    monkeypatch.setattr(StageEstimator, "expect", lambda *_: need(18, 20, 22))
    here = machine(gpu(0, 2), replace(gpu(1, 5), other_processes=(BUSY,)))
    text = refused(MachineNotReady, output="out", hardware=here)
    assert "GPU 1 (RTX 4090) has 5.0 GiB free" in text
    assert not (shop / "out").exists()
    assert run(output="out", hardware=here, dry_run=True).record.stages[0].measured is not None
    assert "warning: stage sft needs about 20.0 GiB" in capsys.readouterr().err
    assert run(output="out", hardware=machine(gpu(0, 2), gpu(1, 23))).status == "done"
    assert "GPU 1 (RTX 4090): 23.0 GiB free, no other of 2 GPUs has more" in capsys.readouterr().err
    seen = json.loads((shop / "out" / "stages" / "sft" / "seen.json").read_text())
    assert seen["cuda"] == "GPU-1"
    assert os.environ.get("CUDA_VISIBLE_DEVICES") != "GPU-1"


TWO = "device: cuda, processes: 2, strategy: fsdp"


def test_a_plan_for_more_gpus_says_what_fewer_take(planned, monkeypatch):
    """The refusal has the line that runs it on fewer GPUs with as many rows a step."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(AdviseError) as caught:
        preflight(planned, machine(gpu()), launch=TWO)
    (fault,) = (one for one in caught.value.faults if one.where == "launch.processes")
    assert "wants 2 processes, one per GPU, and 1 can be used here: 1 too few" in fault.what
    settings = "--set launch.processes=1 --set launch.strategy=null --set stages.sft.grad_accum=2"
    assert f"advise run '{os.getcwd()}/plan.yaml' {settings}" in fault.hint
    text = told(planned, machine(gpu()), kind=InputError, processes=2000)
    assert "cannot be shared by 2000 processes" in text


@pytest.mark.parametrize(
    ("launch", "new"),
    [
        ("device: cuda, processes: 2, strategy: fsdp", "objective: ppo"),
        ("device: cuda, processes: 2, strategy: fsdp", "objective: sft\n    quantization: int8"),
        (
            "device: cuda, processes: 2, strategy: fsdp",
            "objective: sft\n    optimizer: paged_adamw_8bit",
        ),
        ("device: cuda, processes: 2, strategy: ddp, offload: true", "objective: sft"),
        ("device: cuda, strategy: fsdp", "objective: sft"),
        ("processes: 2, device: mps", "objective: sft"),
    ],
)
def test_what_cannot_be_shared_is_refused_at_its_place(planned, launch, new, approved):
    """A located fault with the way out; the same is refused to advice (rules/strategies.yaml)."""
    with pytest.raises(InputError) as caught:
        planned(launch=launch, plan=PLAN.replace("objective: sft", new))
    approved(caught.value.text())


def test_gpus_that_differ_are_told_with_the_one_that_binds(planned, approved):
    """A warning names them, and the memory that decides what fits."""
    small = gpu(total=12, name="RTX 3060")
    plan, _ = planned(processes=2)
    approved(uneven_gpus_warning(plan, (gpu(), small)))
    assert uneven_gpus_warning(plan, (gpu(), gpu(total=23.9))) == ""
    assert uneven_gpus_warning(planned()[0], (gpu(), small)) == ""


def test_a_plan_is_estimated_as_it_is_started(planned, shop):
    """Strategy, processes of all machines and offloading reach the estimate and its way out."""
    plan, todo = planned(launch=TWO)
    shape = plan_shape(plan, shop / "plan.yaml")
    here = machine(gpu(), gpu())
    estimator = StageEstimator(plan=plan, shape=shape, hardware=here)
    stage, smaller = todo[0].stage, replace(todo[0].stage, optimizer="adamw_8bit")
    assert estimator.peak_bytes(stage)
    assert estimator.peak_bytes(smaller) is None
    assert replace(estimator, plan=planned(processes=2)[0]).peak_bytes(smaller)
    launch = "device: cuda, processes: 4, nodes: 2, strategy: fsdp, offload: true"
    device = plan_run(planned(launch=launch)[0], stage, shape, here).device
    assert (device.gpus, device.sharding, device.offloads) == (8, "fsdp", True)
