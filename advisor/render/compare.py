"""Base against tuned, side by side: held-out answers picked by rule, not by taste."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from advisor.record.run import DryRunRecord, RunRecord
from advisor.record.stage import Evaluation, Sample

if TYPE_CHECKING:
    from rich.console import Console

SIDE_BY_SIDE_COLUMNS = 76  # on a narrower screen the answers are printed below each other
SHOWN_CHARACTERS = 600  # of an answer on the terminal: the report has all of it
BEST, WORST, MIDDLE, FIRST = "best", "worst", "middle", "first"


@dataclass(frozen=True, slots=True)
class Picked:
    """One sample answer, and which it is."""

    rank: str  # best | worst | middle | first
    why: str  # 'gained most: rouge l 0.12 -> 0.61'
    sample: Sample


def picked_samples(found: Evaluation | None) -> list[Picked]:
    """The samples that gained most, least and middling by score; without scores the first three."""
    samples = list(found.samples) if found is not None else []
    gains = [_gain(sample) for sample in samples]
    if not samples or found is None or None in gains:
        return [Picked(FIRST, "sample answer", sample) for sample in samples[:3]]
    metric = (found.sample_metric or "reward").replace("_", " ")
    # Of equals the first in the file: the pick is the same every time.
    ordered = sorted(range(len(samples)), key=lambda place: (-(gains[place] or 0.0), place))
    places = {BEST: ordered[0], WORST: ordered[-1], MIDDLE: ordered[len(ordered) // 2]}
    chosen: dict[int, str] = {}
    for rank, place in places.items():
        chosen.setdefault(place, rank)
    found_ones = [(rank, samples[place]) for place, rank in chosen.items()]
    return [
        Picked(rank, f"{_words(rank, sample)}: {metric} {_scores(sample)}", sample)
        for rank, sample in found_ones
    ]


def rule_of_picking(picked: Sequence[Picked], found: Evaluation | None) -> str:
    """How the samples were picked, in a sentence."""
    of = len(found.samples) if found is not None else 0
    if any(one.rank == FIRST for one in picked):
        return f"the first {len(picked)} of {of} sample answers"
    metric = (found.sample_metric if found else None) or "reward"
    return (
        f"of {of} sample answers those that gained most and least by {metric.replace('_', ' ')},"
        " and the middle one"
    )


def _score(sample: Sample) -> tuple[float | None, float | None]:
    if sample.score_before is not None or sample.score_after is not None:
        return sample.score_before, sample.score_after
    return sample.reward_before, sample.reward_after


def _gain(sample: Sample) -> float | None:
    before, after = _score(sample)
    return None if before is None or after is None else after - before


def _scores(sample: Sample) -> str:
    before, after = _score(sample)
    return f"{before:.2f} -> {after:.2f}"


def _words(rank: str, sample: Sample) -> str:
    if rank == MIDDLE:
        return "in the middle"
    gain = _gain(sample) or 0.0
    if gain == 0:
        return "unchanged"
    if rank == BEST:
        return "gained most" if gain > 0 else "lost least"
    return "lost most" if gain < 0 else "gained least"


def evaluation_shown(record: RunRecord | DryRunRecord) -> Evaluation | None:
    """The evaluation whose samples are shown: of the last stage that has some."""
    if isinstance(record, DryRunRecord):
        return None
    found = [stage.evaluation for stage in record.stages if stage.evaluation]
    return next((one for one in reversed(found) if one.samples), None)


def print_samples(record: RunRecord | DryRunRecord, console: Console) -> None:
    """Print the best and the worst sample, each with the answers before, after and in the data."""
    from rich.table import Table
    from rich.text import Text

    found = evaluation_shown(record)
    picked = [one for one in picked_samples(found) if one.rank != MIDDLE][:2]
    if picked:
        console.print(Text(f"Not trained on, {rule_of_picking(picked_samples(found), found)}:"))
    for one in picked:
        sample = one.sample
        answers = [_cut(part) for part in (sample.base, sample.tuned, sample.expected)]
        console.print()
        console.print(Text(f"{one.why[:1].upper()}{one.why[1:]}"))
        console.print(Text(f"  {' '.join(sample.prompt.split())}", style="bold"))
        names = ("before", "after", "as in the data")
        if console.width >= SIDE_BY_SIDE_COLUMNS:
            table = Table(expand=True, show_lines=False)
            for name in names:
                table.add_column(name, ratio=1, overflow="fold")
            table.add_row(*map(Text, answers))
            console.print(table)
        else:
            for name, answer in zip(names, answers, strict=True):
                console.print(Text(f"  {name}: {answer}"))


def _cut(answer: str | None) -> str:
    said = (answer or "").strip()
    return said if len(said) <= SHOWN_CHARACTERS else f"{said[:SHOWN_CHARACTERS].rstrip()} ..."
