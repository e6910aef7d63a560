"""How wrong the time of a step may be: what published speeds fell into."""

from __future__ import annotations

import math

from advisor.estimate.time.machine import Machine
from advisor.estimate.types import RunSpec

# Factors by which nine in ten steps were shorter and longer than estimated, the 90 % quantile of
# the sources' own (tests/data_cases/throughput.yaml; docs/accuracy-time.md prints how many of each
# source lie inside). They are wider, as squares of logarithms add up, by ...
SHORTER, LONGER = 1.35, 1.45
WIDER = {
    "link": 1.3,  # ... what is not known of the links between several GPUs,
    "lengths": 1.5,  # the rows' lengths,
    "cores": 1.6,  # what else runs on a CPU: three runs beside others took 2.4 to 5.3 times as long
    "answers": 1.5,  # and how answers are written, of which no published speed was compared.
}


def band_of(spec: RunSpec, machine: Machine, *, known_lengths: bool) -> tuple[float, float]:
    """(factor by which a step may be shorter, longer)."""
    unknown = [
        name
        for name, is_so in (
            ("link", spec.gpus > 1 and bool(machine.link_guess)),
            ("lengths", not known_lengths),
            ("cores", not machine.overlaps),
            ("answers", "response_tokens" in spec.options),
        )
        if is_so
    ]
    return _wider(SHORTER, unknown), _wider(LONGER, unknown)


def _wider(factor: float, unknown: list[str]) -> float:
    if not unknown:
        return factor
    squares = math.log(factor) ** 2 + sum(math.log(WIDER[name]) ** 2 for name in unknown)
    return math.exp(math.sqrt(squares))
