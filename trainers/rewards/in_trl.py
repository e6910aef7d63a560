"""Rewards in TRL's trainers: functions that they call, the log of what was answered, and a callback
that looks at their numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from trainers.rewards.rollout_log import Rollout
from trainers.rewards.scoring import Answer, Reward, Rewards, Score, check_scored
from trainers.rewards.watch import Watch, stage_lines
from trainers.say.metrics_file import metric_name


@dataclass
class Scored:
    """The answers that were scored last, with the scores of each reward so far."""

    answers: list[Answer] = field(default_factory=list)
    scores: list[list[Score]] = field(default_factory=list)

    def rollouts(
        self, rewards: Rewards, advantages: Sequence[float], stops: Sequence[int]
    ) -> list[Rollout]:
        """Each answer with what it was worth."""
        return [
            Rollout(
                prompt=answer.prompt,
                answer=answer.text,
                rewards={
                    part.key: scores[row]
                    for part, scores in zip(rewards.parts, self.scores, strict=True)
                },
                reward=total,
                advantage=advantage,
                tokens=len(answer.answer_ids),
                ended=bool(answer.answer_ids) and answer.answer_ids[-1] in stops,
            )
            for row, (answer, total, advantage) in enumerate(
                zip(self.answers, rewards.sums(self.scores), advantages, strict=True)
            )
        ]


def reward_functions(rewards: Rewards, scored: Scored) -> list[Callable[..., list[Score]]]:
    """The rewards as functions that TRL can call, one after the other for the same answers.

    Raises TrainingFailed, when called, if no reward scores any of the answers.

    Args:
        scored: Where the answers and their scores are kept.
    """
    return [_function(rewards, part, scored) for part in rewards.parts]


def _function(rewards: Rewards, part: Reward, scored: Scored) -> Callable[..., list[Score]]:
    def score(
        *,
        prompts: Sequence[str],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        answer: Sequence[str | None],
        ids: Sequence[list[int]],
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[Score]:
        if part is rewards.parts[0]:
            scored.scores.clear()
            scored.answers = [
                Answer(*parts)
                for parts in zip(prompts, completions, answer, ids, completion_ids, strict=True)
            ]
        found = part(scored.answers)
        scored.scores.append(found)
        if part is rewards.parts[-1]:
            check_scored(rewards.sums(scored.scores))
        if part.may_miss and log_metric is not None:
            missing = sum(value is None for value in found) / max(1, len(found))
            log_metric(f"rewards/{part.key}/missing", missing)
        return found

    score.__name__ = part.key  # what TRL calls it in its metrics
    return score


class WatchCallback(TrainerCallback):
    """Says once what is wrong with the numbers of a trainer.

    Args:
        watch: Decides, and keeps what was said.
        rewards: Learn whether an earlier attempt of the stage has told answers apart.
        names: Of the trainer's logs that metrics.jsonl has.
        metrics: metrics.jsonl, with the lines of earlier attempts when training begins.
        stage: The name of the stage, in its lines.
        task: The name of the task, in its lines.
        say: Called with each sentence.
    """

    def __init__(
        self,
        watch: Watch,
        rewards: Rewards,
        names: Sequence[str],
        metrics: Path,
        *,
        stage: str,
        task: str | None,
        say: Callable[[str], None],
    ) -> None:
        self.names, self.metrics, self.of_stage = names, metrics, (stage, task)
        self.say, self.watch, self.rewards = say, watch, rewards

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        stage, task = self.of_stage
        earlier = stage_lines(self.metrics, stage=stage, task=task)
        self.watch.see_earlier(earlier)
        self.rewards.differed = any(line.get("reward_std") for line in earlier)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        line = {metric_name(name): logs[name] for name in self.names if name in logs}
        for text in self.watch.see({**line, "step": state.global_step}):
            self.say(f"WARNING: {text}")
