"""Trainers and the libraries they stand on, as stated traits: facts of code that decide how much
memory a run takes. One file each, rules/trainers/<id>.yaml.

A trait may have changed with a version: its entries are then listed from the oldest to the newest,
each but the last with the version or the day from which it holds no more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from msgspec import Struct

from advisor.ground.errors import InputError, unknown_name
from advisor.ground.resources import rules_dir
from advisor.ground.shape import Choice, Date, Flag, Integer, Keys, ListOf, OneOf, Shape, Text
from advisor.ground.yaml_files import read_shipped

UNKNOWN = "unknown"  # the file for a trainer that no file names
# Every trait, with what it means; formulas ask for them by name (advisor/estimate).
TRAITS: Mapping[str, Shape] = {
    "accelerate": Flag(
        help="transformers' Trainer with accelerate: its optimizers, its way of wrapping in FSDP"
    ),
    "fsdp": Choice(
        values=(1, 2), help="FSDP of flat parameters (1), or of each parameter (2, fully_shard)"
    ),
    "adds_up_whole_gradients": Flag(
        help="under FSDP, gradients of earlier micro-batches stay whole on every device (no_sync)"
    ),
    "upcasts_trained": Flag(
        help="under FSDP and mixed precision, 16-bit weights that train become float32"
    ),
    "shards_experts": Flag(
        help="under FSDP, each device has experts of its own, to which tokens travel: neither they"
        " nor their gradients are gathered"
    ),
    "shards_ends": Flag(
        help="under FSDP, embeddings and output are units of their own, not the root's"
    ),
    "flat_adapters": Flag(
        help="under FSDP 1, adapters and frozen weights of a layer are one flat parameter, and so"
        " is their gradient"
    ),
    "adam_copies": Integer(
        min=1, help="lists of all trained weights' size that a foreach step of Adam makes at once"
    ),
    "quantises_head": Flag(help="the output matrix is quantised like any other"),
    "linear_experts": Flag(
        help="experts are linear layers, which bitsandbytes quantises and PEFT adapts by name;"
        " else two tensors of all experts"
    ),
    "quantises_experts": Flag(
        help="tensors of all experts of a layer are quantised too, and written out in 16 bit while"
        " they compute"
    ),
    "keeps_quantised_inputs": Flag(
        help="the product with a 4-bit matrix keeps its input for the backward pass"
    ),
    "adapters_in_16_bit": Flag(help="adapters have the dtype of the base"),
    "quantised_adapters_in_16_bit": Flag(help="adapters on a quantised base are in bfloat16"),
    "fused_with_loss": Flag(help="both of them where the loss is chunked: one switch for kernels"),
    "keeps_chunks": Flag(help="a chunked loss keeps the logits of every chunk"),
    "chunks": Integer(
        min=0,
        help="a chunked loss takes whole 16-bit logits, in so many chunks; 0: never whole logits",
    ),
    "tiled_loss": ListOf(
        of=Text(), help="objectives whose loss takes logits in tiles, whatever is asked for"
    ),
    "answer_logits": Flag(
        help="answers that the model wrote have logits, their requests have none"
    ),
    "shifts_labels": Flag(help="labels are shifted instead of the logits: no copy of the logits"),
    "compiles_loss": Flag(help="where the model is compiled, the loss is too"),
    "expandable_segments": Flag(
        help="PyTorch's allocator grows its segments instead of asking for new ones"
    ),
    "ragged": Flag(help="unpacked rows are padded to the longest of each batch"),
    "packs_unevenly": Flag(help="packed sequences end with their last row: lengths differ"),
    "transformer_engine": Flag(
        help="norms, rotary embedding and attention that nobody names are Transformer Engine's"
        " kernels: counted in time"
    ),
    "server_sleeps": Flag(help="a vLLM server on the trainer's GPU gives its memory back to train"),
    "logs_allocated": Flag(help="the memory it prints is what torch has allocated"),
    "logs_allocator": Flag(
        help="the memory it prints is a counter of torch, without the CUDA context"
    ),
}
_VERSION = Text(pattern=r"\d+(\.\d+)*", such_as='"4.49"')
_DAY = Text(pattern=r"20\d\d-[01]\d(-[0-3]\d)?", such_as='"2025-02" or "2025-02-17"')


def _entry(value: Shape) -> Keys:
    return Keys(
        keys={
            "value": value,
            "until": Keys(
                keys={"version": _VERSION, "date": _DAY},
                help="the version, and the day of its release, from which it holds no more",
            ),
            "usual": Flag(help="what holds where neither version nor date is known"),
            "guess": Flag(help="chosen for a trainer nobody has read: known ones differ"),
            "code": Text(help="file of the repository, and function"),
            "because": Text(help="what the code does there"),
        },
        required=("value", "because"),
    )


TRAINER_FILE: Shape = Keys(
    help="A trainer, or a library that trainers stand on, as stated traits",
    keys={
        "id": Text(pattern=r"[a-z0-9_-]+", such_as="torchtune"),
        "about": Text(),
        "names": ListOf(of=Text(), help="regular expressions that name it in a description"),
        "library": Text(help="its name in `library_versions` and beside a version in a text"),
        "stands_on": ListOf(
            of=Text(), help="what it stands on: theirs is what it does not say itself"
        ),
        "read": Keys(
            keys={"repository": Text(), "commit": Text(), "date": Date()},
            required=("repository", "commit", "date"),
            help="the code that was read",
        ),
        "traits": Keys(
            keys={
                name: OneOf(options=(_entry(shape), ListOf(of=_entry(shape), least=1)))
                for name, shape in TRAITS.items()
            }
        ),
    },
    required=("id", "about"),
)


class Trait(Struct, frozen=True, kw_only=True):
    """A fact of a trainer's code, and until when it holds."""

    value: Any
    until_version: tuple[int, ...] | None = None
    until_date: str | None = None
    usual: bool = False
    guess: bool = False


