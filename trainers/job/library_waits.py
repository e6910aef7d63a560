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
    watch_downloads(huggingface_hub.utils.tqdm, Downloads())


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


class Downloads:
    """The files that are being downloaded, as one wait."""

    def __init__(self) -> None:
        self.wait: Wait | None = None
        self.done: dict[int, int] = {}  # bytes of each, by the identity of its bar
        self.bars: dict[int, Any] = {}  # those that go on
        self.totals: dict[int, int] = {}
        self.lock = threading.Lock()  # files are downloaded in threads

    def begin(self, bar: Any, first: int) -> None:
        """A file begins, of which so many bytes are there already."""
        with self.lock:
            if not self.bars:
                self.done, self.totals = {}, {}
                self.wait = board.open("downloading", unit=BYTES, done=first)
            self.bars[id(bar)] = bar
            self.done[id(bar)] = first
            self._show()

    def add(self, bar: Any, count: float | None) -> None:
        """So many more bytes of it are there."""
        with self.lock:
            if id(bar) in self.bars:
                self.done[id(bar)] += int(count or 0)
                self._show()

    def end(self, bar: Any) -> None:
        """No more of it comes."""
        with self.lock:
            if self.bars.pop(id(bar), None) is not None and not self.bars and self.wait:
                board.close(self.wait)

    def _show(self) -> None:
        for key, bar in self.bars.items():
            self.totals[key] = int(getattr(bar, "total", None) or 0)
        assert self.wait is not None
        self.wait.total = sum(self.totals.values())
        self.wait.at(sum(self.done.values()))


def watch_downloads(bars: Any, downloads: Downloads) -> None:
    """Let every bar of this class that counts bytes tell of them.

    The class itself is changed, since modules of the hub hold it by name.
    """
    if getattr(bars, "is_watched", False):
        return
    begin, update, close = bars.__init__, bars.update, bars.close

    @functools.wraps(begin)
    def new_begin(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        if kwargs.get("unit") == "B" and not str(kwargs.get("desc")).startswith(TRANSFER):
            downloads.begin(self, int(kwargs.get("initial") or 0))

    @functools.wraps(update)
    def new_update(self: Any, n: float | None = 1) -> Any:
        downloads.add(self, n)
        return update(self, n)

    @functools.wraps(close)
    def new_close(self: Any) -> None:
        downloads.end(self)
        close(self)

    bars.__init__, bars.update, bars.close = new_begin, new_update, new_close
    bars.is_watched = True
