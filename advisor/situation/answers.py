"""Answers from a file, from flags and from the wizard, merged by rank: default < file < flag <
asked.

All three read the one list of facts (rules/facts.yaml): a key, a flag and a question of the same
fact mean the same and are checked by the same code. Unknown keys and values are errors with the
nearest known name; an unknown signal is a warning.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from advisor.ground.errors import Fault, InputError, nearest, unknown_name
from advisor.ground.files import FOLDER_NAME, is_folder_name, such_as
from advisor.ground.types import Answer, Answers
from advisor.ground.yaml_reader import Document
from advisor.ruleset.facts import Fact, load_facts, signals

RANK = {"default": 0, "file": 1, "flag": 2, "asked": 3}
Origin = Literal["default", "file", "flag", "asked"]


# A higher-ranked answer to the first replaces what a lower-ranked one said of the rest: `--gpu
# H100` also drops the memory that the answers file gave for its own card.
GROUPS = {
    "gpu": ("gpu_memory_gib", "gpus"),
    "data_path": ("data_kind", "data_rows", "data_tokens", "data_mapping"),
    "model": ("model_params_b",),
    "budget": ("budget_usd", "budget_hours"),
    "budget_usd": ("budget",),
    "budget_hours": ("budget",),
    "tasks": ("n_tasks",),
    "n_tasks": ("tasks",),
}


def merge_answers(*several: Answers) -> Answers:
    """One set of answers; a higher origin wins, at equal rank the later one. Signals add up."""
    known: dict[str, Answer] = {}
    for answers in several:
        for leader in (fact_id for fact_id in GROUPS if fact_id in answers.known):
            for follower in GROUPS[leader]:
                if (
                    follower in known
                    and RANK[known[follower].origin] < RANK[answers.known[leader].origin]
                ):
                    del known[follower]
        for name in answers.signals:  # what is so now is no longer denied
            known.pop(name, None)
        for fact_id, answer in answers.known.items():
            old = known.get(fact_id)
            if fact_id == "signals" and old is not None:
                known[fact_id] = Answer(
                    value=tuple(dict.fromkeys((*old.value, *answer.value))), origin=answer.origin
                )
            elif old is None or RANK[answer.origin] >= RANK[old.origin]:
                known[fact_id] = answer
    return Answers(known=known)


SAID = {"true": True, "yes": True, "false": False, "no": False}  # of a signal, in quotes or not


class AnswerReader:
    """Checks values against the facts and collects every fault of one input."""

    def __init__(self, facts: Mapping[str, Fact], origin: Origin) -> None:
        self.facts = facts
        self.origin: Origin = origin
        self.known: dict[str, Answer] = {}
        self.faults: list[Fault] = []
        self.warnings: list[str] = []

    def put(self, fact_id: str, value: Any, *, at: str) -> None:
        """Take one value; None means not stated."""
        if value is None:
            return
        fact = self.facts[fact_id]
        fault = value_fault(fact, value, at=at)
        if fault is not None:
            self.faults.append(fault)
        else:
            self.known[fact_id] = Answer(
                value=int(value) if fact.integer else value, origin=self.origin
            )

    def put_signals(self, names: Any, *, at: str) -> None:
        """A list of signals that are so, or a map that says of each whether it is."""
        known_names = signals(self.facts)
        if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
            names = dict.fromkeys(names, True)
        if not isinstance(names, Mapping):
            self.faults.append(
                Fault(what=f"{at}: a list of signals is expected", allowed=", ".join(known_names))
            )
            return
        stated = []
        for name, value in names.items():
            said = SAID.get(str(value).lower())
            if name not in known_names:
                close = nearest(name, known_names)
                self.warnings.append(
                    f"{at}: signal '{name}' is not known and was left"
                    f" out{f'; {close}' if close else ''}"
                )
            elif said is None and value is not None:
                self.faults.append(
                    Fault(
                        what=f"{at}.{name}: {value!r} says neither yes nor no",
                        allowed="true or false",
                    )
                )
            elif said:
                stated.append(name)
            elif said is not None:
                self.known[name] = Answer(value=False, origin=self.origin)
        if stated:
            self.known["signals"] = Answer(value=tuple(stated), origin=self.origin)

    def put_budget(self, value: Any, *, at: str) -> None:
        """low, medium, high, a map {usd, hours}, or the flag's spelling of it: usd=20,hours=6."""
        if isinstance(value, str) and "=" in value:
            pieces = [part.partition("=") for part in value.split(",")]
            names = [key.strip() for key, _, _ in pieces]
            if len(set(names)) < len(names):
                self.faults.append(
                    Fault(
                        what=f"{at}: '{value}' states a limit twice",
                        allowed="usd and hours, one value each",
                    )
                )
            value = {key.strip(): _number(number) for key, _, number in pieces}
        if isinstance(value, dict):
            self.put_parts("budget", value, at=at)
        else:
            self.put("budget", value, at=at)

    def put_gpu(self, value: Any, *, at: str) -> None:
        """A name, `unknown`, `none`, or a map {name, vram_gib, count}."""
        if isinstance(value, dict):
            self.put_parts("gpu", value, at=at)
        else:
            self.put("gpu", value, at=at)

    def put_data(self, value: Any, *, at: str) -> None:
        """A path, or a map {path, examples, kind, rows, tokens, mapping}."""
        if isinstance(value, dict):
            self.put_parts("data", value, at=at)
        elif isinstance(value, str):
            self.put("data_path", value, at=at)
        else:
            self.faults.append(
                Fault(
                    what=f"{at}: a path or a map is expected",
                    allowed=f"keys: {', '.join(parts_of('data', self.facts))}",
                )
            )

    def put_parts(self, key: str, value: Mapping[str, Any], *, at: str) -> None:
        """A map whose keys are facts of their own (rules/facts.yaml, `answer: data.rows`)."""
        parts = parts_of(key, self.facts)
        for part, stated in value.items():
            if part not in parts:
                self.faults.append(unknown_name(f"{key} key", part, list(parts), at=f"{at}.{part}"))
            elif parts[part] == "data_mapping" and stated is not None:
                self.put_map(
                    "data_mapping",
                    stated,
                    at=f"{at}.{part}",
                    example="mapping: {question: prompt, answer: completion}",
                )
            else:
                self.put(parts[part], stated, at=f"{at}.{part}")

    def put_map(self, fact_id: str, value: Any, *, at: str, example: str) -> None:
        """A map from text to text: tasks to their files, roles to columns."""
        if (
            not isinstance(value, dict)
            or not value
            or not all(
                isinstance(text, str) and isinstance(name, str) for name, text in value.items()
            )
        ):
            self.faults.append(
                Fault(what=f"{at}: a map from text to text is expected", allowed=example)
            )
            return
        wrong = [name for name in value if not is_folder_name(name)] if fact_id == "tasks" else []
        self.faults.extend(
            Fault(
                what=f"{at}: a task's name is '{name[:60]}'",
                allowed=FOLDER_NAME,
                hint=such_as(name),
            )
            for name in wrong
        )
        self.known[fact_id] = Answer(value=dict(value), origin=self.origin)

    def put_tasks(self, value: Any, *, at: str) -> None:
        """A map from a task's name to its data file."""
        self.put_map("tasks", value, at=at, example="tasks: {legal: legal.jsonl, hr: hr.jsonl}")

    def put_pairs(self, fact_id: str, pieces: Sequence[str], *, flag: str, example: str) -> None:
        """A flag's repeated NAME=VALUE as a map."""
        pairs = [piece.partition("=")[::2] for piece in pieces]
        wrong = [piece for piece, pair in zip(pieces, pairs, strict=True) if not all(pair)]
        self.faults.extend(
            Fault(what=f"{flag} {piece}: NAME=VALUE is expected", allowed=example)
            for piece in wrong
        )
        names = [name for name, _ in pairs]
        for name in sorted({name for name in names if names.count(name) > 1}):
            self.faults.append(
                Fault(what=f"{flag}: '{name}' is given twice", hint="each needs a name of its own")
            )
        if not wrong:
            self.put_map(fact_id, dict(pairs), at=flag, example=example)

    def answers(self) -> Answers:
        """Everything taken. Raises InputError with all faults together."""
        tasks, n_tasks = self.known.get("tasks"), self.known.get("n_tasks")
        if tasks is not None and n_tasks is not None and len(tasks.value) != n_tasks.value:
            self.faults.append(
                Fault(
                    what=f"n_tasks is {n_tasks.value}, but {len(tasks.value)} tasks are named",
                    hint="leave n_tasks out where tasks are named",
                )
            )
        if self.faults:
            raise InputError(faults=self.faults)
        return Answers(known=self.known)


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def value_fault(fact: Fact, value: Any, *, at: str) -> Fault | None:
    """Why a value cannot be the fact's, or None."""
    if fact.type == "choice":
        if not isinstance(value, str):
            return Fault(
                what=f"{at}: {value!r} is not one of the values",
                allowed=f"one of {', '.join(fact.values)}",
            )
        return (
            None if value in fact.values else unknown_name(fact.id, value, list(fact.values), at=at)
        )
    if fact.type == "number":
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            return Fault(
                what=f"{at}: {value!r} is not a number",
                allowed=f"a number of {fact.unit}" if fact.unit else "a number",
            )
        if fact.integer and value != int(value):
            return Fault(what=f"{at}: {value} is not a whole number of {fact.unit}")
        if (fact.min is not None and value < fact.min) or (
            fact.max is not None and value > fact.max
        ):
            bounds = [
                f"at least {fact.min:g}" if fact.min is not None else "",
                f"at most {fact.max:g}" if fact.max is not None else "",
            ]
            return Fault(
                what=f"{at}: {value:g} is out of range",
                allowed=f"{' and '.join(filter(None, bounds))} {fact.unit}".strip(),
            )
        return None
    if fact.type in ("text", "path"):
        return (
            None
            if isinstance(value, str) and value.strip()
            else Fault(what=f"{at}: {value!r} is not a text", allowed="a name or a path")
        )
    return None


