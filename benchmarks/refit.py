"""The estimator's fitted constants, refitted on all published cases but one source's and scored on
that source; and the widths of its bands, fitted over what was left out.

    python -m benchmarks refit            # print: errors, coverage, widths as they would be written
    python -m benchmarks refit --write    # and write them where they stand; takes a minute or two

`--write` replaces the marked lines of advisor/estimate/memory/bands.py (widths) and of
tests/data_cases/memory.yaml (what a source shows that was left out, for docs/estimates.md). Then
`python -m tools.generate` writes the page again. Do so whenever a formula of memory changes:
tests/estimate/test_published.py fails where the widths have gone stale.
"""

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from advisor.estimate.memory import peak as memory
from benchmarks.measuring import Row, table
from tools.generate.accuracy import (
    CASES,
    ROOT,
    Case,
    answered,
    by_source,
    counter_of,
    grouped,
    median_error,
    method_of,
    near,
    share,
    summary,
    too_low,
    without_trainer,
)
from tools.generate.accuracy_bands import (
    KNOWN,
    NEWER,
    TAKEN_AWAY,
    Distance,
    Widths,
    distances,
    fitted,
    fitted_without_each,
    is_inside,
    recent,
)

TITLE = (
    "error on published cases: constants as they are, and refitted without each source"
    " (docs/estimates.md)"
)
WIDTHS_FILE = ROOT / "advisor" / "estimate" / "memory" / "bands.py"


@dataclass(frozen=True)
class Fitted:
    """Constants of one module that were fitted to cases, and the factors that a fit tries."""

    module: ModuleType
    names: tuple[str, ...]  # numbers, or tables of numbers
    factors: tuple[float, ...]


# What is not accounted for. What follows from code (bytes of a logit, of a layer) or from simulated
# runs (the allocator's cache) is not fitted, so not refitted.
FITTED = (Fitted(memory, ("UNNAMED",), (0.0, 0.29, 0.43, 0.57, 0.71, 0.86, 1.0, 1.14)),)
Constants = tuple[float, ...]  # a factor for each of FITTED
AS_THEY_ARE: Constants = (1.0,) * len(FITTED)


@lru_cache(maxsize=1)
def originals() -> dict[tuple[ModuleType, str], Any]:
    """What the estimator has now, by module and name.

    Raises LookupError for a constant that is there no more: FITTED is then to be changed.
    """
    gone = [
        f"{constant.module.__name__}.{name}"
        for constant in FITTED
        for name in constant.names
        if not hasattr(constant.module, name)
    ]
    if gone:
        raise LookupError(f"no such constant any more: {', '.join(gone)}; change FITTED")
    return {
        (constant.module, name): getattr(constant.module, name)
        for constant in FITTED
        for name in constant.names
    }


def use(constants: Constants) -> None:
    """Put the constants, multiplied by these factors, where the estimator reads them."""
    for constant, factor in zip(FITTED, constants, strict=True):
        for name in constant.names:
            was = originals()[constant.module, name]
            now = (
                {key: value * factor for key, value in was.items()}
                if isinstance(was, Mapping)
                else was * factor
            )
            setattr(constant.module, name, now)
    for module in [one for name, one in sys.modules.items() if name.startswith("advisor.estimate")]:
        for value in vars(module).values():
            if hasattr(value, "cache_clear"):  # answers under the constants of before
                value.cache_clear()


def cases_with(
    constants: Constants, seen: dict[Constants, dict[str, list[Case]]]
) -> dict[str, list[Case]]:
    """The cases by source under these constants, computed once."""
    if constants not in seen:
        use(constants)
        seen[constants] = by_source(answered("cases"))
    return seen[constants]


def badness(groups: Sequence[list[Case]]) -> float:
    """What a fit makes small: the median error, runs more than 20 % off, and above all runs
    predicted too low, which run out of memory midway.
    """
    return statistics.mean(
        median_error(rows) + share(rows, too_low) - 0.3 * share(rows, near) for rows in groups
    )


def fitted_without(name: str, seen: dict[Constants, dict[str, list[Case]]]) -> Constants:
    """The constants that are best on all sources but this one."""

    def error(constants: Constants) -> float:
        found = cases_with(constants, seen)
        return badness([rows for other, rows in found.items() if other != name])

    best = AS_THEY_ARE
    for _ in range(2):
        for place, constant in enumerate(FITTED):
            best = min(
                [(*best[:place], factor, *best[place + 1 :]) for factor in constant.factors],
                key=error,
            )
    return best


@dataclass(frozen=True)
class LeftOut:
    """What every source shows under constants that were fitted without it."""

    as_is: dict[str, list[Case]]  # by source, under the constants as they are
    named: dict[str, list[Case]]
    unnamed: dict[str, list[Case]]  # with the trainer's name, and so its traits, taken away as well
    distances: dict[str, list[Distance]]  # as accuracy_bands.fitted takes them


def flat(groups: Mapping[str, Sequence[Case]]) -> list[Case]:
    return [case for rows in groups.values() for case in rows]


