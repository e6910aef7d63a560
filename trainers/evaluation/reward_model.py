"""The evaluation of a reward model: on held-out pairs, how often the chosen answer scores higher,
and whether length alone would do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from advisor.record.stage import Check, Evaluation, Metric
from trainers.evaluation import Subject
from trainers.evaluation.loss import held_out
from trainers.evaluation.metrics import proportion_interval
from trainers.job import Trainer
from trainers.job.evaluating import measuring_as_trained
from trainers.job.files import keep_value, kept_value
from trainers.rows.packing import head_outputs
from trainers.rows.preference import Pair

HELD_OUT_PAIRS, TRIAL_PAIRS = 256, 8


def pair_scores(trainer: Trainer, rows: Sequence[Pair]) -> Any:
    """Scores of the chosen and the rejected answer of P pairs: P, 2; float32 on the host."""
    import torch

    if not rows:
        return torch.zeros(0, 2)
    texts = [[*row.prompt_ids, *ids] for row in rows for ids in (row.chosen_ids, row.rejected_ids)]
    # A micro-batch has so many pairs.
    at_once = 2 * trainer.args.per_device_train_batch_size
    with measuring_as_trained(trainer):
        pad_id = trainer.processing_class.pad_token_id
        return head_outputs(trainer.model, texts, pad_id, at_once=at_once)[:, 0].view(-1, 2)


class RewardModelEvaluator:
    """Scores the held-out pairs with the trained model, and before training with a model that was a
    reward model already: the scores of a new head mean nothing.
    """

    def __init__(self, subject: Subject[Pair], *, scored_before: bool) -> None:
        job, data = subject.job, subject.data
        self.trainer, self.fingerprint = subject.trainer, subject.fingerprint
        trial = job.max_steps is not None
        self.rows = held_out(data.holdout, limit=TRIAL_PAIRS if trial else HELD_OUT_PAIRS)
        self.scored_before = scored_before
        by = [length_difference(row) for row in data.train]
        self.longer = sum(one > 0 for one in by) * 2 >= sum(one != 0 for one in by)
        self.before: list[list[float]] = []  # the scores of each pair
        self.after: list[list[float]] = []
        self.cache = job.output / "before.json"

    def evaluate_base(self) -> None:
        """Score the pairs before training; once, also if a run was resumed."""
        if not self.scored_before or not self.rows:
            return
        known = kept_value(self.cache, self.fingerprint)
        self.before = pair_scores(self.trainer, self.rows).tolist() if known is None else known
        if known is None:
            keep_value(self.cache, self.fingerprint, self.before)

    def evaluate_tuned(self) -> None:
        """Score the pairs with the trained model."""
        self.after = pair_scores(self.trainer, self.rows).tolist()

    def verdict(self) -> tuple[str, str]:
        """One word and one sentence."""
        rows, right = len(self.rows), count_right(self.after)
        interval = proportion_interval(right, rows)
        if interval is None:
            return "not distinguishable", "nothing was held out to score"
        word, than = "not distinguishable", "from chance"
        if interval[0] > 0.5 or interval[1] < 0.5:
            word, than = "better" if interval[0] > 0.5 else "worse", "than chance"
        before = f", {count_right(self.before) / rows:.1%} before" if self.before else ""
        return word, (
            f"{word} {than}: the better answer scores higher in {right / rows:.1%} of {rows}"
            f" held-out pairs (95 % interval {interval[0]:.1%} to {interval[1]:.1%}){before}"
        )

    def by_length(self) -> tuple[float, float]:
        """(how many pairs a preference for length alone gets right, in the direction of the
        training pairs, those of equal length by half; the share in which the scores agree with it).
        """
        sign = 1 if self.longer else -1
        by = [sign * length_difference(row) for row in self.rows]
        both = zip(self.after, by, strict=True)
        uneven = [value for (one, other), more in both if (value := (one - other) * more) != 0]
        right = sum(0.5 if more == 0 else float(more > 0) for more in by)
        return right, sum(value > 0 for value in uneven) / len(uneven) if uneven else 0.5

    def checks(self) -> list[Check]:
        """Whether the scores are more than the length of the answers."""
        rows, right = len(self.rows), count_right(self.after)
        if not rows:
            return []
        by_length, agreement = self.by_length()
        interval = proportion_interval(round(by_length), rows)
        biased = by_length >= right and interval is not None and interval[0] > 0.5
        text = (
            f"preferring the {'longer' if self.longer else 'shorter'} answer is right in"
            f" {by_length / rows:.1%} of the held-out pairs, the scores in {right / rows:.1%};"
            f" they agree with it in {agreement:.1%}"
            + ("; length alone does as well" if biased else "")
        )
        return [Check("scores-are-more-than-length", not biased, text)]

    def record(self) -> Evaluation:
        """The comparison for result.json."""
        rows, right = len(self.rows), count_right(self.after)
        if not rows:
            return Evaluation(rows=0)
        before = count_right(self.before) / rows if self.before else None
        metric = Metric(before=before, after=right / rows, rows=rows, word=self.verdict()[0])
        by_length, agreement = self.by_length()
        own = {
            "pair_accuracy": right / rows,
            "pair_accuracy_interval": list(proportion_interval(right, rows) or ()),
            "mean_margin": sum(chosen - rejected for chosen, rejected in self.after) / rows,
            "mean_score": sum(map(sum, self.after)) / (2 * rows),
            "length": {
                "prefers": "longer" if self.longer else "shorter",
                "accuracy": by_length / rows,
                "agreement": agreement,
            },
        }
        return Evaluation(rows=rows, metrics={"pair_accuracy": metric}, extra=own)


def count_right(scores: Sequence[Sequence[float]]) -> int:
    """How many chosen answers score higher than the rejected ones."""
    return sum(chosen > rejected for chosen, rejected in scores)


def length_difference(row: Pair) -> int:
    """How many tokens longer the chosen answer is than the rejected one."""
    return len(row.chosen_ids) - len(row.rejected_ids)
