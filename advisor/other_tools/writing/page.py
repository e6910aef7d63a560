"""The configuration as YAML that a person reads: what it is, how it is started, what was not
carried over, and the reason beside a value.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

import yaml

from advisor.ground.version import __version__
from advisor.other_tools.writing.job import Job
from advisor.other_tools.writing.writer import start_of

WIDTH = 96
LONGEST_REASON = 90


def page(job: Job, *, release: str) -> str:
    """The text of the file."""
    return "\n".join([*_head(job, release), "", *_body(job), ""])


def _head(job: Job, release: str) -> Iterator[str]:
    stage = job.entry.stage
    what = f"{stage.objective}, {stage.update}" + (
        f" on a base in {stage.quantization}" if stage.quantization else ""
    )
    yield from _wrapped(
        f"{what} of {job.model}, for {job.tool.name} {release}. Written by finetune-advisor"
        f" {__version__} from the plan {job.plan.name}."
    )
    if job.tool.install:
        yield f"# Install, in an environment of its own:  {job.tool.install}"
    for command in job.before:
        yield f"# First:  {command}"
    yield f"# Start, in this folder:  {start_of(job)}"
    for name, count in job.written.items():
        yield f"# Data:  {name}, {count:,} rows"
    yield from _listed(
        "Not carried over:", [f"{one.key} ({_word(one.value)}): {one.why}" for one in job.lost]
    )
    yield from _listed("Different from `advise run`:", job.notes)


def _listed(title: str, lines: Iterable[str]) -> Iterator[str]:
    lines = list(dict.fromkeys(lines))
    if lines:
        yield f"# {title}"
    for line in lines:
        yield from _wrapped(line, first="#  - ", later="#    ")


def _wrapped(text: str, first: str = "# ", later: str = "# ") -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=later,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _word(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


# What stands at the top of the file: the model, then its data.
MODEL = (
    "model_name_or_path",
    "base_model",
    "model_revision",
    "revision_of_model",
    "trust_remote_code",
)
DATA = (
    "dataset_name", "dataset_train_split", "dataset_test_split", "dataset_dir", "dataset",
    "eval_dataset", "template", "enable_thinking", "datasets", "test_datasets", "val_set_size",
    "chat_template", "chat_template_kwargs", "dataset_prepared_path", "reward_funcs",
)  # fmt: skip


def _body(job: Job) -> Iterator[str]:
    order = {key: place for place, key in enumerate((*MODEL, *DATA))}
    for key, value in sorted(job.values.items(), key=lambda item: order.get(item[0], len(order))):
        because = job.because.get(key, "")
        if isinstance(value, dict) or (isinstance(value, list) and any(map(_nests, value))):
            yield yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True).rstrip("\n")
        elif because and len(because) <= LONGEST_REASON:
            yield f"{key}: {_word(value)}  # {because}"
        else:
            yield f"{key}: {_word(value)}"


def _nests(value: Any) -> bool:
    return isinstance(value, dict | list)
