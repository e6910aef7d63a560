"""Estimates of runs that a test describes by their public spec."""

from typing import Any

from msgspec import defstruct, field
from msgspec.structs import replace

from advisor.estimate import estimate as estimate_of
from advisor.estimate.memory.peak import memory_estimate as memory_of
from advisor.estimate.run import Device, Run
from advisor.estimate.spec import SPEC, USUAL, run_of_spec
from advisor.estimate.time import time_estimate as time_of
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


def run_of(spec, shape, *, cpu=False, device=None, device_bytes=None, machines=1, **rows) -> Run:
    """The run that a spec describes, of this model on this device, with these rows."""
    given = {key: getattr(spec, key) for key, *_ in KEYS} | dict(spec.options)
    on = Device(is_cpu=cpu, gpu=device, memory_bytes=device_bytes, machines=machines)
    run = run_of_spec(given, shape, on)
    return replace(run, rows=replace(run.rows, **rows))


def memory_estimate(spec, shape, **device):
    return memory_of(run_of(spec, shape, **device))


def terms(spec, model, moment="optimizer step"):
    """Name -> bytes of each term of one moment of a run on the named model."""
    found = {one.name: one for one in memory_estimate(spec, shape(model)).moments}
    return {term.name: term.size_bytes for term in found[moment].terms}


def time_estimate(spec, shape, machine, **rows):
    return time_of(run_of(spec, shape, **rows), machine)


def estimate(spec, shape, hardware, *, past=None, evaluated=None, **rows):
    run = run_of(spec, shape, **rows)
    on = run.device
    device = Device.of(hardware, on.gpus, on.sharding, offloads=on.offloads)
    run = replace(run, device=device)
    return estimate_of(
        run, hardware, evaluated=evaluated, **({} if past is None else {"past": past})
    )
