"""Who trains: our own trainers, or another tool as a published run describes it.

Each trait is a fact about code that runs (what it keeps, gathers or casts), stated with its source
in rules/trainers/; none is a correction for a particular source of numbers. For an unknown trainer
every trait is a guess: what most trainers do, or the safer side.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

if TYPE_CHECKING:
    from advisor.methods.trainers import Trait

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
# CUDA_MODULE_LOADING=LAZY is its default; trainers of 2024 and later stood on it.
LAZY_CUDA, LAZY_SINCE = (12, 2), "2024"
MID_YEAR = "-07"  # of a date that is a year alone
# The traits of our own trainers that are not false or 0; advisor/methods/trainers.py says what each
# means.
OUR_TRAITS: Mapping[str, Any] = {
    "fsdp": 2, "adam_copies": 1, "shifts_labels": True,
    "answer_logits": True, "upcasts_trained": True, "tiled_loss": (),
    "expandable_segments": True,  # advisor/launch/trainer_process.py
}  # fmt: skip


class Trainer(Struct, frozen=True, kw_only=True):
    """A program that trains, with the traits that decide memory and time."""

    name: str = ""  # as a description words it; empty: our own
    id: str = ""  # of its file in rules/trainers/
    is_known: bool = True  # its code was read; the band of an estimate is wider if not (bands.py)
    guessed: tuple[str, ...] = ()  # traits of an unknown trainer that known ones differ in
    loads_lazily: bool = True  # CUDA 12.2 or newer, which loads a kernel when it is first used
    is_recent: bool = False  # of 2025 or later: written like ours (rules/trainers/unknown.yaml)
    traits: Mapping[str, Any] = field(default_factory=lambda: OUR_TRAITS)

    def __getitem__(self, trait: str) -> Any:
        return self.traits.get(trait, False)


OURS = Trainer()


def trainer_of(name: str | None, versions: Mapping[str, str], date: str | None) -> Trainer:
    """The trainer that a description names, at the versions of its libraries or its date."""
    return OURS if name is None else _trainer(name, tuple(sorted(versions.items())), date)


@lru_cache(maxsize=512)
def _trainer(text: str, stated: tuple[tuple[str, str], ...], date: str | None) -> Trainer:
    # Advice is about our own trainers, and starts without the table of the others.
    from advisor.methods.trainers import lineage, named_by, trainers, version_of

    entry = named_by(text)
    versions = {**versions_in(text), **{name: version_of(value) for name, value in stated}}
    day = date or date_in(text)
    found: dict[str, Trait] = {}
    known = trainers()
    for name in lineage(entry.id):
        one = known[name]
        for trait, entries in one.traits.items():
            if trait not in found:
                found[trait] = _holding(entries, versions.get(one.library), day)
    return Trainer(
        name=text,
        id=entry.id,
        is_known=bool(entry.names),
        guessed=tuple(trait for trait, one in found.items() if one.guess),
        loads_lazily=(versions.get("cuda") or ()) >= LAZY_CUDA or (day or "") >= LAZY_SINCE,
        is_recent=(day or "") >= "2025",
        traits={**OUR_TRAITS, **{trait: one.value for trait, one in found.items()}},
    )


def _holding(entries: tuple[Trait, ...], version: tuple[int, ...] | None, day: str | None) -> Trait:
    """The entry that holds at a version, or else on a day; if neither can be compared, the usual
    one, or else the newest.
    """
    is_dated = False
    for entry in entries[:-1]:
        if version is not None and entry.until_version is not None:
            is_dated, holds = True, version < entry.until_version
        elif day is not None and entry.until_date is not None:
            day = day + MID_YEAR if len(day) == len("2025") else day
            is_dated, holds = True, day < entry.until_date
        else:
            continue
        if holds:
            return entry
    if is_dated:
        return entries[-1]
    return next((entry for entry in entries if entry.usual), entries[-1])


def versions_in(text: str) -> Mapping[str, tuple[int, ...] | None]:
    """Versions that stand behind a name: "Torch: 2.1.0+cu121, bitsandbytes==0.41.1"."""
    from advisor.methods.trainers import version_of

    text = text.lower().replace("pytorch", "torch")
    found = {
        name: version_of(version)
        for name, version in re.findall(
            r"([a-z][a-z_-]*)[ ]*(?:[=~<>]=|>|<|:)?[ ]*v?(\d+(?:\.\d+)+|\d{1,2})(?![\d.])", text
        )
    }
    if cuda := re.search(r"\+cu(\d{2})(\d)", text):
        found["cuda"] = (int(cuda.group(1)), int(cuda.group(2)))
    return found


def date_in(text: str) -> str | None:
    """The date that a description names: "torchtitan Dec 2024" -> "2024-12", "2025", or None."""
    text = text.lower()
    if iso := re.search(r"\b(20\d\d-[01]\d(?:-[0-3]\d)?)\b", text):
        return iso.group(1)
    if named := re.search(rf"\b({'|'.join(MONTHS)})[a-z]*\.? (20\d\d)\b", text):
        return f"{named.group(2)}-{MONTHS.index(named.group(1)) + 1:02d}"
    year = re.search(r"(?<![\d.])(20[12]\d)(?![\d.])", text)
    return year.group(1) if year else None
