"""Which micro-batch: of those that fit, the one that needs least among those about as fast as any.

More rows at once are faster until the device is busy; from there they only take memory. Whether
activations are recomputed is chosen with it, since that decides how many rows fit. The effective
batch stays: gradients are accumulated instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from advisor.advice.search.rows import task_settings
from advisor.advice.search.settings import DEFAULTS, StageCase
from advisor.advice.types import Chosen, values_of
from advisor.estimate import HEAD_ROOM, NO_MODEL, estimate, hardware_machine, time_estimate
from advisor.estimate.padding import tokens_read, with_replay
from advisor.estimate.run import Device, Rows, Run, stage_of
from advisor.estimate.types import Estimate, Reading
from advisor.estimate.whole_time import HELD_OUT_ROWS, EvaluationRows
from advisor.ground.units import format_gib
from advisor.methods import may_share_base
from advisor.plan.model import Stage
from advisor.ruleset.phrases import inside_sentence

# More rows at once pay only if they are short: a processor is busy with this many tokens.
CPU_FEW_ROWS, CPU_BUSY_TOKENS = 4, 1024
# Where the speed of a device is not known: a micro-batch of fewer tokens leaves a GPU waiting for
# launches (estimator, "Time"), and recomputing runs one of four passes again.
BUSY_TOKENS, RECOMPUTED_PACE = 2048, 4 / 3
# More rows at once, or not recomputing, that save no more than this are not worth their memory: at
# most three minutes of an hour, and estimates of speed are less exact (docs/estimates.md).
HARDLY_FASTER = 1.05
# What a micro-batch leaves free at least, if a smaller one does: small GPUs are those of personal
# computers, whose screen takes some, too. Where even the smallest does not, a larger one may take
# a little more.
SPARE_BYTES, LITTLE_MORE = 5 * 2**28, 0.02  # of the device's memory


# --------------------------------------------------------------------------- what a stage costs


class StageCost:
    """What one stage costs with given values of plan keys, by the micro-batch."""

    def __init__(self, case: StageCase, plain: Mapping[str, Any]) -> None:
        self.case = case
        self.passes, self.held = _passes(case, plain)
        self.run = _run(case, plain, epochs=self.passes)

    def _run_with(self, batch: Mapping[str, Any]) -> Run | None:
        return self.run and replace(self.run, stage=replace(self.run.stage, **batch))

    def estimate(self, batch: Mapping[str, Any]) -> Estimate:
        """Memory, time and money with these plan keys of the batch."""
        run, situation = self._run_with(batch), self.case.situation
        if run is None:
            return NO_MODEL
        evaluated = self._evaluation_rows(run) if run.rows.tokens_total else None
        found = estimate(run, situation.hardware, evaluated=evaluated, past=situation.past)
        found = replace(found, read=self._read(run))
        tasks = max(1, len(self.case.profiles))
        if tasks == 1 or found.times is None:
            return found
        once = may_share_base(run.stage.objective, run.stage.update)
        return replace(found, times=found.times.in_parts(tasks, loads_once=once))

    def _read(self, run: Run) -> tuple[Reading, ...]:
        """What the time is counted of; nothing if it is not known."""
        tokens, rows = _amounts_to_read(self.case, run.stage, epochs=self.passes)
        if not rows and not (tokens and self.case.method.splits_documents):
            return ()
        # Passes are over the rows that are left; the share held out is not in them.
        passes = self.passes / (1 - self.held)
        added = (run.rows.rows_total or 0) - (rows or 0) if tokens else 0
        one = round((rows or 0) / passes)
        return (
            Reading(
                stage=run.stage.objective,
                passes=passes,
                rows=one,
                held_out=round(one * self.held / (1 - self.held)),
                general=round(added / passes),
                tokens=round((tokens or 0) / passes) if self.case.method.splits_documents else None,
            ),
        )

    def row_s(self, batch: Mapping[str, Any]) -> float | None:
        """Seconds for a row of an optimizer step on one device; None: not known."""
        run, machine = self._run_with(batch), hardware_machine(self.case.situation.hardware)
        found = None if run is None or machine is None else time_estimate(run, machine)
        if run is None or found is None:
            return None
        return found.step_s / run.stage.effective_batch_size

    def _evaluation_rows(self, run: Run) -> EvaluationRows:
        """What a stage is measured on: of each task as many rows."""
        tokens, rows = _amounts_to_read(self.case, run.stage, epochs=self.passes)
        profile = self.case.profile
        stats = profile.tokens if profile is not None else None
        request = stats.request_mean if stats is not None else None
        each, held, every = float(run.stage.seq_len), float(HELD_OUT_ROWS), 0.0
        if rows and tokens:
            each = min(each, tokens / rows / self.case.method.sequences_per_row)
        if rows and self.passes:
            a_task = max(1, len(self.case.profiles))
            held = rows / self.passes * self.held / a_task
            every = rows / self.passes * (1 + self.held) / a_task
        return EvaluationRows(
            rows=held,
            row_tokens=each,
            answer_tokens=stats.mean - request if stats is not None and request else None,
            all_rows=every,
        )


def _passes(case: StageCase, plain: Mapping[str, Any]) -> tuple[float, float]:
    """(how often a row is read, the share that is held out); of several tasks on average."""
    profiles = [(1, plain)]
    if len(case.profiles) > 1:
        profiles = [(one.rows, values_of(read.settings)) for one, read in task_settings(case)]
    rows, passes, held_out = sum(count for count, _ in profiles) or 1, 0.0, 0.0
    for count, values in profiles:
        held = float(values.get("holdout", DEFAULTS["holdout"]))
        passes += count * float(values.get("epochs", DEFAULTS["epochs"])) * (1 - held)
        held_out += count * held
    return passes / rows, held_out / rows


def _run(case: StageCase, plain: Mapping[str, Any], *, epochs: float) -> Run | None:
    model, teacher = case.situation.model, case.situation.teacher
    quantization, profile = case.composition.quantization, case.profile
    if model is None:
        return None
    axes = {"objective": case.objective, "update": case.update, "quantization": quantization}
    of_teacher = {}
    if teacher is not None:
        own_base = teacher.id == model.id and case.is_module and quantization is None
        of_teacher = {"teacher_params": 0 if own_base else teacher.params}
    stage = stage_of({**plain, **of_teacher, **axes})
    hardware, offloads = case.situation.hardware, bool(plain.get("offload"))
    device = Device.of(hardware, case.cards, plain.get("sharding"), offloads=offloads)
    tokens, rows = _amounts_to_read(case, stage, epochs=epochs)
    if tokens and rows:
        tokens, rows = map(round, with_replay(stage, tokens, rows, passes=epochs))
    read = Rows(
        stats=None if profile is None else profile.tokens,
        in_epoch=None if profile is None else profile.rows,
        tokens_total=tokens,
        rows_total=rows,
    )
    return Run(stage=stage, model=model, device=device, rows=read, trainer=case.trainer)


def _amounts_to_read(
    case: StageCase, stage: Stage, *, epochs: float
) -> tuple[int | None, int | None]:
    """Tokens and rows read over all epochs, of all tasks; None: not known."""
    profiles, answers = case.profiles, case.situation.answers
    if stage.truncation != "stop":
        stage = replace(stage, truncation="stop")
    if not profiles or profiles[0].tokens is None:
        tokens = answers.value("data_tokens")
        rows = profiles[0].rows if profiles else answers.value("data_rows")
        return (
            None if tokens is None else int(tokens * epochs),
            None if rows is None else int(rows * epochs),
        )
    read_tokens = read_rows = 0.0
    for profile in profiles:
        assert profile.tokens is not None
        mean, share = tokens_read(profile.tokens, stage)
        rows_read = profile.rows * share * epochs
        read_tokens, read_rows = read_tokens + rows_read * mean, read_rows + rows_read
    return max(1, round(read_tokens)), max(1, round(read_rows))


def with_general(case: StageCase, stage: Stage) -> float:
    """How many times the steps of its own rows a stage has with general ones mixed in."""
    tokens, rows = _amounts_to_read(case, stage, epochs=1.0)
    if not tokens or not rows:
        return 1.0
    both = with_replay(stage, tokens, rows, passes=1.0)
    return both[0] / tokens if stage.packing else both[1] / rows


# --------------------------------------------------------------------------- the search


class Trial(Struct, frozen=True, kw_only=True):
    """A way to bring the rows of an optimizer step through the devices."""

    micro: int
    recompute: bool
    cards: int
    effective: int  # rows of an optimizer step, of all devices

    @property
    def grad_accum(self) -> int:
        return max(1, round(self.effective / (self.micro * self.cards)))

    @property
    def values(self) -> dict[str, Any]:
        return {
            "micro_batch_size": self.micro,
            "grad_accum": self.grad_accum,
            "gradient_checkpointing": self.recompute,
        }

    @property
    def plain(self) -> Trial:
        return replace(self, recompute=False)

    def needs_no_less_than(self, other: Trial) -> bool:
        """Whether its settings need at least the memory of another one's."""
        if self.grad_accum == 1 < other.grad_accum:
            return False
        return self.micro >= other.micro and self.recompute <= other.recompute


