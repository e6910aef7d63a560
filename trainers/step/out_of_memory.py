"""When memory runs out: what such an error looks like, and how a step is done again with fewer rows
at a time.

The micro-batches of an optimizer step are at hand until it is taken. If one of them does not fit,
the gradients of the step are dropped, and all that it did is done again from the same random
numbers in smaller parts; every later step begins with the smaller ones. Rows, their order, the
effective batch size and the loss are those of the plan: a loss that is divided by the tokens of the
whole batch is a sum over parts, and a mean over the rows of a micro-batch is weighted by the rows
of each part. The trainer itself is built with the micro-batch of the plan, so that a resumed run
reads the same rows.

A process of several cannot do so alone, since the others wait for it in a collective: it ends, and
`advise run` starts all of them again with the smaller setting. The same happens if the optimizer's
own step fails, which may have changed half of the weights.
"""

from __future__ import annotations

import errno
import gc
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from advisor.ground.errors import OutOfMemory
from advisor.plan.entries import Entry
from advisor.record.files import try_read_part
from advisor.record.run import ADJUSTED, DOING
from advisor.record.smaller import adjustment_of, next_batch, valid_adjustments
from advisor.record.stage import Adjusted, Adjustment, Doing
from trainers.job.files import write_json
from trainers.job.job import Job
from trainers.job.machine import process_rank

# What torch, its libraries and the system say, in lower case.
WORDS = (
    "out of memory",  # CUDA, HIP, XPU, MPS, NCCL, bitsandbytes
    "defaultcpuallocator",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "unable to allocate",
    "failed to allocate",
    "alloc_failed",  # CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_ALLOC_FAILED
    "std::bad_alloc",
    "bad allocation",
    "can't start new thread",  # there is no room for its stack
    "failed to map segment from shared object",
    "error return without exception set",  # of an extension in C whose allocation failed
)
Item = TypeVar("Item")
Found = TypeVar("Found")
ROWS = "rows_of_the_batch"  # of a batch: the rows that it was put together from
LOADING, TRAINING, EVALUATING, SAVING = "loading", "training", "evaluating", "saving"


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or what it was raised from, says that memory ran out."""
    return _root(error) is not None


def _root(error: BaseException | None) -> BaseException | None:
    """The error that says that memory ran out: this one, or one that it was raised from."""
    while error is not None:
        text = str(error).lower()
        if (
            isinstance(error, MemoryError | OutOfMemory)
            or type(error).__name__ == "OutOfMemoryError"
            or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
            or (
                isinstance(error, RuntimeError | OSError | ImportError | SystemError)
                and any(words in text for words in WORDS)
            )
        ):
            return error
        error = error.__cause__
    return None


def first_line(error: BaseException) -> str:
    """What an error says of memory, in a line, without the place in torch's own code."""
    root = _root(error) or error
    text = (str(root).splitlines() or [""])[0]
    text = re.sub(r"^\[enforce fail at .*?\] err == 0\. ", "", text).strip()
    return text or "the system has no more memory for this process"


def let_go(error: BaseException) -> None:
    """Drop what the frames of an error hold: all activations of the step that failed."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen.__traceback__, seen = None, seen.__context__


def give_back_memory() -> None:
    """Collect what nothing refers to any more, and hand the allocator's free blocks back."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def in_halves(rows: Sequence[Item], measure: Callable[[Sequence[Item]], Found]) -> list[Found]:
    """What is measured of all rows at once; if they do not fit, of each half of them, and so on.

    For what needs no gradients: nothing has to be undone. A forward pass of a divided model cannot
    be done again by one process alone: the error then ends the attempt.
    """
    try:
        return [measure(rows)]
    except Exception as error:
        if len(rows) < 2 or now.is_divided or not is_out_of_memory(error):
            raise
        let_go(error)
    give_back_memory()
    middle = (len(rows) + 1) // 2
    print(
        f"out of memory while {now.doing}: {len(rows)} rows are too many to look at at once, now"
        f" {middle}",
        file=sys.stderr,
        flush=True,
    )
    return [*in_halves(rows[:middle], measure), *in_halves(rows[middle:], measure)]


# --------------------------------------------------------------------------- what is going on


@dataclass
class Now:
    """What this process is doing: memory that runs out while a model is loaded is no reason for a
    smaller micro-batch.
    """

    doing: str = LOADING
    is_divided: bool = False  # each process holds a part of the model


now = Now()


