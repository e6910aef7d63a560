"""What 1 to 64 GPUs make of a model, by the estimates that `advise` uses itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from msgspec.structs import replace

from advisor.advice.case import Case
from advisor.advice.types import LADDER, FittedStage
from advisor.api import Answers
from advisor.estimate.past_runs import NO_RUNS
from advisor.estimate.types import Estimate
from advisor.ground.types import GpuSpec
from advisor.methods.composition import compose
from advisor.ruleset.load import load_rules
from advisor.ruleset.model import Ruleset
from advisor.situation.build import situation_of

MODELS = ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-70B")
CARDS = ("RTX 4090", "H100 SXM5 80GB")
SCHEMES = ("full", "lora", "qlora")
COUNTS = (1, 4, 8, 16, 64)
IN_A_MACHINE = 8
ROWS, TOKENS = 50_000, 50_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """What a number of GPUs makes of a model."""

    count: int  # GPUs there are
    stage: FittedStage
    cost: Estimate

    @property
    def fits(self) -> bool:
        """Whether the estimate itself is within the memory."""
        return self.cost.is_likely and self.cost.fits != "too_big"

    @property
    def used(self) -> int:
        """How many of the GPUs train."""
        return self.stage.gpus if "sharding" in self.stage.reasons else 1

    @property
    def strategy(self) -> str:
        """'one GPU', 'ddp', 'fsdp' or 'fsdp, offloaded'."""
        chosen = self.stage.reasons.get("sharding")
        if chosen is None:
            return "one GPU"
        return f"{chosen.value}, offloaded" if self.stage.offloads else chosen.value

    @property
    def rows_per_step(self) -> int:
        """Rows that an optimizer step reads on all GPUs together."""
        return self.stage.stage.effective_batch_size * self.used

    @property
    def tokens_per_s(self) -> float:
        """Tokens of the data that all GPUs together train on in a second."""
        stage = self.stage.stage
        trained = TOKENS * stage.epochs * (1 - stage.holdout)
        return float(trained / (self.cost.duration_s or float("inf")))


def lines(model: str, card: str, scheme: str) -> list[Line]:
    """One line for each number of GPUs."""
    return [_line(model, card, scheme, count) for count in COUNTS]


def spec_of(card: str) -> GpuSpec:
    """The catalogue's entry of a card."""
    spec = _case(MODELS[0], card, 1).situation.hardware.gpus[0].spec
    assert spec is not None
    return spec


def _line(model: str, card: str, scheme: str, count: int) -> Line:
    case, composition = _case(model, card, count), compose("sft", scheme)
    found = _tries(case, composition)
    first = next(found)
    for stages, cost in (first, *found):
        if cost.is_likely and cost.fits != "too_big":
            return Line(count=count, stage=stages[0], cost=cost)
    stages, cost = first
    return Line(count=count, stage=stages[0], cost=cost)


def _tries(case: Case, composition: Any) -> Iterator[tuple[tuple[FittedStage, ...], Estimate]]:
    """The usual settings, then what gives way for memory, as in advice; rows keep their length."""
    alone = len(case.situation.hardware.gpus) < 2
    ladder = (replace(one, offload=one.offload and not alone) for one in LADDER)
    for concessions in dict.fromkeys(ladder):
        if not concessions.shorter:
            yield case.costs.cost_of(composition, concessions)


@cache
def _case(model: str, card: str, count: int) -> Case:
    gpu: Mapping[str, Any] = {"name": card, "count": count}
    if count > IN_A_MACHINE:
        gpu = {**gpu, "nodes": count // IN_A_MACHINE}
    answers = Answers.from_dict(
        {
            "task": "customer_service",
            "model": model,
            "gpu": gpu,
            "data": {"kind": "paired", "rows": ROWS, "tokens": TOKENS},
        }
    )
    return Case.build(replace(situation_of(answers), past=NO_RUNS), _rules())


@cache
def _rules() -> Ruleset:
    return load_rules()
