"""Models to suggest, to start from or to fall back on; and whether the chat template of a model
holds the data: its own if its files are at hand, else what is known of its family.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatch
from functools import cache
from typing import Annotated, Any

from msgspec import Struct

import advisor.data
from advisor.ground.annotated import build, shape_of
from advisor.ground.errors import refuse, unknown_name
from advisor.ground.resources import rules_dir
from advisor.ground.shape import VERSION, Keys, ListOf, Text
from advisor.ground.types import DataFinding, DataProfile, ModelShape
from advisor.ground.units import format_count
from advisor.ground.yaml_files import read_shipped, shipped_sources
from advisor.situation.catalogue import suggested_models
from advisor.situation.models import model_shape
from advisor.situation.types import ModelSuggestion


class TemplateFamily(Struct, frozen=True, kw_only=True):
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
    keys={"version": VERSION, "families": ListOf(of=shape_of(TemplateFamily), least=1)},
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
def template_families() -> tuple[TemplateFamily, ...]:
    """Every family, in order. Raises InputError with the faults of the file."""
    document = read_shipped(rules_dir() / "data" / "templates.yaml", shape=TEMPLATES_FILE)
    known = list(shipped_sources())
    found = tuple(build(TemplateFamily, entry) for entry in document.data["families"])
    refuse(
        unknown_name("source", one.source, known, at=document.at(("families", number, "source")))
        for number, one in enumerate(found)
        if one.source not in known
    )
    return found


def family_of(model: str) -> TemplateFamily | None:
    """What is known of the chat template of a model by its name."""
    name = model.rstrip("/").rsplit("/", 1)[-1].lower()
    return next(
        (one for one in template_families() if any(fnmatch(name, at) for at in one.names)), None
    )


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
    return dict(profile.measures.get("turns", {}))


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


ENGLISH_SHARE = 0.8  # of the rows whose language can be told


def suggest_encoder(profiles: Sequence[DataProfile]) -> ModelSuggestion:
    """The encoder of the table to start from: of many languages if the data are not English, or
    not all of them.
    """
    rows: Sequence[Mapping[str, Any]] = suggested_models()["encoders"]
    english = in_english(profiles)
    many = [row for row in rows if "multilingual" in row.get("languages", ())]
    first = many[0] if english is False and many else rows[0]
    size = format_count(first["params_b"] * 1e9)
    why = f"{size} parameters, licence {first['license']}: {first['why']}"
    if english is False:
        why += " (your texts are not all English)"
    elif english is None and many and first not in many:
        why += f" (for texts in other languages: {many[0]['model']})"
    return _suggestion(first, why)


def in_english(profiles: Sequence[DataProfile]) -> bool | None:
    """Whether the data are English, as far as scripts and common words tell; None without data or
    with texts too short to tell.
    """
    shares: list[bool] = []
    for profile in profiles:
        scripts = {
            row["script"]: row["rows"]
            for row in profile.measures.get("scripts", ())
            if row["script"] != "none"
        }
        if sum(scripts.values()) > scripts.get("Latin", 0) / ENGLISH_SHARE:
            return False
        if (words := profile.measures.get("english")) is not None:
            shares.append(words["rows"] >= ENGLISH_SHARE * words["of"])
    return all(shares) if shares else None


def suggest_model(
    task: str, max_params_b: float | None, *, needs: Collection[str] = (), untuned: bool = False
) -> ModelSuggestion:
    """The largest model of the table that fits and suits the task; the 8B one if nothing limits
    the size, the smallest if none fits.

    Args:
        needs: What its chat template has to write (NEEDS).
        untuned: Whether it has to be a plain text model, that follows no instructions yet.
    """
    suited = _rows(task, untuned=untuned)
    if needs:
        suited = [row for row in suited if not lacks(row["model"], needs)] or suited
    limit = max_params_b if max_params_b is not None else 8.5
    fitting = [row for row in suited if row["params_b"] <= limit]
    named = [row for row in fitting if row["tasks"] != "any"]
    chosen = max(named or fitting or suited[:1], key=lambda row: row["params_b"])
    size = format_count(chosen["params_b"] * 1e9)
    why = f"{size} parameters, licence {chosen['license']}: {chosen['why']}"
    if not fitting:
        why += f" (the smallest of the table, and still larger than the {limit:.3g}B that fit)"
    elif max_params_b is None:
        why += " (memory unknown: a common size was taken)"
    also = [f"{other['model']}, {other['why']}" for other in chosen.get("also", ())]
    why += f"; newer ones of about this size: {'; '.join(also)}" if also else ""
    return _suggestion(chosen, why)


def _rows(task: str, *, untuned: bool) -> list[Mapping[str, Any]]:
    """The table's models that suit the task, or the plain text models behind them."""
    rows = [
        row for row in suggested_models()["models"] if row["tasks"] == "any" or task in row["tasks"]
    ]
    if not untuned:
        return rows
    why = "follows no instructions yet; {} was made from it"
    return [
        {**row, "model": row["base"], "why": why.format(row["model"]), "also": ()}
        for row in rows
        if "base" in row
    ]


def _suggestion(row: Mapping[str, Any], because: str) -> ModelSuggestion:
    source = f"{row['source']}, {suggested_models()['checked']}"
    return ModelSuggestion(model=row["model"], because=because, source=source)


def smaller_models(
    task: str, params: int, *, needs: Collection[str] = (), untuned: bool = False
) -> list[tuple[ModelShape, ModelSuggestion]]:
    """The table's models that are smaller than `params` and suit the task, largest first, with
    their shapes.

    Args:
        needs: What their chat templates have to write (NEEDS).
        untuned: Whether they have to be plain text models, that follow no instructions yet.
    """
    found = []
    for row in sorted(_rows(task, untuned=untuned), key=lambda row: -row["params_b"]):
        if row["params_b"] * 1e9 < params and not lacks(row["model"], needs):
            shape, _ = model_shape(row["model"])
            if shape is not None:
                found.append((shape, _suggestion(row, row["why"])))
    return found
