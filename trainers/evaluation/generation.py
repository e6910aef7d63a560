"""The judge of a stage: base against tuned on held-out rows, on generated answers, and on fixed
general prompts.

The base is asked before training, so that it need not be loaded twice; what it said is kept beside
the result, so that a resumed run does not ask again. Time is bounded by stated samples: held-out
rows for the loss, generated answers until either SAMPLES or GENERATION_S is reached.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from advisor.ground.errors import InputError
from trainers.evaluation import loss as judge
from trainers.evaluation.metrics import Compared, compare, compare_answers, verdict
from trainers.frame.files import read_json, write_json
from trainers.frame.job import Job
from trainers.prepare import ANSWERS, Prepared, Row, Templater, prepare_stage_rows

GENERAL = Path(__file__).parent / "general.jsonl"
GENERATION_S = 45.0  # no further batch of answers is begun after this
BATCH = 4  # answers generated at once
TRIAL_ROWS, TRIAL_SAMPLES, TRIAL_GENERAL = 8, 2, 4
WORSE_GENERAL = 0.1  # rise of the loss on general prompts, as a share, from which it is told


@dataclass
class Asked:
    """What one model said to everything it was asked."""

    losses: list[float] = field(
        default_factory=list
    )  # of the held-out rows, mean per learned token
    general: list[float] = field(default_factory=list)  # of the general prompts
    samples: list[judge.Sample] = field(default_factory=list)
    scores: dict[str, list[float]] = field(
        default_factory=dict
    )  # what an objective measures beside
    seconds: float = 0.0


class Judge:
    """Asks the same of the model before and after training, and compares."""

    def __init__(
        self, job: Job, trainer: Any, data: Prepared[Row], mark: str, *, generates: bool = True
    ) -> None:
        self.job, self.trainer, self.mark = job, trainer, mark
        self.trial = job.max_steps is not None
        self.rows = judge.held_out(
            data.holdout, limit=TRIAL_ROWS if self.trial else judge.HELD_OUT_ROWS
        )
        self.asked = (
            judge.prompts_to_answer(self.rows or data.train, seq_len=job.stage.seq_len)[
                : TRIAL_SAMPLES if self.trial else judge.SAMPLES
            ]
            if generates
            else []
        )
        self.limit = judge.sample_limit(self.asked)
        self.general_rows = general_rows(trainer.processing_class, job.stage.seq_len)[
            : TRIAL_GENERAL if self.trial else None
        ]
        self.base, self.tuned = Asked(), Asked()
        self.cache = job.output / "before.json"

    def evaluate_base(self) -> None:
        """Measure the model as it is before training; once, also where a run was resumed."""
        known = read_json(self.cache)
        if isinstance(known, dict) and known.get("fingerprint") == self.mark:
            self.base = Asked(
                **{
                    **known["asked"],
                    "samples": [judge.Sample(**sample) for sample in known["asked"]["samples"]],
                }
            )
            self.asked = self.asked[: len(self.base.samples)]
            return
        self.base = self._ask()
        self.asked = self.asked[: len(self.base.samples)]  # as many as there was time for
        write_json(self.cache, {"fingerprint": self.mark, "asked": asdict(self.base)})

    def evaluate_tuned(self) -> None:
        """Measure the trained model on the same."""
        self.tuned = self._ask(hurry=False)

    def _ask(self, *, hurry: bool = True) -> Asked:
        began = time.monotonic()
        losses, general, scores = (
            self.losses(self.rows),
            self.losses(self.general_rows),
            self.own_scores(),
        )
        samples: list[judge.Sample] = []
        writing = time.monotonic()
        for start in range(0, len(self.asked), BATCH):
            if hurry and start and time.monotonic() - writing > GENERATION_S:
                break
            batch = self.asked[start : start + BATCH]
            samples += judge.answers(
                self.trainer.model,
                self.trainer.processing_class,
                batch,
                limit=self.limit,
                autocast=self._autocast,
            )
        return Asked(
            losses=losses,
            general=general,
            samples=samples,
            scores=scores,
            seconds=time.monotonic() - began,
        )

    def losses(self, rows: Sequence[Row]) -> list[float]:
        """Loss per learned token of each row."""
        return judge.row_losses(self.trainer, rows)

    def own_scores(self) -> dict[str, list[float]]:
        """What else an objective measures of the model, by name."""
        return {}

    def own_parts(self) -> dict[str, Compared]:
        """What an objective compares before all else."""
        return {}

    def own_record(self) -> dict[str, Any]:
        """What an objective adds to the record."""
        return {}

    def _autocast(self) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self.trainer.compute_loss_context_manager()
        return context

    # ---------------------------------------------------------------- comparing

    @property
    def loss(self) -> Compared | None:
        """Loss per learned token on the held-out rows; None where nothing was held out."""
        if not self.rows or not self.tuned.losses:
            return None
        return compare(
            self.base.losses,
            self.tuned.losses,
            higher_is_better=False,
            weights=[row.learned for row in self.rows],
        )

    @property
    def general(self) -> Compared | None:
        """Loss on the fixed general prompts."""
        if not self.tuned.general:
            return None
        return compare(
            self.base.general,
            self.tuned.general,
            higher_is_better=False,
            weights=[row.learned for row in self.general_rows],
        )

    def answers(self) -> dict[str, Compared]:
        """Scores of the generated answers, as they suit the expected ones."""
        if not self.tuned.samples or not all(row.expected for row in self.asked):
            return {}
        return compare_answers(
            [sample.text for sample in self.base.samples],
            [sample.text for sample in self.tuned.samples],
            [row.expected for row in self.asked],
        )

    def verdict(self) -> tuple[str, str]:
        """One word and one sentence."""
        parts = {
            **self.own_parts(),
            **({"held-out loss": self.loss} if self.loss is not None else {}),
            **self.answers(),
        }
        general = self.general
        notable = general is not None and general.after > general.before * (1 + WORSE_GENERAL)
        return verdict(parts, general=general if notable else None)

    def checks(self) -> list[Any]:
        """Whether answers end by themselves.

        Raises TrainingFailed where the base's did and no answer does any more.
        """
        from trainers.evaluation.saved_result import check_stops

        return check_stops(self.job, self.tuned.samples, self.base.samples, self.limit)

    def record(self) -> dict[str, Any]:
        """The comparison for result.json."""
        loss, general = self.loss, self.general
        return {
            "holdout_loss_before": loss.before if loss else None,
            "holdout_loss_after": loss.after if loss else None,
            "holdout_loss_interval": list(loss.interval) if loss and loss.interval else None,
            "perplexity_before": judge.perplexity(loss.before if loss else None),
            "perplexity_after": judge.perplexity(loss.after if loss else None),
            "rows": len(self.rows),
            "metrics": {
                name: part.record() for name, part in {**self.own_parts(), **self.answers()}.items()
            },
            "general": general.record() if general else None,
            "seconds": round(self.base.seconds + self.tuned.seconds, 1),
            "samples": [
                {
                    "prompt": row.shown,
                    "expected": row.expected,
                    "base": base.text,
                    "tuned": tuned.text,
                    "base_stopped": base.stopped,
                    "tuned_stopped": tuned.stopped,
                }
                for row, base, tuned in zip(
                    self.asked, self.base.samples, self.tuned.samples, strict=True
                )
            ],
            **self.own_record(),
        }


def general_rows(tokenizer: Any, seq_len: int) -> list[Row]:
    """The fixed general prompts, as rows of this tokenizer; [] where its template takes none of
    them.
    """
    from advisor.data import read_examples

    try:
        data = prepare_stage_rows(
            list(read_examples(GENERAL)),
            Templater(tokenizer, learn_all=False),
            kind=ANSWERS,
            seq_len=seq_len,
            truncation="drop",
            holdout=0.0,
            seed=0,
        )
    except InputError:  # none of them is as short as the rows of this stage
        return []
    rows: Sequence[Row] = data.train
    return list(rows)
