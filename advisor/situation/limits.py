"""What a budget may be beside a level: a limit in dollars, in hours, or both."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

from advisor.ground.errors import Fault, InputError
from advisor.ground.shape import Keys, NamedValue, check_shape
from advisor.ruleset.facts import load_facts
from advisor.situation.answers import (
    Stated,
    answers_from_flags,
    fact_shape,
    named_values,
    number_in,
    parts_of,
    typed_number,
)


def take_limits(stated: Stated, text: str) -> None:
    """Note 'usd=20,hours=6', or as people write it: 20, $20, '20 dollars, 6 h'."""
    parts = parts_of("budget", stated.facts)
    each = [_limit(part) for part in re.split(r",(?!\d{3}(?!\d))", text)]
    if other := re.search(
        r"€|£|(?<![a-z])(euros?|eur|gbp|pounds?|chf)(?![a-z])", text, re.IGNORECASE
    ):
        what = f"--budget {text}: {other[0]} is not known here, prices of GPUs are in US dollars"
        stated.faults.append(Fault(where="--budget", what=what, allowed="usd=20,hours=6"))
        return
    limits: dict[str, Any] = named_values(stated, each, "--budget", "usd=20,hours=6")
    for name in limits:
        with suppress(ValueError):
            limits[name] = typed_number(limits[name])
    inside = Keys(keys={part: fact_shape(stated.facts[name]) for part, name in parts.items()})
    stated.faults += check_shape(NamedValue("--budget", limits), inside)
    for part in filter(parts.get, limits):
        stated.take(parts[part], limits[part], f"--budget.{part}")


def _limit(text: str) -> str:
    """'$50' and '50' as usd=50, '6 h' or '2 days' as hours; any other text as it is."""
    unit = r"(?P<hours>h|hrs?|hours?)|(?P<days>d|days?)|usd|dollars?|\$"
    found = re.fullmatch(
        rf"\$?\s*(?P<n>[\d.,_' ]*\d[kmb]?)\s*({unit})?", text.strip(), re.IGNORECASE
    )
    if found and found["days"]:
        with suppress(ValueError):
            return f"hours={24 * number_in(found['n']):g}"
    return f"{'hours' if found['hours'] else 'usd'}={found['n']}" if found else text


def limits_in(text: str) -> dict[str, Any]:
    """What a typed limit states: {'budget_usd': 30}. Raises ValueError with the first fault."""
    try:
        known = answers_from_flags({"budget": text}, load_facts()).known
    except InputError as error:
        raise ValueError(f"{error.faults[0].what}. Write it like $30, or 6 h, or both.") from None
    return {name: answer.value for name, answer in known.items()}
