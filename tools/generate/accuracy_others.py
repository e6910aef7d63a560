"""Part of docs/estimates.md: what other calculators say of the same published runs."""

from __future__ import annotations

from typing import Any

from tools.generate.markdown import grid


def other_calculators(measured: dict[str, Any]) -> list[str | list[str]]:
    """What was measured of other calculators on the same cases; on cases of each, and on those that
    all have words for.
    """

    def pair(row: dict[str, Any], key: str) -> str:
        return f"{row['printed'][key]:.0%} ({row['ours'][key]:.0%})"

    shared = {row["name"]: row for row in measured["rows"] if row["cases"] == "shared"}
    notes = measured.get("notes", {})
    rows = [
        [
            row["name"],
            str(row["answered"]),
            pair(row, "median_error"),
            f"{row['tensors']['median_error']:.0%}" if "tensors" in row else "-",
            pair(row, "within_20"),
            pair(row, "too_low"),
            f"{pair(shared[row['name']], 'median_error')} of {shared[row['name']]['answered']}",
            notes.get(row["name"].rpartition(" ")[0], ""),
        ]
        for row in measured["rows"]
        if row["cases"] == "answered"
    ]
    headings = [
        "", "Runs that it answers", "Median error", "without its context line", "Within 20 %",
        "More than 10 % too low", "Median error, plain runs", "What it knows and assumes",
    ]  # fmt: skip
    return [
        (
            f"Measured on {measured['measured']}, each source counting once. In brackets ours on"
            " the same runs, with its constants refitted without the source. All were given the"
            " same model dimensions and the nearest of their settings. *Plain runs* are on one GPU"
            " in bf16 with AdamW and a plain loss, answered by all that know adapters and full"
            " fine-tuning (of the others, those among them that they answer). Ours has the easier"
            " part: it is told which counter a peak comes from, the framework, the loss kernel,"
            " packing and padding, for which none of the others has words, and what it says of"
            " frameworks was written with these runs in view. The others print what a whole process"
            " takes, while many of these peaks are tensors alone (`allocated`, `active`): *without"
            " its context line* leaves out their own line for CUDA context and fragmentation there."
        ),
        grid(headings, rows),
    ]
