"""How good answers are, before and after, and whether the difference is more than chance.

Scores come from torchmetrics (exact match and token F1 as in SQuAD, ROUGE-L, accuracy, macro-F1).
Intervals are paired bootstrap percentiles: the same rows before and after, drawn again with
replacement (Efron and Tibshirani 1993, chapter 13).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DRAWS = 2000
LEVEL = 0.95
FEWEST = 5  # rows below which an interval says nothing
SHORT_WORDS = 8  # answers this short are right or wrong; longer ones are more or less alike


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """One metric before and after, with the interval of the mean difference (None with too few
    rows).
    """

    before: float
    after: float
    interval: tuple[float, float] | None
    higher_is_better: bool
    rows: int

    @property
    def word(self) -> str:
        """better, worse or not distinguishable."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return "not distinguishable"
        return "better" if (self.interval[0] > 0) == self.higher_is_better else "worse"

    def record(self) -> dict[str, Any]:
        return {
            "before": self.before,
            "after": self.after,
            "interval": list(self.interval) if self.interval else None,
            "rows": self.rows,
            "word": self.word,
        }


def compare(
    before: Sequence[float],
    after: Sequence[float],
    *,
    higher_is_better: bool,
    weights: Sequence[float] | None = None,
    seed: int = 0,
) -> Compared:
    """Means of the same rows before and after, and the interval of their difference.

    Args:
        weights: What each row counts, for a mean per token; default: rows count alike.
    """
    import numpy

    one, other = numpy.asarray(before, dtype=float), numpy.asarray(after, dtype=float)
    weight = numpy.ones_like(one) if weights is None else numpy.asarray(weights, dtype=float)
    if len(one) == 0 or len(one) != len(other) or len(one) != len(weight):
        raise ValueError(f"{len(one)} rows before, {len(other)} after, {len(weight)} weights")
    interval = None
    if len(one) >= FEWEST:
        draw = numpy.random.default_rng(seed).integers(0, len(one), size=(DRAWS, len(one)))
        means = ((other - one) * weight)[draw].sum(1) / weight[draw].sum(1)
        low, high = numpy.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        interval = (float(low), float(high))
    total = weight.sum()
    return Compared(
        before=float((one * weight).sum() / total),
        after=float((other * weight).sum() / total),
        interval=interval,
        higher_is_better=higher_is_better,
        rows=len(one),
    )


def proportion_interval(right: int, rows: int) -> tuple[float, float] | None:
    """The 95 % interval of a share (Wilson 1927), None without rows."""
    if rows == 0:
        return None
    z = 1.959964
    share = right / rows
    middle = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = (
        z * ((share * (1 - share) / rows + z * z / (4 * rows * rows)) ** 0.5) / (1 + z * z / rows)
    )
    return max(0.0, middle - half), min(1.0, middle + half)


# --------------------------------------------------------------------------- generated answers


def choose_metrics(expected: Sequence[str]) -> tuple[str, ...]:
    """Which scores suit these expected answers: form for JSON, right or wrong for short ones,
    likeness for long ones.
    """
    if not expected:
        return ()
    if all(is_json(text) for text in expected):
        return ("json_validity", "exact_match")
    short = sum(len(text.split()) <= SHORT_WORDS for text in expected)
    return ("exact_match", "token_f1") if short > len(expected) / 2 else ("rouge_l", "token_f1")


def score(metric: str, said: str, expected: str) -> float:
    """One answer's score, from 0 to 1."""
    if metric == "json_validity":
        return float(is_json(said))
    if metric == "exact_match" and is_json(expected):
        return float(is_json(said) and json.loads(said) == json.loads(expected))
    if metric in ("exact_match", "token_f1"):
        from torchmetrics.functional.text import squad

        found = squad(
            [{"prediction_text": said, "id": "0"}],
            [{"answers": {"answer_start": [0], "text": [expected]}, "id": "0"}],
        )
        return float(found["exact_match" if metric == "exact_match" else "f1"]) / 100
    if metric == "rouge_l":
        from torchmetrics.functional.text import rouge_score

        return (
            float(rouge_score(said, expected, rouge_keys="rougeL")["rougeL_fmeasure"])
            if said.strip()
            else 0.0
        )
    raise ValueError(f"unknown metric {metric}")


def is_json(text: str) -> bool:
    """Whether a text is one JSON object or list."""
    try:
        return isinstance(json.loads(text), dict | list)
    except ValueError:
        return False


def compare_answers(
    base: Sequence[str], tuned: Sequence[str], expected: Sequence[str]
) -> dict[str, Compared]:
    """Every metric that suits the expected answers."""
    return {
        metric: compare(
            [score(metric, said, wanted) for said, wanted in zip(base, expected, strict=True)],
            [score(metric, said, wanted) for said, wanted in zip(tuned, expected, strict=True)],
            higher_is_better=True,
        )
        for metric in choose_metrics(expected)
    }


# --------------------------------------------------------------------------- classes


def classification(
    predicted: Sequence[int], true: Sequence[int], labels: Sequence[str]
) -> dict[str, Any]:
    """Accuracy and macro-F1 with intervals, and the confusion table: rows are what is, columns what
    it was called.
    """
    import numpy
    import torch
    from torchmetrics.functional.classification import (
        multiclass_accuracy,
        multiclass_confusion_matrix,
        multiclass_f1_score,
    )

    classes = len(labels)

    def f1(places: Any) -> float:
        told, is_ = (
            torch.tensor([predicted[place] for place in places]),
            torch.tensor([true[place] for place in places]),
        )
        return float(multiclass_f1_score(told, is_, num_classes=classes, average="macro"))

    everything = range(len(true))
    told, is_ = torch.tensor(list(predicted)), torch.tensor(list(true))
    right = sum(one == other for one, other in zip(predicted, true, strict=True))
    interval = None
    if len(true) >= FEWEST:
        draws = numpy.random.default_rng(0).integers(0, len(true), size=(DRAWS // 10, len(true)))
        low, high = numpy.quantile([f1(draw) for draw in draws], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        interval = [float(low), float(high)]
    return {
        "accuracy": float(multiclass_accuracy(told, is_, num_classes=classes, average="micro")),
        "accuracy_interval": list(proportion_interval(right, len(true)) or ()) or None,
        "macro_f1": f1(everything),
        "macro_f1_interval": interval,
        "confusion": {
            "labels": list(labels),
            "counts": multiclass_confusion_matrix(told, is_, num_classes=classes).tolist(),
        },
        "rows": len(true),
    }


# --------------------------------------------------------------------------- in words


def verdict(parts: Mapping[str, Compared], *, general: Compared | None = None) -> tuple[str, str]:
    """(better | worse | not distinguishable, one sentence).

    The first part decides; general ability can only take away.
    """
    if not parts:
        return "not distinguishable", "nothing was held out to compare on"
    (name, first), *rest = parts.items()
    said = [
        _sentence(name, first),
        *(_sentence(other, part) for other, part in rest if part.word != "not distinguishable"),
    ]
    word = first.word
    if general is not None and general.word == "worse":
        said.append(
            f"general ability is lower: loss on fixed general prompts {general.before:.2f} before,"
            f" {general.after:.2f} after"
        )
    return word, f"{word}: {'; '.join(said)}"


def _sentence(name: str, part: Compared) -> str:
    interval = (
        f" (difference {part.interval[0]:+.2f} to {part.interval[1]:+.2f})" if part.interval else ""
    )
    return (
        f"{name.replace('_', ' ')} {part.before:.3g} before, {part.after:.3g} after{interval} on"
        f" {part.rows} held-out rows"
    )
