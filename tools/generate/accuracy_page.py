"""Part of docs/estimates.md: how wrong the estimates are, by source, method and counter."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from advisor.estimate.memory.bands import KNOWN, WIDTHS, WORDS, band
from tools.generate.accuracy import (
    Case,
    answered,
    by_source,
    counter_of,
    grouped,
    is_inside_printed,
    median_error,
    method_of,
    near,
    published,
    share,
    summary,
    too_low,
)
from tools.generate.accuracy_bands import verdicts
from tools.generate.accuracy_others import other_calculators
from tools.generate.cases_table import predictions
from tools.generate.markdown import grid
from tools.generate.recent import older_memory, section

OTHERS = "others (fewer than three runs each)"
FURTHEST = 4


def part() -> str:
    """What stands below the heading on memory."""
    data, cases = published(), answered("cases")
    left_out = data["left_out"]
    blocks = [
        (
            f"{len(cases)} peaks that other people measured and published, from"
            f" {len(data['sources'])} sources, against `advise estimate`. Means over sources, so"
            " that each counts once:"
        ),
        summaries(cases, left_out),
        (
            "*In sample* are today's estimates, whose formulas were written with these runs in"
            " view. *Source left out*: the fitted constants and the widths of the bands are fitted"
            " again without the source that is asked about. *Its trainer unknown, too*: the name of"
            " the trainer is taken away as well, and so all that `rules/trainers/` knows of it:"
            " expect this of a trainer whose code nobody has read."
        ),
        *fits(),
        *section("memory", older_memory()),
        "### The band",
        *bands(cases),
        "### By source, method and counter",
        groups(cases, data["sources"], left_out),
        "Furthest off:",
        grid(
            ["Run", "Measured", "Predicted", "Band", "Ratio"],
            [
                [
                    f"`{case.facts['id']}`",
                    f"{case.facts['measured_gib']:.1f} GiB",
                    f"{case.answer['peak_gib']:.1f} GiB",
                    f"{case.answer['low_gib']:.1f} to {case.answer['high_gib']:.1f} GiB",
                    f"{case.ratio:.2f}",
                ]
                for case in sorted(cases, key=lambda case: -abs(math.log(case.ratio)))[:FURTHEST]
            ],
        ),
        "### Beside other calculators",
        *other_calculators(data["other_calculators"]),
        "### Said beforehand",
        *predictions(),
    ]
    return "\n\n".join(block if isinstance(block, str) else "\n".join(block) for block in blocks)


def summaries(cases: list[Case], left_out: Mapping[str, Any]) -> list[str]:
    """The numbers in which each source counts once, in sample and out."""
    inside = statistics.mean(
        statistics.mean(map(is_inside_printed, rows)) for rows in by_source(cases).values()
    )
    columns = [
        summary(cases) | {"inside_by_source": inside},
        left_out["named"],
        left_out["unnamed"],
    ]
    rows = (
        ("median error", "median_error"),
        ("within 20 %", "within_20"),
        ("more than 10 % too low", "too_low"),
        ("inside the band", "inside_by_source"),
    )
    return grid(
        ["", "in sample", "source left out", "its trainer unknown, too"],
        [[title, *(f"{column[key]:.1%}" for column in columns)] for title, key in rows],
    )


def fits() -> list[str | list[str]]:
    """The verdicts on runs that fitted and on runs that did not."""
    did, did_not = verdicts("cases"), verdicts("did_not_fit")
    return [
        (
            "The need of a run (its whole process, without cached blocks that the allocator"
            " returns when memory is short) is compared with the memory of its GPU: it *fits* if"
            " the whole band is within the memory, is *too big* if the whole band is above it, and"
            " *may fit* if the memory lies inside the band; a dry run then finds out."
        ),
        grid(
            ["", "Runs", "said: fits", "said: may fit", "said: too big", "estimate above the GPU"],
            [
                [
                    title,
                    str(found.total),
                    str(len(found.fits)),
                    str(len(found.may_fit)),
                    str(len(found.too_big)),
                    str(found.estimated_above),
                ]
                for title, found in (("went through", did), ("ran out of memory", did_not))
            ],
        ),
        (
            f"False alarms: {len(did.too_big)} of {did.total} runs that went through are said to"
            f" be too big. Misses: {len(did_not.fits)} of {did_not.total} that ran out of memory"
            " are said to fit. Counted are runs whose source names the GPU."
        ),
    ]


def bands(cases: list[Case]) -> list[str | list[str]]:
    """How wide bands are."""
    ratio = statistics.median(case.answer["high_gib"] / case.answer["low_gib"] for case in cases)
    below, above = band(())
    widths = [
        [
            "every run" if doubt == KNOWN else WORDS[doubt],
            *(f"{width:.2f}" for width in WIDTHS[doubt]),
            f"-{low:.0%} to +{high:.0%}",
        ]
        for doubt in WIDTHS
        for low, high in [band(() if doubt == KNOWN else (doubt,))]
    ]
    return [
        (
            "`low_gib` to `high_gib` is meant to hold nine in ten runs of a source that nobody"
            f" fitted. If everything about a run is known, it reaches from {below:.0%} below to"
            f" {above:.0%} above the estimate. Whatever is not known, or is harder to predict,"
            " makes it wider: widths are distances of logarithms, and the square root of the sum of"
            f" their squares counts. High divided by low is {ratio:.2f} in the median."
        ),
        grid(["", "Width below (log)", "Width above (log)", "Band with it alone"], widths),
    ]


def groups(cases: list[Case], sources: Mapping[str, Any], left_out: Mapping[str, Any]) -> list[str]:
    """A line for each source, method and counter; of a source that was left out, its errors too."""
    titles = {name: link(source) for name, source in sources.items()}
    found = (
        *(
            (titles.get(name, OTHERS), rows, left_out["sources"][name])
            for name, rows in by_source(cases).items()
        ),
        *(
            (name, rows, left_out["methods"][name])
            for name, rows in grouped(cases, method_of).items()
        ),
        *(
            (f"counter: {name}", rows, left_out["counters"][name])
            for name, rows in grouped(cases, counter_of).items()
        ),
    )
    return grid(
        [
            "", "Runs", "Predicted / measured, median", "Median error", "left out",
            "trainer unknown", "Within 20 %", "More than 10 % too low", "Inside the band",
            "left out", "trainer unknown",
        ],
        [
            [
                title,
                str(len(rows)),
                f"{statistics.median(case.ratio for case in rows):.2f}",
                f"{median_error(rows):.1%}",
                *(f"{out[key]:.1%}" if key in out else "" for key in ("error", "unnamed_error")),
                f"{share(rows, near):.0%}",
                f"{share(rows, too_low):.0%}",
                f"{statistics.mean(map(is_inside_printed, rows)):.0%}",
                *(f"{out[key]:.0%}" for key in ("inside", "unnamed_inside")),
            ]
            for title, rows, out in found
        ],
    )  # fmt: skip


def link(source: dict[str, str]) -> str:
    """A source's title, linked to the commit that was read."""
    commit = source["commit"].replace("^", "%5E")
    return f"[{source['title']}](https://github.com/{source['repository']}/tree/{commit})"
