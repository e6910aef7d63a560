"""How several GPUs share the work of a stage: what each way changes in its settings, and whether it
can be done at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advisor.advice.search.settings import DEFAULTS, is_seq2seq
from advisor.advice.types import Chosen
from advisor.estimate.types import Estimate
from advisor.ground.types import Hardware
from advisor.ground.units import format_gib
from advisor.methods.composition import Composition
from advisor.methods.families import SEQ2SEQ
from advisor.methods.links import reach_of
from advisor.methods.strategies import Sharing, refused_by
from advisor.ruleset.phrases import inside_sentence
from advisor.situation.types import Situation

Settings = Mapping[str, Chosen]
SHARED = Chosen(value=None, because="how the GPUs share the work")


def sharing_settings(sharing: Sharing) -> dict[str, Chosen]:
    """What goes into the plan's `launch`, beside the settings of the stage."""
    found = {}
    if sharing.strategy is not None:
        found["sharding"] = Chosen(value=sharing.strategy, because=SHARED.because)
    if sharing.offload:
        found["offload"] = Chosen(
            value=True, because="the parts are too large for the GPUs' own memory"
        )
    return found


def sharing_axes(situation: Situation, composition: Composition) -> dict[str, Any]:
    """What decides how a stage can be shared, beside its objective and settings."""
    axes = {"update": composition.update or "lora", "quantization": composition.quantization}
    if composition.encoder and is_seq2seq(situation.model):
        axes["head"] = SEQ2SEQ
    return axes


def settings_under(sharing: Sharing, axes: Mapping[str, Any], settings: Settings) -> Settings:
    """The settings with the default in the place of each that the strategy refuses, and why; one
    that a layer of one's own sets stays.

    Args:
        axes: Objective, update and quantization of the stage.
    """
    found = dict(settings)
    for one in refused_by(sharing.strategy, {**axes, **_values(settings)}):
        if one.key in found and not found[one.key].is_own:
            said = found[one.key].value
            because = (
                f"not {str(said).lower() if isinstance(said, bool) else said} under"
                f" {sharing.strategy}: {inside_sentence(one.because)}"
            )
            found[one.key] = Chosen(value=DEFAULTS[one.key], because=because)
    return found


def why_not_shared(sharing: Sharing, axes: Mapping[str, Any], settings: Settings) -> str:
    """Why no run can share the stage in this way, or an empty string."""
    refused = refused_by(sharing.strategy, {**axes, **_values(settings)})
    return "; ".join(f"{sharing.strategy} does not go with it: {one.because}" for one in refused)


def is_link_slow(hardware: Hardware) -> bool:
    """Whether gathering layers over the GPUs' link costs more than an estimate should be trusted
    with: sharding is then for what fits in no other way.
    """
    spec = hardware.gpus[0].spec if hardware.gpus else None
    if spec is None or hardware.machines > 1:
        return True
    reach = reach_of(spec.link, hardware.interconnect)  # within the machine
    is_pair = len(hardware.gpus) == 2 and reach.pair_bytes_per_s > reach.bytes_per_s
    return reach.is_slow and not is_pair


def why_not_offloaded(cost: Estimate, hardware: Hardware) -> str:
    """Why the memory of the computer does not hold what is offloaded, or an empty string.

    Where it is not known it is taken to be twice that of its GPUs together. What a checkpoint adds
    counts where it is known.
    """
    limit = hardware.host_memory_bytes
    known = hardware.origin == "probed"
    peak = cost.host_peak.size_bytes if known and cost.host_peak else cost.host_bytes or 0
    if limit is None or peak <= limit:
        return ""
    there = "there are" if known else "such a machine is taken to have"
    return (
        f"offloading needs {format_gib(peak)} of each computer's own memory, and {there}"
        f" {format_gib(limit)}"
    )


def _values(settings: Settings) -> dict[str, Any]:
    return {key: one.value for key, one in settings.items()}
