"""What a training left, and how far two of them are apart."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advisor.record.files import trained_record


@dataclass(frozen=True)
class Left:
    """A trained stage."""

    losses: list[float]
    weights: dict[str, Any]  # name -> tensor
    launch: dict[str, Any]


def left_by(run: Path) -> Left:
    """What the one stage of a run left."""
    from safetensors.torch import load_file

    (folder,) = [path for path in (run / "stages").iterdir() if path.is_dir()]
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    weights: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights |= load_file(path)
    left = trained_record(folder)  # by several processes, until their result is judged
    record = json.loads((left if left.exists() else folder / "result.json").read_text("utf-8"))
    return Left([json.loads(line)["loss"] for line in lines], weights, record["launch"])


LIMIT = 1e-6  # float32 has 1.2e-7 between 1 and the next number; the weights' steps are of 1e-3
LIMIT_MIXED = 1e-5  # the last bit of a float32 sum may turn the rounding of a product in bfloat16
ROUNDED = 1e-4  # of losses in bfloat16, which has 8e-3 between 1 and the next number
# The same where one of the two casts all weights to it, and the other in products alone. 1.1e-3
# was seen, of a reward model.
CAST = 2e-3


@dataclass(frozen=True)
class Apart:
    """How far two trainings are apart."""

    loss: float  # relative to its size, at the step where it is largest
    weight: float  # of the weights' elements, the largest difference

    @property
    def most(self) -> float:
        """The larger of the two."""
        return max(self.loss, self.weight)


def apart(one: Left, other: Left) -> Apart:
    """How far. Raises ValueError if they do not have the same steps and tensors."""
    if len(one.losses) != len(other.losses):
        raise ValueError(f"{len(one.losses)} and {len(other.losses)} losses")
    if one.weights.keys() != other.weights.keys():
        raise ValueError(f"other tensors: {sorted(one.weights.keys() ^ other.weights.keys())[:3]}")
    pairs = zip(one.losses, other.losses, strict=True)
    loss = max(abs(a - b) / max(1.0, abs(a)) for a, b in pairs)
    weight = max(
        float((value.float() - other.weights[name].float()).abs().max())
        for name, value in one.weights.items()
    )
    return Apart(loss, weight)
