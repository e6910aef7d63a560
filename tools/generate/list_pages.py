"""The page of every fact and the page of every source."""

from collections.abc import Iterable

from advisor.ruleset.facts import ORIGINS, Fact
from advisor.ruleset.model import Rule, Ruleset
from advisor.schema.rules import named_facts
from tools.generate.markdown import consumers, every_rule, grid, page, producer
from tools.generate.words import ORIGIN_WORDS, cell, code, count, joined, number, rule_link


def facts_page(rules: Ruleset) -> str:
    blocks: list[str | Iterable[str]] = []
    for origin in ORIGINS:
        facts = [fact for fact in named_facts(rules.facts) if fact.origin == origin]
        if not facts:
            continue
        blocks.append(f"## {ORIGIN_WORDS[origin].capitalize()}")
        explained = [fact for fact in facts if not fact.signal]
        for fact in explained:
            blocks += fact_blocks(rules, fact)
        signals = [fact for fact in facts if fact.signal]
        if signals:
            blocks += [
                "### Signals",
                (
                    "Things a person states as true, by name: `signals: [NAME]` in an answers file,"
                    " `--signal NAME` (repeatable) as a flag. One that nobody stated is not known."
                ),
                grid(
                    ["Signal", "Question", "Asked by the wizard", "Looked at by"],
                    (signal_row(rules, fact) for fact in signals),
                ),
            ]
    return page(
        "# Facts",
        "[all steps](README.md) · [sources](sources.md)",
        "Everything a rule can look at. The wizard's questions, the flags, the keys of an answers"
        " file and the values below are one list, [rules/facts.yaml](../../rules/facts.yaml). A"
        " fact that nobody stated is *not known*, and a default is not a known fact.",
        *blocks,
    )


def fact_blocks(rules: Ruleset, fact: Fact) -> list[str | Iterable[str]]:
    lines = []
    kind = {
        "choice": "one of the values below" if fact.values else "open",
        "number": "a whole number" if fact.integer else "a number",
        "flag": "true or false",
        "path": "a file or folder",
    }
    bounds = [
        f"{word} {number(bound)}"
        for word, bound in (("at least", fact.min), ("at most", fact.max))
        if bound is not None
    ]
    typed = (
        kind.get(fact.type, fact.type)
        + (f", {' and '.join(bounds)}" if bounds else "")
        + (f", in {fact.unit}" if fact.unit else "")
    )
    lines.append(f"- Value: {typed}")
    stated = [
        *([f"flag `{fact.flag}`"] if fact.flag else []),
        *([f"key `{fact.answer}` of an answers file"] if fact.answer else []),
    ]
    if stated:
        lines.append(
            f"- Stated by: {', '.join(stated)}{'; it must be stated' if fact.required else ''}"
        )
    table = producer(rules, fact.id)
    if table is not None:
        lines.append(f"- Concluded by: [{table.id}]({table.id}.md)")
    if fact.ask and fact.order is not None and asked_only(fact):
        lines.append(f"- Asked only: {asked_only(fact)}")
    if fact.unknown:
        lines.append(f"- Not known means: {fact.unknown}")
    lines.append(f"- Looked at by: {looked_at_by(rules, fact) or 'no step'}")
    blocks: list[str | Iterable[str]] = [f"### `{fact.id}`", fact.ask, lines]
    if fact.values:
        told = any(value.label != name or value.help for name, value in fact.values.items())
        if told:
            blocks.append(
                grid(
                    ["Value", "Label", "Meaning"],
                    (
                        [
                            code(name),
                            cell(value.label if value.label != name else ""),
                            cell(value.help),
                        ]
                        for name, value in fact.values.items()
                    ),
                )
            )
        else:
            lines[0] = f"- Value: one of {', '.join(map(code, fact.values))}"
    return blocks


def asked_only(fact: Fact) -> str:
    parts = [
        f"where {code(other)} is {joined(map(code, values))}"
        for other, values in fact.ask_when.items()
    ]
    if fact.ask_without:
        parts.append(f"without {' and '.join(map(code, fact.ask_without))}")
    return " and ".join(parts)


def looked_at_by(rules: Ruleset, fact: Fact) -> str:
    return ", ".join(f"[{table.id}]({table.id}.md)" for table in consumers(rules, fact.id))


def signal_row(rules: Ruleset, fact: Fact) -> list[str]:
    asked = (asked_only(fact) or "yes") if fact.order is not None else "–"
    return [
        f'<a id="{fact.id}"></a>`{fact.id}`',
        cell(fact.ask),
        asked,
        looked_at_by(rules, fact) or "–",
    ]


def used_sources(rules: Ruleset) -> dict[str, list[Rule]]:
    """Source id -> the rules that name it, for sources that any rule names."""
    used: dict[str, list[Rule]] = {}
    for rule in every_rule(rules):
        for source in rule.sources:
            used.setdefault(source, []).append(rule)
    return used


def sources_page(rules: Ruleset) -> str:
    used = used_sources(rules)
    blocks: list[str | Iterable[str]] = []
    for source_id in sorted(rules.sources):
        source = rules.sources[source_id]
        title = cell(source.title)
        about = [
            part
            for part in (source.kind, f"read {source.checked}" if source.checked else "")
            if part
        ]
        lines = [
            f"- {f'[{title}]({source.url})' if source.url else title}",
            f"- {'; '.join(about)}" if about else "",
        ]
        named = used.get(source_id, [])
        lines.append(
            f"- {count(len(named), 'rule')}: {', '.join(map(rule_link, named))}"
            if named
            else "- named by no rule"
        )
        blocks += [f"### `{source_id}`", [line for line in lines if line]]
    return page(
        "# Sources",
        "[all steps](README.md) · [facts](facts.md)",
        "What the rules rest on, from [rules/sources.yaml](../../rules/sources.yaml):"
        f" {count(len(rules.sources), 'source')}, {len(used)} of them named by a rule. Cards,"
        " prices and models name theirs in their own files under [rules/](../../rules/).",
        *blocks,
    )
