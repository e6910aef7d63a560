"""What --choose means, and what would train if the answer trains nothing."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace

from advisor.advice.advise import candidate_of, with_choice
from advisor.advice.planning import missing_for_plan
from advisor.advice.types import Advice, Candidate
from advisor.commands.session import MISSING
from advisor.ground.errors import InputError, did_you_mean
from advisor.methods import objectives, remedies, schemes
from advisor.methods.composition import ENCODER, PER_TASK, Composition, compose, parse_composition
from advisor.ruleset.model import Ruleset

AT = "--choose"


def choose_candidate(
    advice: Advice, ruleset: Ruleset, choose: str | None, *, force: bool
) -> Advice:
    """The advice with the candidate that --choose names in place of the recommended one.

    --force also takes data that do not suit the task.

    Raises InputError if there is no such candidate, or it may not be taken.
    """
    if force:
        advice = replace(advice, situation=replace(advice.situation, unsuited=""))
    if choose is None:
        return advice
    wanted = composition_meant(choose, advice, ruleset)
    candidates = (advice.recommendation, *advice.alternatives)
    found = next((each for each in candidates if each.composition == wanted), None)
    if found is advice.recommendation:
        return advice
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
    return with_choice(advice, found)


def composition_meant(choose: str, advice: Advice, ruleset: Ruleset) -> Composition:
    """The composition that a value of --choose stands for.

    A chain alone (`dpo`) takes the recommended scheme, or the best one that fits if that does
    not; a scheme alone (`qlora`) keeps the recommended chain.

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
            hint=did_you_mean(unknown[0], known) or "`advise rules METHOD` explains one",
        )
    per_task = name.endswith(PER_TASK) or like.per_task
    wanted = compose(chain, like.scheme or "lora", per_task=per_task)
    return _fitting(wanted, advice, ruleset)


def _fitting(wanted: Composition, advice: Advice, ruleset: Ruleset) -> Composition:
    """The composition, or the first of the same chain that can be taken and fits."""
    listed = [
        one
        for one in (advice.recommendation, *advice.alternatives)
        if (one.composition.chain, one.composition.encoder) == (wanted.chain, wanted.encoder)
    ]
    asked = next((one for one in listed if one.composition == wanted), None)
    asked = asked or candidate_of(advice, ruleset, wanted)
    return next((one for one in (asked, *listed) if _is_possible(one)), asked).composition


def _is_possible(candidate: Candidate) -> bool:
    return candidate.forced_ok and candidate.estimate.fits != "too_big"


def trained(advice: Advice) -> Iterator[Candidate]:
    """The candidates that train something, the best first."""
    yield from (
        one for one in (advice.recommendation, *advice.alternatives) if one.composition.chain
    )


# --------------------------------------------------------------------------- nothing to train


def nothing_to_train(advice: Advice, ruleset: Ruleset) -> str:
    """Why there is no plan, and how to train all the same; "" if the answer trains something.

    That is an answer and no bad input: whoever asked for a plan gets exit code 3 with it.
    """
    composition = advice.recommendation.composition
    if composition.chain or not advice.fits:
        return ""
    why = f"the answer is '{composition}', which trains nothing: there is no plan to write or run"
    outside = advice.situation.outside
    if outside is not None:  # --force takes the composition, and no plan can hold this model
        thing = "model (--model)" if outside.is_model else "device (--gpu)"
        return f"{why}; to train with this tool, name another {thing}"
    how = way_to_train(advice, ruleset)
    return f"{why}; to train all the same: {how}" if how else why


def way_to_train(advice: Advice, ruleset: Ruleset) -> str:
    """The options that make a plan if the answer is to train nothing, of the candidate that
    lacks least for one, and what has to be given with them.
    """
    ways = [
        (missing_for_plan(advice, candidate), candidate.composition)
        for candidate in trained(advice)
        if _is_possible(candidate)
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
