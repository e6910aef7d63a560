"""The evaluation of preference training, on held-out pairs or answers with feedback, and of
training by reward, on answers to held-out prompts; both with general prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from trainers.evaluation import Subject
from trainers.evaluation.generation import TextEvaluator
from trainers.evaluation.loss import SAMPLES, Sample, answer_log_probs, held_out
from trainers.evaluation.metrics import proportion_interval
from trainers.job import Tokenizer
from trainers.rewards.scoring import Answer, Rewards
from trainers.rows import IGNORED, Prepared, Row
from trainers.rows.conversation import Prompt
from trainers.rows.preference import Feedback, Pair
from trainers.rows.row import ids_of

HELD_OUT, TRIAL = 64, 8
HELD_OUT_PROMPTS, TRIAL_PROMPTS = 32, 4
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


def prompt_row(row: Prompt) -> Row:
    """A prompt as a row without a token to learn."""
    ids, labels = row.prompt_ids, ids_of([IGNORED] * len(row.prompt_ids))
    expected = row.answer or ""
    return Row(row.number, ids, labels, row.prompt, row.shown, expected, row.key, row.text)


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
        self.prompts = [prompt_row(row) for row in self.held]
        self.limit = int(job.options["response_tokens"])

    def own_scores(self, samples: Sequence[Sample]) -> dict[str, list[float | None]]:
        """The reward of each answer, and each of several."""
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
        return {"reward": self.rewards.sums(parts), **(named if self.rewards.several else {})}

    def is_better_higher(self, name: str) -> bool:
        weights = {f"reward {part.key}": part.weight for part in self.rewards.parts}
        return weights.get(name, 1) > 0

    def own_record(self) -> dict[str, Any]:
        samples = self.tuned.samples
        ended = sum(sample.stopped for sample in samples) / len(samples) if samples else None
        return {"prompts": len(samples), "answers_ended": ended}
