"""The evaluation of PPO: answers to held-out prompts before and after training, with their reward
and its interval.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

from advisor.record.stage import Check, Evaluation, SampleAnswer
from trainers.evaluation.generation import TRIAL_GENERAL, general_rows
from trainers.evaluation.loss import Sample, held_out
from trainers.evaluation.metrics import Comparison, compare, verdict
from trainers.evaluation.saved_result import check_stops
from trainers.job.files import keep_value, kept_value
from trainers.job.job import Job
from trainers.job.machine import process_count, process_rank, sum_over_processes
from trainers.job.random_states import random_states, restore_random_states
from trainers.ppo.roles import POLICY
from trainers.ppo.update import PPO
from trainers.rewards.scoring import Score, filled
from trainers.rollouts.engine import Answers
from trainers.rows import IGNORED
from trainers.rows.conversation import Prompt

PROMPTS, TRIAL_PROMPTS, MIDWAY_PROMPTS = 32, 4, 16
SHOWN = 8


@dataclass
class HeldOutAnswers:
    """A policy's answers to the held-out prompts."""

    scores: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    ended: list[bool] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    general: list[float] = field(default_factory=list)  # loss on fixed general prompts
    seconds: float = 0.0


class HeldOutEvaluator:
    """Answers the same prompts before, during and after training, with the same random numbers."""

    def __init__(self, job: Job, ppo: PPO, holdout: Sequence[Prompt], fingerprint: str) -> None:
        self.job, self.ppo, self.fingerprint = job, ppo, fingerprint
        trial = job.max_steps is not None
        limit = TRIAL_PROMPTS if trial else PROMPTS
        self.prompts = held_out(holdout, limit=limit)
        self.general = general_rows(ppo.tokenizer, job.stage.seq_len)[
            : TRIAL_GENERAL if trial else None
        ]
        self.before, self.after = HeldOutAnswers(), HeldOutAnswers()
        self.start: list[float] | None = None  # see share_out
        self.cache = job.output / "before.json"

    def evaluate_base(self) -> None:
        """Let the policy answer before training; once, also if a run was resumed."""
        known = kept_value(self.cache, self.fingerprint)
        if known is not None:
            self.before = HeldOutAnswers(**known)
            return
        self.before = self._measure(self.prompts)
        keep_value(self.cache, self.fingerprint, asdict(self.before))

    def evaluate_tuned(self) -> None:
        """Let the trained policy answer."""
        self.after = self._measure(self.prompts)

    def share_out(self) -> None:
        """Let each process of the run answer a part of the prompts before training, and during it:
        the policy before training is evaluated as a whole by another process, later. Call it in
        every process, as `evaluate_midway`.
        """
        self.start = self._shared(self.prompts, len(self.prompts[:MIDWAY_PROMPTS]))

    def evaluate_midway(self) -> tuple[int, int]:
        """(how many held-out answers score above those of the start, how many below)."""
        prompts = self.prompts[:MIDWAY_PROMPTS]
        if not prompts:
            return 0, 0
        if self.start is None:
            now, start = self._measure(prompts, general=False).scores, self.before.scores
        else:
            now, start = self._shared(prompts, len(prompts)), self.start
        pairs = list(zip(now, start, strict=False))
        return sum(new > old for new, old in pairs), sum(new < old for new, old in pairs)

    def _shared(self, batch: Sequence[Prompt], count: int) -> list[float]:
        """The scores of answers to the first prompts of a batch, of which each process generates
        its share.
        """
        if not count:
            return []
        mine = range(process_rank(), count, process_count())
        prompts = [batch[place] for place in mine]
        sums: list[Score] = []
        with same_random_numbers(self.job.stage.seed + process_rank()):
            if prompts:
                answers = self.ppo.generate(prompts)
                sums = self.ppo.sums(prompts, answers, self.ppo.batches(answers))
        table = [[0.0, 0.0] for _ in range(count)]  # of each prompt: its score, whether it has one
        for place, score in zip(mine, sums, strict=True):
            table[place] = [score or 0.0, float(score is not None)]
        return filled([score if given else None for score, given in sum_over_processes(table)])

    def _measure(self, prompts: Sequence[Prompt], *, general: bool = True) -> HeldOutAnswers:
        began = time.monotonic()
        found = HeldOutAnswers()
        with same_random_numbers(self.job.stage.seed):
            if prompts:
                answers = self.ppo.generate(prompts)
                found.scores = self.ppo.scores(prompts, answers, self.ppo.batches(answers)).tolist()
                found.texts, found.ended, found.tokens = (
                    self.ppo.texts(answers),
                    answers.ended,
                    [len(ids) for ids in answers.ids],
                )
            if general:
                found.general = self._losses()
        found.seconds = time.monotonic() - began
        return found

    def _losses(self) -> list[float]:
        """Mean loss per learned token of each general row."""
        import torch

        if not self.general:
            return []
        starts = [
            next(place for place, label in enumerate(row.labels) if label != IGNORED)
            for row in self.general
        ]
        prompts = [
            list(row.input_ids[:start]) for row, start in zip(self.general, starts, strict=True)
        ]
        rest = [
            list(row.input_ids[start:]) for row, start in zip(self.general, starts, strict=True)
        ]
        losses = [0.0] * len(rest)
        with torch.no_grad(), self.ppo.autocast():
            for batch in self.ppo.batches(Answers(prompts, rest, [True] * len(rest))):
                log_probs, _ = self.ppo.roles.log_probs(POLICY, batch, 1.0)
                for row, part in zip(batch.rows, log_probs.split(batch.counts), strict=True):
                    losses[row] = -float(part.mean())
        return losses

    # ---------------------------------------------------------------- comparing

    def parts(self) -> dict[str, Comparison]:
        """Reward and ends of answers before and after; {} if nothing was held out."""
        if not self.after.scores:
            return {}
        pairs = {
            "reward": (self.before.scores, self.after.scores),
            "answers that end": (
                [float(one) for one in self.before.ended],
                [float(one) for one in self.after.ended],
            ),
        }
        return {
            name: compare(one, other, higher_is_better=True) for name, (one, other) in pairs.items()
        }

    def general_loss(self) -> Comparison | None:
        """Loss on the fixed general prompts, before and after."""
        return (
            compare(self.before.general, self.after.general, higher_is_better=False)
            if self.after.general
            else None
        )

    def verdict(self) -> tuple[str, str]:
        """One word and one sentence; the reward decides."""
        return verdict({name: part for name, part in self.parts().items() if name == "reward"})

    def record(self) -> Evaluation:
        """The comparison for result.json."""
        general = self.general_loss()
        return Evaluation(
            rows=len(self.prompts),
            decides="reward",
            metrics={name: part.record() for name, part in self.parts().items()},
            general=general.record() if general else None,
            seconds=round(self.before.seconds + self.after.seconds, 1),
            samples=tuple(self._sample(place) for place in range(min(SHOWN, len(self.prompts)))),
            extra={
                "answer_tokens_before": _mean(self.before.tokens),
                "answer_tokens_after": _mean(self.after.tokens),
            },
        )

    def _sample(self, place: int) -> SampleAnswer:
        row, one, other = self.prompts[place], self.before, self.after
        return SampleAnswer(
            prompt=row.shown,
            expected=row.answer or "",
            base=one.texts[place],
            tuned=other.texts[place],
            base_stopped=one.ended[place],
            tuned_stopped=other.ended[place],
            reward_before=one.scores[place],
            reward_after=other.scores[place],
        )

    def checks(self) -> list[Check]:
        """Whether answers still end with a stop token.

        Raises TrainingFailed if those before training did and none does any more.
        """
        limit = int(self.job.options["response_tokens"])
        return check_stops(self.job, _samples(self.after), _samples(self.before), limit)


def _samples(answers: HeldOutAnswers) -> list[Sample]:
    return [
        Sample(text=text, tokens=tokens, stopped=ended)
        for text, tokens, ended in zip(answers.texts, answers.tokens, answers.ended, strict=True)
    ]


def _mean(numbers: Sequence[int]) -> float | None:
    return sum(numbers) / len(numbers) if numbers else None


@contextmanager
def same_random_numbers(seed: int) -> Iterator[None]:
    """The same random numbers every time inside; afterwards training continues with its own."""
    import torch

    before = random_states()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        restore_random_states(before)
