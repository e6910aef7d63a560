"""Answers from a file, from flags and from the wizard, merged by rank: default < file < flag <
asked.

All three read the one list of facts (rules/facts.yaml): a key, a flag and a question of the same
fact mean the same and are checked by the same code. Unknown keys and values are errors with the
nearest known name; an unknown signal is a warning.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from advisor.ground.errors import Fault, InputError, did_you_mean, unknown_name
from advisor.ground.files import FOLDER_NAME, is_folder_name, name_hint
from advisor.ground.shape import (
    Choice,
    Flag,
    Keys,
    ListOf,
    Located,
    MapOf,
    NamedValue,
    Number,
    OneOf,
    Path_,
    Shape,
    Text,
    check_shape,
    refuse_secrets,
)
from advisor.ground.types import Answer, Answers
from advisor.ground.yaml_files import Document
from advisor.ruleset.facts import Fact, load_facts, signals

RANK = {"default": 0, "file": 1, "flag": 2, "asked": 3}
Origin = Literal["default", "file", "flag", "asked"]


# A higher-ranked answer to the first replaces what a lower-ranked one said of the rest: `--gpu
# H100` also drops the memory that the answers file gave for its own card.
GROUPS = {
    "gpu": ("gpu_memory_gib", "gpus", "nodes"),
    "data_path": ("data_kind", "data_rows", "data_tokens", "data_mapping"),
    "model": ("model_params_b",),
    "budget": ("budget_usd", "budget_hours"),
    "budget_usd": ("budget",),
    "budget_hours": ("budget",),
    "tasks": ("n_tasks",),
    "n_tasks": ("tasks",),
}


# Keys of `gpu` in an answers file -> the facts they state.
GPU_KEYS = {"name": "gpu", "vram_gib": "gpu_memory_gib", "count": "gpus", "nodes": "nodes"}
# Facts whose flag takes NAME=VALUE -> the flag, an example.
PAIRS = {
    "tasks": ("--tasks", "--tasks legal=legal.jsonl"),
    "data_mapping": ("--map", "--map question=prompt answer=completion"),
}
DATA_KEYS = ("path", "examples", "kind", "rows", "tokens", "mapping")
# The facts that are written at the top of an answers file, in this order.
WRITTEN = (
    "task", "depth", "tasks", "n_tasks", "reward_model", "teacher", "teacher_model", "model",
    "model_params_b", "serve_with", "priority",
)  # fmt: skip


class AnswersRefused(InputError):
    """Answers with faults. What is valid among them is kept, so that more can be found in it."""

    def __init__(self, faults: Sequence[Fault], valid: Answers) -> None:
        super().__init__(faults=faults)
        self.valid = valid


def merge_answers(*several: Answers) -> Answers:
    """One set of answers; a higher origin wins, at equal rank the later one. Signals add up."""
    known: dict[str, Answer] = {}
    for answers in several:
        for leader in GROUPS.keys() & answers.known.keys():
            rank = RANK[answers.known[leader].origin]
            for follower in GROUPS[leader]:
                if follower in known and RANK[known[follower].origin] < rank:
                    del known[follower]
        for name in answers.signals:  # what is so now is no longer denied
            known.pop(name, None)
        denied = {fact_id for fact_id, answer in answers.known.items() if answer.value is False}
        if "signals" in known and denied & {*known["signals"].value}:  # nor the other way round
            listed = known.pop("signals")
            if left := tuple(name for name in listed.value if name not in denied):
                known["signals"] = replace(listed, value=left)
        for fact_id, answer in answers.known.items():
            old = known.get(fact_id)
            if fact_id == "signals" and old is not None:
                both = tuple(dict.fromkeys((*old.value, *answer.value)))
                known[fact_id] = replace(answer, value=both)
            elif old is None or RANK[answer.origin] >= RANK[old.origin]:
                known[fact_id] = answer
    where = {name: at for answers in several for name, at in answers.where.items()}
    return Answers(known=known, where=where)


YES_NO = {"true": True, "yes": True, "false": False, "no": False}  # a signal, in quotes or not


class _AnswersReader:
    """Takes the answers of one input and collects every fault in them."""

    def __init__(self, facts: Mapping[str, Fact], origin: Origin) -> None:
        self.facts = facts
        self.origin: Origin = origin
        self.stated: dict[str, Any] = {}  # fact id -> value
        self.where: dict[str, str] = {}  # fact id or signal -> the place that states it
        self.faults: list[Fault] = []
        self.warnings: list[str] = []

    def take(self, key: str, value: Any, document: Located, path: Path_ = ()) -> None:
        """What one key of an answers file says: the value of a fact, or a map of several."""
        parts = parts_of(key, self.facts)
        if value is None:
            return
        if key == "signals":
            self.take_signals(value, document, path)
        elif isinstance(value, dict) and parts:
            for part, of_part in value.items():
                if part in parts and of_part is not None:
                    self.stated[parts[part]] = of_part
                    self.where[parts[part]] = document.at((*path, part))
        else:
            name = key if key in self.facts else next(iter(parts.values()), key)
            self.stated[name] = value
            self.where[name] = document.at(path)

    def take_signals(self, names: Any, document: Located, path: Path_ = ()) -> None:
        """A list of signals that are so, or a map that says of each whether it is."""
        known = signals(self.facts)
        places = {name: (*path, name) for name in names} if isinstance(names, Mapping) else {}
        if isinstance(names, list | tuple):
            hint = "to deny one, write them all as a map: signals: {NAME: true, OTHER: false}"
            for at, name in enumerate(names):
                if isinstance(name, str):
                    places[name] = (*path, at)
                    continue
                what = Text().refuse(name, document, (*path, at)).headline
                self.faults.append(Fault(what=what, allowed="a signal's name", hint=hint))
            names = dict.fromkeys(places, True)
        if not isinstance(names, Mapping):
            wanted = OneOf(options=(ListOf(of=Text()), MapOf(of=Flag())))
            self.faults.append(wanted.refuse(names, document, path))
            return
        stated = []
        for name, value in names.items():
            self.where[name] = document.at(places[name])
            is_so = YES_NO.get(str(value).lower())
            if name not in known:
                self.warnings.append(
                    f"{document.at((*path, name), key=True)}: signal '{name}' is not known and was"
                    f" left out; {_near_signals(str(name), known)}"
                )
            elif is_so is None and value is not None:
                self.faults.append(Flag().refuse(value, document, (*path, name)))
            elif is_so:
                stated.append(name)
            elif is_so is not None:
                self.stated[name] = False
        if stated:
            self.stated["signals"] = tuple(stated)

    def take_signal_flags(self, texts: Sequence[str]) -> None:
        """The NAME or NAME=no of each `--signal`; an unknown one is a fault."""
        known = signals(self.facts)
        pairs = [(name, value or "yes") for name, _, value in (t.partition("=") for t in texts)]
        for name in dict(pairs):
            values = {YES_NO.get(value.lower()) for other, value in pairs if other == name}
            if values == {True, False}:
                where, hint = f"--signal {name}", "take one of them back"
                self.faults.append(Fault(where=where, what="yes and no", hint=hint))
        unknown = [name for name in dict(pairs) if name not in known]
        self.faults += [unknown_name("signal", name, known, at="--signal") for name in unknown]
        stated = {name: value for name, value in pairs if name in known}
        self.take_signals(stated, NamedValue("--signal", stated))
        self.where |= dict.fromkeys(stated, "--signal")

    def take_pairs(self, fact_id: str, pieces: Sequence[str]) -> None:
        """A flag's repeated NAME=VALUE as a map."""
        flag, example = PAIRS[fact_id]
        pairs = [piece.partition("=")[::2] for piece in pieces]
        wrong = [piece for piece, pair in zip(pieces, pairs, strict=True) if not all(pair)]
        self.faults.extend(
            Fault(where=flag, what=f"{flag} {piece}: NAME=VALUE is expected", allowed=example)
            for piece in wrong
        )
        hint = "each needs a name of its own"
        self.faults.extend(
            Fault(where=flag, what=f"'{name}' is given twice", hint=hint)
            for name in _repeated(name for name, _ in pairs)
        )
        if not wrong:
            self.check_names(fact_id, dict(pairs), NamedValue(flag, dict(pairs)))
            self.stated[fact_id] = dict(pairs)

    def take_limits(self, text: str, at: str) -> None:
        """A budget as 'usd=20,hours=6'."""
        pairs = [part.partition("=")[::2] for part in text.split(",")]
        limits = {name.strip(): _number(number) for name, number in pairs}
        if _repeated(name.strip() for name, _ in pairs):
            what, allowed = f"'{text}' states a limit twice", "usd and hours, one value each"
            self.faults.append(Fault(where=at, what=what, allowed=allowed))
        parts = parts_of("budget", self.facts)
        inside = Keys(keys={part: fact_shape(self.facts[name]) for part, name in parts.items()})
        self.faults += check_shape(NamedValue(at, limits), inside)
        self.take("budget", limits, NamedValue(at, limits))

    def check_names(self, fact_id: str, value: Any, document: Located, path: Path_ = ()) -> None:
        """The name of a task becomes the name of a folder."""
        if fact_id == "tasks" and isinstance(value, dict):
            self.faults.extend(
                Fault(
                    where=document.at((*path, name), key=True),
                    what=f"a task's name is '{name[:60]}'",
                    allowed=FOLDER_NAME,
                    hint=name_hint(name),
                )
                for name in value
                if not is_folder_name(name)
            )

    def answers(self) -> Answers:
        """Everything taken. Raises AnswersRefused with all faults together."""
        stated = self._valid() if self.faults else self.stated
        if {"tasks", "n_tasks"} <= set(stated):
            named, count = len(stated["tasks"]), int(stated["n_tasks"])
            if named != count:
                what = f"n_tasks is {count}, but {named} tasks are named"
                hint = "leave n_tasks out where tasks are named"
                self.faults.append(Fault(where="n_tasks", what=what, hint=hint))
        known = {}
        for fact_id, value in stated.items():
            is_whole = getattr(self.facts.get(fact_id), "integer", False)
            known[fact_id] = Answer(value=int(value) if is_whole else value, origin=self.origin)
        answers = Answers(known=known, where=self.where)
        if self.faults:
            raise AnswersRefused(self.faults, answers)
        return answers

    def _valid(self) -> dict[str, Any]:
        """What was stated and is no fault by itself."""
        return {
            fact_id: value
            for fact_id, value in self.stated.items()
            if fact_id == "signals"
            or not check_shape(NamedValue(fact_id, value), fact_shape(self.facts[fact_id]))
        }


