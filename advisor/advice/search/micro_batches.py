"""Which micro-batch: of those that fit, the one that needs least among those about as fast as any.

More rows at once are faster until the device is busy; from there they only take memory. Whether
activations are recomputed is chosen with it, since that decides how many rows fit. The effective
batch stays: gradients are accumulated instead.
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
# More rows at once, or not recomputing, that save no more than this are not worth their memory: at
# most three minutes of an hour, and estimates of speed are less exact than that (docs/accuracy.md).
HARDLY_FASTER = 1.05
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

    @property
    def plain(self) -> Trial:
        """The same without recomputing."""
        return replace(self, recompute=False)

    def needs_no_less_than(self, other: Trial) -> bool:
        """Whether it takes at least as much memory as another one, by its settings. With a single
        micro-batch no gradients stand beside the activations, so that it may take less.
        """
        if self.grad_accum == 1 < other.grad_accum:
            return False
        return self.micro >= other.micro and self.recompute <= other.recompute


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """The chosen trial, its estimate, and what kept it from being a larger one."""

    trial: Trial
    cost: Estimate
    least: Estimate  # of the trial that needs least
    spare_bytes: int = 0  # what is left free if possible
    too_large: tuple[Trial, ...] = ()  # faster ones that leave less
    recompute_saves_memory_only: bool = False  # it costs hardly any time here

    @property
    def leaves_spare(self) -> bool:
        """Whether it leaves `spare_bytes` free, and fits by the upper end of its estimate."""
        memory, limit = self.cost.memory, self.cost.limit_bytes
        if memory is None or limit is None:
            return True
        return memory.need_bytes <= limit - self.spare_bytes and memory.need_high_bytes <= limit

    @property
    def free_bytes(self) -> int:
        """What `leaves_spare` asks to be left free: `spare_bytes`, or what the upper end of the
        estimate may still take.
        """
        memory, limit = self.cost.memory, self.cost.limit_bytes
        if memory is None or limit is None:
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


class _Paces:
    """Times of trials, each asked for once. Recomputing never makes a step faster, so that a trial
    is seldom asked about if the same one without is still waiting.
    """

    def __init__(self, pace_of: Callable[[Trial], float]) -> None:
        self._pace_of = pace_of
        self._known: dict[Trial, float] = {}

    def of(self, trial: Trial) -> float:
        """The time of a row."""
        if trial not in self._known:
            self._known[trial] = self._pace_of(trial)
        return self._known[trial]

    def fastest(self, waiting: Sequence[Trial]) -> Trial:
        """The one of these that takes least time."""
        plain = [one for one in waiting if not one.recompute or one.plain not in waiting]
        return min(plain, key=self.of)

    def is_within(self, near: float, trial: Trial) -> bool:
        """Whether it takes no longer."""
        return self.of(trial.plain) <= near and self.of(trial) <= near

    def smallest_within(
        self, near: float, waiting: Sequence[Trial], *, recompute: bool
    ) -> Trial | None:
        """Of one kind the smallest micro-batch that takes no longer; None if there is none."""
        ascending = sorted(
            (one for one in waiting if one.recompute is recompute), key=lambda one: one.micro
        )
        return next((one for one in ascending if self.is_within(near, one)), None)

    def has_smaller(self, trial: Trial, waiting: Sequence[Trial]) -> bool:
        """Whether one that may need less is hardly slower."""
        near = HARDLY_FASTER * self.of(trial)
        return any(
            self.is_within(near, one)
            for one in waiting
            if one.micro < trial.micro or one.recompute > trial.recompute
        )


def fastest_that_fits(
    trials: Sequence[Trial],
    *,
    cost_of: Callable[[Trial], Estimate],
    pace_of: Callable[[Trial], float],
    on_cpu: bool,
    trains_all: bool,
    coarse: bool = False,
) -> Found:
    """Of the trials that fit with room to spare the one that needs least among those about as fast
    as the fastest; if none surely fits, or memory is not known, the one that needs least of all.

    Args:
        pace_of: Time for a row, in any unit.
        trains_all: Gradients are as large as the weights, and stand while they are accumulated.
        coarse: Only whether any fits is asked for: where the smallest does, so does the fastest.
    """
    smallest, least = _least(trials, cost_of, trains_all=trains_all)
    if least.memory is None:  # neither is the model: nothing says that memory is short
        return Found(trial=trials[0], cost=least, least=least)
    enough = coarse and least.fits == "fits"
    if enough or least.fits not in ("fits", "tight") or least.limit_bytes is None:
        return Found(trial=smallest, cost=least, least=least)
    spare = spare_bytes(least, on_cpu=on_cpu)
    known = {smallest: Found(trial=smallest, cost=least, least=least, spare_bytes=spare)}

    def found(trial: Trial) -> Found:
        if trial not in known:
            known[trial] = replace(known[smallest], trial=trial, cost=cost_of(trial))
        return known[trial]

    paces = _Paces(pace_of)
    waiting, too_large = list(trials), list[Trial]()
    while waiting:
        fastest = paces.fastest(waiting)
        near = HARDLY_FASTER * paces.of(fastest)
        # Of each kind the smallest needs least; which of the kinds does is seen by their estimates.
        whole = [one for one in waiting if one.grad_accum == 1] if trains_all else []
        kinds = [
            paces.smallest_within(near, ones, recompute=again)
            for ones in (waiting, whole)
            for again in (True, False)
        ]
        tried = [found(trial) for trial in dict.fromkeys(kinds) if trial is not None]
        fitting = [one for one in tried if one.leaves_spare]
        large = [one.trial for one in tried if not one.leaves_spare]
        if fitting:
            best = min(fitting, key=_need)
            # A smaller one may be as near to the fastest that fits, if the fastest of all does not.
            if not paces.has_smaller(best.trial, waiting) or found(fastest).leaves_spare:
                cheap = best.trial.recompute and (
                    paces.of(best.trial) <= HARDLY_FASTER * paces.of(best.trial.plain)
                )
                return replace(best, too_large=tuple(too_large), recompute_saves_memory_only=cheap)
            large.append(fastest)
        gone = [one for one in waiting if any(one.needs_no_less_than(each) for each in large)]
        too_large += gone
        waiting = [one for one in waiting if one not in gone]
    return replace(known[smallest], too_large=tuple(too_large))  # cannot be: it leaves enough


def _need(found: Found) -> int:
    return found.cost.memory.need_bytes if found.cost.memory is not None else 0


def _least(
    trials: Sequence[Trial], cost_of: Callable[[Trial], Estimate], *, trains_all: bool
) -> tuple[Trial, Estimate]:
    """The trial that needs least, and its estimate: the smallest micro-batch, or the whole batch at
    once, which accumulates no gradients.
    """
    smallest = min(trials, key=lambda one: (one.micro, not one.recompute))
    least = cost_of(smallest)
    whole = min(
        (one for one in trials if one.grad_accum == 1 and one.recompute == smallest.recompute),
        key=lambda one: one.micro,
        default=smallest,
    )
    if not trains_all or whole is smallest or least.memory is None or least.fits == "fits":
        return smallest, least
    at_once = cost_of(whole)
    if at_once.memory is not None and at_once.memory.need_bytes < least.memory.need_bytes:
        return whole, at_once
    return smallest, least


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
