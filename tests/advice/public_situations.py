"""How often the advice agrees with experts on situations described in public.

`python -m tests.advice.public_situations` prints the table; with the word `misses` also what was missed, with `recent` of the
second set. The situations and the grammar of the answers are in `tests/data_cases/situations.yaml`.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from advisor import Answers, advise_document
from advisor.advice.advise import open_case, recommended_candidate
from advisor.commands.session import load_rule_set
from advisor.situation.build import situation_of

CASES = Path(__file__).parents[1] / "data_cases"
SITUATIONS, RECENT = CASES / "situations.yaml", CASES / "situations_2026.yaml"
PER_TASK = "@per_task"
CHAINS_WITH_OPTIONAL_SFT = ("dpo", "kto", "grpo")


class Outcome(NamedTuple):
    """One situation, what was recommended, and how that compares with the experts."""

    situation: Mapping[str, Any]
    composition: str
    verdict: str
    evidence: str
    strength: str


def read_situations(path: Path = SITUATIONS) -> list[dict[str, Any]]:
    """All situations of the set."""
    return list(yaml.safe_load(path.read_text(encoding="utf-8"))["situations"])


def answers_of(situation: Mapping[str, Any]) -> dict[str, Any]:
    """The answers that a person in this situation would give."""
    stated = {name: value for name, value in situation["fields"].items() if value is not None}
    return {"gpu": "unknown", **stated, "signals": situation["signals"]}


def _same_remedy(wanted: str, got: str) -> bool:
    if wanted.endswith(PER_TASK) != got.endswith(PER_TASK):
        return False
    wanted, got = wanted.removesuffix(PER_TASK), got.removesuffix(PER_TASK)
    if "+" not in wanted or "+" not in got:
        return wanted == got
    wanted_chain, wanted_scheme = wanted.rsplit("+", 1)
    chain, scheme = got.rsplit("+", 1)
    return wanted_chain == chain and wanted_scheme in ("*", scheme)


def same(wanted: str, got: str) -> bool:
    """Whether a composition is the wanted one; `*` stands for any scheme, the order of parts is free."""
    wanted_parts = {part.strip() for part in wanted.split("&")}
    parts = {part.strip() for part in got.split("&")}
    return len(wanted_parts) == len(parts) and all(
        any(_same_remedy(part, other) for other in parts) for part in wanted_parts
    )


def verdict_of(situation: Mapping[str, Any], got: str) -> str:
    """`hit`, `hard miss` (an expert ruled it out) or `miss`."""
    accepted = situation["expert_answer"]["accepted"]
    if any(same(wanted, got) for wanted in accepted):
        return "hit"
    if any(same(ruled_out["method"], got) for ruled_out in situation["expert_answer"]["rejected"]):
        return "hard miss"
    other_form = got.removeprefix("sft>") if got.startswith("sft>") else f"sft>{got}"
    if any(objective in got for objective in CHAINS_WITH_OPTIONAL_SFT):
        return "hit" if any(same(wanted, other_form) for wanted in accepted) else "miss"
    return "miss"


def examine(path: Path = SITUATIONS) -> list[Outcome]:
    """Ask for the whole advice in every situation, in one process."""
    outcomes = []
    for situation in read_situations(path):
        found = advise_document(answers_of(situation))["recommendation"]
        composition, evidence, strength = (
            found[key] for key in ("composition", "evidence", "strength")
        )
        verdict = verdict_of(situation, composition)
        outcomes.append(Outcome(situation, composition, verdict, evidence, strength))
    return outcomes


def recommended(answers: Mapping[str, Any]) -> str:
    """What is recommended, without alternatives and what would change it: much faster."""
    ruleset, _guide = load_rule_set(())
    case = open_case(situation_of(Answers.from_dict(answers)), ruleset)
    return str(recommended_candidate(case, case.decision).composition)


def compositions() -> dict[str, str]:
    """Id -> what is recommended there."""
    return {situation["id"]: recommended(answers_of(situation)) for situation in read_situations()}


def groups(outcomes: list[Outcome]) -> Iterator[tuple[str, list[Outcome]]]:
    """Rows of the table: all, both halves, and groups by what experts and the advice state."""
    yield "all", outcomes
    # Even ids are the half that may be looked at while mending rules.
    for half, odd in (("even ids", 0), ("odd ids", 1)):
        yield half, [one for one in outcomes if int(one.situation["id"][1:]) % 2 == odd]
    for value in ("high", "medium", "low"):
        members = [one for one in outcomes if one.situation["confidence"] == value]
        yield f"expert's confidence {value}", members
    for kind in sorted({one.situation["evidence_kind"] for one in outcomes}):
        members = [one for one in outcomes if one.situation["evidence_kind"] == kind]
        yield kind.replace("_", " "), members
    for kind in sorted({one.situation.get("class", "") for one in outcomes} - {""}):
        members = [one for one in outcomes if one.situation.get("class") == kind]
        yield kind.replace("_", " "), members
    for name in ("evidence", "strength"):
        for value in sorted({getattr(outcome, name) for outcome in outcomes}):
            yield f"{name} {value}", [o for o in outcomes if getattr(o, name) == value]


def table(outcomes: list[Outcome]) -> str:
    """The table as Markdown."""
    lines = ["| situations | number | agree | ruled out |", "| --- | --- | --- | --- |"]
    for name, members in groups(outcomes):
        said = [outcome.verdict for outcome in members]
        hits, ruled_out = said.count("hit") / len(said), said.count("hard miss")
        lines.append(f"| {name} | {len(said)} | {hits:.0%} | {ruled_out} |")
    return "\n".join(lines)


def misses(outcomes: list[Outcome]) -> str:
    """What was recommended instead, one situation a paragraph."""
    return "\n\n".join(
        f"{o.situation['id']} {o.verdict}, expert's confidence {o.situation['confidence']}\n"
        f"    recommended  {o.composition} ({o.evidence}, {o.strength})\n"
        f"    accepted     {', '.join(o.situation['expert_answer']['accepted'])}\n"
        f"    {o.situation['summary']}\n    {o.situation['source']['url']}"
        for o in outcomes
        if o.verdict != "hit"
    )


if __name__ == "__main__":
    examined = examine(RECENT if "recent" in sys.argv else SITUATIONS)
    if "misses" in sys.argv:
        print(misses(examined), end="\n\n")
    print(table(examined))