def _near_signals(name: str, known: Collection[str]) -> str:
    """Which signal may be meant by an unknown one: spelt alike, or with the same words."""
    words = {word for word in re.findall(r"[a-z]+", name.lower()) if len(word) > 2}
    alike = [one for one in known if words & set(one.split("_"))]
    close = did_you_mean(name, known)
    if not close and 0 < len(alike) <= 4:
        close = f"did you mean {' or '.join(repr(one) for one in alike)}?"
    return close or "`advise rules facts` lists them all"


def _repeated(names: Iterable[str]) -> list[str]:
    """The names that are given more than once, in alphabetical order."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def answers_from_document(
    document: Document, facts: Mapping[str, Fact]
) -> tuple[Answers, tuple[str, ...]]:
    """The answers of a file and its warnings.

    Raises AnswersRefused with all faults, each with file, line and column.
    """
    refuse_secrets(document)
    reader = _AnswersReader(facts, "file")
    shape = answers_shape(facts)
    reader.faults += check_shape(document, shape)
    for key, value in document.data.items() if isinstance(document.data, dict) else ():
        if key == "budget" and isinstance(value, str) and "=" in value:
            reader.take_limits(value, document.at((key,)))
        elif key in shape.keys:
            reader.take(key, value, document, (key,))
            reader.check_names(key, value, document, (key,))
    return reader.answers(), tuple(reader.warnings)


def answers_from_flags(
    flags: Mapping[str, Any], facts: Mapping[str, Fact]
) -> tuple[Answers, tuple[str, ...]]:
    """The answers of command-line flags, keyed by fact id; `signals` and `tasks` are lists. Raises
    AnswersRefused with all faults.
    """
    refuse_secrets(NamedValue("", dict(flags)))
    reader = _AnswersReader(facts, "flag")
    for fact_id, value in flags.items():
        if value is None or value == () or value == []:
            continue
        if fact_id == "signals":
            reader.take_signal_flags(value)
        elif fact_id == "budget" and isinstance(value, str) and "=" in value:
            reader.take_limits(value, "--budget")
        elif fact_id in PAIRS:
            reader.take_pairs(fact_id, value)
        else:
            stated_as = NamedValue(facts[fact_id].flag or fact_id, value)
            if any("\ud800" <= character <= "\udfff" for character in str(value)):
                what = f"{stated_as.name} {value}: the name is not UTF-8, and no plan can hold it"
                reader.faults.append(Fault(what=what, hint="rename the file"))
                continue
            reader.faults += check_shape(stated_as, fact_shape(facts[fact_id]))
            reader.stated[fact_id] = value
            reader.where[fact_id] = stated_as.name
    return reader.answers(), tuple(reader.warnings)


def answers_document(answers: Answers) -> dict[str, Any]:
    """The answers in the shape of an answers file: what a person can save, send and hand back with
    --answers.
    """
    flat = {fact_id: answer.value for fact_id, answer in answers.known.items()}

    def part(names: Mapping[str, str]) -> dict[str, Any]:
        return {key: flat[name] for key, name in names.items() if name in flat}

    document = part({name: name for name in WRITTEN})
    budget = part({key: f"budget_{key}" for key in ("usd", "hours")})
    data = part({key: f"data_{key}" for key in DATA_KEYS})
    gpu = part(GPU_KEYS)
    if budget or "budget" in flat:
        document["budget"] = budget or flat["budget"]
    if data:
        document["data"] = data
    if gpu:
        document["gpu"] = gpu["name"] if set(gpu) == {"name"} else gpu
    denied = [name for name, value in flat.items() if value is False]
    if denied:
        document["signals"] = dict.fromkeys(answers.signals, True) | dict.fromkeys(denied, False)
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
    words, facts = [command, *([f"--budget {limits}"] if limits else [])], load_facts()
    for fact_id, value in flat.items():
        if value is None:
            continue
        if value is False:
            words.append(f"--signal {fact_id}=no")
        elif fact_id == "signals":
            words += [f"--signal {name}" for name in value]
        elif fact_id in PAIRS:
            pairs = [shlex.quote(f"{name}={part}") for name, part in value.items()]
            words += [f"{PAIRS[fact_id][0]} {pair}" for pair in pairs]
        elif fact_id in facts and (flag := facts[fact_id].flag) is not None:
            text = f"{value:g}" if isinstance(value, float) else str(value)
            words.append(f"{flag} {shlex.quote(text)}")
    return " ".join(words)


LIMITS = Text(pattern=r"[^=]+=.*", such_as="usd=20,hours=6")  # a budget as the flag spells it


def fact_shape(fact: Fact) -> Shape:
    """What may be stated of one fact."""
    match fact.type:
        case "choice":
            return Choice(values=tuple(fact.values))
        case "number":
            return Number(whole=fact.integer, min=fact.min, max=fact.max, unit=fact.unit)
        case "map":
            return MapOf(of=Text(), least=1)
        case "flag":
            return Shape()
    return Text()


def answers_shape(facts: Mapping[str, Fact]) -> Keys:
    """The keys of an answers file. `data: {rows: 5000}` states the fact whose answer is data.rows.

    A map that stands for one of its parts may be that part alone: `data: train.jsonl`. Signals take
    any value, since an unknown one is a warning.
    """
    whole: dict[str, Shape] = {}
    for fact in facts.values():
        if fact.answer and "." not in fact.answer:
            whole[fact.answer] = fact_shape(fact)
    for key in dict.fromkeys(
        fact.answer.partition(".")[0] for fact in facts.values() if fact.answer
    ):
        parts = parts_of(key, facts)
        if not parts:
            continue
        first = whole.get(key, fact_shape(facts[next(iter(parts.values()))]))
        inside = Keys(
            keys={part: fact_shape(facts[name]) for part, name in parts.items()}, nulls=True
        )
        whole[key] = OneOf(options=(first, inside, *((LIMITS,) if key == "budget" else ())))
    return Keys(
        keys={**whole, "signals": Shape()}, nulls=True, others=partial(_where_it_belongs, facts)
    )


def _where_it_belongs(facts: Mapping[str, Fact], name: str, known: Collection[str]) -> str:
    """Where a fact is stated whose own name, flag or last part was taken for a key: `data_rows` and
    `rows` stand inside `data`, a signal in the list of signals.
    """
    name = name.strip("-").replace("-", "_")
    asked = [fact for fact in facts.values() if fact.answer or fact.signal]
    named = [
        fact
        for fact in asked
        if name in (fact.id, (fact.flag or "").strip("-").replace("-", "_"))
        or name == (fact.answer or "").partition(".")[2]
    ]
    if len(named) != 1:
        return ""
    (fact,) = named
    if fact.signal:
        return f"it is a signal: `signals: [{fact.id}]`"
    key, _, part = str(fact.answer).partition(".")
    return f"write it inside `{key}`: `{key}: {{{part}: ...}}`" if part else f"write `{key}`"


def parts_of(key: str, facts: Mapping[str, Fact]) -> dict[str, str]:
    """The keys inside one key of an answers file -> the facts they state: {'usd': 'budget_usd',
    'hours': 'budget_hours'}.
    """
    return {
        fact.answer.partition(".")[2]: fact.id
        for fact in facts.values()
        if fact.answer and fact.answer.startswith(f"{key}.")
    }
