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
from contextlib import suppress
from functools import partial
from typing import Any, Literal

from msgspec.structs import replace

from advisor.ground.errors import Fault, InputError, did_you_mean, unknown_name
from advisor.ground.shape import (
    Choice,
    Flag,
    Keys,
    ListOf,
    MapOf,
    NamedValue,
    Number,
    OneOf,
    Shape,
    Text,
    check_shape,
    number_words,
    refuse_secrets,
)
from advisor.ground.types import Answer, AnswerSet
from advisor.ground.yaml_files import Document
from advisor.methods.stage import FolderName
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
# Facts whose flag takes NAME=VALUE -> the flag, an example.
PAIRS = {
    "tasks": ("--tasks", "--tasks legal=legal.jsonl"),
    "data_mapping": ("--map", "--map question=prompt answer=completion"),
}
YES_NO = {"yes": True, "true": True, "no": False, "false": False}  # of --signal NAME=...
# The keys of an answers file, in the order in which they are written.
WRITTEN = (
    "task", "depth", "tasks", "n_tasks", "reward_model", "teacher", "teacher_model", "model",
    "model_params_b", "serve_with", "priority", "budget", "data", "gpu",
)  # fmt: skip


class AnswersRefused(InputError):
    """Answers with faults. What is valid among them is kept, so that more can be found in it."""

    def __init__(self, faults: Sequence[Fault], valid: AnswerSet) -> None:
        super().__init__(faults=faults)
        self.valid = valid


def merge_answers(*several: AnswerSet) -> AnswerSet:
    """One set of answers; a higher origin wins, at equal rank the later one. Signals add up."""
    known: dict[str, Answer] = {}
    for answers in several:
        for leader in GROUPS.keys() & answers.known.keys():
            rank = RANK[answers.known[leader].origin]
            for follower in GROUPS[leader]:
                if follower in known and RANK[known[follower].origin] < rank:
                    del known[follower]
        for fact_id, answer in answers.known.items():
            so = {name: replace(answer, value=True) for name in answers.signals}
            for name, one in (so if fact_id == "signals" else {fact_id: answer}).items():
                if name not in known or RANK[one.origin] >= RANK[known[name].origin]:
                    known[name] = one
    if stated := [name for name, answer in known.items() if answer.value is True]:
        last = max((known.pop(name) for name in stated), key=lambda answer: RANK[answer.origin])
        known["signals"] = replace(last, value=tuple(stated))
    where = {name: at for answers in several for name, at in answers.where.items()}
    return AnswerSet(known=known, where=where)


class _Stated:
    """The answers of one input, and every fault in them."""

    def __init__(self, facts: Mapping[str, Fact], origin: Origin) -> None:
        self.facts = facts
        self.origin: Origin = origin
        self.values: dict[str, Any] = {}  # fact id -> value
        self.where: dict[str, str] = {}  # fact id or signal -> the place that states it
        self.faults: list[Fault] = []

    def take(self, fact_id: str, value: Any, at: str) -> None:
        """Note the value of a fact; null states nothing."""
        if value is not None:
            self.values[fact_id] = value
            self.where[fact_id] = at

    def take_signals(self, said: Mapping[str, bool | None], where: Mapping[str, str]) -> None:
        """Note which signals are so and which are not."""
        self.where |= where
        self.values |= dict.fromkeys((name for name in said if said[name] is False), False)
        if so := tuple(name for name in said if said[name]):
            self.values["signals"] = so

    def answers(self) -> AnswerSet:
        """What was stated. Raises AnswersRefused with all faults together."""
        values = self.values
        if self.faults:
            values = {
                fact_id: value
                for fact_id, value in values.items()
                if fact_id == "signals"
                or not check_shape(NamedValue(fact_id, value), fact_shape(self.facts[fact_id]))
            }
        named, count = values.get("tasks"), values.get("n_tasks")
        if named and count is not None and len(named) != count:
            what = f"n_tasks is {count:g}, but {len(named)} tasks are named"
            hint = "leave n_tasks out where tasks are named"
            at = self.where.get("n_tasks", "n_tasks")
            self.faults.append(Fault(where=at, what=what, hint=hint))
        known = {}
        for fact_id, value in values.items():
            is_whole = getattr(self.facts.get(fact_id), "integer", False)
            known[fact_id] = Answer(value=int(value) if is_whole else value, origin=self.origin)
        answers = AnswerSet(known=known, where=self.where)
        if self.faults:
            raise AnswersRefused(self.faults, answers)
        return answers