class BestTrial(Struct, frozen=True, kw_only=True):
    """The chosen trial, its estimate, and what kept it from being a larger one."""

    trial: Trial
    cost: Estimate
    least: Estimate  # of the trial that needs least
    spare_bytes: int = 0  # what is left free if possible
    too_large: tuple[Trial, ...] = ()  # faster ones that leave less
    slowdown: float = 0.0  # what recomputing adds to the time of its rows, as a share

    @property
    def leaves_spare(self) -> bool:
        """Whether it leaves `spare_bytes` free, and fits by the upper end of its estimate."""
        memory, limit = self.cost.memory, self.cost.limit_bytes
        if memory is None or limit is None:
            return True
        return memory.need_bytes <= limit - self.spare_bytes and memory.need_high_bytes <= limit

    @property
    def free_bytes(self) -> int:
        """What `leaves_spare` asks to be left free."""
        memory, limit = self.cost.memory, self.cost.limit_bytes
        if memory is None or limit is None:
            return self.spare_bytes
        may_take = round(limit * (1 - memory.need_bytes / memory.need_high_bytes))
        return max(self.spare_bytes, may_take)

    @property
    def is_largest(self) -> bool:
        """Whether more rows at once, treated alike, would leave too little memory free."""
        larger = (2 * self.trial.micro, self.trial.recompute)
        return any((one.micro, one.recompute) == larger for one in self.too_large)


