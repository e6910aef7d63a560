"""Pages about the rules, made from the loaded rules: an index, one page a decision step, the facts,
the sources.
"""

from collections.abc import Iterable

from advisor.ruleset.facts import Fact
from advisor.ruleset.model import DecisionTable, Rule, Ruleset
from advisor.schema.rules import named_facts
from tools.generate.list_pages import facts_page, sources_page, used_sources
from tools.generate.markdown import consumers, every_rule, grid, page, producer
from tools.generate.steps_page import steps_sections
from tools.generate.words import (
    CONFIDENCE_WORDS,
    LAYER_WORDS,
    ORIGIN_WORDS,
    anchor,
    because,
    cell,
    code,
    count,
    joined,
    outcomes,
    source_link,
    then,
    when,
)


def pages(rules: Ruleset) -> dict[str, str]:
    """File name -> text of every page."""
    made = {
        "README.md": index(rules),
        "facts.md": facts_page(rules),
        "sources.md": sources_page(rules),
    }
    for table in rules.tables.values():
        made[f"{table.id}.md"] = table_page(rules, table)
    return made


def layers_latest_first(rules: Ruleset) -> list[str]:
    return [*reversed(rules.layers), "base"]


# --------------------------------------------------------------------------- one decision step


def table_page(rules: Ruleset, table: DecisionTable) -> str:
    listed = rules.rules[table.id]
    place = list(rules.tables).index(table.id)
    steps = list(rules.tables)
    before = f"[← {steps[place - 1]}]({steps[place - 1]}.md) · " if place else ""
    after = f" · [{steps[place + 1]} →]({steps[place + 1]}.md)" if place + 1 < len(steps) else ""
    recommends = [rule for rule in listed if rule.kind == "recommend"]
    sections: list[str | Iterable[str]] = []
    forbids = sorted(
        (rule for rule in listed if rule.kind == "forbid"),
        key=lambda rule: (layers_latest_first(rules).index(rule.layer), rule.id),
    )
    if forbids:
        sections += [
            "## Never",
            "These count first and stand against everything, whichever layer says so.",
            rule_grid(rules, table, forbids, "Forbidden"),
        ]
    if recommends:
        sections += [
            "## In this order",
            (
                "The first line below that holds, and whose outcome nothing forbids, decides. Lines"
                " of one heading that hold together agree; the rest of the list is the order of the"
                " alternatives."
            ),
        ]
        for layer in layers_latest_first(rules):
            for tier in sorted(rules.tiers, key=lambda name: -rules.tiers[name]):
                rows = sorted(
                    (rule for rule in recommends if rule.layer == layer and rule.tier == tier),
                    key=lambda rule: order_of(rules, table, rule),
                )
                if rows:
                    sections += [
                        f"### {layer.capitalize()}, {tier}",
                        rule_grid(rules, table, rows, "Outcome"),
                    ]
    sets = [rule for rule in listed if rule.kind == "set"]
    if sets:
        sections += [
            "## Values",
            "All lines that hold apply together; no two of them give one key different values.",
        ]
        for title, rows in by_owner(rules, sets).items():
            sections += [f"### {title}", rule_grid(rules, table, rows, "Sets")]
        sections += steps_sections(rules)
    warns = [rule for rule in listed if rule.kind == "warn"]
    if warns:
        sections += [
            "## Warnings",
            "Printed beside the answer; they decide nothing.",
            rule_grid(rules, table, warns, "Says"),
        ]
    resting = [rule for rule in rules.inactive if rule.table == table.id]
    if resting:
        sections += [
            "## Not counted",
            "Drafts, and rules whose time is over: kept to be read, never judged.",
            rule_grid(rules, table, resting, "Outcome"),
        ]
    return page(
        f"# Step {place + 1}: {table.id}",
        f"{before}[all steps](README.md) · [facts](facts.md) · [sources](sources.md){after}",
        f"Decides {cell(table.about)}." if not table.per else f"{cell(capitalised(table.about))}.",
        outcome_list(rules, table),
        "## It looks at",
        grid(
            ["Fact", "In plain words", "Where it comes from"],
            (input_row(rules, fact_id) for fact_id in table.inputs),
        ),
        *(sections or ["No rules yet."]),
    )


