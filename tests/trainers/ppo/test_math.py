"""The formulas against numbers worked out by hand."""

import math

import pytest

torch = pytest.importorskip("torch")

from trainers.ppo.math import (
    KLCoefficient,
    approximate_kl,
    explained_variance,
    generalized_advantages,
    kl_penalty,
    masked_mean,
    masked_variance,
    policy_losses,
    token_rewards,
    value_losses,
    whiten,
)


def tensor(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_masked_means_and_variances_leave_out_what_does_not_count():
    """Of 1, 3, 5 and 100 the mask takes three: mean 3, variance (4 + 0 + 4) / 3."""
    values, mask = tensor([1, 3], [5, 100]), tensor([1, 1], [1, 0])
    assert masked_mean(values, mask).item() == 3
    assert masked_variance(values, mask).item() == pytest.approx(8 / 3)
    assert masked_mean(values, torch.zeros_like(values)).item() == 0


def test_whitening_gives_mean_zero_and_variance_one():
    """1, 3, 5 become -sqrt(3/2), 0, sqrt(3/2); what does not count becomes 0."""
    values, mask = tensor([1, 3], [5, 100]), tensor([1, 1], [1, 0])
    root = math.sqrt(1.5)
    torch.testing.assert_close(
        whiten(values, mask), tensor([-root, 0], [root, 0]), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        whiten(values, mask, keep_mean=True),
        tensor([3 - root, 3], [3 + root, 0]),
        atol=1e-6,
        rtol=0,
    )


def test_the_score_stands_on_the_last_token_and_the_kl_penalty_on_every_token():
    """Penalty 0.5 x (0.2, -0.4) and a score of 2 on the second and last token of the first
    answer.
    """
    mask = tensor([1, 1, 0], [1, 1, 1])
    penalty = kl_penalty(
        tensor([-1.0, -1.0, 9], [-2, -2, -2]), tensor([-1.2, -0.6, 0], [-2, -2, -2.5]), mask
    )
    torch.testing.assert_close(penalty, tensor([0.2, -0.4, 0], [0, 0, 0.5]))
    rewards = token_rewards(torch.tensor([2.0, -1.0], dtype=torch.float64), penalty, mask, 0.5)
    torch.testing.assert_close(rewards, tensor([-0.1, 2.2, 0], [0, 0, -1.25]))


def test_advantages_follow_the_recursion():
    """gamma 0.9, lam 0.5: deltas 1 + 0.9*1 - 0.5 = 1.4, 0 + 0.9*2 - 1 = 0.8, 3 - 2 = 1; A = 1.4 +
    0.45*1.25 = 1.9625, 0.8 + 0.45 = 1.25, 1.
    """
    rewards, values = tensor([1, 0, 3, 7]), tensor([0.5, 1, 2, 9])
    advantages, returns = generalized_advantages(
        rewards, values, tensor([1, 1, 1, 0]), gamma=0.9, lam=0.5
    )
    torch.testing.assert_close(advantages, tensor([1.9625, 1.25, 1, 0]))
    torch.testing.assert_close(returns, tensor([2.4625, 2.25, 3, 0]))


def test_advantages_with_lam_one_are_the_rewards_to_come_less_the_value():
    """gamma 1, lam 1: 1 + 2 + 3 - 4 = 2, 2 + 3 - 5 = 0, 3 - 6 = -3."""
    advantages, returns = generalized_advantages(
        tensor([1, 2, 3]), tensor([4, 5, 6]), tensor([1, 1, 1]), gamma=1.0, lam=1.0
    )
    torch.testing.assert_close(advantages, tensor([2, 0, -3]))
    torch.testing.assert_close(returns, tensor([6, 5, 3]))


def test_the_policy_loss_is_clipped_only_where_that_makes_it_worse():
    """Ratios 1.5, 0.5, 1.5, 0.5 with advantages 1, 1, -1, -1 and clip 0.2: losses -1.2, -0.5, 1.5,
    0.8.
    """
    ratios = tensor([1.5, 0.5, 1.5, 0.5])
    losses, ratio, clipped = policy_losses(
        ratios.log(), torch.zeros_like(ratios), tensor([1, 1, -1, -1]), 0.2
    )
    torch.testing.assert_close(losses, tensor([-1.2, -0.5, 1.5, 0.8]))
    torch.testing.assert_close(ratio, ratios)
    assert clipped.tolist() == [[True, False, False, True]]


def test_the_value_loss_takes_the_larger_error():
    """Value 2 held at 1.2: return 3 gives 0.5 * 1.8^2, return 1 gives 0.5 * 1; value 1.1 is not
    held: 0.5 * 0.9^2.
    """
    losses = value_losses(tensor([2, 2, 1.1]), tensor([1, 1, 1]), tensor([3, 1, 2]), 0.2)
    torch.testing.assert_close(losses, tensor([1.62, 0.5, 0.405]))


def test_how_far_a_policy_has_moved():
    """A ratio of 2 counts 2 - 1 - ln 2; none counts nothing."""
    torch.testing.assert_close(
        approximate_kl(tensor([math.log(2), 0]), tensor([0, 0])), tensor([1 - math.log(2), 0])
    )


def test_explained_variance():
    """Perfect values explain everything, constant ones nothing, returns that do not vary count
    0.
    """
    returns, mask = tensor([1, 2, 3, 50]), tensor([1, 1, 1, 0])
    assert explained_variance(returns, returns, mask).item() == pytest.approx(1)
    assert explained_variance(torch.zeros_like(returns), returns, mask).item() == pytest.approx(0)
    # errors 0.5, 0, -0.5 have variance 1/6, the returns 2/3
    assert explained_variance(tensor([0.5, 2, 3.5, 0]), returns, mask).item() == pytest.approx(0.75)
    assert explained_variance(returns, torch.ones_like(returns), mask).item() == 0


def test_a_fixed_price_of_kl_stays_and_an_adaptive_one_follows_the_target():
    """KL 9 at target 6 is held at +20 %: 0.15 * (1 + 0.2 * 500 / 10000); KL 5.4 is 10 % below."""
    fixed, adaptive = KLCoefficient(0.05), KLCoefficient(0.15, target=6.0)
    fixed.adapt(100.0, 500)
    assert fixed.value == 0.05
    adaptive.adapt(9.0, 500)
    assert adaptive.value == pytest.approx(0.15 * 1.01)
    adaptive.value = 0.15
    adaptive.adapt(5.4, 500)
    assert adaptive.value == pytest.approx(0.15 * (1 - 0.1 * 0.05))
