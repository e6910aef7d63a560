"""What a budget may be beside a level: a limit in dollars, in hours, or both, as people type it."""

from __future__ import annotations

import re
from contextlib import suppress

from advisor.ground.errors import InputError

OTHER_MONEY = r"€|£|(?<![a-z])(euros?|eur|gbp|pounds?|chf)(?![a-z])"


def limit_pairs(text: str) -> list[str]:
    """'$50, 6 h' as ['usd=50', 'hours=6']; a part that is neither stays as it is. Raises InputError
    for other money.
    """
    if other := re.search(OTHER_MONEY, text, re.IGNORECASE):
        what = f"--budget {text}: {other[0]} is not known here, prices of GPUs are in US dollars"
        raise InputError(what, "usd=20,hours=6")
    return [_limit(part) for part in re.split(r",(?!\d{3}(?!\d))", text)]


def _limit(text: str) -> str:
    """'$50' and '50' as usd=50, '6 h' or '2 days' as hours; NAME=VALUE as it is. Raises InputError
    for anything else.
    """
    unit = r"(?P<hours>h|hrs?|hours?)|(?P<long>d|w)(ays?|eeks?)?|usd|dollars?|\$"
    found = re.fullmatch(
        rf"\$?\s*(?P<n>[\d.,_' ]*\d[kmb]?)\s*({unit})?", text.strip(), re.IGNORECASE
    )
    if found and found["long"]:
        with suppress(ValueError):
            hours = 24 if found["long"] in "dD" else 168
            return f"hours={hours * float(found['n'].replace(',', '')):g}"
        found = None
    if found is None and "=" not in text:
        what = f"--budget {text}: no limit in dollars or hours"
        raise InputError(what, "'$20, 6 h', usd=20,hours=6")
    return f"{'hours' if found['hours'] else 'usd'}={found['n']}" if found else text
