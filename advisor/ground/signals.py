"""Signals that ask a program to stop, received for a while and then handed back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
)


@contextmanager
def receiving(
    handler: Callable[[int, FrameType | None], object] | signal.Handlers,
    numbers: Sequence[int] = STOPS,
) -> Iterator[dict[int, Any]]:
    """Give the signals to a handler while the context lasts; those that are ignored (nohup) stay
    ignored. Another thread than the main one has none. Yields what is handed back: signal -> its
    handler before.
    """
    previous = {
        number: signal.signal(number, handler)
        for number in numbers
        if threading.current_thread() is threading.main_thread()
        and signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield previous
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def ignore_further_stops() -> None:
    """Of a program that was stopped and is about to end: what comes now changes nothing."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