class TrainerEntry(Struct, frozen=True, kw_only=True):
    """One file under rules/trainers/."""

    id: str
    names: str  # a pattern of what names it; empty for a library
    library: str
    on: tuple[str, ...]
    traits: Mapping[str, tuple[Trait, ...]]


@cache
def trainers() -> Mapping[str, TrainerEntry]:
    """Every trainer and library by its id.

    Raises InputError where a file is not well formed or stands on one that does not exist.
    """
    found = {}
    for path in sorted((rules_dir() / "trainers").glob("*.yaml")):
        data = read_shipped(path, shape=TRAINER_FILE).data
        found[data["id"]] = TrainerEntry(
            id=data["id"],
            names="|".join(data.get("names") or ()),
            library=data.get("library") or data["id"],
            on=tuple(data.get("stands_on") or ()),
            traits={name: _traits(entry) for name, entry in data.get("traits", {}).items()},
        )
    for trainer in found.values():
        for name in trainer.on:
            if name not in found:
                at = f"rules/trainers/{trainer.id}.yaml"
                raise InputError(faults=[unknown_name("trainer", name, list(found), at=at)])
    return found


def _traits(entry: Any) -> tuple[Trait, ...]:
    listed: Sequence[Mapping[str, Any]] = entry if isinstance(entry, list) else [entry]
    return tuple(
        Trait(
            value=one["value"],
            until_version=version_of((one.get("until") or {}).get("version")),
            until_date=(one.get("until") or {}).get("date"),
            usual=bool(one.get("usual")),
            guess=bool(one.get("guess")),
        )
        for one in listed
    )


def version_of(text: str | None) -> tuple[int, ...] | None:
    """The numbers of a version: "4.49.0.dev0" -> (4, 49, 0); None where the text has none."""
    found = re.match(r"\D*(\d+(?:\.\d+)*)", text or "")
    return tuple(map(int, found.group(1).split("."))) if found else None


def named_by(text: str) -> TrainerEntry:
    """The trainer that a description names: the one that stands on the others that it names too,
    then the first in the text. `unknown` where it names none.
    """
    known = trainers()
    found = {}
    for trainer in known.values():
        at = re.search(trainer.names, text.lower()) if trainer.names else None
        if at is not None:
            found[trainer.id] = at.start()
    below = {base for name in found for base in lineage(name)[1:]}
    own = [name for name in found if name not in below]
    return known[min(own, key=lambda name: found[name]) if own else UNKNOWN]


@cache
def lineage(name: str) -> tuple[str, ...]:
    """A trainer and all it stands on, nearest first."""
    seen = {name: None}
    for base in trainers()[name].on:
        seen.update(dict.fromkeys(lineage(base)))
    return tuple(seen)