def micro_batches_to_try(case: StageCase, effective: int, seq_len: int) -> Sequence[int]:
    """Micro-batches of no more rows than a step has, or the smallest one accepted."""
    micros = [size for size in case.micro_batches if size * case.cards <= effective]
    micros = micros or [case.micro_batches[-1]]
    if not case.on_cpu:
        return micros
    few = [size for size in micros if size <= CPU_FEW_ROWS or size * seq_len <= CPU_BUSY_TOKENS]
    return few or micros[-1:]


def trials_of(
    effective: int, micros: Sequence[int], *, cards: int = 1, recompute: bool
) -> tuple[Trial, ...]:
    """The trials of these micro-batches for so many rows of an optimizer step."""
    return tuple(
        Trial(micro=micro, recompute=again, cards=cards, effective=effective)
        for again in ((False, True) if recompute else (False,))
        for micro in micros
    )


def fastest_that_fits(
    trials: Sequence[Trial],
    cost_of: Callable[[Trial], Estimate],
    pace_of: Callable[[Trial], float],
    *,
    on_cpu: bool,
    trains_all: bool,
) -> BestTrial:
    """Of those that fit with room to spare the one that needs least among those about as fast as
    the fastest; if none surely fits, or memory is not known, the one that needs least of all.

    Args:
        pace_of: Time for a row, in any unit; recomputing never makes it less.
        trains_all: Gradients are as large as the weights, and stand while they are accumulated.
    """
    cost_of, pace_of = cache(cost_of), cache(pace_of)  # each is asked for once
    smallest = least_trial(trials, cost_of, trains_all=trains_all)
    least = cost_of(smallest)
    if least.memory is None:  # neither is the model: nothing says that memory is short
        return BestTrial(trial=trials[0], cost=least, least=least)
    if least.fits not in ("fits", "tight") or least.limit_bytes is None:
        return BestTrial(trial=smallest, cost=least, least=least)
    spare = spare_bytes(least, on_cpu=on_cpu)
    usual = BestTrial(trial=smallest, cost=least, least=least, spare_bytes=spare)

    def tried(trial: Trial) -> BestTrial:
        return usual if trial == smallest else replace(usual, trial=trial, cost=cost_of(trial))

    def is_within(limit: float, trial: Trial) -> bool:
        return pace_of(trial.plain) <= limit and pace_of(trial) <= limit

    waiting, too_large = list(trials), list[Trial]()
    while waiting:
        # A trial is seldom asked about if the same one without recomputing is still waiting.
        plain = [one for one in waiting if not one.recompute or one.plain not in waiting]
        fastest = min(plain, key=pace_of)
        near = HARDLY_FASTER * pace_of(fastest)
        # Of each kind the smallest needs least; which of the kinds does is seen by their estimates.
        whole = [one for one in waiting if one.grad_accum == 1] if trains_all else []
        kinds = [
            _smallest(ones, again, partial(is_within, near))
            for ones in (waiting, whole)
            for again in (True, False)
        ]
        found = [tried(trial) for trial in dict.fromkeys(kinds) if trial is not None]
        large = [one.trial for one in found if not one.leaves_spare]
        if fitting := [one for one in found if one.leaves_spare]:
            best = min(fitting, key=lambda one: need_bytes(one.cost))
            ours, near = best.trial, HARDLY_FASTER * pace_of(best.trial)
            # A smaller one may be as near to the fastest that fits, if the fastest of all does not.
            has_smaller = any(
                is_within(near, one)
                for one in waiting
                if one.micro < ours.micro or one.recompute > ours.recompute
            )
            if not has_smaller or tried(fastest).leaves_spare:
                again = replace(ours, recompute=True)
                slowdown = pace_of(again) / pace_of(ours.plain) - 1 if again in trials else 0.0
                return replace(best, too_large=tuple(too_large), slowdown=slowdown)
            large.append(fastest)
        gone = [one for one in waiting if any(one.needs_no_less_than(each) for each in large)]
        too_large += gone
        waiting = [one for one in waiting if one not in gone]
    return replace(usual, too_large=tuple(too_large))  # cannot be: it leaves enough


