"""Rewards in TRL's trainers: functions that they call, the log of what was answered, and a callback
that looks at their numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainerCallback

from trainers.job.job import Job
from trainers.rewards.scoring import Answer, Reward, Rewards, Score, check_scored
from trainers.rewards.watch import Watch
from trainers.say.progress import metric_name, stage_lines, tell


@dataclass
class Scored:
    """The answers that were scored last, with the scores of each reward so far."""

    answers: list[Answer] = field(default_factory=list)
    scores: list[list[Score]] = field(default_factory=list)

    def rollouts(
        self, rewards: Rewards, advantages: Sequence[float], stops: Sequence[int]
    ) -> list[dict[str, Any]]:
        """Each answer with what it was worth, for rollouts.jsonl."""
        keys = [part.key for part in rewards.parts]
        parts = (
            self.answers,
            zip(*self.scores, strict=True),
            rewards.sums(self.scores),
            advantages,
        )
        return [
            {
                "prompt": answer.prompt,  # as the template writes it
                "answer": answer.text,
                "reward": total,  # the weighted sum
                "rewards": dict(zip(keys, scores, strict=True)),  # by name, before weights
                "advantage": advantage,
                "tokens": len(answer.answer_ids),
                # With a stop token; else the limit cut it.
                "ended": bool(answer.answer_ids) and answer.answer_ids[-1] in stops,
            }
            for answer, scores, total, advantage in zip(*parts, strict=True)
        ]


def reward_functions(rewards: Rewards, scored: Scored) -> list[Callable[..., list[Score]]]:
    """The rewards as functions that TRL can call, one after the other for the same answers.

    Raises TrainingFailed, when called, if no reward scores any of the answers.

    Args:
        scored: Where the answers and their scores are kept.
    """

    def function(part: Reward) -> Callable[..., list[Score]]:
        def score(
            prompts: Sequence[str],
            completions: Sequence[str],
            completion_ids: Sequence[Sequence[int]],
            log_metric: Callable[[str, float], None],
            **columns: Any,
        ) -> list[Score]:
            if part is rewards.parts[0]:
                given = (prompts, completions, columns["answer"], columns["ids"], completion_ids)
                scored.answers = [Answer(*one) for one in zip(*given, strict=True)]
                scored.scores.clear()
            found = part(scored.answers)
            scored.scores.append(found)
            if part is rewards.parts[-1]:
                check_scored(rewards.sums(scored.scores))
            if part.may_miss:
                log_metric(f"rewards/{part.key}/missing", found.count(None) / max(1, len(found)))
            return found

        score.__name__ = part.key  # what TRL calls it in its metrics
        return score

    return [function(part) for part in rewards.parts]


class WatchCallback(TrainerCallback):
    """Says once what is wrong with the numbers of a trainer.

    Args:
        job: The stage.
        watch: Decides, and keeps what was said.
        names: Of the trainer's logs that metrics.jsonl has.
    """

    def __init__(self, job: Job, watch: Watch, names: Sequence[str]) -> None:
        self.job, self.watch, self.names = job, watch, names

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        path, stage = self.job.run / "metrics.jsonl", self.job.stage.name
        self.watch.see_earlier(stage_lines(path, stage=stage, task=self.job.task))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        line = {metric_name(name): logs[name] for name in self.names if name in logs}
        for text in self.watch.see({**line, "step": state.global_step}):
            tell(self.job, f"WARNING: {text}")
