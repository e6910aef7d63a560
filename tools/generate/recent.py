"""`python -m tools.generate.recent both`: the estimates beside what was published since 2025.

The sources of tests/data_cases/memory_2025.yaml and speed_2025.yaml fall into two halves. On the
first, mechanisms were mended; the second was scored once, before anybody had looked at it
(recent_second.json), and has been looked at since.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from advisor.estimate.answers import run_specs
from advisor.probe.catalogue import find_gpu
from advisor.situation.models import model_shape
from tools.generate.accuracy import (
    FEW,
    ROOT,
    Case,
    answered,
    as_a_process,
    grouped,
    is_inside_printed,
    median_error,
    near,
    share,
)
from tools.generate.markdown import grid

NOT_SPEC = frozenset((
    "id", "source", "group", "url", "quality", "inferred", "measured_gib", "card_gib",
    "tokens_per_s_per_gpu", "expert_parallel", "reported", "note",
))  # fmt: skip
SECOND_FILE = Path(__file__).parent / "recent_second.json"
ONCE_AND_A_HALF = 1.5
MEMORY_HEADS = ("runs", "sources", "median error", "within 20 %", "inside the band",
    "high / low, median over sources", "out of memory, and said to need more")  # fmt: skip
SPEED_HEADS = ("runs", "sources", "median factor", "within a factor of 1.5", "inside the band")
KEYS: Mapping[str, Callable[[Case], str]] = {
    "all": lambda _: "all",
    "quality": lambda case: str(case.facts["quality"]),
    "objective": lambda case: str(case.facts.get("objective", "sft")),
    "sharding": lambda case: str(case.facts.get("sharding", "one GPU")),
    "group": lambda case: str(case.facts.get("group", case.facts["source"])),
}


def cases(
    file: str, listed: str, half: str, change: Callable[[dict[str, Any]], dict[str, Any]] = dict
) -> list[Case]:
    """The runs of a half of the sources, or of `both`, with today's answers to their specs after a
    change.
    """
    path = ROOT / "tests" / "data_cases" / f"{file}.yaml"
    data: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    of = {name: (source["half"], "both") for name, source in data["sources"].items()}
    rows = [row for row in data[listed] if half in of[row["source"]]]
    specs = [change({key: row[key] for key in row if key not in NOT_SPEC}) for row in rows]
    answers = run_specs(json.dumps(specs), find_model=model_shape, find_gpu=find_gpu)
    return [Case(row, answer) for row, answer in zip(rows, answers, strict=True)]


def failures(half: str) -> list[Case]:
    """Those that ran out of memory, asked for all that their process needs."""
    return cases("memory_2025", "did_not_fit", half, as_a_process)


def speed_ratio(case: Case) -> float:
    """Estimated over measured tokens a second."""
    return float(case.answer["tokens_per_s_per_gpu"]) / float(case.facts["tokens_per_s_per_gpu"])


def factor(case: Case) -> float:
    return max(speed_ratio(case), 1 / speed_ratio(case))


def of_card(case: Case, key: str = "need_gib") -> float:
    return float(case.answer[key]) / float(case.facts["card_gib"])


def in_time_band(case: Case) -> bool:
    answer = case.answer
    low, high = (answer[key] / answer["step_s"] for key in ("step_low_s", "step_high_s"))
    return bool(low <= speed_ratio(case) <= high)


def largest(case: Case) -> str:
    """The moment of the peak, and the terms that hold most of it."""
    terms = sorted(case.answer["terms"], key=lambda term: -term["gib"])[:4]
    return f"{case.answer['moment']}: " + ", ".join(
        f"{one['name']} {one['gib']:.1f}" for one in terms
    )


def peaks(found: Sequence[Case]) -> list[str]:
    width = statistics.median(case.answer["high_gib"] / case.answer["low_gib"] for case in found)
    return [
        f"{statistics.median(case.ratio for case in found):.2f}",
        f"{median_error(found):.0%}",
        f"{share(found, near):.0%}",
        f"{statistics.mean(map(is_inside_printed, found)):.0%}",
        f"{width:.2f}",
    ]


def failed(found: Sequence[Case]) -> list[str]:
    caught = sum(of_card(case) > 1 for case in found)
    doubted = sum(of_card(case, "need_high_gib") > 1 for case in found)
    return [str(caught), str(doubted)]


def speeds(found: Sequence[Case]) -> list[str]:
    return [
        f"{statistics.median(map(speed_ratio, found)):.2f}",
        f"{statistics.median(map(factor, found)):.2f}",
        f"{statistics.mean(factor(case) <= ONCE_AND_A_HALF for case in found):.0%}",
        f"{statistics.mean(map(in_time_band, found)):.0%}",
    ]


TABLES: Sequence[
    tuple[str, str, list[str], Callable[[Sequence[Case]], list[str]], Callable[[Case], str]]
] = (
    (
        "memory_2025", "cases",
        ["estimated / measured", "median error", "within 20 %", "in band", "high / low"],
        peaks, lambda case: f"{case.ratio:.2f}  {largest(case)}",
    ),
    (
        "memory_2025", "did_not_fit", ["need above card", "high above card"],
        failed, lambda case: f"{of_card(case):.2f}  {largest(case)}",
    ),
    (
        "speed_2025", "cases",
        ["estimated / measured", "median factor", "within 1.5", "in band"],
        speeds,
        lambda case: f"{speed_ratio(case):.2f}  {case.answer['time_because']}",
    ),
)  # fmt: skip


def by_group(found: Sequence[Case]) -> list[list[Case]]:
    """Runs of each group; those of groups with few together."""
    every = grouped(found, KEYS["group"]).values()
    few = [case for group in every if len(group) < FEW for case in group]
    return [group for group in every if len(group) >= FEW] + ([few] if few else [])


def over_groups(found: Sequence[Case], number: Callable[[Sequence[Case]], float]) -> str:
    return f"{statistics.mean(map(number, by_group(found))):.1%}"


def memory_column(found: Sequence[Case], missed: Sequence[Case]) -> list[str]:
    """What a half shows of memory, each source counting once."""

    def wide(group: Sequence[Case]) -> float:
        return float(
            statistics.median(case.answer["high_gib"] / case.answer["low_gib"] for case in group)
        )

    return [
        str(len(found)),
        str(len(grouped(found, KEYS["group"]))),
        over_groups(found, median_error),
        over_groups(found, lambda group: share(group, near)),
        over_groups(found, lambda group: statistics.mean(map(is_inside_printed, group))),
        f"{statistics.median(map(wide, by_group(found))):.2f}",
        f"{sum(of_card(case) > 1 for case in missed)} of {len(missed)}",
    ]


def speed_column(found: Sequence[Case]) -> list[str]:
    """What a half shows of speed, over runs."""
    return [
        str(len(found)),
        str(len(grouped(found, KEYS["group"]))),
        f"{statistics.median(map(factor, found)):.2f}",
        f"{statistics.mean(factor(case) <= ONCE_AND_A_HALF for case in found):.1%}",
        f"{statistics.mean(map(in_time_band, found)):.1%}",
    ]


def columns(half: str) -> dict[str, list[str]]:
    """Both columns of a half."""
    known = [case for case in cases("speed_2025", "cases", half) if "step_s" in case.answer]
    return {
        "memory": memory_column(cases("memory_2025", "cases", half), failures(half)),
        "speed": speed_column(known),
    }


def section(of: str, older: Sequence[str]) -> list[str | list[str]]:
    """The part of a page about runs published since 2025: beside the older ones the first half, the
    second as it was scored, and both as they are.
    """
    heads = MEMORY_HEADS if of == "memory" else SPEED_HEADS
    kept = json.loads(SECOND_FILE.read_text("utf-8"))
    return [
        "### Published since 2025",
        (
            f"Sources of tests/data_cases/{of}_2025.yaml, in two halves by a hash of their names."
            " On the first, mechanisms were mended; then the second, which nobody had looked at,"
            f" was scored once, on {kept['on']}: that column says how far mending carries. Since"
            " then both are looked at (`python -m tools.generate.recent both`)."
        ),
        grid(
            ["", "runs above", "first half", "second half, unseen", "both, today"],
            [
                list(row)
                for row in zip(
                    heads, older, columns("first")[of], kept[of], columns("both")[of], strict=True
                )
            ],
        ),
    ]


def older_memory() -> list[str]:
    """The column of the runs of tests/data_cases/memory.yaml."""
    return memory_column(answered("cases"), answered("did_not_fit"))


def main(told: Sequence[str]) -> int:
    """Print the tables of a half, or of both, and each of its runs."""
    if list(told) not in (["first"], ["second"], ["both"]):
        print("python -m tools.generate.recent first|second|both", file=sys.stderr)
        return 2
    for file, listed, heads, numbers, words in TABLES:
        every = failures(told[0]) if listed == "did_not_fit" else cases(file, listed, told[0])
        needed = "peak_gib" if file == "memory_2025" else "tokens_per_s_per_gpu"
        found = [case for case in every if case.answer.get(needed)]
        print(f"\n{file}, {listed}")
        for case in every:
            if case not in found:
                print(f"  no estimate: {case.facts['id']}  {case.answer['warnings']}")
        rows = [
            [f"{key}: {name}" if key != "all" else key, str(len(group)), *numbers(group)]
            for key, of in KEYS.items()
            for name, group in grouped(found, of).items()
        ]
        print("\n".join(grid(["", "Runs", *heads], rows)))
        for case in found:
            print(f"  {case.facts['quality']} {case.facts['id']}  {words(case)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
