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

    bars.__init__ = new_begin
    bars.is_watched = True


class Downloads:
    """The files that are being downloaded, as one wait."""

    def __init__(self) -> None:
        self.wait: Wait | None = None
        self.done: dict[Any, int] = {}  # bytes of each, by its bar
        self.open: set[Any] = set()  # those that go on
        self.lock = threading.RLock()  # files are downloaded in threads

    def follow(self, bar: Any) -> None:
        """A file begins, of which some bytes may be there already."""
        update, close = bar.update, bar.close

        def new_update(count: float | None = 1) -> Any:
            self._add(bar, int(count or 0))
            return update(count)

        def new_close() -> None:
            self._end(bar)
            close()

        bar.update, bar.close = new_update, new_close
        with self.lock:
            if not self.open:
                self.done, self.wait = {}, board.open("downloading", unit=BYTES, done=bar.n)
            self.open.add(bar)
            self._add(bar, bar.n)

    def _add(self, bar: Any, count: int) -> None:
        with self.lock:
            if bar in self.open and self.wait is not None:
                self.done[bar] = self.done.get(bar, 0) + count
                self.wait.total = sum(int(one.total or 0) for one in self.done)
                self.wait.at(sum(self.done.values()))

    def _end(self, bar: Any) -> None:
        with self.lock:
            if bar in self.open and self.wait is not None:
                self.open.discard(bar)
                if not self.open:
                    board.close(self.wait)
