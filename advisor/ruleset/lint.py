"""Ruleset -> findings: what the proofs show, whether the rules' own examples hold, and what an
author should know.

Pure: today's date and the check of setting values come in as arguments. Where a rule set has files
of the user, only what those files cause is told: the shipped rules are judged by themselves.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from advisor.ground.errors import did_you_mean
from advisor.ground.shape import (
    VERSION,
    Choice,
    Keys,
    ListOf,
    MapOf,
    Number,
    Path_,
    Text,
    value_words,
)
from advisor.ground.yaml_files import SOURCE_KINDS, Document
from advisor.ruleset.decisions import Clash, Hole, Idle, TableProof
from advisor.ruleset.facts import methods_named
from advisor.ruleset.judge import fires
from advisor.ruleset.load import only_layer
from advisor.ruleset.model import SHIPPED_LAYERS, Rule, Ruleset
from advisor.ruleset.phrases import joined
from advisor.ruleset.proof import indistinguishable_values, prove
from advisor.ruleset.space import TooManyCases

SEVERITIES = ("error", "warning", "note")
LONGEST_BECAUSE = 160  # characters: a reason is one sentence
# What a file of one's own does to shipped rules and questions on purpose: told, and no fault.
SIDE_EFFECTS = (
    "never-wins", "redundant", "setting-without-effect", "outcome-never-recommended",
    "only-under-document", "input-without-a-rule", "values-alike", "question-without-a-rule",
)  # fmt: skip
# Key, value -> what is allowed there, or None; KeyError for an unknown key.
SettingFault = Callable[[str, Any], str | None]


class LintFinding(Struct, frozen=True, kw_only=True):
    """One thing that the linter has to say, at one place of one file."""

    id: str  # kebab-case, named after the situation
    severity: str
    text: str
    rule: str = ""
    at: str = ""  # file:line:column
    hint: str = ""
    # What makes it the same finding in another rule set: table, rules, outcome.
    about: tuple[str, ...] = ()


class LintReport(Struct, frozen=True, kw_only=True):
    """Everything that one run of the linter found and proved."""

    findings: tuple[LintFinding, ...]
    proofs: tuple[TableProof, ...]
    examples: int  # of rules, all run
    tiers: Mapping[str, int] = field(default_factory=dict)  # tier -> recommend rules
    must: tuple[str, ...] = ()  # the rules of the highest tier, by name

    def of(self, severity: str) -> tuple[LintFinding, ...]:
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
) -> LintReport:
    """The whole check of a rule set; without `today` no review is due."""
    linter = _Linter(ruleset)
    proofs = linter.tables()
    examples = linter.rules(today, setting_fault, tuple(keys))
    linter.questions()
    recommending = [
        rule for rules in ruleset.rules.values() for rule in rules if rule.kind == "recommend"
    ]
    counted = Counter(rule.tier for rule in recommending)
    top = max(ruleset.tiers, key=lambda tier: ruleset.tiers[tier], default="")
    return LintReport(
        findings=tuple(sorted(linter.findings, key=_place)),
        proofs=tuple(proofs),
        examples=examples,
        tiers={tier: counted[tier] for tier in ruleset.tiers},
        must=tuple(sorted(rule.id for rule in recommending if rule.tier == top)),
    )


def caused_by_user(report: LintReport, shipped: LintReport, ruleset: Ruleset) -> LintReport:
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


def _place(finding: LintFinding) -> tuple[int, str, int, int, str]:
    file, line, column = place_of(finding.at)
    return SEVERITIES.index(finding.severity), file, line or 0, column or 0, finding.id


def place_of(at: str) -> tuple[str, int | None, int | None]:
    """File, line and column of 'file:line:column'; None if there is none."""
    parts = at.rsplit(":", 2)
    numbers = [int(part) for part in parts[1:] if part.isdecimal()]
    if len(parts) == 3 and len(numbers) == 2:
        return parts[0], numbers[0], numbers[1]
    if len(parts) > 1 and parts[-1].isdecimal():
        return ":".join(parts[:-1]), int(parts[-1]), None
    return at, None, None


OFFERED = "it is offered among the alternatives: --choose takes it"
NEVER_RECOMMENDED = "write a rule that recommends it, or remove the value from rules/facts.yaml"


class _Linter:
    def __init__(self, ruleset: Ruleset) -> None:
        self.ruleset = ruleset
        self.findings: list[LintFinding] = []
        # The guide alone leaves much unsaid on purpose.
        self.complete = set(SHIPPED_LAYERS) <= set(ruleset.layers)
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
        at, named = at or (rule.at if rule else ""), rule.id if rule else ""
        of = (named, *map(str, about))
        found = LintFinding(
            id=id_, severity=severity, text=text, rule=named, at=at, hint=hint, about=of
        )
        self.findings.append(found)

    # ----------------------------------------------------------------------- what the proofs show

    def tables(self) -> list[TableProof]:
        proofs = []
        for table_id, table in self.ruleset.tables.items():
            try:
                proof = prove(self.ruleset, table_id)
            except TooManyCases as error:
                own = [rule for rule in self.ruleset.rules[table_id] if self.is_own(rule)]
                at = own[0].at if own else table.at
                text = f"table '{table_id}' cannot be proved: {error}"
                hint = "fewer thresholds and fewer facts to a rule, or rules that say more at once"
                self.add("too-many-cases", "error", text, at=at, hint=hint, about=[table_id])
                continue
            proofs.append(proof)
            for hole in proof.holes:
                self.hole(proof, hole)
            for clash in proof.conflicts:
                self.conflict(proof, clash)
            for clash in proof.contradictions:
                self.contradiction(clash)
            for rule in proof.unreachable:
                text = f"can never fire: {self.why_unreachable(rule)}"
                hint = "correct its `when`, or remove it"
                self.add("unreachable", "error", text, rule=rule, hint=hint)
            for idle in proof.never_wins:
                self.never_wins(proof, idle)
            for idle in proof.redundant:
                if not self.needed_by_guide(proof, idle.rule, "redundant"):
                    by = f"{rule_names(idle.culprits)} already says the same wherever it fires"
                    text, hint = f"changes nothing: {by}", "remove one of them"
                    self.add("redundant", "warning", text, rule=idle.rule, hint=hint)
            if self.complete:
                for outcome in proof.never_concluded:
                    text = f"no situation leads to {table.concludes} = {outcome}"
                    severity, hint = "error", NEVER_RECOMMENDED
                    if outcome in methods_named(self.ruleset.facts[table.concludes]):
                        severity, hint = "note", OFFERED
                    id_, about = "outcome-never-recommended", [table_id, outcome]
                    self.add(id_, severity, text, at=table.at, hint=hint, about=about)
                for name in proof.unused_inputs:
                    text = (
                        f"table '{table_id}' declares '{name}', and none of its rules looks at it"
                    )
                    about, hint = [table_id, name], "remove it from `inputs`"
                    id_ = "input-without-a-rule"
                    self.add(id_, "warning", text, at=table.at, hint=hint, about=about)
        return proofs

    def hole(self, proof: TableProof, hole: Hole) -> None:
        concludes, where = proof.table.concludes, f"where {hole.box.text}"
        text = f"leaves a gap: {where}, nothing is recommended for '{proof.table.id}'"
        if hole.by_policy:
            every = f"every {concludes} is forbidden, whatever the hardware holds"
            text = f"leaves no way out: {where}, {every}"
        blamed = list(filter(self.is_own, hole.forbidding)) or list(hole.forbidding)
        gone = [
            rule
            for rule in self.ruleset.inactive
            if rule.table == proof.table.id
            and rule.id in self.ruleset.disabled
            and rule.kind == "recommend"
        ]
        about = [proof.table.id, hole.by_policy, hole.box.text]
        if blamed:
            hint = f"leave one {concludes} allowed"
            if len(blamed) > 1:
                hint = f"together with {rule_names(blamed[1:])}; {hint}"
            id_ = "no-way-out" if hole.by_policy else "gap"
            self.add(id_, "error", text, rule=blamed[0], hint=hint, about=about)
            return
        if gone:
            at, hint = self.ruleset.disabled_at[gone[0].id], "recommend something in its place"
            text = f"disabling {rule_names(gone)} {text}"
        else:
            at, hint = proof.table.at, "add a rule with `when: {}` of a low tier"
            text = f"table '{proof.table.id}' {text}"
        self.add("gap", "error", text, at=at, hint=hint, about=about)

    def conflict(self, proof: TableProof, clash: Clash) -> None:
        first, second, concludes = clash.first, clash.second, proof.table.concludes
        says = f"{second.then[concludes]} here, {first.then[concludes]} by {first.id}"
        hint = "give one of them another tier, or narrow its `when`"
        hint += f" ({first.id} stands at {first.at})"
        if self.is_own(first) and not self.is_own(second):
            first, second = second, first
        text = f"two rules of tier '{second.tier}' disagree {clash_place(clash)}: {says}"
        self.add("conflict", "error", text, rule=second, hint=hint, about=[first.id])

    def contradiction(self, clash: Clash) -> None:
        first, second, key = clash.first, clash.second, clash.key
        says = f"{value_words(second.then[key])} here, {value_words(first.then[key])} by {first.id}"
        text = f"'{key}' gets two values {clash_place(clash)}: {says}"
        hint, about = f"narrow one of them ({first.id} stands at {first.at})", [first.id, key]
        self.add("contradictory-setting", "error", text, rule=second, hint=hint, about=about)

    def never_wins(self, proof: TableProof, idle: Idle) -> None:
        rule = idle.rule
        if rule.layer == "base" and not rule.when and rule.kind == "recommend":
            return  # the net below a step: it is there for rule sets that lack the rules above it
        what = f"never sets '{idle.key}'" if idle.key else "never wins"
        takes = "takes" if len(idle.culprits) == 1 else "take"
        by, about = f"{rule_names(idle.culprits)} {takes} all its cases", [idle.key]
        if self.needed_by_guide(proof, rule, "never_wins"):
            text = f"{what} here, only under `--rules document`: {by}"
            self.add("only-under-document", "note", text, rule=rule, about=about)
            return
        id_ = "setting-without-effect" if idle.key else "never-wins"
        severity = "warning" if self.is_own(rule) else "error"
        hint = "raise its tier, widen its `when`, or remove it"
        self.add(id_, severity, f"{what}: {by}", rule=rule, hint=hint, about=about)

    def is_own(self, rule: Rule) -> bool:
        return rule.layer in self.ruleset.overlays

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
            always = fact.required or fact.origin == "concluded"
            if always and condition.unknown and not condition.values and not condition.intervals:
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
                severity, text = "note", "is a draft, so it is not used yet"
                if rule.status == "expired":
                    severity, text = "warning", "is expired, so it is not used"
                at = rule.at_key("status")
                self.add(f"{rule.status}-rule", severity, text, rule=rule, at=at)
            if today is not None and rule.review_by and rule.review_by < today.isoformat():
                text, at = f"was to be reviewed by {rule.review_by}", rule.at_key("review_by")
                hint = "check its sources, then set a new date"
                self.add("review-due", "warning", text, rule=rule, at=at, hint=hint)
            if len(rule.because) > LONGEST_BECAUSE:
                text = f"its reason has {len(rule.because)} characters"
                at, hint = rule.at_key("because"), f"one sentence of at most {LONGEST_BECAUSE}"
                self.add("long-reason", "warning", text, rule=rule, at=at, hint=hint)
            if rule.kind == "set" and setting_fault is not None:
                self.settings(rule, setting_fault, keys)
            for i, example in enumerate(rule.examples):
                examples += 1
                self.example(rule, i, example)
        for rule_id in self.ruleset.disabled:
            gone = next((rule for rule in self.ruleset.inactive if rule.id == rule_id), None)
            if gone is not None and gone.layer == "base" and gone.kind == "forbid":
                may = "what it rules out may then be recommended, and will not run"
                text, at = f"switches off {rule_id}: {may}", self.ruleset.disabled_at[rule_id]
                self.add("fit-check-disabled", "warning", text, at=at, about=[rule_id])
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
                text = f"sets '{key}', which no stage has"
                hint = did_you_mean(key, keys) or "`advise rules` shows the keys that are set"
                self.add("unknown-setting", "error", text, rule=rule, hint=hint, about=[key])
                continue
            if allowed is not None:
                text, hint = f"sets '{key}' wrongly: {value_words(value)}", f"allowed: {allowed}"
                self.add("wrong-setting", "error", text, rule=rule, hint=hint, about=[key])

    def example(self, rule: Rule, number: int, example: Mapping[str, Any]) -> None:
        at = "" if rule.spot is None else (rule.spot / "examples" / number).at()
        table = self.ruleset.tables[rule.table]
        beside = [name for name in example["given"] if name not in {*table.inputs, *table.seen}]
        if beside:
            text = f"its example gives '{beside[0]}', which table '{rule.table}' does not look at"
            id_, hint = "example-beside-the-table", f"its inputs: {', '.join(table.inputs)}"
            self.add(id_, "warning", text, rule=rule, at=at, hint=hint, about=[number])
        fired = fires(self.ruleset, rule, example["given"])
        if fired == example["fires"]:
            return
        failing = rule.first_failing(example["given"])
        if fired or failing is None:
            text = "its example should not fire, but every condition holds"
        else:
            given = example["given"].get(failing.fact)
            said = "not given" if given is None else value_words(given)
            needs = f"but needs '{failing.text}', and {failing.fact} is {said}"
            text = f"its example should fire, {needs}"
        hint = "one of the two is wrong: the rule or its example"
        self.add("example-fails", "error", text, rule=rule, at=at, hint=hint, about=[number])

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
                id_, text = "question-without-a-rule", f"no table looks at '{fact.id}'"
                hint = "add it to a table's `inputs`, or do not ask"
                self.add(id_, severity, text, at=at, hint=hint, about=[fact.id])
                continue
            if fact.type == "choice":
                for group in indistinguishable_values(self.ruleset, fact.id):
                    more = f" or {len(group) - 2} more" if len(group) > 2 else ""
                    text = f"no rule tells {' from '.join(map(str, group[:2]))}{more}"
                    hint = f"values of '{fact.id}' that count alike: {', '.join(map(str, group))}"
                    about = [fact.id, *sorted(map(str, group))]
                    self.add("values-alike", "warning", text, at=at, hint=hint, about=about)


def clash_place(clash: Clash) -> str:
    return f"where {clash.box.text}" if clash.box else "where both fire"


def rule_names(rules: Iterable[Rule]) -> str:
    """Rule ids in a row: 'a', 'a and b', 'a, b and c'."""
    return joined(rule.id for rule in rules) or "nothing"


READ, REVIEW_BY = ("date", "checked", "compiled"), "review_by"  # keys of days
REFRESH_FILE = Keys(
    help="How old the facts of the catalogues may get",
    keys={
        "version": VERSION,
        "catalogues": MapOf(
            of=Keys(
                keys={
                    "files": ListOf(of=Text(), least=1, help="patterns below rules/"),
                    "days": Number(whole=True, min=1),
                    "how": Text(help="what to do, as a hint"),
                    "but_not": ListOf(
                        of=Choice(values=SOURCE_KINDS), help="kinds of source that do not age"
                    ),
                },
                required=("files", "days", "how"),
            )
        ),
    },
    required=("version", "catalogues"),
)


def past_their_date(
    catalogues: Mapping[str, Mapping[str, Any]],
    files: Iterable[tuple[str, Document]],
    today: datetime.date,
) -> Iterator[LintFinding]:
    """One warning for each file that holds dates too old, and one for each review that is due.

    `catalogues` is what rules/refresh.yaml says; each of `files` has its path below rules/.
    """
    for path, document in files:
        for name, catalogue in catalogues.items():
            if any(fnmatchcase(path, pattern) for pattern in catalogue["files"]):
                yield from _of_file(name, catalogue, document, today)


def _of_file(
    name: str, catalogue: Mapping[str, Any], document: Document, today: datetime.date
) -> Iterator[LintFinding]:
    def warning(id_: str, text: str, where: Path_) -> LintFinding:
        at, about = document.at(where), (name, document.name)
        return LintFinding(
            id=id_, severity="warning", text=text, at=at, hint=catalogue["how"], about=about
        )

    found = list(_dates(document.data, catalogue.get("but_not", ())))
    for where, day in found:
        if where[-1] == REVIEW_BY and day < today.isoformat():
            yield warning("review-due", f"was to be reviewed by {day}", where)
    read = sorted((day, where) for where, day in found if where[-1] != REVIEW_BY)
    oldest_allowed = (today - datetime.timedelta(days=catalogue["days"])).isoformat()
    old = [(day, where) for day, where in read if day < oldest_allowed]
    if old:
        day, where = old[0]
        holds = "the date is" if len(read) == 1 else f"{len(old)} of {len(read)} dates are"
        text = f"{holds} more than {catalogue['days']} days old, since {day} at the earliest"
        yield warning("past-its-date", text, where)


def _dates(data: Any, but_not: Collection[str], path: Path_ = ()) -> Iterator[tuple[Path_, str]]:
    if isinstance(data, list):
        for i, part in enumerate(data):
            yield from _dates(part, but_not, (*path, i))
    if not isinstance(data, dict) or str(data.get("kind")) in but_not:
        return
    for key, part in data.items():
        if key == "dates" and isinstance(part, dict):
            yield from (((*path, key, name), str(day)) for name, day in part.items())
        elif key in (*READ, REVIEW_BY) and isinstance(part, str):
            yield (*path, key), part
        else:
            yield from _dates(part, but_not, (*path, key))
