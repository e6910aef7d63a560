"""Ruleset -> findings: what the proofs show, whether the rules' own examples hold, and what an
author should know.

Pure: today's date and the check of setting values come in as arguments. Where a rule set has files
of the user, only what those files cause is told: the shipped rules are judged by themselves.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from advisor.ground.errors import nearest
from advisor.ground.shape import value_words
from advisor.methods import methods
from advisor.ruleset.candidates import fires
from advisor.ruleset.facts import methods_named
from advisor.ruleset.load import SHIPPED_LAYERS, only_layer
from advisor.ruleset.model import Rule, Ruleset
from advisor.ruleset.proof import Clash, Hole, Idle, TableProof, alike, prove
from advisor.ruleset.space import TooManyCases

SEVERITIES = ("error", "warning", "note")
LONGEST_BECAUSE = 160  # characters: a reason is one sentence
# What a file of one's own does to shipped rules and questions on purpose: told, and no fault.
SIDE_EFFECTS = (
    "never-wins", "redundant", "setting-without-effect", "outcome-never-recommended",
    "only-under-document", "input-without-a-rule", "values-alike", "question-without-a-rule",
)  # fmt: skip
SettingFault = Callable[
    [str, Any], str | None
]  # key, value -> what is allowed there, or None; KeyError for an unknown key


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that the linter has to say, at one place of one file."""

    id: str  # kebab-case, named after the situation
    severity: str
    text: str
    rule: str = ""
    at: str = ""  # file:line:column
    hint: str = ""
    about: tuple[
        str, ...
    ] = ()  # what makes it the same finding in another rule set: table, rules, outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Everything that one run of the linter found and proved."""

    findings: tuple[Finding, ...]
    proofs: tuple[TableProof, ...]
    examples: int  # of rules, all run
    tiers: Mapping[str, int] = field(default_factory=dict)  # tier -> recommend rules
    must: tuple[str, ...] = ()  # the rules of the highest tier, by name

    def of(self, severity: str) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == severity)

    @property
    def rules(self) -> int:
        return sum(proof.rules for proof in self.proofs)


def lint(
    ruleset: Ruleset,
    *,
    today: datetime.date | None = None,
    setting_fault: SettingFault | None = None,
    keys: Iterable[str] = (),
) -> Report:
    """The whole check of a rule set.

    Args:
        ruleset: The merged rules.
        today: For rules whose review is due; None leaves that out.
        setting_fault: What a stage's key may hold; None leaves that out.
        keys: Every such key, for the nearest name.
    """
    linter = _Linter(ruleset)
    linter.methods()
    proofs = linter.tables()
    examples = linter.rules(today, setting_fault, tuple(keys))
    linter.questions()
    recommending = [
        rule for rules in ruleset.rules.values() for rule in rules if rule.kind == "recommend"
    ]
    counted = Counter(rule.tier for rule in recommending)
    top = max(ruleset.tiers, key=lambda tier: ruleset.tiers[tier], default="")
    return Report(
        findings=tuple(sorted(linter.findings, key=_place)),
        proofs=tuple(proofs),
        examples=examples,
        tiers={tier: counted[tier] for tier in ruleset.tiers},
        must=tuple(sorted(rule.id for rule in recommending if rule.tier == top)),
    )


def caused_by_user(report: Report, shipped: Report, ruleset: Ruleset) -> Report:
    """The report on a rule set with files of the user, less what the shipped rules bring along."""
    known = {(finding.id, finding.about) for finding in shipped.findings}
    own = []
    for finding in report.findings:
        if (finding.id, finding.about) in known:
            continue
        rule = ruleset.rule(finding.rule) if finding.rule else None
        if finding.id in SIDE_EFFECTS and (rule is None or rule.layer not in ruleset.overlays):
            finding = replace(finding, severity="note", hint="")
        own.append(finding)
    return replace(report, findings=tuple(sorted(own, key=_place)))


def _place(finding: Finding) -> tuple[int, str, int, int, str]:
    file, _, rest = finding.at.partition(":")
    line, _, column = rest.partition(":")
    return SEVERITIES.index(finding.severity), file, int(line or 0), int(column or 0), finding.id


