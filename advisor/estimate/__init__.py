"""What a run costs: memory, time and money by arithmetic on the model's shape, the settings and the
machine's facts.

Pure: no clock, network, environment, files or printing; thousands of calls a second.
"""

from __future__ import annotations

from msgspec.structs import replace

from advisor.estimate.memory.bands import HEAD_ROOM, memory_fits
from advisor.estimate.memory.peak import memory_estimate
from advisor.estimate.memory.static import host_bytes, host_moments
from advisor.estimate.past_runs import NO_RUNS, PastRuns, costs_of, machine_name
from advisor.estimate.run import Run
from advisor.estimate.time import Machine, machine_of, time_estimate
from advisor.estimate.types import Estimate, TimeEstimate
from advisor.estimate.whole_time import EvaluationRows
from advisor.ground.types import GpuSpec, Hardware

WORTH_A_SERVER = 0.1  # of a step that a server for its answers would save

__all__ = [
    "HEAD_ROOM", "cost_estimate", "estimate", "hardware_machine", "machine_of", "memory_estimate",
    "memory_fits", "time_estimate",
]  # fmt: skip


NO_MODEL = Estimate(fits="unknown", unknown=("model: its size is not known",))


def estimate(
    run: Run,
    hardware: Hardware,
    *,
    evaluated: EvaluationRows | None = None,
    past: PastRuns = NO_RUNS,
) -> Estimate:
    """Memory against the device, duration and cost of one stage; each part that cannot be known is
    None and says why.

    With the rows that the stage is evaluated on, the whole time has its parts, beside the duration
    of the training. Memory is that of the whole process, whatever counter the run names; what must
    fit is its need: the CUDA context included, cached blocks that the allocator gives back left
    out. Runs of this machine in `past` correct memory and time.
    """
    on_cpu, gpu = run.device.is_cpu, run.device.gpu
    run = replace(run, device=replace(run.device, counter="nvidia-smi"))
    machine, limit = hardware_machine(hardware), run.device.memory_bytes
    ran_on = machine_name(hardware) if past else None
    costs = costs_of(run, machine, evaluated=evaluated, past=past, ran_on=ran_on)
    if costs is None:
        return Estimate(fits="unknown", unknown=("model: its dimensions are not known",))
    memory, time = costs.memory, costs.time
    unknown: list[str] = []
    if limit is None:
        is_named = hardware.kind != "unknown"
        unknown.append("hardware: its memory is not known" if is_named else "hardware")
    if time is None:
        unknown.append("duration: the device's speed is not known")
    else:
        if not on_cpu:
            notes = (*filter(None, [rollouts_note(run, time)]), *time.warnings)
            memory = replace(memory, warnings=(*memory.warnings, *notes))
        if run.rows.tokens_total is None:
            unknown.append("duration: the number of tokens is not known")
    duration_s = None if time is None else time.duration_s
    usd, note = None, ""
    if on_cpu:
        usd = None if duration_s is None else 0.0
        note = "this machine's own CPU; electricity is not counted"
    elif gpu is not None:
        usd, note = cost_estimate(duration_s, run.gpus, gpu)
    return Estimate(
        fits=memory_fits(memory, limit), memory=memory, limit_bytes=limit,
        host_bytes=host_bytes(run), host=() if on_cpu else host_moments(run),
        steps=None if time is None else time.steps, step_s=None if time is None else time.step_s,
        duration_s=duration_s, times=costs.times, cost_usd=usd, cost_note=note,
        unknown=tuple(unknown), learned=costs.learned,
    )  # fmt: skip


def cost_estimate(
    duration_s: float | None, gpus: int, gpu: GpuSpec | None
) -> tuple[float | None, str]:
    """(US dollars, the source of the price); None if the duration or the price is not known."""
    if gpu is None or gpu.price_usd_per_h is None:
        return None, "no rental price is known for this GPU" if gpu is not None else ""
    more = f" ({gpu.price_note})" if gpu.price_note else ""
    note = f"{gpu.name} at ${gpu.price_usd_per_h:.2f}/h{more}"
    if duration_s is None:
        return None, note
    return duration_s / 3600 * max(1, gpus) * gpu.price_usd_per_h, note


def rollouts_note(run: Run, time: TimeEstimate) -> str:
    """What a vLLM server would save of a step, if that is worth a server; else empty."""
    if run.options.get("rollouts") == "vllm" or not run.is_ours:
        return ""
    takes_vllm = "rollouts" in run.objective.keys and run.update.is_sent_to_vllm
    if not takes_vllm or time.generate_s - time.served_s < WORTH_A_SERVER * time.step_s:
        return ""
    share, gain = time.generate_s / time.step_s, time.generate_s / max(time.served_s, 1e-9)
    return (
        f"generating the answers takes about {share:.0%} of a step; a vLLM server on another such"
        f" GPU (rollouts: vllm) would generate them about {gain:.1f} times as fast (estimated)"
    )


def hardware_machine(hardware: Hardware) -> Machine | None:
    """The speeds of the device that trains, or None where they are not known."""
    if hardware.kind == "cpu":
        return machine_of(None, cpu_cores=hardware.cpu_cores or 1, cpu_bf16=bool(hardware.cpu_bf16))
    specs = [gpu.spec for gpu in hardware.gpus]
    if not specs or specs[0] is None:
        return None
    # Of GPUs that differ the slowest sets the pace.
    slowest = min(filter(None, specs), key=lambda spec: spec.bf16_flops or 0.0)
    return machine_of(slowest, interconnect=hardware.interconnect, machines=hardware.machines)
