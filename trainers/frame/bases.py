"""One base in memory for the modules of several tasks: loaded once, handed from one training to the
next as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trainers.frame.machine import MemoryMeter

_kept: dict[Any, Any] | None = None  # key -> base; None: every training loads its own
_before_bytes: int | None = None  # what this process held before the first base that is kept


@contextmanager
def sharing_bases() -> Iterator[None]:
    """Keep bases between the trainings inside."""
    global _kept, _before_bytes
    _kept = {}
    try:
        yield
    finally:
        _kept = _before_bytes = None


def memory_meter(device: Any) -> MemoryMeter:
    """A meter whose zero is before the base was loaded, by an earlier training where bases are
    kept.
    """
    global _before_bytes
    meter = MemoryMeter(device)
    if _kept is not None:
        _before_bytes = meter.baseline_bytes if _before_bytes is None else _before_bytes
        meter.baseline_bytes = _before_bytes
    return meter


def find_base(key: Any) -> Any | None:
    """The base that was loaded for this key before, if bases are kept."""
    return None if _kept is None else _kept.get(key)


def keep_base(key: Any, model: Any) -> None:
    """Remember a freshly loaded base, if bases are kept."""
    if _kept is not None:
        _kept[key] = model


def release_base(model: Any) -> None:
    """Take the module off its base, so that the next training finds it as it was loaded.

    Nothing if bases are not kept.
    """
    from peft import PeftModel

    if _kept is None or not isinstance(model, PeftModel):
        return
    base = (
        model.get_base_model()
        if model.peft_config["default"].is_prompt_learning
        else model.unload()
    )
    vars(base).pop("forward", None)  # the trainer's own way to the loss
    for parameter in base.parameters():
        parameter.grad = None
    if not any(base is kept for kept in _kept.values()):
        raise RuntimeError("unloading a module gave another base than the one that was loaded")