class _Linter:
    def __init__(self, ruleset: Ruleset) -> None:
        self.ruleset = ruleset
        self.findings: list[Finding] = []
        self.complete = set(SHIPPED_LAYERS) <= set(
            ruleset.layers
        )  # the guide alone leaves much unsaid on purpose
        self._guide: dict[str, TableProof] = {}

    def add(
        self,
        id_: str,
        severity: str,
        text: str,
        *,
        rule: Rule | None = None,
        at: str = "",
        hint: str = "",
        about: Iterable[object] = (),
    ) -> None:
        place = at or (rule.at if rule else "")
        named = rule.id if rule else ""
        self.findings.append(
            Finding(
                id=id_,
                severity=severity,
                text=text,
                rule=named,
                at=place,
                hint=hint,
                about=(named, *map(str, about)),
            )
        )

    # ----------------------------------------------------------------------- files of methods

    def methods(self) -> None:
        """Methods that cannot be used, since their own files have faults."""
        for fault in (fault for faults in methods().broken.values() for fault in faults):
            at, _, text = fault.headline.partition(": ")
            hint = "; ".join(filter(None, (fault.allowed, fault.hint)))
            self.add("broken-method", "error", text, at=at, hint=hint, about=[fault.headline])

    # ----------------------------------------------------------------------- what the proofs show

    def tables(self) -> list[TableProof]:
        proofs = []
        for table_id, table in self.ruleset.tables.items():
            try:
                proof = prove(self.ruleset, table_id)
            except TooManyCases as error:
                own = [
                    rule
                    for rule in self.ruleset.rules[table_id]
                    if rule.layer in self.ruleset.overlays
                ]
                self.add(
                    "too-many-cases", "error", f"table '{table_id}' cannot be proved: {error}",
                    at=own[0].at if own else table.at,
                    hint="fewer thresholds and fewer facts to a rule, or rules that say more at"
                    " once",
                    about=[table_id],
                )  # fmt: skip
                continue
            proofs.append(proof)
            for hole in proof.holes:
                self.hole(proof, hole)
            for clash in proof.conflicts:
                self.conflict(proof, clash)
            for clash in proof.contradictions:
                self.contradiction(clash)
            for rule in proof.unreachable:
                self.add(
                    "unreachable",
                    "error",
                    f"can never fire: {self.why_unreachable(rule)}",
                    rule=rule,
                    hint="correct its `when`, or remove it",
                )
            for idle in proof.never_wins:
                self.never_wins(proof, idle)
            for idle in proof.redundant:
                if not self.needed_by_guide(proof, idle.rule, "redundant"):
                    self.add(
                        "redundant",
                        "warning",
                        f"changes nothing: {names(idle.culprits)} already says the same wherever it"
                        " fires",
                        rule=idle.rule,
                        hint="remove one of them",
                    )
            if self.complete:
                for outcome in proof.never_concluded:
                    of_method = outcome in methods_named(self.ruleset.facts[table.concludes])
                    text = f"no situation leads to {table.concludes} = {outcome}"
                    hint = (
                        "it is offered among the alternatives: --choose takes it"
                        if of_method
                        else "write a rule that recommends it, or remove the value from"
                        " rules/facts.yaml"
                    )
                    self.add(
                        "outcome-never-recommended",
                        "note" if of_method else "error",
                        text,
                        at=table.at,
                        hint=hint,
                        about=[table_id, outcome],
                    )
                for fact_id in proof.unused_inputs:
                    text = (
                        f"table '{table_id}' declares '{fact_id}', and none of its rules looks"
                        " at it"
                    )
                    self.add(
                        "input-without-a-rule",
                        "warning",
                        text,
                        at=table.at,
                        hint="remove it from `inputs`",
                        about=[table_id, fact_id],
                    )
        return proofs

    def hole(self, proof: TableProof, hole: Hole) -> None:
        concludes = proof.table.concludes
        if hole.by_policy:
            text = (
                f"leaves no way out: where {hole.box.text}, every {concludes} is forbidden,"
                " whatever the hardware holds"
            )
        else:
            text = (
                f"leaves a gap: where {hole.box.text}, nothing is recommended for"
                f" '{proof.table.id}'"
            )
        blamed = [rule for rule in hole.forbidding if rule.layer in self.ruleset.overlays] or list(
            hole.forbidding
        )
        gone = [
            rule
            for rule in self.ruleset.inactive
            if rule.table == proof.table.id
            and rule.id in self.ruleset.disabled
            and rule.kind == "recommend"
        ]
        about = [proof.table.id, hole.by_policy, hole.box.text]
        if blamed:
            hint = (
                f"together with {names(blamed[1:])}; leave one {concludes} allowed"
                if len(blamed) > 1
                else f"leave one {concludes} allowed"
            )
            self.add(
                "gap" if not hole.by_policy else "no-way-out",
                "error",
                text,
                rule=blamed[0],
                hint=hint,
                about=about,
            )
        elif gone:
            at = self.ruleset.disabled_at[gone[0].id]
            self.add(
                "gap",
                "error",
                f"disabling {names(gone)} {text}",
                at=at,
                hint="recommend something in its place",
                about=about,
            )
        else:
            self.add(
                "gap",
                "error",
                f"table '{proof.table.id}' {text}",
                at=proof.table.at,
                hint="add a rule with `when: {}` of a low tier",
                about=about,
            )

    def conflict(self, proof: TableProof, clash: Clash) -> None:
        concludes = proof.table.concludes
        says = (
            f"{clash.second.then[concludes]} here, {clash.first.then[concludes]} by"
            f" {clash.first.id}"
        )
        first, second = clash.first, clash.second
        if first.layer in self.ruleset.overlays and second.layer not in self.ruleset.overlays:
            first, second = second, first
        where = f"where {clash.box.text}" if clash.box else "where both fire"
        hint = (
            f"give one of them another tier, or narrow its `when` ({clash.first.id} stands at"
            f" {clash.first.at})"
        )
        self.add(
            "conflict",
            "error",
            f"two rules of tier '{second.tier}' disagree {where}: {says}",
            rule=second,
            hint=hint,
            about=[first.id],
        )

    def contradiction(self, clash: Clash) -> None:
        key = clash.key
        where = f"where {clash.box.text}" if clash.box else "where both fire"
        text = (
            f"'{key}' gets two values {where}: {value_words(clash.second.then[key])} here,"
            f" {value_words(clash.first.then[key])} by {clash.first.id}"
        )
        self.add(
            "contradictory-setting",
            "error",
            text,
            rule=clash.second,
            hint=f"narrow one of them ({clash.first.id} stands at {clash.first.at})",
            about=[clash.first.id, key],
        )

    def never_wins(self, proof: TableProof, idle: Idle) -> None:
        rule = idle.rule
        if rule.layer == "base" and not rule.when and rule.kind == "recommend":
            return  # the net below a step: it is there for rule sets that lack the rules above it
        own = rule.layer in self.ruleset.overlays
        what = f"never sets '{idle.key}'" if idle.key else "never wins"
        by = (
            f"{names(idle.culprits)} {'takes' if len(idle.culprits) == 1 else 'take'} all its cases"
        )
        if self.needed_by_guide(proof, rule, "never_wins"):
            self.add(
                "only-under-document",
                "note",
                f"{what} here, only under `--rules document`: {by}",
                rule=rule,
                about=[idle.key],
            )
            return
        severity = "warning" if own else "error"
        hint = "raise its tier, widen its `when`, or remove it"
        self.add(
            "setting-without-effect" if idle.key else "never-wins",
            severity,
            f"{what}: {by}",
            rule=rule,
            hint=hint,
            about=[idle.key],
        )

    def needed_by_guide(self, proof: TableProof, rule: Rule, kind: str) -> bool:
        """Whether a rule without effect here has one under `--rules document`."""
        if rule.layer not in ("base", "document") or "evidence" not in self.ruleset.layers:
            return False
        table_id = proof.table.id
        if table_id not in self._guide:
            self._guide[table_id] = prove(only_layer(self.ruleset, "document"), table_id)
        idle = {found.rule.id for found in getattr(self._guide[table_id], kind)}
        dead = {found.id for found in self._guide[table_id].unreachable} | idle
        return rule.id not in dead

    def why_unreachable(self, rule: Rule) -> str:
        for condition in rule.when:
            fact = self.ruleset.facts[condition.fact]
            if (
                condition.unknown
                and not condition.values
                and not condition.intervals
                and (fact.required or fact.origin == "concluded")
            ):
                return f"'{condition.fact}' is always known"
            if condition.intervals and all(
                i.low is not None and i.high is not None and i.low > i.high
                for i in condition.intervals
            ):
                return f"no number satisfies '{condition.text}'"
        return "no situation satisfies " + " and ".join(condition.text for condition in rule.when)

    # ----------------------------------------------------------------------- rule by rule

    def rules(
        self, today: datetime.date | None, setting_fault: SettingFault | None, keys: tuple[str, ...]
    ) -> int:
        examples = 0
        for rule in self.all_rules():
            if rule.status != "active":
                text = (
                    "is expired, so it is not used"
                    if rule.status == "expired"
                    else "is a draft, so it is not used yet"
                )
                self.add(
                    f"{rule.status}-rule",
                    "warning" if rule.status == "expired" else "note",
                    text,
                    rule=rule,
                    at=rule.spot("status"),
                )
            if today is not None and rule.review_by and rule.review_by < today.isoformat():
                self.add(
                    "review-due",
                    "warning",
                    f"was to be reviewed by {rule.review_by}",
                    rule=rule,
                    at=rule.spot("review_by"),
                    hint="check its sources, then set a new date",
                )
            if len(rule.because) > LONGEST_BECAUSE:
                text = f"its reason has {len(rule.because)} characters"
                self.add(
                    "long-reason",
                    "warning",
                    text,
                    rule=rule,
                    at=rule.spot("because"),
                    hint=f"one sentence of at most {LONGEST_BECAUSE}",
                )
            if rule.kind == "set" and setting_fault is not None:
                self.settings(rule, setting_fault, keys)
            for i, example in enumerate(rule.examples):
                examples += 1
                self.example(rule, i, example)
        for rule_id in self.ruleset.disabled:
            gone = next((rule for rule in self.ruleset.inactive if rule.id == rule_id), None)
            if gone is not None and gone.layer == "base" and gone.kind == "forbid":
                text = (
                    f"switches off {rule_id}: what it rules out may then be recommended, and will"
                    " not run"
                )
                self.add(
                    "fit-check-disabled",
                    "warning",
                    text,
                    at=self.ruleset.disabled_at.get(rule_id, ""),
                    about=[rule_id],
                )
        return examples

    def all_rules(self) -> Iterator[Rule]:
        for rules in self.ruleset.rules.values():
            yield from rules
        yield from (
            rule
            for rule in self.ruleset.inactive
            if rule.status != "active" and rule.id not in self.ruleset.disabled
        )

    def settings(self, rule: Rule, setting_fault: SettingFault, keys: tuple[str, ...]) -> None:
        for key, value in rule.then.items():
            try:
                allowed = setting_fault(key, value)
            except KeyError:
                self.add(
                    "unknown-setting",
                    "error",
                    f"no stage has the key '{key}'",
                    rule=rule,
                    hint=nearest(key, keys) or "`advise rules` shows the keys that are set",
                    about=[key],
                )
                continue
            if allowed is not None:
                self.add(
                    "wrong-setting",
                    "error",
                    f"'{key}' cannot be {value_words(value)}",
                    rule=rule,
                    hint=f"allowed: {allowed}",
                    about=[key],
                )

    def example(self, rule: Rule, number: int, example: Mapping[str, Any]) -> None:
        at = rule.spot("examples", number)
        table = self.ruleset.tables[rule.table]
        beside = [
            fact_id for fact_id in example["given"] if fact_id not in {*table.inputs, *table.seen}
        ]
        if beside:
            text = f"its example gives '{beside[0]}', which table '{rule.table}' does not look at"
            self.add(
                "example-beside-the-table",
                "warning",
                text,
                rule=rule,
                at=at,
                hint=f"its inputs: {', '.join(table.inputs)}",
                about=[number],
            )
        fired = fires(self.ruleset, rule, example["given"])
        if fired == example["fires"]:
            return
        failing = rule.first_failing(example["given"])
        if fired or failing is None:
            text = "its example should not fire, but every condition holds"
        else:
            given = example["given"].get(failing.fact)
            text = (
                f"its example should fire, but needs '{failing.text}', and {failing.fact} is"
                f" {'not given' if given is None else value_words(given)}"
            )
        self.add(
            "example-fails",
            "error",
            text,
            rule=rule,
            at=at,
            hint="one of the two is wrong: the rule or its example",
            about=[number],
        )

    # ----------------------------------------------------------------------- questions

    def questions(self) -> None:
        """Questions whose answer, or part of it, no rule looks at."""
        if not self.complete:
            return
        looked_at = {fact_id for table in self.ruleset.tables.values() for fact_id in table.seen}
        looked_at |= {
            source
            for fact in self.ruleset.facts.values()
            if fact.id in looked_at
            for source in fact.read_from
        }
        for fact in self.ruleset.facts.values():
            if fact.origin != "asked" or not fact.ask or fact.type not in ("choice", "flag"):
                continue
            at = self.ruleset.fact_at(fact.id)
            if fact.id not in looked_at:
                # What is not asked but only stated may still serve the facts that are made of it.
                severity = "note" if fact.order is None else "warning"
                self.add(
                    "question-without-a-rule",
                    severity,
                    f"no table looks at '{fact.id}'",
                    at=at,
                    hint="add it to a table's `inputs`, or do not ask",
                    about=[fact.id],
                )
                continue
            if fact.type == "choice":
                for group in alike(self.ruleset, fact.id):
                    more = f" or {len(group) - 2} more" if len(group) > 2 else ""
                    text = f"no rule tells {' from '.join(map(str, group[:2]))}{more}"
                    hint = f"values of '{fact.id}' that count alike: {', '.join(map(str, group))}"
                    self.add(
                        "values-alike",
                        "warning",
                        text,
                        at=at,
                        hint=hint,
                        about=[fact.id, *sorted(map(str, group))],
                    )


def names(rules: Iterable[Rule]) -> str:
    """Rule ids in a row: 'a', 'a and b', 'a, b and c'."""
    ids = [rule.id for rule in rules]
    return " and ".join(filter(None, (", ".join(ids[:-1]), ids[-1]))) if ids else "nothing"
