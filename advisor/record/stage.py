"""What became of one stage, as run.json holds it: memory and time, rows, evaluation, checks, and
what went wrong. Bytes and seconds; null means "not known".
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from math import ceil
from typing import Annotated

from msgspec import field
from msgspec.structs import replace

from advisor.ground.annotated import OMIT_NULL, JsonObject
from advisor.ground.errors import AdviseError


class Times(JsonObject, frozen=True, kw_only=True):
    """Where the seconds of a stage went, of every attempt, those of steps done twice once; or will
    go, expected.
    """

    total_s: Annotated[float | None, "the sum of the parts"] = None
    load_s: Annotated[float | None, "reading rows, loading the model"] = None
    before_s: Annotated[float | None, "measuring the model before training"] = None
    train_s: Annotated[float | None, "the steps, with checkpoints and held-out loss"] = None
    after_s: Annotated[float | None, "saving, checking and measuring the result"] = None


class LearnedRecord(JsonObject, frozen=True, kw_only=True):
    """How far earlier runs on this machine corrected the estimate (docs/estimates.md)."""

    memory_runs: Annotated[int, "runs that stand behind the memory"] = 0
    time_runs: Annotated[int, "runs that stand behind the time"] = 0
    memory_scale: Annotated[float | None, "corrected over formula; null: not corrected"] = None
    time_scale: Annotated[float | None, "the same of the time"] = None
    formula_bytes: Annotated[int | None, "`peak_bytes` by the formula alone"] = None
    formula_counted_bytes: Annotated[int | None, "`counted_bytes` by it"] = None
    formula_step_s: Annotated[float | None, "`step_s` by it"] = None
    formula_duration_s: Annotated[float | None, "`duration_s` by it"] = None


class ExpectedTerm(JsonObject, frozen=True, kw_only=True):
    """One part of the expected peak memory."""

    name: Annotated[str, "what it is"]
    bytes: Annotated[int, "its size; below 0: a correction"]


class Expected(JsonObject, frozen=True, kw_only=True):
    """What the estimator expected of a stage on this machine."""

    peak_bytes: Annotated[
        int | None, "peak memory of the whole process, as its device shows it"
    ] = None
    low_bytes: Annotated[int | None, "lower end of the band around `peak_bytes`"] = None
    high_bytes: Annotated[int | None, "upper end of the band around `peak_bytes`"] = None
    need_bytes: Annotated[
        int | None, "what must be free, without blocks that are given back", OMIT_NULL
    ] = None
    need_low_bytes: Annotated[
        int | None, "lower end of the band around `need_bytes`", OMIT_NULL
    ] = None
    need_high_bytes: Annotated[
        int | None, "upper end of the band around `need_bytes`", OMIT_NULL
    ] = None
    counted_bytes: Annotated[int | None, "the part of it that `measured` counts"] = None
    moment: Annotated[str | None, "the moment of a step that has the peak"] = None
    terms: Annotated[tuple[ExpectedTerm, ...], "the parts of `peak_bytes`"] = ()
    limit_bytes: Annotated[int | None, "free memory of the device before the run"] = None
    fits: Annotated[str | None, "fits, tight, may_fit, too_big or unknown"] = None
    step_s: Annotated[float | None, "seconds of an optimizer step", OMIT_NULL] = None
    duration_s: Annotated[float | None, "seconds for all steps: the training alone"] = None
    times: Annotated[Times | None, "the whole time, by its parts (rough)", OMIT_NULL] = None
    learned: Annotated[
        LearnedRecord | None, "from earlier runs here; null: the formula alone", OMIT_NULL
    ] = None
    unknown: Annotated[tuple[str, ...], "what the estimate would have needed to know"] = ()


class Measured(JsonObject, frozen=True, kw_only=True):
    """What the trainer measured. The last four keys are of a dry run alone."""

    peak_bytes: Annotated[int | None, "peak memory, as `counter` counts it"] = None
    counter: Annotated[str | None, "allocated (on the GPU), or rss_growth (of the process)"] = None
    reserved_bytes: Annotated[int | None, "peak of what the allocator reserved on the GPU"] = None
    step_s: Annotated[
        float | None, "median seconds of an optimizer step, since the last resume"
    ] = None
    tokens_per_s: Annotated[float | None, "non-padded tokens per second, since the last resume"] = (
        None
    )
    train_s: Annotated[
        float | None, "seconds for all steps, of every attempt; those done twice count once"
    ] = None
    tokens: Annotated[int | None, "non-padded tokens trained on, in every attempt", OMIT_NULL] = (
        None
    )
    computed_tokens: Annotated[int | None, "the same with padding", OMIT_NULL] = None
    learned_tokens: Annotated[
        int | None, "those of `tokens` whose prediction is in the loss", OMIT_NULL
    ] = None
    largest_batch_tokens: Annotated[
        int | None, "tokens that the largest micro-batch of a device computed", OMIT_NULL
    ] = None
    training_peak_bytes: Annotated[int | None, "peak without evaluation", OMIT_NULL] = None
    baseline_bytes: Annotated[int | None, "memory before the model was loaded", OMIT_NULL] = None
    step_times_s: Annotated[
        tuple[float, ...] | None, "seconds of each measured step", OMIT_NULL
    ] = None
    micro_batches: Annotated[int | None, "micro-batches in a measured step", OMIT_NULL] = None


class DataCounts(JsonObject, frozen=True, kw_only=True):
    """What became of the rows of the data file."""

    rows: Annotated[int | None, "rows in the file"] = None
    train_rows: Annotated[int | None, "rows trained on"] = None
    holdout_rows: Annotated[int | None, "rows held out for evaluation"] = None
    dropped: Annotated[int | None, "rows left out: unusable, repeated, or too long"] = None
    truncated: Annotated[int | None, "rows cut to `seq_len`"] = None
    split: Annotated[int | None, "raw texts split into several sequences; nothing is lost"] = None
    tokens: Annotated[int | None, "tokens of the rows trained on"] = None
    learned_tokens: Annotated[int | None, "those of them that the loss counts"] = None
    longest: Annotated[int | None, "tokens of the longest row"] = None
    template: Annotated[str, "where the chat template comes from"] = ""
    notes: Annotated[tuple[str, ...], "what else is worth knowing"] = ()


METRICS = {  # as the field writes those that are no plain words
    "json_validity": "JSON validity",
    "kl": "KL",
    "macro_f1": "macro-F1",
    "nll_loss": "NLL loss",
    "rouge_l": "ROUGE-L",
    "token_f1": "token F1",
}


def metric_words(name: str) -> str:
    """A metric of run.json or metrics.jsonl as people write it: 'ROUGE-L', 'exact match'."""
    return METRICS.get(name, name.replace("_", " "))


Interval = Annotated[tuple[float | None, ...] | None, "95 % interval of the difference: low, high"]


class Metric(JsonObject, frozen=True, kw_only=True):
    """One metric on the same held-out rows before and after training."""

    before: Annotated[float | None, "mean of the base"] = None
    after: Annotated[float | None, "mean of the result"] = None
    interval: Interval = None
    rows: Annotated[int | None, "rows compared"] = None
    word: Annotated[str | None, "better, worse, not distinguishable, or measured alone"] = None

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The interval of the difference, if both of its ends are known."""
        low, high = self.interval if self.interval and len(self.interval) == 2 else (None, None)
        return None if low is None or high is None else (low, high)

    @property
    def difference(self) -> float | None:
        """After less before."""
        known = self.before is not None and self.after is not None
        return self.after - self.before if known else None  # type: ignore[operator]

    @property
    def rows_needed(self) -> int | None:
        """Held-out rows that would tell this difference: an interval narrows with their root."""
        if self.bounds is None or not self.difference or not self.rows:
            return None
        half_width = (self.bounds[1] - self.bounds[0]) / 2
        return ceil(self.rows * (half_width / abs(self.difference)) ** 2) if half_width else None


