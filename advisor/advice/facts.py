"""What the rules see: the facts of a situation, coarse and named as in rules/facts.yaml, without
those that are not known. And what was stated together though it cannot be, all of it in one error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from advisor.ground.errors import Fault
from advisor.ground.types import AnswerSet, DataProfile, Hardware, ModelShape
from advisor.methods import objective
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
OF_DEVICE = ("device", "gpus", "compute_capability", "cpu_bf16")
WITHOUT_ANSWERS = ("raw_text", "prompts_with_verifier", "none")  # kinds of data
OF_ROWS = ("answers_with_new_facts", "requests_per_answer", "answer_words_in_request")
DATA_FACTS = ("data_kind", "data_rows", "data_tokens")
ORIGIN_WORDS = {"default": "assumed", "file": "answers file", "flag": "flag", "asked": "answered"}
DOTTED = {"data_kind": "data.kind", "data_rows": "data.rows", "data_tokens": "data.tokens"}
NO_FACTS = ("signals", "tasks", "data_mapping")  # answers that are read into facts
TAKE_BACK = "take one of them back"


def situation_facts(situation: Situation, **changes: Any) -> dict[str, Any]:
    """Fact id -> value for all that is known before an estimate, with some of them changed."""
    answers = situation.answers
    facts: dict[str, Any] = {
        fact_id: answer.value
        for fact_id, answer in answers.known.items()
        if fact_id not in NO_FACTS
    }
    if facts.get("budget_usd") == 0:  # nothing is rented: what there is costs electricity alone
        del facts["budget_usd"]
        facts["budget"] = "low"
    facts |= dict.fromkeys(_stated_signals(answers), True)
    facts |= _facts_of_data(data_profiles(situation))
    if answers.value("tasks"):
        facts["n_tasks"] = len(answers.value("tasks"))
    facts |= _facts_of_hardware(situation.hardware)
    if situation.model is not None and situation.suggestion is None:
        facts |= _facts_of_model(situation, situation.model, facts)
    derived = {
        "out_of_scope": situation.outside and situation.outside.kind,
        "teacher": _teacher(situation, facts | changes),
        "checkpoint_kind": _checkpoint_kind(situation, facts | changes),
    }
    return facts | {name: one for name, one in derived.items() if one is not None} | changes


def data_profiles(situation: Situation) -> list[DataProfile]:
    """The data, or those of each task."""
    return [situation.data] if situation.data is not None else list(situation.tasks.values())


def needs_scores(name: str, before: Sequence[str]) -> bool:
    """Whether a stage scores its own answers, with no reward model trained before it."""
    scored = any(objective(earlier).scores for earlier in before)
    return objective(name).needs_reward and not scored


def answers_are_checked(situation: Situation) -> bool:
    """Whether every row has an answer that an own one can be held against."""
    profiles = data_profiles(situation)
    kinds = {profile.kind for profile in profiles} or {situation.answers.value("data_kind")}
    unanswered = any(profile.format == "requests" for profile in profiles)
    return kinds == {"prompts_with_verifier"} and not unanswered


def _facts_of_data(profiles: Sequence[DataProfile]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if not profiles:
        return facts
    kinds = {profile.kind for profile in profiles}
    if all(profile.format == "requests" for profile in profiles):
        facts["data_kind"] = "none"  # there is no answer to learn or to check
    elif len(kinds) == 1:
        facts["data_kind"] = kinds.pop()
    facts["data_rows"] = max(profile.rows for profile in profiles)
    counted = [(profile.kind, profile.tokens) for profile in profiles if profile.tokens]
    if len(counted) == len(profiles):
        facts["data_tokens"] = max(tokens.total for _, tokens in counted)
    if len(profiles) == 1:
        measured = profiles[0].measures.get("new_facts") or {}
        facts |= {name: measured[name] for name in OF_ROWS if name in measured}
    # A document is split, whatever its length.
    if whole := [tokens for kind, tokens in counted if kind != "raw_text"]:
        facts["row_tokens"] = max(tokens.p95 for tokens in whole)
    return facts


def device(hardware: Hardware) -> str:
    """gpu (NVIDIA or AMD), apple_gpu, cpu or unknown."""
    return {"unknown": "unknown", "cpu": "cpu", "mps": "apple_gpu"}.get(hardware.kind, "gpu")


def _facts_of_hardware(hardware: Hardware) -> dict[str, Any]:
    facts: dict[str, Any] = {"device": device(hardware)}
    if facts["device"] == "cpu" and hardware.cpu_bf16 is not None:
        facts["cpu_bf16"] = hardware.cpu_bf16
    if hardware.gpus:
        facts["gpus"] = len(hardware.gpus)
        capabilities = [gpu.compute_capability for gpu in hardware.gpus if gpu.compute_capability]
        if len(capabilities) == len(hardware.gpus):
            major, minor = min(capabilities)
            facts["compute_capability"] = major + minor / 10
    return facts


def _facts_of_model(
    situation: Situation, shape: ModelShape, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """What rules see of a model: size, family, checkpoint, and whether it thinks while nothing says
    whether the answers in the data hold thoughts.
    """
    found: dict[str, Any] = {"params_b": shape.params / 1e9, **model_facts(shape)}
    if shape.architecture is not None:
        found["model_family"] = kind_of_type(shape.architecture)
    is_read = situation.data is not None or bool(situation.tasks)
    has_answers = facts.get("data_kind") not in WITHOUT_ANSWERS
    return found | {"thoughts_unseen": shape.thinks is not None and not is_read and has_answers}


def model_facts(shape: ModelShape) -> dict[str, Any]:
    """Whether the model is a mixture of experts, and how its checkpoint is stored."""
    stored = "plain" if shape.stored is None else shape.stored
    known = load_facts()["checkpoint_stored"].values
    return {
        "mixture_of_experts": shape.is_mixture,
        "avoid_4_bit": shape.avoid_4_bit,
        "checkpoint_stored": stored if stored in known else "packed",
    }


def suggestion_counts(situation: Situation, facts: Mapping[str, Any]) -> bool:
    """Whether the suggested model is as good as named, since hardware and data are known."""
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
    found = {**_facts_of_model(situation, shape, facts), **facts}
    if shape.instruct is not None:
        found.setdefault("checkpoint_kind", "instruct" if shape.instruct else "base")
    return found


def _stated_signals(answers: AnswerSet) -> tuple[str, ...]:
    """The signals and what all answers imply, but for what a no implies against an explicit no."""
    known, stated = load_facts(), stated_values(answers)
    implied = (
        name
        for fact_id, value in stated.items()
        for name in (known[fact_id].implied_by(value) if fact_id in known else ())
        if value is not False or stated.get(name) is not False
    )
    return tuple(dict.fromkeys((*answers.signals, *implied)))


def stated_values(answers: AnswerSet) -> dict[str, Any]:
    """Fact id -> value, of what was stated alone: a signal of the list is a yes."""
    named = {fact: answer.value for fact, answer in answers.known.items() if fact != "signals"}
    return {**named, **dict.fromkeys(answers.signals, True)}


def _checkpoint_kind(situation: Situation, facts: Mapping[str, Any]) -> str | None:
    """base or instruct, by a signal or the model's name; None: not known."""
    instruct, base = facts.get("instruct_model_start"), facts.get("base_model_untuned")
    signals = {instruct, None if base is None else not base} - {None}
    if len(signals) == 1:  # two answers that contradict each other are not believed
        return "instruct" if signals.pop() else "base"
    shape = situation.model
    if shape is None or situation.suggestion is not None or shape.instruct is None:
        return None
    return "instruct" if shape.instruct else "base"


