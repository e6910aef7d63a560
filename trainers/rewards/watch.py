"""Signs in the numbers of a stage that learns from its own answers that they teach little, or teach
the wrong thing; and what became of each reward.

Limits and reasons stand in rules/data/rollouts.yaml. Nothing here ends a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from advisor.methods.rewards import RolloutWarning, rollout_warnings
from advisor.record.stage import Check, RewardRecord
from trainers.rewards.scoring import Reward, Rewards
from trainers.say.metrics_file import metrics_line

FIRST = 3  # the mean of so many lines is the start of the run
SHARES = ("zero_spread", "cut", "clipped")
# Number -> its names in metrics.jsonl, of TRL's trainers and of PPO's.
NAMES: Mapping[str, tuple[str, ...]] = {
    "zero_spread": ("frac_reward_zero_std",),
    "cut": ("completions_clipped_ratio", "cut"),
    "clipped": ("clip_ratio_region_mean", "clip_fraction"),
    "tokens": ("completions_mean_length", "response_tokens"),
    "reward": ("reward",),
}


class Watch:
    """Looks at each line of metrics; holds what it has warned of."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []
        self.warned: dict[str, str] = {}  # name -> text

    def see_earlier(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Take note of the lines of earlier attempts, which have warned by themselves."""
        for line in lines:
            self.see(line)

    def see(self, line: Mapping[str, Any]) -> list[str]:
        """What is wrong and was not said before."""
        self.lines.append(numbers_of(line))
        most = max(warning.lines for warning in rollout_warnings().values())
        del self.lines[FIRST:-most]
        new = {
            name: text for name, text in warnings_of(self.lines).items() if name not in self.warned
        }
        self.warned |= {name: f"step {line['step']}: {text}" for name, text in new.items()}
        return list(new.values())

    def checks(self) -> list[Check]:
        """What was warned of, for the result."""
        return [Check(f"rollouts-{name}", False, text) for name, text in self.warned.items()]


def numbers_of(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics by the names above, as far as it has them."""
    return {
        name: float(line[key])
        for name, keys in NAMES.items()
        for key in keys
        if isinstance(line.get(key), int | float)
    }


def warnings_of(lines: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """Name -> what is wrong, with numbers and what to change.

    Args:
        lines: The first lines of the run, and the last ones, as `numbers_of` gives them.
    """
    found = {}
    for name, limit in rollout_warnings().items():
        if len(lines) < limit.lines:
            continue
        recent = lines[-limit.lines :]
        number = mean_of(recent, name) if name in SHARES else _grown(lines[:FIRST], recent)
        if number is not None and number > limit.limit:
            found[name] = _sentence(name, number, limit, lines[:FIRST], recent)
    return found


def mean_of(lines: Sequence[Mapping[str, float]], name: str) -> float | None:
    """The mean of a number over the lines; None if one of them has none."""
    values = [line[name] for line in lines if name in line]
    return sum(values) / len(values) if values and len(values) == len(lines) else None


def _grown(
    first: Sequence[Mapping[str, float]], recent: Sequence[Mapping[str, float]]
) -> float | None:
    """How many times as long answers are as at the start; None if the reward did not rise."""
    ends = [mean_of(part, name) for name in ("tokens", "reward") for part in (first, recent)]
    tokens_first, tokens, reward_first, reward = ends
    if None in ends or not tokens_first or (reward or 0.0) <= (reward_first or 0.0):
        return None
    return (tokens or 0.0) / tokens_first


def _sentence(
    name: str,
    number: float,
    limit: RolloutWarning,
    first: Sequence[Mapping[str, float]],
    recent: Sequence[Mapping[str, float]],
) -> str:
    if name in SHARES:
        return (
            f"{number:.0%} of {limit.what} (mean of the last {limit.lines} lines; the limit is"
            f" {limit.limit:.0%}): {limit.because}. {limit.hint[:1].upper()}{limit.hint[1:]}"
        )
    was, now = mean_of(first, "tokens"), mean_of(recent, "tokens")
    low, high = mean_of(first, "reward"), mean_of(recent, "reward")
    return (
        f"the reward rose from {low:.3g} to {high:.3g} while answers grew from {was:.0f} to"
        f" {now:.0f} tokens: {limit.because}. {limit.hint[:1].upper()}{limit.hint[1:]}"
    )


# --------------------------------------------------------------------------- afterwards


def stage_lines(path: Path, *, stage: str, task: str | None) -> list[dict[str, Any]]:
    """The lines of a stage in metrics.jsonl, those of earlier attempts included."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    return [
        line
        for line in filter(None, map(metrics_line, lines))
        if (line.get("stage"), line.get("task")) == (stage, task)
    ]


def reward_records(
    lines: Sequence[Mapping[str, Any]], rewards: Sequence[Reward]
) -> tuple[RewardRecord, ...]:
    """What became of each reward over the whole run, by the lines of metrics; empty for one."""
    if len(rewards) < 2:
        return ()
    return tuple(_record(lines, reward) for reward in rewards)


def _record(lines: Sequence[Mapping[str, Any]], reward: Reward) -> RewardRecord:
    means, spreads, missing = (
        _values(lines, reward.key, number) for number in ("mean", "std", "missing")
    )
    return RewardRecord(
        name=reward.key,
        weight=reward.weight,
        first=means[0] if means else None,
        last=means[-1] if means else None,
        spread=sum(spreads) / len(spreads) if spreads else None,
        missing=sum(missing) / len(missing) if missing else None,
        constant=bool(means)
        and max(spreads, default=0.0) < 1e-9
        and max(means) - min(means) < 1e-9,
    )


def _values(lines: Sequence[Mapping[str, Any]], name: str, number: str) -> list[float]:
    """A number of one reward in each line that has it."""
    found = (line.get(f"rewards/{name}/{number}") for line in lines)
    return [value for value in found if isinstance(value, int | float)]


def reward_checks(records: Sequence[RewardRecord], rewards: Sequence[Reward]) -> list[Check]:
    """Rewards that told no two answers apart: a warning, unless it is a penalty that nothing
    deserved.
    """
    penalties = {reward.key for reward in rewards if reward.is_penalty}
    found = []
    for one in records:
        if not one.constant:
            continue
        name = f"reward-{one.name}-differs"
        if one.name in penalties and not one.last:
            found.append(Check(name, True, f"no answer of the training got the penalty {one.name}"))
            continue
        text = (
            f"reward {one.name} gave {one.last:g} to every answer of the training: it taught"
            " nothing. Remove it, or make it tell answers apart"
        )
        found.append(Check(name, False, text))
    return found


def missing_checks(lines: Sequence[Mapping[str, Any]], rewards: Sequence[Reward]) -> list[Check]:
    """Rewards that did not score every answer, with their share over the whole run."""
    found = []
    for reward in rewards:
        shares = _values(lines, reward.key, "missing")
        if sum(shares):
            share = sum(shares) / len(shares)
            text = (
                f"reward {reward.key} gave no score to {share:.1%} of the answers: it was left out"
                " for them"
            )
            found.append(Check(f"reward-{reward.key}-missing", True, text))
    return found


def differ_checks(rewards: Rewards) -> list[Check]:
    """Whether the answers of the training got different rewards; nothing if none was scored here:
    another attempt has trained all of it.
    """
    if not rewards.seen:
        return []
    text = (
        rewards.constant_text()
        if rewards.constant
        else f"{rewards.name} gave different rewards to the answers of the training"
    )
    return [Check("rewards-differ", not rewards.constant, text)]
