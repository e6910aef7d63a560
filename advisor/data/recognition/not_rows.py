"""Objects of OpenAI's API that people export and that hold no training rows: each is refused by its
name, with where the rows are.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from advisor.ground.errors import InputError

CONTENT = "GET /v1/files/FILE_ID/content"
PAIR_UP = (
    "write one row for each answer with its request before it: "
    '{"messages": [{"role": "user", ...}, {"role": "assistant", ...}]}'
)


@dataclass(frozen=True, slots=True)
class Object:
    """One kind of object: how it is told, what it is, and where the rows are."""

    what: str
    hint: str
    is_one: Callable[[Mapping[str, Any]], bool]


def _called(name: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda row: row.get("object") == name


OBJECTS = (
    Object(
        "OpenAI's fine-tuning jobs, not the rows they were trained on",
        f"the rows are in the file that its `training_file` names: {CONTENT}",
        _called("fine_tuning.job"),
    ),
    Object(
        "events of an OpenAI fine-tuning job (losses and messages), not rows to train on",
        f"the rows are in the `training_file` of the job: {CONTENT}",
        _called("fine_tuning.job.event"),
    ),
    Object(
        "checkpoints of an OpenAI fine-tuning job, not rows to train on; their weights stay with"
        " OpenAI",
        f"the rows are in the `training_file` of the job: {CONTENT}",
        _called("fine_tuning.job.checkpoint"),
    ),
    Object(
        "descriptions of files at OpenAI, not their content",
        f"the content of one: {CONTENT}",
        _called("file"),
    ),
    Object(
        "answers that OpenAI stored (chat.completion), without the requests they answer",
        f"the requests: GET /v1/chat/completions/ID/messages; {PAIR_UP}",
        _called("chat.completion"),
    ),
    Object(
        "output of OpenAI's Batch API: answers without the requests they answer",
        f"the input file of the batch holds the request of the same custom_id; {PAIR_UP}",
        lambda row: "custom_id" in row and isinstance(row.get("response"), Mapping),
    ),
    Object(
        "input of OpenAI's Batch API: requests without answers",
        f"the output file of the batch holds the answer of the same custom_id; {PAIR_UP}",
        lambda row: "custom_id" in row and isinstance(row.get("body"), Mapping),
    ),
)


def refuse_other_objects(rows: Sequence[Mapping[str, Any]], shown: str) -> None:
    """Raises InputError where most rows of a sample are such objects."""
    for kind in OBJECTS:
        if 2 * sum(map(kind.is_one, rows)) > len(rows):
            raise InputError(
                f"these are {kind.what}",
                "rows to train on: messages, pairs, texts, ...",
                kind.hint.replace("check FILE", f"check {shlex.quote(shown)}"),
                where=shown,
            )
