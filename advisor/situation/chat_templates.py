"""Whether the chat template of a model holds the data: its own if its files are at hand, else
what is known of its family (rules/data/templates.yaml).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from typing import Annotated

import advisor.data
from advisor.ground.annotated import build, shape_of
from advisor.ground.errors import InputError, unknown_name
from advisor.ground.resources import rules_dir
from advisor.ground.shape import Choice, Keys, ListOf, Text
from advisor.ground.types import DataFinding, DataProfile
from advisor.ground.yaml_files import read_shipped, shipped_sources


@dataclass(frozen=True, kw_only=True, slots=True)
class TemplateFamily:
    """What the chat template of a family of models writes; None: not known."""

    names: Annotated[tuple[str, ...], ListOf(of=Text(), least=1)]
    source: Annotated[str, "an id of rules/sources.yaml"]
    copy: Annotated[str | None, "the copy in the source that was tried"] = None
    system: Annotated[bool | None, "a system turn; false: the trainers move its text"] = None
    tools: Annotated[bool | None, "the tools that a row declares, and calls of them"] = None
    thoughts: Annotated[bool | None, "thoughts in the last answer: <think> ... </think>"] = None
    reasoning: Annotated[bool | None, "thoughts beside it: reasoning_content"] = None


TEMPLATES_FILE = Keys(
    help="What the chat templates of model families write",
    keys={"version": Choice(values=(1,)), "families": ListOf(of=shape_of(TemplateFamily), least=1)},
    required=("version", "families"),
)
# What data need of a template -> how it is called, and what happens without it.
NEEDS = {
    "tools": ("tool calls", "they cannot be trained on"),
    "thoughts": ("thoughts", "the model would learn to answer without them"),
    "reasoning": (
        "thoughts beside an answer (reasoning_content)",
        "the model would learn to answer without them; put them into the answers as"
        " <think> ... </think>",
    ),
}


NO_CALLS = "template-drops-calls"
LEFT_OUT_SHARE = 0.05  # of the rows: a run that would leave out more stops


@cache
def families() -> tuple[TemplateFamily, ...]:
    """Every family, in order. Raises InputError with the faults of the file."""
    document = read_shipped(rules_dir() / "data" / "templates.yaml", shape=TEMPLATES_FILE)
    known = list(shipped_sources())
    found = tuple(build(TemplateFamily, entry) for entry in document.data["families"])
    faults = [
        unknown_name("source", one.source, known, at=document.at(("families", number, "source")))
        for number, one in enumerate(found)
        if one.source not in known
    ]
    if faults:
        raise InputError(faults=faults)
    return found


def family_of(model: str) -> TemplateFamily | None:
    """What is known of the chat template of a model by its name."""
    name = model.rstrip("/").rsplit("/", 1)[-1].lower()
    return next((one for one in families() if any(fnmatch(name, at) for at in one.names)), None)


def needs_of(profiles: Sequence[DataProfile]) -> dict[str, tuple[int, int]]:
    """What the rows need of a template -> (how many rows do, of how many)."""
    measures = [profile.measures for profile in profiles]
    rows = sum(int(profile.measures.get("rows_used", profile.rows)) for profile in profiles)
    counts = {
        "tools": sum(_turns(profile).get("with_tool_calls", 0) for profile in profiles),
        "thoughts": sum(found.get("rows_with_thoughts", 0) for found in measures),
        "reasoning": sum(found.get("rows_with_reasoning", 0) for found in measures),
    }
    return {need: (count, rows) for need, count in counts.items() if count}


def _turns(profile: DataProfile) -> Mapping[str, int]:
    turns: Mapping[str, int] = profile.measures.get("turns", {})
    return turns


def lacks(model: str, needs: Collection[str]) -> list[str]:
    """What of these needs the template of a model is known not to write."""
    family = family_of(model) if needs else None
    return [] if family is None else [need for need in needs if getattr(family, need) is False]


def template_fit(
    model: str, profiles: Sequence[DataProfile], mapping: Mapping[str, str] | None
) -> tuple[list[str], str]:
    """(sentences on what the model's chat template does not hold of the data, what a plan lacks
    if the run would stop for it).

    Args:
        model: A folder, or a name of the hub.
        mapping: Role -> column, as stated.
    """
    needs = needs_of(profiles)
    tried = _try_template(model, profiles, mapping)
    if tried is not None:
        lost = any(finding.id == NO_CALLS for finding in tried)
        warnings = [finding.text for finding in tried]
    else:
        lacking = lacks(model, needs)
        lost = "tools" in lacking
        warnings = [
            f"the chat template of {model}, as that of its family, writes no {NEEDS[need][0]},"
            f" which {needs[need][0]:,} of {needs[need][1]:,} rows hold: {NEEDS[need][1]}"
            for need in lacking
        ]
    count, rows = needs.get("tools", (0, 1))
    if not lost or count <= LEFT_OUT_SHARE * rows:
        return warnings, ""
    return warnings, (
        f"a model whose chat template writes tool calls ({count:,} of {rows:,} rows hold them, and"
        f" that of {model} writes none): name another with --model, or --force"
    )


def _try_template(
    model: str, profiles: Sequence[DataProfile], mapping: Mapping[str, str] | None
) -> list[DataFinding] | None:
    """What trying the template found; None if it is not at hand."""
    own = advisor.data.has_template(model)
    if own is None:
        return None
    found: list[DataFinding] = []
    for profile in profiles:
        # Rows of one request and one answer fit every template: only others are tried.
        if own and not _is_special(profile):
            continue
        examples = advisor.data.read_examples(profile.path, mapping=mapping)
        tried = advisor.data.template_at_hand(model, examples)
        found += [finding for finding in tried if finding.severity != "note"]
    return found


def _is_special(profile: DataProfile) -> bool:
    turns = ("multi_turn", "with_system_text", "with_tools", "with_tool_calls")
    return bool(
        profile.measures.get("rows_with_thoughts")
        or any(_turns(profile).get(name) for name in turns)
    )
