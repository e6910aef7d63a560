"""Values of advice: candidates with their verdicts, reasons and settings, and the whole answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from msgspec import Struct, field
from msgspec.structs import replace

from advisor.estimate.types import Estimate
from advisor.ground.types import DDP, FSDP
from advisor.methods.composition import Composition
from advisor.plan.model import Stage
from advisor.situation.types import Situation

if TYPE_CHECKING:
    from advisor.methods.engines import Engine

Sizes = Mapping[str, Estimate]  # scheme -> its estimate on the chain that was concluded
Verdict = Literal["recommended", "ranked_lower", "forbidden", "too_big"]
VERDICT_WORDS: dict[Verdict, str] = {
    "recommended": "recommended",
    "ranked_lower": "ranked lower",
    "forbidden": "ruled out",
    "too_big": "does not fit",
}


class KnownFact(Struct, frozen=True, kw_only=True):
    """One fact that a rule saw: its value and where it came from."""

    fact: str
    value: Any
    origin: str  # "flag", "read from train.jsonl", "estimated", "concluded by document/scenario-1"
    text: str = ""  # the same inside a sentence: "LoRA fits in 24.0 GiB (estimated 19.8 GiB)"


class Reason(Struct, frozen=True, kw_only=True):
    """One sentence of an explanation, with its rule and, for a limit, the two numbers."""

    text: str
    short: str = ""  # the same where lines are short, if it can be
    rule: str | None = None
    source: str | None = None
    facts: tuple[KnownFact, ...] = ()  # what the rule saw, and where each fact came from
    needs: float | None = None
    has: float | None = None
    unit: str | None = None


class Chosen(Struct, frozen=True, kw_only=True):
    """A setting's value with the reason it was chosen."""

    value: Any
    because: str
    rule: str | None = None  # None: computed by the fit search or taken from the user
    is_own: bool = False  # a layer of one's own sets it: nothing else may change it


# Settings of all stages together, which stand in the plan's `launch`.
OF_LAUNCH = ("sharding", "offload")


def values_of(settings: Mapping[str, Chosen]) -> dict[str, Any]:
    """Key -> value, without the reasons."""
    return {key: chosen.value for key, chosen in settings.items()}


class Strategy(Struct, frozen=True):
    """How the GPUs of a run share its work."""

    name: str | None = None  # None: one device
    offload: bool = False  # what is sharded lies in the computer's memory


ALONE, ON_EACH = Strategy(), Strategy(DDP)
SHARDED, OFFLOADED = Strategy(FSDP), Strategy(FSDP, offload=True)
# What rules may set for each amount of memory (fact `memory_left`), the usual settings first.
MEMORY_LEFT = ("enough", "little", "least")


class Concessions(Struct, frozen=True, kw_only=True):
    """What is given up so that something fits, if nothing does otherwise."""

    least_module: bool = False  # the smallest modules
    offload: bool = False  # what is sharded lies in the computer's memory, which is slower
    elsewhere: bool = False  # another engine trains it, if the bundled trainers cannot
    shorter: int = 0  # steps by which rows are shorter
    may_not_fit: bool = False  # what is too big by less than the estimate may be wrong is tried
    # Which schemes that break a limit may read a part of the data: none, modules, all.
    part: str = ""
    smallest_batch: bool = False  # in the place of one that a limit is not enough for


NO_CONCESSIONS = Concessions()
# Memory first gives way in what changes the result least: docs/architecture.md, "Nothing fits".
_ALL_OVER = Concessions(least_module=True, elsewhere=True, offload=True)
LADDER = (
    NO_CONCESSIONS,
    Concessions(least_module=True),
    Concessions(elsewhere=True),
    Concessions(least_module=True, elsewhere=True),
    _ALL_OVER,
    replace(_ALL_OVER, shorter=1),
    replace(_ALL_OVER, shorter=2),
    replace(_ALL_OVER, shorter=2, may_not_fit=True),
)


class Padding(Struct, frozen=True, kw_only=True):
    """Shares of the tokens a stage computes that are padding, expected from the rows' lengths."""

    at_random: float  # if the rows of a micro-batch were drawn at random
    now: float
    packed: bool  # several rows share a sequence; else rows of similar length share a micro-batch


class PartOfData(Struct, frozen=True, kw_only=True):
    """The part of the data that a limit on money or time is enough for."""

    limit: str  # "$20"
    whole: str  # what all of the data would take: "about $1,860"
    share: float  # of the steps that all epochs take
    text: str  # "about 3,900 of your 400,000 rows"
    rows: int | None  # that are read; None: all of them, or that is not known


class FittedStage(Struct, frozen=True, kw_only=True):
    """One stage of a candidate as the plan will hold it, with what fits and the reasons."""

    stage: Stage
    reasons: Mapping[str, Chosen]  # by key of the plan; of `launch` too (OF_LAUNCH)
    cost: Estimate  # over all of the data
    padding: Padding | None = None  # None: not known, or there would be none anyway
    # Optimizer steps as the reasons count them: of packed rows with the chat template's words.
    told_steps: int | None = None
    gpus: int = 1  # that share the steps, on all machines together; 1 on a processor, too
    machines: int = 1
    is_eased: bool = False  # settings for a memory that is short, in the place of the usual ones
    part: PartOfData | None = None  # None: all of the data are read
    left_out: str = ""  # which rows are longer than what fits, or nothing
    engine: Engine | None = None  # that trains it; None: the bundled trainers

    @property
    def rows_per_step(self) -> int:
        return self.stage.effective_batch_size * self.gpus

    @property
    def is_sharded(self) -> bool:
        return "sharding" in self.reasons and self.reasons["sharding"].value != DDP

    @property
    def offloads(self) -> bool:
        return "offload" in self.reasons


