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


def number(value):
    return torch.tensor(value, dtype=torch.float64)


VALUES, MASK = tensor([1, 3], [5, 100]), tensor([1, 1], [1, 0])
ANSWERS = tensor([1, 1, 0], [1, 1, 1])  # which tokens of two answers count
PENALTY = tensor([0.2, -0.4, 0], [0, 0, 0.5])
RATIOS, SIGNS = tensor([1.5, 0.5, 1.5, 0.5]), tensor([1, 1, -1, -1])
RETURNS, FIRST_THREE = tensor([1, 2, 3, 50]), tensor([1, 1, 1, 0])


FORMULAS = {
    # Of 1, 3, 5 and 100 the mask takes three: mean 3, variance (4 + 0 + 4) / 3.
    "mean": (lambda: masked_mean(VALUES, MASK), number(3.0)),
    "variance": (lambda: masked_variance(VALUES, MASK), number(8 / 3)),
    "mean of nothing": (lambda: masked_mean(VALUES, torch.zeros_like(VALUES)), number(0.0)),
    "the KL penalty is on every token that counts": (
        lambda: kl_penalty(
            tensor([-1.0, -1.0, 9], [-2, -2, -2]), tensor([-1.2, -0.6, 0], [-2, -2, -2.5]), ANSWERS
        ),
        PENALTY,
    ),
    # Penalty 0.5 x (0.2, -0.4), and a score of 2 on the second and last token of the first answer.
    "the score is on the last token": (
        lambda: token_rewards(number([2.0, -1.0]), PENALTY, ANSWERS, 0.5),
        tensor([-0.1, 2.2, 0], [0, 0, -1.25]),
    ),
    # gamma 0.9, lam 0.5: deltas 1 + 0.9*1 - 0.5 = 1.4, 0 + 0.9*2 - 1 = 0.8, 3 - 2 = 1; A = 1.4 +
    # 0.45*1.25 = 1.9625, 0.8 + 0.45 = 1.25, 1.
    "advantages and returns follow the recursion": (
        lambda: generalized_advantages(
            tensor([1, 0, 3, 7]), tensor([0.5, 1, 2, 9]), FIRST_THREE, gamma=0.9, lam=0.5
        ),
        (tensor([1.9625, 1.25, 1, 0]), tensor([2.4625, 2.25, 3, 0])),
    ),
    # gamma 1, lam 1: 1 + 2 + 3 - 4 = 2, 2 + 3 - 5 = 0, 3 - 6 = -3.
    "with lam 1 they are the rewards to come less the value": (
        lambda: generalized_advantages(
            tensor([1, 2, 3]), tensor([4, 5, 6]), tensor([1, 1, 1]), gamma=1.0, lam=1.0
        ),
        (tensor([2, 0, -3]), tensor([6, 5, 3])),
    ),
    # Ratios 1.5, 0.5, 1.5, 0.5 with advantages 1, 1, -1, -1 and clip 0.2; the ratios, and which of
    # them were clipped, come with the losses.
    "the policy loss is clipped only where that makes it worse": (
        lambda: policy_losses(RATIOS.log(), torch.zeros_like(RATIOS), SIGNS, 0.2),
        (tensor([-1.2, -0.5, 1.5, 0.8]), RATIOS, torch.tensor([[True, False, False, True]])),
    ),
    # Value 2 held at 1.2: return 3 gives 0.5 * 1.8^2, return 1 gives 0.5 * 1; value 1.1 is not
    # held: 0.5 * 0.9^2.
    "the value loss takes the larger error": (
        lambda: value_losses(tensor([2, 2, 1.1]), tensor([1, 1, 1]), tensor([3, 1, 2]), 0.2),
        tensor([1.62, 0.5, 0.405]),
    ),
    # A ratio of 2 counts 2 - 1 - ln 2; none counts nothing.
    "how far a policy has moved": (
        lambda: approximate_kl(tensor([math.log(2), 0]), tensor([0, 0])),
        tensor([1 - math.log(2), 0]),
    ),
    "perfect values explain everything": (
        lambda: explained_variance(RETURNS, RETURNS, FIRST_THREE),
        number(1.0),
    ),
    "constant values explain nothing": (
        lambda: explained_variance(torch.zeros_like(RETURNS), RETURNS, FIRST_THREE),
        number(0.0),
    ),
    # errors 0.5, 0, -0.5 have variance 1/6, the returns 2/3
    "some values explain a part": (
        lambda: explained_variance(tensor([0.5, 2, 3.5, 0]), RETURNS, FIRST_THREE),
        number(0.75),
    ),
    "returns that do not vary count 0": (
        lambda: explained_variance(RETURNS, torch.ones_like(RETURNS), FIRST_THREE),
        number(0.0),
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_the_formulas_by_hand(name):
    """Each on numbers small enough to work out."""
    found, wanted = FORMULAS[name]
    torch.testing.assert_close(found(), wanted)


@pytest.mark.parametrize(("keys", "mean"), [({}, 0), ({"keep_mean": True}, 3)])
def test_whitening_gives_mean_zero_and_variance_one(keys, mean):
    """1, 3, 5 become -sqrt(3/2), 0, sqrt(3/2), about their own mean if it is kept; what does not
    count becomes 0.
    """
    root = math.sqrt(1.5)
    wanted = tensor([mean - root, mean], [mean + root, 0])
    torch.testing.assert_close(whiten(VALUES, MASK, **keys), wanted, atol=1e-6, rtol=0)


def test_a_fixed_price_of_kl_stays_and_an_adaptive_one_follows_the_target():
    """KL 9 at target 6 is held at +20 %: 0.15 * (1 + 0.2 * 500 / 10000); KL 5.4 is 10 % below."""
    for price, target, kl, wanted in (
        (0.05, None, 100.0, 0.05),
        (0.15, 6.0, 9.0, 0.15 * 1.01),
        (0.15, 6.0, 5.4, 0.15 * (1 - 0.1 * 0.05)),
    ):
        coefficient = KLCoefficient(price, target=target)
        coefficient.adapt(kl, 500)
        assert coefficient.value == pytest.approx(wanted)
