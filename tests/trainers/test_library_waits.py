"""What libraries download and load is shown as waits of ours."""

from __future__ import annotations

import pytest

pytest.importorskip("huggingface_hub")

from advisor.ground.progress import BYTES, board
from trainers.job.libraries import watch_downloads


@pytest.fixture
def bars():
    """A class of bars as the hub has it, watched."""
    from huggingface_hub.utils import tqdm

    class Bars(tqdm):
        if getattr(tqdm, "is_watched", False):  # by a test before this one: its own counts as well
            __init__ = tqdm.__init__.__wrapped__

    Bars.is_watched = False
    watch_downloads(Bars)
    return Bars


def test_files_that_come_at_the_same_time_are_one_wait(bars):
    """In bytes, with those of an earlier attempt; the hub counts compressed bytes beside them."""
    first = bars(unit="B", total=100, initial=40, desc="a.safetensors", disable=True)
    packed = bars(unit="B", total=70, desc="Downloading bytes", disable=True)
    second = bars(unit="B", total=60, desc="b.safetensors", disable=True)
    packed.update(9)
    first.update(10)
    second.update(5)
    (wait,) = board.waits
    assert (wait.done, wait.total, wait.unit) == (55, 160, BYTES)
    first.close()
    assert board.waits == [wait]
    second.total = 80
    second.update(75)
    assert (wait.done, wait.total) == (130, 180)
    second.close()
    packed.close()
    assert board.waits == []


def test_other_bars_are_no_downloads(bars):
    """Such as those that count files."""
    bar = bars([1, 2], desc="Fetching 2 files", disable=True)
    assert list(bar) == [1, 2]
    assert board.waits == []


def test_the_libraries_are_watched_once_they_are_quiet():
    """The classes and hooks are there in the versions that are installed."""
    import huggingface_hub.utils
    import transformers

    from trainers.job.libraries import quiet_libraries, watch_loading

    quiet_libraries()
    assert huggingface_hub.utils.tqdm.is_watched
    assert transformers.utils.logging.set_tqdm_hook(watch_loading) is watch_loading
