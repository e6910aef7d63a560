"""Signals that ask a program to stop, received for a while and then handed back."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

STOPS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
)


@contextmanager
def receiving(
    handler: Callable[[int, FrameType | None], object] | signal.Handlers,
    numbers: Sequence[int] = STOPS,
) -> Iterator[None]:
    """Give the signals to a handler while the context lasts; those that are ignored (nohup) stay
    ignored. Only in the main thread.
    """
    previous = {
        number: signal.signal(number, handler)
        for number in numbers
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    except GeneratorExit:  # it was never left, only forgotten: who came later has the signals
        for number in [one for one in previous if signal.getsignal(one) != handler]:
            del previous[number]
        raise
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def ignore_further_stops() -> None:
    """Of a program that was stopped and is about to end: what comes now changes nothing."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
