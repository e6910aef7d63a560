"""Signs in the numbers of a stage that learns from its own answers that they teach little, or teach
the wrong thing; and what became of each reward.

Limits and reasons stand in rules/data/rollouts.yaml. Nothing here ends a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from advisor.methods.rewards import rollout_warnings
from advisor.record.stage import Check, RewardRecord
from trainers.job.job import Job
from trainers.rewards.scoring import Reward, Rewards
from trainers.say.metrics_file import metrics_line

FIRST = 3  # the mean of so many lines is the start of the run
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
        self.lines.append(
            {
                name: float(line[key])
                for name, keys in NAMES.items()
                for key in keys
                if isinstance(line.get(key), int | float)
            }
        )
        most = max(warning.lines for warning in rollout_warnings().values())
        del self.lines[FIRST:-most]
        found = warnings_of(self.lines)
        new = {name: text for name, text in found.items() if name not in self.warned}
        self.warned |= {name: f"step {line['step']}: {text}" for name, text in new.items()}
        return list(new.values())

    def checks(self) -> list[Check]:
        """What was warned of, for the result."""
        return [Check(f"rollouts-{name}", False, text) for name, text in self.warned.items()]


def warnings_of(lines: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """Name -> what is wrong, with numbers and what to change.

    Args:
        lines: Numbers by NAMES: of the first lines of the run, and of the last ones.
    """
    found = {}
    for name, limit in rollout_warnings().items():
        recent = lines[-limit.lines :]
        if len(recent) < limit.lines:
            continue
        if name == "length":
            said = rise_in_length(lines[:FIRST], recent, limit.limit)
        else:
            share, said = mean_of(recent, name), ""
            if share is not None and share > limit.limit:
                lines_mean = f"mean of the last {limit.lines} lines; the limit is {limit.limit:.0%}"
                said = f"{share:.0%} of {limit.what} ({lines_mean})"
        if said:
            found[name] = f"{said}: {limit.because}. {limit.hint[:1].upper()}{limit.hint[1:]}"
    return found


def mean_of(lines: Sequence[Mapping[str, float]], name: str) -> float | None:
    """The mean of a number over the lines; None if one of them has none."""
    values = [line[name] for line in lines if name in line]
    return sum(values) / len(values) if values and len(values) == len(lines) else None


def rise_in_length(
    first: Sequence[Mapping[str, float]], recent: Sequence[Mapping[str, float]], times: float
) -> str:
    """How the reward rose while answers grew to more than so many times their length; "" if they
    did not.
    """
    was, now = mean_of(first, "tokens"), mean_of(recent, "tokens")
    low, high = mean_of(first, "reward"), mean_of(recent, "reward")
    if not was or now is None or low is None or high is None or high <= low or now <= times * was:
        return ""
    return (
        f"the reward rose from {low:.3g} to {high:.3g} while answers grew from {was:.0f} to"
        f" {now:.0f} tokens"
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


def reward_checks(lines: Sequence[Mapping[str, Any]], rewards: Sequence[Reward]) -> list[Check]:
    """Rewards that told no two answers apart: a warning, unless it is a penalty that nothing
    deserved; and rewards that did not score every answer, with their share over the whole run.
    """
    found = []
    for reward, one in zip(rewards, reward_records(lines, rewards), strict=False):
        if not one.constant:
            continue
        is_fine = reward.is_penalty and not one.last
        text = (
            f"no answer of the training got the penalty {one.name}"
            if is_fine
            else f"reward {one.name} gave {one.last:g} to every answer of the training: it taught"
            " nothing. Remove it, or make it tell answers apart"
        )
        found.append(Check(f"reward-{one.name}-differs", is_fine, text))
    for reward in rewards:
        shares = _values(lines, reward.key, "missing")
        if sum(shares):
            text = (
                f"reward {reward.key} gave no score to {sum(shares) / len(shares):.1%} of the"
                " answers: it was left out for them"
            )
            found.append(Check(f"reward-{reward.key}-missing", True, text))
    return found


def about_rewards(
    job: Job, rewards: Sequence[Reward]
) -> tuple[tuple[RewardRecord, ...], list[Check]]:
    """(what became of each of several rewards, what was noticed), once training is over."""
    lines = stage_lines(job.run / "metrics.jsonl", stage=job.stage.name, task=job.task)
    return reward_records(lines, rewards), reward_checks(lines, rewards)


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
