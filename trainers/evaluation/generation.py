"""The evaluation of a model that writes: base against tuned on held-out rows, on generated answers,
and on fixed general prompts.

The base is measured before training, so that it need not be loaded twice; its numbers are kept
beside the result, so that a resumed run does not measure it again, and in the cache folder, where
the next run of the same base on the same rows finds them, and says so. Time is bounded by fixed
samples: a number of held-out rows for the loss, and generated answers until SAMPLES or GENERATION_S
is reached.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from msgspec import convert

from advisor.data import read_examples
from advisor.ground.errors import MachineNotReady
from advisor.ground.progress import track, waiting
from advisor.ground.resources import cache_folder
from advisor.record.stage import Check, Evaluation, KeptBase, Metric, SampleAnswer
from trainers.evaluation import Subject
from trainers.evaluation.loss import (
    HELD_OUT_ROWS,
    LONGEST_SAMPLE,
    SAMPLES,
    Sample,
    greedy_answers,
    held_out,
    output_losses,
    perplexity,
    prompts_to_answer,
    row_losses,
)
from trainers.evaluation.metrics import choose_metrics, compare, score_answer, verdict
from trainers.evaluation.saved_result import check_stops
from trainers.job.files import digest_of, keep_value, kept_value
from trainers.rollouts.transformers_engine import HOST_BYTES, row_bytes
from trainers.rows import ANSWERS, Row, Templater
from trainers.rows.row import LeftOut
from trainers.say.progress import tell

GENERAL = Path(__file__).parent / "general.jsonl"
GENERATION_S = 45.0  # no further batch of answers is begun after this
FEWEST_TOGETHER = 4  # sample answers
FORM = 1  # of what is measured: a number that would come out otherwise asks for the next one
WATCHED_TOKENS = 16  # of the answer that is shown while it trains: about a line
TRIAL_ROWS, TRIAL_SAMPLES, TRIAL_GENERAL = 8, 2, 4


@dataclass
class Measurements:
    losses: list[float] = field(default_factory=list)  # mean per learned token, of held-out rows
    general: list[float] = field(default_factory=list)  # the same, of the general prompts
    samples: list[Sample] = field(default_factory=list)
    # What an objective adds; None: an answer has no score.
    scores: dict[str, list[float | None]] = field(default_factory=dict)
    seconds: float = 0.0
    kept: dict[str, Any] | None = None  # of an earlier run: when and with what they were measured


class TextEvaluator:
    """Measures losses and answers before and after training, and compares them."""

    is_general = True  # whether the model does more than one task

    def __init__(self, subject: Subject[Row]) -> None:
        job, data = subject.job, subject.data
        self.job, self.trainer, self.fingerprint = job, subject.trainer, subject.fingerprint
        self.before_training = subject.base
        self.trial = job.max_steps is not None
        self.rows = held_out(data.holdout, limit=TRIAL_ROWS if self.trial else HELD_OUT_ROWS)
        answered = prompts_to_answer(self.rows or data.train, seq_len=job.stage.seq_len)
        self.prompts = answered[: TRIAL_SAMPLES if self.trial else SAMPLES]
        # Half as many tokens again as the longest expected answer has, up to a bound.
        longest = max((row.learned for row in self.prompts), default=32)
        self.limit = min(LONGEST_SAMPLE, longest + longest // 2 + 8)
        self.general_rows: list[Row] = []
        if self.is_general:  # those within seq_len
            templater = Templater(self.trainer.processing_class)
            rows = ANSWERS.rows(read_examples(GENERAL), templater, LeftOut())
            short = [row for row in rows if row.tokens <= job.stage.seq_len]
            self.general_rows = short[: TRIAL_GENERAL if self.trial else None]
        self.base, self.tuned = Measurements(), Measurements()
        self.cache = job.output / "before.json"

    def evaluate_base(self) -> None:
        known, key = kept_value(self.cache, self.fingerprint), self._key()
        # Without a home folder there is no cache, and no key.
        path = cache_folder() / "base" / f"{key[:32]}.json" if key else None
        if known is None and path is not None and (of_cache := kept_value(path, key)):
            known, found = of_cache, convert(of_cache["kept"], KeptBase)
            tell(self.job, f"base: {found.sentence} (ADVISE_RUNS=off measures it)")
        if known is None:
            self.base = self._measure()
            # Fewer answers than there are prompts would make the next verdict weaker, too.
            if path is not None and len(self.base.samples) == len(self.prompts):
                kept = replace(self.base, seconds=0.0, kept=self._measured_with())
                with suppress(MachineNotReady):  # it would save time, and no more
                    keep_value(path, key, asdict(kept))
        else:
            samples = [Sample(**sample) for sample in known["samples"]]
            self.base = Measurements(**{**known, "samples": samples})
        keep_value(self.cache, self.fingerprint, asdict(self.base))
        self.prompts = self.prompts[: len(self.base.samples)]  # as many as there was time for

    def _key(self) -> str:
        """A digest of the base, what it computes with, and everything that is asked of it; empty
        where a further run may find something else.
        """
        has_own = type(self).own_scores is not TextEvaluator.own_scores
        is_off = os.environ.get("ADVISE_RUNS") == "off"  # nothing is learned from earlier runs
        if self.before_training is None or has_own or is_off:
            return ""
        asked = [
            [list(map(int, row.input_ids)), list(map(int, row.labels))]
            for row in (*self.rows, *self.general_rows)
        ]
        prompts = [row.prompt for row in self.prompts]
        return digest_of([FORM, self.before_training, asked, prompts, self.limit])

    def _measured_with(self) -> dict[str, Any]:
        """When and with what the base was measured."""
        import torch

        device = next(self.trainer.model.parameters()).device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        versions = {one: version(one) for one in ("torch", "transformers")}
        today = time.strftime("%Y-%m-%d", time.gmtime())
        return {"at": today, "versions": versions, "device": name}

    def watched(self) -> tuple[str, str, Callable[[], str]] | None:
        """(the shortest sample question, the base's answer, what answers it now); None without
        one.
        """
        answered = zip(self.prompts, self.base.samples, strict=True)
        row, base = min(answered, key=lambda one: one[0].tokens, default=(None, None))
        if row is None or base is None:
            return None
        return row.shown, base.text, lambda: self.sample([row], limit=WATCHED_TOKENS)[0].text

    def evaluate_tuned(self) -> None:
        self.tuned = self._measure(bounded=False)

    def _measure(self, *, bounded: bool = True) -> Measurements:
        began = time.monotonic()
        with waiting("held-out rows"):
            losses = self.losses(self.rows)
        with waiting("general prompts"):
            general = self.losses(self.general_rows)
        samples: list[Sample] = []
        writing = time.monotonic()
        each = self.answers_at_once()
        starts = range(0, len(self.prompts), each)
        for start in track(
            starts, "sample answers", unit="answers", each=each, of=len(self.prompts)
        ):
            if bounded and start and time.monotonic() - writing > GENERATION_S:
                break
            samples += self.sample(self.prompts[start : start + each])
        return Measurements(
            losses=losses,
            general=general,
            samples=samples,
            scores=self.own_scores(samples),
            seconds=time.monotonic() - began,
        )

    def answers_at_once(self) -> int:
        """As many as have the tokens of a micro-batch, if all are as long as the longest, and
        FEWEST_TOGETHER at least: they hold no gradients. On the host as many as have room: there a
        token of sixteen takes little longer than one of four, and memory is no device's own.
        """
        stage, model = self.job.stage, self.trainer.model
        longest = max((len(row.input_ids) for row in self.prompts), default=0) + self.limit
        least = max(FEWEST_TOGETHER, stage.micro_batch_size * stage.seq_len // longest)
        on_host = next(model.parameters()).device.type == "cpu"
        return max(least, HOST_BYTES // row_bytes(model, longest) if on_host else 0)

    def sample(self, rows: Sequence[Row], *, limit: int | None = None) -> list[Sample]:
        tokenizer = self.trainer.processing_class
        # Rendered prompts have their own special tokens; a prompt without a template gets the
        # tokenizer's.
        special = not getattr(tokenizer, "chat_template", None)
        prompts = tokenizer([row.prompt for row in rows], add_special_tokens=special)["input_ids"]
        return greedy_answers(self.trainer, prompts, limit=limit or self.limit)

    def losses(self, rows: Sequence[Row]) -> list[float]:
        """Loss per learned token of each row."""
        return row_losses(self.trainer, rows)

    def own_scores(self, samples: Sequence[Sample]) -> dict[str, list[float | None]]:
        """Further measurements of an objective, by name; the first one decides."""
        return {}

    def own_parts(self) -> dict[str, Metric]:
        """Comparisons of these measurements, of what has both."""
        found = {}
        for name, before in self.base.scores.items():
            both = zip(before, self.tuned.scores.get(name, []), strict=False)
            pairs = [(one, other) for one, other in both if one is not None and other is not None]
            if pairs:
                one, other = zip(*pairs, strict=True)
                found[name] = compare(
                    one,
                    other,
                    higher_is_better=self.is_better_higher(name),
                    weights=self.weights(name),
                )
        return found

    def is_better_higher(self, name: str) -> bool:
        """Whether more is better of one of its own measurements."""
        return True

    def weights(self, name: str) -> Sequence[float] | None:
        """Of the rows of one of its own measurements, if they do not weigh the same."""
        return None

    def own_record(self) -> dict[str, Any]:
        """What an objective adds to the record."""
        return {}

    # ---------------------------------------------------------------- comparing

    @property
    def loss(self) -> Metric | None:
        """Loss per learned token on the held-out rows; None if nothing was held out."""
        return compare_losses(self.base.losses, self.tuned.losses, self.rows)

    def scored_answers(self) -> dict[str, list[list[float]]]:
        """The scores of all answers before and after, by the metrics that suit the expected ones;
        {} without any.
        """
        expected = [row.expected for row in self.prompts]
        if not self.tuned.samples or not all(expected):
            return {}
        return {
            metric: [
                [
                    score_answer(metric, sample.text, wanted)
                    for sample, wanted in zip(found.samples, expected, strict=True)
                ]
                for found in (self.base, self.tuned)
            ]
            for metric in choose_metrics(expected)
        }

    def answers(self) -> dict[str, Metric]:
        """What became of those scores."""
        return {
            metric: compare(*both, higher_is_better=True)
            for metric, both in self.scored_answers().items()
        }

    def verdict(self) -> tuple[str, str]:
        return verdict(
            {
                **self.own_parts(),
                **({"held-out loss": self.loss} if self.loss is not None else {}),
                **self.answers(),
            }
        )

    def checks(self) -> list[Check]:
        """Whether answers still end with a stop token.

        Raises TrainingFailed if those of the base did and none does any more.
        """
        return check_stops(self.job, self.tuned.samples, self.base.samples, self.limit)

    def record(self) -> Evaluation:
        loss = self.loss
        general = compare_losses(self.base.general, self.tuned.general, self.general_rows)
        scored, own = self.scored_answers(), self.own_parts()
        metric = next(iter(scored), None)
        nothing = [None] * len(self.prompts)
        scores = scored[metric] if metric else (nothing, nothing)
        both = self.base, self.tuned
        rewards = (found.scores.get("reward", nothing) for found in both)
        answers = (found.samples for found in both)
        samples = zip(self.prompts, *answers, *scores, *rewards, strict=True)
        return Evaluation(
            holdout_loss_before=loss.before if loss else None,
            holdout_loss_after=loss.after if loss else None,
            holdout_loss_interval=loss.interval if loss else None,
            perplexity_before=perplexity(loss.before if loss else None),
            perplexity_after=perplexity(loss.after if loss else None),
            rows=len(self.rows),
            decides=next(iter(own), None),
            metrics={**own, **self.answers()},
            general=general,
            seconds=round(self.base.seconds + self.tuned.seconds, 1),
            samples=tuple(
                SampleAnswer(
                    prompt=row.shown,
                    expected=row.expected,
                    base=base.text,
                    tuned=tuned.text,
                    base_stopped=base.stopped,
                    tuned_stopped=tuned.stopped,
                    score_before=numbers[0],
                    score_after=numbers[1],
                    reward_before=numbers[2],
                    reward_after=numbers[3],
                )
                for row, base, tuned, *numbers in samples
            ),
            sample_metric=metric,
            kept_base=convert(self.base.kept, KeptBase | None),
            extra=self.own_record(),
        )


class RewritingEvaluator(TextEvaluator):
    """Measures losses and outputs of a sequence-to-sequence model. There are no general prompts:
    such a model has one task.
    """

    is_general = False

    def losses(self, rows: Sequence[Any]) -> list[float]:
        sums = output_losses(self.trainer, rows)
        return [total / row.learned for total, row in zip(sums, rows, strict=True)]

    def sample(self, rows: Sequence[Any], *, limit: int | None = None) -> list[Sample]:
        prompts = [row.input_ids for row in rows]
        return greedy_answers(self.trainer, prompts, limit=limit or self.limit)


def compare_losses(
    before: Sequence[float], after: Sequence[float], rows: Sequence[Row]
) -> Metric | None:
    """The mean loss per learned token of these rows; None if it was not measured."""
    if not rows or not after:
        return None
    weights = [row.learned for row in rows]
    return compare(before, after, higher_is_better=False, weights=weights)
