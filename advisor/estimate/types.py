"""The values of the estimator: what a run is, and what it costs."""

from __future__ import annotations

from functools import cached_property, reduce
from operator import add
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from advisor.ground.types import Source

if TYPE_CHECKING:
    derived = cached_property
else:

    class derived(cached_property):
        """A property that is computed once, without the lock that the library's has before Python
        3.12: 13 ms of an answer.
        """

        def __get__(self, run: Any, owner: Any = None) -> Any:
            value = run.__dict__[self.attrname] = self.func(run)
            return value


LEFT_EXPERTS = "experts left unquantised"  # the term of a mixture on a quantised base
# Terms that a counter shows and a run does not need: given back when memory is short.
CACHE_TERMS = ("allocator cache", "cache of other lengths", "cache not accounted for")
# What each one means: advisor/estimate/memory/bands.py.
Fits = Literal["fits", "tight", "may_fit", "too_big", "unknown"]
# Of the memory there is: one published run in four showed at least this much less than estimated.
NEAR = 1.05


class Term(Struct, frozen=True, kw_only=True):
    """One line of a memory estimate."""

    name: str
    size_bytes: int
    because: str
    source: Source


def term_of(name: str, size_bytes: float, because: str, source: Source) -> Term:
    """A line of an estimate; never below zero."""
    size = round(size_bytes)
    return Term(name=name, size_bytes=size if size > 0 else 0, because=because, source=source)


def per_device(share: int) -> str:
    """The words for a size divided over devices."""
    return f" / {share} devices" if share > 1 else ""


class Moment(Struct, frozen=True, kw_only=True):
    """A moment of a run (forward and backward, optimizer step, evaluation) as a sum of the lines
    shown.
    """

    name: str
    terms: tuple[Term, ...]

    @property
    def total_bytes(self) -> int:
        return sum(term.size_bytes for term in self.terms)


class MemoryEstimate(Struct, frozen=True, kw_only=True):
    """Peak memory of one device: its highest moment, so total and explanation cannot disagree.

    Two sizes: `peak_bytes` is what the run's counter would read, never above the device, since the
    allocator gives cached blocks back before an allocation fails. `need_bytes` is what must be
    there for the run to go through, cached blocks left out and not capped: whether it fits is
    asked of this one. A run that needs more than the device has reads the device's memory when it
    fails.
    """

    moments: tuple[Moment, ...]
    low_bytes: int  # the band of the reading that measured runs of this kind fell into
    high_bytes: int
    need_bytes: int
    need_low_bytes: int  # the band around the need, not capped (bands.need_band)
    need_high_bytes: int
    need_correction: Term | None = None  # what runs on this machine changed of the need
    readable_bytes: int | None = None  # the most this counter can show; None: not known
    doubts: tuple[str, ...] = ()  # what widens the band (bands.WORDS)
    warnings: tuple[str, ...] = ()

    @property
    def peak(self) -> Moment:
        return max(self.moments, key=lambda moment: moment.total_bytes)

    @property
    def needed(self) -> Moment:
        """The moment that needs most, without what is given back: its terms sum to the need."""
        learned = self.need_correction
        left_out = {*CACHE_TERMS, learned.name} if learned is not None else {*CACHE_TERMS}
        kept = (
            Moment(
                name=moment.name,
                terms=tuple(term for term in moment.terms if term.name not in left_out),
            )
            for moment in self.moments
        )
        found = max(kept, key=lambda moment: moment.total_bytes)
        if learned is None or not learned.size_bytes:
            return found
        return Moment(name=found.name, terms=(*found.terms, learned))

    @property
    def peak_bytes(self) -> int:
        total = self.peak.total_bytes
        return total if self.readable_bytes is None else min(total, self.readable_bytes)


class TimeEstimate(Struct, frozen=True, kw_only=True):
    """Duration of one optimizer step and of the whole run."""

    step_s: float
    steps: int | None
    tokens_per_s_per_gpu: float
    because: str
    generate_s: float = 0.0  # of a step: the answers that are learned from
    served_s: float = 0.0  # the same by a vLLM server on a GPU of its own
    warnings: tuple[str, ...] = ()
    # (what, seconds of a step): they overlap, so they are more than the step together
    parts: tuple[tuple[str, float], ...] = ()
    low_s: float = 0.0  # of a step: the band that published runs fell into
    high_s: float = 0.0

    @property
    def duration_s(self) -> float | None:
        return None if self.steps is None else self.step_s * self.steps


