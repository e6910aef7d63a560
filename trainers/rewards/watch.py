"""Signs in the numbers of a stage that learns from its own answers that they teach little, or teach
the wrong thing; and what became of each reward.

Limits and reasons of what is said of every such stage stand in rules/data/rollouts.yaml. PPO, which
alone has a policy that a bound holds near the reference model, is looked at more closely, and some
of that ends its run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from advisor.methods.rewards import rollout_warnings
from advisor.record.stage import Check, RewardRecord
from trainers.job.job import Job
from trainers.rewards.scoring import Reward, Rewards
from trainers.say.progress import metric_name, stage_lines, tell

FIRST = 3  # the mean of so many lines is the start of the run
# Number -> its names in metrics.jsonl, of TRL's trainers and of PPO's.
NAMES: Mapping[str, tuple[str, ...]] = {
    "zero_spread": ("frac_reward_zero_std",),
    "cut": ("completions_clipped_ratio", "cut"),
    "clipped": ("clip_ratio_region_mean", "clip_fraction"),
    "tokens": ("completions_mean_length", "response_tokens"),
}
ALIKE = 1e-6  # standard deviation of equal rewards: their mean in float32 is rounded
# Updates in a row in which all answers got the same reward: a rare one may be missed a few times.
CONSTANT = 5
# Entropy below this share of the first is reported. It does not stop the run, since some tasks have
# one right answer.
THIN = 0.2
SHORT = 0.2  # of the first answers' length
STOP = ("kl", "constant-reward", "short")  # what no PPO run can learn with
LEAST_TOKENS = 4.0  # answers that were shorter at the start cannot collapse

Lines = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Finding:
    name: str
    what: str
    hint: str
    stops: bool = False  # ends the run, unless it is a trial


class Watch:
    """Looks at each line of metrics; holds what it has warned of.

    Args:
        kl_limit: Nats per token that PPO's policy may move from the reference model; None: not PPO.
    """

    def __init__(self, kl_limit: float | None = None) -> None:
        self.kl_limit = kl_limit
        self.lines: list[Mapping[str, Any]] = []  # the first and the last ones
        self.found: list[Finding] = []  # in the last line
        self.warned: dict[str, str] = {}  # name -> text

    def see_earlier(self, lines: Lines) -> None:
        """Take note of the lines of earlier attempts, which have warned by themselves."""
        for line in lines:
            self.see(line)

    def see(self, line: Mapping[str, Any]) -> list[str]:
        """What is wrong and was not said before."""
        self.lines.append({"cut": 1 - line["ended"], **line} if "ended" in line else line)
        most = max(CONSTANT, *(warning.lines for warning in rollout_warnings().values()))
        del self.lines[FIRST:-most]
        self.found = warnings_of(self.lines)
        if self.kl_limit is not None:
            self.found += policy_findings(self.lines, kl_limit=self.kl_limit)
        new = {
            one.name: f"{one.what}: {one.hint}" for one in self.found if one.name not in self.warned
        }
        self.warned |= {name: f"step {line['step']}: {text}" for name, text in new.items()}
        return list(new.values())

    def checks(self) -> list[Check]:
        """What was warned of, for the result."""
        return [Check(f"rollouts-{name}", False, text) for name, text in self.warned.items()]


def watching(job: Job, watch: Watch, names: Sequence[str]) -> Any:
    """A callback that says once what is wrong with the numbers of a trainer of TRL.

    Args:
        names: Of the trainer's logs that metrics.jsonl has.
    """
    from transformers import TrainerCallback

    class Watching(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            watch.see_earlier(lines_of(job))

        def on_log(self, _: Any, state: Any, *__: Any, logs: Any, **___: Any) -> None:
            if "loss" in logs:
                line = {metric_name(name): logs[name] for name in names if name in logs}
                for text in watch.see({**line, "step": state.global_step}):
                    tell(job, f"WARNING: {text}")

    return Watching()


def lines_of(job: Job) -> Lines:
    return stage_lines(job.run / "metrics.jsonl", stage=job.stage.name, task=job.task)


def warnings_of(lines: Lines) -> list[Finding]:
    """What passes a limit of rules/data/rollouts.yaml, with numbers and what to change.

    Args:
        lines: The first lines of the run, and the last ones.
    """
    found = []
    for name, limit in rollout_warnings().items():
        recent = lines[-limit.lines :]
        if len(recent) < limit.lines:
            continue
        if name == "length":
            was, now, low, high = (
                math.nan if (mean := mean_of(part, key)) is None else mean  # never more or less
                for key in ("tokens", "reward")
                for part in (lines[:FIRST], recent)
            )
            said = (
                f"the reward rose from {low:.3g} to {high:.3g} while answers grew from {was:.0f}"
                f" to {now:.0f} tokens"
                if was and high > low and now > limit.limit * was
                else ""
            )
        else:
            share, said = mean_of(recent, name), ""
            if share is not None and share > limit.limit:
                lines_mean = f"mean of the last {limit.lines} lines; the limit is {limit.limit:.0%}"
                said = f"{share:.0%} of {limit.what} ({lines_mean})"
        if said:
            hint = f"{limit.because}. {limit.hint[:1].upper()}{limit.hint[1:]}"
            found.append(Finding(name, said, hint))
    return found


def mean_of(lines: Lines, name: str) -> float | None:
    """The mean of a number over the lines; None if one of them has none."""
    values = [
        value
        for line in lines
        for key in NAMES.get(name, (name,))
        if isinstance(value := line.get(key), int | float)
    ]
    return sum(values) / len(values) if values and len(values) == len(lines) else None


def policy_findings(lines: Lines, *, kl_limit: float) -> list[Finding]:
    """What is wrong with PPO's policy after the last update.

    Args:
        lines: Metrics of the first updates, and of the last ones.
        kl_limit: Nats per token that the policy may move from the reference model.
    """
    now, recent, is_begun = lines[-1], lines[-CONSTANT:], len(lines) > FIRST
    entropy, tokens, reward = (
        mean_of(lines[:FIRST], name) or 0.0 for name in ("entropy", "tokens", "reward")
    )
    kept = max(1.5, SHORT * tokens)
    found = {
        "kl": (
            now["kl"] > kl_limit,
            f"the policy has moved {now['kl']:.2f} nats per token from the reference model, the"
            f" bound is {kl_limit:g}",
            "raise kl_coef (double it), lower the learning_rate (a third of it) or ppo_epochs;"
            " kl_limit moves the bound",
        ),
        "constant-reward": (
            len(recent) == CONSTANT and all(line["reward_spread"] < 1e-9 for line in recent),
            f"every answer of the last {CONSTANT} updates got the same reward"
            f" ({now['reward']:.3g}): there is nothing to learn from",
            "look at what the reward returns: a reward model that was not trained, a function that"
            " gives every answer the same number, or answers that are all the same",
        ),
        "entropy": (
            is_begun and now["entropy"] < THIN * entropy,
            f"the policy hardly varies its answers any more: entropy {now['entropy']:.2f} nats,"
            f" {entropy:.2f} at the start",
            "raise kl_coef, lower the learning_rate, or raise the temperature",
        ),
        "short": (
            is_begun and tokens >= LEAST_TOKENS and now["response_tokens"] < kept,
            f"answers have shrunk to {now['response_tokens']:.1f} tokens, from {tokens:.1f} at the"
            " start",
            "the reward may favour empty answers: look at its scores of short answers, or raise"
            " kl_coef",
        ),
        "gamed": (
            is_begun and is_gamed(now, reward),
            f"the reward is being gamed: it rose from {reward:.3g} to {now['reward']:.3g} in"
            f" training, but on held-out prompts the answers win {now.get('holdout_wins')} and"
            f" lose {now.get('holdout_losses')} against those of the start",
            "take an earlier checkpoint, raise kl_coef, use more prompts, or a better reward model",
        ),
    }
    return [
        Finding(name, what, hint, stops=name in STOP)
        for name, (is_wrong, what, hint) in found.items()
        if is_wrong
    ]


def is_gamed(now: Mapping[str, Any], reward_first: float) -> bool:
    """Whether the training reward rises while answers to held-out prompts lose against those of the
    start more often than chance allows.

    Args:
        now: Metrics of the last update: reward, and how many held-out prompts have an answer that
            scores above that of the start (holdout_wins) or below (holdout_losses).
        reward_first: The training reward of the first updates.

    Source: a one-sided sign test at 5 %, by the normal approximation.
    """
    wins, losses = now.get("holdout_wins", 0), now.get("holdout_losses", 0)
    decided = wins + losses
    if decided < 5 or now["reward"] <= reward_first:
        return False
    return bool((losses - wins) / math.sqrt(decided) >= 1.645)


# --------------------------------------------------------------------------- afterwards


def about_rewards(
    job: Job, rewards: Sequence[Reward]
) -> tuple[tuple[RewardRecord, ...], list[Check]]:
    """What `rewards_in` finds in the lines of the whole stage, once training is over."""
    return rewards_in(lines_of(job), rewards)


def differ_check(lines: Lines, rewards: Rewards) -> Check:
    """Whether the answers of the whole stage got different rewards: else nothing was learned.

    Args:
        lines: Of the stage in metrics.jsonl, those of earlier attempts among them.
    """
    if not lines or any((line.get("reward_std") or 0.0) > ALIKE for line in lines):
        text = f"{rewards.name} gave different rewards to answers to one prompt"
        return Check("rewards-differ", True, text)
    gave = f"{lines[-1].get('reward') or 0.0:.3g} to every answer of the last step"
    text = f"{rewards.name} never told two answers to one prompt apart, and gave {gave}"
    return Check("rewards-differ", False, text)


def rewards_in(
    lines: Lines, rewards: Sequence[Reward]
) -> tuple[tuple[RewardRecord, ...], list[Check]]:
    """(what became of each of several rewards over the whole run, what was noticed).

    A reward that told no two answers apart is a warning, unless it is a penalty that nothing
    deserved; one that did not score every answer is named with the share.

    Args:
        lines: Of the stage in metrics.jsonl.
        rewards: Of the stage.
    """
    records, checks = [], []
    for reward in rewards:
        means, spreads, missing = (
            [value for line in lines if isinstance(value := line.get(name), int | float)]
            for name in (f"rewards/{reward.key}/{one}" for one in ("mean", "std", "missing"))
        )
        is_constant = bool(means) and max([*spreads, max(means) - min(means)]) < 1e-9
        if len(rewards) > 1:
            record = RewardRecord(
                name=reward.key,
                weight=reward.weight,
                first=means[0] if means else None,
                last=means[-1] if means else None,
                spread=sum(spreads) / len(spreads) if spreads else None,
                missing=sum(missing) / len(missing) if missing else None,
                constant=is_constant,
            )
            records.append(record)
            if is_constant:
                is_fine = reward.is_penalty and not means[-1]
                text = (
                    f"no answer of the training got the penalty {reward.key}"
                    if is_fine
                    else f"reward {reward.key} gave {means[-1]:g} to every answer of the training:"
                    " it taught nothing. Remove it, or make it tell answers apart"
                )
                checks.append(Check(f"reward-{reward.key}-differs", is_fine, text))
        if sum(missing):
            text = (
                f"reward {reward.key} gave no score to {sum(missing) / len(missing):.1%} of the"
                " answers: it was left out for them"
            )
            checks.append(Check(f"reward-{reward.key}-missing", True, text))
    return tuple(records), checks
