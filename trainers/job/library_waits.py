"""What the libraries wait for, as waits of ours: their own progress bars are off.

transformers reads a model's weights one after the other, and huggingface_hub downloads files,
several at once. Both make bars of tqdm's kind for it, which are counted here and draw nothing.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from advisor.ground.progress import BYTES, Wait, board, waiting

LOADING = "Loading weights"  # what transformers calls it
TRANSFER = "Downloading bytes"  # a second bar of the hub for the same file, before decompression


def watch_libraries() -> None:
    """From now on, what they load and download is shown."""
    import huggingface_hub.utils
    import transformers

    transformers.utils.logging.set_tqdm_hook(watch_loading)
    watch_downloads(huggingface_hub.utils.tqdm)


def watch_loading(
    factory: Callable[..., Any], given: Sequence[Any], named: Mapping[str, Any]
) -> Any:
    """What transformers goes through in place of a bar; a hook for its `set_tqdm_hook`."""
    if named.get("desc") != LOADING or not given:
        return factory(*given, **named)

    def items() -> Iterator[Any]:
        with waiting("reading weights", total=len(given[0]), unit="tensors") as done:
            for item in given[0]:
                yield item
                done()

    return items()


def watch_downloads(bars: Any) -> None:
    """Let every bar of this class that counts bytes tell of them.

    The class itself is changed, since modules of the hub hold it by name.
    """
    if getattr(bars, "is_watched", False):
        return
    begin, downloads = bars.__init__, Downloads()

    @functools.wraps(begin)
    def new_begin(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        if kwargs.get("unit") == "B" and not str(kwargs.get("desc")).startswith(TRANSFER):
            downloads.follow(self)

    bars.__init__, bars.is_watched = new_begin, True


class Downloads:
    """The files that are being downloaded, in threads, as one wait."""

    def __init__(self) -> None:
        self.wait: Wait | None = None
        self.bars: list[Any] = []  # of all files since the wait began
        self.open = 0  # how many of them go on
        self.lock = threading.RLock()

    def follow(self, bar: Any) -> None:
        """A file begins, of which some bytes may be there already."""
        update, close = bar.update, bar.close

        def new_update(count: float | None = 1) -> Any:
            self._add(int(count or 0))
            return update(count)

        def new_close() -> None:
            bar.update, bar.close = update, close  # it may be closed again
            self._end()
            close()

        bar.update, bar.close = new_update, new_close
        with self.lock:
            if not self.open:
                self.bars, self.wait = [], board.open("downloading", unit=BYTES, done=bar.n)
            self.bars.append(bar)
            self.open += 1
            self._add(bar.n if len(self.bars) > 1 else 0)

    def _add(self, count: int) -> None:
        with self.lock:
            assert self.wait is not None
            self.wait.total = sum(int(bar.total or 0) for bar in self.bars)
            self.wait.at(self.wait.done + count)

    def _end(self) -> None:
        with self.lock:
            self.open -= 1
            if not self.open and self.wait is not None:
                board.close(self.wait)
