"""How several processes share a stage, and what each way cannot do. The list is
rules/strategies.yaml; what an optimizer needs is at its own entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any

from msgspec import Struct

from advisor.ground.annotated import build, shape_of
from advisor.ground.resources import rules_dir
from advisor.ground.shape import VERSION, Choice, Keys, MapOf, Shape
from advisor.ground.types import DDP, FSDP
from advisor.ground.yaml_files import read_shipped
from advisor.methods.keys import Refusal
from advisor.methods.optimizers import ALIASES, OPTIMIZERS

USUAL_OPTIMIZER = "adamw_fused"  # steps on divided weights as on whole ones
NAMES = (DDP, FSDP, "zero2", "zero3")


class LaunchStrategy(Struct, frozen=True, kw_only=True):
    """One value of `launch.strategy`."""

    id: str
    about: Annotated[str, "what it is, in the comment of a plan"]
    instead: Annotated[str, "`advise run` does not start it: what to set in its place"] = ""
    refuses: Annotated[
        tuple[Refusal, ...], "values of a stage's keys that do not go with it, and the way out"
    ] = ()


STRATEGIES_FILE: Shape = Keys(
    help="How several processes share a stage",
    keys={
        "version": VERSION,
        "strategies": MapOf(
            named=Choice(values=NAMES), of=shape_of(LaunchStrategy, without=("id",))
        ),
    },
    required=("version", "strategies"),
)


@cache
def strategies() -> Mapping[str, LaunchStrategy]:
    """Every strategy by its name. Raises InputError with the faults of the file, located."""
    data = read_shipped(rules_dir() / "strategies.yaml", shape=STRATEGIES_FILE).data
    return {
        name: build(LaunchStrategy, entry, {"id": name})
        for name, entry in data["strategies"].items()
    }


def refused_by(strategy: str | None, stage: Mapping[str, Any]) -> list[Refusal]:
    """What of a stage does not go with a strategy, each with why and the way out.

    Args:
        strategy: None refuses nothing.
        stage: Keys of the stage as a plan spells them: objective, update, quantization, optimizer.
    """
    if strategy is None:  # most answers are about one device, and start without the file
        return []
    found = [
        one
        for one in strategies()[strategy].refuses
        if any(
            stage.get(one.key) == value and type(stage.get(one.key)) is type(value)
            for value in one.values
        )
    ]
    name = stage.get("optimizer")
    entry = OPTIMIZERS.get(ALIASES.get(str(name), str(name)))
    if strategy == FSDP and entry is not None and entry.needs_whole:
        hint = f"optimizer: {USUAL_OPTIMIZER}"
        found.append(Refusal(key="optimizer", values=(name,), because=entry.needs_whole, hint=hint))
    return found
