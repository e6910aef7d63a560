"""How good answers are, before and after, and whether the difference is more than chance.

Scores come from torchmetrics (exact match and token F1 as in SQuAD, ROUGE-L, accuracy, macro-F1).
Intervals are of the same rows before and after: Student's t over the rows' differences.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy

from advisor.ground.annotated import parse_json
from advisor.record.stage import Metric, metric_words

FEWEST = 3  # rows below which an interval says nothing
FEWEST_ALIKE = 5  # the same where all rows changed by the same, as right and wrong do
# Two-sided 95 % points of Student's t for 2 to 28 degrees of freedom (any table of it).
STUDENT_T = (
    4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145,
    2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052,
    2.048,
)  # fmt: skip
NORMAL = 1.959964  # the same of a normal distribution
SHORT_WORDS = (
    8  # answers up to this length may be right or wrong, longer ones are more or less similar
)
LABEL_WORDS = 3  # up to this length they are names, whatever they end with

SENTENCE = re.compile(
    r"^\D*[.!?\u2026][\"'\u201d\u00bb)]*\s*$"
)  # words in a style, not the result of a sum


def compare(
    before: Sequence[float],
    after: Sequence[float],
    *,
    higher_is_better: bool,
    weights: Sequence[float] | None = None,
) -> Metric:
    """Means of the same rows before and after, and the interval of their difference, None with too
    few rows.

    Raises ValueError if the numbers of rows differ, or there are none.

    Args:
        weights: The weight of each row, for a mean per token; default: all the same.
    """
    one, other = numpy.asarray(before, dtype=float), numpy.asarray(after, dtype=float)
    weight = numpy.ones_like(one) if weights is None else numpy.asarray(weights, dtype=float)
    if len(one) == 0 or len(one) != len(other) or len(one) != len(weight):
        raise ValueError(f"{len(one)} rows before, {len(other)} after, {len(weight)} weights")
    total, interval = weight.sum(), _interval(other - one, weight)
    word = "not distinguishable"
    if interval is not None and not interval[0] <= 0 <= interval[1]:
        word = "better" if (interval[0] > 0) == higher_is_better else "worse"
    return Metric(
        before=float((one * weight).sum() / total),
        after=float((other * weight).sum() / total),
        interval=interval,
        rows=len(one),
        word=word,
    )


def _interval(difference: Any, weight: Any) -> tuple[float, float] | None:
    """The 95 % interval of the weighted mean of the rows' differences; None with too few rows."""
    rows = len(difference)
    if rows < FEWEST or (rows < FEWEST_ALIKE and numpy.ptp(difference) == 0):
        return None
    mean = (difference * weight).sum() / weight.sum()
    # A ratio of two sums: its error is that of the residuals (Cochran 1977, section 6.3).
    residuals = weight * (difference - mean)
    error = (rows / (rows - 1) * (residuals**2).sum()) ** 0.5 / weight.sum()
    # Beyond the table by the first terms of the expansion of t (Abramowitz and Stegun, 26.7.5).
    few = rows - FEWEST < len(STUDENT_T)
    half = error * (STUDENT_T[rows - FEWEST] if few else NORMAL + 2.37 / (rows - 1))
    return float(mean - half), float(mean + half)


def proportion_interval(right: int, rows: int) -> tuple[float, float] | None:
    """The 95 % interval of a share (Wilson 1927), None without rows."""
    if rows == 0:
        return None
    share, z = right / rows, NORMAL
    middle = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    spread = (share * (1 - share) / rows + z * z / (4 * rows * rows)) ** 0.5
    half = z * spread / (1 + z * z / rows)
    return max(0.0, middle - half), min(1.0, middle + half)


# --------------------------------------------------------------------------- generated answers


def choose_metrics(expected: Sequence[str]) -> tuple[str, ...]:
    """The scores that suit these expected answers: validity for JSON, right or wrong for labels,
    names, numbers and what repeats, similarity for long ones and for sentences.
    """
    if not expected:
        return ()
    if all(is_json(text) for text in expected):
        return ("json_validity", "exact_match")
    few = len(set(expected)) <= len(expected) / 2
    exact = sum(
        len(text.split()) <= (SHORT_WORDS if few or not SENTENCE.search(text) else LABEL_WORDS)
        for text in expected
    )
    return ("exact_match", "token_f1") if exact > len(expected) / 2 else ("rouge_l", "token_f1")