def order_of(rules: Ruleset, table: DecisionTable, rule: Rule) -> tuple[int, str]:
    """By outcome, in the order in which the facts file lists the outcomes, then by id."""
    values = list(rules.facts[table.concludes].values)
    return values.index(outcomes(rule, table.concludes)[0]), rule.id


def rule_grid(
    rules: Ruleset, table: DecisionTable, listed: Iterable[Rule], first: str
) -> list[str]:
    """One line a rule."""
    headings = [first, "When", "Because", "Confidence", "Sources", "Rule"]
    return grid(
        headings,
        (
            [
                then(rule, table.concludes),
                when(rule, rules.facts),
                because(rule),
                rule.confidence,
                sources_cell(rule, rules),
                id_cell(rule),
            ]
            for rule in listed
        ),
    )


def sources_cell(rule: Rule, rules: Ruleset) -> str:
    return ", ".join(source_link(source, rules) for source in rule.sources)


def id_cell(rule: Rule) -> str:
    review = f"<br>review by {rule.review_by}" if rule.review_by else ""
    return f'<a id="{anchor(rule.id)}"></a>`{rule.id}`{review}'


def by_owner(rules: Ruleset, listed: Iterable[Rule]) -> dict[str, list[Rule]]:
    """Rules that set values under the scheme or objective whose file they stand in, else under
    their layer; latest layer first.
    """
    axes = {
        name.partition("/")[2]: str(axis.get("name", name)) for name, axis in rules.axes.items()
    }
    groups: dict[str, list[Rule]] = {}
    order = layers_latest_first(rules)
    for rule in sorted(
        listed, key=lambda rule: (order.index(rule.layer), rule.id.partition("/")[0] in axes)
    ):
        namespace = rule.id.partition("/")[0]
        groups.setdefault(axes.get(namespace, rule.layer.capitalize()), []).append(rule)
    return groups


def outcome_list(rules: Ruleset, table: DecisionTable) -> str | list[str]:
    """Every outcome with its plain name and how many rules lead to it."""
    values = rules.facts[table.concludes].values
    if table.per:
        ranking = next((other.id for other in rules.tables.values() if other.asks == table.id), "")
        return f"Schemes that no rule below forbids go on to [{ranking}]({ranking}.md)."
    if not values:
        keys = dict.fromkeys(
            key for rule in rules.rules[table.id] if rule.kind == "set" for key in rule.then
        )
        return (
            "It concludes no single outcome: each rule sets values of its own. Keys that rules"
            f" set: {', '.join(map(code, keys))}."
            if keys
            else ""
        )
    used = consumers(rules, table.concludes)
    links = joined((f"[{other.id}]({other.id}.md)" for other in used), "and")
    rows = []
    for outcome, value in values.items():
        named = [
            rule for rule in rules.rules[table.id] if outcome in outcomes(rule, table.concludes)
        ]
        recommended, forbidden = (
            sum(rule.kind == kind for rule in named) for kind in ("recommend", "forbid")
        )
        meaning = "; ".join(
            part for part in (value.label if value.label != outcome else "", value.help) if part
        )
        rows.append([code(outcome), cell(meaning), str(recommended or "–"), str(forbidden or "–")])
    told = f"Its outcome is the fact [`{table.concludes}`](facts.md#{table.concludes})" + (
        f", which is looked at by {links}." if used else "."
    )
    headings = ["Outcome", "Meaning", "Rules for it", "Rules against it"]
    if not any(row[1] for row in rows):
        headings, rows = [headings[0], *headings[2:]], [[row[0], *row[2:]] for row in rows]
    return [told, "", *grid(headings, rows)]


def input_row(rules: Ruleset, fact_id: str) -> list[str]:
    fact = rules.facts[fact_id]
    return [
        f"[`{fact.id}`](facts.md#{fact.id})",
        cell(plain(rules, fact)),
        cell(where_from(rules, fact)),
    ]


