"""A Modelfile: the template, the tokens that end an answer, and nothing that is not known.

How Ollama reads one was learned from its source (parser.go, version of August 2026): a value in
three quotes ends at the first three quotes before a line's end; characters that are neither
printable nor a space, a tab or a newline are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from advisor.data.chat_text import json_object, special_texts
from advisor.data.examples import Skipped, read_examples
from advisor.extras.gguf.go import QUOTES, Shape, can_hold
from advisor.ground.errors import AdviseError, InputError
from advisor.ground.files import PLAN_FILE
from advisor.plan.entries import entries
from advisor.plan.read import read_plan, resolve_path
from advisor.plan.record import StageRecord

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
OLLAMAS_CONTEXT = 2048  # tokens, where a Modelfile names no number (Ollama's documentation)


def modelfile_text(
    *,
    model: str,
    template: str,
    stops: Mapping[str, str],
    parameters: Sequence[tuple[str, str, str]] = (),
    system: str | None = None,
    about: str = "",
) -> str:
    """A Modelfile: stops are text -> why, parameters (name, value, why)."""
    lines = [_comment(about), f"FROM {model}", "", f"TEMPLATE {quoted(template)}", ""]
    for stop, why in stops.items():
        lines += [_comment(why), f"PARAMETER stop {quoted(stop)}"]
    for name, value, why in parameters:
        lines += [_comment(why), f"PARAMETER {name} {value}"]
    if system is not None:
        lines += ["", f"SYSTEM {quoted(system)}"]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> str:
    """A comment that stays on one line."""
    return f"# {' '.join(text.split())}"


def quoted(text: str) -> str:
    """A value as Ollama reads it back."""
    if "\n" not in text and '"' not in text:
        return f'"{text}"'
    return f"{QUOTES}{text}{QUOTES}"


def stops(folder: Path, shape: Shape) -> dict[str, str]:
    """What ends an answer of a result, each once with its reason, in the order of discovery.

    Raises InputError if nothing does, or a number stands for no token.
    """
    tokenizer = json_object(folder / "tokenizer.json")
    added = tokenizer.get("added_tokens") or []
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    texts = {number: text for text, number in dict(vocabulary).items()}
    texts |= {one["id"]: one["content"] for one in added}
    found: dict[str, str] = {}
    given = json_object(folder / "generation_config.json").get("eos_token_id")
    for number in given if isinstance(given, list) else [given]:
        if not isinstance(number, int):
            continue
        text = texts.get(number)
        if not text:
            raise InputError(
                f"generation_config.json ends answers with token {number}, which the tokenizer"
                " does not have",
                where=str(folder),
                hint="take the tokenizer that the model was trained with",
            )
        found.setdefault(text, "the model stops at it (generation_config.json)")
    named = special_texts(folder)
    if eos := named.get("eos_token"):
        found.setdefault(eos, "the end token of the tokenizer")
    special = {one["content"] for one in added if one.get("special")} | {*named.values()}
    marks = "|".join(map(re.escape, sorted(filter(None, special), key=len, reverse=True)))
    if marks and (turn_end := re.search(marks, shape.asked)):
        found.setdefault(turn_end[0], "the chat template writes it behind an answer")
    elif mark := shape.asked.strip():
        # Turns end with no token: the model may go on with the next question.
        found.setdefault(mark, "the chat template begins the next question with it")
    if not found:
        raise InputError(
            "nothing says where an answer ends: the result has no end token",
            where=str(folder),
            hint="train it again: a run adds the end token to each answer",
        )
    return found


def parameters(folder: Path, *, seq_len: int | None) -> list[tuple[str, str, str]]:
    """(name, value, why) of each that a result calls for, which was trained on so many tokens."""
    config = json_object(folder / "generation_config.json")
    found = []
    if seq_len is not None and seq_len > OLLAMAS_CONTEXT:
        why = f"it was trained on up to {seq_len} tokens; Ollama would forget what is older"
        found.append(("num_ctx", str(seq_len), why))
    if config.get("do_sample") is False:
        config = {"temperature": 0} | config
    for key in SAMPLING:
        value = config.get(key)
        if isinstance(value, int | float):
            name = key.replace("repetition", "repeat")
            found.append((name, f"{value:g}", "as generation_config.json says"))
    return found


def constant_system(run: Path, stage: StageRecord) -> tuple[str | None, str]:
    """(the system message of every row of the training, or None; what is to be said of it)."""
    found: set[str | None] = set()
    try:
        data = {one.name: one.data for one in entries(read_plan(run / PLAN_FILE))}[stage.name]
        path = resolve_path(run / PLAN_FILE, data.path)
        for row in read_examples(path, mapping=data.mapping, skipped=Skipped()):
            system = [one.content for one in row.messages[:1] if one.role == "system"]
            found.add(system[0] if system else None)
            if len(found) > 1:
                break
    except (AdviseError, OSError, KeyError):
        return None, (
            "no SYSTEM line: the training data cannot be read any more; if every row had the same"
            " system message, add it"
        )
    text = next(iter(found), None)
    if len(found) > 1:
        return None, (
            "no SYSTEM line: some rows of the training data have a system message, and others"
            " another or none; send the one that fits"
        )
    if text is not None and not can_hold(text):
        return None, (
            "no SYSTEM line: that of the training data holds characters that no Modelfile keeps;"
            " send it with each conversation"
        )
    return text, "SYSTEM is the one system message of the training data" if text else ""
