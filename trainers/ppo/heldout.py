"""The evaluation of PPO: answers to held-out prompts before and after training, with their reward
and its interval; and during training, to see a reward that is gamed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from advisor.record.stage import Check, Evaluation, SampleAnswer
from trainers.evaluation import Subject
from trainers.evaluation.generation import TRIAL_GENERAL, general_rows
from trainers.evaluation.loss import Sample, held_out
from trainers.evaluation.metrics import Comparison, compare, verdict
from trainers.evaluation.saved_result import check_stops
from trainers.job.files import keep_value, kept_value
from trainers.job.job import TRAIN
from trainers.job.machine import process_count, process_rank, sum_over_processes
from trainers.keep.checkpoints import random_states, restore_random_states
from trainers.ppo.roles import POLICY
from trainers.rewards.scoring import filled
from trainers.rollouts.engine import Answers
from trainers.rows import IGNORED
from trainers.rows.conversation import Prompt

PROMPTS, TRIAL_PROMPTS, MIDWAY_PROMPTS = 32, 4, 16
SHOWN = 8


@dataclass
class HeldOutAnswers:
    """A policy's answers to the held-out prompts."""

    scores: list[Any] = field(default_factory=list)  # floats; on the way None where none is given
    texts: list[str] = field(default_factory=list)
    ended: list[bool] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    general: list[float] = field(default_factory=list)  # loss on fixed general prompts
    seconds: float = 0.0

    @property
    def samples(self) -> list[Sample]:
        """The answers alone."""
        return [
            Sample(text=text, tokens=tokens, stopped=ended)
            for text, tokens, ended in zip(self.texts, self.tokens, self.ended, strict=True)
        ]


class HeldOutEvaluator:
    """Answers the same prompts before, during and after training, with the same random numbers."""

    def __init__(self, subject: Subject[Prompt]) -> None:
        job = subject.job
        ppo: Any = subject.trainer  # a PPOTrainer
        self.job, self.ppo, self.fingerprint = job, ppo, subject.fingerprint
        trial = job.max_steps is not None
        self.prompts = held_out(subject.data.holdout, limit=TRIAL_PROMPTS if trial else PROMPTS)
        self.general = general_rows(ppo.processing_class, job.stage.seq_len)[
            : TRIAL_GENERAL if trial else None
        ]
        self.before, self.after = HeldOutAnswers(), HeldOutAnswers()
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

    # ---------------------------------------------------------------- during training

    def begin(self) -> None:
        """Let each of the processes that train answer its share of the prompts before training: the
        policy is evaluated as a whole by another process, later. Call it in all of them, as
        `evaluate_midway`.
        """
        if self.job.part == TRAIN:
            self.before = self._measure(self._share(self.prompts), whole=False)

    def evaluate_midway(self) -> dict[str, int]:
        """How many held-out answers score above those of the start, and how many below, by their
        names in metrics.jsonl.
        """
        prompts = self._share(self.prompts[:MIDWAY_PROMPTS])
        now = self._measure(prompts, whole=False).scores
        pairs = [
            (new, old)
            for new, old in zip(now, self.before.scores, strict=False)
            if new is not None and old is not None
        ]
        wins, losses = sum(new > old for new, old in pairs), sum(new < old for new, old in pairs)
        ((all_wins, all_losses),) = sum_over_processes([[float(wins), float(losses)]])
        return {"holdout_wins": int(all_wins), "holdout_losses": int(all_losses)}

    def _share(self, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
        return prompts[process_rank() :: process_count()]

    # ---------------------------------------------------------------- measuring

    def _measure(self, prompts: Sequence[Prompt], *, whole: bool = True) -> HeldOutAnswers:
        """The policy's answers.

        Args:
            whole: All prompts, and the general ones; else scores may be missing.
        """
        began, ppo = time.monotonic(), self.ppo
        found = HeldOutAnswers()
        with same_random_numbers(self.job.stage.seed):
            if prompts:
                answers = ppo.generate(prompts, ppo.local)
                sums = ppo.sums(prompts, answers, ppo.batches(answers))
                found.scores = filled(sums) if whole else sums
                found.texts, found.ended = ppo.texts(answers), answers.ended
                found.tokens = [len(ids) for ids in answers.ids]
            if whole:
                found.general = self._losses()
        ppo.roles.back_to_policy()
        found.seconds = time.monotonic() - began
        return found

    def _losses(self) -> list[float]:
        """Mean loss per learned token of each general row."""
        import torch

        starts = [
            next(place for place, label in enumerate(row.labels) if label != IGNORED)
            for row in self.general
        ]
        rows = list(zip(self.general, starts, strict=True))
        prompts = [list(row.input_ids[:start]) for row, start in rows]
        rest = [list(row.input_ids[start:]) for row, start in rows]
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
        return {
            "reward": compare(self.before.scores, self.after.scores, higher_is_better=True),
            "answers that end": compare(
                *([float(one) for one in side.ended] for side in (self.before, self.after)),
                higher_is_better=True,
            ),
        }

    def verdict(self) -> tuple[str, str]:
        """One word and one sentence; the reward decides."""
        return verdict({name: part for name, part in self.parts().items() if name == "reward"})

    def record(self) -> Evaluation:
        """The comparison for result.json."""
        one, other = self.before, self.after
        general = (
            compare(one.general, other.general, higher_is_better=False) if other.general else None
        )
        return Evaluation(
            rows=len(self.prompts),
            decides="reward",
            metrics={name: part.record() for name, part in self.parts().items()},
            general=general.record() if general else None,
            seconds=round(one.seconds + other.seconds, 1),
            samples=tuple(
                SampleAnswer(
                    prompt=row.shown,
                    expected=row.answer or "",
                    base=one.texts[place],
                    tuned=other.texts[place],
                    base_stopped=one.ended[place],
                    tuned_stopped=other.ended[place],
                    reward_before=one.scores[place],
                    reward_after=other.scores[place],
                )
                for place, row in enumerate(self.prompts[:SHOWN])
            ),
            extra={
                f"answer_tokens_{when}": sum(side.tokens) / len(side.tokens)
                if side.tokens
                else None
                for when, side in (("before", one), ("after", other))
            },
        )

    def checks(self) -> list[Check]:
        """Whether answers still end with a stop token.

        Raises TrainingFailed if those before training did and none does any more.
        """
        limit = int(self.job.options["response_tokens"])
        return check_stops(self.job, self.after.samples, self.before.samples, limit)


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
