"""The judge of preference training: held-out pairs or verdicts before and after, beside sample
answers and general prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from trainers.evaluation import loss as judge
from trainers.evaluation.generation import Judge
from trainers.evaluation.metrics import Compared, compare, proportion_interval
from trainers.frame.job import Job
from trainers.prepare import IGNORED, Prepared, Row
from trainers.prepare.preference import Feedback, Pair
from trainers.prepare.row import ids_of

HELD_OUT, TRIAL = 64, 8


def as_row(tokenizer: Any, row: Pair | Feedback, answer_ids: Sequence[int], expected: str) -> Row:
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


def both_sides(tokenizer: Any, row: Pair) -> tuple[Row, Row]:
    """The better and the worse answer of a pair, as rows."""
    return as_row(tokenizer, row, row.chosen_ids, row.chosen), as_row(
        tokenizer, row, row.rejected_ids, row.rejected
    )


def chosen(tokenizer: Any, rows: Sequence[Pair | Feedback]) -> list[Row]:
    """The answers that people liked, as rows."""
    found = []
    for row in rows:
        if isinstance(row, Pair):
            found.append(both_sides(tokenizer, row)[0])
        elif row.label:
            found.append(as_row(tokenizer, row, row.completion_ids, row.expected))
    return found


class PreferenceJudge(Judge):
    """Asks how likely held-out answers are, for people's sake as a margin: how much likelier the
    better ones.
    """

    def __init__(
        self,
        job: Job,
        trainer: Any,
        data: Prepared[Any],
        mark: str,
        *,
        learns_answers: bool = False,
    ) -> None:
        tokenizer = trainer.processing_class
        few = TRIAL if job.max_steps is not None else HELD_OUT
        self.held = judge.held_out(data.holdout, limit=few)
        answers: Prepared[Row] = replace(
            data,
            train=tuple(chosen(tokenizer, data.train[: 4 * judge.SAMPLES])),
            holdout=tuple(chosen(tokenizer, self.held)),
        )  # type: ignore[arg-type]
        super().__init__(job, trainer, answers, mark)
        if not learns_answers:
            self.rows = []  # that the better answers themselves become likelier is no aim then

    def losses(self, rows: Sequence[Row]) -> list[float]:
        return [
            -total / row.learned
            for total, row in zip(judge.answer_log_probs(self.trainer, rows), rows, strict=True)
        ]

    def own_scores(self) -> dict[str, list[float]]:
        tokenizer = self.trainer.processing_class
        if not self.held:
            return {}
        if isinstance(self.held[0], Feedback):
            return {
                "answers": judge.answer_log_probs(
                    self.trainer,
                    [as_row(tokenizer, row, row.completion_ids, row.expected) for row in self.held],
                )
            }
        both = [both_sides(tokenizer, row) for row in self.held]
        return {
            name: judge.answer_log_probs(self.trainer, [row[place] for row in both])
            for place, name in enumerate(("better", "worse"))
        }

    def own_parts(self) -> dict[str, Compared]:
        before, after = self.base.scores, self.tuned.scores
        if not before or not after:
            return {}
        if "answers" in before:
            signs = [1.0 if row.label else -1.0 for row in self.held]
            one, other = (
                [sign * value for sign, value in zip(signs, asked["answers"], strict=True)]
                for asked in (before, after)
            )
            return {
                "log-probability of liked answers less that of others": compare(
                    one, other, higher_is_better=True
                )
            }
        one, other = margins(before), margins(after)
        right = [[float(margin > 0) for margin in told] for told in (one, other)]
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
                when: sum(told[name]) / len(told[name])
                for when, told in (("before", before), ("after", after))
            }
            for name in before
        }
        # What DPO calls its reward's accuracy: the margin against the model it started from.
        return {
            "pairs": len(grew),
            "reward_accuracy": sum(grew) / len(grew),
            "reward_accuracy_interval": list(proportion_interval(sum(grew), len(grew)) or ()),
            **means,
        }


def margins(told: dict[str, list[float]]) -> list[float]:
    """How much likelier the better answer of each pair is, as a difference of log-probabilities."""
    return [better - worse for better, worse in zip(told["better"], told["worse"], strict=True)]