def answers_from_document(
    document: Document, facts: Mapping[str, Fact]
) -> tuple[AnswerSet, tuple[str, ...]]:
    """The answers of a file and its warnings.

    Raises AnswersRefused with all faults, each with file, line and column.
    """
    refuse_secrets(document)
    stated, warnings = _Stated(facts, "file"), []
    shape = answers_shape(facts)
    stated.faults += check_shape(document, shape)
    content = document.data if isinstance(document.data, dict) else {}
    for key in filter(shape.keys.get, content):
        value, parts = content[key], parts_of(key, facts)
        if key == "signals":
            is_sound = not check_shape(document, shape.keys[key], (key,))
            warnings = _take_signals(stated, value or (), document) if is_sound else []
        elif isinstance(value, dict) and parts:
            for part in filter(parts.get, value):
                stated.take(parts[part], value[part], document.at((key, part)))
        else:
            name = key if key in facts else next(iter(parts.values()), key)
            stated.take(name, value, document.at((key,)))
    return stated.answers(), tuple(warnings)


def _take_signals(stated: _Stated, names: Any, document: Document) -> list[str]:
    """Note a list of signals that are so, or a map that says of each whether it is. Returns a
    warning about each that is not known.
    """
    is_map = isinstance(names, Mapping)
    places = {name: ("signals", name if is_map else at) for at, name in enumerate(names)}
    known, where = signals(stated.facts), {name: document.at(places[name]) for name in places}
    stated.take_signals(
        {name: names[name] if is_map else True for name in places if name in known}, where
    )
    return [
        f"{document.at(place, key=True)}: signal '{name}' is not known and was left out;"
        f" {did_you_mean(name, known) or '`advise rules facts` lists them all'}"
        for name, place in places.items()
        if name not in known
    ]


def answers_from_flags(flags: Mapping[str, Any], facts: Mapping[str, Fact]) -> AnswerSet:
    """The answers of command-line flags: fact id -> what its flag was given, each time. Raises
    AnswersRefused with all faults.
    """
    refuse_secrets(NamedValue("", dict(flags)))
    stated = _Stated(facts, "flag")
    for fact_id, given in flags.items():
        several = dict.fromkeys(given if isinstance(given, tuple | list) else (given,))
        several.pop(None, None)
        values, flag = [*several], getattr(facts.get(fact_id), "flag", None) or fact_id
        if not values:
            continue
        if fact_id == "signals":
            _take_signal_flags(stated, values)
        elif fact_id in PAIRS:
            texts = (
                values if fact_id == "tasks" else [one for text in values for one in _each(text)]
            )
            pairs = _pairs(stated, texts, flag, PAIRS[fact_id][1])
            if pairs:
                stated.faults += check_shape(NamedValue(flag, pairs), fact_shape(facts[fact_id]))
            stated.take(fact_id, pairs, flag)
        elif fact_id == "budget" and all(re.search(r"[=\d]", str(value)) for value in values):
            _take_limits(stated, ",".join(map(str, values)))
        elif len(values) > 1:
            what = f"{flag} is given {len(values)} times: {', '.join(map(number_words, values))}"
            stated.faults.append(Fault(where=flag, what=what, allowed="one value"))
        else:
            _take_value(stated, fact_id, values[0], flag)
    return stated.answers()