def score_answer(metric: str, answer: str, expected: str) -> float:
    """One answer's score, from 0 to 1. Raises ValueError for an unknown metric."""
    if metric == "json_validity":
        return float(is_json(answer))
    if metric == "exact_match" and is_json(expected):
        return float(is_json(answer) and parse_json(answer) == parse_json(expected))
    if metric in ("exact_match", "token_f1"):
        from torchmetrics.functional.text import squad

        found = squad(
            [{"prediction_text": answer, "id": "0"}],
            [{"answers": {"answer_start": [0], "text": [expected]}, "id": "0"}],
        )
        return float(found["exact_match" if metric == "exact_match" else "f1"]) / 100
    if metric == "rouge_l":
        from torchmetrics.functional.text import rouge_score

        if not answer.strip():
            return 0.0
        return float(rouge_score(answer, expected, rouge_keys="rougeL")["rougeL_fmeasure"])
    raise ValueError(f"unknown metric {metric}")


def is_json(text: str) -> bool:
    """Whether a text is one JSON object or list."""
    try:
        return isinstance(parse_json(text), dict | list)
    except ValueError:
        return False


# --------------------------------------------------------------------------- classes


def classification(
    predicted: Sequence[int], true: Sequence[int], labels: Sequence[str]
) -> dict[str, Any]:
    """Accuracy and macro-F1 with intervals, and the confusion matrix: rows are the true classes,
    columns the predicted ones.
    """
    import torch
    from torchmetrics.functional.classification import (
        multiclass_confusion_matrix,
        multiclass_f1_score,
    )

    classes, rows = len(labels), len(true)
    predicted_N, true_N = torch.tensor(list(predicted)), torch.tensor(list(true))

    def f1(places: Any) -> float:
        of = {"num_classes": classes, "average": "macro"}
        return float(multiclass_f1_score(predicted_N[places], true_N[places], **of))

    right, interval = int((predicted_N == true_N).sum()), None
    if rows >= FEWEST_ALIKE:  # drawn again with replacement: F1 is no mean over rows
        draws = numpy.random.default_rng(0).integers(0, rows, size=(200, rows))
        interval = numpy.quantile([f1(torch.from_numpy(draw)) for draw in draws], [0.025, 0.975])
    counts = multiclass_confusion_matrix(predicted_N, true_N, num_classes=classes)
    return {
        "accuracy": right / rows,
        "accuracy_interval": list(proportion_interval(right, rows) or ()) or None,
        "macro_f1": f1(slice(None)),
        "macro_f1_interval": None if interval is None else interval.tolist(),
        "confusion": {"labels": list(labels), "counts": counts.tolist()},
        "rows": rows,
    }


# --------------------------------------------------------------------------- in words


def verdict(parts: Mapping[str, Metric]) -> tuple[str, str]:
    """(better | worse | not distinguishable, one sentence on the task). The first part decides.

    What a run came to in all is told by advisor/record/judge.py.
    """
    if not parts:
        return "not distinguishable", "nothing was held out to compare on"
    (name, first), *rest = parts.items()
    sentences = [
        _sentence(name, first),
        *(_sentence(other, part) for other, part in rest if part.word != "not distinguishable"),
    ]
    word = str(first.word)
    if word == "not distinguishable":
        told = "are too few to tell"
        if first.bounds is not None:
            half = (first.bounds[1] - first.bounds[0]) / 2
            told = f"tell differences above about {half:.2g}"
        sentences[0] += f", which {told}"
    return word, f"{word}: {'; '.join(sentences)}"


def _sentence(name: str, part: Metric) -> str:
    bounds = part.bounds
    interval = f" (difference {bounds[0]:+.2f} to {bounds[1]:+.2f})" if bounds else ""
    return (
        f"{metric_words(name)} {part.before:.3g} before, {part.after:.3g} after{interval} on"
        f" {part.rows} held-out rows"
    )
