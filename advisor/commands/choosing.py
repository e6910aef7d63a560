"""A candidate that --choose names, and how to train if nothing is to be trained: few answers need
it.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from advisor.advice.advise import candidate_of
from advisor.advice.planning import missing_for_plan
from advisor.advice.types import Advice, Candidate
from advisor.ground.errors import Fault, InputError, did_you_mean
from advisor.methods import objectives, remedies, schemes
from advisor.methods.composition import ENCODER, PER_TASK, Composition, compose, parse_composition
from advisor.ruleset.model import Ruleset
from advisor.situation.instead import instead_of

# What a plan may lack -> the option that gives it, with an example, and what that is.
MISSING = {
    "data.path": ("--data examples.jsonl", "your examples"),
    "data.examples": (
        "--examples examples.jsonl",
        "requests and answers beside documents or pairs",
    ),
    "model": ("--model Qwen/Qwen3-8B", "a hub id or a directory"),
    "engine": ("--gpu H100", "a device that these trainers run on; or the tool named above"),
    "tasks": ("--tasks first=examples.jsonl", "one for each task"),
    "teacher_model": ("--teacher-model Qwen/Qwen3-32B", "a larger model of the same family"),
    "reward_model": (
        "--reward-model reward-model",
        "a model that scores answers; or train one on the way: --choose 'sft>rm>ppo+lora'",
    ),
}
AT = "--choose"


def incomplete(missing: Sequence[str], advice: Advice) -> InputError:
    """The error of a plan that cannot be made, since it lacks these: one fault for each."""
    faults = []
    for key in missing:
        what, allowed = f"{key} is missing, and a plan needs it", ": ".join(MISSING.get(key, ()))
        named = advice.situation.answers.value("model") if key == "model" else None
        if named is not None:
            what = f"the layers of {named} are not known, and a plan needs them"
            allowed = "; ".join(filter(None, (instead_of(str(named)), allowed)))
        faults.append(Fault(where=key, what=what, allowed=allowed))
    return InputError(faults=faults or [Fault(what="the answer trains nothing: there is no plan")])


def chosen_candidate(advice: Advice, ruleset: Ruleset, choose: str, *, force: bool) -> Candidate:
    """The candidate that --choose names. Raises InputError if there is none, or it may not be
    taken.
    """
    wanted = composition_meant(choose, advice)
    candidates = (advice.recommendation, *advice.alternatives)
    found = next((each for each in candidates if each.composition == wanted), None)
    if found is advice.recommendation:
        return found
    if found is None and wanted.chain:
        found = candidate_of(advice, ruleset, wanted)
    if found is None:
        listed = ", ".join(str(candidate.composition) for candidate in candidates)
        raise InputError(
            f"'{wanted}' is not a candidate here",
            where=AT,
            allowed=f"candidates: {listed}, or any other chain with a scheme",
        )
    if len(advice.situation.hardware.gpus) > 1 and wanted.chain:
        is_too_big = found.estimate.fits == "too_big"
        again = candidate_of(advice, ruleset, wanted, offload=is_too_big)
        found = replace(found, ways=again.ways) if not is_too_big else again
    if not found.forced_ok:
        raise InputError(
            f"'{wanted}' cannot be taken: {found.because[0].text}",
            where=AT,
            hint="--force does not override this",
        )
    if not force:
        raise InputError(
            f"'{wanted}' is not recommended: {found.because[0].text}",
            where=AT,
            hint=f"to take it anyway: {AT} {shlex.quote(str(wanted))} --force",
        )
    return found


def composition_meant(choose: str, advice: Advice) -> Composition:
    """The composition that a value of --choose stands for.

    A chain alone (`dpo`) takes the recommended scheme, a scheme alone (`qlora`) keeps the
    recommended chain.

    Raises InputError for a name that is neither, with the nearest one.
    """
    name = choose.strip()
    if "+" in name or "&" in name or name in remedies():
        return parse_composition(name, at=AT)
    like = next(trained(advice), advice.recommendation).composition
    if name in schemes() and like.chain:
        alike = compose(">".join(like.chain), name, per_task=like.per_task)
        return replace(alike, encoder=like.encoder, remedies=like.remedies)
    chain = name.removesuffix(PER_TASK)
    parts = chain.removeprefix(ENCODER).split(">")
    unknown = [part for part in parts if part not in objectives()]
    if unknown:
        known = [*objectives(), *schemes(), *remedies()]
        raise InputError(
            f"unknown method '{unknown[0]}'",
            where=AT,
            allowed=(
                f"an objective ({', '.join(objectives())}), a chain of them (sft>dpo), a scheme"
                f" ({', '.join(schemes())}), both (sft+lora), or a remedy"
                f" ({', '.join(remedies())})"
            ),
            hint=did_you_mean(unknown[0], known) or "`advise rules` explains each",
        )
    per_task = name.endswith(PER_TASK) or like.per_task
    return compose(chain, like.scheme or "lora", per_task=per_task)


def trained(advice: Advice) -> Iterator[Candidate]:
    """The candidates that train something, the best first."""
    yield from (
        one for one in (advice.recommendation, *advice.alternatives) if one.composition.chain
    )


def way_to_train(advice: Advice, ruleset: Ruleset) -> str:
    """The options that make a plan if the answer is to train nothing, of the candidate that
    lacks least for one, and what has to be given with them.
    """
    ways = [
        (missing_for_plan(advice, candidate), candidate.composition)
        for candidate in trained(advice)
        if candidate.forced_ok and candidate.estimate.fits != "too_big"
    ]
    if not ways:
        return ""
    missing, composition = min(
        ways,  # what no option gives, such as data of another kind, is the worst to lack
        key=lambda way: (not {*way[0]} <= MISSING.keys(), len(way[0]), len(way[1].chain)),
    )
    needed = [MISSING.get(key, ("", key)) for key in missing]
    options = (option for option, _ in needed if option)
    command = " ".join([AT, shlex.quote(str(composition)), "--force", *options])
    words = "; ".join(f"{option}: {what}" if option else f"with {what}" for option, what in needed)
    return f"{command} ({words})" if words else command
