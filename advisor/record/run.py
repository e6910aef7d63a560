"""What came of a run: run.json, and the files that trainers write for it.

Launcher, report, chat, export and trainers read and write these files through the values here.
Sizes are bytes and durations seconds; null means "not known". A key that this version does not
know, of a newer version or of one objective alone, is kept in `extra` and written back.

| file | value | written by |
| --- | --- | --- |
| run.json | RunRecord | the launcher, after every change |
| dry_run.json | DryRunRecord | the launcher |
| stages/<name>/result.json | StageResult | the trainer of the stage |
| stages/<name>/trained/record.json | TrainedStage | several processes that trained the stage |
| stages/<name>/dry_run.json | StageMeasurement | the trainer of the stage |
| stages/<name>/adjusted.json | Adjusted | the trainer of the stage, or the launcher |
| stages/<name>/doing.json | Doing | the trainer of the stage |
| stages/<name>/error.json | ErrorRecord | a trainer that failed |
| stages/<name>/error-rank<N>.json | ErrorRecord | process N of several that failed |
| cross.json | CrossEvaluation | the comparison of all tasks |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from msgspec import Struct, defstruct, field
from msgspec.structs import replace

from advisor.ground.annotated import OMIT_NULL, JsonObject
from advisor.ground.errors import AdviseError
from advisor.ground.shape import Choice, Flag, Integer, Number, Text
from advisor.methods import objective
from advisor.methods.keys import Key as StageKey
from advisor.methods.stage import stage_keys
from advisor.record.content import Contents, digest_of
from advisor.record.stage import (
    Adjustment,
    Check,
    DataCounts,
    ErrorRecord,
    Evaluation,
    Expected,
    HeldOut,
    LaunchRecord,
    Measured,
    RewardRecord,
    SavedFile,
    Times,
)
from advisor.record.verdict import Verdict

SCHEMA_VERSION = 1
RECORD, DRY_RUN, RESULT = "run.json", "dry_run.json", "result.json"
ROLLOUTS = "rollouts.jsonl"  # in the folder of a stage that learns from its own answers
ERROR, CROSS = "error.json", "cross.json"
METRICS, REPORT, CARD = "metrics.jsonl", "report.html", "README.md"
ADJUSTED, DOING = "adjusted.json", "doing.json"

Status = Literal["pending", "running", "done", "stopped", "failed"]
PENDING: Final = "pending"
RUNNING: Final = "running"
DONE: Final = "done"
STOPPED: Final = "stopped"
FAILED: Final = "failed"

Versions = Annotated[Mapping[str, str | None], "package -> version"]


PLAIN_TYPES = ((Flag, bool), (Integer, int), (Number, float), (Text, str), (Choice, str))


def _recorded_field(key: StageKey) -> tuple[str, Any, Any]:
    kind: Any = next(plain for shape, plain in PLAIN_TYPES if isinstance(key.shape, shape))
    notes = (key.uses.recorded, *((OMIT_NULL,) if key.uses.omits_null else ()))
    return key.name, Annotated[(kind | None, *notes)], field(default=None)


# The keys of a stage whose annotations say that they are recorded.
RecordedKeys: Any = defstruct(
    "RecordedKeys",
    [_recorded_field(key) for key in stage_keys().values() if key.uses.recorded],
    bases=(JsonObject,), frozen=True, kw_only=True,
)  # fmt: skip


class ResolvedSettings(RecordedKeys, frozen=True, kw_only=True):  # type: ignore[misc, call-arg]
    """Every value that a stage was really trained with, defaults included."""

    model: Annotated[str | None, "the base: a hub id, or a folder of this machine"] = None
    start_from: Annotated[str | None, "folder of the result it went on from; null: the base"] = None
    device: Annotated[str | None, "torch's name of the device"] = None
    threads: Annotated[int | None, "CPU threads"] = None
    autocast: Annotated[str | None, "dtype of autocast; null: none"] = None
    trainable_dtype: Annotated[str | None, "dtype of the trained weights"] = None
    unquantised_parameters: Annotated[
        int | None, "parameters of a quantised base that keep weights_dtype", OMIT_NULL
    ] = None
    template: Annotated[
        Mapping[str, Any], "arguments that are written into the chat template of the result"
    ] = field(default_factory=dict)
    plain_template: Annotated[
        bool, "the base has no chat template: a plain one is stored with the result"
    ] = False
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


class Outcome(JsonObject, frozen=True, kw_only=True):
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
    launch: Annotated[LaunchRecord | None, "how its processes shared the work", OMIT_NULL] = None
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


class StageResult(Outcome, frozen=True, kw_only=True):
    """result.json: what the trainer of a stage says of it in the end."""

    status: Annotated[Status, "done"]
    versions: Versions = field(default_factory=dict)
    resolved: Annotated[ResolvedSettings, "every value it was trained with"] = ResolvedSettings()


class StageRecord(Outcome, frozen=True, kw_only=True):
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
        outcome = {name: getattr(result, name) for name in Outcome.__struct_fields__}
        outcome["extra"] = {**self.extra, **result.extra}
        return replace(self, **outcome, status=DONE, finished_at=finished_at, error=None)


# --------------------------------------------------------------------------- the run


class MachineRecord(JsonObject, frozen=True, kw_only=True):
    """The machine that a run used."""

    kind: Annotated[str | None, "cuda, rocm, mps or cpu"] = None
    gpus: Annotated[tuple[str, ...], "names of the GPUs that it used"] = ()
    driver_version: Annotated[str | None, "version of the GPUs' driver", OMIT_NULL] = None
    cpu_cores: Annotated[int | None, "usable cores"] = None
    ram_total_bytes: Annotated[int | None, "installed memory"] = None


class Identity(JsonObject, frozen=True, kw_only=True):
    """What a finished run was made of, and what came of it: SHA-256 of one file, or of the names
    and hashes of several; null: it was not there to be read. `advise check RUN` compares them.
    """

    plan: Annotated[str | None, "of model, data and stages, and of further files they name"] = None
    rows: Annotated[str | None, "of the data files"] = None
    base: Annotated[str | None, "of the base model's files"] = None
    result: Annotated[str | None, "of the files of the last stage (of each task)"] = None
    seed: Annotated[int | None, "of every stage; null: they have several, see plan.yaml"] = None
    versions: Versions = field(default_factory=dict)


class RunRecord(JsonObject, frozen=True, kw_only=True):
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
    extras: Annotated[
        Mapping[str, Any] | None, "name of an optional feature -> what it noted", OMIT_NULL
    ] = None
    composition: Annotated[str | None, "what the plan came from"] = None
    model: Annotated[str | None, "the model as the plan names it"] = None
    license: Annotated[str | None, "licence of the model, if it is known", OMIT_NULL] = None
    stages: Annotated[tuple[StageRecord, ...], "one per stage and task, in order"]
    launch: Annotated[
        LaunchRecord | None, "how processes share the work; the peaks are of all stages", OMIT_NULL
    ] = None
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
    input_files: Annotated[
        Mapping[str, Contents],
        "model, data PATH or file PATH, as plan.yaml in the folder names it -> name of each file"
        " there -> what it held",
    ] = field(default_factory=dict)
    identity: Annotated[
        Identity | None, "what it was made of, once it is done; null: not done", OMIT_NULL
    ] = None
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
    def input_digests(self) -> dict[str, str]:
        """The same names -> one digest of all that was read there."""
        return {key: digest_of(files) for key, files in self.input_files.items()}

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

    def writes(self, stage: StageRecord) -> bool:
        """Whether the result answers as a language model does: it sorts, scores or rewrites not."""
        sorts = self.is_classifier(stage) or self.is_seq2seq(stage)
        return not sorts and not objective(stage.objective).scores


def last_of_each_task(stages: Iterable[StageRecord]) -> list[StageRecord]:
    """The last stage of each task, or the last of all if the plan has no tasks."""
    return list({stage.task: stage for stage in stages}.values())


class CrossEvaluation(JsonObject, frozen=True, kw_only=True):
    """cross.json: the module of every task on the held-out rows of every task."""

    losses: Annotated[
        Mapping[str, Mapping[str, float | None]],
        "task -> module or base -> loss on the task's held-out rows",
    ]


# --------------------------------------------------------------------------- dry runs


class StageMeasurement(JsonObject, frozen=True, kw_only=True):
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


class DryRunStage(StageMeasurement, frozen=True, kw_only=True):
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
        values = {name: getattr(found, name) for name in StageMeasurement.__struct_fields__}
        return replace(self, **values, status=DONE)


class DryRunRecord(JsonObject, frozen=True, kw_only=True):
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


class FinishedRun(Struct, frozen=True, kw_only=True):
    """What came of a plan: its folder, and run.json as a value."""

    folder: Path
    record: RunRecord
    already_done: bool = False  # it was finished before, and this call did nothing
    # What did not end as the plan wants, though everything is trained and saved.
    errors: tuple[AdviseError, ...] = ()
    node: int = 0  # of several machines, the one that tells; machine 0 did what is not training

    @property
    def exit_code(self) -> int:
        """0, or that of the first of `errors`: whatever else went wrong was raised instead."""
        return next((int(error.exit_code) for error in self.errors), 0)

    @property
    def status(self) -> Status:
        """How far the run is."""
        return self.record.status


class DryRun(Struct, frozen=True, kw_only=True):
    """What was measured of a plan: its folder, and dry_run.json as a value."""

    folder: Path
    record: DryRunRecord
    node: int = 0

    @property
    def exit_code(self) -> int:
        """0: whatever went wrong was raised instead."""
        return 0