def parts_of(key: str, facts: Mapping[str, Fact]) -> dict[str, str]:
    """The keys inside one key of an answers file -> the facts they state: {'usd': 'budget_usd',
    'hours': 'budget_hours'}.
    """
    return {
        fact.answer.partition(".")[2]: fact.id
        for fact in facts.values()
        if fact.answer and fact.answer.startswith(f"{key}.")
    }


def answers_from_document(
    document: Document, facts: Mapping[str, Fact]
) -> tuple[Answers, tuple[str, ...]]:
    """The answers of a file and its warnings.

    Raises InputError with all faults, each with file, line and column.
    """
    reader = AnswerReader(facts, "file")
    special = {
        "budget": reader.put_budget,
        "gpu": reader.put_gpu,
        "data": reader.put_data,
        "tasks": reader.put_tasks,
        "signals": reader.put_signals,
    }
    plain = {
        fact.answer: fact.id for fact in facts.values() if fact.answer and "." not in fact.answer
    }
    keys = sorted({*special, *plain})
    if not isinstance(document.data, dict):
        raise InputError(
            f"{document.at()}: a map of answers is expected", allowed=f"keys: {', '.join(keys)}"
        )
    for key, value in document.data.items():
        if key not in keys:
            reader.faults.append(unknown_name("key", key, keys, at=document.at((key,), key=True)))
        elif value is None:
            continue
        elif key in special:
            special[key](value, at=f"{document.at((key,))}: {key}")
        else:
            reader.put(plain[key], value, at=f"{document.at((key,))}: {key}")
    return reader.answers(), tuple(reader.warnings)


