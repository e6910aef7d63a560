"""Base against tuned, side by side: held-out answers picked by rule, not by taste."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from advisor.record.run import DryRunRecord, RunRecord
from advisor.record.stage import Evaluation, SampleAnswer

SIDE_BY_SIDE_COLUMNS = 76  # on a narrower screen the answers are printed below each other
SHOWN_CHARACTERS = 600  # of an answer on the terminal: the report has all of it
BEST, WORST, MIDDLE, FIRST = "best", "worst", "middle", "first"


@dataclass(frozen=True, slots=True)
class PickedSample:
    """One sample answer, and which it is."""

    rank: str  # best | worst | middle | first
    why: str  # 'gained most: rouge l 0.12 -> 0.61'
    sample: SampleAnswer


def picked_samples(found: Evaluation | None) -> list[PickedSample]:
    """The samples that gained most, least and middling by score; without scores the first three."""
    samples = found.samples if found is not None else ()
    pairs = [
        (before, after)
        for before, after in map(_scores, samples)
        if before is not None and after is not None
    ]
    if found is None or not samples or len(pairs) < len(samples):
        return [PickedSample(FIRST, "sample answer", sample) for sample in samples[:3]]
    # Of equals the first in the file: the pick is the same every time.
    ordered = sorted(range(len(pairs)), key=lambda place: pairs[place][0] - pairs[place][1])
    ends = ((BEST, ordered[0]), (WORST, ordered[-1]), (MIDDLE, ordered[len(ordered) // 2]))
    ranks: dict[int, str] = {}
    for rank, place in ends:
        ranks.setdefault(place, rank)
    return [
        PickedSample(rank, _why(rank, *pairs[place], _metric(found)), samples[place])
        for place, rank in ranks.items()
    ]


def _why(rank: str, before: float, after: float, metric: str) -> str:
    ends = {BEST: ("gained most", "lost least"), WORST: ("gained least", "lost most")}
    words = "in the middle" if rank == MIDDLE else ends[rank][after < before]
    words = "unchanged" if rank != MIDDLE and after == before else words
    return f"{words}: {metric} {before:.2f} -> {after:.2f}"


def _metric(found: Evaluation) -> str:
    return (found.sample_metric or "reward").replace("_", " ")


def rule_of_picking(picked: Sequence[PickedSample], found: Evaluation) -> str:
    """How the samples were picked, in a sentence."""
    of = f"of {len(found.samples)} sample answers"
    if any(one.rank == FIRST for one in picked):
        return f"the first {len(picked)} {of}"
    return f"{of} those that gained most and least by {_metric(found)}, and the middle one"


def _scores(sample: SampleAnswer) -> tuple[float | None, float | None]:
    """Before and after."""
    if sample.score_before is not None or sample.score_after is not None:
        return sample.score_before, sample.score_after
    return sample.reward_before, sample.reward_after


def ends_shown(record: RunRecord | DryRunRecord) -> tuple[list[PickedSample], Evaluation | None]:
    """The best and the worst sample of the last stage that has some, and its evaluation."""
    stages = () if isinstance(record, DryRunRecord) else record.stages
    found = [stage.evaluation for stage in stages if stage.evaluation]
    last = next((one for one in reversed(found) if one.samples), None)
    return [one for one in picked_samples(last) if one.rank != MIDDLE], last


def print_samples(record: RunRecord | DryRunRecord, console: Console) -> None:
    """Print the best and the worst sample, each with the answers before, after and in the data."""
    picked, found = ends_shown(record)
    if found is not None:
        rule = rule_of_picking(picked_samples(found), found)
        console.print(Text(f"Not trained on, {rule}:"))
    for one in picked[:2]:
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
