"""What gives an answer its reward, as a stage says it: one source by the short keys, or several
weighted ones by the list `rewards` (rules/keys/rewards.yaml).

Reader of plans, estimator and trainers all ask here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple

from msgspec import Struct, field

from advisor.ground.annotated import build, shape_of
from advisor.ground.errors import refuse, unknown_name
from advisor.ground.resources import rules_dir
from advisor.ground.shape import Integer, Keys, ListOf, Number, Path_, Text
from advisor.ground.yaml_files import read_shipped, shipped_sources

SOURCES = ("verifier", "reward_model", "reward")
LIST = "rewards"
# Key -> the verifiers that read it.
READ_BY: Mapping[str, tuple[str, ...]] = {
    "pattern": ("regex", "format"),
    "schema": ("json_schema",),
    "overlong_tokens": ("length",),
    "ngram": ("repetition",),
}
# What those verifiers cannot do without, in words.
NEEDED = {"pattern": "a regular expression", "schema": "a file with a JSON schema"}
PENALTIES = ("length", "repetition")  # at most 0: they say what is bad, not what is good
OVERLONG_SHARE = 0.2  # of response_tokens: DAPO's 4,096 of 20,480


class RewardPart(Struct, frozen=True, kw_only=True):
    """One source of reward."""

    source: str  # verifier | reward_model | reward
    value: str  # which verifier, folder, stage or function
    name: str  # in metrics and in the report
    weight: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)  # what its verifier reads


class RewardFault(NamedTuple):
    """What is wrong with a key of the stage, and where."""

    place: Path_  # below the stage
    what: str
    allowed: str = ""
    hint: str = ""


def reward_parts(options: Mapping[str, Any]) -> tuple[RewardPart, ...]:
    """The rewards that a stage names; empty if it names none.

    Args:
        options: The keys of a stage whose faults have been told.
    """
    entries = options.get(LIST) or [options]
    return tuple(
        RewardPart(
            source=source,
            value=str(entry[source]),
            name=part_name(entry, source),
            weight=float(entry.get("weight", 1.0)),
            options={key: entry[key] for key in READ_BY if entry.get(key) is not None},
        )
        for entry in entries
        for source in SOURCES
        if entry.get(source)
    )


def part_name(entry: Mapping[str, Any], source: str) -> str:
    """What metrics call a reward: its name, or the verifier, the function, the model's folder."""
    if entry.get("name"):
        return str(entry["name"])
    value = str(entry[source])
    if source == "reward":
        return value.rpartition(":")[2]
    if source == "reward_model":  # of a folder, which may have any name
        return (
            re.sub(r"[^\w.-]+", "-", PurePosixPath(value).name, flags=re.ASCII).strip("-.")
            or source
        )
    return value


def models_that_score(options: Mapping[str, Any]) -> int:
    """How many reward models look at each answer, as the keys say; without keys it is one."""
    parts = reward_parts(options)
    return sum(part.source == "reward_model" for part in parts) if parts else 1


def overlong_tokens(options: Mapping[str, Any], response_tokens: int) -> int:
    """The last tokens of an answer over which verifier length falls to -1."""
    return int(options.get("overlong_tokens") or max(1, int(OVERLONG_SHARE * response_tokens)))


# --------------------------------------------------------------------------- faults


def reward_faults(stage: Mapping[str, Any], *, response_tokens: Any = None) -> list[RewardFault]:
    """What is wrong with the keys that choose the reward, beside the types of single values.

    Args:
        stage: The stage's keys, as written or with defaults; values of wrong types are left alone.
        response_tokens: The longest answer, if it is known.
    """
    found = list(_one_source(stage, ()))
    entries = stage.get(LIST)
    if not isinstance(entries, list):
        if stage.get("verifier") in PENALTIES:
            found += _only_penalties([stage], "verifier")
        return [*found, *_one_entry(stage, (), response_tokens)]
    found += [
        RewardFault((key,), f"'{key}' has no effect beside rewards", "it belongs to an entry there")
        for key in READ_BY
        if stage.get(key) is not None
    ]
    known: dict[str, int] = {}
    for number, entry in enumerate(entries):
        place: Path_ = (LIST, number)
        if not isinstance(entry, dict):
            continue
        sources = [source for source in SOURCES if entry.get(source)]
        if not sources:
            allowed = f"one of {', '.join(SOURCES)}"
            found.append(RewardFault(place, "this reward names nothing that scores", allowed))
        found += [*_one_source(entry, place), *_one_entry(entry, place, response_tokens)]
        if entry.get("weight") == 0:
            hint = "remove the reward, or give it a weight"
            found.append(RewardFault((*place, "weight"), "weight 0: no effect", "", hint))
        for source in sources[:1]:
            found += _name_faults(entry, source, place, known)
            known.setdefault(part_name(entry, source), number)
    return [*found, *_only_penalties(entries)]