def answers_from_flags(
    flags: Mapping[str, Any], facts: Mapping[str, Fact]
) -> tuple[Answers, tuple[str, ...]]:
    """The answers of command-line flags, keyed by fact id; `signals` and `tasks` are lists. Raises
    InputError.
    """
    reader = AnswerReader(facts, "flag")
    for fact_id, value in flags.items():
        if value is None or value == () or value == []:
            continue
        if fact_id == "signals":
            stated = {
                name: said or "yes" for name, _, said in (text.partition("=") for text in value)
            }
            for name in (unknown for unknown in stated if unknown not in signals(facts)):
                reader.faults.append(unknown_name("signal", name, signals(facts), at="--signal"))
            reader.put_signals(
                {name: said for name, said in stated.items() if name in signals(facts)},
                at="--signal",
            )
        elif fact_id == "budget":
            reader.put_budget(value, at="--budget")
        elif fact_id == "tasks":
            reader.put_pairs("tasks", value, flag="--tasks", example="--tasks legal=legal.jsonl")
        elif fact_id == "data_mapping":
            reader.put_pairs(
                "data_mapping",
                value,
                flag="--map",
                example="--map question=prompt answer=completion",
            )
        else:
            reader.put(fact_id, value, at=facts[fact_id].flag or fact_id)
    return reader.answers(), tuple(reader.warnings)


