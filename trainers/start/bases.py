"""One base in memory for the modules of several tasks: loaded once, and given unchanged from one
training to the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trainers.job.machine import MemoryMeter
from trainers.job.types import Device, Model

_kept: dict[Any, Any] | None = None  # key -> base; None: every training loads its own
_before_bytes: int | None = None  # memory of this process before the first base was loaded


@contextmanager
def sharing_bases() -> Iterator[None]:
    """Keep bases between the trainings inside."""
    global _kept, _before_bytes
    _kept = {}
    try:
        yield
    finally:
        _kept = _before_bytes = None


def memory_meter(device: Device) -> MemoryMeter:
    """A meter that counts from before the base was loaded, even if by an earlier training."""
    global _before_bytes
    meter = MemoryMeter(device)
    if _kept is not None:
        _before_bytes = meter.baseline_bytes if _before_bytes is None else _before_bytes
        meter.baseline_bytes = _before_bytes
    return meter


def find_base(key: Any) -> Any | None:
    """The base that was loaded for this key before; None without one, or if bases are not kept."""
    return None if _kept is None else _kept.get(key)


def keep_base(key: Any, model: Model) -> None:
    """Remember a freshly loaded base, if bases are kept."""
    if _kept is not None:
        _kept[key] = model


def release_base(model: Model) -> None:
    """Take the module off its base, so that the next training finds the base as it was loaded.

    Does nothing if bases are not kept. Raises RuntimeError if the base is another one than was
    kept.
    """
    from peft import PeftModel

    if _kept is None or not isinstance(model, PeftModel):
        return
    base = (
        model.get_base_model()
        if model.peft_config["default"].is_prompt_learning
        else model.unload()
    )
    vars(base).pop("forward", None)  # the trainer's own loss
    for parameter in base.parameters():
        parameter.grad = None
    if not any(base is kept for kept in _kept.values()):
        raise RuntimeError("unloading a module gave another base than the one that was loaded")
