"""The evaluation of training by reward: the reward of answers to held-out prompts before and after,
with general prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from trainers.evaluation import Subject
from trainers.evaluation.generation import Measurements, TextEvaluator
from trainers.evaluation.loss import held_out
from trainers.evaluation.metrics import Comparison, compare
from trainers.rewards.scoring import Answer, Rewards, Score
from trainers.rows import IGNORED, Prepared, Row
from trainers.rows.conversation import Prompt
from trainers.rows.row import ids_of

HELD_OUT_PROMPTS, TRIAL_PROMPTS = 32, 4


def numbers(scores: Sequence[Score]) -> list[float]:
    """Scores with NaN for those that are missing, which a file keeps as null."""
    return [math.nan if score is None else score for score in scores]


def prompt_row(row: Prompt) -> Row:
    """A prompt as a row without a token to learn."""
    return Row(
        row.number,
        row.prompt_ids,
        ids_of([IGNORED] * len(row.prompt_ids)),
        row.prompt,
        row.shown,
        row.answer or "",
        row.key,
        row.text,
    )


class RewardEvaluator(TextEvaluator):
    """Lets the model answer held-out prompts greedily, and scores the answers by the reward."""

    def __init__(self, subject: Subject[Prompt], rewards: Rewards) -> None:
        job, data = subject.job, subject.data
        trial = job.max_steps is not None
        self.held = held_out(data.holdout, limit=TRIAL_PROMPTS if trial else HELD_OUT_PROMPTS)
        # No row has a loss: prompts have nothing to learn.
        nothing: Prepared[Row] = Prepared(train=(), holdout=(), rows=data.rows)
        super().__init__(Subject(job, subject.trainer, nothing, subject.fingerprint))
        self.rewards = rewards
        self.prompts = [prompt_row(row) for row in self.held]
        self.limit = int(job.options["response_tokens"])

    def _measure(self, *, bounded: bool = True) -> Measurements:
        found = super()._measure(bounded=bounded)
        tokenizer = self.trainer.processing_class
        answers = [
            Answer(
                row.prompt,
                sample.text,
                row.answer,
                row.prompt_ids,
                [
                    *tokenizer(sample.text, add_special_tokens=False)["input_ids"],
                    *([tokenizer.eos_token_id] * sample.stopped),
                ],
            )
            for row, sample in zip(self.held, found.samples, strict=False)
        ]
        if answers:
            parts = [part(answers, counts=False) for part in self.rewards.parts]
            found.scores["reward"] = numbers(self.rewards.sums(parts))
            if self.rewards.several:
                for part, scores in zip(self.rewards.parts, parts, strict=True):
                    found.scores[f"reward {part.key}"] = numbers(scores)
        return found

    def own_parts(self) -> dict[str, Comparison]:
        """The reward before and after, and each of several, of answers that have both scores."""
        found = {}
        for name, before in self.base.scores.items():
            pairs = [
                pair
                for pair in zip(before, self.tuned.scores.get(name, []), strict=False)
                if not any(value is None or math.isnan(value) for value in pair)
            ]
            if pairs:
                one, other = (list(side) for side in zip(*pairs, strict=True))
                weight = next(
                    (part.weight for part in self.rewards.parts if name == f"reward {part.key}"), 1
                )
                found[name] = compare(one, other, higher_is_better=weight > 0)
        return found

    def own_record(self) -> dict[str, Any]:
        samples = self.tuned.samples
        return {
            "prompts": len(samples),
            "answers_ended": (
                sum(sample.stopped for sample in samples) / len(samples) if samples else None
            ),
        }
