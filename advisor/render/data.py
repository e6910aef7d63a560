"""A data profile as one JSON document, and the words for its kinds and formats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advisor.ground.terminal import shown
from advisor.ground.types import DataFinding, DataProfile, TokenStats
from advisor.ruleset.facts import load_facts
from advisor.ruleset.phrases import value_words

SCHEMA_VERSION = 1
FORMATS = {
    "messages": "messages (role / content turns)",
    "sharegpt": "ShareGPT (from / value turns)",
    "tool_calls": "conversations with tool calls",
    "alpaca": "Alpaca (instruction / input / output)",
    "prompt_completion": "prompt and completion",
    "question_answer": "question and answer columns",
    "summary": "texts and their summaries",
    "transcript": "dialogues written as one text",
    "classification": "texts with a label",
    "text": "text",
    "preference": "chosen and rejected",
    "unpaired_feedback": "answers with a verdict",
    "prompts_with_verifier": "requests with the right answer to check against",
    "requests": "as --map says",
}
REQUESTS = "requests without answers"


def what_of(profile: DataProfile) -> str:
    """What the rows hold, in words."""
    return REQUESTS if profile.format == "requests" else kind_words(profile.kind)


def kind_words(kind: str) -> str:
    """'requests with the right answer'."""
    return value_words(load_facts()["data_kind"], kind)


def profile_json(profile: DataProfile) -> dict[str, Any]:
    """The profile as one JSON document; lengths are in tokens a row."""
    names = ("path", "kind", "format", "mapping", "rows")
    return {
        "schema_version": SCHEMA_VERSION,
        **{name: getattr(profile, name) for name in names},
        "mapping": dict(profile.mapping),
        "tokens": None if profile.tokens is None else _tokens_json(profile.tokens),
        "objectives": list(profile.objectives),
        "findings": [_finding_json(finding) for finding in profile.findings],
        "sample": None if profile.sample is None else dict(profile.sample),
        "digest": profile.digest or None,
    }


def check_json(profile: DataProfile, advice: Mapping[str, Any]) -> dict[str, Any]:
    """What `advise check --json` prints: the profile, all measures, and what follows."""
    return {
        **profile_json(profile),
        "confidence": profile.confidence,
        "why": profile.why,
        "other_ways": list(profile.other_ways),
        "measures": dict(profile.measures),
        "amounts": advice["amounts"],
        "suggested": advice["suggested"],
    }


def _tokens_json(tokens: TokenStats) -> dict[str, Any]:
    names = (
        "total", "mean", "p50", "p90", "p95", "p99", "longest", "counted_by", "sampled_rows",
    )  # fmt: skip
    return {
        **{name: getattr(tokens, name) for name in names},
        "histogram": [{"up_to_tokens": edge, "rows": rows} for edge, rows in tokens.histogram],
    }


def _finding_json(finding: DataFinding) -> dict[str, Any]:
    names = ("id", "severity", "text", "count")
    return {
        **{name: getattr(finding, name) for name in names},
        "rows": list(finding.rows),
        "blocks": list(finding.blocks),
    }


def visible(text: str) -> str:
    """Text of a file made safe for a terminal: line breaks as ⏎, control characters escaped."""
    return shown(text.replace("\r\n", "\n").replace("\n", " ⏎ ").replace("\t", " "))
