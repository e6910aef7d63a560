"""What a stage asks of its model that no loading gives: told before the model is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from advisor.estimate.model.architecture import NO_SDPA
from advisor.estimate.model.dims import WITH_EXPERTS
from advisor.estimate.model.stored import WRITTEN_OUT, why_not_loadable
from advisor.ground.errors import Fault
from advisor.ground.types import ModelShape
from advisor.methods import update
from advisor.plan.entries import Entry


def loading_faults(todo: Sequence[Entry], shape: ModelShape | None) -> Iterable[Fault]:
    """The faults of every stage that is still to be trained; none where the model is not known.

    Args:
        shape: The shape of the plan's model.
    """
    if shape is None:
        return
    for entry in todo:
        yield from _stored_faults(entry, shape)
        stage = entry.stage
        if stage.attention == "sdpa" and shape.architecture in NO_SDPA:
            yield Fault(
                where=f"stage {entry.name}",
                what=(f"transformers has no sdpa attention for {shape.architecture} models"),
                allowed="attention: eager",
            )
        if stage.options.get("target_modules") == WITH_EXPERTS and _is_dense(shape):
            yield Fault(
                where=f"stage {entry.name}",
                what=(
                    f"target_modules: {WITH_EXPERTS} needs a mixture of"
                    f" experts, and {shape.id} is none"
                ),
                allowed="target_modules: all-linear, or a list of names",
            )


def _is_dense(shape: ModelShape) -> bool:
    """Whether the model is known, not guessed from its name, and no mixture."""
    return shape.origin != "size" and not shape.is_mixture


def _stored_faults(entry: Entry, shape: ModelShape) -> Iterable[Fault]:
    """What a quantised checkpoint cannot be: quantised again, or trained whole."""
    stage = entry.stage
    reason = why_not_loadable(
        shape.stored,
        trains_all=not update(stage.update).is_module,
        quantization=stage.quantization,
    )
    if reason:
        of_few_bits = shape.stored in WRITTEN_OUT
        wanted = f"quantization {stage.quantization}" if stage.quantization else stage.update
        yield Fault(
            where=f"stage {entry.name}",
            what=f"{wanted} does not go with {shape.id}: {reason}",
            allowed="quantization: null" if of_few_bits else "update: lora with quantization: null",
            hint="`advise estimate` shows what 2 bytes a weight need"
            if of_few_bits
            else "name the model that the checkpoint was made from",
        )
