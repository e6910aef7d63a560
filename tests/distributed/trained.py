"""Plans that are shared in every way: trained, refused or failed, and how far each is from the same
training in one process.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.distributed.cells import DDP, FSDP, ONE, STRATEGIES
from tests.distributed.comparing import LIMIT, Apart, Left, apart, left_by
from tests.distributed.starting import train_plans
from tests.distributed.train import FAILED, REFUSED, TRAINED

Place = tuple[str, str]  # what is trained, and the strategy


@dataclass
class Result:
    """What became of one plan."""

    name: str
    strategy: str
    status: str  # TRAINED, REFUSED or FAILED
    text: str = ""  # why it is refused, or how it failed
    seconds: float = 0.0
    left: Left | None = None
    from_one: Apart | None = None
    from_ddp: Apart | None = None
    rounded: float | None = None  # in 16 bits: losses alone are compared, and may differ by this
    samples: bool = False  # each process has samples of its own: ddp is compared with
    limit: float = LIMIT  # unless it is rounded

    @property
    def far(self) -> float | None:
        """How far it is from what it is compared with; None: from nothing."""
        found = self.from_ddp if self.samples else self.from_one
        return None if found is None else found.most if self.rounded is None else found.loss


@dataclass(frozen=True)
class Wanted:
    """A plan to train, and how it is compared with the same training in one process."""

    plan: Path
    rounded: float | None = None
    samples: bool = False
    limit: float = LIMIT


def train_shared(wanted: Mapping[Place, Wanted]) -> dict[Place, Result]:
    """Train the plans, those of a strategy by one start of its processes.

    Args:
        wanted: What is trained and its strategy -> the plan.
    """
    plans = {place: one.plan for place, one in wanted.items()}
    found: dict[Place, Result] = {}
    for strategy in STRATEGIES:
        mine = {path: place for place, path in plans.items() if place[1] == strategy}
        if not mine:
            continue
        outcomes = train_plans(list(mine), processes=1 if strategy == ONE else 2)
        for path, one in outcomes.items():
            found[mine[path]] = _result(mine[path], path, one)
        if strategy != ONE:
            saved = [path for path, one in outcomes.items() if one["status"] == TRAINED]
            for path, one in train_plans(saved, processes=1, judge=True).items():
                if one["status"] != TRAINED:
                    result = found[mine[path]]
                    result.status, result.text = FAILED, f"judged: {one['text']}"
    for place, result in found.items():
        one = wanted[place]
        result.rounded, result.samples, result.limit = one.rounded, one.samples, one.limit
        _compare(result, found)
    return found


def _result(place: Place, path: Path, one: Mapping[str, Any]) -> Result:
    """What became of a plan; it failed if the model was not shared as the plan says."""
    result = Result(*place, one["status"], one["text"], one.get("seconds", 0.0))
    if result.status != TRAINED:
        return result
    try:
        result.left = left_by(path.with_suffix(""))
    except (OSError, ValueError) as error:
        result.status, result.text = FAILED, f"it left nothing to compare: {error}"
        return result
    divided = result.left.launch["sharded_tensors"]
    if (divided > 0) != (result.strategy == FSDP):
        result.status, result.text = FAILED, f"{divided} tensors are divided"
    elif one["held"]:
        result.status = FAILED
        result.text = f"{one['held']} bytes of whole gradients are held behind a micro-batch"
    return result


def _compare(result: Result, found: Mapping[Place, Result]) -> None:
    """Note how far it is from one process and from ddp, where they have trained."""

    def from_(strategy: str) -> Apart | None:
        other = found.get((result.name, strategy))
        if result.left is None or other is None or other.left is None or other is result:
            return None
        return apart(other.left, result.left)

    try:
        result.from_one = from_(ONE)
        result.from_ddp = from_(DDP) if result.strategy == FSDP else None
    except ValueError as error:
        result.status, result.text = FAILED, f"it left something else: {error}"


def reason(text: str) -> str:
    """Why a plan is refused, without its own place and the way out."""
    first = text.splitlines()[0]
    return re.sub(r"^\S+\.yaml:\d+:\d+: |^stage \w+: | \(stage \w+\)", "", first).strip()


def is_located(text: str) -> bool:
    """Whether a refusal says where in the plan."""
    return bool(re.match(r"(\S+\.yaml:\d+:\d+|launch\.\w+|stage \w+)", text))


def wrong(results: Iterable[Result]) -> list[str]:
    """What may not be: a plan that failed, and a refusal without a place."""
    told = []
    for one in results:
        if one.status == FAILED:
            told.append(f"{one.name}, {one.strategy}: {one.text}")
        elif one.status == REFUSED and not is_located(one.text):
            told.append(f"{one.name}, {one.strategy}: refused without a place: {one.text}")
        limit = one.limit if one.rounded is None else one.rounded
        if one.far is not None and not one.far <= limit:
            told.append(f"{one.name}, {one.strategy}: {one.far}, and at most {limit} is allowed")
    return told
