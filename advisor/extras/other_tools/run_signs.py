"""What the log of a run shows: facts for the rules of rules/tools/runs.yaml, and whether it
learned, in the words of our own verdicts. The limits are those of rules/verdict.yaml.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
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
BLOWN = 2.0  # times what was usual before: a jump
DEFAULT_OBJECTIVE, PAIRS = "sft", ("dpo", "orpo", "rm")
DIGITS = ".3g"


class Curve(Struct, frozen=True, kw_only=True):
    """A metric over the steps of a run."""

    steps: Sequence[int]
    values: Sequence[float]
    first: float  # mean of the first values
    last: float
    spread: float  # standard deviation of a single value
    noise: float  # standard error of last - first
    moved: int  # 1: rose, -1: fell, 0: no change beyond its noise
    lowest_at: int  # index of the lowest smoothed value
    lowest: float

    @property
    def width(self) -> int:
        """How many values a smoothed one is the mean of."""
        return _part(len(self.values), TAIL)


def _part(count: int, of: tuple[int, int]) -> int:
    share, most = of
    return max(1, min(most, count // share))


def curve(points: Series, known: Mapping[str, float]) -> Curve | None:
    """The finite values of a metric with their direction; None without any.

    It moved if its ends, or its first and last third, differ by more than their noise and by more
    than the share that anybody sees. The noise is that of neighbours, so that a slope is none.
    """
    pairs = [(step, value) for step, value in points.items() if isfinite(value)]
    if not pairs:
        return None
    steps, values = zip(*pairs, strict=True)
    count = len(values)
    head, tail = _part(count, HEAD), _part(count, TAIL)
    first, last = fmean(values[:head]), fmean(values[-tail:])
    spread = known["assumed_noise"] * abs(first)
    if count >= FEW:
        spread = median(abs(after - before) for before, after in pairwise(values)) / TYPICAL
    noise, moved = spread * sqrt(1 / head + 1 / tail), 0
    ends = [(last - first, noise)]
    if count >= FEW:
        third = count // 3
        ends.append((fmean(values[-third:]) - fmean(values[:third]), spread * sqrt(2 / third)))
    seen = known["no_effect"] * max(abs(first), abs(last))
    for change, error in ends:
        if count > 1 and abs(change) > max(seen, known["noise_times"] * error):
            moved = moved or (1 if change > 0 else -1)
    if moved * (last - first) < 0:  # it went away from its first value, and half way back
        moved = 0
    smooth = _smooth(values, tail)
    lowest = min(range(len(smooth)), key=smooth.__getitem__)
    return Curve(
        steps=steps, values=values, first=first, last=last, spread=spread, noise=noise,
        moved=moved, lowest_at=lowest, lowest=smooth[lowest],
    )  # fmt: skip


def _smooth(values: Sequence[float], width: int) -> list[float]:
    """The mean of each stretch of so many values."""
    total, found = sum(values[:width]), list[float]()
    for at in range(width, len(values) + 1):
        found.append(total / width)
        total += (values[at] if at < len(values) else 0.0) - values[at - width]
    return found


def sig(value: float) -> float:
    """The number with three figures."""
    return float(f"{value:{DIGITS}}")


class Signs:
    """The facts of one run. What is not there was not logged."""

    def __init__(self, log: RunLog, update: str | None) -> None:
        self.log, self.limits = log, limits()
        self.curve: Callable[[Series], Curve | None] = partial(curve, known=self.limits)
        series = log.series
        self.objective = _objective_of(series)
        # Of several held-out sets, each with its name in the key, the first.
        named = (key for key in series if key.startswith("eval_") and key.endswith("_loss"))
        self.held = log.of("eval_loss") or log.of(next(named, ""))
        self.held_out = self.curve(self.held)
        self.reward, self.margin = (
            self.curve(log.of("reward")),
            self.curve(log.of("rewards/margins")),
        )
        self.facts: dict[str, Any] = {
            "objective": self.objective,
            "log.points": len(log.of("loss")),
        }
        self.facts |= {f"limit.{name}": value for name, value in self.limits.items()}
        self._add("steps", self._steps())
        self._add("broken", self._broken())
        until = inf if self["broken.from"] is None else self["broken.from"]
        self.loss = self.curve({s: value for s, value in log.of("loss").items() if s < until})
        self._add("rate", self._rate(update))
        if self.loss is not None:
            self._add("loss", self._of_loss(self.loss))
        if self.held_out is not None:
            self._add("eval", self._of_held_out(self.held_out))
        self._add("eval", {"count": len(self.held)})
        self._add("best", self._best())
        self._add("pairs", self._pairs())
        self._add("reward", self._rewards())
        self.facts["learned"] = self.word

    def _add(self, name: str, found: Mapping[str, Any] | Iterator[tuple[str, Any]]) -> None:
        for key, value in dict(found).items():
            if value is not None:
                number = isinstance(value, float) and isfinite(value)
                self.facts[f"{name}.{key}"] = sig(value) if number else value

    def __getitem__(self, name: str) -> Any:
        return self.facts.get(name)

    # ------------------------------------------------------------------- facts

    def _steps(self) -> Iterator[tuple[str, Any]]:
        state = self.log.state
        done, planned = int(state["global_step"]), int(max(0, state.get("max_steps", 0)))
        least = objective(self.objective).steps.get("least")
        yield from {"done": done, "planned": planned or None, "least": least}.items()
        yield "left", max(0, planned - done) if planned else None
        epochs = state.get("num_train_epochs", 0)
        yield "epoch", state.get("epoch")
        if epochs > 0:
            twice = 2 * epochs
            yield from {"epochs": epochs, "twice": int(twice) if twice % 1 == 0 else twice}.items()

    def _broken(self) -> Iterator[tuple[str, Any]]:
        """Steps whose loss or gradient is no number, or whose loss or gradient is exactly 0."""
        loss, norm = self.log.of("loss"), self.log.of("grad_norm")
        bad = [s for s in {**norm, **loss} if not _finite(loss, s) or not _finite(norm, s)]
        logged = sorted({**loss, **norm})
        start = _trailing(sorted(bad), logged)
        if start is not None:
            yield "from", start
            yield "hidden", not loss.get(start)
            yield (
                "at_once",
                start == logged[0] and not (isfinite(loss.get(start, 0)) and loss.get(start)),
            )
        elif bad:
            yield from {"skipped": len(bad), "first": min(bad)}.items()
        bad = [step for step, value in self.held.items() if not isfinite(value)]
        yield "held_out", bad[0] if bad else None
        if self.reward is not None or start is not None:
            return  # a policy's loss is about 0 by its formula
        zero = _trailing([step for step, value in loss.items() if value == 0], list(loss))
        if zero is not None:
            before = [value for step, value in loss.items() if step < zero][-1:]
            yield "zero", zero
            yield "at_heart", bool(before) and before[0] < self.limits["by_heart"]
        elif norm and not any(norm.values()):
            yield "still", True

    def _rate(self, update: str | None) -> Iterator[tuple[str, Any]]:
        rates = {s: rate for s, rate in self.log.of("learning_rate").items() if isfinite(rate)}
        highest, steps = max(rates.values(), default=0.0), list(rates)
        if rates and len(rates) > 1 and highest == 0:
            yield "zero", True
        ended = _trailing([step for step, rate in rates.items() if rate == 0], steps)
        if highest and ended is not None and ended < (1 - self.limits["ended"]) * steps[-1]:
            yield "ended", ended
        if not highest:
            return
        factor = self.limits["rate_factor"]
        usual = _usual_rate(self.objective, update) if update is not None else None
        yield from {"max": highest, "lower": highest / factor, "higher": highest * factor}.items()
        if usual:
            yield from {"usual": usual, "times": highest / usual, "parts": usual / highest}.items()
            yield "lower", min(usual, highest / factor)

    def _of_loss(self, loss: Curve) -> Iterator[tuple[str, Any]]:
        yield from {"first": loss.first, "last": loss.last, "noise": loss.noise}.items()
        yield "moved", loss.moved
        yield "change", round(100 * (loss.last / loss.first - 1)) if loss.first else None
        if self.reward is not None or len(loss.values) < 2:
            return
        yield from {"lowest": loss.lowest, "lowest_step": loss.steps[loss.lowest_at]}.items()
        back = loss.last - loss.lowest
        gained = max(loss.first - loss.lowest, 0.0)
        worst = max(self.limits["guessing"], loss.first)
        if self.objective == DEFAULT_OBJECTIVE and loss.last > worst:
            at = next(at for at, value in enumerate(loss.values) if value > worst)
            yield from {"guesses": True, "diverged": loss.steps[at]}.items()
        beyond = back > max(self.limits["noise_times"] * loss.noise, 0.1 * abs(loss.first))
        if beyond and back >= self.limits["given_back"] * gained:
            middle = loss.lowest + back / 2
            smooth = _smooth(loss.values, loss.width)
            later = range(loss.lowest_at, len(smooth))
            yield "diverged", loss.steps[next(at for at in later if smooth[at] > middle)]
        yield from self._jumps(loss)
        if self.held_out is not None and self.held_out.last > 0:
            yield "times_eval", loss.last / self.held_out.last

    def _jumps(self, loss: Curve) -> Iterator[tuple[str, Any]]:
        """Single values far above those before them."""
        found = [
            at
            for at in range(5, len(loss.values))
            if loss.values[at] > BLOWN * (usual := median(loss.values[at - 5 : at]))
            and loss.values[at] - usual > max(8 * loss.spread, 0.1 * abs(loss.first))
        ]
        if found:
            yield from {
                "jumps": len(found), "jump": loss.steps[found[0]], "jump_to": loss.values[found[0]],
            }.items()  # fmt: skip

    def _of_held_out(self, found: Curve) -> Iterator[tuple[str, Any]]:
        values, steps = found.values, found.steps
        best = min(range(len(values)), key=values.__getitem__)
        yield from {"first": values[0], "last": values[-1], "last_step": steps[-1]}.items()
        yield from {"best": values[best], "best_step": steps[best]}.items()
        if len(values) > 1 and values[-2] > 0:
            yield "fell", 1 - values[-1] / values[-2]
            yield "fell_percent", round(100 * (1 - values[-1] / values[-2]))
        rose = values[-1] / values[best] - 1 if values[best] > 0 else 0.0
        if best < len(values) - 1 and rose >= self.limits["overfits"] and not self["loss.diverged"]:
            yield from {"overfits": steps[best], "rose_percent": round(100 * rose)}.items()
            epoch = self.log.of("epoch").get(steps[best], 0.0)
            if 0 < epoch < inf:
                yield "epochs", float(f"{epoch:.2g}") if epoch < 1 else round(epoch)

    def _best(self) -> Iterator[tuple[str, Any]]:
        """The best step: by what the trainer was told to compare, else by the held-out loss."""
        named = self.log.best.rpartition("-")[2]
        is_step = named.isdecimal() and len(named) < 16
        step, by = (int(named), "the trainer") if is_step else (None, "")
        if step is None and self.held_out is not None:
            step = self["eval.best_step"]
        if step is None:
            return
        value = self.log.state.get("best_metric")
        for key, values in self.log.series.items():
            if key.startswith("eval_") and value is not None and values.get(step) == value:
                by = key.removeprefix("eval_")
        yield from {"step": step, "by": by or "loss", "value": value}.items()
        yield "other", by not in ("", "loss", "the trainer") or None

    def _pairs(self) -> Iterator[tuple[str, Any]]:
        """Preference runs, and the accuracy of reward models."""
        of = self.log.of
        accuracy = next(
            (found for name in ("eval_rewards/accuracies", "rewards/accuracies", "eval_accuracy",
                                "accuracy") if (found := self.curve(of(name)))), None,
        )  # fmt: skip
        if self.objective in PAIRS and accuracy is not None:
            yield from {"accuracy": accuracy.last, "percent": round(100 * accuracy.last)}.items()
        chosen, rejected = self.curve(of("logps/chosen")), self.curve(of("logps/rejected"))
        if chosen is not None and rejected is not None:
            fall = chosen.first - chosen.last
            yield from {"chosen_first": chosen.first, "chosen_last": chosen.last}.items()
            yield "both_fall", chosen.moved < 0 and rejected.moved < 0 and fall > 0

    def _rewards(self) -> Iterator[tuple[str, Any]]:
        if self.reward is None:
            return
        yield from {"first": self.reward.first, "last": self.reward.last}.items()
        yield "noise", self.reward.noise
        yield "moved", self.reward.moved
        of = self.log.of
        equal = [one for one in of("frac_reward_zero_std").values() if isfinite(one)]
        if not equal:
            equal = [float(one == 0) for one in of("reward_std").values()]
        if equal:
            yield from {"equal": fmean(equal), "equal_percent": round(100 * fmean(equal))}.items()
        if cut := self.curve(of("completions/clipped_ratio")):
            yield from {"cut": cut.last, "cut_percent": round(100 * cut.last)}.items()
        if kl := self.curve(of("kl")):
            yield from {"kl": kl.last, "kl_rose": kl.moved > 0}.items()

    # ------------------------------------------------------------------- whether it learned

    @property
    def main(self) -> Curve | None:
        """The metric that says whether it learned: rewards of a policy, else the loss."""
        return self.reward or self.loss

    @property
    def word(self) -> str:
        """Better, worse, not distinguishable or not measured."""
        if self["broken.from"] is not None:
            return WORSE
        if self["broken.zero"] is not None and not self["broken.at_heart"]:
            return UNCLEAR
        if self.reward is not None:
            return _word(self.reward.moved, len(self.reward.values))
        if self["loss.diverged"] is not None and self["loss.last"] > self["loss.first"]:
            return WORSE
        last, start = self["eval.last"], self.loss.first if self.loss is not None else None
        if last is not None and start is not None and self["eval.overfits"] is not None:
            first = max(start, self["eval.first"])
            return WORSE if last > first * (1 + self.limits["no_effect"]) else BETTER
        moved, count = (0, 0) if self.loss is None else (-self.loss.moved, len(self.loss.values))
        if not moved and self.held_out is not None and len(self.held_out.values) > 1:
            held = self["eval.best"] / self["eval.first"] - 1 if self["eval.first"] else 0.0
            moved, count = int(-held >= self.limits["no_effect"]), len(self.held_out.values)
        if not moved and self.margin is not None:
            moved = self.margin.moved
        return _word(moved, count)


def _word(moved: int, count: int) -> str:
    if moved:
        return BETTER if moved > 0 else WORSE
    return NOT_MEASURED if count < 3 else UNCLEAR


def _finite(values: Series, step: int) -> bool:
    return isfinite(values.get(step, 0.0))


def _trailing(some: Sequence[int], all_steps: Sequence[int]) -> int | None:
    """The first of the steps that hold to the end, two at least or all; None if none do."""
    chosen, run = set(some), 0
    for step in reversed(all_steps):
        if step not in chosen:
            break
        run += 1
    return all_steps[-run] if run and run >= min(2, len(all_steps)) else None


def _objective_of(series: Mapping[str, Series]) -> str:
    """What it was trained for, by the names of its metrics."""
    names = series.keys()
    if "reward" in names:
        return "grpo"
    if any(one.startswith(("rewards/", "eval_rewards/")) for one in names):
        return "orpo" if any("odds_ratio" in one for one in names) else "dpo"
    is_reward = {"margin", "mean_reward", "eval_margin", "eval_mean_reward"} & names
    return "rm" if is_reward else DEFAULT_OBJECTIVE


def _usual_rate(objective_name: str, update: str) -> float | None:
    """The learning rate that the rules would set for the method."""
    facts = {"device": "gpu", "architecture": DECODER, "memory_left": "enough"}
    found = settings_by_rule(load_rules(), {**facts, **axes_of(objective_name, update, None)})
    return float(found[RATE].value) if RATE in found else None
