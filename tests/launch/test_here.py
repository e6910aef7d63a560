"""Whether this machine can run a plan, told before anybody starts it."""

from msgspec.structs import replace

from advisor.ground.types import Gpu
from advisor.launch.here import check_machine
from advisor.plan.read import read_plan
from advisor.record.next_step import trial_steps
from tests.launch.conftest import MACHINE, PLAN

GIB = 2**30
CARD = Gpu(name="NVIDIA GeForce RTX 4090", memory_total_bytes=24 * GIB, memory_free_bytes=20 * GIB)
WITH_GPU = replace(MACHINE, kind="cuda", origin="stated", gpus=(CARD,))


def here(shop, machine, plan=PLAN):
    """What stands between a plan in the shop's folder and a run on the machine."""
    (shop / "plan.yaml").write_text(plan)
    return check_machine(read_plan("plan.yaml"), shop / "plan.yaml", machine)


def test_a_plan_for_a_gpu_takes_a_machine_with_one(shop):
    """Without the device, or with too few of them, it is another machine's plan."""
    on_gpu = PLAN + "launch: {device: cuda}\n"
    found = here(shop, MACHINE, on_gpu)
    assert found.other_machine == (
        "the plan is for an NVIDIA GPU (launch.device: cuda), and this machine has no usable GPU"
    )
    assert here(shop, WITH_GPU, on_gpu).other_machine == ""
    two = PLAN + "launch: {device: cuda, processes: 2}\n"
    assert (
        "wants 2 processes, one per GPU, and 1 can be used"
        in here(shop, WITH_GPU, two).other_machine
    )
    assert here(shop, MACHINE).other_machine == ""


def test_a_plan_that_is_too_large_takes_another_machine(shop):
    """The stage, its need and this machine's memory are named."""
    large = PLAN.replace("model: model", "model: Qwen/Qwen3-32B") + "launch: {device: cuda}\n"
    small = replace(CARD, name="NVIDIA GeForce RTX 3060", memory_total_bytes=12 * GIB)
    found = here(shop, replace(WITH_GPU, gpus=(small,)), large)
    assert found.other_machine.startswith("stage sft needs about ")
    assert "GiB, and this machine has 1" in found.other_machine


def test_missing_packages_can_be_mended_here(shop):
    """They are no reason for another machine; the line that installs them is with them."""
    bare = replace(MACHINE, software={})
    found = here(shop, bare)
    assert found.other_machine == ""
    assert "packages that are not installed: torch" in found.lacking[0].what
    assert "pip install" in found.lacking[0].hint
    assert here(shop, MACHINE).lacking == ()


def test_the_download_is_known_before_it_starts(shop, monkeypatch):
    """A folder needs none; a hub model that is not cached is as large as its parameters."""
    monkeypatch.setenv("HF_HOME", str(shop / "hub"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    assert here(shop, MACHINE).download_bytes == 0
    hub = here(shop, MACHINE, PLAN.replace("model: model", "model: Qwen/Qwen3-8B"))
    assert 15 * GIB < hub.download_bytes < 16 * GIB
    assert "15.3 GiB to download (its parameters in 16 bit), licence apache-2.0" in hub.downloads[0]
    assert hub.downloads[1].startswith("model cache: ")
    unknown = here(shop, MACHINE, PLAN.replace("model: model", "model: nobody/knows-this"))
    assert unknown.download_bytes is None


def test_a_licence_that_must_be_accepted_is_told_before_a_run(shop, monkeypatch):
    """The catalogue knows which models ask for it; a login may have access already."""
    monkeypatch.setenv("HF_HOME", str(shop / "hub"))
    for name in ("HF_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    gated = PLAN.replace("model: model", "model: meta-llama/Llama-3.1-8B")
    (fault,) = here(shop, MACHINE, gated).lacking
    assert fault.headline.startswith("model meta-llama/Llama-3.1-8B: its licence (llama3.1) must")
    assert "https://huggingface.co/meta-llama/Llama-3.1-8B, then `hf auth login`" in fault.hint
    monkeypatch.setenv("HF_TOKEN", "some-token")
    assert here(shop, MACHINE, gated).lacking == ()


def test_a_trial_reads_about_fifty_rows(shop):
    """Its steps follow from the rows a step, and are never fewer than three."""

    def steps(text):
        (shop / "plan.yaml").write_text(text)
        return trial_steps(read_plan("plan.yaml"))

    assert steps(PLAN) == 13  # 4 rows a step
    assert steps(PLAN.replace("micro_batch_size: 4", "micro_batch_size: 8\n    grad_accum: 8")) == 3
    assert steps(PLAN + "launch: {device: cuda, processes: 2}\n") == 7
    second = "  - {name: more, objective: sft, update: lora, learning_rate: 1e-4, micro_batch_size: 16}\n"
    assert steps(PLAN + second) == 4