def leave_out() -> LeftOut:
    """Every source under constants fitted without it."""
    seen: dict[Constants, dict[str, list[Case]]] = {}
    as_is = cases_with(AS_THEY_ARE, seen)
    named: dict[str, list[Case]] = {}
    unnamed: dict[str, list[Case]] = {}
    found: dict[str, list[Distance]] = {key: [] for key in (KNOWN, *TAKEN_AWAY)}
    for name in as_is:
        best = fitted_without(name, seen)
        named[name] = cases_with(best, seen)[name]
        found[KNOWN] += distances(named[name])
        use(best)
        for doubt, change in TAKEN_AWAY.items():
            changed = by_source(answered("cases", change))[name]
            found[doubt] += distances(changed)
            if change is without_trainer:
                unnamed[name] = changed
    use(AS_THEY_ARE)
    found[KNOWN] += distances(recent())
    found[NEWER] += distances(recent(TAKEN_AWAY[NEWER]))
    return LeftOut(as_is, named, unnamed, found)


def in_and_out_of_sample() -> tuple[list[Case], list[Case]]:
    """Every case under the constants as they are, and under ones fitted without its source."""
    found = leave_out()
    return flat(found.as_is), flat(found.named)


def inside_left_out(found: LeftOut, doubt: str) -> dict[str, bool]:
    """By case, whether it lies within widths fitted without its source; with the fact of this doubt
    taken away, unless that is KNOWN.
    """
    widths = fitted_without_each(found.distances)
    return {
        str(row.case.facts["id"]): is_inside(row, widths[row.source])
        for row in found.distances[doubt]
    }


def shares_inside(
    groups: Mapping[str, Sequence[Case]], inside: Mapping[str, bool]
) -> dict[str, float]:
    """By group, the share of its runs that lie inside."""
    return {
        name: statistics.mean(inside[case.facts["id"]] for case in rows)
        for name, rows in groups.items()
    }


def record(found: LeftOut) -> list[str]:
    """The lines of tests/data_cases/memory.yaml on sources that were left out."""
    named, unnamed = (inside_left_out(found, doubt) for doubt in (KNOWN, "trainer"))
    lines = ["left_out:"]
    for title, cases, inside in (
        ("named", found.named, named),
        ("unnamed", found.unnamed, unnamed),
    ):
        numbers = summary(flat(cases)) | {
            "inside": statistics.mean(inside[str(case.facts["id"])] for case in flat(cases)),
            "inside_by_source": statistics.mean(shares_inside(cases, inside).values()),
        }
        lines.append(f"  {title}: {json.dumps(rounded(numbers))}")
    cases = flat(found.named)
    for title, groups in (
        ("sources", found.named),
        ("methods", grouped(cases, method_of)),
        ("counters", grouped(cases, counter_of)),
    ):
        lines.append(f"  {title}:")
        shares = shares_inside(groups, named), shares_inside(groups, unnamed)
        for name in groups:
            numbers = {"inside": shares[0][name], "unnamed_inside": shares[1][name]}
            if title == "sources":
                numbers["error"] = median_error(found.named[name])
                numbers["unnamed_error"] = median_error(found.unnamed[name])
            lines.append(f"    {name}: {json.dumps(rounded(numbers))}")
    return lines


def rounded(numbers: Mapping[str, float]) -> dict[str, float]:
    return {key: round(value, 3) for key, value in numbers.items()}


def widths_lines(widths: Widths) -> list[str]:
    """The table of advisor/estimate/memory/bands.py."""
    return [
        "WIDTHS: Mapping[str, tuple[float, float]] = {",
        *(f'    "{doubt}": ({low:.2f}, {high:.2f}),' for doubt, (low, high) in widths.items()),
        "}",
    ]


def replace_marked(path: Path, start: str, lines: Sequence[str]) -> None:
    """Replace what stands between the comments `# start` and `# end of start`.

    Raises ValueError where they are not there.
    """
    before, mark, rest = path.read_text(encoding="utf-8").partition(f"# {start}\n")
    _, end, after = rest.partition(f"# end of {start}\n")
    if not mark or not end:
        raise ValueError(f"{path}: no lines between '# {start}' and '# end of {start}'")
    body = "".join(f"{line}\n" for line in lines)
    path.write_text(f"{before}{mark}{body}{end}{after}", encoding="utf-8")


def rows_of(found: LeftOut, widths: Widths) -> list[Row]:
    """Errors in sample and out, and the shares inside the bands."""
    rows = [
        Row(f"{key}, {title}", (value * 100,), "%")
        for title, cases in (
            ("in sample", found.as_is),
            ("left out", found.named),
            ("left out and unnamed", found.unnamed),
        )
        for key, value in summary(flat(cases)).items()
    ]
    for doubt in (KNOWN, *TAKEN_AWAY):
        inside = shares_inside(found.named, inside_left_out(found, doubt))
        unknown = "" if doubt == KNOWN else f", {doubt} not known"
        rows.append(
            Row(
                f"inside the band, mean over sources left out{unknown}",
                (statistics.mean(inside.values()) * 100,),
                "% inside",
                True,
            )
        )
    return rows


def measure() -> list[Row]:
    found = leave_out()
    widths = fitted(found.distances)
    print("\n".join([*widths_lines(widths), "", *record(found), ""]))
    return rows_of(found, widths)


def main(arguments: Sequence[str]) -> int:
    """`python -m benchmarks refit --write`."""
    if list(arguments) != ["--write"]:
        print("usage: python -m benchmarks refit [--write]")
        return 2
    found = leave_out()
    widths = fitted(found.distances)
    replace_marked(WIDTHS_FILE, "fitted widths", widths_lines(widths))
    replace_marked(CASES, "sources left out", record(found))
    print(table(rows_of(found, widths)))
    print(f"\nwritten: {WIDTHS_FILE} and {CASES}; now run `python -m tools.generate`")
    return 0