def _take_value(stated: _Stated, fact_id: str, value: Any, flag: str) -> None:
    if any("\ud800" <= character <= "\udfff" for character in str(value)):
        what = f"{flag} {value}: the name is not UTF-8, and no plan can hold it"
        stated.faults.append(Fault(what=what, hint="rename the file"))
    fact = stated.facts[fact_id]
    if fact.type == "number":
        try:
            value = _number(value, whole=fact.integer)
        except ValueError as error:
            stated.faults.append(Fault(where=flag, what=f"{flag}: {error}"))
            return
    faults = check_shape(NamedValue(flag, value), fact_shape(fact))
    if faults and fact_id == "budget":
        faults = [
            replace(fault, allowed=f"{fault.allowed}, or limits: '$20, 6 h'") for fault in faults
        ]
    stated.faults += faults
    stated.take(fact_id, value, flag)


THOUSANDS = {"": 1, "k": 1_000, "m": 1_000_000, "b": 1_000_000_000}


def number_in(text: str, *, whole: bool = False) -> float:
    """The number in '5000', '5,000', '5k' or '1.2m', as people write it. Raises ValueError in
    words, also for a `whole` one such as 5.000, which is five or five thousand.
    """
    compact = re.sub(r"^(about|ca\.?|circa|~|≈)\s*", "", text.strip().lower())
    compact = re.sub(r"(?<=[0-9])[,_'’ \u00a0\u202f](?=[0-9]{3}(?![0-9]))", "", compact)
    compact = re.sub(r"\s+(?=[kmb]$)", "", compact)
    if whole and re.fullmatch(r"[0-9]{1,3}(\.[0-9]{3})+", compact):
        every, few = compact.replace(".", ""), compact.split(".")[0]
        raise ValueError(f"{text} can be read in two ways: write {every} or {few}.")
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kmb]?)", compact)
    if match is None:
        raise ValueError(f"{text} is not a number. Write it like 5000, 5,000 or 5k.")
    return round(float(match[1]) * THOUSANDS[match[2]], 6)


def _number(value: Any, *, whole: bool = False) -> Any:
    """What is typed as a number, by people (100k) or programs (1e5). Raises ValueError."""
    if not isinstance(value, str):
        return value
    by_program = r"[-+]?((\d+\.?\d*|\.\d+)e[-+]?\d+|nan|inf)|[-+](\d+\.?\d*|\.\d+)|\d+\.|\.\d+"
    if re.fullmatch(by_program, value.strip(), re.IGNORECASE):
        return float(value)
    return number_in(value, whole=whole)


def _pairs(stated: _Stated, texts: Iterable[str], flag: str, example: str) -> dict[str, Any]:
    """Texts NAME=VALUE as a map; the faults go to `stated`."""
    pairs = [(text, *map(str.strip, text.partition("=")[::2])) for text in texts]
    stated.faults += [
        Fault(where=flag, what=f"{flag} {text}: NAME=VALUE is expected", allowed=example)
        for text, name, value in pairs
        if not name or not value
    ]
    stated.faults += [
        Fault(
            where=f"{flag} {name}{'' if flag == '--signal' else '='}",
            what="is given twice",
            hint="take one of them back",
        )
        for name, count in Counter(name for _, name, _ in pairs).items()
        if count > 1
    ]
    return {name: value for _, name, value in pairs if value}


def _each(text: str) -> list[str]:
    """'question=The text, answer=B' and 'question="The text" answer=B' as two pairs each."""
    pairs = re.split(r"\s*[,;]\s*(?=\w+\s*=)|\s+(?=\w+\s*=)", text.strip())
    pairs = pairs if all("=" in one for one in pairs) else [text]  # 'The text=question'
    return [re.sub(r"""=\s*(["'])(.*)\1$""", r"=\2", one) for one in pairs]


