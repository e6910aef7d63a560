"""Results that do not write: a classifier names the class of a text, a reward model scores an
answer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advisor.ground.errors import InputError
from advisor.methods import objective
from advisor.record.run import DONE, RunRecord, StageRecord, last_of_each_task
from trainers.job.evaluating import evaluating
from trainers.start.model_files import reading
from trainers.tools.results import (
    load_module,
    load_tokenizer,
    load_whole,
    prompt_ids,
    record_of,
    result_of,
)

HEAD = "SequenceClassification"
SHOWN_CLASSES = 3
HEAD_NAMES = {"score", "classifier", "out_proj"}


@dataclass
class Scoring:
    """Says what a result makes of each line: the class of a text, or the reward of an answer, which
    is the line behind its question.
    """

    label: str
    model: Any
    tokenizer: Any
    device: Any
    classes: tuple[str, ...] | None  # None: it scores answers
    question: str | None = None

    @property
    def prompt(self) -> str:
        """What is asked for next."""
        if self.classes is not None:
            return "text> "
        return "question> " if self.question is None else "answer> "

    def introduction(self) -> str:
        """What answers."""
        if self.classes is None:
            return (
                f"{self.label} scores answers: a line with a question, then a line with an answer"
                " to it"
            )
        return (
            f"{self.label} names the class of each line: {len(self.classes)} classes, with their"
            " shares"
        )

    def line(self, line: str) -> bool:
        """Answer a line; False ends the chat."""
        if self.classes is not None:
            print(self.likeliest(line, self.classes), flush=True)
        elif self.question is None:
            self.question = line
        else:
            question, self.question = self.question, None
            print(f"{self.score(question, line):.3f}", flush=True)
        return True

    def likeliest(self, text: str, classes: Sequence[str]) -> str:
        """'Billing 0.93, Returns 0.04': the likeliest classes of a text."""
        shares_C = self._logits(self._tokens(text)).softmax(-1)
        best = shares_C.argsort(descending=True)[:SHOWN_CLASSES].tolist()
        return ", ".join(f"{classes[place]} {shares_C[place]:.2f}" for place in best)

    def score(self, question: str, answer: str) -> float:
        """The reward of an answer."""
        if not getattr(self.tokenizer, "chat_template", None):
            return float(self._logits(self._tokens(question + answer))[0])
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return float(self._logits(prompt_ids(self.tokenizer, messages, is_answered=True))[0])

    def _tokens(self, text: str) -> Any:
        return self.tokenizer(text, return_tensors="pt", return_token_type_ids=False)

    def _logits(self, inputs: Any) -> Any:
        with evaluating(self.model):
            return self.model(**inputs.to(self.device)).logits[0].float().cpu()


def scoring_stage(record: RunRecord) -> StageRecord | None:
    """The finished stage of a run that scores or classifies, if none that writes is finished."""
    done = [stage for stage in record.stages if stage.status == DONE]
    writes = [
        stage
        for stage in done
        if not objective(stage.objective).scores and not record.is_classifier(stage)
    ]
    last = last_of_each_task(done)
    return last[-1] if last and not writes else None


def load_scoring(run: Path, stage: StageRecord, device: Any) -> Scoring:
    """The result of a stage, ready to score or to classify. Raises InputError for damaged files."""
    record = record_of(run)
    result = result_of(run, record, stage)
    classes = class_names(result.folder, stage) if record.is_classifier(stage) else None
    head: dict[str, Any] = {"head": HEAD, "num_labels": len(classes) if classes else 1}
    tokenizer = load_tokenizer(result)
    if result.is_module:
        model = load_module(result, load_whole(result, result.model, device, **head))
    else:
        model = load_whole(result, str(result.folder), device, **head)
    return Scoring(result.label, model.eval(), tokenizer, device, classes)


def class_names(folder: Path, stage: StageRecord) -> tuple[str, ...]:
    """The names of the head's outputs, in their order; numbers where they were not kept.

    A whole model's config.json holds them. A module has none, so the record of its evaluation does.
    """
    with suppress(OSError, ValueError, KeyError, AttributeError):
        names = json.loads((folder / "config.json").read_text("utf-8"))["id2label"]
        return tuple(str(names[place]) for place in sorted(names, key=int))
    confusion = stage.evaluation.confusion if stage.evaluation is not None else None
    if confusion is not None:
        return confusion.labels
    return tuple(f"class {place}" for place in range(outputs_of(folder)))


def outputs_of(folder: Path) -> int:
    """How many outputs the head of a saved module has. Raises InputError if it has none."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with reading(folder, "the adapter"), safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118  (not a dict)
                shape = weights.get_slice(name).get_shape()
                if HEAD_NAMES.intersection(name.split(".")) and len(shape) == 2:
                    return int(shape[0])
    raise InputError("it holds no head that classifies", where=str(folder))
