"""docs/cases.csv: every published peak, and run that ran out of memory, with its source; and
predictions written down before a peak is known.
"""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import yaml

from tools.generate.accuracy import CASES
from tools.generate.markdown import grid

COLUMNS = ("id", "source", "address", "kind", "gib", "spec")
NOT_SPEC = (
    "id", "source", "page", "url", "commit", "measured_gib", "card_gib", "quality", "inferred",
    "group", "reported", "note", "expert_parallel",
)  # fmt: skip


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CASES.parent / name).read_text(encoding="utf-8"))
    return found


def cases_csv() -> str:
    """One line a run: `gib` is the peak or, where it ran out, the card's memory; `spec` is JSON for
    `advise estimate --specs`.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for name in ("memory.yaml", "memory_2025.yaml"):
        data = _read(name)
        for kind, listed in (("peak", "cases"), ("out of memory", "did_not_fit")):
            for row in data[listed]:
                source = data["sources"][row["source"]]
                spec = {key: row[key] for key in row if key not in NOT_SPEC}
                table.writerow((
                    row["id"], source["title"],
                    row.get("url") or source.get("url") or _page(source, row), kind,
                    row["measured_gib" if kind == "peak" else "card_gib"],
                    json.dumps(data.get("defaults", {}) | spec),
                ))  # fmt: skip
    return text.getvalue()


def _page(source: dict[str, Any], row: dict[str, Any]) -> str:
    commit = row.get("commit") or source["commit"]
    return f"https://github.com/{source['repository']}/blob/{commit}/{row['page']}"


def predictions() -> list[str | list[str]]:
    """What was said on a day of runs whose peaks nobody had published, and what came out since."""
    data = _read("predictions.yaml")
    return [
        (
            f"Written down on {data['written']}, of runs whose peaks we found nowhere; they are not"
            " computed again when the estimator changes. Who measures one: the peak is welcome,"
            " with its counter. Specs: tests/data_cases/predictions.yaml."
        ),
        grid(
            ["Run", "Needs", "Peak (allocated)", "Band", "Measured since"],
            [
                [
                    one["title"],
                    f"{one['said']['need_gib']:.1f} GiB",
                    f"{one['said']['peak_gib']:.1f} GiB",
                    f"{one['said']['low_gib']:.1f} to {one['said']['high_gib']:.1f}",
                    f"[{one['measured_gib']} GiB]({one['url']})"
                    if "measured_gib" in one
                    else "not yet",
                ]
                for one in data["predictions"]
            ],
        ),
    ]
