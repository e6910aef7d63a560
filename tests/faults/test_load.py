"""Load in short form; `python -m tests.faults` tries a hundred at once, two hundred departments, ten
million rows and twenty thousand steps.
"""

import tracemalloc

from advisor.data.checks import repeats
from advisor.data.measure import Depth, profile
from advisor.data.read import lines
from tests.faults import load
from tests.render.test_report import METRICS as LINES
from tests.render.test_report import RECORD, page_of


def test_several_advices_at_once_are_one_answer(tmp_path):
    """They share a cache of parsed rules, which the first fills while the others read it."""
    row = load.at_once(tmp_path, 4)
    assert row.wrong == []


def test_memory_of_a_check_stays_with_the_rows_compared(tmp_path, monkeypatch):
    """Rows beyond the limit of comparing cost time and no memory."""
    monkeypatch.setattr(repeats, "COMPARED_ROWS", 200)
    monkeypatch.setattr(lines, "PIECE_BYTES", 4096)  # of the file, which is in memory in any case
    peaks = []
    for count in (400, 2_000):
        path = tmp_path / f"{count}.jsonl"
        path.write_text(
            "".join(
                f'{{"prompt": "What is {n}?", "completion": "{2 * n}."}}\n' for n in range(count)
            )
        )
        tracemalloc.start()
        profile(path, Depth(whole=True, thorough=True))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def test_a_report_of_many_steps_is_no_longer_than_one_of_some(tmp_path):
    """Curves keep what a screen shows: the lowest and the highest of each span."""
    sizes = []
    for steps in (1_000, 20_000):
        lines = [{**LINES[0], "step": step, "loss": 1 / (step + 1)} for step in range(steps)]
        sizes.append(len(page_of(RECORD, tmp_path, metrics=lines)))
    assert sizes[1] < 1.1 * sizes[0]