class SampleAnswer(JsonObject, frozen=True, kw_only=True):
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
    reward_before: Annotated[float | None, "reward of the answer before", OMIT_NULL] = None
    reward_after: Annotated[float | None, "reward of the answer after", OMIT_NULL] = None


class Confusion(JsonObject, frozen=True, kw_only=True):
    """Which class a classifier took for which."""

    labels: Annotated[tuple[str, ...], "the classes"] = ()
    counts: Annotated[tuple[tuple[int, ...], ...], "rows: true; columns: predicted"] = ()


class KeptBase(JsonObject, frozen=True, kw_only=True):
    """When, and with what, the base was measured whose numbers were kept."""

    at: Annotated[str, "the day (UTC)"] = ""
    versions: Annotated[Mapping[str, str], "library -> version"] = field(default_factory=dict)
    device: Annotated[str, "cpu, or what the GPU is called"] = ""

    @property
    def sentence(self) -> str:
        """What is said of it."""
        used = [f"{name} {version}" for name, version in self.versions.items()]
        by = ", ".join([self.device, *used])
        return f"measured on {self.at} ({by}) and kept, not measured again"


class Evaluation(JsonObject, frozen=True, kw_only=True):
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
    samples: Annotated[tuple[SampleAnswer, ...], "some prompts with their answers"] = ()
    sample_metric: Annotated[str | None, "what scores the samples", OMIT_NULL] = None
    kept_base: Annotated[
        KeptBase | None, "of an earlier run: the base was not measured again", OMIT_NULL
    ] = None
    confusion: Annotated[Confusion | None, "of a classifier", OMIT_NULL] = None


