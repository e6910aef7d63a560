"""What the log of a run shows: facts for the rules of rules/tools/runs.yaml, and whether it
learned, in the words of our own verdicts. The limits are those of rules/verdict.yaml.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from math import inf, isfinite, sqrt
from statistics import fmean, median
from typing import Any

from msgspec import Struct

from advisor.advice.search.settings import RATE, axes_of, settings_by_rule
from advisor.extras.other_tools.run_state import RunLog, Series
from advisor.methods import objective
from advisor.methods.families import DECODER
from advisor.record.verdict import BETTER, NOT_MEASURED, UNCLEAR, WORSE, limits
from advisor.ruleset.load import load_rules

FEW = 6  # values: fewer have no thirds, and their noise is assumed
# The part of all values that an end is the mean of, and the most values. The first steps are the
# fastest, so that few of them count.
HEAD, TAIL = (100, 5), (20, 20)
TYPICAL = 0.954  # median of |a - b| of two normal values with a standard deviation of 1
BEFORE, TIMES, SPREADS = 5, 2.0, 8  # a jump: so many times the last values, so far beyond noise
LOSS_OF_TOKENS, PAIRS = "sft", ("dpo", "orpo", "rm")
ACCURACIES = ("eval_rewards/accuracies", "rewards/accuracies", "eval_accuracy", "accuracy")
Facts = dict[str, Any]


class Curve(Struct, frozen=True, kw_only=True):
    """The finite values of a metric over the steps of a run."""

    steps: Sequence[int]
    values: Sequence[float]
    first: float  # mean of the first values
    last: float
    spread: float  # standard deviation of a single value
    noise: float  # standard error of last - first
    moved: int  # 1: rose, -1: fell, 0: no change beyond its noise
    smooth: Sequence[float]  # the mean of each stretch as long as the end


def curve(points: Series) -> Curve | None:
    """The curve of a metric; None without a finite value.

    It moved if its ends, or its first and last third, differ by more than their noise and by more
    than the share that anybody sees. The noise is that of neighbours, so that a slope is none.
    """
    known, pairs = limits(), [(step, value) for step, value in points.items() if isfinite(value)]
    if not pairs:
        return None
    steps, values = zip(*pairs, strict=True)
    count, third = len(values), len(values) // 3
    head, tail = (max(1, min(most, count // share)) for share, most in (HEAD, TAIL))
    first, last = fmean(values[:head]), fmean(values[-tail:])
    spread = known["assumed_noise"] * abs(first)
    if count >= FEW:
        spread = median(abs(after - before) for before, after in pairwise(values)) / TYPICAL
    noise = spread * sqrt(1 / head + 1 / tail)
    changes = [(last - first, noise)]
    if count >= FEW:
        change = fmean(values[-third:]) - fmean(values[:third])
        changes.append((change, spread * sqrt(2 / third)))
    seen = known["no_effect"] * max(abs(first), abs(last))
    beyond = [
        change for change, error in changes if abs(change) > max(seen, known["noise_times"] * error)
    ]
    # One that went away from its first value and half way back did not move.
    moved = 0 if count < 2 or not beyond or beyond[0] * (last - first) < 0 else 1
    smooth = [fmean(values[at : at + tail]) for at in range(count - tail + 1)]
    return Curve(
        steps=steps, values=values, first=first, last=last, spread=spread, noise=noise,
        moved=moved if last > first else -moved, smooth=smooth,
    )  # fmt: skip


def sig(value: float) -> float:
    """The number with three figures."""
    return float(f"{value:.3g}")


class Signs:
    """The facts of one run. What is not there was not logged."""

    def __init__(self, log: RunLog, update: str | None) -> None:
        self.log, self.limits = log, limits()
        self.objective = _objective_of(log.series)
        # Of several held-out sets, each with its name in the key, the first.
        named = (key for key in log.series if key.startswith("eval_") and key.endswith("_loss"))
        self.held = log.of("eval_loss") or log.of(next(named, ""))
        self.held_out, self.reward = curve(self.held), curve(log.of("reward"))
        self.facts: Facts = {"objective": self.objective, "log.points": len(log.of("loss"))}
        self.facts |= {f"limit.{name}": value for name, value in self.limits.items()}
        self._add("steps", self._steps())
        self._add("broken", self._broken())
        until = inf if self["broken.from"] is None else self["broken.from"]
        self.loss = curve({step: one for step, one in log.of("loss").items() if step < until})
        self._add("rate", self._rate(update))
        self._add("loss", {} if self.loss is None else self._of_loss(self.loss))
        self._add("eval", {"count": len(self.held)})
        self._add("eval", {} if self.held_out is None else self._of_held_out(self.held_out))
        self._add("best", self._best())
        self._add("pairs", self._of_pairs())
        self._add("reward", {} if self.reward is None else self._of_rewards(self.reward))
        self.facts["learned"] = self.word

    def _add(self, name: str, found: Facts) -> None:
        for key, value in found.items():
            if value is not None:
                is_number = isinstance(value, float) and isfinite(value)
                self.facts[f"{name}.{key}"] = sig(value) if is_number else value

    def __getitem__(self, name: str) -> Any:
        return self.facts.get(name)

    # ------------------------------------------------------------------- facts

    def _steps(self) -> Facts:
        state = self.log.state
        done, planned = int(state["global_step"]), int(state.get("max_steps", 0))
        epochs = max(0, state.get("num_train_epochs", 0))
        return {
            "done": done, "planned": planned if planned > 0 else None,
            "left": max(0, planned - done) if planned > 0 else None,
            "least": objective(self.objective).steps.get("least"),
            "epoch": state.get("epoch"), "epochs": epochs or None,
            "twice": (int(2 * epochs) if epochs % 0.5 == 0 else 2 * epochs) or None,
        }  # fmt: skip

    def _broken(self) -> Facts:
        """Steps whose loss or gradient is no number, or whose loss or gradient is exactly 0."""
        loss, norm = self.log.of("loss"), self.log.of("grad_norm")
        logged = sorted({**loss, **norm})
        bad = [step for one in (loss, norm) for step, value in one.items() if not isfinite(value)]
        held_out = [step for step, value in self.held.items() if not isfinite(value)]
        found: Facts = {"held_out": held_out[0] if held_out else None}
        if (start := _trailing(bad, logged)) is not None:
            was = loss.get(start, 0.0)
            at_once = start == logged[0] and not (was and isfinite(was))
            return {**found, "from": start, "hidden": was == 0, "at_once": at_once}
        if bad:
            found |= {"skipped": len({*bad}), "first": min(bad)}
        if self.reward is not None:
            return found  # a policy's loss is about 0 by its formula
        zero = _trailing([step for step, value in loss.items() if value == 0], list(loss))
        if zero is not None:
            before = [value for step, value in loss.items() if step < zero][-1:]
            by_heart = bool(before) and before[0] < self.limits["by_heart"]
            return {**found, "zero": zero, "by_heart": by_heart}
        return {**found, "still": True if norm and not any(norm.values()) else None}

    def _rate(self, update: str | None) -> Facts:
        rates = {s: rate for s, rate in self.log.of("learning_rate").items() if isfinite(rate)}
        highest, factor = max(rates.values(), default=0.0), self.limits["rate_factor"]
        if highest <= 0:
            return {"zero": True if len(rates) > 1 else None}
        found: Facts = {"max": highest, "lower": highest / factor}
        ended = _trailing([step for step, rate in rates.items() if rate == 0], list(rates))
        if ended is not None and ended < (1 - self.limits["ended"]) * max(rates):
            found["ended"] = ended
        usual = _usual_rate(self.objective, update or "lora")
        found["higher"] = highest * factor if not usual or highest < usual else None
        if usual and update is not None:
            found |= {"usual": usual, "times": highest / usual, "parts": usual / highest}
            found["lower"] = min(usual, highest / factor)
        return found

    def _of_loss(self, loss: Curve) -> Facts:
        found: Facts = {"first": loss.first, "last": loss.last, "noise": loss.noise}
        found["moved"] = loss.moved
        if self.reward is not None or len(loss.values) < 2:
            return found
        lowest = min(range(len(loss.smooth)), key=loss.smooth.__getitem__)
        back, low = loss.last - loss.smooth[lowest], loss.smooth[lowest]
        found |= {"lowest": low, "lowest_step": loss.steps[lowest]}
        beyond = max(self.limits["noise_times"] * loss.noise, 0.1 * abs(loss.first))
        worst = max(self.limits["guessing"], loss.first)
        if self.objective == LOSS_OF_TOKENS and loss.last > worst:
            at = next(at for at, value in enumerate(loss.values) if value > worst)
            found |= {"guesses": True, "diverged": loss.steps[at]}
        elif back > beyond and back >= self.limits["given_back"] * (loss.first - low):
            later = range(lowest, len(loss.smooth))
            found["diverged"] = next(
                (loss.steps[at] for at in later if loss.smooth[at] > low + back / 2), loss.steps[-1]
            )
        norm = curve(self.log.of("grad_norm"))
        if norm is not None and len(norm.values) >= FEW and norm.moved > 0:
            third = len(norm.values) // 3
            before, after = median(norm.values[:third]), median(norm.values[-third:])
            found |= {"norm": after, "norm_times": after / before if before else None}
        if self.held_out is not None and self.held_out.last > 0:
            found["times_eval"] = loss.last / self.held_out.last
        jumps = []
        for at in range(BEFORE, len(loss.values)):
            usual, value = median(loss.values[at - BEFORE : at]), loss.values[at]
            far = max(SPREADS * loss.spread, 0.1 * abs(loss.first))
            if value > TIMES * usual and value - usual > far:
                jumps.append(at)
        if jumps:
            found |= {"jumps": len(jumps), "jump": loss.steps[jumps[0]]}
            found["jump_to"] = loss.values[jumps[0]]
        return found

    def _of_held_out(self, held: Curve) -> Facts:
        values, steps = held.values, held.steps
        best = min(range(len(values)), key=values.__getitem__)
        found = {
            "first": values[0], "last": values[-1], "last_step": steps[-1],
            "best": values[best], "best_step": steps[best],
        }  # fmt: skip
        if len(values) > 1 and values[-2] > 0:
            fell = 1 - values[-1] / values[-2]
            found |= {"fell": fell, "fell_percent": round(100 * fell)}
        rose = values[-1] / values[best] - 1 if values[best] > 0 else 0.0
        if rose >= self.limits["overfits"] and self["loss.diverged"] is None:
            found |= {"overfits": steps[best], "rose_percent": round(100 * rose)}
            epoch = self.log.of("epoch").get(steps[best], 0.0)
            if 0 < epoch < inf:
                found["epochs"] = round(epoch) if epoch >= 1 else float(f"{epoch:.2g}")
        return found

    def _best(self) -> Facts:
        """The best step: by what the trainer was told to compare, else by the held-out loss."""
        named, value = self.log.best.rpartition("-")[2], self.log.state.get("best_metric")
        is_named = named.isdecimal() and len(named) < 16
        step = int(named) if is_named else self["eval.best_step"]
        by = "what the trainer compared" if is_named else "held-out loss"
        for key, values in self.log.series.items():
            if key.startswith("eval_") and value is not None and values.get(step) == value:
                by = "held-out loss" if values is self.held else key.removeprefix("eval_")
        if step is None:
            return {}
        return {
            "step": step, "by": by, "value": value,
            "other": True if is_named and step != self["eval.best_step"] else None,
            "gone": True if self.log.weights_of(step) is None else None,
            "here": ", ".join(map(str, sorted(self.log.checkpoints))) or "none",
            "keep": "best" if step != self["steps.done"] else None,
        }  # fmt: skip

    def _of_pairs(self) -> Facts:
        """Preference runs and reward models."""
        found: Facts = {}
        curves = filter(None, (curve(self.log.of(name)) for name in ACCURACIES))
        if self.objective in PAIRS and (ranked := next(curves, None)):
            share = fmean(ranked.values[-max(1, len(ranked.values) // 3) :])  # batches are small
            found |= {"accuracy": share, "percent": round(100 * share)}
        chosen, rejected = (curve(self.log.of(f"logps/{one}")) for one in ("chosen", "rejected"))
        if chosen is not None and rejected is not None and chosen.moved + rejected.moved == -2:
            found |= {"fall_from": chosen.first, "fall_to": chosen.last}
        return found

    def _of_rewards(self, reward: Curve) -> Facts:
        of = self.log.of
        found: Facts = {"first": reward.first, "last": reward.last, "noise": reward.noise}
        found["moved"] = reward.moved
        equal = [one for one in of("frac_reward_zero_std").values() if isfinite(one)]
        if equal := equal or [float(one == 0) for one in of("reward_std").values()]:
            found |= {"equal": fmean(equal), "equal_percent": round(100 * fmean(equal))}
        if cut := curve(of("completions/clipped_ratio")):
            found |= {"cut": cut.last, "cut_percent": round(100 * cut.last)}
        if (kl := curve(of("kl"))) and kl.moved > 0:
            found["kl"] = kl.last
        return found

    # ------------------------------------------------------------------- whether it learned

    @property
    def word(self) -> str:
        """Better, worse, not distinguishable or not measured: by a policy's rewards, else by the
        loss, the held-out loss, and the margin of pairs.
        """
        if self["broken.from"] is not None:
            return WORSE
        if self["broken.zero"] is not None and not self["broken.by_heart"]:
            return UNCLEAR
        if self.reward is not None:
            return _word(self.reward.moved, len(self.reward.values))
        if self["loss.diverged"] is not None and self["loss.last"] > self["loss.first"]:
            return WORSE
        first, last = self["eval.first"], self["eval.last"]
        if self["eval.overfits"] is not None and self.loss is not None:
            start = max(self.loss.first, first) * (1 + self.limits["no_effect"])
            return WORSE if last > start else BETTER
        moved, count = (0, 0) if self.loss is None else (-self.loss.moved, len(self.loss.values))
        if not moved and self["eval.count"] > 1 and first is not None and first > 0:
            moved, count = int(1 - self["eval.best"] / first >= self.limits["no_effect"]), 3
        margin = None if moved else curve(self.log.of("rewards/margins"))
        return _word(margin.moved if margin is not None else moved, count)


def _word(moved: int, count: int) -> str:
    if moved:
        return BETTER if moved > 0 else WORSE
    return NOT_MEASURED if count < 3 else UNCLEAR


def _trailing(some: Collection[int], all_steps: Sequence[int]) -> int | None:
    """The first of the steps that hold to the end, two at least or all; None if none do."""
    chosen, run = set(some), 0
    while run < len(all_steps) and all_steps[-run - 1] in chosen:
        run += 1
    return all_steps[-run] if run and run >= min(2, len(all_steps)) else None


def _objective_of(series: Mapping[str, Series]) -> str:
    """What it was trained for, by the names of its metrics."""
    if "reward" in series:
        return "grpo"
    if any(one.startswith(("rewards/", "eval_rewards/")) for one in series):
        return "orpo" if any("odds_ratio" in one for one in series) else "dpo"
    return "rm" if {"margin", "eval_margin"} & series.keys() else LOSS_OF_TOKENS


def _usual_rate(objective_name: str, update: str) -> float | None:
    """The learning rate that the rules would set for the method."""
    facts = {"device": "gpu", "architecture": DECODER, "memory_left": "enough"}
    found = settings_by_rule(load_rules(), {**facts, **axes_of(objective_name, update, None)})
    return float(found[RATE].value) if RATE in found else None
