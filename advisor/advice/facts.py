"""What the rules see: the facts of a situation, coarse and named as in rules/facts.yaml, without
those that are not known. And what was stated together though it cannot be, all of it in one error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from advisor.ground.errors import Fault
from advisor.ground.types import Answers, ModelShape
from advisor.methods.families import kind_of_type
from advisor.ruleset.facts import load_facts
from advisor.ruleset.model import Ruleset
from advisor.ruleset.phrases import says
from advisor.situation.types import Situation, may_share_vocabulary, teacher_fits

# Facts whose absence is worth telling, in the order they are told.
WORTH_KNOWING = ("depth", "data_kind", "data_rows", "data_tokens", "budget", "model", "gpu")
OF_MODEL = (
    "params_b", "model_family", "mixture_of_experts", "checkpoint_stored", "avoid_4_bit",
    "thoughts_unseen",
)  # fmt: skip
WITHOUT_ANSWERS = ("raw_text", "prompts_with_verifier", "none")  # kinds of data
DATA_FACTS = ("data_kind", "data_rows", "data_tokens")
ORIGIN_WORDS = {"default": "assumed", "file": "answers file", "flag": "flag", "asked": "answered"}
DOTTED = {"data_kind": "data.kind", "data_rows": "data.rows", "data_tokens": "data.tokens"}


def device(situation: Situation) -> str:
    """gpu (NVIDIA or AMD), apple_gpu, cpu or unknown."""
    kind = situation.hardware.kind
    return {"unknown": "unknown", "cpu": "cpu", "mps": "apple_gpu"}.get(kind, "gpu")


def situation_facts(situation: Situation) -> dict[str, Any]:
    """Fact id -> value for everything that is known before anything is estimated."""
    answers, data, hardware = situation.answers, situation.data, situation.hardware
    facts: dict[str, Any] = {
        fact_id: answer.value
        for fact_id, answer in answers.known.items()
        if fact_id not in ("signals", "tasks", "data_mapping")
    }
    if facts.get("budget_usd") == 0:  # nothing is rented: what there is costs electricity alone
        facts.pop("budget_usd")
        facts["budget"] = "low"
    facts.update(dict.fromkeys(stated_signals(answers), True))
    profiles = [data] if data is not None else list(situation.tasks.values())
    if profiles:
        kinds = {profile.kind for profile in profiles}
        if len(kinds) == 1:
            facts["data_kind"] = kinds.pop()
        if all(profile.format == "requests" for profile in profiles):
            facts["data_kind"] = "none"  # there is no answer to learn or to check
        facts["data_rows"] = max(profile.rows for profile in profiles)
        if all(profile.tokens is not None for profile in profiles):
            facts["data_tokens"] = max(
                profile.tokens.total for profile in profiles if profile.tokens is not None
            )
        # A document is split, whatever its length.
        counted = [one.tokens for one in profiles if one.tokens and one.kind != "raw_text"]
        if counted:
            facts["row_tokens"] = max(tokens.p95 for tokens in counted)
    if answers.value("tasks"):
        facts["n_tasks"] = len(answers.value("tasks"))
    facts["device"] = device(situation)
    if facts["device"] == "cpu" and hardware.cpu_bf16 is not None:
        facts["cpu_bf16"] = hardware.cpu_bf16
    if hardware.gpus:
        facts["gpus"] = len(hardware.gpus)
        capabilities = [
            gpu.compute_capability for gpu in hardware.gpus if gpu.compute_capability is not None
        ]
        if len(capabilities) == len(hardware.gpus):
            major, minor = min(capabilities)
            facts["compute_capability"] = major + minor / 10
    if situation.model is not None and situation.suggestion is None:
        facts |= facts_of_model(situation.model)
        facts["thoughts_unseen"] = thoughts_unseen(situation, facts)
    if situation.outside is not None:
        facts["out_of_scope"] = situation.outside.kind
    teacher = teacher_of(situation, facts)
    if teacher is not None:
        facts["teacher"] = teacher
    start = start_of(situation, facts)
    if start is not None:
        facts["checkpoint_kind"] = start
    return facts


def thoughts_unseen(situation: Situation, facts: Mapping[str, Any]) -> bool:
    """Whether the model thinks before it answers, and nothing tells whether the answers in the data
    hold thoughts: of a file it is known, and said where the file is read.
    """
    return (
        situation.model is not None
        and situation.model.thinks is not None
        and situation.data is None
        and not situation.tasks
        and facts.get("data_kind") not in WITHOUT_ANSWERS
    )


def facts_of_model(shape: ModelShape) -> dict[str, Any]:
    """What rules see of a model by itself: its size, its family, how its checkpoint is stored."""
    facts: dict[str, Any] = {"params_b": shape.params / 1e9, **model_facts(shape)}
    if shape.architecture is not None:
        facts["model_family"] = kind_of_type(shape.architecture)
    return facts


def suggestion_counts(situation: Situation, facts: Mapping[str, Any]) -> bool:
    """Whether the suggested model is as good as named: once hardware and data are known, stated or
    probed or read, its size and what fits are known facts. Before that the answer to a scenario of
    the guide stays the guide's.
    """
    return (
        situation.suggestion is not None
        and situation.hardware.device_memory_bytes is not None
        and not facts.keys().isdisjoint(DATA_FACTS)
    )


def with_suggested_model(situation: Situation, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts with those of the suggested model, as far as it counts and nothing denies them."""
    shape = situation.model
    if shape is None or not suggestion_counts(situation, facts):
        return dict(facts)
    unseen = thoughts_unseen(situation, facts)
    found = {**facts_of_model(shape), "thoughts_unseen": unseen, **facts}
    if "checkpoint_kind" not in found and shape.instruct is not None:
        found["checkpoint_kind"] = "instruct" if shape.instruct else "base"
    return found