def _take_signal_flags(stated: _Stated, texts: Sequence[str]) -> None:
    """Note the NAME or NAME=no of each `--signal`; an unknown one is a fault."""
    whole = dict.fromkeys(text if "=" in text else f"{text}=yes" for text in texts)
    pairs, known = (_pairs(stated, whole, "--signal", "NAME, or NAME=no"), signals(stated.facts))
    said = {name: YES_NO.get(value.lower()) for name, value in pairs.items() if name in known}
    named = NamedValue("--signal", pairs)
    stated.faults += [
        unknown_name("signal", name, known, at="--signal") for name in pairs if name not in known
    ]
    stated.faults += [
        Flag().refuse(pairs[name], named, (name,)) for name, is_so in said.items() if is_so is None
    ]
    stated.take_signals(said, dict.fromkeys(said, "--signal"))


def _take_limits(stated: _Stated, text: str) -> None:
    """Note 'usd=20,hours=6', or as people write it: 20, $20, '20 dollars, 6 h'."""
    from advisor.situation.limits import limit_pairs  # few answers have one

    parts = parts_of("budget", stated.facts)
    limits: dict[str, Any] = _pairs(stated, limit_pairs(text), "--budget", "usd=20,hours=6")
    for name in limits:
        with suppress(ValueError):
            limits[name] = _number(limits[name])
    inside = Keys(keys={part: fact_shape(stated.facts[name]) for part, name in parts.items()})
    stated.faults += check_shape(NamedValue("--budget", limits), inside)
    for part in filter(parts.get, limits):
        stated.take(parts[part], limits[part], f"--budget {part}=")


def answers_document(answers: AnswerSet) -> dict[str, Any]:
    """The answers as an answers file: what can be saved, sent and handed back with --answers."""
    known = {fact_id: answer.value for fact_id, answer in answers.known.items()}
    whole: dict[str, Any] = {}
    inside: dict[str, dict[str, Any]] = {}
    for fact in load_facts().values():
        key, _, part = (fact.answer or "").partition(".")
        if fact.id in known and part:
            inside.setdefault(key, {})[part] = known[fact.id]
        elif fact.id in known:
            whole[key] = known[fact.id]
    whole |= inside
    document = {key: whole[key] for key in WRITTEN if key in whole}
    if inside.get("gpu", {}).keys() == {"name"}:
        document["gpu"] = inside["gpu"]["name"]
    denied = dict.fromkeys((name for name, value in known.items() if value is False), False)
    if denied:
        document["signals"] = dict.fromkeys(answers.signals, True) | denied
    elif "signals" in known:
        document["signals"] = list(answers.signals)
    return document


def command_line(
    answers: AnswerSet, changes: Mapping[str, Any], *, command: str = "advise run"
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


def fact_shape(fact: Fact) -> Shape:
    """What may be stated of one fact."""
    match fact.type:
        case "choice":
            return Choice(values=tuple(fact.values))
        case "number":
            return Number(whole=fact.integer, min=fact.min, max=fact.max, unit=fact.unit)
        case "map":
            named = FolderName() if fact.id == "tasks" else Text()
            return MapOf(of=Text(), named=named, least=1)
        case "flag":
            return Shape()
    return Text()


def answers_shape(facts: Mapping[str, Fact]) -> Keys:
    """The keys of an answers file. `data: {rows: 5000}` states the fact whose answer is data.rows.

    A map that stands for one of its parts may be that part alone: `data: train.jsonl`.
    """
    whole: dict[str, Shape] = {}
    for fact in facts.values():
        if fact.answer and "." not in fact.answer:
            whole[fact.answer] = fact_shape(fact)
    named = (fact.answer or "" for fact in facts.values())
    for key in dict.fromkeys(name.partition(".")[0] for name in named if "." in name):
        parts = parts_of(key, facts)
        first = whole.get(key, fact_shape(facts[next(iter(parts.values()))]))
        inside = {part: fact_shape(facts[name]) for part, name in parts.items()}
        whole[key] = OneOf(options=(first, Keys(keys=inside, nulls=True)))
    whole["signals"] = OneOf(options=(ListOf(of=Text()), MapOf(of=Flag(null=True))))
    return Keys(keys=whole, nulls=True, others=partial(_where_it_belongs, facts))


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
