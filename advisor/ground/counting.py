"""Counts as people read them."""


def counted(count: float, what: str) -> str:
    """'1 row', '2,000 rows'."""
    return f"{count:,.15g} {what}{'' if count == 1 else 's'}"
