"""How few rows become enough optimizer steps, and how many of them are held out.

Rules give the usual batch and number of epochs. Where these would leave fewer steps than an
objective wants (`steps:` in its file), the batch is halved until there are enough, and where the
smallest batch does not suffice, the rows are read more often. The learning rate stays: the recipes
that the files cite use one rate at 8 and at 64 rows a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil, log10
from typing import Any

from advisor.advice.types import Chosen
from advisor.ground.types import DataProfile
from advisor.methods import methods
from advisor.plan.model import Stage

MOST_HELD = 0.2  # of the rows: the rest is needed for training
LARGE_HELD, MOST_ROWS_HELD = 0.01, 1000  # of large sets
SHARE_DIGITS = 4
# Stand in a reason for numbers of steps until the batch is fitted.
STEPS, FEWER = "{steps}", "{steps of the usual epochs}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ForRows:
    """What follows from the number of rows."""

    batch: Chosen  # rows of an optimizer step, on all devices
    settings: Mapping[str, Chosen]  # epochs and held-out share, where something sets them
    multiple: int  # the fewest rows that a step can have on these devices
    trained: float | None  # rows, or sequences, of one pass; None: not known
    usual_epochs: float

    def told(self, settings: Mapping[str, Chosen], per_step: float) -> dict[str, Chosen]:
        """The settings with the steps that they have in the end in their reasons: micro-batches
        and GPUs may divide the batch to something near it.
        """
        if self.trained is None or "epochs" not in settings:
            return dict(settings)
        trained, epochs = self.trained, float(settings["epochs"].value)
        words = {
            STEPS: f"{steps_in(trained, per_step=per_step, epochs=epochs):,}",
            FEWER: f"{steps_in(trained, per_step=per_step, epochs=self.usual_epochs):,}",
        }
        found = dict(settings)
        for key in ("grad_accum", "micro_batch_size", "epochs"):
            if key in found:
                because = found[key].because
                for mark, steps in words.items():
                    because = because.replace(mark, steps)
                found[key] = replace(found[key], because=because)
        return found

    def steps(self, settings: Mapping[str, Chosen], per_step: float) -> int | None:
        """Optimizer steps in all with these settings; None: not known how many rows there are."""
        if self.trained is None:
            return None
        epochs = float(settings["epochs"].value) if "epochs" in settings else Stage.epochs
        return steps_in(self.trained, per_step=per_step, epochs=epochs)


@dataclass(frozen=True, kw_only=True, slots=True)
class Aim:
    """What an objective wants of its steps (`steps:` in its file)."""

    least: int
    smallest_batch: int
    most_epochs: int
    held_out: int | None = None


def aim_of(objective: str, *, classes: bool) -> Aim | None:
    """What an objective wants; None if its file says nothing."""
    said: Mapping[str, Any] = methods().objective(objective).steps
    said = said.get("classes", said) if classes else said
    if not said:
        return None
    return Aim(
        least=said["least"],
        smallest_batch=said["smallest_batch"],
        most_epochs=said["most_epochs"],
        held_out=said.get("held_out"),
    )


def held_out(rows: int, wanted: int) -> int:
    """How many rows to hold out: as many as tell two models apart, at most a fifth; of large sets
    a hundredth, at most a thousand.
    """
    return min(int(rows * MOST_HELD), max(wanted, min(int(rows * LARGE_HELD), MOST_ROWS_HELD)))


def held_out_setting(rows: int | None, aim: Aim | None) -> Chosen | None:
    """The share of rows to hold out; None where the usual share stays."""
    if rows is None or aim is None or aim.held_out is None:
        return None
    held = held_out(rows, aim.held_out)
    if not held:
        return None
    share = held / rows
    digits = SHARE_DIGITS - 1 - int(log10(share) // 1)
    of_rows = f"{held:,} of {rows:,} rows"
    if held >= aim.held_out:
        because = f"{of_rows}: enough to tell the model from its base"
    else:
        because = f"{of_rows}, a fifth; small differences need {aim.held_out} to be told"
    return Chosen(value=round(share, digits), because=because)


def steps_in(rows: float, *, per_step: float, epochs: float) -> int:
    """Optimizer steps of a training; the last step of a pass may hold fewer rows."""
    return ceil(ceil(rows / per_step) * epochs)


def rows_per_step(batch: int, multiple: int) -> int:
    """The batch as nearly as it divides among devices and micro-batches."""
    return max(1, round(batch / multiple)) * multiple


def for_few_rows(
    settings: Mapping[str, Chosen],
    batch: Chosen,
    aim: Aim | None,
    rows: float | None,
    *,
    multiple: int,
    unit: str = "row",
) -> tuple[Chosen, Chosen | None]:
    """(the batch, the epochs if they differ from the usual) that leave enough optimizer steps.

    What a layer of one's own sets stays.

    Args:
        settings: With the usual epochs.
        rows: What is trained on, without what is held out; None: not known.
        multiple: The fewest rows that a step can have: the smallest micro-batch on each device.
        unit: What a row is called.
    """
    if aim is None or not rows:
        return batch, None
    stated = settings.get("epochs", Chosen(value=Stage.epochs, because="one pass"))
    epochs, usual = float(stated.value), int(batch.value)

    def steps(size: int, passes: float = epochs) -> int:
        return steps_in(rows, per_step=rows_per_step(size, multiple), epochs=passes)

    size = usual
    while (
        not batch.is_own
        and size // 2 >= aim.smallest_batch
        and rows_per_step(size, multiple) > multiple
        and steps(size) < aim.least
    ):
        size //= 2
    passes = epochs
    if steps(size) < aim.least and not stated.is_own:
        per_pass = steps(size, 1.0)
        passes = max(epochs, min(aim.most_epochs, ceil(aim.least / per_pass)))
    if size != usual:
        count = f"{int(rows):,} {unit}s"
        batch = replace(
            batch,
            value=size,
            because=f"the usual {usual} would leave about {steps(usual):,} optimizer steps from"
            f" {count}, this leaves about {STEPS}",
            rule=None,
        )
    if passes == epochs:
        return batch, None
    because = (
        f"{passes:g} passes instead of the usual {epochs:g}: about {STEPS} optimizer steps instead"
        f" of {FEWER}"
    )
    return batch, Chosen(value=int(passes), because=because)


def settings_for_rows(
    objective: str,
    settings: Mapping[str, Chosen],
    batch: Chosen,
    *,
    rows: int | None,
    tokens: int | None,
    classes: bool,
    multiple: int,
) -> ForRows:
    """What follows from the rows of a stage's data; nothing changes where they are not known.

    Args:
        settings: What the rules set, with seq_len for an objective that splits documents.
        tokens: Of all rows.
        classes: The stage trains a classification head.
        multiple: The fewest rows that a step can have: the smallest micro-batch on each device.
    """
    aim = aim_of(objective, classes=classes)
    found: dict[str, Chosen] = {}
    unit, trained = "row", None if rows is None else float(rows)
    if methods().objective(objective).splits_documents:
        unit = "sequence"
        length = settings.get("seq_len")
        trained = None if tokens is None or length is None else tokens / int(length.value)
    elif "holdout" not in settings and (held := held_out_setting(rows, aim)) is not None:
        found["holdout"] = held
    both = {**settings, **found}
    share = both["holdout"].value if "holdout" in both else Stage.holdout
    if trained is not None:
        trained = max(1, round(trained * (1 - float(share))))
    usual = float(settings["epochs"].value) if "epochs" in settings else Stage.epochs
    batch, epochs = for_few_rows(
        settings,
        batch,
        aim,
        trained,
        multiple=multiple,
        unit=unit,
    )
    if epochs is not None:
        found["epochs"] = epochs
    elif "epochs" in settings:
        found["epochs"] = settings["epochs"]
    return ForRows(
        batch=batch, settings=found, multiple=multiple, trained=trained, usual_epochs=usual
    )


def rows_given(profile: DataProfile, objective: str) -> int:
    """How many rows a data file gives a stage: a pair is two answers to one that learns from single
    ones.
    """
    single = "unpaired_feedback" in methods().objective(objective).trains_on
    return profile.rows * (2 if profile.kind == "preference" and single else 1)
