"""What a stage tells a person beside its progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from advisor.ground.progress import Wait, board, waiting
from advisor.ground.terminal import shown
from advisor.record.stage import Times
from trainers.job.job import Job, label
from trainers.job.machine import is_main_process


def say(text: str) -> None:
    """Print a message on stderr. Nobody may be there any more: a terminal that was closed ends no
    step before it is saved.
    """
    with suppress(OSError):
        print(shown(text), file=sys.stderr, flush=True)


def tell(job: Job, line: str | None) -> None:
    """Print the line under the stage's name, in the main process alone; nothing without one."""
    if line and is_main_process():
        say(f"{label(job)}: {line}")


LOAD, BEFORE, TRAIN, AFTER = "load_s", "before_s", "train_s", "after_s"
SAID = {
    LOAD: "loading rows and model",
    BEFORE: "measuring the model before training",
    AFTER: "saving, checking and measuring the result",
}
# What is said where several processes train and one of its own judges.
SAVING_ALONE, JUDGING_ALONE = "saving the result", "checking and measuring the result"


class Parts:
    """Which part a stage is in, since when, and how long the others took.

    Args:
        label: What messages call the stage.
        shown: Whether this process says where it is. The steps are a wait of their own.
        folder: The run folder, for those who follow it.
    """

    def __init__(self, label: str, *, shown: bool, folder: Path | None = None) -> None:
        board.is_shown, board.label, board.folder = shown, label, folder
        self.label, self.shown = label, shown
        self.took_s: dict[str, float] = {}
        self.part, self.began_s = "", time.monotonic()
        self.wait: Wait | None = None

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Show no more."""
        if self.wait is not None:
            board.close(self.wait)
            self.wait = None

    def begin(self, part: str, *, text: str | None = None) -> None:
        """The part before ends here.

        Args:
            part: One of those above.
            text: What is said of it; default: the usual.
        """
        self._end()
        self.close()
        self.part = part
        text = text or SAID.get(part)
        if self.shown and text is not None:
            say(f"{self.label}: {text}")
            self.wait = board.open(text)

    def _end(self) -> None:
        now_s = time.monotonic()
        if self.part:
            self.took_s[self.part] = self.took_s.get(self.part, 0.0) + now_s - self.began_s
        self.began_s = now_s

    def times(self) -> Times:
        """What every part took, the one at work so far."""
        self._end()
        took_s: dict[str, Any] = {part: round(s, 3) for part, s in self.took_s.items()}
        return Times(total_s=round(sum(took_s.values()), 3), **took_s)


LOOK_EVERY_S = 1.0


class AnswerCount:
    """How many answers of those that are generated together have ended, batch by batch. Nothing is
    read from the device but once in a while: a token costs a look at the clock.

    Args:
        wait: What shows them.
        limit: The longest answer, in tokens.
    """

    def __init__(self, wait: Wait, limit: int) -> None:
        self.wait, self.limit = wait, limit
        self.done = 0  # of the batches that are finished

    def watch(self, width: int, stops: Sequence[int]) -> Callable[[Any, Any], Any]:
        """A logits processor for one batch, which changes no logits.

        Args:
            width: Tokens of the prompts, with their padding; 1 for a decoder of its own.
            stops: The tokens that end an answer.
        """
        import torch

        looked_s = time.monotonic()

        def look(ids_BS: Any, logits_BV: Any) -> Any:
            nonlocal looked_s
            length = ids_BS.shape[1] - width
            if time.monotonic() - looked_s >= LOOK_EVERY_S and length > 0:
                looked_s = time.monotonic()
                ends = torch.tensor(list(stops), device=ids_BS.device)
                ended = int(torch.isin(ids_BS[:, width:], ends).any(1).sum())
                text = f"token {length:,} of at most {self.limit:,}"
                self.wait.at(self.done + ended, text=text)
            return logits_BV

        return look

    def finished(self, answers: int) -> None:
        """A batch is done."""
        self.done += answers
        self.wait.at(self.done, text="")


@contextmanager
def counting_answers(
    count: int, limit: int, what: str = "generating answers"
) -> Iterator[AnswerCount]:
    """Show how many answers are there while the context lasts.

    Args:
        count: How many there will be.
        limit: The longest of them, in tokens.
    """
    with waiting(what, total=count, unit="answers") as wait:
        yield AnswerCount(wait, limit)