def model_facts(shape: ModelShape) -> dict[str, Any]:
    """Whether the model is a mixture of experts, and how its checkpoint is stored."""
    stored = "plain" if shape.stored is None else shape.stored
    known = load_facts()["checkpoint_stored"].values
    return {
        "mixture_of_experts": shape.is_mixture,
        "avoid_4_bit": shape.avoid_4_bit,
        "checkpoint_stored": stored if stored in known else "packed",
    }


def stated_signals(answers: Answers) -> tuple[str, ...]:
    """The signals with everything that they and the other answers imply (rules/facts.yaml,
    `implies`). What a no implies is not believed against an explicit no.
    """
    known = load_facts()
    said = stated_values(answers)
    found = dict.fromkeys(answers.signals)
    for fact_id, value in said.items():
        for implied in known[fact_id].implied_by(value) if fact_id in known else ():
            if value is not False or said.get(implied) is not False:
                found[implied] = None
    return tuple(found)


def stated_values(answers: Answers) -> dict[str, Any]:
    """Fact id -> value, of what was stated alone: a signal of the list is a yes."""
    named = {fact_id: answer.value for fact_id, answer in answers.known.items()}
    named.pop("signals", None)
    return {**named, **dict.fromkeys(answers.signals, True)}


def start_of(situation: Situation, facts: dict[str, Any]) -> str | None:
    """base or instruct: as a signal says, else as the name of a named model says, else not
    known.
    """
    instruct, base = facts.get("instruct_model_start"), facts.get("base_model_untuned")
    said = {instruct, None if base is None else not base} - {None}
    if len(said) == 1:  # two answers that contradict each other are not believed
        return "instruct" if said.pop() else "base"
    shape = situation.model
    if shape is None or situation.suggestion is not None or shape.instruct is None:
        return None
    return "instruct" if shape.instruct else "base"


def teacher_of(situation: Situation, facts: Mapping[str, Any]) -> str | None:
    """Whether there is a larger model to learn from, and whether it can run beside this one: as
    stated, else as a named teacher or a signal says, else not known.

    A named teacher of another vocabulary, or too large for the GPU, can only write texts; the model
    itself is no teacher.
    """
    if (teacher := situation.teacher) is not None:
        if situation.model is not None and situation.model.id == teacher.id:
            return "none"
        beside = may_share_vocabulary(situation.model, teacher)
        return "model" if beside and teacher_fits(situation.hardware, teacher) else "texts"
    stated = facts.get("teacher")
    if stated is not None:
        return str(stated)
    if facts.get("teacher_model"):
        return "model"
    available = facts.get("teacher_available")
    return None if available is None else "texts" if available else "none"


