"""Estimates of runs that a test describes by their public spec."""

from typing import Any

from msgspec import defstruct, field
from msgspec.structs import replace

from advisor.estimate import estimate as estimate_of
from advisor.estimate.memory.peak import memory_estimate as memory_of
from advisor.estimate.model.architecture import shape_from_config
from advisor.estimate.run import Device, Run
from advisor.estimate.spec import SPEC, USUAL, run_of_spec
from advisor.estimate.time import machine_of
from advisor.estimate.time import time_estimate as time_of
from advisor.ground.types import Gpu, Hardware
from advisor.ground.units import GIB
from advisor.probe.catalogue import find_gpu
from advisor.situation.models import model_shape

# Every key of a run spec, and `options` for keys of methods that it lacks.
KEYS = [(key, Any, field(default=USUAL.get(key))) for key in SPEC.keys]
RunSpec: Any = defstruct(
    "RunSpec", [*KEYS, ("options", Any, field(default_factory=dict))], frozen=True, kw_only=True
)


def shape(name, **stated):
    """The shape of a model that is known, or of a size that its name or `params_b` states."""
    found, _ = model_shape(name, **stated)
    assert found is not None
    return found


def shape_of(config, **more):
    """The shape that a config.json describes."""
    return shape_from_config(config, "x", **{"origin": "hub", "source": "", **more})


def hardware_with(gpu, count=1, **more):
    """A machine with such GPUs: by a name of the catalogue, or by their GiB."""
    spec = find_gpu(gpu).spec if isinstance(gpu, str) else None
    size = gpu * GIB if spec is None else spec.memory_bytes
    one = Gpu(name=str(gpu), memory_total_bytes=size, spec=spec)
    return Hardware(**{"kind": "cuda", "origin": "stated", "gpus": (one,) * count, **more})


def run_of(spec, model, *, cpu=False, device=None, device_bytes=None, machines=1, **rows) -> Run:
    """The run of a spec, of a model (a shape or a name), on this device, with these rows."""
    given = {key: getattr(spec, key) for key, *_ in KEYS} | dict(spec.options)
    on = Device(is_cpu=cpu, gpu=device, memory_bytes=device_bytes, machines=machines)
    run = run_of_spec(given, shape(model) if isinstance(model, str) else model, on)
    return replace(run, rows=replace(run.rows, **rows))


def memory_estimate(spec, model, **device):
    return memory_of(run_of(spec, model, **device))


def terms(spec, model, moment="optimizer step", **device):
    """Name -> bytes of each term of one moment of a run, or of its peak."""
    found = memory_estimate(spec, model, **device)
    moments = {one.name: one for one in found.moments} | {"peak": found.peak}
    return {term.name: term.size_bytes for term in moments[moment].terms}


def time_estimate(spec, model, machine, **rows):
    """The time of a run on a machine, or on a GPU by its name."""
    machine = machine_of(find_gpu(machine).spec) if isinstance(machine, str) else machine
    return time_of(run_of(spec, model, **rows), machine)


def estimate(spec, model, hardware, *, past=None, evaluated=None, **rows):
    run = run_of(spec, model, **rows)
    on = run.device
    run = replace(run, device=Device.of(hardware, on.gpus, on.sharding, offloads=on.offloads))
    return estimate_of(
        run, hardware, evaluated=evaluated, **({} if past is None else {"past": past})
    )
