"""Signs in the numbers of a run that it has gone wrong, and what to change. What is said of any
objective that learns from its own answers is in trainers/rewards/watch.py.

Pure functions; the loop decides whether a finding stops it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FIRST = 3  # the mean of so many updates is the start of the run
# Updates in a row in which all answers got the same reward: a rare reward may be missed a few
# times.
CONSTANT = 5
# Entropy below this share of the first is reported. It does not stop the run, since some tasks have
# one right answer.
THIN = 0.2
SHORT = 0.2  # of the first answers' length
LEAST_TOKENS = 4.0  # answers that were shorter at the start cannot collapse


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    name: str
    stops: bool  # ends the run, unless it is a trial
    what: str
    hint: str


def findings(lines: Sequence[Mapping[str, Any]], *, kl_limit: float) -> list[Finding]:
    """What is wrong after the last update, given the metrics of all updates.

    Args:
        kl_limit: Nats per token that the policy may move from the reference model.
    """
    found: list[Finding] = []
    if not lines:
        return found
    now, recent, first = lines[-1], lines[-CONSTANT:], lines[:FIRST]
    if now["kl"] > kl_limit:
        what = (
            f"the policy has moved {now['kl']:.2f} nats per token from the reference model, the"
            f" bound is {kl_limit:g}"
        )
        hint = (
            "raise kl_coef (double it), lower the learning_rate (a third of it) or ppo_epochs;"
            " kl_limit moves the bound"
        )
        found.append(Finding("kl", True, what, hint))
    if len(recent) == CONSTANT and all(line["reward_spread"] < 1e-9 for line in recent):
        what = (
            f"every answer of the last {CONSTANT} updates got the same reward"
            f" ({now['reward']:.3g}): there is nothing to learn from"
        )
        hint = (
            "look at what the reward returns: a reward model that was not trained, a function that"
            " gives every answer the same number, or answers that are all the same"
        )
        found.append(Finding("constant-reward", True, what, hint))
    if len(lines) <= FIRST:
        return found
    entropy, length = (_mean(first, key) for key in ("entropy", "response_tokens"))
    if now["entropy"] < THIN * entropy:
        what = (
            f"the policy hardly varies its answers any more: entropy {now['entropy']:.2f} nats,"
            f" {entropy:.2f} at the start"
        )
        hint = "raise kl_coef, lower the learning_rate, or raise the temperature"
        found.append(Finding("entropy", False, what, hint))
    if length >= LEAST_TOKENS and now["response_tokens"] < max(1.5, SHORT * length):
        what = (
            f"answers have shrunk to {now['response_tokens']:.1f} tokens, from {length:.1f} at the"
            " start"
        )
        hint = (
            "the reward may favour empty answers: look at its scores of short answers, or raise"
            " kl_coef"
        )
        found.append(Finding("short", True, what, hint))
    if "holdout_wins" in now and (gamed := reward_hacked(now, _mean(first, "reward"))):
        found.append(gamed)
    return found


def reward_hacked(now: Mapping[str, Any], reward_first: float) -> Finding | None:
    """A finding if the training reward rises while answers to held-out prompts lose against those
    of the start more often than chance allows; else None.

    Args:
        now: Metrics of the last update: reward, and how many held-out prompts have an answer that
            scores above that of the start (holdout_wins) or below (holdout_losses).
        reward_first: The training reward of the first updates.

    Source: a one-sided sign test at 5 %, by the normal approximation.
    """
    reward, wins, losses = now["reward"], now["holdout_wins"], now["holdout_losses"]
    decided = wins + losses
    if decided < 5 or reward <= reward_first or (losses - wins) / math.sqrt(decided) < 1.645:
        return None
    what = (
        f"the reward is being gamed: it rose from {reward_first:.3g} to {reward:.3g} in training,"
        f" but on held-out prompts the answers win {wins} and lose {losses} against those of the"
        " start"
    )
    hint = "take an earlier checkpoint, raise kl_coef, use more prompts, or a better reward model"
    return Finding("gamed", False, what, hint)


def _mean(lines: Sequence[Mapping[str, Any]], key: str) -> float:
    return float(sum(line[key] for line in lines) / len(lines))
