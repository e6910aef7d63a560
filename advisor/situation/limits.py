"""What a budget may be beside a level: a limit in dollars, in hours, or both, as people type it."""

from __future__ import annotations

import re
from contextlib import suppress

from advisor.ground.errors import InputError

A_RATE = r"/\s*(h|hr|hour|d|day|week|month|mo|year)\b|\bper\b"
OTHER_MONEY = r"€|£|(?<![a-z])(euros?|eur|gbp|pounds?|chf)(?![a-z])"


def limit_pairs(text: str) -> list[str]:
    """'$50, 6 h' as ['usd=50', 'hours=6']; a part that is neither stays as it is. Raises InputError
    for other money.
    """
    if other := re.search(OTHER_MONEY, text, re.IGNORECASE):
        what = f"--budget {text}: {other[0]} is not known here, prices of GPUs are in US dollars"
        raise InputError(what, "usd=20,hours=6", where="--budget")
    if re.search(A_RATE, text, re.IGNORECASE):
        what = f"--budget {text}: a price by time is no limit; a limit is for the whole training"
        hint = "`advise rules` knows prices; usd=20 and hours=6 say how much and how long at most"
        raise InputError(what, "usd=20,hours=6", hint, where="--budget")
    if comma := re.search(r"(?:=\s*\d+,\d{1,2}|\d+,\d{1,2}(?!\d|\s*[a-z]))(?!\d)", text, re.I):
        one = comma[0].replace(",", ".").strip("= ")
        what = f"--budget {text}: {comma[0].strip('= ')} can be read in two ways"
        raise InputError(what, f"{one}, or usd=20,hours=6 for both limits", where="--budget")
    parts = re.split(r",(?!\d{3}(?!\d))|;|\s+and\s+|\s+(?=(?:usd|hours)\s*=)", text)
    return [_limit(part) for part in parts]


def _limit(text: str) -> str:
    """'$50' and '50' as usd=50, '6 h' or '2 days' as hours; NAME=VALUE as it is. Raises InputError
    for anything else.
    """
    unit = r"(?P<hours>h|hrs?|hours?)|(?P<other>min|d|w)(utes?|s|ays?|eeks?)?|usd|dollars?|\$"
    money = r"(\$|usd\b\s*:?)?"
    found = re.fullmatch(
        rf"{money}\s*(?P<n>[\d.,_' ]*\d[kmb]?)\s*({unit})?", text.strip(), re.IGNORECASE
    )
    if found and found["other"]:
        with suppress(ValueError):
            hours = {"min": 1 / 60, "d": 24, "w": 168}[found["other"].lower()]
            return f"hours={hours * float(found['n'].replace(',', '')):g}"
        found = None
    if found is None and "=" not in text:
        what = f"--budget {text}: no limit in dollars or hours"
        raise InputError(what, "'$20, 6 h', usd=20,hours=6", where="--budget")
    return f"{'hours' if found['hours'] else 'usd'}={found['n']}" if found else text