def answers_document(answers: Answers) -> dict[str, Any]:
    """The answers in the shape of an answers file: what a person can save, send and hand back with
    --answers.
    """
    flat = {fact_id: answer.value for fact_id, answer in answers.known.items()}
    written = (
        "task",
        "depth",
        "tasks",
        "n_tasks",
        "reward_model",
        "model",
        "model_params_b",
        "serve_with",
        "priority",
    )
    document: dict[str, Any] = {key: flat[key] for key in written if key in flat}
    budget = {key: flat[f"budget_{key}"] for key in ("usd", "hours") if f"budget_{key}" in flat}
    data = {
        key: flat[f"data_{key}"]
        for key in ("path", "examples", "kind", "rows", "tokens", "mapping")
        if f"data_{key}" in flat
    }
    gpu = {
        key: flat[name]
        for key, name in (("name", "gpu"), ("vram_gib", "gpu_memory_gib"), ("count", "gpus"))
        if name in flat
    }
    if budget or "budget" in flat:
        document["budget"] = budget or flat["budget"]
    if data:
        document["data"] = data
    if gpu:
        document["gpu"] = gpu["name"] if set(gpu) == {"name"} else gpu
    denied = [name for name, value in flat.items() if value is False]
    if denied:
        document["signals"] = {
            **dict.fromkeys(answers.signals, True),
            **dict.fromkeys(denied, False),
        }
    elif "signals" in flat:
        document["signals"] = list(flat["signals"])
    return document


def command_line(
    answers: Answers, changes: Mapping[str, Any], *, command: str = "advise run"
) -> str:
    """The line to type for these answers with some changed (by fact id; None takes one away):
    'advise run --task qa --gpu H100'.
    """
    flat = {fact_id: answer.value for fact_id, answer in answers.known.items()}
    for fact_id, value in changes.items():
        for follower in GROUPS.get(fact_id, ()):
            flat.pop(follower, None)
        flat[fact_id] = value
    limits = ",".join(
        f"{key}={flat.pop(f'budget_{key}'):g}"
        for key in ("usd", "hours")
        if flat.get(f"budget_{key}") is not None
    )
    words = [command, *([f"--budget {limits}"] if limits else [])]
    for fact_id, value in flat.items():
        if value is False:
            words.append(f"--signal {fact_id}=no")
        if value is None or value is False:
            continue
        if fact_id == "signals":
            words += [f"--signal {name}" for name in value]
        elif isinstance(value, Mapping):
            words += [
                f"{'--tasks' if fact_id == 'tasks' else '--map'} {shlex.quote(f'{name}={part}')}"
                for name, part in value.items()
            ]
        elif (flag := load_facts()[fact_id].flag if fact_id in load_facts() else None) is not None:
            words.append(
                f"{flag} {shlex.quote(f'{value:g}' if isinstance(value, float) else str(value))}"
            )
    return " ".join(words)
