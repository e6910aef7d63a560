"""Which prompts an update takes and how fast it learns."""

import pytest

pytest.importorskip("torch")

from trainers.ppo.learning import rate_share
from trainers.ppo.loop import shuffled


def test_every_prompt_is_answered_once_before_any_is_answered_again():
    """Ten prompts in updates of four: two and a half updates see each once; the next pass has
    another order.
    """
    seen = [
        prompt
        for first in range(0, 20, 4)
        for prompt in shuffled(range(10), range(first, first + 4), seed=1)
    ]
    assert sorted(seen[:10]) == sorted(seen[10:20]) == list(range(10))
    assert seen[:10] != seen[10:20]


def test_learning_rates():
    """Ten updates, two of warm-up: 1/3, 2/3, 1, then down by eighths; constant stays; cosine is
    half way at the middle of its way.
    """
    linear = [rate_share(step, 10, warmup=0.2, scheduler="linear") for step in range(10)]
    assert linear == pytest.approx([1 / 3, 2 / 3, *(left / 8 for left in range(8, 0, -1))])
    assert [rate_share(step, 4, warmup=0.5, scheduler="constant") for step in range(4)] == [1.0] * 4
    assert [
        rate_share(step, 4, warmup=0.25, scheduler="constant_with_warmup") for step in range(4)
    ] == [0.5, 1.0, 1.0, 1.0]
    assert rate_share(5, 10, warmup=0.0, scheduler="cosine") == pytest.approx(0.5)
    assert min(rate_share(step, 3, warmup=0.0, scheduler="cosine") for step in range(3)) > 0
