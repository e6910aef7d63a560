"""The evaluation of preference training: held-out pairs or answers with feedback before and after,
with sample answers and general prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from trainers.evaluation import Subject
from trainers.evaluation.generation import TextEvaluator
from trainers.evaluation.loss import SAMPLES, answer_log_probs, held_out
from trainers.evaluation.metrics import Comparison, compare, proportion_interval
from trainers.job.types import Tokenizer
from trainers.rows import IGNORED, Prepared, Row
from trainers.rows.preference import Feedback, Pair
from trainers.rows.row import ids_of

HELD_OUT, TRIAL = 64, 8


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
    return Row(
        row.number,
        ids_of((*row.prompt_ids, *answer_ids)),
        ids_of(labels),
        prompt,
        row.shown,
        expected,
        row.key,
        row.text,
    )


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

    def own_scores(self) -> dict[str, list[float]]:
        tokenizer = self.trainer.processing_class
        if not self.held:
            return {}
        if isinstance(self.held[0], Feedback):
            rows = [
                answer_row(tokenizer, row, row.completion_ids, row.expected) for row in self.held
            ]
            return {"answers": answer_log_probs(self.trainer, rows)}
        both = [both_sides(tokenizer, row) for row in self.held]
        return {
            name: answer_log_probs(self.trainer, [row[place] for row in both])
            for place, name in enumerate(("better", "worse"))
        }

    def own_parts(self) -> dict[str, Comparison]:
        before, after = self.base.scores, self.tuned.scores
        if not before or not after:
            return {}
        if "answers" in before:
            signs = [1.0 if row.label else -1.0 for row in self.held]
            one, other = (
                [sign * value for sign, value in zip(signs, scores["answers"], strict=True)]
                for scores in (before, after)
            )
            return {
                "log-probability of liked answers less that of others": compare(
                    one, other, higher_is_better=True
                )
            }
        one, other = margins(before), margins(after)
        right = [[float(margin > 0) for margin in values] for values in (one, other)]
        return {
            "preference margin": compare(one, other, higher_is_better=True),
            "pair accuracy": compare(*right, higher_is_better=True),
        }

    def own_record(self) -> dict[str, Any]:
        before, after = self.base.scores, self.tuned.scores
        if not before or not after:
            return {"pairs": 0}
        if "answers" in before:
            moved = [
                (now > was) == row.label
                for was, now, row in zip(
                    before["answers"], after["answers"], self.held, strict=True
                )
            ]
            return {
                "feedback_rows": len(moved),
                "moved_as_judged": sum(moved) / len(moved),
                "moved_as_judged_interval": list(proportion_interval(sum(moved), len(moved)) or ()),
            }
        grew = [now > was for was, now in zip(margins(before), margins(after), strict=True)]
        means = {
            f"{name}_answers_log_prob": {
                when: sum(scores[name]) / len(scores[name])
                for when, scores in (("before", before), ("after", after))
            }
            for name in before
        }
        # DPO calls this the accuracy of its rewards: the margin against the model it started from.
        return {
            "pairs": len(grew),
            "reward_accuracy": sum(grew) / len(grew),
            "reward_accuracy_interval": list(proportion_interval(sum(grew), len(grew)) or ()),
            **means,
        }


def margins(scores: dict[str, list[float]]) -> list[float]:
    """By how much the chosen answer of each pair is likelier: a difference of log-probabilities."""
    return [better - worse for better, worse in zip(scores["better"], scores["worse"], strict=True)]
