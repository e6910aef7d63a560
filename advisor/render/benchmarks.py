"""The benchmarks of a run as a table of its report."""

from __future__ import annotations

from advisor.plan.benchmark_record import BenchmarkChange, BenchmarkRecord
from advisor.plan.record import RunRecord
from advisor.render.markup import text
from advisor.render.report_parts import grid, number, section

COLUMNS = (
    "benchmark", "metric", "questions", "before", "after", "difference", "standard error",
)  # fmt: skip


def benchmark_section(record: RunRecord) -> list[str]:
    """Each benchmark before and after training, with what the plan allows; nothing without any."""
    found = record.benchmarks
    if found is None or not found.changes:
        return []
    several = len({one.result for one in found.changes}) > 1
    limited = found.max_drop is not None
    columns = [*(["result"] if several else []), *COLUMNS, *(["loss"] if limited else [])]
    rows = [
        [*([one.result] if several else []), *_cells(one, limited=limited)] for one in found.changes
    ]
    notes = "".join(f'<p class="quiet">{text(line)}</p>' for line in _notes(found))
    return section("Benchmarks (lm-evaluation-harness)", grid(columns, rows), notes)


def _cells(one: BenchmarkChange, *, limited: bool) -> list[str]:
    cells = [
        one.benchmark,
        f"{one.metric}{'' if one.higher_is_better else ' (lower is better)'}",
        "" if one.rows is None else f"{one.rows:,}",
        _with_error(one.before, one.before_stderr),
        _with_error(one.after, one.after_stderr),
        f"{one.difference:+.4g}",
        f"{number(one.difference_stderr)}{' (paired)' if one.paired else ''}",
    ]
    if limited:
        word = "too much" if one.exceeds else "none" if one.loss <= 0 else "allowed"
        cells.append(f"{one.loss_words}: {word}" if one.loss > 0 else word)
    return cells


def _with_error(value: float, stderr: float | None) -> str:
    return number(value) if stderr is None else f"{number(value)} ± {number(stderr)}"


def _notes(found: BenchmarkRecord) -> list[str]:
    allowed = "any loss is allowed" if found.max_drop is None else f"max_drop: {found.max_drop:g}"
    asked = "all questions" if found.limit is None else f"the first {found.limit:,} questions"
    through = "through" if found.chat_template else "without"
    notes = [
        f"Asked of the base before training and of the result: {asked} of each, {through} the"
        f" chat template; {allowed}. ± is one standard error."
    ]
    noise = [one.benchmark for one in found.changes if one.is_lost and one.is_noise]
    if noise:
        notes.append(
            f"A loss like that of {', '.join(noise)} is often chance: the difference is"
            " within two standard errors. More questions tell."
        )
    return notes
