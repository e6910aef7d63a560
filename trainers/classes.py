"""Text classification: a classification head on an encoder or a small decoder, under any update
scheme.

This trains `encoder:` compositions: a stage with objective sft and `head: classes`. The result
loads with plain AutoModelForSequenceClassification (or AutoPeftModelForSequenceClassification) and
knows the names of its classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any

from advisor.ground.errors import InputError
from advisor.record.stage import Check, Confusion, Evaluation, Metric, SampleAnswer
from trainers.evaluation import Subject
from trainers.evaluation.loss import SAMPLES, held_out
from trainers.evaluation.metrics import Comparison, classification, compare, verdict
from trainers.evaluation.saved_result import SCORES
from trainers.job.evaluating import measuring_as_trained
from trainers.job.types import Trainer
from trainers.rows.heads import CLASSES, Labelled, class_columns, class_names
from trainers.rows.packing import head_outputs
from trainers.rows.sequences import values_of
from trainers.stage.objective import Build, Opened, WithHead

HELD_OUT, TRIAL_ROWS = 500, 16


class Classifier(WithHead[Labelled]):
    """Learns the class of each text."""

    trained_by = "trainers.stage.trl_classes:Classes"
    kind = CLASSES
    head = SCORES
    head_name = "classes"
    why_not_packed = "several texts would share a row, and each row has one class"
    writes = False
    measures_loss = True

    def load(self, opened: Opened[Labelled]) -> Any:
        """The model with a new head that has one output for each class.

        Raises InputError if all rows of a class were held out.
        """
        from transformers import set_seed

        from trainers.start.loading import load_base

        job, data, tokenizer = opened.job, opened.data, opened.tokenizer
        learned = set(values_of(data.train, "name"))
        names = class_names(chain(learned, values_of(data.holdout, "name")))
        missing = set(names) - learned
        if missing:
            raise InputError(
                f"no training row has the class {', '.join(sorted(missing))}: all of its rows were"
                " held out",
                hint="add rows of it, or set a smaller holdout",
            )
        set_seed(job.stage.seed)  # the head starts from random numbers
        model = load_base(job, opened.device, None, head=SCORES, num_labels=len(names))
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: place for place, name in enumerate(names)}
        if getattr(model.config, "pad_token_id", None) is None:
            model.config.pad_token_id = tokenizer.pad_token_id
        return model

    def dataset(self, build: Build[Labelled]) -> Any:
        columns = partial(class_columns, numbers=build.model.config.label2id)
        return build.dataset(build.rows, columns)

    def trainer_parts(self, build: Build[Labelled], config: Any) -> dict[str, Any]:
        from transformers import DataCollatorWithPadding

        collator = DataCollatorWithPadding(build.tokenizer)
        return {**super().trainer_parts(build, config), "data_collator": collator}

    def evaluator(self, subject: Subject[Labelled]) -> ClassEvaluator:
        return ClassEvaluator(subject)


def class_logits(trainer: Trainer, rows: Sequence[Labelled]) -> Any:
    """The outputs of the head for R rows and C classes, in the order of the rows: R, C; float32 on
    the host.
    """
    texts = [row.input_ids for row in rows]
    at_once, pad_id = (
        trainer.args.per_device_train_batch_size,
        trainer.processing_class.pad_token_id,
    )
    with measuring_as_trained(trainer):
        return head_outputs(
            trainer.model, texts, pad_id, at_once=at_once, what="predictions", unit="texts"
        )


class ClassEvaluator:
    """Accuracy on held-out texts, against always predicting the most common class.

    A new head has learned nothing, so that baseline stands for the model before training.
    """

    def __init__(self, subject: Subject[Labelled]) -> None:
        self.trainer, data = subject.trainer, subject.data
        parts = (data.train, data.holdout)
        self.names = class_names(chain.from_iterable(values_of(part, "name") for part in parts))
        trial = subject.job.max_steps is not None
        self.rows = held_out(data.holdout, limit=TRIAL_ROWS if trial else HELD_OUT)
        numbers = {name: place for place, name in enumerate(self.names)}
        self.true = [numbers[row.name] for row in self.rows]
        self.most_common = numbers[Counter(values_of(data.train, "name")).most_common(1)[0][0]]
        self.predicted: list[int] = []

    def evaluate_base(self) -> None:
        """Do nothing: before training the outputs of the head are random."""

    def evaluate_tuned(self) -> None:
        """Predict the classes of the held-out texts."""
        self.predicted = (
            class_logits(self.trainer, self.rows).argmax(-1).tolist() if self.rows else []
        )

    @property
    def accuracy(self) -> Comparison | None:
        """The accuracy against that of the baseline; None if nothing was held out."""
        if not self.predicted:
            return None
        return compare(
            [float(label == self.most_common) for label in self.true],
            [float(label == guess) for label, guess in zip(self.true, self.predicted, strict=True)],
            higher_is_better=True,
        )

    def verdict(self) -> tuple[str, str]:
        """One word and one sentence."""
        accuracy = self.accuracy
        if accuracy is None:
            return verdict({})
        word, text = verdict({"accuracy": accuracy})
        return (
            word,
            f"{text} (before: always the most common class, {self.names[self.most_common]})",
        )

    def checks(self) -> list[Check]:
        """Whether more than one class is predicted."""
        if not self.predicted or len(set(self.predicted)) > 1 or len(set(self.true)) < 2:
            return []
        return [
            Check(
                "calls-more-than-one-class",
                False,
                f"the predicted class of every held-out text is {self.names[self.predicted[0]]}",
            )
        ]

    def record(self) -> Evaluation:
        """The comparison for result.json."""
        if not self.predicted:
            return Evaluation(rows=0)
        found = classification(self.predicted, self.true, self.names)
        accuracy = self.accuracy
        macro_f1 = Metric(after=found["macro_f1"], rows=found["rows"], word="measured alone")
        shown = list(zip(self.rows, self.true, self.predicted, strict=True))[:SAMPLES]
        return Evaluation(
            rows=len(self.rows),
            decides="accuracy",
            metrics={**({"accuracy": accuracy.record()} if accuracy else {}), "macro_f1": macro_f1},
            confusion=Confusion(
                labels=tuple(found["confusion"]["labels"]),
                counts=tuple(tuple(counts) for counts in found["confusion"]["counts"]),
            ),
            samples=tuple(
                SampleAnswer(
                    prompt=row.shown,
                    expected=row.name,
                    base=self.names[self.most_common],
                    tuned=self.names[guess],
                    score_before=float(label == self.most_common),
                    score_after=float(label == guess),
                )
                for row, label, guess in shown
            ),
            sample_metric="accuracy",
            extra={key: found[key] for key in ("accuracy_interval", "macro_f1_interval")},
        )