class WholeTime(Struct, frozen=True, kw_only=True):
    """The whole time of a stage, by its parts in their order. All but the training is rough."""

    load_s: float
    prepare_s: float = 0.0  # rows to tokens
    before_s: float
    train_s: float  # the optimizer steps
    evaluate_s: float = 0.0  # the held-out loss while it trains
    save_s: float = 0.0  # checkpoints
    after_s: float
    download_s: float = 0.0  # once, where the model is not on this machine: not in the total
    train_low_s: float = 0.0  # the band around the steps; 0: nobody asked
    train_high_s: float = 0.0

    @property
    def total_s(self) -> float:
        return (
            self.load_s + self.prepare_s + self.before_s + self.train_s + self.evaluate_s
            + self.save_s + self.after_s
        )  # fmt: skip

    @property
    def low_s(self) -> float:
        """The lower end of the total, of which every part is taken to be as wrong as the steps."""
        return self.total_s * (self.train_low_s / self.train_s if self.train_low_s else 1.0)

    @property
    def high_s(self) -> float:
        return self.total_s * (self.train_high_s / self.train_s if self.train_high_s else 1.0)

    def with_training(self, train_s: float) -> WholeTime:
        """The same stage with shorter or longer training: what is done some times in it scales."""
        share = train_s / self.train_s if self.train_s else 1.0
        return replace(
            self,
            train_s=train_s,
            evaluate_s=self.evaluate_s * share,
            save_s=self.save_s * share,
            train_low_s=self.train_low_s * share,
            train_high_s=self.train_high_s * share,
        )

    def in_parts(self, count: int, *, loads_once: bool) -> WholeTime:
        """The same training by so many tasks, one after the other, that are each measured; they
        share what is loaded, or each loads it.
        """
        one = self.with_training(self.train_s / count)
        load_s = self.load_s if loads_once else count * self.load_s
        return replace(reduce(add, [one] * count), load_s=load_s, download_s=self.download_s)

    def __add__(self, other: WholeTime) -> WholeTime:
        return WholeTime(
            **{name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__}
        )


class Learned(Struct, frozen=True, kw_only=True):
    """How far runs of this machine have corrected an estimate (`past.corrections`)."""

    memory_runs: int  # that stand behind the memory, and behind the time
    time_runs: int
    memory_scale: float | None = None  # corrected over formula; None: not corrected
    time_scale: float | None = None
    formula_bytes: int | None = None  # the peak by the formula alone
    formula_step_s: float | None = None  # a step by it
    formula_duration_s: float | None = None  # all steps by it

    @property
    def runs(self) -> int:
        """How many runs stand behind it."""
        return max(self.memory_runs, self.time_runs)

    @property
    def sentence(self) -> str:
        """'3 runs here: memory x 0.93, speed x 1.12'."""
        parts, count = [], self.runs
        if self.memory_scale is not None:
            of = f" ({self.memory_runs} of them)" if self.memory_runs < count else ""
            parts.append(f"memory x {self.memory_scale:.2f}{of}")
        if self.time_scale is not None:
            of = f" ({self.time_runs} of them)" if self.time_runs < count else ""
            parts.append(f"speed x {1 / self.time_scale:.2f}{of}")
        return f"{count} run{'s' if count != 1 else ''} here: {', '.join(parts)}"


class HostMoment(Struct, frozen=True):
    """What a moment of a run needs of a machine's own memory, beside that of its GPUs."""

    name: str  # loading | training | checkpoint | saving
    size_bytes: int
    because: str


class Assumed(Struct, frozen=True):
    """What nobody stated and a cost was counted with; whether it fits is asked without it."""

    what: str  # "tokens a row"
    value: Any
    source: str


class Reading(Struct, frozen=True):
    """What a stage reads: the time is that of so many passes over so many rows."""

    stage: str
    passes: float
    rows: int  # of one pass
    held_out: int = 0  # rows beside them
    general: int = 0  # rows that the plan mixes into each pass
    tokens: int | None = None  # of one pass, where documents are split and rows are not counted


class Leanest(Struct, frozen=True):
    """Training every weight in the number format and batch that need least."""

    need_bytes: int
    optimizer: str  # "16-bit AdamW"


class Estimate(Struct, frozen=True, kw_only=True):
    """What one candidate costs. A part is None where it cannot be known; `unknown` says why."""

    fits: Fits
    memory: MemoryEstimate | None = None
    # The need with one row at a time and activations recomputed; None: nobody looked.
    least_bytes: int | None = None
    leanest: Leanest | None = None  # None: a small module is trained, or nobody looked
    limit_bytes: int | None = None  # what the device has for it
    host_bytes: int | None = None  # that are offloaded to the memory of each machine
    host: tuple[HostMoment, ...] = ()  # what the machines need of their own memory; (): not known
    steps: int | None = None  # optimizer steps of the training
    step_s: float | None = None
    duration_s: float | None = None  # of the training alone: limits and costs are compared with it
    times: WholeTime | None = None  # of all parts
    cost_usd: float | None = None
    refused: str = ""  # why no memory is enough: it then counts as too big
    cost_note: str = ""  # "RTX 4090 at $0.34/h (vast, 2026-08)"
    learned: Learned | None = None  # from runs here; None: the formula alone
    read: tuple[Reading, ...] = ()  # by its stages; (): not known
    assumed: tuple[Assumed, ...] = ()  # behind time and cost
    unknown: tuple[str, ...] = ()

    @property
    def host_peak(self) -> HostMoment | None:
        """The moment that needs most of a machine's own memory."""
        return max(self.host, key=lambda moment: moment.size_bytes, default=None)

    @property
    def is_likely(self) -> bool:
        """Whether it fits by the estimate itself, whatever its band says; True if not known."""
        memory, limit = self.memory, self.limit_bytes
        return not self.refused and (memory is None or limit is None or memory.need_bytes <= limit)

    @property
    def is_near(self) -> bool:
        """Whether it is likely to fit, or above the memory by so little that a try is worth it."""
        memory, limit = self.memory, self.limit_bytes
        if memory is None or limit is None or self.is_likely:
            return self.is_likely
        return not self.refused and memory.need_bytes <= NEAR * limit
