"""What a stage needs and what its data came to, as run.json holds it: memory and time, expected and
measured, and the counts of rows. Bytes and seconds; null means "not known".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from advisor.ground.json_values import OMIT_NULL, JsonObject


@dataclass(frozen=True, kw_only=True, slots=True)
class Times(JsonObject):
    """Where the seconds of a stage went, in the attempt that finished it; or will go, expected."""

    total_s: Annotated[float | None, "the sum of the parts"] = None
    load_s: Annotated[float | None, "reading rows, loading the model"] = None
    before_s: Annotated[float | None, "measuring the model before training"] = None
    train_s: Annotated[float | None, "the steps, with checkpoints and held-out loss"] = None
    after_s: Annotated[float | None, "saving, checking and measuring the result"] = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnedRecord(JsonObject):
    """How far earlier runs on this machine corrected the estimate (docs/learning.md)."""

    memory_runs: Annotated[int, "runs that stand behind the memory"] = 0
    time_runs: Annotated[int, "runs that stand behind the time"] = 0
    memory_scale: Annotated[float | None, "corrected over formula; null: not corrected"] = None
    time_scale: Annotated[float | None, "the same of the time"] = None
    formula_bytes: Annotated[int | None, "`peak_bytes` by the formula alone"] = None
    formula_counted_bytes: Annotated[int | None, "`counted_bytes` by it"] = None
    formula_step_s: Annotated[float | None, "`step_s` by it"] = None
    formula_duration_s: Annotated[float | None, "`duration_s` by it"] = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpectedTerm(JsonObject):
    """One part of the expected peak memory."""

    name: Annotated[str, "what it is"]
    bytes: Annotated[int, "its size; below 0: a correction"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected(JsonObject):
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured(JsonObject):
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
    tokens: Annotated[
        int | None, "non-padded tokens trained on, since the last resume", OMIT_NULL
    ] = None
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


@dataclass(frozen=True, kw_only=True, slots=True)
class DataCounts(JsonObject):
    """What became of the rows of the data file."""

    rows: Annotated[int | None, "rows in the file"] = None
    train_rows: Annotated[int | None, "rows trained on"] = None
    holdout_rows: Annotated[int | None, "rows held out for evaluation"] = None
    dropped: Annotated[int | None, "rows left out for their length"] = None
    truncated: Annotated[int | None, "rows cut to `seq_len`"] = None
    split: Annotated[int | None, "raw texts split into several sequences; nothing is lost"] = None
    tokens: Annotated[int | None, "tokens of the rows trained on"] = None
    learned_tokens: Annotated[int | None, "those of them that the loss counts"] = None
    longest: Annotated[int | None, "tokens of the longest row"] = None
    template: Annotated[str, "where the chat template comes from"] = ""
    notes: Annotated[tuple[str, ...], "what else is worth knowing"] = ()
