"""The evaluation of training by reward: the reward of answers to held-out prompts before and after,
with general prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from advisor.plan.record import Check
from trainers.evaluation.generation import Measurements, TextEvaluator
from trainers.evaluation.loss import answer_log_probs, held_out
from trainers.evaluation.metrics import Comparison, compare
from trainers.frame.job import Job
from trainers.frame.types import Trainer
from trainers.prepare import IGNORED, Prepared, Row
from trainers.prepare.prompts import Prompt
from trainers.prepare.row import ids_of
from trainers.rewards.sources import Answer, Reward

HELD_OUT_PROMPTS, TRIAL_PROMPTS = 32, 4


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

    def __init__(
        self, job: Job, trainer: Trainer, data: Prepared[Prompt], fingerprint: str, reward: Reward
    ) -> None:
        trial = job.max_steps is not None
        self.held = held_out(data.holdout, limit=TRIAL_PROMPTS if trial else HELD_OUT_PROMPTS)
        # No row has a loss: prompts have nothing to learn.
        super().__init__(job, trainer, Prepared(train=(), holdout=(), rows=data.rows), fingerprint)
        self.reward = reward
        self.prompts = [prompt_row(row) for row in self.held]
        self.limit = int(job.options["response_tokens"])

    def losses(self, rows: Sequence[Row]) -> list[float]:
        return [
            -total / row.learned
            for total, row in zip(answer_log_probs(self.trainer, rows), rows, strict=True)
        ]

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
            found.scores["reward"] = self.reward(answers, counts=False)
        return found

    def own_parts(self) -> dict[str, Comparison]:
        before, after = self.base.scores.get("reward"), self.tuned.scores.get("reward")
        return {"reward": compare(before, after, higher_is_better=True)} if before and after else {}

    def own_record(self) -> dict[str, Any]:
        samples = self.tuned.samples
        return {
            "prompts": len(samples),
            "answers_ended": (
                sum(sample.stopped for sample in samples) / len(samples) if samples else None
            ),
        }

    def checks(self) -> list[Check]:
        """Whether answers end, and whether the reward differed between them."""
        differ = Check(
            "rewards-differ",
            not self.reward.constant,
            (
                self.reward.constant_text()
                if self.reward.constant
                else f"{self.reward.name} gave different rewards to the answers of the training"
            ),
        )
        return [*super().checks(), *([differ] if self.reward.seen else [])]
