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

    def lines(cases: str) -> list[str]:
        rows = [
            [
                row["name"],
                str(row["answered"]),
                pair(row, "median_error"),
                f"{row['tensors']['median_error']:.0%}" if "tensors" in row else "-",
                pair(row, "within_20"),
                pair(row, "too_low"),
            ]
            for row in measured["rows"]
            if row["cases"] == cases
        ]
        return grid(
            [
                "",
                "Runs",
                "Median error",
                "without its context line",
                "Within 20 %",
                "More than 10 % too low",
            ],
            rows,
        )

    return [
        (
            f"Measured on {measured['measured']}, each source counting once. In brackets ours on"
            " the same runs, with its constants refitted without the source. All were given the"
            " same model dimensions and the nearest of their settings. Every run that a calculator"
            " answers:"
        ),
        lines("answered"),
        (
            "Runs on one GPU in bf16 with AdamW and a plain loss, answered by all that know"
            " adapters and full fine-tuning (of the others, those among them that they answer):"
        ),
        lines("shared"),
        [
            (
                "- Ours has the easier part: it is told which counter a peak comes from, the"
                " framework, the loss kernel, packing and padding, and what it says of frameworks"
                " was written with these runs in view. None of the others has words for these."
            ),
            (
                "- The others print what a whole process takes, while many of these peaks are"
                " tensors alone (`allocated`, `active`). The fourth column leaves out their own"
                " line for CUDA context and fragmentation there."
            ),
            *(f"- {package}: {note}." for package, note in measured.get("notes", {}).items()),
        ],
    ]