def _one_source(entry: Mapping[str, Any], place: Path_) -> Iterator[RewardFault]:
    """Two sources in one place."""
    names = (*SOURCES, LIST) if not place else SOURCES
    given = [name for name in names if entry.get(name)]
    if len(given) < 2:
        return
    what = f"{' and '.join(given)} both say where the reward comes from"
    hint = "" if LIST in given else "several rewards go into the list `rewards`, each with a weight"
    yield RewardFault((*place, given[-1]), what, f"one of {', '.join(names)}", hint)


def _one_entry(entry: Mapping[str, Any], place: Path_, limit: Any) -> Iterator[RewardFault]:
    """Keys of a verifier that it lacks, that it does not read, or that it cannot use."""
    verifier = entry.get("verifier")
    for key, owners in READ_BY.items():
        if entry.get(key) is not None and verifier not in owners:
            what = f"'{key}' has no effect: verifier is {verifier or 'not set'}"
            yield RewardFault((*place, key), what, f"{key} with verifier: {' or '.join(owners)}")
        if verifier in owners and key in NEEDED and not entry.get(key):
            what = f"verifier {verifier} needs the key {key}"
            yield RewardFault((*place, "verifier"), what, "", f"set {key}: {NEEDED[key]}")
    pattern = entry.get("pattern")
    if isinstance(pattern, str):
        try:
            re.compile(pattern.replace("{answer}", "x"))
        except (re.error, OverflowError, RecursionError) as error:
            what = f"pattern is not a regular expression: {error}"
            yield RewardFault((*place, "pattern"), what)
    overlong = entry.get("overlong_tokens")
    if isinstance(overlong, int) and isinstance(limit, int) and overlong > limit:
        what = f"overlong_tokens {overlong} are more than response_tokens {limit}"
        yield RewardFault((*place, "overlong_tokens"), what, f"1 to {limit}")


def _name_faults(
    entry: Mapping[str, Any], source: str, place: Path_, known: Mapping[str, int]
) -> Iterator[RewardFault]:
    name = part_name(entry, source)
    at = (*place, "name" if entry.get("name") else source)
    if entry.get("name") and not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,59}", name, re.ASCII):
        yield RewardFault(at, f"name is {name[:60]!r}", "letters, digits, '_', '-' and '.'")
    if name in known:
        what = f"two rewards are called '{name}' (the first is {LIST}[{known[name]}])"
        yield RewardFault(at, what, "each name once: metrics tell rewards apart by it", "set name")


def _only_penalties(entries: Sequence[Any], place: str = LIST) -> Iterator[RewardFault]:
    """Rewards that say what is bad and not what is good: an empty answer is the best."""
    verifiers = [entry.get("verifier") for entry in entries if isinstance(entry, dict)]
    if verifiers and all(verifier in PENALTIES for verifier in verifiers):
        says = "say" if len(verifiers) > 1 else "says"
        what = f"{' and '.join(map(str, verifiers))} alone {says} only which answers are bad"
        allowed = "in the list `rewards`, beside one that says which answers are good"
        yield RewardFault((place,), what, allowed)


class RolloutWarning(Struct, frozen=True, kw_only=True):
    """A limit on one number of a run."""

    limit: Annotated[float, Number(above=0), "above it a warning is due"]
    lines: Annotated[int, Integer(min=1), "lines of metrics.jsonl whose mean counts"]
    what: Annotated[str, "what the number is a share of, or a multiple"]
    because: Annotated[str, "why it matters"]
    hint: Annotated[str, "what to change"]
    sources: Annotated[tuple[str, ...], ListOf(of=Text(), least=1)]
    confidence: Literal["study", "practice", "judgement"]


ROLLOUT_WARNINGS = ("zero_spread", "cut", "clipped", "length")
ROLLOUTS_FILE = Keys(
    help="When a stage that learns from its own answers warns",
    keys={
        "warnings": Keys(
            keys={name: shape_of(RolloutWarning) for name in ROLLOUT_WARNINGS},
            required=ROLLOUT_WARNINGS,
        )
    },
    required=("warnings",),
)


@cache
def rollout_warnings() -> Mapping[str, RolloutWarning]:
    """Name -> limit. Raises InputError with the faults of the file."""
    document = read_shipped(rules_dir() / "data" / "rollouts.yaml", shape=ROLLOUTS_FILE)
    known = list(shipped_sources())
    found = {
        name: build(RolloutWarning, entry) for name, entry in document.data["warnings"].items()
    }
    refuse(
        unknown_name("source", source, known, at=document.at(("warnings", name, "sources")))
        for name, entry in found.items()
        for source in entry.sources
        if source not in known
    )
    return found