def _smallest(
    trials: Sequence[Trial], recompute: bool, is_near: Callable[[Trial], bool]
) -> Trial | None:
    """Of one kind the smallest micro-batch that is near the fastest; None if there is none."""
    kind = [one for one in trials if one.recompute is recompute]
    return next(filter(is_near, sorted(kind, key=lambda one: one.micro)), None)


def need_bytes(cost: Estimate) -> int:
    """What an estimate says must be there; 0: not known."""
    return cost.memory.need_bytes if cost.memory else 0


def least_trial(
    trials: Sequence[Trial], cost_of: Callable[[Trial], Estimate], *, trains_all: bool
) -> Trial:
    """The trial that needs least: the smallest, or all rows at once."""
    smallest = min(trials, key=lambda one: (one.micro, not one.recompute))
    if not trains_all or cost_of(smallest).fits == "fits":
        return smallest
    alike = (one for one in trials if one.recompute == smallest.recompute)
    whole = min(
        (one for one in alike if one.grad_accum == 1), key=lambda one: one.micro, default=smallest
    )
    return min((smallest, whole), key=lambda one: need_bytes(cost_of(one)))


def spare_bytes(least: Estimate, *, on_cpu: bool) -> int:
    """What a micro-batch has to leave free, if this is what the smallest one takes."""
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


