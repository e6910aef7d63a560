"""Replies, values and answers as they are shown back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advisor.ground.types import Answers
from advisor.ruleset.facts import Fact
from advisor.wizard.walk import DONT_KNOW, GIVEN_BEFORE, Reply, Several, answer_of


def reply_words(fact: Fact, reply: Reply) -> str:
    """A reply as it is shown back."""
    if reply is DONT_KNOW:
        return f"I don't know ({fact.unknown})" if fact.unknown else "I don't know"
    if isinstance(reply, Several) and fact.id != "gpu":
        own = reply.values.get(fact.id)
        return reply_words(fact, DONT_KNOW if own is None else own)
    if isinstance(reply, Several):
        parts = [
            str(reply.values[name])
            for name in ("gpus", "gpu")
            if reply.values.get(name) is not None
        ]
        memory = reply.values.get("gpu_memory_gib")
        named = {"none": "no GPU", "unknown": f"I don't know ({fact.unknown})"}.get(
            " × ".join(parts), " × ".join(parts)
        )
        return (named or "this machine") + (f", {memory:g} GiB" if memory is not None else "")
    return words_of(fact, reply)


def words_of(fact: Fact, value: Any) -> str:
    """A value as the person chose it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str) and value in fact.values:
        return fact.values[value].label
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {part}" for name, part in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


def given_words(facts: Mapping[str, Fact], answers: Answers) -> list[str]:
    """What files and flags said already, one line each."""
    return [
        f"{fact.ask or fact.id} {words_of(fact, answer_of(answers, fact))} (from a"
        f" {answers.known[fact.id].origin})"
        for fact in facts.values()
        if fact.id in answers.known and answers.known[fact.id].origin in GIVEN_BEFORE
    ]