class HeldOut(JsonObject, frozen=True, kw_only=True):
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
        on = f" (on {self.rows} rows, while it trained)" if self.rows else ""
        if self.stopped_early:
            times = f"{self.waited} evaluation{'s' if self.waited != 1 else ''}"
            said.append(
                f"stopped early after step {self.last_step} of {self.planned_steps}: held-out loss"
                f" had not improved for {times}"
            )
        if self.best_step == self.last_step:
            lowest = f"held-out loss{on} was lowest at the last step: {self.best_loss:.4g}"
            return [*said, lowest]
        last = "" if self.last_loss is None else f", {self.last_loss:.4g} at step {self.last_step}"
        lowest = (
            f"held-out loss{on} was lowest at step {self.best_step}: {self.best_loss:.4g}{last}"
        )
        result = (
            f"the weights of step {self.kept_step} are the result"
            if self.kept_step == self.best_step
            else f"the last weights are the result (`keep: best` takes those of {self.best_step})"
        )
        return [*said, f"{lowest}; {result}"]


class Check(JsonObject, frozen=True):
    """One check of what was saved, and what it found."""

    name: Annotated[str, "the name of the check"]
    ok: Annotated[bool, "false: a warning"]
    text: Annotated[str, "what was found, in a sentence"] = ""


class ErrorRecord(JsonObject, frozen=True, kw_only=True):
    """Why a stage failed or stopped."""

    kind: Annotated[str, "name of the error's class"] = ""
    what: Annotated[str, "what is wrong, and where"] = ""
    allowed: Annotated[str, "what would have been right"] = ""
    hint: Annotated[str, "the next step"] = ""
    exit_code: Annotated[int | None, "exit code of the command"] = None
    rank: Annotated[int | None, "number of the process that failed, from 0", OMIT_NULL] = None
    host: Annotated[str | None, "name of the machine that it was on, of several", OMIT_NULL] = None
    at_s: Annotated[float | None, "when, in seconds since 1970", OMIT_NULL] = None
    doing: Annotated[
        str | None, "what it was doing as memory ran out: loading, training, ...", OMIT_NULL
    ] = None
    lost_others: Annotated[
        bool | None, "did it fail only because another process was gone?", OMIT_NULL
    ] = None

    @classmethod
    def of(cls, error: AdviseError) -> ErrorRecord:
        """The error as it is recorded; several faults become one text."""
        first = error.faults[0]
        return cls(
            kind=type(error).__name__,
            what=error.text() if len(error.faults) > 1 else first.headline,
            allowed=first.allowed,
            hint=first.hint,
            exit_code=error.exit_code,
        )


