"""Which micro-batch: of those that fit, the smallest that is about as fast as any.

More rows at once are faster until the device is busy; from there they only take memory. Whether
activations are recomputed is chosen with it, since that decides how many rows fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from advisor.estimate import HEAD_ROOM
from advisor.estimate.types import Estimate

MICRO_BATCHES = (16, 8, 4, 2, 1)
CPU_FEW_ROWS, CPU_BUSY_TOKENS = (
    4,
    1024,
)  # more rows at once pay only where they are short: a processor is busy with this many tokens
# Where the speed of a device is not known: a micro-batch of fewer tokens leaves a GPU waiting for
# launches (estimator, "Time"), and recomputing runs one of four passes again.
BUSY_TOKENS, RECOMPUTED_PACE = 2048, 4 / 3
HARDLY_FASTER = 1.05  # more rows at once that save no more than this are not worth their memory
# What a micro-batch leaves free at least, if a smaller one does: small GPUs are those of personal
# computers, whose screen takes some, too. Where even the smallest does not, a larger one may take
# a little more.
SPARE_BYTES, LITTLE_MORE = 5 * 2**28, 0.02  # of the device's memory


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A way to bring the rows of an optimizer step through the devices."""

    micro: int
    recompute: bool
    cards: int
    effective: int  # rows of an optimizer step, of all devices

    @property
    def grad_accum(self) -> int:
        """Micro-batches behind one optimizer step."""
        return max(1, round(self.effective / (self.micro * self.cards)))

    def needs_no_less_than(self, other: Trial) -> bool:
        """Whether it takes at least as much memory as another one, by its settings."""
        return self.micro >= other.micro and self.recompute <= other.recompute


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """The chosen trial, its estimate, and what kept it from being a larger one."""

    trial: Trial
    cost: Estimate
    least: Estimate  # of the trial that needs least
    spare_bytes: int = 0  # what is left free if possible
    too_large: tuple[Trial, ...] = ()  # faster ones that leave less

    @property
    def leaves_spare(self) -> bool:
        """Whether it leaves `spare_bytes` free, and fits by the upper end of its estimate where the
        trial that needs least does.
        """
        memory, limit, least = self.cost.memory, self.cost.limit_bytes, self.least.memory
        if memory is None or limit is None or least is None:
            return True
        return memory.need_bytes <= limit - self.spare_bytes and (
            memory.need_high_bytes <= limit or least.need_high_bytes > limit
        )

    @property
    def free_bytes(self) -> int:
        """What `leaves_spare` asks to be left free: `spare_bytes`, or what the upper end of the
        estimate may still take.
        """
        memory, limit, least = self.cost.memory, self.cost.limit_bytes, self.least.memory
        if memory is None or limit is None or least is None or least.need_high_bytes > limit:
            return self.spare_bytes
        return max(
            self.spare_bytes, round(limit * (1 - memory.need_bytes / memory.need_high_bytes))
        )

    @property
    def is_largest(self) -> bool:
        """Whether more rows at once, treated alike, would leave too little memory free."""
        return any(
            one.recompute == self.trial.recompute and one.micro == 2 * self.trial.micro
            for one in self.too_large
        )


def trials_of(
    effective: int,
    seq_len: int,
    *,
    cards: int,
    on_cpu: bool,
    allowed: Sequence[int],
    recompute: bool,
) -> tuple[Trial, ...]:
    """The trials, the largest micro-batch first.

    Args:
        effective: Rows of an optimizer step.
        allowed: The micro-batch sizes that the methods of the stage accept, largest first.
        recompute: Activations may be recomputed.
    """
    # The smallest size that the methods accept is tried even if the batch is smaller.
    micros = [size for size in allowed if size * cards <= effective] or [allowed[-1]]
    if on_cpu:
        few = [size for size in micros if size <= CPU_FEW_ROWS or size * seq_len <= CPU_BUSY_TOKENS]
        micros = few or micros[-1:]
    return tuple(
        Trial(micro=micro, recompute=again, cards=cards, effective=effective)
        for again in ((False, True) if recompute else (False,))
        for micro in micros
    )


def fastest_that_fits(
    trials: Sequence[Trial],
    *,
    cost_of: Callable[[Trial], Estimate],
    pace_of: Callable[[Trial], float],
    on_cpu: bool,
) -> Found:
    """Of the trials that fit with room to spare the one that needs least among those about as fast
    as the fastest; if none fits, or memory is not known, the one that needs least of all.

    Args:
        pace_of: Time for a row, in any unit.
    """
    smallest = min(trials, key=lambda one: (one.micro, not one.recompute))
    least = cost_of(smallest)
    if least.memory is None:  # neither is the model: nothing says that memory is short
        return Found(trial=trials[0], cost=least, least=least)
    if least.fits not in ("fits", "tight") or least.limit_bytes is None:
        return Found(trial=smallest, cost=least, least=least)
    spare = spare_bytes(least, on_cpu=on_cpu)
    found = Found(trial=smallest, cost=least, least=least, spare_bytes=spare)
    # Recomputing never makes a step faster, so that these are looked at if nothing else fits.
    recomputing = [one for one in trials if one.recompute]
    waiting = [(pace_of(one), one) for one in trials if not one.recompute]
    too_large: list[Trial] = []
    while waiting:
        near = HARDLY_FASTER * min(pace for pace, _ in waiting)
        trial = min(
            (one for pace, one in waiting if pace <= near),
            key=lambda one: (one.recompute, one.micro),
        )
        tried = replace(found, trial=trial, cost=least if trial is smallest else cost_of(trial))
        if tried.leaves_spare:
            return replace(tried, too_large=tuple(too_large))
        too_large += [one for _, one in waiting if one.needs_no_less_than(trial)]
        waiting += [(pace_of(one), one) for one in recomputing]
        waiting = [(pace, one) for pace, one in waiting if one not in too_large]
        recomputing = []
    return replace(found, too_large=tuple(too_large))  # cannot be: the smallest leaves enough


def spare_bytes(least: Estimate, *, on_cpu: bool) -> int:
    """What a micro-batch has to leave free, where this is what the smallest one takes."""
    assert least.memory is not None
    assert least.limit_bytes is not None
    limit, head_room = least.limit_bytes, round(HEAD_ROOM * least.limit_bytes)
    wanted = head_room if on_cpu else max(head_room, SPARE_BYTES)
    left = limit - least.memory.need_bytes - round(LITTLE_MORE * limit)
    return min(wanted, max(head_room if least.fits == "fits" else 0, left))


def usual_pace(trial: Trial, seq_len: int) -> float:
    """Time for a row, in no unit, on a device whose speed is not known."""
    launches = max(1.0, BUSY_TOKENS / (trial.micro * seq_len))
    return launches * (RECOMPUTED_PACE if trial.recompute else 1.0)
