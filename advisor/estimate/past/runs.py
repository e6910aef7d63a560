"""The runs of a machine as they are remembered: what each measured, beside what the formula alone
said of it; and how close a run is to what is to be estimated.

Pure: their file is read by advisor.situation.past_runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from advisor.estimate.resolved_run import batch_tokens
from advisor.estimate.types import RunSpec
from advisor.ground.json_values import OMIT_NULL, JsonObject
from advisor.ground.types import Gpu, GpuSpec, Hardware, ModelShape
from advisor.methods import objective

FORMAT = 1
SETTINGS, MODEL, FAMILY, METHOD, MACHINE = range(5)  # how close a run is
# The largest micro-batch that a run saw is seldom the largest that its rows could make: settings
# are the same up to this.
NEAR_LENGTH = 1.25
# What of a spec decides its memory and speed, beside model and method.
DECIDING = (
    "double_quantization", "weights_dtype", "compute_dtype", "precision", "optimizer", "optim_args",
    "optim_target_modules", "rank", "target_modules", "micro_batch_size", "grad_accum", "packing",
    "gradient_checkpointing", "attention", "kernels", "loss", "gpus", "offload_weights", "compile",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading(JsonObject):
    """A peak that a run measured, beside what the formula alone says of it."""

    counter: Annotated[str, "allocated, reserved (on a GPU) or rss_growth (of the process)"]
    expected_bytes: Annotated[int, "by the formula alone, as this counter counts"]
    measured_bytes: Annotated[int, "what it read"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PastRun(JsonObject):
    """One stage that was trained or measured: a line of runs.jsonl. No names, no paths."""

    format: Annotated[int, "of the line; lines of a newer one are left out"] = FORMAT
    at: Annotated[str, "UTC"] = ""
    kind: Annotated[Literal["run", "dry_run"], "trained, or measured in two steps"] = "run"
    advise_version: Annotated[str | None, "that wrote the line"] = None
    formula: Annotated[str, "stamp of the formula; lines of another one are left out"]
    machine: Annotated[str, "the GPU, or the processor and its cores"]
    driver: Annotated[str | None, "version of the GPU's driver", OMIT_NULL] = None
    torch: Annotated[str | None, "version of torch"] = None
    family: Annotated[str, "model_type of config.json"]
    params: Annotated[int, "parameters of the model"]
    objective: Annotated[str, "sft, dpo, ..."]
    update: Annotated[str, "full, lora, ..."]
    quantization: Annotated[str | None, "of the frozen base"] = None
    sharding: Annotated[str | None, "how several GPUs share the work"] = None
    settings: Annotated[
        Mapping[str, Any],
        "what else decides memory and speed; seq_len as in the largest batch",
    ]
    memory: Annotated[tuple[Reading, ...], "the peaks"] = ()
    expected_step_s: Annotated[float | None, "seconds of a step by the formula alone"] = None
    measured_step_s: Annotated[float | None, "seconds of a step, median"] = None

    @property
    def method(self) -> tuple[str | None, ...]:
        """Objective, update, quantization of the base, and how GPUs share the work."""
        return (self.objective, self.update, self.quantization, self.sharding)


class PastRuns:
    """The runs that are known, by machine. Equal only to itself, so that looking up is cheap."""

    def __init__(self, runs: Iterable[PastRun] = ()) -> None:
        self._by_machine: dict[str, list[PastRun]] = {}
        self._settings: set[str] = set()
        for run in runs:
            self._by_machine.setdefault(run.machine, []).append(run)
            self._settings.add(settings_key(run.settings)[0])

    def __bool__(self) -> bool:
        return bool(self._by_machine)

    def on(self, machine: str | None) -> Sequence[PastRun]:
        """Those of one machine; none where it is not known."""
        return () if machine is None else self._by_machine.get(machine, ())

    def known_settings(self, settings: Mapping[str, Any]) -> tuple[str, float] | None:
        """The settings as `settings_key` says them if any run had them, else None."""
        key = settings_key(settings)
        return key if key[0] in self._settings else None


NO_RUNS = PastRuns()


class Device(NamedTuple):
    """What a run ran on, as far as it must be the same to teach."""

    machine: str | None
    torch: str | None = None  # None: not known, and then any


NOWHERE = Device(None)


# ------------------------------------------------------------------------------ what is compared


def gpu_machine(spec: GpuSpec | None, gpu: Gpu | None = None) -> str | None:
    """The name by which runs on a GPU are found: that of the catalogue, else its own."""
    name = spec.name if spec is not None else gpu.name if gpu is not None else None
    part = f" MIG {gpu.mig_profile}" if gpu is not None and gpu.mig_profile else ""
    return None if name is None else f"{name}{part}"


def device_of(hardware: Hardware) -> Device:
    """The GPU, or the processor and its usable cores, with the version of torch."""
    torch = hardware.software.get("torch")
    if hardware.kind == "cpu":
        if hardware.cpu_model is None or hardware.cpu_cores is None:
            return NOWHERE
        return Device(f"{hardware.cpu_model}, {hardware.cpu_cores} cores", torch)
    if not hardware.gpus:
        return NOWHERE
    return Device(gpu_machine(hardware.gpus[0].spec, hardware.gpus[0]), torch)


def settings_of(spec: RunSpec) -> dict[str, Any]:
    """What of a spec decides memory and speed, in JSON types. Texts among the options of a method
    may be paths and stay out.
    """
    found = {key: _plain(getattr(spec, key)) for key in DECIDING}
    options = {
        key: value
        for key, value in spec.options.items()
        if isinstance(value, bool | int | float) and value is not None
    }
    rows = spec.micro_batch_size * objective(spec.objective).sequences_per_row
    length = -(-batch_tokens(spec, rows) // rows)
    return {**found, "seq_len": length, **options}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def settings_key(settings: Mapping[str, Any]) -> tuple[str, float]:
    """(a text that is the same for the same settings but their length, tokens of a row)."""
    length = settings.get("seq_len")
    others = sorted((key, value) for key, value in settings.items() if key != "seq_len")
    return repr(others), float(length) if isinstance(length, int | float) else 0.0


def closeness(
    run: PastRun,
    method: tuple[str | None, ...],
    model: tuple[str, int],
    torch: str | None,
    settings: tuple[str, float] | None,
) -> int:
    """How close a run on the same machine is. One with another version of torch is no closer than
    its method: kernels and allocator change with it.

    Args:
        method: What is estimated, as `method_of` says it.
        model: Its family and parameters.
        torch: The version here; None: any.
        settings: As `settings_key` says them; None: no run had them.
    """
    if run.method != method:
        return MACHINE
    if run.torch and torch and _minor(run.torch) != _minor(torch):
        return METHOD
    if run.family != model[0]:
        return METHOD
    if run.params != model[1]:
        return FAMILY
    if settings is None:
        return MODEL
    text, length = settings_key(run.settings)
    is_near = length <= NEAR_LENGTH * settings[1] and settings[1] <= NEAR_LENGTH * length
    return SETTINGS if text == settings[0] and is_near else MODEL


def method_of(spec: RunSpec) -> tuple[str | None, ...]:
    """Objective, update, quantization of the base, and how GPUs share the work."""
    return (spec.objective, spec.update, spec.quantization, spec.sharding)


def family_of(shape: ModelShape) -> str:
    """The model_type of config.json; of a model known by its size alone that it is."""
    return shape.architecture or "unknown"


def _minor(version: str) -> tuple[str, ...]:
    return tuple(version.split("+")[0].split(".")[:2])