def error_of_rank(rank: int) -> str:
    """The file's name for the error of one of several processes."""
    return f"error-rank{rank}.json"


class Adjustment(JsonObject, frozen=True, kw_only=True):
    """What a run changed by itself, to need less memory; the effective batch size stays."""

    stage: Annotated[str, "the stage"] = ""
    at_step: Annotated[int | None, "optimizer steps done by then; null: not known"] = None
    micro_batch_size: Annotated[int, "rows that go through one device at once from then on"]
    grad_accum: Annotated[int, "micro-batches behind one optimizer step from then on"]
    why: Annotated[str, "what happened"] = ""
    setting: Annotated[str, "the keys for the plan, as `--set` takes them"] = ""

    def sentence(self) -> str:
        """What is said of it."""
        after = "" if self.at_step is None else f" after step {self.at_step}"
        return (
            f"out of memory{after}: going on with micro_batch_size {self.micro_batch_size} and"
            f" grad_accum {self.grad_accum}, the same effective batch size; for the plan:"
            f" {self.setting}"
        )


class Adjusted(JsonObject, frozen=True, kw_only=True):
    """adjusted.json: the changes of a stage so far, the last of which counts."""

    adjusted: Annotated[tuple[Adjustment, ...], "in the order they were made"] = ()


class Doing(JsonObject, frozen=True, kw_only=True):
    """doing.json: what a trainer is at."""

    doing: Annotated[str, "loading, training, evaluating or saving"] = ""


class SavedFile(JsonObject, frozen=True, kw_only=True):
    """One file of a result, as it was when it was saved."""

    bytes: Annotated[int, "its size"]
    sha256: Annotated[str, "SHA-256 of its content, in hexadecimal"]


class RewardRecord(JsonObject, frozen=True, kw_only=True):
    """What became of one of several rewards over a training."""

    name: Annotated[str, "in metrics.jsonl and rollouts.jsonl"]
    weight: Annotated[float, "what it was multiplied by in the sum"] = 1.0
    first: Annotated[float | None, "its mean in the first step"] = None
    last: Annotated[float | None, "its mean in the last step"] = None
    spread: Annotated[float | None, "its standard deviation within a step, mean of all"] = None
    missing: Annotated[float | None, "share of the answers that it did not score", OMIT_NULL] = None
    constant: Annotated[bool, "whether every answer got the same"] = False


class LaunchRecord(JsonObject, frozen=True, kw_only=True):
    """How the processes of a run shared the work."""

    strategy: Annotated[str | None, "ddp or fsdp; null: one process"] = None
    processes: Annotated[int, "on each machine"] = 1
    nodes: Annotated[int, "machines"] = 1
    sharded_tensors: Annotated[
        int | None, "parameters of which each process held a part; null: not trained yet"
    ] = None
    peak_gib_per_rank: Annotated[
        tuple[float, ...], "peak memory of each process, as `measured` counts it"
    ] = ()

    def with_stage(self, other: LaunchRecord | None) -> LaunchRecord:
        """The whole run's, once a further stage is known: the most of all stages."""
        if other is None:
            return self
        if not self.peak_gib_per_rank:
            return other
        pairs = zip_longest(self.peak_gib_per_rank, other.peak_gib_per_rank, fillvalue=0.0)
        return replace(
            other,
            sharded_tensors=max(self.sharded_tensors or 0, other.sharded_tensors or 0),
            peak_gib_per_rank=tuple(max(pair) for pair in pairs),
        )
