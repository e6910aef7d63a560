"""How many answers of those that are generated together have ended, shown while they are generated.

Nothing is read from the device but once in a while: a token costs a look at the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from advisor.ground.progress import Wait, waiting

LOOK_EVERY_S = 1.0


class AnswerCount:
    """Counts answers, batch by batch.

    Args:
        wait: What shows them.
        limit: The longest answer, in tokens.
    """

    def __init__(self, wait: Wait, limit: int) -> None:
        self.wait, self.limit = wait, limit
        self.done = self.tokens = 0  # of the batches that are finished
        self.began_s = time.monotonic()

    def watch(self, width: int, stops: Sequence[int]) -> Callable[[Any, Any], Any]:
        """A logits processor for one batch, which changes no logits.

        Args:
            width: Tokens of the prompts, with their padding; 1 for a decoder of its own.
            stops: The tokens that end an answer.
        """
        began_s = looked_s = time.monotonic()

        def look(ids_BS: Any, logits_BV: Any) -> Any:
            nonlocal looked_s
            now_s = time.monotonic()
            if now_s - looked_s >= LOOK_EVERY_S and ids_BS.shape[1] > width:
                looked_s = now_s
                self._show(ids_BS[:, width:], stops, now_s - began_s)
            return logits_BV

        return look

    def _show(self, written_BT: Any, stops: Sequence[int], took_s: float) -> None:
        """What the answers of a batch are at after so many seconds."""
        import torch

        batch, length = written_BT.shape
        ends = torch.tensor(list(stops), device=written_BT.device)
        is_end_BT = torch.isin(written_BT, ends)
        has_ended_B = is_end_BT.any(1)
        lengths_B = torch.where(has_ended_B, is_end_BT.int().argmax(1) + 1, length)
        ended, tokens = torch.stack([has_ended_B.sum(), lengths_B.sum()]).tolist()
        whole_batch_s = took_s * self.limit / length
        rest = max(0, self.wait.total - self.done - batch) / batch
        self.wait.at(
            self.done + ended,
            text=f"token {length:,} of at most {self.limit:,}, {self._rate(tokens)}",
            left_s=whole_batch_s * (1 + rest) - took_s,
        )

    def _rate(self, tokens: int) -> str:
        took_s = max(time.monotonic() - self.began_s, 1e-9)
        return f"{(self.tokens + tokens) / took_s:,.0f} tokens/s"

    def finished(self, answers: int, tokens: int) -> None:
        """A batch is done."""
        self.done += answers
        self.tokens += tokens
        self.wait.at(self.done, text=self._rate(0))


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