# --------------------------------------------------------------------------- as plan keys


def batch_settings(
    best: BestTrial, batch: Chosen, *, no_recompute: str, most: int, packed: bool
) -> dict[str, Chosen]:
    """The plan keys of the batch, each with what is true of the value that was chosen.

    Args:
        no_recompute: Why nothing may be recomputed, or an empty string.
        most: The most rows at once that were tried.
        packed: The batch counts sequences of several rows.
    """
    because = {
        "micro_batch_size": _micro_because(best, most),
        "grad_accum": batch.because if packed else _accumulation_because(best.trial, batch),
        "gradient_checkpointing": _recompute_because(best, no_recompute),
    }
    return {
        key: Chosen(
            value=value, because=because[key], rule=batch.rule if key == "grad_accum" else None
        )
        for key, value in best.trial.values.items()
    }


def batch_of_task(batch: Chosen, micro: int, devices: int, *, smallest: int) -> dict[str, Chosen]:
    """The plan keys of the batch of one task, which may be smaller than the stage's."""
    fewer = max(smallest, min(micro, int(batch.value) // devices))
    accum = max(1, round(int(batch.value) / (fewer * devices)))
    because = f"{_count(fewer * accum * devices)} a step: {inside_sentence(batch.because)}"
    return {
        "micro_batch_size": Chosen(value=fewer, because=because),
        "grad_accum": Chosen(value=accum, because=because, rule=batch.rule),
    }


def _count(rows: int) -> str:
    return f"{rows} row{'' if rows == 1 else 's'}"


def _micro_because(best: BestTrial, most: int) -> str:
    trial, fits = best.trial, best.cost.fits
    if fits == "unknown":
        which = "the smallest" if trial.micro == 1 else "a usual number"
        return f"{which}: what fits is not known"
    if fits in ("may_fit", "too_big"):
        even = "may not fit" if fits == "may_fit" else "does not fit"
        return f"the smallest: even this {even}" if trial.micro == 1 else even
    if trial.grad_accum == 1:
        return "the whole batch at once"
    if best.is_largest:
        recomputing = "" if trial.recompute else " without recomputing"
        return f"the largest that leaves {format_gib(best.free_bytes)} free{recomputing}"
    if trial.micro == most:
        return "as many rows as are tried at once"
    saved = f"{HARDLY_FASTER - 1:.0%}"
    return f"more rows at once would take memory and save less than {saved} of the time"


def _accumulation_because(trial: Trial, batch: Chosen) -> str:
    per_step = trial.micro * trial.grad_accum * trial.cards
    rows = f"{_count(per_step)} a step{f' on {trial.cards} GPUs' if trial.cards > 1 else ''}"
    if per_step != trial.effective:
        return f"{rows}: {trial.effective} as nearly as it divides"
    return f"{rows}: {inside_sentence(batch.because)}"


def _recompute_because(best: BestTrial, no_recompute: str) -> str:
    unknown = best.cost.fits == "unknown"
    if best.trial.recompute:
        slower = f"{best.slowdown:.0%} slower" if best.slowdown else "about a quarter slower"
        unsure = "; what fits is not known" if unknown else ""
        return f"recomputes activations to save memory, {slower}{unsure}"
    if no_recompute:
        return no_recompute
    if unknown:
        return "faster; what fits is not known"
    if best.cost.fits in ("may_fit", "too_big"):
        return "recomputing would not make it fit"
    faster = f", which would be {best.slowdown:.0%} slower" if best.slowdown else ""
    return f"enough memory without recomputing{faster}"
