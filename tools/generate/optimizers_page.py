"""Part of docs/gpu.md: what every optimizer keeps and needs, from rules/optimizers.yaml."""

from __future__ import annotations

from advisor.methods.optimizers import OPTIMIZERS, Optimizer
from tools.generate.markdown import grid
from tools.generate.words import cell


def part() -> str:
    """What each is, where it runs, what it keeps, and its arguments."""
    headings = [
        "name", "transformers'", "what it is", "needs", "runs on", "trains",
        "keeps for each weight", "while it steps", "arguments and defaults",
    ]  # fmt: skip
    rows = ([*_what(one), *_state(one), _arguments(one)] for one in OPTIMIZERS.values())
    return "\n".join(grid(headings, rows))


def _what(one: Optimizer) -> list[str]:
    name = one.transformers
    return [
        f"[`{one.name}`]({one.source})",
        f"`{name}`" if name is not None and name != one.name else "same" if name else "none",
        cell(one.about),
        one.library or "",
        ", ".join(one.devices),
        one.trains,
    ]


def _state(one: Optimizer) -> list[str]:
    kept = {
        "rows and columns": "4 B for each row and column of a matrix",
        "momentum of matrices": "1 number as wide for matrices, 2 for the rest",
    }.get(one.keeps, "")
    if not kept:
        width = "as wide" if one.width is None else f"of {one.width:.4g} B"
        plural = "numbers" if one.numbers != 1 else "number"
        kept = f"{one.numbers:g} {plural} {width}" if one.numbers else "nothing"
    if one.beside_bfloat16:
        kept += f", and {one.beside_bfloat16:g} B beside a bfloat16 weight"
    if one.small_from:
        small = "of 4 B" if one.small_width else "as wide"
        kept += f"; {small} in tensors below {one.small_from:,}"
    if one.embeddings_width:
        kept += "; of 4 B for embeddings"
    if one.is_paged:
        kept += "; may move to the host"
    return [cell(kept), one.holds]


def _arguments(one: Optimizer) -> str:
    shown = (f"`{key}={str(value).lower()}`" for key, value in one.arguments.items())
    return ", ".join(shown)
