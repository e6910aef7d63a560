"""The random numbers of every library that draws some, as a value that JSON can hold."""

from __future__ import annotations

import random
from typing import Any


def random_states() -> dict[str, Any]:
    """The states of every generator that training, or a user's reward, may draw from."""
    import numpy
    import torch

    kind, keys, *rest = numpy.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(numpy.asarray(keys, dtype="int64")), *rest),
        "torch": torch.random.get_rng_state(),
        "cuda": torch.cuda.random.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_random_states(value: dict[str, Any]) -> None:
    """Set every generator to a state that `random_states` returned."""
    import numpy
    import torch

    version, numbers, last = value["python"]
    random.setstate((version, tuple(numbers), last))
    kind, keys, *rest = value["numpy"]
    numpy.random.set_state((kind, keys.numpy().astype("uint32"), *rest))
    torch.random.set_rng_state(value["torch"])
    if value["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.random.set_rng_state(value["cuda"])
