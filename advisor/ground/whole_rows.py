"""How long a row may be and stay whole: what data are measured by, and what a plan takes."""

from __future__ import annotations

from typing import NamedTuple

from advisor.ground.types import TokenStats

SHORT = 1024  # tokens: up to here the longest row costs little
FAR = 2.0  # the longest row is no outlier up to so many times the length of 99 % of the rows
FEW = 100  # rows: of fewer, 99 % are all of them, and one outlier would set the length
FAR_OF_FEW = 4.0


class Kept(NamedTuple):
    """The longest row that is kept whole."""

    tokens: int
    what: str  # the rows that are as long or shorter, in words


def rows_kept_whole(tokens: TokenStats) -> Kept:
    """The length of the longest row where that is no outlier, else of 99 % of the rows, of fewer
    than a hundred of 95 %.
    """
    counted = sum(rows for _, rows in tokens.histogram)
    if 0 < counted < FEW and tokens.longest > max(SHORT, FAR_OF_FEW * tokens.p95):
        return Kept(tokens.p95, "95 % of the rows")
    if tokens.longest <= max(SHORT, FAR * tokens.p99):
        return Kept(tokens.longest, "the longest row")
    return Kept(tokens.p99, "99 % of the rows")