class Fitted(NamedTuple):
    """A composition's stages with settings that fit under one strategy, and their cost."""

    stages: tuple[FittedStage, ...]
    cost: Estimate

    @property
    def strategy(self) -> Strategy:
        """How the GPUs share all of them."""
        first = self.stages[0]
        name = first.reasons.get("sharding")
        return Strategy(None if name is None else name.value, first.offloads)

    @property
    def gpus(self) -> int:
        return 1 if self.strategy.name is None else self.stages[0].gpus

    @property
    def machines(self) -> int:
        return 1 if self.strategy.name is None else self.stages[0].machines

    @property
    def name(self) -> str:
        """'ddp on 4 GPUs', 'one GPU', 'sharded over 16 GPUs of 2 machines'."""
        if self.strategy.name is None:
            return "one GPU"
        of = f" of {self.machines} machines" if self.machines > 1 else ""
        how = {DDP: f"{DDP} on", FSDP: "sharded over"}[self.strategy.name]
        off = " and offloaded" if self.strategy.offload else ""
        return f"{how} {self.gpus} GPUs{of}{off}"

    @property
    def is_eased(self) -> bool:
        return any(stage.is_eased for stage in self.stages)

    @property
    def pace_s(self) -> float | None:
        """Seconds of training, or else of a row in each stage; None: not known."""
        if self.cost.duration_s is not None:
            return self.cost.duration_s
        paces = [(stage.cost.step_s, stage.rows_per_step) for stage in self.stages]
        if any(step_s is None for step_s, _ in paces):
            return None
        return sum((step_s or 0.0) / rows for step_s, rows in paces)


class Candidate(Struct, frozen=True, kw_only=True):
    """One composition with its stages, its estimate and what the rules say of it."""

    composition: Composition
    stages: tuple[FittedStage, ...]
    estimate: Estimate
    verdict: Verdict
    because: tuple[Reason, ...]
    ways: tuple[Fitted, ...] = ()  # under each strategy of several GPUs, the chosen one first
    # --force may take it: never over a company's forbid, nor what cannot run.
    forced_ok: bool = True

    @property
    def engine(self) -> Engine | None:
        """What trains it, if the bundled trainers do not."""
        return self.stages[0].engine if self.stages else None

    @property
    def verdict_words(self) -> str:
        """'does not fit', or 'may not fit' if the memory lies inside the band."""
        if self.verdict == "too_big" and self.estimate.fits == "may_fit":
            return "may not fit"
        return VERDICT_WORDS[self.verdict]


class GuideAnswer(Struct, frozen=True, kw_only=True):
    """What the guide alone says, and in which row."""

    composition: Composition
    row: str


class Flip(Struct, frozen=True, kw_only=True):
    """A change of one fact that would change the answer."""

    change: Mapping[str, Any]
    to: Composition
    effort: str  # answer | data | money | fixed
    text: str  # 'if you chose a high budget'


class WayOut(Struct, frozen=True, kw_only=True):
    """One way to make something fit: what to change, what then fits, and the line to type."""

    text: str
    change: Mapping[str, Any]
    to: Composition
    command: str


class Infeasible(Struct, frozen=True, kw_only=True):
    """Why nothing fits: the nearest candidate, the smallest set of facts to blame, and ways out."""

    nearest: Candidate
    blame: tuple[Reason, ...]  # without any one of these facts something would fit
    ways_out: tuple[WayOut, ...]


class Certainty(Struct, frozen=True, kw_only=True):
    """How sure an answer is: what it rests on, and how clearly it is recommended."""

    evidence: str  # high | medium | low
    rests_on: str  # "measured studies"
    strength: str  # strong | weak
    doubts: tuple[str, ...] = ()  # what makes it weak, as clauses
    conflicts: tuple[Reason, ...] = ()  # what other experts say
    incomplete: tuple[str, ...] = ()  # what the estimate lacks, as clauses


class Advice(Struct, frozen=True, kw_only=True):
    """The answer, every other candidate, what is unknown and what would change it."""

    situation: Situation
    facts: Mapping[str, Any]  # what the rules saw
    recommendation: Candidate
    decided_by: tuple[str, ...]
    guide: GuideAnswer | None
    alternatives: tuple[Candidate, ...]
    flips: tuple[Flip, ...]
    unknown: tuple[str, ...]
    warnings: tuple[str, ...]
    certainty: Certainty
    layers: tuple[str, ...]
    rules_digest: str
    nothing_fits: Infeasible | None = None
    # Each a Rent (rent.py). None: a card is known, or nothing limits its rent.
    rent: tuple[Any, ...] | None = None
    rent_instead: tuple[Composition, Any] | None = None  # another method that keeps its limits
    # id of a guide method (rules/document/methods.yaml) -> its row: stars, data requirement, ideal
    # use case, pros, cons
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """False if training is wanted and nothing fits hardware and budget (exit code 3)."""
        return self.nothing_fits is None
