"""Rules in words, for pages: conditions, outcomes, sources, links."""

from collections.abc import Iterable, Mapping
from typing import Any

from advisor.ruleset.facts import Fact
from advisor.ruleset.model import Condition, Interval, Rule, Ruleset

ORIGIN_WORDS = {
    "asked": "you say it",
    "probed": "read from the machine",
    "data": "read from the data",
    "model": "read from the model",
    "estimated": "computed before the rules look",
    "concluded": "concluded by a step before",
    "method": "said by the file of the method",
}
LAYER_WORDS = {
    "base": "what holds whoever decides: memory, budget, number formats, default settings",
    "document": (
        "the guide: its six scenarios, its comparison table, its three principles, and nothing else"
    ),
    "evidence": "refinements of the guide, each with its source and the fact that triggers it",
}
CONFIDENCE_WORDS = {
    "document": "the guide says so",
    "study": "measured and published",
    "vendor-doc": "a maker's documentation",
    "practice": "what practitioners do",
    "judgement": "a choice of this product, stated so that it can be overruled",
}


def cell(text: str) -> str:
    """Text that stays inside one cell of a Markdown table."""
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())


def code(value: Any) -> str:
    """A name or value as rules spell it, safe inside a table."""
    if isinstance(value, bool | None):
        return f"`{ {True: 'true', False: 'false', None: 'null'}[value] }`"
    text = number(value) if isinstance(value, int | float) else str(value).replace("|", "\\|")
    return f"`{text}`"


def number(value: float) -> str:
    """A number as people write it: 10,000 and 0.0002, never 1e-05."""
    if isinstance(value, int) or value == int(value):
        return f"{int(value):,}"
    return f"{value:.10f}".rstrip("0").rstrip(".")


def joined(parts: Iterable[str], last: str = "or") -> str:
    """'a, b or c'"""
    listed = list(parts)
    return f"{', '.join(listed[:-1])} {last} {listed[-1]}" if len(listed) > 1 else "".join(listed)


def interval(part: Interval) -> str:
    """'over 10,000 and at most 100,000'"""
    if part.low is not None and part.low == part.high:
        return f"exactly {number(part.low)}"
    words = []
    if part.low is not None:
        words.append(f"{'at least' if part.low_included else 'over'} {number(part.low)}")
    if part.high is not None:
        words.append(f"{'at most' if part.high_included else 'under'} {number(part.high)}")
    return " and ".join(words)


def condition(tested: Condition, fact: Fact, *, link: str) -> str:
    """One condition in words, the fact's name linked: '[budget] is low, or not known'."""
    name = f"[`{fact.id}`]({link}#{fact.instance_of or fact.id})"
    if fact.type == "flag":
        said = [
            word
            for value, word in ((True, "is true"), (False, "is false"))
            if value in tested.values
        ]
    elif fact.type == "number":
        said = [joined(map(interval, tested.intervals))] if tested.intervals else []
    else:
        listed = [value for value in fact.values if value in tested.values]
        others = [value for value in fact.values if value not in tested.values]
        if listed and others and len(others) <= 2 and len(listed) >= 4:
            if tested.unknown:
                return f"{name} is anything but {joined(map(code, others))}, known or not"
            said = [f"is known, and not {joined(map(code, others))}"]
        elif listed and not others:
            said = ["is known" if not tested.unknown else "is anything"]
        else:
            said = [f"is {joined(map(code, listed))}"] if listed else []
    if tested.unknown and said != ["is anything"]:
        return f"{name} {said[0]}, or not known" if said else f"{name} is not known"
    return f"{name} {' or '.join(said)}"


def when(rule: Rule, facts: Mapping[str, Fact], *, link: str = "facts.md") -> str:
    """All conditions of a rule, one a line of its cell."""
    return (
        "<br>".join(condition(tested, facts[tested.fact], link=link) for tested in rule.when)
        or "always"
    )


def outcomes(rule: Rule, concludes: str) -> list[Any]:
    """What a rule recommends or forbids."""
    value = rule.then.get(concludes)
    return value if isinstance(value, list) else [] if value is None else [value]


def then(rule: Rule, concludes: str) -> str:
    """What follows, for the first column."""
    if rule.kind == "set":
        return "<br>".join(f"{code(key)} = {code(value)}" for key, value in rule.then.items())
    if rule.kind == "warn":
        return cell(str(rule.then.get("say", "")))
    return "<br>".join(map(code, outcomes(rule, concludes))) or "the scheme asked about"


def because(rule: Rule) -> str:
    """The reason, the honest other side, and the guide's row where the rule has one."""
    lines = [cell(rule.because)]
    if rule.unless_note:
        lines.append(f"*But:* {cell(rule.unless_note)}")
    if rule.row:
        lines.append(f"*The guide:* {cell(rule.row)}")
    if rule.refines:
        lines.append(f"*Refines:* {cell(rule.refines)}")
    return "<br>".join(lines)


def source_link(source_id: str, rules: Ruleset) -> str:
    """The source's id, linked to what was read; a source without an address links to its entry."""
    source = rules.sources[source_id]
    return (
        f"[{cell(source_id)}]({source.url.replace(' ', '%20').replace('|', '%7C')})"
        if source.url
        else f"[{cell(source_id)}](sources.md#{source_id})"
    )


def anchor(rule_id: str) -> str:
    """A rule's anchor on its page; names of GitHub anchors hold no slash."""
    return rule_id.replace("/", "--").replace("_", "-").lower()


def rule_link(rule: Rule) -> str:
    """A link to the rule on its page."""
    return f"[{cell(rule.id)}]({rule.table}.md#{anchor(rule.id)})"


def count(number_of: int, name: str) -> str:
    """'1 rule', '2 rules'"""
    return f"{number_of} {name}{'' if number_of == 1 else 's'}"