def _teacher(situation: Situation, facts: Mapping[str, Any]) -> str | None:
    """none, texts, or model if it can run beside this one; None: not known. A named teacher of
    another vocabulary, or too large for the GPU, can only write texts.
    """
    if (teacher := situation.teacher) is not None:
        if situation.model is not None and situation.model.id == teacher.id:
            return "none"
        beside = may_share_vocabulary(situation.model, teacher)
        return "model" if beside and teacher_fits(situation.hardware, teacher) else "texts"
    if facts.get("teacher") is not None:
        return str(facts["teacher"])
    if facts.get("teacher_model"):
        return "model"
    available = facts.get("teacher_available")
    return None if available is None else "texts" if available else "none"


def fact_origin(situation: Situation, fact_id: str) -> str:
    """Where a fact came from, in words, unless it was estimated or concluded."""
    answers, profiles = situation.answers, data_profiles(situation)
    if fact_id in (*DATA_FACTS, *OF_ROWS, "row_tokens") and profiles:
        return f"read from {', '.join(profile.path for profile in profiles)}"
    if fact_id in OF_DEVICE:
        return situation.hardware.origin
    if fact_id == "out_of_scope" and situation.outside is not None:
        return f"from {situation.outside.named}"
    if fact_id in OF_MODEL and situation.model is not None:
        return f"from {situation.model.id}"
    of_start = {"base_model_untuned", "instruct_model_start"}
    if fact_id == "checkpoint_kind" and of_start.isdisjoint(answers.signals):
        return "from the model's name"
    if fact_id == "n_tasks" and answers.value("tasks"):
        return "the number of task files"
    answer = answers.known.get(fact_id) or answers.known.get("signals")
    return ORIGIN_WORDS[answer.origin] if answer is not None else "stated"


