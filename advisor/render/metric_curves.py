"""Which numbers of metrics.jsonl a report draws."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from advisor.render.curves import curve

# Of metrics.jsonl, what is drawn: key -> name and unit. A trainer that logs more is drawn by adding
# a line here.
DRAWN = {
    "loss": ("Training loss", ""),
    "learning_rate": ("Learning rate", ""),
    "reward": ("Mean reward", ""),
    "kl": ("KL to the reference", "nats a token"),
    "entropy": ("Entropy", "nats"),
    "clip_fraction": ("Share of clipped tokens", ""),
    "explained_variance": ("Explained variance of the value", ""),
    "clip_ratio_region_mean": ("Share of clipped tokens", ""),
    "frac_reward_zero_std": ("Prompts whose answers all got the same reward", "share"),
    "engine_mismatch": (
        "Engine mismatch of log-probabilities",
        "nats",
    ),
    "correction_capped": ("Importance weights that were too large", "share"),
    "response_tokens": ("Length of answers", "tokens"),
    "completions_mean_length": ("Length of answers", "tokens"),
    "completions_clipped_ratio": ("Answers cut at response_tokens", "share"),
    "ended": ("Answers that end by themselves", "share"),
    "grad_norm": ("Gradient norm", ""),
    "tokens_per_s": ("Speed", "tokens/s"),
    "memory_bytes": ("Memory", "GiB"),
}

OF_A_REWARD = re.compile(r"rewards/[\w.-]+/mean")  # of several

# Key -> what is drawn in its picture beside it, and its name.
BESIDE = {"loss": ("holdout_loss", "Held-out loss")}


def metric_curves(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """A picture of each number, as SVG."""
    drawn = []
    names = dict.fromkeys(key for line in metrics for key in line if OF_A_REWARD.fullmatch(key))
    own = {key: (f"Mean of reward {key.split('/')[1]}", "") for key in names}
    for key, (name, unit) in {**DRAWN, **own}.items():
        scale = 2**30 if key == "memory_bytes" else 1
        beside = _points(metrics, BESIDE[key][0]) if key in BESIDE else []
        lowest = min(beside, key=lambda point: point[1], default=None)
        drawn.append(
            curve(
                name,
                [(step, value / scale) for step, value in _points(metrics, key)],
                unit=unit,
                beside=(BESIDE[key][1], beside) if beside else None,
                dot=(*lowest, f"lowest at step {lowest[0]:g}") if lowest else None,
            )
        )
    return [svg for svg in drawn if svg]


def _points(metrics: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, value) of the lines that have one."""
    return [
        (float(line["step"]), float(line[key]))
        for line in metrics
        if isinstance(line.get(key), int | float) and "step" in line
    ]
