"""The evaluation of preference training, on held-out pairs or answers with feedback, and of
training by reward, on answers to held-out prompts; both with general prompts. And of a reward
model: on held-out pairs, how often the chosen answer scores higher, and whether length alone would
do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from advisor.record.stage import Check, Evaluation, Metric
from trainers.evaluation import Subject
from trainers.evaluation.generation import TextEvaluator
from trainers.evaluation.loss import SAMPLES, Sample, answer_log_probs, held_out
from trainers.evaluation.metrics import proportion_interval
from trainers.job import Tokenizer, Trainer
from trainers.job.evaluating import measuring_as_trained
from trainers.job.files import keep_value, kept_value
from trainers.rewards.scoring import Answer, Rewards
from trainers.rows import IGNORED, Prepared, Row
from trainers.rows.conversation import Prompt
from trainers.rows.packing import head_outputs
from trainers.rows.preference import Feedback, Pair
from trainers.rows.row import ids_of

HELD_OUT, TRIAL = 64, 8
HELD_OUT_PROMPTS, TRIAL_PROMPTS = 32, 4
HELD_OUT_PAIRS, TRIAL_PAIRS = 256, 8  # of a reward model
MARGIN = "preference margin"
LIKED = "log-probability of liked answers less that of others"


def answer_row(
    tokenizer: Tokenizer, row: Pair | Feedback, answer_ids: Sequence[int], expected: str
) -> Row:
    """A prompt and one answer to it as a row whose answer is learned."""
    # Without a template the tokenizer writes its own special tokens around a prompt, again.
    prompt = tokenizer.decode(
        row.prompt_ids,
        skip_special_tokens=not tokenizer.chat_template,
        clean_up_tokenization_spaces=False,
    )
    labels = [*([IGNORED] * len(row.prompt_ids)), *answer_ids]
    ids = ids_of((*row.prompt_ids, *answer_ids))
    return Row(row.number, ids, ids_of(labels), prompt, row.shown, expected, row.key, row.text)


def both_sides(tokenizer: Tokenizer, row: Pair) -> tuple[Row, Row]:
    """(the chosen answer of a pair, the rejected one), as rows."""
    return answer_row(tokenizer, row, row.chosen_ids, row.chosen), answer_row(
        tokenizer, row, row.rejected_ids, row.rejected
    )


def chosen_rows(tokenizer: Tokenizer, rows: Sequence[Pair | Feedback]) -> list[Row]:
    """The answers that people liked, as rows."""
    found = []
    for row in rows:
        if isinstance(row, Pair):
            found.append(both_sides(tokenizer, row)[0])
        elif row.label:
            found.append(answer_row(tokenizer, row, row.completion_ids, row.expected))
    return found


class PreferenceEvaluator(TextEvaluator):
    """Measures how much likelier the chosen answers of held-out pairs are than the rejected ones,
    or how likely held-out answers with feedback are.
    """

    def __init__(self, subject: Subject[Any], *, learns_answers: bool = False) -> None:
        tokenizer, data = subject.trainer.processing_class, subject.data
        trial = subject.job.max_steps is not None
        self.held = held_out(data.holdout, limit=TRIAL if trial else HELD_OUT)
        answers: Prepared[Row] = replace(
            data,
            train=tuple(chosen_rows(tokenizer, data.train[: 4 * SAMPLES])),
            holdout=tuple(chosen_rows(tokenizer, self.held)),
        )
        super().__init__(replace(subject, data=answers))
        if not learns_answers:
            self.rows = []  # then the likelihood of the chosen answers alone is no aim

    def own_scores(self, samples: Sequence[Sample]) -> dict[str, list[float | None]]:
        tokenizer = self.trainer.processing_class
        if not self.held:
            return {}
        if isinstance(self.held[0], Feedback):
            rows = [
                answer_row(tokenizer, row, row.completion_ids, row.expected) for row in self.held
            ]
            sums = answer_log_probs(self.trainer, rows)
            liked = (1 if row.label else -1 for row in self.held)
            return {LIKED: [sign * value for sign, value in zip(liked, sums, strict=True)]}
        both = [both_sides(tokenizer, row) for row in self.held]
        sides = (answer_log_probs(self.trainer, side) for side in zip(*both, strict=True))
        margins = [chosen - rejected for chosen, rejected in zip(*sides, strict=True)]
        return {MARGIN: [*margins], "pair accuracy": [float(margin > 0) for margin in margins]}

    def own_record(self) -> dict[str, Any]:
        name = next(iter(self.base.scores), None)
        if name is None or name not in self.tuned.scores:
            return {"pairs": 0}
        both: Any = zip(self.base.scores[name], self.tuned.scores[name], strict=True)
        grew = [now > was for was, now in both]
        # DPO calls this the accuracy of its rewards: the margin against the model it started from.
        rows, share = {MARGIN: ("pairs", "reward_accuracy")}.get(
            name, ("feedback_rows", "moved_as_judged")
        )
        return {
            rows: len(grew),
            share: sum(grew) / len(grew),
            f"{share}_interval": list(proportion_interval(sum(grew), len(grew)) or ()),
        }


class RewardEvaluator(TextEvaluator):
    """Lets the model answer held-out prompts greedily, and scores the answers by the reward."""

    def __init__(self, subject: Subject[Prompt], rewards: Rewards) -> None:
        job, data = subject.job, subject.data
        trial = job.max_steps is not None
        self.held = held_out(data.holdout, limit=TRIAL_PROMPTS if trial else HELD_OUT_PROMPTS)
        # No row has a loss: prompts have nothing to learn.
        nothing: Prepared[Row] = Prepared(train=(), holdout=(), rows=data.rows)
        super().__init__(Subject(job, subject.trainer, nothing, subject.fingerprint))
        self.rewards = rewards
        nothing_learned = [ids_of([IGNORED] * row.tokens) for row in self.held]
        self.prompts = [
            Row(row.number, row.prompt_ids, labels, row.prompt, row.shown, row.answer or "")
            for row, labels in zip(self.held, nothing_learned, strict=True)
        ]
        self.limit = int(job.options["response_tokens"])

    def own_scores(self, samples: Sequence[Sample]) -> dict[str, list[float | None]]:
        tokenizer = self.trainer.processing_class
        end = [tokenizer.eos_token_id]
        texts = [sample.text for sample in samples]
        written = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        answers = [
            Answer(row.prompt, sample.text, row.answer, row.prompt_ids, ids + end * sample.stopped)
            for row, sample, ids in zip(self.held, samples, written, strict=False)
        ]
        if not answers:
            return {}
        parts = [part(answers) for part in self.rewards.parts]
        named = {
            f"reward {part.key}": scores
            for part, scores in zip(self.rewards.parts, parts, strict=True)
        }
        return {"reward": self.rewards.sums(parts), **(named if len(parts) > 1 else {})}

    def is_better_higher(self, name: str) -> bool:
        weights = {f"reward {part.key}": part.weight for part in self.rewards.parts}
        return weights.get(name, 1) > 0

    def own_record(self) -> dict[str, Any]:
        samples = self.tuned.samples
        ended = sum(sample.stopped for sample in samples) / len(samples) if samples else None
        return {"prompts": len(samples), "answers_ended": ended}


# --------------------------------------------------------------------------- a reward model


def pair_scores(trainer: Trainer, rows: Sequence[Pair]) -> Any:
    """Scores of the chosen and the rejected answer of P pairs: P, 2; float32 on the host."""
    import torch

    if not rows:
        return torch.zeros(0, 2)
    texts = [[*row.prompt_ids, *ids] for row in rows for ids in (row.chosen_ids, row.rejected_ids)]
    # A micro-batch has so many pairs.
    at_once = 2 * trainer.args.per_device_train_batch_size
    with measuring_as_trained(trainer):
        pad_id = trainer.processing_class.pad_token_id
        return head_outputs(trainer.model, texts, pad_id, at_once=at_once)[:, 0].view(-1, 2)


class RewardModelEvaluator:
    """Scores the held-out pairs with the trained model, and before training with a model that was a
    reward model already: the scores of a new head mean nothing.
    """

    def __init__(self, subject: Subject[Pair], *, scored_before: bool) -> None:
        job, data = subject.job, subject.data
        self.trainer, self.fingerprint = subject.trainer, subject.fingerprint
        trial = job.max_steps is not None
        self.rows = held_out(data.holdout, limit=TRIAL_PAIRS if trial else HELD_OUT_PAIRS)
        self.scored_before = scored_before
        by = [length_difference(row) for row in data.train]
        self.longer = sum(one > 0 for one in by) * 2 >= sum(one != 0 for one in by)
        self.before: list[list[float]] = []  # the scores of each pair
        self.after: list[list[float]] = []
        self.cache = job.output / "before.json"

    def evaluate_base(self) -> None:
        if not self.scored_before or not self.rows:
            return
        known = kept_value(self.cache, self.fingerprint)
        self.before = pair_scores(self.trainer, self.rows).tolist() if known is None else known
        if known is None:
            keep_value(self.cache, self.fingerprint, self.before)

    def evaluate_tuned(self) -> None:
        self.after = pair_scores(self.trainer, self.rows).tolist()

    def verdict(self) -> tuple[str, str]:
        rows, right = len(self.rows), count_right(self.after)
        interval = proportion_interval(right, rows)
        if interval is None:
            return "not distinguishable", "nothing was held out to score"
        word, than = "not distinguishable", "from chance"
        if interval[0] > 0.5 or interval[1] < 0.5:
            word, than = "better" if interval[0] > 0.5 else "worse", "than chance"
        before = f", {count_right(self.before) / rows:.1%} before" if self.before else ""
        return word, (
            f"{word} {than}: the better answer scores higher in {right / rows:.1%} of {rows}"
            f" held-out pairs (95 % interval {interval[0]:.1%} to {interval[1]:.1%}){before}"
        )

    def by_length(self) -> tuple[float, float]:
        """(how many pairs a preference for length alone gets right, in the direction of the
        training pairs, those of equal length by half; the share in which the scores agree with it).
        """
        sign = 1 if self.longer else -1
        by = [sign * length_difference(row) for row in self.rows]
        both = zip(self.after, by, strict=True)
        uneven = [value for (one, other), more in both if (value := (one - other) * more) != 0]
        right = sum(0.5 if more == 0 else float(more > 0) for more in by)
        return right, sum(value > 0 for value in uneven) / len(uneven) if uneven else 0.5

    def checks(self) -> list[Check]:
        """Whether the scores are more than the length of the answers."""
        rows, right = len(self.rows), count_right(self.after)
        if not rows:
            return []
        by_length, agreement = self.by_length()
        interval = proportion_interval(round(by_length), rows)
        biased = by_length >= right and interval is not None and interval[0] > 0.5
        text = (
            f"preferring the {'longer' if self.longer else 'shorter'} answer is right in"
            f" {by_length / rows:.1%} of the held-out pairs, the scores in {right / rows:.1%};"
            f" they agree with it in {agreement:.1%}"
            + ("; length alone does as well" if biased else "")
        )
        return [Check("scores-are-more-than-length", not biased, text)]

    def record(self) -> Evaluation:
        rows, right = len(self.rows), count_right(self.after)
        if not rows:
            return Evaluation(rows=0)
        before = count_right(self.before) / rows if self.before else None
        metric = Metric(before=before, after=right / rows, rows=rows, word=self.verdict()[0])
        by_length, agreement = self.by_length()
        own = {
            "pair_accuracy": right / rows,
            "pair_accuracy_interval": list(proportion_interval(right, rows) or ()),
            "mean_margin": sum(chosen - rejected for chosen, rejected in self.after) / rows,
            "mean_score": sum(map(sum, self.after)) / (2 * rows),
            "length": {
                "prefers": "longer" if self.longer else "shorter",
                "accuracy": by_length / rows,
                "agreement": agreement,
            },
        }
        return Evaluation(rows=rows, metrics={"pair_accuracy": metric}, extra=own)


def count_right(scores: Sequence[Sequence[float]]) -> int:
    return sum(chosen > rejected for chosen, rejected in scores)


def length_difference(row: Pair) -> int:
    """How many tokens longer the chosen answer is than the rejected one."""
    return len(row.chosen_ids) - len(row.rejected_ids)
