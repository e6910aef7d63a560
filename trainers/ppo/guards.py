"""Signs in the numbers of a run that it has gone wrong, and what to change.

Pure functions; the loop decides whether a finding stops it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FIRST = 3  # the mean of so many updates is the start of the run
PATIENCE = 3  # updates in a row before something is reported
# Updates in a row in which all answers got the same reward: a rare reward may be missed a few
# times.
CONSTANT = 5
# Entropy below this share of the first is reported. It does not stop the run, since some tasks have
# one right answer.
THIN = 0.2
SHORT, LONG = 0.2, 3.0  # of the first answers' length
LEAST_TOKENS = 4.0  # answers that were shorter at the start cannot collapse


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    name: str
    stops: bool  # ends the run, unless it is a trial
    what: str
    hint: str


def findings(
    lines: Sequence[Mapping[str, Any]], *, kl_limit: float, response_tokens: int
) -> list[Finding]:
    """What is wrong after the last update, given the metrics of all updates.

    Args:
        kl_limit: Nats per token that the policy may move from the reference model.
        response_tokens: The longest answer.
    """
    if not lines:
        return []
    found: list[Finding] = []
    now, recent, first = lines[-1], lines[-PATIENCE:], lines[:FIRST]
    if now["kl"] > kl_limit:
        hint = (
            "raise kl_coef (double it), lower the learning_rate (a third of it) or ppo_epochs;"
            " kl_limit moves the bound"
        )
        found.append(
            Finding(
                "kl",
                True,
                f"the policy has moved {now['kl']:.2f} nats per token from the reference model, the"
                f" bound is {kl_limit:g}",
                hint,
            )
        )
    if len(lines) >= CONSTANT and all(line["reward_spread"] < 1e-9 for line in lines[-CONSTANT:]):
        hint = (
            "look at what the reward returns: a reward model that was not trained, a function that"
            " gives every answer the same number, or answers that are all the same"
        )
        found.append(
            Finding(
                "constant-reward",
                True,
                f"every answer of the last {CONSTANT} updates got the same reward"
                f" ({now['reward']:.3g}): there is nothing to learn from",
                hint,
            )
        )
    if len(lines) >= PATIENCE and all(line["ended"] == 0 for line in recent):
        hint = (
            f"raise response_tokens ({response_tokens} now), raise missing_end_penalty, or train"
            " the stage before on answers that end"
        )
        found.append(
            Finding(
                "never-ends",
                False,
                f"no answer of the last {PATIENCE} updates ended with a stop token",
                hint,
            )
        )
    if len(lines) > FIRST:
        found += _against_the_start(now, first)
    return found


def _against_the_start(now: Mapping[str, Any], first: Sequence[Mapping[str, Any]]) -> list[Finding]:
    found = []
    entropy, length = (
        sum(line[key] for line in first) / len(first) for key in ("entropy", "response_tokens")
    )
    if now["entropy"] < THIN * entropy:
        hint = "raise kl_coef, lower the learning_rate, or raise the temperature"
        found.append(
            Finding(
                "entropy",
                False,
                f"the policy hardly varies its answers any more: entropy {now['entropy']:.2f} nats,"
                f" {entropy:.2f} at the start",
                hint,
            )
        )
    if length >= LEAST_TOKENS and now["response_tokens"] < max(1.5, SHORT * length):
        hint = (
            "the reward may favour empty answers: look at its scores of short answers, or raise"
            " kl_coef"
        )
        found.append(
            Finding(
                "short",
                True,
                f"answers have shrunk to {now['response_tokens']:.1f} tokens, from {length:.1f} at"
                " the start",
                hint,
            )
        )
    if length >= LEAST_TOKENS and now["response_tokens"] > LONG * length:
        hint = (
            "the reward may favour length: compare scores of long and short answers, lower"
            " response_tokens, or raise kl_coef"
        )
        found.append(
            Finding(
                "long",
                False,
                f"answers have grown to {now['response_tokens']:.1f} tokens, from {length:.1f} at"
                " the start",
                hint,
            )
        )
    return found


def reward_hacked(reward_first: float, reward_now: float, wins: int, losses: int) -> Finding | None:
    """A finding if the training reward rises while answers to held-out prompts lose against those
    of the start more often than chance allows; else None.

    Args:
        reward_first: The training reward of the first updates.
        reward_now: That of the last update.
        wins: Held-out prompts whose answer now scores above that of the start.
        losses: Those whose answer scores below.

    Source: a one-sided sign test at 5 %, by the normal approximation.
    """
    decided = wins + losses
    if decided < 5 or reward_now <= reward_first or (losses - wins) / math.sqrt(decided) < 1.645:
        return None
    hint = "take an earlier checkpoint, raise kl_coef, use more prompts, or a better reward model"
    rise = f"it rose from {reward_first:.3g} to {reward_now:.3g} in training"
    what = (
        f"the reward is being gamed: {rise}, but on held-out prompts the answers win {wins} and"
        f" lose {losses} against those of the start"
    )
    return Finding("gamed", False, what, hint)


def not_finite(line: Mapping[str, Any], *, scaled: bool) -> str | None:
    """The number of an update that is not finite, in words; None if all are finite.

    Args:
        scaled: Gradients are scaled (fp16), so that an infinite one only skips a step.
    """
    names = ["policy_loss", "value_loss", "reward", "kl", *([] if scaled else ["grad_norm"])]
    bad = next((name for name in names if not math.isfinite(line[name])), None)
    return f"{bad.replace('_', ' ')} became {line[bad]}" if bad else None