def plain(rules: Ruleset, fact: Fact) -> str:
    """The question of the fact, or what its values are."""
    if fact.ask:
        return fact.ask
    table = producer(rules, fact.id)
    if table is not None:
        return capitalised(table.about)
    return fact.unit or joined(
        (value.label[:1].lower() + value.label[1:]).replace("_", " ")
        for value in fact.values.values()
    )


def capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def where_from(rules: Ruleset, fact: Fact) -> str:
    table = producer(rules, fact.id)
    if table is not None:
        return f"concluded by [{table.id}]({table.id}.md)"
    return (
        "follows from the steps before" if fact.origin == "concluded" else ORIGIN_WORDS[fact.origin]
    )


# --------------------------------------------------------------------------- index


def index(rules: Ruleset) -> str:
    listed = every_rule(rules)
    steps = []
    for place, table in enumerate(rules.tables.values(), 1):
        values = rules.facts[table.concludes].values
        steps.append(
            [
                str(place),
                f"[{table.id}]({table.id}.md)",
                cell(table.about),
                "each scheme, allowed or not"
                if table.per
                else ", ".join(map(code, values)) or "values of keys",
                str(len(rules.rules[table.id])),
            ]
        )
    layers = []
    for place, layer in enumerate(layers_latest_first(rules), 1):
        layers.append(
            [
                str(place),
                f"`{layer}`",
                LAYER_WORDS.get(layer, ""),
                str(sum(rule.layer == layer for rule in listed)),
            ]
        )
    tiers = sorted(rules.tiers, key=lambda name: -rules.tiers[name])
    tier_rows = [
        [
            f"`{tier}`",
            str(rules.tiers[tier]),
            str(sum(rule.tier == tier and rule.kind == "recommend" for rule in listed)),
        ]
        for tier in tiers
    ]
    kinds = {
        "forbid": "takes an outcome away, whatever recommends it",
        "recommend": "names an outcome, at a tier",
        "set": "gives keys of the plan their values",
        "warn": "says something beside the answer",
    }
    return page(
        "# What `advise` knows, rule by rule",
        f"{count(len(listed), 'rule')} in {count(len(rules.tables), 'step')}, about"
        f" {count(len(named_facts(rules.facts)), 'fact')} ([facts](facts.md)), from"
        f" {count(len(used_sources(rules)), 'source')} ([sources](sources.md)). These pages are"
        " made from the same files that decide, so they cannot say anything else.",
        "![How a recommendation is made](../steps.svg)",
        "## The steps, in order",
        "Each step looks at a few facts and concludes one, which later steps may look at.",
        grid(["", "Step", "Decides", "Outcomes", "Rules"], steps),
        "## Who wins",
        "A file of your own given with `--rules` comes before all of these. A later layer wins over"
        " an earlier one, a higher tier wins inside a layer, and there is no other precedence. A"
        " rule that forbids stands against everything, whichever layer it is in.",
        grid(["Order", "Layer", "Holds", "Rules"], layers),
        grid(["Tier", "Rank", "Rules"], tier_rows),
        "## How to read a page",
        "One line is one rule: what follows, when, why, how sure that is, where it comes from, and"
        " its id. The conditions of a line hold together (and); values beside one another are"
        " alternatives (or). A fact that nobody stated is *not known*: a rule that asks for a value"
        " does not hold then, unless its line says so. `advise rules ID` explains one rule.",
        grid(
            ["Kind of rule", "What it does", "Rules"],
            (
                [f"`{kind}`", words, str(sum(rule.kind == kind for rule in listed))]
                for kind, words in kinds.items()
            ),
        ),
        grid(
            ["Confidence", "Means", "Rules"],
            (
                [f"`{name}`", words, str(sum(rule.confidence == name for rule in listed))]
                for name, words in CONFIDENCE_WORDS.items()
            ),
        ),
        "How to write rules of your own: [rules/README.md](../../rules/README.md).",
    )