def enter(job: Job, what: str) -> None:
    """From here on the stage does this: errors say so, and the launcher reads it if the kernel ends
    the process.
    """
    now.doing = what
    if process_rank() == 0 and not job.dry_run:
        write_json(job.output / DOING, Doing(doing=what).to_dict())


# --------------------------------------------------------------------------- rows at a time


@dataclass
class RowsAtOnce:
    """How many rows of a micro-batch go through the device at once: those of the plan, until memory
    runs out.
    """

    entry: Entry
    path: Path  # adjusted.json
    changes: list[Adjustment] = field(default_factory=list)
    say: Callable[[str], None] = lambda text: None
    alone: bool = True  # one process; of several, none may change it by itself

    @classmethod
    def of(cls, job: Job, *, say: Callable[[str], None], alone: bool) -> RowsAtOnce:
        """As an earlier attempt of the stage left it."""
        path = job.output / ADJUSTED
        return cls(
            job.entry, path, valid_adjustments(job.stage, try_read_part(Adjusted, path)), say, alone
        )

    @property
    def planned(self) -> int:
        """Those of the plan."""
        return self.entry.stage.micro_batch_size

    @property
    def rows(self) -> int:
        """Those that go through now."""
        return self.changes[-1].micro_batch_size if self.changes else self.planned

    def lower(self, why: str, *, at_step: int) -> None:
        """Go on with the next smaller setting, write it down, and say so.

        Raises OutOfMemory if there is none, or this is one process of several.
        """
        change = next_batch(self.entry.stage, self.rows)
        if change is None or not self.alone:
            raise OutOfMemory(f"out of memory while {now.doing}: {why}")
        adjustment = adjustment_of(self.entry, change, why, at_step=at_step)
        self.changes.append(adjustment)
        write_json(self.path, Adjusted(adjusted=tuple(self.changes)).to_dict())
        self.say(adjustment.sentence())


# --------------------------------------------------------------------------- a trainer that retries


class Rows:
    """The rows that a batch was put together from. No list, so that nothing that moves a batch to
    another place looks into it.
    """

    __slots__ = ("features",)

    def __init__(self, features: Sequence[Any]) -> None:
        self.features = list(features)


class KeepsRows:
    """A collator whose batches know the rows that they were put together from."""

    def __init__(self, collator: Callable[[Sequence[Any]], Any]) -> None:
        self.collator = collator

    def __call__(self, features: Sequence[Any]) -> Any:
        rows = Rows(features)
        batch = self.collator(features)
        if isinstance(batch, Mapping) or hasattr(batch, "keys"):
            batch[ROWS] = rows
        return batch


@dataclass(frozen=True)
class StepBegin:
    """What an optimizer step started from, beside the weights, which it has not changed yet."""

    random: dict[str, Any]
    loss: Any  # the sum since the last line of metrics
    tokens: tuple[Any, Any]
    metrics: dict[str, int]  # how many numbers there were of each


