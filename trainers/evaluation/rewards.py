"""The judge of training by reward: the reward of answers to held-out prompts before and after,
beside general prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from trainers.evaluation import loss as judge
from trainers.evaluation.generation import Asked, Judge
from trainers.evaluation.metrics import Compared, compare
from trainers.evaluation.saved_result import Check
from trainers.frame.job import Job
from trainers.prepare import IGNORED, Prepared, Row
from trainers.prepare.prompts import Prompt
from trainers.prepare.row import ids_of
from trainers.rewards.sources import Answer, Reward

HELD_OUT_PROMPTS, TRIAL_PROMPTS = 32, 4


def as_row(row: Prompt) -> Row:
    """A prompt as a row that nothing is learned of."""
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


class RewardJudge(Judge):
    """Lets the model answer held-out prompts as well as it can (greedily), and asks the reward."""

    def __init__(
        self, job: Job, trainer: Any, data: Prepared[Prompt], mark: str, reward: Reward
    ) -> None:
        self.held = judge.held_out(
            data.holdout, limit=TRIAL_PROMPTS if job.max_steps is not None else HELD_OUT_PROMPTS
        )  # type: ignore[arg-type]
        nothing: Prepared[Row] = replace(data, train=(), holdout=())  # type: ignore[arg-type]
        super().__init__(job, trainer, nothing, mark)
        self.reward = reward
        self.asked = [as_row(row) for row in self.held]  # type: ignore[arg-type]
        self.limit = int(job.options["response_tokens"])

    def losses(self, rows: Sequence[Row]) -> list[float]:
        return [
            -total / row.learned
            for total, row in zip(judge.answer_log_probs(self.trainer, rows), rows, strict=True)
        ]

    def _ask(self, *, hurry: bool = True) -> Asked:
        found = super()._ask(hurry=hurry)
        tokenizer = self.trainer.processing_class
        told = [
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
            for row, sample in zip(self.held, found.samples, strict=False)  # type: ignore[attr-defined]
        ]
        if told:
            found.scores["reward"] = self.reward(told, counts=False)
        return found

    def own_parts(self) -> dict[str, Compared]:
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

    def checks(self) -> list[Any]:
        """Whether answers end, and whether the reward told them apart."""
        differ = Check(
            "rewards-differ",
            not self.reward.constant,
            (
                self.reward.said()
                if self.reward.constant
                else f"{self.reward.name} told the answers of the training apart"
            ),
        )
        return [*super().checks(), *([differ] if self.reward.seen else [])]
