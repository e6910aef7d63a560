"""What came of a run: run.json, and the files that trainers write for it.

Launcher, report, chat, export and trainers read and write these files through the values here.
Sizes are bytes and durations seconds; null means "not known". A key that this version does not
know, of a newer version or of one objective alone, is kept in `extra` and written back.

| file | value | written by |
| --- | --- | --- |
| run.json | RunRecord | the launcher, after every change |
| dry_run.json | DryRunRecord | the launcher |
| stages/<name>/result.json | StageResult | the trainer of the stage |
| stages/<name>/dry_run.json | StageMeasurement | the trainer of the stage |
| stages/<name>/adjusted.json | Adjusted | the trainer of the stage, or the launcher |
| stages/<name>/doing.json | Doing | the trainer of the stage |
| stages/<name>/error.json | ErrorRecord | a trainer that failed |
| stages/<name>/error-rank<N>.json | ErrorRecord | process N of several that failed |
| cross.json | CrossEvaluation | the comparison of all tasks |
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from advisor.ground.content import FileContent, KnownFiles
from advisor.ground.errors import AdviseError, Fault, InputError
from advisor.ground.files import read_at_most, write_atomically
from advisor.ground.json_values import OMIT_NULL, JsonObject, json_schema, plain_json
from advisor.ground.terminal import json_shown
from advisor.plan.verdict_record import Verdict as Verdict

SCHEMA_VERSION = 1
RECORD, DRY_RUN, RESULT = "run.json", "dry_run.json", "result.json"
ROLLOUTS = "rollouts.jsonl"  # in the folder of a stage that learns from its own answers
ERROR, CROSS = "error.json", "cross.json"
ADJUSTED, DOING = "adjusted.json", "doing.json"

Status = Literal["pending", "running", "done", "stopped", "failed"]
PENDING: Final = "pending"
RUNNING: Final = "running"
DONE: Final = "done"
STOPPED: Final = "stopped"
FAILED: Final = "failed"

Interval = Annotated[tuple[float | None, ...] | None, "95 % interval of the difference: low, high"]
Versions = Annotated[Mapping[str, str | None], "package -> version"]


# --------------------------------------------------------------------------- parts of a stage


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
    closest: Annotated[str, "what the closest of them has in common with this one"] = ""
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


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorRecord(JsonObject):
    """Why a stage failed or stopped."""

    kind: Annotated[str, "name of the error's class"] = ""
    what: Annotated[str, "what is wrong, and where"] = ""
    allowed: Annotated[str, "what would have been right"] = ""
    hint: Annotated[str, "the next step"] = ""
    exit_code: Annotated[int | None, "exit code of the command"] = None
    rank: Annotated[int | None, "number of the process that failed, from 0", OMIT_NULL] = None
    at_s: Annotated[float | None, "when, in seconds since 1970", OMIT_NULL] = None
    doing: Annotated[
        str | None, "what it was doing as memory ran out: loading, training, ...", OMIT_NULL
    ] = None
    lost_others: Annotated[
        bool | None, "did it fail only because another process was gone?", OMIT_NULL
    ] = None

    @classmethod
    def of(cls, error: AdviseError, **process: Any) -> ErrorRecord:
        """The error as it is recorded; several faults become one text.

        Args:
            error: What went wrong.
            process: Of one of several processes: rank, at_s, lost_others.
        """
        first = error.faults[0]
        return cls(
            kind=type(error).__name__,
            what=error.text() if len(error.faults) > 1 else first.headline,
            allowed=first.allowed,
            hint=first.hint,
            exit_code=error.exit_code,
            **process,
        )


def error_of_rank(rank: int) -> str:
    """The file's name for the error of one of several processes."""
    return f"error-rank{rank}.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedSettings(JsonObject):
    """Every value that a stage was really trained with, defaults included."""

    model: Annotated[str | None, "the base: a hub id, or a folder of this machine"] = None
    start_from: Annotated[str | None, "folder of the result it went on from; null: the base"] = None
    device: Annotated[str | None, "torch's name of the device"] = None
    threads: Annotated[int | None, "CPU threads"] = None
    weights_dtype: Annotated[str | None, "dtype the base is loaded in"] = None
    autocast: Annotated[str | None, "dtype of autocast; null: none"] = None
    trainable_dtype: Annotated[str | None, "dtype of the trained weights"] = None
    quantization: Annotated[str | None, "of the frozen base"] = None
    double_quantization: Annotated[
        bool | None, "nf4 only: whether the scales are quantised too"
    ] = None
    unquantised_parameters: Annotated[
        int | None, "parameters of a quantised base that keep weights_dtype", OMIT_NULL
    ] = None
    attention: Annotated[str | None, "the attention implementation"] = None
    kernels: Annotated[str | None, "fused kernels of the layers: liger, hub or none"] = None
    compile: Annotated[bool | None, "whether layers were compiled"] = None
    packing: Annotated[bool | None, "whether several rows share a sequence"] = None
    group_by_length: Annotated[
        bool | None, "whether rows of similar length share a micro-batch"
    ] = None
    seq_len: Annotated[int | None, "tokens of the longest sequence"] = None
    truncation: Annotated[str | None, "what happens to longer rows: stop, drop or truncate"] = None
    holdout: Annotated[float | None, "share of the rows held out"] = None
    template: Annotated[
        Mapping[str, Any], "arguments that are written into the chat template of the result"
    ] = field(default_factory=dict)
    plain_template: Annotated[
        bool, "the base has no chat template: a plain one is stored with the result"
    ] = False
    keep: Annotated[str | None, "best or last: whose weights are the result", OMIT_NULL] = None
    early_stopping: Annotated[
        int | None, "evaluations without improvement after which training stops", OMIT_NULL
    ] = None
    options: Annotated[Mapping[str, Any], "the keys of the objective and of the update"] = field(
        default_factory=dict
    )
    trainable_parameters: Annotated[int | None, "how many parameters are trained"] = None
    parameters: Annotated[int | None, "how many the model has in all"] = None
    stop_tokens_added: Annotated[tuple[str, ...], "tokens added to those that end an answer"] = ()
    trl: Annotated[
        Mapping[str, Any] | None, "of TRL's config: the usual keys, and what is not its default"
    ] = None
    peft: Annotated[Mapping[str, Any] | None, "PEFT's whole config"] = None
    epochs: Annotated[float | None, "passes through the data"] = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Adjustment(JsonObject):
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Adjusted(JsonObject):
    """adjusted.json: the changes of a stage so far, the last of which counts."""

    adjusted: Annotated[tuple[Adjustment, ...], "in the order they were made"] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Doing(JsonObject):
    """doing.json: what a trainer is at."""

    doing: Annotated[str, "loading, training, evaluating or saving"] = ""