class SmallerParts:
    """A mixin for transformers' Trainer: a micro-batch that does not fit is trained in parts.

    `rows_at_once` is set once the trainer is made; a trainer without it, such as that of a dry run,
    ends with the error.
    """

    model: Any
    accelerator: Any
    args: Any
    state: Any
    data_collator: Any
    rows_at_once: RowsAtOnce | None = None
    current_gradient_accumulation_steps: Any
    _tokens_seen: Any
    _all_tokens: tuple[Any, int, Any]
    _tr_loss: Any

    def get_train_dataloader(self) -> Any:
        """The trainer's own, whose batches know their rows."""
        plain = self.data_collator
        self.data_collator = KeepsRows(plain)
        try:
            return super().get_train_dataloader()  # type: ignore[misc]
        finally:
            self.data_collator = plain

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The micro-batches of the next optimizer step, of which none is trained on yet."""
        self._begin: StepBegin | None = None
        self._micro_batches: list[tuple[Any, Rows | None]] = []
        return super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]

    def training_step(
        self, model: Any, inputs: Any, num_items_in_batch: Any = None, **_: Any
    ) -> Any:
        """The loss of a micro-batch, whose gradients are added to those of the step; if it does not
        fit, of all micro-batches of the step so far, done again.

        Raises OutOfMemory if it does not fit in the smallest parts either.
        """
        rows = inputs.pop(ROWS, None) if hasattr(inputs, "pop") and ROWS in inputs else None
        if self.rows_at_once is None:
            return super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        inputs = self._until_it_fits(lambda: self.before_parts(model, inputs))
        if self._begin is None:
            self._begin = self._step_begin()
        self._micro_batches.append((inputs, rows))
        first = len(self._micro_batches) - 1

        def again() -> Any:
            self._back_to_begin(model)
            return sum(
                self._train_in_parts(model, place, num_items_in_batch)
                for place in range(len(self._micro_batches))
            )

        loss = self._until_it_fits(
            lambda: self._train_in_parts(model, first, num_items_in_batch), again
        )
        self.after_parts()
        return loss

    def _until_it_fits(
        self, attempt: Callable[[], Any], again: Callable[[], Any] | None = None
    ) -> Any:
        """What the attempt returns, or a later one with fewer rows at a time.

        Args:
            again: The later attempts; None: the same.
        """
        from trainers.job.random_states import random_states, restore_random_states

        assert self.rows_at_once is not None
        states = random_states() if again is None else None
        while True:
            try:
                return attempt()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                why = first_line(error)
                let_go(error)
            # Outside of `except`, where Python still holds the error.
            self.rows_at_once.lower(why, at_step=self.state.global_step)
            give_back_memory()
            if states is not None:
                restore_random_states(states)
            attempt = again or attempt

    # ---------------------------------------------------------------- what a trainer may do its way

    def before_parts(self, model: Any, inputs: Any) -> Any:
        """The micro-batch as it is trained on."""
        return inputs

    def after_parts(self) -> None:
        """Called once a micro-batch is trained on."""

    def plain_step(self, model: Any, inputs: Any, num_items_in_batch: Any) -> Any:
        """The trainer's own step."""
        return super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]

    def parts_of(self, inputs: Any, rows: Rows | None, size: int) -> list[tuple[Any, float]]:
        """The micro-batch in parts of at most `size` rows, each with its share of them."""
        if rows is None or len(rows.features) <= size:
            return [(inputs, 1.0)]
        count = len(rows.features)
        groups = [rows.features[start : start + size] for start in range(0, count, size)]
        return [(self.data_collator(self.regrouped(group)), len(group) / count) for group in groups]

    def regrouped(self, rows: Sequence[Any]) -> Sequence[Any]:
        """The rows of a part, as their objective wants them put together."""
        return rows

    # ---------------------------------------------------------------- the step in parts

    def _train_in_parts(self, model: Any, place: int, num_items_in_batch: Any) -> Any:
        """The loss of one micro-batch of the step, its gradients added."""
        assert self.rows_at_once is not None
        inputs, rows = self._micro_batches[place]
        parts = self.parts_of(inputs, rows, self.rows_at_once.rows)
        steps = self.current_gradient_accumulation_steps
        gradients = self.accelerator.gradient_state
        exchanges = gradients.sync_gradients
        is_newest = place == len(self._micro_batches) - 1
        losses = []
        try:
            for number, (part, share) in enumerate(parts):
                # A mean over the rows of a part counts by its share of all rows.
                if share != 1.0:
                    self.current_gradient_accumulation_steps = steps / share
                is_last = is_newest and number == len(parts) - 1
                gradients._set_sync_gradients(exchanges and is_last)
                with nullcontext() if is_last else self.accelerator.no_sync(model):
                    losses.append(self.plain_step(model, part, num_items_in_batch))
        finally:
            self.current_gradient_accumulation_steps = steps
            gradients._set_sync_gradients(exchanges)
        return losses[0] if len(losses) == 1 else sum(losses)

    def _step_begin(self) -> StepBegin:
        from trainers.job.random_states import random_states

        return StepBegin(
            random=random_states(),
            loss=self._tr_loss.clone(),
            tokens=(self._tokens_seen, self._all_tokens),
            metrics={name: len(values) for name, values in self._numbers().items()},
        )

    def _back_to_begin(self, model: Any) -> None:
        """Drop the gradients of the step, and what was counted of it."""
        from trainers.job.random_states import restore_random_states

        assert self._begin is not None
        model.zero_grad(set_to_none=True)
        self._tr_loss.copy_(self._begin.loss)
        self._tokens_seen, self._all_tokens = self._begin.tokens
        for name, values in self._numbers().items():
            del values[self._begin.metrics.get(name, 0) :]
        restore_random_states(self._begin.random)

    def _numbers(self) -> Mapping[str, list[Any]]:
        """What TRL gathers for its next line of metrics."""
        for name in ("_metrics", "_stored_metrics"):
            found = getattr(self, name, {})
            if "train" in found:
                return dict(found["train"])
        return {}
