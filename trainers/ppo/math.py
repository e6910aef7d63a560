"""The formulas of PPO for language models: pure functions on tensors, masked where answers differ
in length.

Dimensions: B answers, T tokens of the longest answer. A mask is 1 on an answer's tokens, its end
token among them.

Sources: Schulman et al. 2016 (GAE, arXiv:1506.02438); Schulman et al. 2017 (PPO, arXiv:1707.06347);
Ziegler et al. 2019 (arXiv:1909.08593); Ouyang et al. 2022 (InstructGPT, arXiv:2203.02155); Huang et
al. 2024 (The N+ Implementation Details of RLHF with PPO, arXiv:2403.17031).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

SMALLEST = 1e-8
LARGEST_WEIGHT = 2.0  # of importance weights


def masked_mean(values_BT: Any, mask_BT: Any) -> Any:
    """Mean over the tokens that count; 0 if there are none."""
    return (values_BT * mask_BT).sum() / mask_BT.sum().clamp(min=1)


def masked_variance(values_BT: Any, mask_BT: Any) -> Any:
    """Variance over the tokens that count, divided by their number."""
    return masked_mean((values_BT - masked_mean(values_BT, mask_BT)) ** 2, mask_BT)


def whiten(
    values_BT: Any,
    mask_BT: Any,
    *,
    keep_mean: bool = False,
    over_processes: Callable[[Any], Any] | None = None,
) -> Any:
    """The values scaled to variance 1 over the tokens that count and, without `keep_mean`, shifted
    to mean 0.

    Advantages are shifted, rewards keep their mean. Source: Huang et al. 2024, "reward and
    advantage whitening".

    Args:
        values_BT: Of this process.
        mask_BT: 1 where a token counts.
        keep_mean: Only scale.
        over_processes: The mean of a tensor over all processes, whose tokens then count together.
    """

    def mean_of(numbers_BT: Any) -> Any:
        sums = torch.stack([(numbers_BT * mask_BT).sum(), mask_BT.sum().to(numbers_BT.dtype)])
        total, count = sums if over_processes is None else over_processes(sums)
        return total / count.clamp(min=SMALLEST)

    mean = mean_of(values_BT)
    variance = mean_of((values_BT - mean) ** 2)
    scaled_BT = (values_BT - mean) / (variance + SMALLEST) ** 0.5
    return (scaled_BT + mean if keep_mean else scaled_BT) * mask_BT


def kl_penalty(log_probs_BT: Any, reference_BT: Any, mask_BT: Any) -> Any:
    """The KL penalty of each token: log pi(token) - log pi_ref(token), with the reference model's
    pi_ref.

    Its mean over answers drawn from the policy estimates the KL divergence; that of single tokens
    may be negative. Source: Ouyang et al. 2022, equation 2; Ziegler et al. 2019, section 2.
    """
    return (log_probs_BT - reference_BT) * mask_BT


def token_rewards(scores_B: Any, penalty_BT: Any, mask_BT: Any, kl_coef: float) -> Any:
    """Reward of each token: the KL penalty everywhere, and the answer's score on its last token.

    Source: Ouyang et al. 2022, equation 2 (the score is given once, at the end of the answer).
    """
    rewards_BT = -kl_coef * penalty_BT
    lengths_B = mask_BT.sum(1).long()
    written = lengths_B > 0
    rows = torch.arange(len(scores_B), device=scores_B.device)[written]
    rewards_BT[rows, lengths_B[written] - 1] += scores_B[written].to(rewards_BT.dtype)
    return rewards_BT


def generalized_advantages(
    rewards_BT: Any, values_BT: Any, mask_BT: Any, *, gamma: float, lam: float
) -> tuple[Any, Any]:
    """(advantages, returns) of each token.

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1}; after the last token
    of an answer V and A are 0. Returns are A + V, with A before whitening. Source: Schulman et al.
    2016, equations 11 and 16.
    """
    values_BT = values_BT * mask_BT
    advantages_BT = torch.zeros_like(values_BT)
    following_B = torch.zeros_like(values_BT[:, 0])
    following_value_B = torch.zeros_like(following_B)
    for place in reversed(range(values_BT.shape[1])):
        delta_B = rewards_BT[:, place] + gamma * following_value_B - values_BT[:, place]
        following_B = (delta_B + gamma * lam * following_B) * mask_BT[:, place]
        advantages_BT[:, place] = following_B
        following_value_B = values_BT[:, place]
    return advantages_BT, (advantages_BT + values_BT) * mask_BT


def policy_losses(
    log_probs_BT: Any, old_BT: Any, advantages_BT: Any, clip_range: float
) -> tuple[Any, Any, Any]:
    """(loss, ratio, whether it was clipped) of each token: max(-A r, -A clip(r, 1 - c, 1 + c)) with
    r = pi / pi_old.

    Source: Schulman et al. 2017, equation 7, as a loss.
    """
    ratio_BT = torch.exp(log_probs_BT - old_BT)
    unclipped_BT = -advantages_BT * ratio_BT
    clipped_BT = -advantages_BT * ratio_BT.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(unclipped_BT, clipped_BT), ratio_BT, clipped_BT > unclipped_BT


def importance_weights(old_BT: Any, drawn_BT: Any, mask_BT: Any) -> tuple[Any, Any, Any]:
    """(weight of each token, mean difference of log-probabilities, share of weights at the cap) for
    answers that were drawn by another program than the one that learns from them.

    w = min(pi_old / pi_drawn, C) with C = 2: both mean the same policy, and differ by rounding,
    by kernels or by a quantised base. Tokens without a known probability weigh 1. Source: Yao et
    al. 2025, "Your efficient RL framework secretly brings you off-policy RL training" (truncated
    importance sampling).

    Args:
        old_BT: Log-probabilities as the trainer computes them.
        drawn_BT: Those that the tokens were drawn with; NaN: not known.
        mask_BT: 1 where a token counts.
    """
    change_BT = torch.nan_to_num((old_BT - drawn_BT) * mask_BT, nan=0.0)
    ratio_BT = torch.exp(change_BT)
    return (
        ratio_BT.clamp(max=LARGEST_WEIGHT) * mask_BT,
        masked_mean(change_BT.abs(), mask_BT),
        masked_mean((ratio_BT > LARGEST_WEIGHT).to(ratio_BT.dtype), mask_BT),
    )


def value_losses(values_BT: Any, old_BT: Any, returns_BT: Any, clip_range: float) -> Any:
    """Loss of each token's value: half the larger of the squared errors of the value and of the
    value clipped to a range around the old one.

    Source: Huang et al. 2024, "value function loss clipping".
    """
    clipped_BT = torch.minimum(torch.maximum(values_BT, old_BT - clip_range), old_BT + clip_range)
    return 0.5 * torch.maximum((values_BT - returns_BT) ** 2, (clipped_BT - returns_BT) ** 2)


def approximate_kl(log_probs_BT: Any, old_BT: Any) -> Any:
    """How far each token's probability has moved since the rollout: (r - 1) - log r, an estimate of
    KL(old, new) that is never negative.

    Source: Schulman 2020, "Approximating KL divergence", estimator k3.
    """
    change_BT = log_probs_BT - old_BT
    return torch.exp(change_BT) - 1 - change_BT


def explained_variance(values_BT: Any, returns_BT: Any, mask_BT: Any) -> Any:
    """Share of the variance of the returns that the values explain: 1 - Var(R - V) / Var(R); 0 if
    returns do not vary.
    """
    variance = masked_variance(returns_BT, mask_BT)
    share = 1 - masked_variance(returns_BT - values_BT, mask_BT) / variance.clamp(min=SMALLEST)
    return torch.where(variance > SMALLEST, share, torch.zeros_like(share))


@dataclass
class KLCoefficient:
    """The KL coefficient: fixed, or adapted until answers keep a target KL.

    Adaptive: e = clip(KL / target - 1, -0.2, 0.2), value *= 1 + e n / horizon, with n answers since
    the last change. Source: Ziegler et al. 2019, section 2.2 (their factor 0.1 per update is n /
    horizon here, as in their code).
    """

    value: float  # per nat of KL
    target: float | None = None  # nats per answer
    horizon: float = 10_000.0  # answers

    def adapt(self, kl_per_answer: float, answers: int) -> None:
        """Adapt the value to the KL of the last answers."""
        if self.target is not None:
            error = min(0.2, max(-0.2, kl_per_answer / self.target - 1))
            self.value *= 1 + error * answers / self.horizon