def fact_origin(situation: Situation, fact_id: str) -> str:
    """Where a fact of the situation came from, in words; what was estimated or concluded is told by
    the caller.
    """
    answers, hardware = situation.answers, situation.hardware
    profiles = [situation.data] if situation.data is not None else list(situation.tasks.values())
    if fact_id in (*DATA_FACTS, "row_tokens") and profiles:
        return f"read from {', '.join(profile.path for profile in profiles)}"
    if fact_id in ("device", "gpus", "compute_capability", "cpu_bf16"):
        return hardware.origin
    if fact_id == "out_of_scope" and situation.outside is not None:
        return f"from {situation.outside.named}"
    if fact_id in OF_MODEL and situation.model is not None:
        return f"from {situation.model.id}"
    if fact_id == "checkpoint_kind" and not {"base_model_untuned", "instruct_model_start"} & set(
        answers.signals
    ):
        return "from the model's name"
    if fact_id == "n_tasks" and answers.value("tasks"):
        return "the number of task files"
    answer = answers.known.get(fact_id) or answers.known.get("signals")
    return ORIGIN_WORDS[answer.origin] if answer is not None else "stated"


def unknown_facts(situation: Situation, facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the facts that would help and are not known, as an answers file spells them."""
    missing = []
    for fact_id in WORTH_KNOWING:
        if fact_id == "gpu":
            known = situation.hardware.kind != "unknown"
        elif fact_id == "budget":
            known = any(f"budget{part}" in facts for part in ("", "_usd", "_hours"))
        else:
            known = fact_id in facts
        if not known:
            missing.append(DOTTED.get(fact_id, fact_id))
    return tuple(dict.fromkeys([*missing, *situation.unknown]))


TAKE_BACK = "take one of them back"


def contradictions(ruleset: Ruleset, situation: Situation, facts: Mapping[str, Any]) -> list[Fault]:
    """Every contradiction in what is known of a situation (rules/facts.yaml, `assume`), in what was
    stated (`refuse`), and between what a statement implies and an explicit no.
    """
    answers, said = situation.answers, stated_values(situation.answers)
    faults = []
    for names, because in _broken(ruleset, facts):
        values = {name: facts[name] for name in names}
        # What a file or a model says is said of it, whatever was stated beside it.
        where = {name: fact_origin(situation, name) for name in names}
        where |= {
            name: answers.where[name]
            for name, value in values.items()
            if name in answers.where and said.get(name) == value
        }
        of_model = any(ruleset.facts[name].origin == "model" for name in names)
        hint = (
            f"name another model, such as {situation.instead.model}"
            if of_model and situation.instead is not None
            else TAKE_BACK
        )
        faults.append(_fault(values, where, because, hint))
    return faults + contradictions_in(ruleset, situation.answers)


def contradictions_in(ruleset: Ruleset, answers: Answers) -> list[Fault]:
    """Every contradiction in what was stated; needs no machine, data or model."""
    said = stated_values(answers)
    return [
        _fault({name: said[name] for name in names}, answers.where, because)
        for names, because in _unsayable(ruleset, said)
    ]


def can_be_said(ruleset: Ruleset, said: Mapping[str, Any]) -> bool:
    """Whether a person can state all of this without contradicting themselves."""
    return next(_unsayable(ruleset, said), None) is None


def _broken(ruleset: Ruleset, facts: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    for found in ruleset.contradictions(facts):
        yield tuple(condition.fact for condition in found.never), found.because


def _unsayable(ruleset: Ruleset, said: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    for found in ruleset.refuse:
        if found.is_broken_by(said):
            yield tuple(condition.fact for condition in found.never), found.because
    rows, tokens = said.get("data_rows"), said.get("data_tokens")
    if rows and tokens and tokens < rows:
        yield ("data_rows", "data_tokens"), "every example holds a token at least"
    for name, value in said.items():
        # What a no implies gives way to an explicit no: nobody was ever asked both.
        if name not in ruleset.facts or value is False:
            continue
        for implied in ruleset.facts[name].implied_by(value):
            if said.get(implied) is False:
                because = (
                    f"if {says(ruleset.facts[name], value)}, {says(ruleset.facts[implied], True)}"
                )
                yield (name, implied), because


def _fault(
    values: Mapping[str, Any], where: Mapping[str, str], because: str, hint: str = TAKE_BACK
) -> Fault:
    said = " and ".join(
        f"{name} is {_word(value)} ({where.get(name, 'stated')})" for name, value in values.items()
    )
    return Fault(
        where=next(iter(values)), what=f"{said}: this cannot be", allowed=because, hint=hint
    )


def _word(value: Any) -> str:
    return "yes" if value is True else "no" if value is False else str(value)
