"""Kahneman-Tversky optimisation (arXiv:2402.01306) under any update scheme: from answers that
people liked or did not, or from pairs.

At least four rows go through a device at once, because the rows of one batch are what the KL
divergence from the reference model is estimated from.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from advisor.ground.errors import Fault, InputError
from trainers.dpo import DPO
from trainers.job import Model, Tokenizer
from trainers.job.job import Job
from trainers.rows import Prepared
from trainers.rows.preference import FEEDBACK, Feedback, feedback_columns
from trainers.rows.sequences import Groups, Picked, values_of
from trainers.stage.run import trains

FEWEST_AT_ONCE = 4


class KTO(DPO):
    """Makes answers that people liked likelier, and others less likely."""

    config = "trl:KTOConfig"
    trained_by = "trl:KTOTrainer"
    orders_rows = False  # each stands behind the one whose answer its prompt also gets
    kind = FEEDBACK
    columns = staticmethod(feedback_columns)
    logged = ("kl", "rewards/margins", "rewards/chosen", "rewards/rejected")

    def faults(self, job: Job) -> list[Fault]:
        size, at = job.stage.micro_batch_size, f"stage {job.stage.name}"
        what = "KTO estimates the KL divergence from the rows of one batch, and micro_batch_size is"
        allowed = f"micro_batch_size: {FEWEST_AT_ONCE} or more"
        hint = "a smaller grad_accum keeps the effective batch size"
        fault = Fault(where=at, what=f"{what} {size}", allowed=allowed, hint=hint)
        return [] if size >= FEWEST_AT_ONCE else [fault]

    def rows(self, job: Job, tokenizer: Tokenizer) -> Prepared[Feedback]:
        data: Prepared[Feedback] = super().rows(job, tokenizer)
        at = f"stage {job.stage.name}"
        liked = int(values_of(data.train, "label").sum())
        if liked in (0, len(data.train)):
            verdict = "liked" if liked else "rejected"
            what = f"people {verdict} all {len(data.train):,} answers: nothing says what makes one"
            raise InputError(f"{what} better", where=at, allowed="liked and rejected answers")
        if len(data.train) < FEWEST_AT_ONCE:
            what = f"{len(data.train)} answers are too few for KTO"
            raise InputError(what, where=at, allowed=f"{FEWEST_AT_ONCE} or more")
        note = f"{liked:,} answers people liked, {len(data.train) - liked:,} they did not"
        return replace(data, notes=(*data.notes, note))

    def sequences(
        self, job: Job, rows: Sequence[Feedback], model: Model
    ) -> Sequence[tuple[Feedback, ...]]:
        """The rows in an order that depends on the seed. TRL keeps it, and the two answers of a
        pair must not always be in one batch.
        """
        order = list(range(len(rows)))
        random.Random(job.stage.seed).shuffle(order)  # noqa: S311  (an order that repeats, not a secret)
        return Groups(Picked([rows], order))


train = trains(KTO)
