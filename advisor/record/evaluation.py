"""What was measured of a result, as run.json holds it: base and result compared on held-out rows,
the loss on them during training, and the checks of what was saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from advisor.ground.json_values import OMIT_NULL, JsonObject

Interval = Annotated[tuple[float | None, ...] | None, "95 % interval of the difference: low, high"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric(JsonObject):
    """One metric on the same held-out rows before and after training."""

    before: Annotated[float | None, "mean of the base"] = None
    after: Annotated[float | None, "mean of the result"] = None
    interval: Interval = None
    rows: Annotated[int | None, "rows compared"] = None
    word: Annotated[str | None, "better, worse, not distinguishable, or measured alone"] = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample(JsonObject):
    """One held-out prompt with the answers of the base and of the result."""

    prompt: Annotated[str, "the question"] = ""
    expected: Annotated[str | None, "the answer in the data"] = None
    base: Annotated[str | None, "the answer before training"] = None
    tuned: Annotated[str | None, "the answer after training"] = None
    base_stopped: Annotated[bool | None, "did it end with a stop token?", OMIT_NULL] = None
    tuned_stopped: Annotated[bool | None, "did it end with a stop token?", OMIT_NULL] = None
    score_before: Annotated[
        float | None, "score of the answer before, by `sample_metric`", OMIT_NULL
    ] = None
    score_after: Annotated[float | None, "score of the answer after", OMIT_NULL] = None
    reward_before: Annotated[float | None, "reward of the answer before (PPO)", OMIT_NULL] = None
    reward_after: Annotated[float | None, "reward of the answer after (PPO)", OMIT_NULL] = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Confusion(JsonObject):
    """Which class a classifier took for which."""

    labels: Annotated[tuple[str, ...], "the classes"] = ()
    counts: Annotated[tuple[tuple[int, ...], ...], "rows: true; columns: predicted"] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation(JsonObject):
    """Base and result compared on held-out rows. An objective may add keys of its own."""

    holdout_loss_before: Annotated[float | None, "loss per learned token of the base"] = None
    holdout_loss_after: Annotated[float | None, "loss per learned token of the result"] = None
    holdout_loss_interval: Interval = None
    perplexity_before: Annotated[float | None, "exp of the loss before"] = None
    perplexity_after: Annotated[float | None, "exp of the loss after"] = None
    rows: Annotated[int | None, "held-out rows compared"] = None
    decides: Annotated[
        str | None, "the metric that decides on the verdict; null: the held-out loss", OMIT_NULL
    ] = None
    metrics: Annotated[Mapping[str, Metric], "name of the metric -> its values"] = field(
        default_factory=dict
    )
    general: Annotated[Metric | None, "loss on general texts: does it forget?"] = None
    seconds: Annotated[float | None, "seconds that generation took"] = None
    samples: Annotated[tuple[Sample, ...], "some prompts with their answers"] = ()
    sample_metric: Annotated[str | None, "what scores the samples", OMIT_NULL] = None
    confusion: Annotated[Confusion | None, "of a classifier", OMIT_NULL] = None


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut(JsonObject):
    """The loss on held-out rows during training; each value is `holdout_loss` of its step in
    metrics.jsonl.
    """

    every: Annotated[int | None, "optimizer steps from one evaluation to the next"] = None
    rows: Annotated[int | None, "held-out rows, the same each time"] = None
    share: Annotated[float | None, "cost, as a share of the training's computation"] = None
    seconds: Annotated[float | None, "what all evaluations together took"] = None
    best_step: Annotated[int | None, "optimizer steps until the lowest loss"] = None
    best_loss: Annotated[float | None, "the lowest loss"] = None
    last_step: Annotated[int | None, "optimizer steps until the last evaluation"] = None
    last_loss: Annotated[float | None, "the last loss"] = None
    fell: Annotated[
        float | None, "share by which it fell from the last but one to the last", OMIT_NULL
    ] = None
    kept_step: Annotated[int | None, "the step whose weights are the result"] = None
    planned_steps: Annotated[int | None, "optimizer steps of the plan"] = None
    stopped_early: Annotated[bool, "whether training stopped before them"] = False
    waited: Annotated[int | None, "evaluations since the lowest loss"] = None

    def sentences(self) -> list[str]:
        """What it showed, and what followed from it."""
        if self.best_loss is None:
            return ["held-out loss during training was never a finite number"]
        said = []
        if self.stopped_early:
            times = f"{self.waited} evaluation{'s' if self.waited != 1 else ''}"
            said.append(
                f"stopped early after step {self.last_step} of {self.planned_steps}: held-out loss"
                f" had not improved for {times}"
            )
        if self.best_step == self.last_step:
            lowest = f"held-out loss was lowest at the last step: {self.best_loss:.4g}"
            return [*said, lowest]
        last = "" if self.last_loss is None else f", {self.last_loss:.4g} at step {self.last_step}"
        lowest = f"held-out loss was lowest at step {self.best_step}: {self.best_loss:.4g}{last}"
        result = (
            f"the weights of step {self.kept_step} are the result"
            if self.kept_step == self.best_step
            else f"the last weights are the result (`keep: best` takes those of {self.best_step})"
        )
        return [*said, f"{lowest}; {result}"]


@dataclass(frozen=True, slots=True)
class Check(JsonObject):
    """One check of what was saved, and what it found."""

    name: Annotated[str, "the name of the check"]
    ok: Annotated[bool, "false: a warning"]
    text: Annotated[str, "what was found, in a sentence"] = ""