def unknown_facts(situation: Situation, facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the facts that would help and are not known, as an answers file spells them."""
    known = set(facts) - {"gpu"}  # `unknown` may be stated
    if situation.hardware.kind != "unknown":
        known.add("gpu")
    if not known.isdisjoint(("budget_usd", "budget_hours")):
        known.add("budget")
    missing = [DOTTED.get(name, name) for name in WORTH_KNOWING if name not in known]
    return tuple(dict.fromkeys([*missing, *situation.unknown]))


# --------------------------------------------------------------------------- what cannot be


def contradictions(ruleset: Ruleset, situation: Situation, facts: Mapping[str, Any]) -> list[Fault]:
    """Every contradiction in what is known of a situation and in what was stated."""
    answers, stated = situation.answers, stated_values(situation.answers)
    faults = []
    for broken in ruleset.contradictions(facts):
        values = {condition.fact: facts[condition.fact] for condition in broken.never}
        # What a file or a model says is said of it, whatever was stated beside it.
        where = {name: fact_origin(situation, name) for name in values} | {
            name: answers.where[name]
            for name, value in values.items()
            if name in answers.where and stated.get(name) == value
        }
        hint, at = TAKE_BACK, ""
        if ruleset.facts[next(iter(values))].origin == "model":
            at = answers.where.get("model", "")
        if situation.instead and any(ruleset.facts[name].origin == "model" for name in values):
            hint = f"name another model, such as {situation.instead.model}"
        faults.append(_fault(values, where, broken.because, hint, at))
    return faults + contradictions_in(ruleset, situation.answers)


def contradictions_in(ruleset: Ruleset, answers: AnswerSet) -> list[Fault]:
    """Every contradiction in what was stated; needs no machine, data or model."""
    stated = stated_values(answers)
    return [
        _fault({name: stated[name] for name in names}, answers.where, because)
        for names, because in _impossible(ruleset, stated)
    ]


def can_be_stated(ruleset: Ruleset, stated: Mapping[str, Any]) -> bool:
    """Whether a person can state all of this without contradicting themselves."""
    return next(_impossible(ruleset, stated), None) is None


def _impossible(
    ruleset: Ruleset, stated: Mapping[str, Any]
) -> Iterator[tuple[tuple[str, ...], str]]:
    """(the facts that contradict each other, why) for each contradiction."""
    for one in ruleset.refuse:
        if one.is_broken_by(stated):
            yield tuple(condition.fact for condition in one.never), one.because
    rows, tokens = stated.get("data_rows"), stated.get("data_tokens")
    if rows and tokens and tokens < rows:
        yield ("data_rows", "data_tokens"), "every example holds a token at least"
    for name, value in stated.items():
        # What a no implies gives way to an explicit no: nobody was ever asked both.
        if name not in ruleset.facts or value is False:
            continue
        for implied in ruleset.facts[name].implied_by(value):
            if stated.get(implied) is False:
                so, then = says(ruleset.facts[name], value), says(ruleset.facts[implied], True)
                yield (name, implied), f"if {so}, {then}"


def _fault(
    values: Mapping[str, Any],
    where: Mapping[str, str],
    because: str,
    hint: str = TAKE_BACK,
    at: str = "",
) -> Fault:
    words = {True: "yes", False: "no"}
    parts = [
        f"{name} is {words[value] if isinstance(value, bool) else value}"
        f" ({where.get(name, 'stated')})"
        for name, value in values.items()
    ]
    what = f"{' and '.join(parts)}: this cannot be"
    first = next(iter(values))
    typed = where.get(first, "")
    return Fault(
        where=at or (typed if typed.startswith("--") else first),
        what=what,
        allowed=because,
        hint=hint,
    )
