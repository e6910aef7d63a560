"""What a stage with objective sft trains in place of a language model. `head: classes`: a
classification head on an encoder or a small decoder, under any update scheme (what `encoder:`
compositions ask for). `head: seq2seq`: an encoder reads the input and a decoder learns to write the
output (T5, BART, NLLB, Marian, Pegasus), whole or with LoRA.

The results load with plain AutoModelForSequenceClassification, which knows the names of the
classes, and AutoModelForSeq2SeqLM (or their AutoPeftModelFor...). Translation models that write
many languages want to know which: `source_language` and `target_language`, as their tokenizer calls
them (eng_Latn, en_XX).
"""

from __future__ import annotations

import re
from collections import Counter
from functools import partial
from typing import Any

from advisor.ground.errors import Fault, InputError, did_you_mean, refuse
from advisor.record.stage import Check, Confusion, Evaluation, Metric, SampleAnswer
from trainers.evaluation import Subject
from trainers.evaluation.generation import RewritingEvaluator
from trainers.evaluation.loss import SAMPLES, held_out
from trainers.evaluation.metrics import classification, compare, verdict
from trainers.evaluation.saved_result import SCORES, SEQ2SEQ
from trainers.job import Tokenizer
from trainers.job.evaluating import measuring_as_trained
from trainers.job.job import Job
from trainers.rows import Prepared
from trainers.rows.heads import (
    CLASSES,
    REWRITINGS,
    Labelled,
    Rewriting,
    class_columns,
    class_names,
    rewriting_columns,
)
from trainers.rows.packing import head_outputs
from trainers.rows.sequences import values_of
from trainers.stage.objective import Build, EvaluatedBy, Opened, WithHead
from trainers.start.loading import load_base
from trainers.start.model_files import model_config

HELD_OUT, TRIAL_ROWS = 500, 16


class ClassEvaluator:
    """Accuracy on held-out texts, against always predicting the most common class.

    A new head has learned nothing, so that baseline stands for the model before training.
    """

    def __init__(self, subject: Subject[Labelled]) -> None:
        self.trainer, data = subject.trainer, subject.data
        self.names = all_classes(data)
        trial = subject.job.max_steps is not None
        self.rows = held_out(data.holdout, limit=TRIAL_ROWS if trial else HELD_OUT)
        self.most_common: str = Counter(values_of(data.train, "name")).most_common(1)[0][0]
        self.predicted: list[int] = []
        self.scores: list[tuple[float, float]] = []  # of the baseline, of the model: 1 if right
        self.accuracy: Metric | None = None  # of both; None if nothing was held out

    def evaluate_base(self) -> None:
        """Do nothing: before training the outputs of the head are random."""

    def evaluate_tuned(self) -> None:
        if not self.rows:
            return
        trainer, texts = self.trainer, [row.input_ids for row in self.rows]
        at_once = trainer.args.per_device_train_batch_size
        pad_id = trainer.processing_class.pad_token_id
        with measuring_as_trained(trainer):
            logits_RC = head_outputs(
                trainer.model, texts, pad_id, at_once=at_once, what="predictions", unit="texts"
            )
        self.predicted = logits_RC.argmax(-1).tolist()
        both = zip(self.rows, self.predicted, strict=True)
        self.scores = [
            (float(row.name == self.most_common), float(row.name == self.names[guess]))
            for row, guess in both
        ]
        before, after = map(list, zip(*self.scores, strict=True))
        self.accuracy = compare(before, after, higher_is_better=True)

    def verdict(self) -> tuple[str, str]:
        if self.accuracy is None:
            return verdict({})
        word, text = verdict({"accuracy": self.accuracy})
        return word, f"{text} (before: always the most common class, {self.most_common})"

    def checks(self) -> list[Check]:
        guesses, classes = set(self.predicted), {row.name for row in self.rows}
        if len(guesses) != 1 or len(classes) < 2:
            return []
        text = f"the predicted class of every held-out text is {self.names[self.predicted[0]]}"
        return [Check("calls-more-than-one-class", False, text)]

    def record(self) -> Evaluation:
        if self.accuracy is None:
            return Evaluation(rows=0)
        true = [self.names.index(row.name) for row in self.rows]
        found = classification(self.predicted, true, self.names)
        macro_f1 = Metric(after=found["macro_f1"], rows=found["rows"], word="measured alone")
        shown = zip(self.rows[:SAMPLES], self.predicted, self.scores, strict=False)
        return Evaluation(
            rows=len(self.rows),
            decides="accuracy",
            metrics={"accuracy": self.accuracy, "macro_f1": macro_f1},
            confusion=Confusion(
                labels=tuple(found["confusion"]["labels"]),
                counts=tuple(map(tuple, found["confusion"]["counts"])),
            ),
            samples=tuple(
                SampleAnswer(
                    prompt=row.shown,
                    expected=row.name,
                    base=self.most_common,
                    tuned=self.names[guess],
                    score_before=before,
                    score_after=after,
                )
                for row, guess, (before, after) in shown
            ),
            sample_metric="accuracy",
            extra={key: found[key] for key in ("accuracy_interval", "macro_f1_interval")},
        )


def all_classes(data: Prepared[Labelled]) -> list[str]:
    """The names of the classes of all rows, in the order of their numbers."""
    return class_names(
        name for side in (data.train, data.holdout) for name in values_of(side, "name")
    )


