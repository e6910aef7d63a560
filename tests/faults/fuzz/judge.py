"""What no input may bring about."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from tests.faults.fuzz.forks import CPU_S, Outcome

# All but tab and newline; a terminal acts on them. C1 controls are characters of UTF-8 here.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f]")
REFUSED = 2


def faults(
    outcome: Outcome, arguments: Sequence[str], codes: Sequence[int], *, cpu_s: float = CPU_S
) -> list[str]:
    """What was not as promised; the first word says of which kind it is."""
    found = []
    if outcome.hung:
        found.append("hang: it did not end")
    elif outcome.code not in codes:
        found.append(f"exit code {outcome.code}")
    if outcome.cpu_s > cpu_s:
        found.append(f"slow: {outcome.cpu_s:.1f} s of computing")
    text = outcome.out.decode(errors="replace") + outcome.err.decode(errors="replace")
    if "Traceback (most recent call last)" in text:
        found.append("traceback")
    if match := CONTROL.search(text):
        around = text[max(0, match.start() - 30) : match.end() + 10]
        found.append(f"control character in the output: {around!r}")
    try:
        (outcome.out + outcome.err).decode()
    except UnicodeDecodeError:
        found.append("output is no UTF-8")
    found += [f"outside: {line}" for line in outcome.told[:3]]
    if outcome.code == REFUSED and outcome.changed:
        found.append(f"changed although refused: {', '.join(outcome.changed[:3])}")
    if outcome.code in (2, 3, 4, 5) and not outcome.err.strip() and not outcome.out.strip():
        found.append("silent")
    asked = arguments[: list(arguments).index("--")] if "--" in arguments else arguments
    helped = {"-h", "--help", "--version"} & set(asked)
    if "--json" in asked and not outcome.hung and not helped:
        found += json_faults(outcome.out)
    return found


def json_faults(out: bytes) -> list[str]:
    """Standard output with --json is one JSON document."""
    if not out.strip():
        return ["no JSON on standard output"]
    try:
        json.loads(out, parse_constant=lambda name: json.loads("not JSON: " + name))
    except RecursionError:
        return []
    except ValueError as error:
        return [f"standard output is no JSON: {error}"]
    return []
