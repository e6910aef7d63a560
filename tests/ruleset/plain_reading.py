"""What the rules of the table `allowed` say of a scheme, read as the table is written."""

from collections.abc import Iterable, Mapping
from typing import Any

from advisor.methods import schemes, update
from advisor.methods.model import SERVERS
from advisor.ruleset.model import Rule


def told(scheme: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a situation with what is known of one scheme there."""
    method = update(schemes()[scheme].update)
    server = facts.get("serve_with")
    return {
        **facts,
        "scheme": scheme,
        "fits": facts.get(f"fits_{scheme}"),
        "update_trains": method.trains,
        "loads_there": server in method.serves if server in SERVERS else None,
    }


def ruled_out(rules: Iterable[Rule], scheme: str, facts: Mapping[str, Any]) -> bool:
    """Whether one of these rules of `allowed` holds for the scheme."""
    return any(rule.first_failing(told(scheme, facts)) is None for rule in rules)
