"""One row of a data file as the trainers see it: the text that the model reads, and which of it is
learned. One JSON document on stdout.

Run: python -P -m trainers.tools.show_row REQUEST, which is JSON: the arguments of `show_row`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from advisor.data import Example, SkippedRows, read_examples
from advisor.data.examples import REASONS, Tally
from advisor.ground.errors import AdviseError, InputError
from advisor.ground.terminal import show_streams
from advisor.model_files.folder import tokenizer_faults
from advisor.record.stage import ErrorRecord
from trainers.job.job import model_source
from trainers.job.libraries import quiet_libraries
from trainers.rows.conversation import answer_row, prompt_rows
from trainers.rows.preference import feedback_rows, pair_rows
from trainers.rows.row import IGNORED, Unusable
from trainers.rows.template import Templater
from trainers.rows.template_arguments import give_arguments
from trainers.start.model_files import check_files, reading

STAND_IN = "no model was named: a plain template, and no token counts"


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code. An error is part of the document, because the caller shows it."""
    (request,) = sys.argv[1:] if argv is None else argv
    show_streams()
    quiet_libraries()
    code = 0
    try:
        document = show_row(**json.loads(request))
    except AdviseError as error:
        document, code = {"error": ErrorRecord.of(error).to_dict()}, error.exit_code
    print(json.dumps(document, ensure_ascii=True))
    return code


def show_row(
    data: str | Path,
    *,
    row: int,
    model: str | None = None,
    mapping: Mapping[str, str] | None = None,
    template: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The row as plain values.

    Raises InputError for a row or model that does not exist, and for arguments that the model's
    chat template does not read.
    """
    from transformers import AutoTokenizer

    example, why_not = example_of(Path(data), row, mapping)
    shown: dict[str, Any] = {"path": str(data), "row": row, "model": model}
    shown |= {"parts": [], "notes": [], "left_out": why_not, "template": None}
    if example is None:
        return shown
    if model is None:
        tokenizer = stand_in()
    else:
        source = model_source(Path.cwd(), model)
        check_files(source, tokenizer_faults)
        with reading(source, "the tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        give_arguments(tokenizer, template or {}, model=model)
    templater = Templater(tokenizer)
    try:
        shown["parts"] = parts_of(example, templater)
    except Unusable as error:
        shown["left_out"] = ": ".join(error.args)
    shown["template"] = templater.template_source if model is not None else STAND_IN
    if model is None:
        for part in shown["parts"]:
            part |= {"tokens": None, "learned_tokens": None}
    if example.text is not None and not example.messages and example.label is None:
        shown["template"] = "none (raw text)"
    shown["notes"] = [*(templater.remarks if model is not None else ()), *templater.notes]
    return shown


class _SkippedExcept(SkippedRows, kw_only=True):
    """Skipped rows, with the reason for one of them."""

    row: int
    why: str = ""

    def add(self, reason: str, row: int) -> None:
        super().add(reason, row)
        if row == self.row:
            self.why = REASONS.get(reason, reason)


def example_of(
    data: Path, row: int, mapping: Mapping[str, str] | None
) -> tuple[Example | None, str | None]:
    """(the example of that row, None), or (None, why the row cannot be used).

    Raises InputError if there is no such row.
    """
    watching = _SkippedExcept(row=row)
    for example in read_examples(data, mapping=mapping, skipped=watching):
        if example.row == row:
            return example, None
        if watching.why or example.row > row:
            break
    if watching.why:
        return None, watching.why
    raise InputError(
        f"there is no row {row}",
        where=str(data),
        allowed=f"it has {Tally(watching.seen).in_words}, counted from 1",
    )


def stand_in() -> Any:
    """A tokenizer of single bytes, to show the mask without a model."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    end = "<|end|>"
    texts = [*sorted(pre_tokenizers.ByteLevel.alphabet()), end]
    raw = Tokenizer(models.BPE({text: place for place, text in enumerate(texts)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([end])
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=end, pad_token=end)


def parts_of(example: Example, templater: Templater) -> list[dict[str, Any]]:
    """The sequences of the example, each in stretches that are learned or only read.

    Raises Unusable.
    """
    more = {}
    if example.chosen:
        (both,) = pair_rows(example, templater)
        sequences = [
            ("the better answer: made likelier", both.prompt_ids, both.chosen_ids),
            ("the worse answer: made less likely", both.prompt_ids, both.rejected_ids),
        ]
    elif example.good is not None:
        (answer,) = feedback_rows(example, templater)
        title = f"an answer that people {'liked' if answer.label else 'rejected'}"
        sequences = [(title, answer.prompt_ids, answer.completion_ids)]
    elif example.answer is not None:
        (question,) = prompt_rows(example, templater)
        sequences = [("a prompt: the model writes the answer", question.prompt_ids, ())]
        more = {"answer": example.answer}
    else:
        row = answer_row(example, templater)
        marks = [label != IGNORED for label in row.labels]
        title = "a text" if row.document else "a conversation"
        return [_part(title, templater, row.input_ids, marks)]
    return [
        _part(title, templater, [*prompt, *ids], [False] * len(prompt) + [True] * len(ids)) | more
        for title, prompt, ids in sequences
    ]


def _part(
    title: str, templater: Templater, ids: Sequence[int], marks: Sequence[bool]
) -> dict[str, Any]:
    """One sequence.

    Args:
        marks: Of each token, whether it is learned.
    """
    stretches, place, before = [], 0, ""
    for mark, group in groupby(marks):
        place += len(list(group))
        # Decoded from the start, because some tokenizers drop a space at the beginning of the text.
        text = templater.tokenizer.decode(
            list(ids[:place]), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        stretches.append({"text": text[len(before) :], "learned": mark})
        before = text
    counts = {"tokens": len(ids), "learned_tokens": sum(marks)}
    return {"title": title, "stretches": stretches, **counts}


if __name__ == "__main__":
    sys.exit(main())
