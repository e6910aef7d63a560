"""Rewards as values: what one source gives to answers, and the weighted sum of several; and as
functions that TRL's trainers call.

A score may be missing: a function of the user gives None for an answer that it cannot judge. That
reward is then left out for that answer, and counted; an answer without any score teaches nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from advisor.ground.errors import TrainingFailed
from advisor.ground.progress import waiting

Score = float | None  # None: this reward says nothing about the answer


@dataclass(frozen=True, slots=True)
class Answer:
    prompt: str  # as the template writes it
    text: str  # what the model wrote, without special tokens
    expected: str | None  # the answer in the data
    prompt_ids: Sequence[int]
    answer_ids: Sequence[int]


@dataclass
class Reward:
    name: str  # in words, for the notes
    # None: PPO scores the answers by a model of its own (trainers/ppo/roles.py)
    score: Callable[[Sequence[Answer]], Sequence[Score]] | None
    key: str = ""  # in metrics and in the report
    weight: float = 1.0
    may_miss: bool = False  # whether it may give None
    is_penalty: bool = False  # it is at most 0: an answer without fault gets 0

    def __call__(self, answers: Sequence[Answer]) -> list[Score]:
        """The rewards. Raises TrainingFailed if there are too few or one is not finite."""
        assert self.score is not None
        with waiting(f"scoring {len(answers):,} answers with {self.name}"):
            found = list(self.score(answers))
        if len(found) != len(answers):
            raise TrainingFailed(
                f"{self.name} gave {len(found)} rewards for {len(answers)} answers",
                hint="give one number for each answer",
            )
        for value, answer in zip(found, answers, strict=True):
            if value is not None and not math.isfinite(value):
                raise TrainingFailed(
                    f"{self.name} gave {value} as a reward for the answer {answer.text[:80]!r}",
                    hint="give a finite number for every answer, even for a bad one",
                )
        return found


@dataclass
class Rewards:
    parts: list[Reward]

    def sums(self, scores: Sequence[Sequence[Score]]) -> list[Score]:
        """sum(weight * score) of each answer over the rewards that score it; None if none does.

        Args:
            scores: Of each reward, for each answer.

        Source: the sum of TRL's GRPOTrainer and RLOOTrainer (`reward_weights`), which leaves a
        missing score out in the same way.
        """
        sums: list[Score] = []
        for of_answer in zip(*scores, strict=True):
            pairs = zip(self.parts, of_answer, strict=True)
            given = [part.weight * score for part, score in pairs if score is not None]
            sums.append(math.fsum(given) if given else None)
        return sums

    @property
    def logs(self) -> list[str]:
        """Names of the logs of single rewards: of several, and of one that may miss answers."""
        several = ["mean", "std"] if len(self.parts) > 1 else []
        return [
            f"rewards/{part.key}/{number}"
            for part in self.parts
            for number in (*several, *(["missing"] if part.may_miss else []))
        ]

    @property
    def name(self) -> str:
        """In words, for the notes."""
        return " and ".join(part.name for part in self.parts)


def check_scored(sums: Sequence[Score]) -> None:
    """Raise TrainingFailed if no answer has a score: there is nothing to learn from."""
    if sums and all(value is None for value in sums):
        raise TrainingFailed(
            f"no reward scored any of {len(sums)} answers: all gave None",
            hint="let one reward score every answer; None is for answers that cannot be judged",
        )


def filled(sums: Sequence[Score]) -> list[float]:
    """The scores, with the mean of the others for an answer without one. Raises TrainingFailed if
    no answer has one.
    """
    check_scored(sums)
    given = [value for value in sums if value is not None]
    return [sum(given) / len(given) if value is None else value for value in sums]


@dataclass
class Scored:
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
