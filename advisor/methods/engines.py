"""rules/tools/engines.yaml: which training engine holds what the bundled trainers do not, by family
of models, number format, device and number of GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal

from msgspec import Struct

from advisor.ground.annotated import build, shape_of
from advisor.ground.resources import rules_dir
from advisor.ground.shape import VERSION, Date, Keys, ListOf, Shape
from advisor.ground.types import DDP, FSDP, Hardware, ModelShape, Source
from advisor.ground.yaml_files import read_shipped

OURS = "ours"
ONE = "one"
Format = Literal["4bit_experts", "divided_4bit", "4bit", "divided_16bit", "other_device"]


class Holds(Struct, frozen=True, kw_only=True):
    """What one engine holds."""

    formats: tuple[Format, ...]
    devices: Annotated[tuple[str, ...], "kinds of hardware, or ids of hardware/not-supported.yaml"]
    gpus: Annotated[tuple[Literal["one", "ddp", "fsdp"], ...], "how GPUs share a training there"]
    objectives: tuple[str, ...]
    words: Annotated[str, "behind the method in the first line of the answer"]
    because: str
    start: Annotated[str, "the command; {model}, {data}, {data_folder}, {tuner}, {gpus}"]
    source: Source
    families: Annotated[tuple[str, ...], "`model_type` of its models; none: all"] = ()
    updates: Annotated[tuple[str, ...], "which weights it trains"] = ("lora",)
    stored: Annotated[tuple[str, ...], "formats of quantised checkpoints that it starts from"] = ()


class Engine(Struct, frozen=True, kw_only=True):
    """One engine; `found` is what it holds of a situation."""

    id: Literal["unsloth", "axolotl", "ms-swift", "trl", "mlx-lm", "torchtitan", "megatron"]
    name: str
    holds: tuple[Holds, ...]
    trainer: Annotated[str, "its file under rules/trainers"] = ""
    only_prepares: Annotated[bool, "`start` trains nothing; its source shows how"] = False
    form: Annotated[str, "what `advise export --to` calls its file"] = ""

    @property
    def found(self) -> Holds:
        return self.holds[0]


ENGINES_FILE: Shape = Keys(
    help="Training engines, and what they hold that the bundled trainers do not",
    keys={"version": VERSION, "review_by": Date(), "engines": ListOf(of=shape_of(Engine))},
    required=("version", "engines"),
)


@cache
def engines() -> Mapping[str, Engine]:
    """Every engine by its id, in the order in which they are tried. Raises InputError with the
    faults of the file, located.
    """
    data = read_shipped(rules_dir() / "tools" / "engines.yaml", shape=ENGINES_FILE).data
    return {entry["id"]: build(Engine, entry) for entry in data["engines"]}


def engines_for(
    model: ModelShape | None, hardware: Hardware, *, chain: Sequence[str], update: str,
    quantization: str | None,
) -> Iterator[Engine]:  # fmt: skip
    """The engines that hold a method on this hardware, with what they hold of it alone."""
    device = hardware.kind if (other := hardware.not_supported) is None else other.id
    asked = {"families": model and model.architecture, "updates": update, "devices": device}
    wanted = _formats(model, hardware, quantization)
    for engine in engines().values():
        for one in engine.holds:
            holds = all(
                value in named for key, value in asked.items() if (named := getattr(one, key))
            )
            stored = model is None or model.stored in (None, *one.stored)
            holds = holds and stored and {*chain} <= {*one.objectives}
            if holds and wanted & {*one.formats}:
                yield _only(engine, one)


def _only(engine: Engine, one: Holds) -> Engine:
    values: dict[str, Any] = {name: getattr(engine, name) for name in engine.__struct_fields__}
    return Engine(**{**values, "holds": (one,)})


def _formats(model: ModelShape | None, hardware: Hardware, quantization: str | None) -> set[str]:
    if hardware.not_supported is not None:
        return {"other_device"}
    several, is_mixture = len(hardware.gpus) > 1, model is not None and bool(model.experts)
    if quantization is None:
        return {"divided_16bit"} if several else set()
    if quantization != "nf4":
        return set()
    if is_mixture:
        return {"4bit_experts"}
    return {"4bit", "divided_4bit"} if several else {"4bit"}


def strategies_of(engine: Engine, hardware: Hardware) -> list[str | None]:
    """How the GPUs may share the work there, the simplest first; None: one device."""
    shares = engine.found.gpus
    if len(hardware.gpus) < 2:
        return [None] if ONE in shares else []
    return [name for name in (DDP, FSDP) if name in shares]