class Classifier(WithHead[Labelled]):
    """Learns the class of each text."""

    trained_by = "trainers.stage.trl_trainer:Classes"
    kind = CLASSES
    evaluated_by: EvaluatedBy | None = ClassEvaluator
    head = SCORES
    head_name = "classes"
    why_not_packed = "several texts would share a row, and each row has one class"
    writes = False
    measures_loss = True

    def rows(self, job: Job, tokenizer: Tokenizer) -> Prepared[Labelled]:
        """The texts. Raises InputError for one class alone, or if all rows of one were held out."""
        data: Prepared[Labelled] = super().rows(job, tokenizer)
        names = all_classes(data)
        if len(names) < 2:
            raise InputError(
                f"every row has the class '{names[0]}'",
                allowed="two classes or more",
                hint="name the column of the classes: --map takes it as label",
            )
        missing = set(names) - set(values_of(data.train, "name"))
        if missing:
            raise InputError(
                f"no training row has the class {', '.join(sorted(missing))}: all of its rows were"
                " held out",
                hint="add rows of it, or set a smaller holdout",
            )
        return data

    def load(self, opened: Opened[Labelled]) -> Any:
        """The model with a new head that has one output for each class."""
        from transformers import set_seed

        job, data, tokenizer = opened.job, opened.data, opened.tokenizer
        names = all_classes(data)
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


# --------------------------------------------------------------------------- sequence to sequence

UPDATES = ("full", "lora")
CODE = re.compile(r"[a-z]{2,3}_[A-Z][A-Za-z]+")  # of a language: en_XX, eng_Latn
LANGUAGES = ("source_language", "target_language")


class Seq2Seq(WithHead[Rewriting]):
    """Learns to write the output of each input."""

    trained_by = "trainers.stage.trl_trainer:Seq2Seq"
    kind = REWRITINGS
    columns = staticmethod(rewriting_columns)
    evaluated_by = RewritingEvaluator
    head = SEQ2SEQ
    head_name = "seq2seq"
    why_not_packed = "an encoder would read the texts of other rows, too"
    measures_loss = True

    def faults(self, job: Job) -> list[Fault]:
        found = super().faults(job)
        if job.stage.update not in UPDATES:
            what = f"update {job.stage.update} has no place in a model of an encoder and a decoder"
            allowed = f"update: {' or '.join(UPDATES)} with head: seq2seq"
            found.append(Fault(where=f"stage {job.stage.name}", what=what, allowed=allowed))
        return found

    def rows(self, job: Job, tokenizer: Tokenizer) -> Prepared[Rewriting]:
        set_languages(job, tokenizer)
        return super().rows(job, tokenizer)

    def load(self, opened: Opened[Rewriting]) -> Any:
        """The model, which writes the target language.

        Raises InputError for a model that is no sequence-to-sequence model.
        """
        job, base = opened.job, opened.job.base_model
        config = model_config(job, base)
        if not getattr(config, "is_encoder_decoder", False):
            raise InputError(
                f"seq2seq, and {base} is a {config.model_type}, which has no encoder beside its"
                " decoder",
                where=f"stage {job.stage.name}: head",
                allowed="T5, BART, NLLB, Marian, Pegasus and others of their kind",
                hint="leave `head` out for a model that writes on its own",
            )
        model = load_base(job, opened.device, None, head=SEQ2SEQ)
        language = job.options.get("target_language")
        if language is not None:
            model.generation_config.forced_bos_token_id = opened.tokenizer.get_vocab()[language]
        return model

    def trainer_parts(self, build: Build[Rewriting], config: Any) -> dict[str, Any]:
        from transformers import DataCollatorForSeq2Seq

        # The model shifts the output by one place: that is what its decoder reads.
        collator = DataCollatorForSeq2Seq(build.tokenizer, model=build.model)
        return {**super().trainer_parts(build, config), "data_collator": collator}


def set_languages(job: Job, tokenizer: Tokenizer) -> None:
    """Tell the tokenizer of a model of many languages which it reads and which it writes.

    Raises InputError if it needs to know and the stage does not say, or says an unknown one.
    """
    given = {name: job.options.get(name) for name in LANGUAGES}
    at, base = f"stage {job.stage.name}", job.base_model
    if not hasattr(tokenizer, "src_lang") or not hasattr(tokenizer, "tgt_lang"):
        if named := [name for name in LANGUAGES if given[name]]:
            raise InputError(
                f"{' and '.join(named)}: the tokenizer of {base} knows no languages",
                where=at,
                hint="write the task in front of each input instead, as T5 wants it",
            )
        return
    special = (entry.content for entry in tokenizer.added_tokens_decoder.values() if entry.special)
    known = sorted(token for token in special if CODE.fullmatch(token))
    faults = []
    for name, language in given.items():
        if language is None or language not in known:
            what, hint = "is not said", f"--set stages.0.{name}=... says it"
            if language is not None:
                what, hint = f"is {language}, which it does not know", did_you_mean(language, known)
            what = f"{base} reads and writes many languages, and {name} {what}"
            allowed = f"{', '.join(known[:8])}, ... ({len(known)} in all)"
            faults.append(Fault(where=at, what=what, allowed=allowed, hint=hint))
    refuse(faults)
    languages: Any = tokenizer
    languages.src_lang, languages.tgt_lang = given["source_language"], given["target_language"]
