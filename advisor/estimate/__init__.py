"""What a run costs: memory, time and money by arithmetic on the model's shape, the settings and the
machine's facts.

Pure: no clock, network, environment, files or printing; thousands of calls a second.
"""

from __future__ import annotations

from dataclasses import replace

from advisor.estimate.cost import cost_estimate
from advisor.estimate.memory.host import host_bytes, host_moments
from advisor.estimate.memory.peak import memory_estimate
from advisor.estimate.memory.verdict import HEAD_ROOM, fits_in, memory_fits
from advisor.estimate.past.corrections import learned, time_with_lesson, with_lesson
from advisor.estimate.past.runs import NO_RUNS, PastRuns, machine_name
from advisor.estimate.time import Machine, machine_of, time_estimate
from advisor.estimate.types import Estimate, RunSpec, TimeEstimate
from advisor.estimate.whole_time import Looked, time_by_parts
from advisor.ground.types import Hardware, ModelShape
from advisor.methods import objective, update

WORTH_A_SERVER = 0.1  # of a step that a server for its answers would save

__all__ = [
    "HEAD_ROOM",
    "cost_estimate",
    "estimate",
    "fits_in",
    "hardware_machine",
    "machine_of",
    "memory_estimate",
    "memory_fits",
    "time_estimate",
]


def estimate(
    spec: RunSpec,
    shape: ModelShape | None,
    hardware: Hardware,
    *,
    tokens_total: int | None = None,
    rows_total: int | None = None,
    looked: Looked | None = None,
    padded_length: float | None = None,
    past: PastRuns = NO_RUNS,
) -> Estimate:
    """Memory against the device, duration and cost of one stage; each part that cannot be known is
    None and says why.

    `tokens_total` and `rows_total` count all epochs; with `looked`, what the stage is measured on,
    the whole time has its parts, beside the duration of the training; `padded_length` is that of a
    sequence of a micro-batch. Memory is that of the whole process, whatever counter the spec names;
    what must fit is its need: the CUDA context included, cached blocks that the allocator gives
    back left out. Runs of this machine in `past` correct memory and time.
    """
    unknown: list[str] = []
    if shape is None:
        return Estimate(fits="unknown", unknown=("model: its size is not known",))
    on_cpu = hardware.kind == "cpu"
    gpu = hardware.gpus[0].spec if hardware.gpus else None
    memory = memory_estimate(
        spec if spec.counter == "nvidia-smi" else replace(spec, counter="nvidia-smi"),
        shape,
        cpu=on_cpu,
        device=gpu,
        device_bytes=None if on_cpu else hardware.device_memory_bytes,
    )
    if memory is None:
        return Estimate(fits="unknown", unknown=("model: its dimensions are not known",))
    lesson = past.lesson(spec, shape, machine_name(hardware)) if past else None
    by_formula = memory.peak.total_bytes
    memory, correction = with_lesson(memory, lesson, counter="nvidia-smi", cpu=on_cpu)
    limit = hardware.device_memory_bytes
    if limit is None:
        unknown.append(
            "hardware: its memory is not known" if hardware.kind != "unknown" else "hardware"
        )
    steps, step_s, duration_s, times, usd, note = None, None, None, None, None, ""
    machine = hardware_machine(hardware)
    taught = learned(
        lesson, correction, by_formula, memory.peak.total_bytes, timed=machine is not None
    )
    if machine is None:
        unknown.append("duration: the device's speed is not known")
    else:
        time = time_estimate(
            spec,
            shape,
            machine,
            tokens_total=tokens_total,
            rows_total=rows_total,
            padded_length=padded_length,
        )
        if time is not None:
            if taught is not None:
                taught = replace(
                    taught, formula_step_s=time.step_s, formula_duration_s=time.duration_s
                )
            time = time_with_lesson(time, lesson)
            steps, step_s, duration_s = time.steps, time.step_s, time.duration_s
        if time is not None and not on_cpu:
            about_answers = rollouts_note(spec, time)
            said = [*([about_answers] if about_answers else []), *time.warnings]
            memory = replace(memory, warnings=(*memory.warnings, *said))
        if duration_s is not None and looked is not None:
            assert time is not None
            times = time_by_parts(
                spec, shape, machine, looked, train_s=duration_s, steps=steps,
                low=time.low_s / time.step_s, high=time.high_s / time.step_s,
            )  # fmt: skip
        if tokens_total is None:
            unknown.append("duration: the number of tokens is not known")
    if on_cpu:
        usd, note = (
            (0.0 if duration_s is not None else None),
            "this machine's own CPU; electricity is not counted",
        )
    elif gpu is not None:
        usd, note = cost_estimate(duration_s, spec.gpus, gpu)
    return Estimate(
        fits=memory_fits(memory, limit),
        memory=memory,
        limit_bytes=limit,
        host_bytes=host_bytes(spec, shape, machines=hardware.machines),
        host=() if on_cpu else host_moments(spec, shape, machines=hardware.machines),
        steps=steps,
        step_s=step_s,
        duration_s=duration_s,
        times=times,
        cost_usd=usd,
        cost_note=note,
        unknown=tuple(unknown),
        learned=taught,
    )


def rollouts_note(spec: RunSpec, time: TimeEstimate) -> str:
    """What a vLLM server would save of a step, if that is worth a server; else empty."""
    if spec.options.get("rollouts") == "vllm" or spec.framework is not None:
        return ""
    has_rollouts = "rollouts" in objective(spec.objective).keys
    takes_vllm = has_rollouts and update(spec.update).is_sent_to_vllm
    saved_s = time.generate_s - time.served_s
    if not takes_vllm or saved_s < WORTH_A_SERVER * time.step_s:
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
