"""Why, rule by rule: what each says, which facts it saw, and where those came from."""

from __future__ import annotations

from dataclasses import replace

from advisor.advice.decide import Decision, decide
from advisor.advice.types import Advice, KnownFact, Reason
from advisor.advice.why import certainty_lines, facts_seen_by, reason_of
from advisor.estimate.types import Estimate
from advisor.ruleset.model import Rule, Ruleset
from advisor.wizard.prompts import Option, Ui
from advisor.wizard.walk import BACK

CONFIDENCE = {
    "document": "the guide itself", "study": "a measured study",
    "vendor-doc": "a vendor's documentation",
    "practice": "common practice", "judgement": "our judgement",
}  # fmt: skip
CONCLUDED = "concluded by "


class Trail:
    """The reasons of a recommendation, and the way back to what was answered or estimated."""

    def __init__(self, advice: Advice, ruleset: Ruleset) -> None:
        self.advice, self.ruleset = advice, ruleset
        concluded = {table.concludes for table in ruleset.tables.values()}
        self.decision: Decision = decide(
            ruleset, {name: value for name, value in advice.facts.items() if name not in concluded}
        )
        self.sizes = _sizes(advice)
        self.told: set[str] = set()

    def walk(self, ui: Ui) -> None:
        """Print every reason, then follow what they rest on for as long as the person wants to."""
        ui.say("")
        ui.say(f"Why {self.advice.recommendation.composition}", tone="strong")
        behind = self._tell(list(self.decision.rules), ui)
        for line in certainty_lines(self.advice.certainty):
            ui.say(line, tone="quiet")
        while behind:
            options = [
                Option(value=rule_id, label=words[0].upper() + words[1:], help="why?")
                for rule_id, words in behind.items()
            ]
            chosen = ui.choose(
                "Where does that come from?", [*options, Option(value=BACK, label="Back")]
            )
            if chosen is BACK:
                return
            del behind[chosen]
            rule = self.ruleset.rule(chosen)
            behind = {**(self._tell([rule], ui) if rule is not None else {}), **behind}

    def _tell(self, rules: list[Rule], ui: Ui) -> dict[str, str]:
        """Print some rules; returns the rules behind what they saw: id -> what each concluded."""
        behind: dict[str, str] = {}
        self.told |= {rule.id for rule in rules}
        for rule in rules:
            reason = replace(
                reason_of(rule, self.ruleset),
                facts=facts_seen_by(
                    rule, self.decision, self.advice.situation, self.ruleset, self.sizes
                ),
            )
            ui.say("")
            ui.say(_sentence(reason.text), lead="- ")
            for line in self.lines(rule, reason):
                ui.say(line, tone="quiet", lead="    ")
            for known in reason.facts:
                rule_id = known.origin.removeprefix(CONCLUDED)
                if known.origin.startswith(CONCLUDED) and rule_id not in self.told:
                    behind[rule_id] = known.text
        ui.say("")
        return behind

    def lines(self, rule: Rule, reason: Reason) -> list[str]:
        """What stands below a reason: its facts, its other side, its rule and source."""
        lines = [f"because {known.text} ({_from(known)})" for known in reason.facts]
        if not reason.facts:
            lines = (
                ["it holds where nothing else is known"]
                if rule.when
                else ["it holds everywhere, unless another rule knows better"]
            )
        if rule.unless_note:
            lines.append(f"but: {rule.unless_note}")
        origin = [f"rule {rule.id}", f"rests on {CONFIDENCE.get(rule.confidence, rule.confidence)}"]
        return [
            *lines,
            " · ".join([*origin, *([f"source: {reason.source}"] if reason.source else [])]),
        ]


def _sizes(advice: Advice) -> dict[str, Estimate]:
    """scheme -> its estimate on the chain of the recommendation, the numbers of the reasons."""
    ours = advice.recommendation.composition
    return {
        str(one.composition.scheme): one.estimate
        for one in (*reversed(advice.alternatives), advice.recommendation)
        if one.composition.chain == ours.chain and one.composition.per_task == ours.per_task
    }


def _from(known: KnownFact) -> str:
    return {
        "answered": "your answer",
        "flag": "from a flag",
        "answers file": "from the answers file",
        "probed": "found on this machine",
    }.get(known.origin, known.origin)


def _sentence(text: str) -> str:
    return text if text.endswith((".", ")")) else f"{text}."