# --------------------------------------------------------------------------- stages


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedFile(JsonObject):
    """One file of a result, as it was when it was saved."""

    bytes: Annotated[int, "its size"]
    sha256: Annotated[str, "SHA-256 of its content, in hexadecimal"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardRecord(JsonObject):
    """What became of one of several rewards over a training."""

    name: Annotated[str, "in metrics.jsonl and rollouts.jsonl"]
    weight: Annotated[float, "what it was multiplied by in the sum"] = 1.0
    first: Annotated[float | None, "its mean in the first step"] = None
    last: Annotated[float | None, "its mean in the last step"] = None
    spread: Annotated[float | None, "its standard deviation within a step, mean of all"] = None
    missing: Annotated[float | None, "share of the answers that it did not score", OMIT_NULL] = None
    constant: Annotated[bool, "whether every answer got the same"] = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome(JsonObject):
    """What a trained stage came to."""

    steps: Annotated[int | None, "optimizer steps"] = None
    loss_first: Annotated[float | None, "training loss of the first step"] = None
    loss_last: Annotated[float | None, "training loss of the last step"] = None
    reward_first: Annotated[float | None, "mean reward of the first update (PPO)", OMIT_NULL] = None
    reward_last: Annotated[float | None, "mean reward of the last update (PPO)", OMIT_NULL] = None
    duration_s: Annotated[
        float | None, "seconds of the attempt that finished it, with evaluation"
    ] = None
    measured: Annotated[Measured | None, "memory and time"] = None
    times: Annotated[Times | None, "the whole time, by its parts", OMIT_NULL] = None
    data: Annotated[DataCounts | None, "the rows"] = None
    evaluation: Annotated[Evaluation | None, "before and after; null: not compared"] = None
    held_out: Annotated[HeldOut | None, "held-out loss during training", OMIT_NULL] = None
    rewards: Annotated[
        tuple[RewardRecord, ...] | None, "each of several rewards; null: there is one", OMIT_NULL
    ] = None
    checks: Annotated[tuple[Check, ...], "checks of what was saved"] = ()
    verdict: Annotated[Verdict | None, "the verdict on the stage"] = None
    files: Annotated[
        Mapping[str, SavedFile] | None,
        "file of the result -> its size and hash; null: written by an earlier version",
        OMIT_NULL,
    ] = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StageResult(Outcome):
    """result.json: what the trainer of a stage says of it in the end."""

    status: Annotated[Status, "done"]
    versions: Versions = field(default_factory=dict)
    resolved: Annotated[ResolvedSettings, "every value it was trained with"] = ResolvedSettings()


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRecord(Outcome):
    """One training of a run: a stage, of one task if the plan has tasks."""

    name: Annotated[str, "the stage, or stage-task; also the name of its folder"]
    task: Annotated[str | None, "the task; null: the plan has none"] = None
    objective: Annotated[str, "sft, dpo, ..."]
    update: Annotated[str, "full, lora, ..."]
    quantization: Annotated[str | None, "of the frozen base"] = None
    status: Annotated[Status, "how far it is"]
    folder: Annotated[str, "of the result, relative to the run folder"] = ""
    started_at: Annotated[str | None, "UTC"] = None
    finished_at: Annotated[str | None, "UTC"] = None
    error: Annotated[ErrorRecord | None, "of a stage that failed or stopped", OMIT_NULL] = None
    expected: Annotated[Expected | None, "the estimate, made before the run"] = None
    adjusted: Annotated[
        tuple[Adjustment, ...], "what it changed by itself, to need less memory"
    ] = ()

    @property
    def plan_stage(self) -> str:
        """The stage's name in the plan: without the task that is appended here."""
        return self.name.removesuffix(f"-{self.task}") if self.task else self.name

    def with_result(self, result: StageResult, *, finished_at: str) -> StageRecord:
        """The stage once its trainer has finished."""
        outcome = {part.name: getattr(result, part.name) for part in fields(Outcome)}
        outcome["extra"] = {**self.extra, **result.extra}
        return replace(self, **outcome, status=DONE, finished_at=finished_at, error=None)


# --------------------------------------------------------------------------- the run


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineRecord(JsonObject):
    """The machine that a run used."""

    kind: Annotated[str | None, "cuda, rocm, mps or cpu"] = None
    gpus: Annotated[tuple[str, ...], "names of the GPUs that it used"] = ()
    driver_version: Annotated[str | None, "version of the GPUs' driver", OMIT_NULL] = None
    cpu_cores: Annotated[int | None, "usable cores"] = None
    ram_total_bytes: Annotated[int | None, "installed memory"] = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord(JsonObject):
    """run.json: everything about a run."""

    schema_version: Annotated[int, "the format of this file; others are refused"]
    advise_version: Annotated[str | None, "the version that wrote the file"] = None
    name: Annotated[str | None, "the plan's name"] = None
    status: Annotated[Status, "how far the run is"]
    verdict: Annotated[Verdict | None, "of the last finished stage; of several tasks together"] = (
        None
    )
    cross_evaluation: Annotated[
        Mapping[str, Mapping[str, float | None]] | None,
        "task -> module or base -> loss on the task's held-out rows",
    ] = None
    composition: Annotated[str | None, "what the plan came from"] = None
    model: Annotated[str | None, "the model as the plan names it"] = None
    stages: Annotated[tuple[StageRecord, ...], "one per stage and task, in order"]
    max_steps: Annotated[int | None, "the limit of a trial run; null: the whole run"] = None
    judge: Annotated[bool, "whether the result is compared with the base"] = True
    resolved: Annotated[
        Mapping[str, ResolvedSettings], "name of a finished stage -> its values"
    ] = field(default_factory=dict)
    versions: Versions = field(default_factory=dict)
    hardware: Annotated[MachineRecord | None, "the machine"] = None
    digests: Annotated[Mapping[str, str], "of the plan as given, and of its copy in the folder"] = (
        field(default_factory=dict)
    )
    tasks: Annotated[Mapping[str, str], "task -> digest of its data and overrides"] = field(
        default_factory=dict
    )
    content_digests: Annotated[
        Mapping[str, str],
        "of the plan with the contents of its files in place of their paths: equal for a moved"
        " project and a renamed model folder",
    ] = field(default_factory=dict)
    inputs: Annotated[
        Mapping[str, str],
        "model, data PATH or file PATH -> digest of what a stage read there: SHA-256 of the file,"
        " or of names and contents of the files",
    ] = field(default_factory=dict)
    input_files: Annotated[
        Mapping[str, Mapping[str, FileContent]],
        "the same -> each of its files (not if there are very many)",
    ] = field(default_factory=dict)
    adjusted: Annotated[
        tuple[Adjustment, ...], "what stages changed by themselves, to need less memory"
    ] = ()
    started_at: Annotated[str | None, "UTC; of the first attempt"] = None
    finished_at: Annotated[str | None, "UTC; null while it is running"] = None
    attempts: Annotated[int, "how often the run was started or resumed"] = 1

    def stage(self, name: str) -> StageRecord | None:
        """The stage of that name, or None."""
        return next((stage for stage in self.stages if stage.name == name), None)

    def with_stage(self, stage: StageRecord) -> RunRecord:
        """The record with a new state of one stage."""
        stages = tuple(stage if other.name == stage.name else other for other in self.stages)
        return replace(self, stages=stages)

    @property
    def known_files(self) -> KnownFiles:
        """Files that were read already, so that they need not be read again."""
        return KnownFiles(
            (name, content)
            for files in self.input_files.values()
            for name, content in files.items()
        )

    def settings(self, stage: StageRecord) -> ResolvedSettings:
        """What the stage was trained with; every value unknown if it is not finished."""
        return self.resolved.get(stage.name) or ResolvedSettings()

    def base_model(self, stage: StageRecord) -> str:
        """The base that a result belongs to, or came from: a hub id or a folder."""
        return str(self.settings(stage).model or self.model)

    def is_classifier(self, stage: StageRecord) -> bool:
        """Whether the result sorts texts into classes instead of writing."""
        return self.settings(stage).options.get("head") == "classes"

    def is_seq2seq(self, stage: StageRecord) -> bool:
        """Whether the result has an encoder that reads and a decoder that writes."""
        return self.settings(stage).options.get("head") == "seq2seq"


def last_of_each_task(stages: Iterable[StageRecord]) -> list[StageRecord]:
    """The last stage of each task, or the last of all if the plan has no tasks."""
    return list({stage.task: stage for stage in stages}.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossEvaluation(JsonObject):
    """cross.json: the module of every task on the held-out rows of every task."""

    losses: Annotated[
        Mapping[str, Mapping[str, float | None]],
        "task -> module or base -> loss on the task's held-out rows",
    ]


# --------------------------------------------------------------------------- dry runs


@dataclass(frozen=True, kw_only=True, slots=True)
class StageMeasurement(JsonObject):
    """stages/<name>/dry_run.json: what the trainer measured in two steps."""

    measured: Annotated[Measured | None, "memory and time"] = None
    steps: Annotated[int | None, "optimizer steps of the whole stage"] = None
    longest_batch_duration_s: Annotated[
        float | None, "seconds for all steps if every batch were the longest"
    ] = None
    batch_tokens: Annotated[int | None, "tokens of the longest batch"] = None
    losses: Annotated[tuple[float | None, ...], "of the measured steps"] = ()
    evaluation_loss: Annotated[float | None, "loss of the evaluation batch"] = None
    data: Annotated[DataCounts | None, "the rows"] = None
    versions: Versions = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRunStage(StageMeasurement):
    """One stage of a dry run."""

    name: Annotated[str, "the stage, or stage-task"]
    objective: Annotated[str, "sft, dpo, ..."]
    update: Annotated[str, "full, lora, ..."]
    quantization: Annotated[str | None, "of the frozen base"] = None
    status: Annotated[Status, "done, or pending if it could not be measured"]
    why: Annotated[str | None, "why it could not be measured", OMIT_NULL] = None
    expected: Annotated[Expected | None, "the estimate"] = None

    def with_measurement(self, found: StageMeasurement) -> DryRunStage:
        """The stage once its trainer has measured it."""
        values = {part.name: getattr(found, part.name) for part in fields(StageMeasurement)}
        return replace(self, **values, status=DONE)


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRunRecord(JsonObject):
    """dry_run.json: what a run would need, measured."""

    schema_version: Annotated[int, "the format of this file"]
    advise_version: Annotated[str | None, "the version that wrote the file"] = None
    status: Annotated[Status, "done"] = DONE
    name: Annotated[str | None, "the plan's name"] = None
    digests: Annotated[Mapping[str, str], "of the plan as given, and of its copy in the folder"] = (
        field(default_factory=dict)
    )
    measured_at: Annotated[str | None, "UTC"] = None
    stages: Annotated[tuple[DryRunStage, ...], "the measured stages, in order"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What came of a plan: its folder, and run.json as a value."""

    folder: Path
    record: RunRecord
    already_done: bool = False  # it was finished before, and this call did nothing

    @property
    def exit_code(self) -> int:
        """0: whatever went wrong was raised instead."""
        return 0

    @property
    def status(self) -> Status:
        """How far the run is."""
        return self.record.status


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRun:
    """What was measured of a plan: its folder, and dry_run.json as a value."""

    folder: Path
    record: DryRunRecord

    @property
    def exit_code(self) -> int:
        """0: whatever went wrong was raised instead."""
        return 0


# --------------------------------------------------------------------------- files

Part = TypeVar("Part", bound=JsonObject)
MOST_BYTES = 2**28  # of run.json; with the samples of 10,000 stages it has a tenth of that


def read_record(folder: Path, *, hint: str = "") -> RunRecord | None:
    """run.json of a folder, or None if there is none.

    Raises InputError if it is damaged, or of another version of advise.

    Args:
        hint: The next step for a person whose file cannot be read.
    """
    path = folder / RECORD
    try:
        data = _json_of(path, hint)
    except FileNotFoundError:
        return None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        found = f"its schema_version is {version}" if version else "it has no schema_version"
        raise InputError(
            f"{path} is no run.json of this version of advise: {found}",
            f"this version reads schema_version {SCHEMA_VERSION}",
            hint,
            where=str(path),
        )
    record = _value_of(RunRecord, data, path, hint)
    outside = [
        Fault(
            where=str(path),
            what=f"stages[{number}].folder is {stage.folder[:60]!r}",
            allowed="a folder inside the run folder",
            hint=hint,
        )
        for number, stage in enumerate(record.stages)
        if Path(stage.folder).is_absolute() or ".." in Path(stage.folder).parts
    ]
    if outside:  # a report and model cards are written there
        raise InputError(faults=outside)
    return record


def read_part(kind: type[Part], path: Path) -> Part | None:
    """The value in a JSON file that a trainer wrote, or None if there is no such file.

    Raises InputError if it is half-written, or holds something else.
    """
    try:
        data = _json_of(path, "")
    except FileNotFoundError:
        return None
    return _value_of(kind, data, path, "")


def try_read_part(kind: type[Part], path: Path) -> Part | None:
    """The value in a JSON file that a trainer wrote, or None if the file is missing or broken."""
    try:
        return read_part(kind, path)
    except InputError:
        return None


def _json_of(path: Path, hint: str) -> Any:
    try:
        return plain_json(read_at_most(path, MOST_BYTES))
    except FileNotFoundError:
        raise
    except RecursionError:
        raise InputError(
            f"{path} cannot be read: it is nested too deeply", where=str(path), hint=hint
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}", where=str(path), hint=hint) from None


def _value_of(kind: type[Part], data: Any, path: Path, hint: str) -> Part:
    try:
        return kind.from_dict(data, at=str(path))
    except InputError as error:
        faults = [replace(fault, hint=hint) for fault in error.faults]
        raise InputError(faults=faults) from None


def write_record(path: Path, value: JsonObject) -> None:
    """Write the value as JSON, whole or not at all. Raises MachineNotReady."""
    text = json.dumps(value.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, json_shown(text) + "\n")


def run_schema() -> dict[str, Any]:
    """The JSON Schema of run.json."""
    return json_schema(RunRecord, title="Record of a run of advise (run.json)")
