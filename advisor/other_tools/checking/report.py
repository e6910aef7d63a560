"""All that is said of one configuration: what it does, whether it fits, what is wrong with it and
what would mend it. The values behind the page and the JSON of `advise check`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from advisor.ground.types import DataProfile, Hardware, ModelShape
from advisor.methods.stage import stage_keys
from advisor.other_tools.checking.carrying import CarriedPlan
from advisor.other_tools.checking.findings import Found
from advisor.other_tools.checking.fitting import Fitting
from advisor.other_tools.tables.mapping import Reading, write
from advisor.other_tools.tables.ours import flat_stage, usual_values
from advisor.other_tools.tables.tool import Tool
from advisor.plan.keys import key_specs
from advisor.plan.model import Plan, Stage

Verdict = Literal["fits", "tight", "may_fit", "too_big", "unknown", "refused"]
RATE = "learning_rate"
MENDED = ("error", "warning")  # the severities whose changes stand in the diff


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What is said of one configuration."""

    path: str
    is_script: bool  # a command line in it was read
    tool: Tool
    release: str
    command: str
    reading: Reading
    carried: CarriedPlan | None  # None: not even a plan's first keys
    hardware: Hardware
    shape: ModelShape | None
    profile: DataProfile | None
    data: tuple[str, ...]  # what it trains on, in words
    fitting: Fitting | None
    findings: tuple[Found, ...]  # worst first
    notes: tuple[str, ...]  # what was assumed
    fit_changes: Mapping[str, Any]  # key of theirs -> what makes it fit
    why_no_estimate: tuple[str, ...]
    changes: Mapping[str, Any]  # key of theirs -> the value that mends it; None: leave it out
    diff: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """The answer: `refused` where the tool itself does not take the file."""
        if any(one.refused for one in self.findings):
            return "refused"
        return self.fits

    @property
    def fits(self) -> Verdict:
        """The answer to the memory alone; what may fit is too big once the estimate is above."""
        if self.fitting is None:
            return "unknown"
        found, document = self.fitting.fits, self.fitting.document
        if found == "may_fit" and document["need_gib"] > document["limit_gib"]:
            return "too_big"
        return cast(Verdict, found)

    @property
    def exit_code(self) -> int:
        """0 fits or is not known, 3 does not fit, 2 the tool refuses the file."""
        return {"refused": 2, "too_big": 3}.get(self.verdict, 0)


def their_changes(
    tool: Tool,
    plan: Plan,
    values: Mapping[str, Any],
    *,
    known: Mapping[str, Any],
) -> dict[str, Any]:
    """Changes of a plan's keys in the words of the tool: what would be written otherwise.

    Args:
        tool: Whose configuration it is.
        plan: As the configuration stands.
        values: Key of a stage -> its new value.
        known: Their keys -> the value that holds now, given or by default.
    """
    stage = plan.stages[0]
    changed = _changed(stage, values)
    before = _written(tool, plan, stage, known)
    after = _written(tool, plan, changed, known)
    return {
        key: value
        for key, value in after.items()
        if before.get(key) != value and known.get(key) != value
    }


def _changed(stage: Stage, values: Mapping[str, Any]) -> Stage:
    """The stage with other values of its own keys and those of its methods."""
    own = {key: value for key, value in values.items() if key in stage_keys()}
    more = {key: value for key, value in values.items() if key not in own}
    rate = own.get(RATE, stage.learning_rate)
    changed = replace(stage, **{**own, RATE: rate}, options={**stage.options, **more})
    if rate is not None:
        return changed
    usual = key_specs().default(RATE, objective=changed.objective, update=changed.update)
    return replace(changed, learning_rate=usual or stage.learning_rate)


def _written(tool: Tool, plan: Plan, stage: Stage, known: Mapping[str, Any]) -> Mapping[str, Any]:
    usual = usual_values(stage.objective, stage.update)
    return write(tool, flat_stage(plan, stage), known=known, usual=usual).values


def changes_of(findings: Sequence[Found], fit: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What mends the findings that are more than a note, and what makes it fit, which wins."""
    for one in findings:
        if one.severity in MENDED and one.instead:
            yield from ((key, value) for key, value in one.instead.items())
    yield from fit.items()
