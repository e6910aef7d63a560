"""What a published run's trainer does where its description is silent; our own trainers are the
framework None.

Each trait is a fact about code that runs (what it keeps, gathers or casts), stated with its source
in rules/trainers/; none is a correction for a particular source of numbers. Of a trainer that is
not known every trait is a guess: what most trainers do, or the safer side.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from advisor.estimate.types import RunSpec
    from advisor.methods.trainers import Trait

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
MID_YEAR = "-07"  # of a date that is a year alone


@dataclass(frozen=True, kw_only=True, slots=True)
class Framework:
    """Traits of one trainer that decide memory; what each means stands in
    advisor/methods/trainers.py. The defaults are our own trainers'.
    """

    name: str = ""  # as the spec words it; empty: our own
    trainer: str = ""  # id of its file in rules/trainers/
    is_known: bool = True  # its code was read; the band of an estimate is wider if not (bands.py)
    guessed: tuple[str, ...] = ()  # traits that known trainers differ in, of one that is not known
    accelerate: bool = False
    fsdp: int = 2
    adds_up_whole_gradients: bool = False
    shards_ends: bool = False
    flat_adapters: bool = False
    zero2_bucket: int | str = "hidden_squared"
    zero3_bucket: int | str = "hidden_squared"
    adam_copies: int = 1
    keeps_gradient_shard: bool = False
    unties_head: bool = False
    quantises_head: bool = False
    linear_experts: bool = False
    picks_experts: bool = False
    prepares_quantised: bool = False
    keeps_quantised_inputs: bool = False
    adapters_in_16_bit: bool = False
    quantised_adapters_in_16_bit: bool = False
    drops_adapter_inputs: bool = False
    fused_norms: bool = False
    fused_mlp: bool = False
    fused_with_loss: bool = False
    fused_adapters: bool = False
    plain_blocks: bool = False
    checkpoints_parts: bool = False
    keeps_chunks: bool = False
    chunks_plain_loss: bool = False
    chunks: int = 0
    whole_logits: bool = False
    shifts_labels: bool = True
    compiles_loss: bool = False
    expandable_segments: bool = True  # advisor/launch/trainer_process.py
    ragged: bool = False
    masks_padding: bool = True
    repeats_keys: bool = False
    packs_unevenly: bool = False
    accumulates: bool = False
    evaluates: bool = True
    logs_allocated: bool = False
    logs_allocator: bool = False
    eager_cuda: bool = False


OURS = Framework()


def framework_of(spec: RunSpec) -> Framework:
    """The traits of the trainer that a spec names, at its versions or date."""
    if spec.framework is None:
        return OURS
    return _resolved(spec.framework, tuple(sorted(spec.library_versions.items())), spec.date)


@lru_cache(maxsize=512)
def _resolved(text: str, stated: tuple[tuple[str, str], ...], date: str | None) -> Framework:
    """The traits of a trainer by its wording, the versions of its libraries and the date."""
    # Advice is about our own trainers, and starts without the table of the others.
    from advisor.methods.trainers import lineage, named_by, trainers, version_of

    trainer = named_by(text)
    versions = {**versions_in(text), **{name: version_of(value) for name, value in stated}}
    day = date or date_in(text)
    found: dict[str, Any] = {}
    guessed = []
    known = trainers()
    for name in lineage(trainer.id):
        one = known[name]
        for trait, entries in one.traits.items():
            if trait not in found:
                chosen = _holding(entries, versions.get(one.library), day)
                found[trait] = chosen.value
                if chosen.guess:
                    guessed.append(trait)
    is_known = bool(trainer.names)
    return Framework(
        name=text.lower(), trainer=trainer.id, is_known=is_known, guessed=tuple(guessed), **found
    )


def _holding(entries: tuple[Trait, ...], version: tuple[int, ...] | None, day: str | None) -> Trait:
    """The entry that holds at a version, or else on a day; where neither can be compared, the usual
    one, or else the newest.
    """
    is_dated = False
    for entry in entries[:-1]:
        if version is not None and entry.until_version is not None:
            is_dated, holds = True, version < entry.until_version
        elif day is not None and entry.until_date is not None:
            is_dated, holds = True, _day(day) < entry.until_date
        else:
            continue
        if holds:
            return entry
    if is_dated:
        return entries[-1]
    return next((entry for entry in entries if entry.usual), entries[-1])


def _day(text: str) -> str:
    """A date to compare with: a year alone is its middle."""
    return text + MID_YEAR if len(text) == len("2025") else text


def guess_note(spec: RunSpec, stack: Framework) -> str:
    """What is guessed of a trainer that is not known, as far as it counts in this run; empty for
    one that is.
    """
    if stack.is_known:
        return ""
    from advisor.methods.trainers import TRAITS

    sharded = spec.sharding == "fsdp" and spec.gpus > 1
    counts = {
        "fused_with_loss": spec.loss == "chunked" and bool(spec.gradient_checkpointing),
        "flat_adapters": sharded and spec.update != "full",
        "adds_up_whole_gradients": sharded and spec.grad_accum > 1,
        "ragged": not spec.packing and spec.update != "full",
        "plain_blocks": not spec.gradient_checkpointing,
        "evaluates": spec.evaluation is None,
        "drops_adapter_inputs": spec.update == "lora" and "dropout" not in spec.options,
    }
    guessed = [TRAITS[name].help for name in stack.guessed if counts.get(name, True)]
    return (
        f"the trainer '{spec.framework}' is not known: taken for transformers' Trainer with PEFT"
        f" and accelerate; where known trainers differ, this was guessed: {'; '.join(guessed)}"
    )


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
    cuda = re.search(r"\+cu(\d{2})(\d)", text)
    if cuda:
        found["cuda"] = (int(cuda.group(1)), int(cuda.group(2)))
    return found


def date_in(text: str) -> str | None:
    """The date that a description names: "torchtitan Dec 2024" -> "2024-12", "2025", or None."""
    text = text.lower()
    iso = re.search(r"\b(20\d\d-[01]\d(?:-[0-3]\d)?)\b", text)
    if iso:
        return iso.group(1)
    named = re.search(rf"\b({'|'.join(MONTHS)})[a-z]*\.? (20\d\d)\b", text)
    if named:
        return f"{named.group(2)}-{MONTHS.index(named.group(1)) + 1:02d}"
    year = re.search(r"(?<![\d.])(20[12]\d)(?![\d.])", text)
    return year.group(1) if year else None
