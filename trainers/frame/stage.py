"""The frame that every objective trains in: rows, model, trainer, resuming, checks on what was
saved, the judge, result.json.

An objective is one file: it says what it trains on, how its trainer is built and how its result is
judged.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any, NamedTuple

from advisor.ground.errors import Fault, InputError
from trainers.evaluation.saved_result import Check, Probe
from trainers.frame import checkpoints, settings
from trainers.frame.bases import memory_meter, release_base
from trainers.frame.dry_run import measure
from trainers.frame.files import write_json
from trainers.frame.job import Job
from trainers.frame.machine import (
    MemoryMeter,
    check_versions,
    is_main_process,
    quiet_libraries,
    torch_device,
    use_cores,
)
from trainers.frame.rows import prepare_rows
from trainers.prepare import ANSWERS, Kind, Prepared
from trainers.prepare.prepared import rows_digest
from trainers.updates import load_update

# Of TRL's config, what a person would ask for; beside these, whatever differs from TRL's own
# defaults is recorded.
RECORDED_ARGUMENTS = (
    *(
        "learning_rate",
        "max_steps",
        "warmup_steps",
        "lr_scheduler_type",
        "weight_decay",
        "optim",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
    ),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "max_grad_norm", "loss_type"),
    *("bf16", "fp16", "gradient_checkpointing", "seed", "save_steps"),
)


class Objective(ABC):
    """What one objective does its own way.

    The defaults are those of a language model trained on rows of tokens.
    """

    kind: Kind[Any] = ANSWERS
    writes = True  # the result writes text (a reward model and a classifier do not)
    logged: Sequence[
        str
    ] = ()  # of the trainer's logs, what goes into metrics.jsonl beside the loss

    @abstractmethod
    def config_class(self) -> type:
        """TRL's (or transformers') config class, whose fields `trl:` may set."""

    def faults(self, job: Job) -> list[Any]:
        """What in the stage this objective cannot do."""
        return []

    def seq_len(self, job: Job) -> int | None:
        """The longest row; None: the stage's."""
        return None

    def rows(self, job: Job, tokenizer: Any) -> Prepared[Any]:
        """The data, prepared."""
        return prepare_rows(job, tokenizer, self.kind, seq_len=self.seq_len(job))

    def load(self, job: Job, device: Any, update: Any, tokenizer: Any, data: Prepared[Any]) -> Any:
        """The model to train."""
        from trainers.frame.loading import load_model

        return load_model(job, device, update)

    def sequences(self, job: Job, rows: Sequence[Any], model: Any) -> list[tuple[Any, ...]]:
        """The rows as the trainer's sequences: one each, or packed."""
        return [(row,) for row in rows]

    @abstractmethod
    def trainer(
        self,
        job: Job,
        model: Any,
        tokenizer: Any,
        device: Any,
        peft_config: Any,
        sequences: Sequence[Sequence[Any]],
        arguments: Mapping[str, Any],
    ) -> Any:
        """The trainer, without callbacks."""

    @abstractmethod
    def probe(self, job: Job, data: Prepared[Any], tokenizer: Any) -> Probe:
        """What the checks put to the model, and how it answers."""

    def evaluator(
        self, job: Job, trainer: Any, data: Prepared[Any], fingerprint: str
    ) -> Any | None:
        """Asks the model before and after; None: nothing is compared."""
        return None

    def evaluation_loss(self, trainer: Any, rows: Sequence[Any]) -> float | None:
        """Loss of one evaluation batch, for a dry run to measure its memory; None if there is
        none.
        """
        return None

    def save(self, job: Job, trainer: Any, model: Any, tokenizer: Any) -> None:
        """Write the result into the stage's folder."""
        checkpoints.save_result(model, tokenizer, job.output)


def prepare(job: Job, objective: Objective) -> tuple[Any, Prepared[Any]]:
    """The stage's tokenizer and its rows. Raises InputError for data that cannot be trained on."""
    from trainers.frame.loading import load_tokenizer

    tokenizer = load_tokenizer(job, writes=objective.writes)
    return tokenizer, objective.rows(job, tokenizer)


class OpenStage(NamedTuple):
    """What a stage finds where it runs."""

    versions: dict[str, str]
    device: Any
    threads: int
    update: Any


def open_stage(
    job: Job, config_class: Callable[[], type], faults: Callable[[Job], Sequence[Fault]]
) -> OpenStage:
    """The device and libraries of this process, ready.

    Raises InputError for what the stage cannot do here, all of it together.
    """
    versions = check_versions(
        quantized=job.stage.quantization is not None
        or "8bit" in job.stage.optimizer
        or "paged" in job.stage.optimizer
    )
    device = torch_device(job.plan.launch.device)
    threads = use_cores()
    quiet_libraries()
    from trainers.frame.loading import dtype_faults

    update = load_update(job.stage.update)
    settings.check_passed_through(job, config_class(), update)
    found = [*dtype_faults(job, device), *faults(job)]
    if found:
        raise InputError(faults=found)
    return OpenStage(versions, device, threads, update)


def last_checkpoint(job: Job, fingerprint: str) -> Any | None:
    """The checkpoint to go on from; says so where there are only those of other settings or
    data.
    """
    from trainers.frame.progress import say

    shown = is_main_process()
    if shown and checkpoints.has_other_checkpoints(job.checkpoints, fingerprint=fingerprint):
        say(
            f"{label(job)}: the checkpoints there belong to other settings or data: starting from"
            " the beginning"
        )
    return checkpoints.last_complete(job.checkpoints, fingerprint=fingerprint, remove=shown)


def train(job: Job, objective: Objective) -> None:
    """Train the stage, or measure two steps of it, and write what came of it into its folder."""
    began_s = time.monotonic()
    versions, device, threads, update = open_stage(job, objective.config_class, objective.faults)
    # Imported here: reading the command line and refusing a plan must not wait for them.
    from transformers import set_seed

    from trainers.evaluation.saved_result import check_saved
    from trainers.frame.loading import check_vocabulary, enable_stop_tokens
    from trainers.frame.progress import RunCallback, cut_metrics, say

    shown = is_main_process()

    set_seed(
        job.stage.seed
    )  # a module starts from the same numbers, whatever this process did before
    tokenizer, data = prepare(job, objective)
    if shown:
        for line in describe(data, template=objective.kind.name != "classes"):
            say(f"{label(job)}: {line}")

    memory = memory_meter(device)
    model = objective.load(job, device, update, tokenizer, data)
    check_vocabulary(model, tokenizer)
    stops = enable_stop_tokens(model, tokenizer, set(data.turn_ends)) if objective.writes else []
    sequences = objective.sequences(job, data.train, model)

    def build(
        short: Job, chosen: Sequence[Sequence[Any]], *, steps: int, callback: Any, save: bool = True
    ) -> Any:
        return build_trainer(
            objective,
            model,
            tokenizer,
            device,
            update,
            short,
            chosen,
            steps=steps,
            callback=callback,
            save=save,
        )

    if job.dry_run:
        measure(job, sequences, data, memory, build, versions, evaluate=objective.evaluation_loss)
        return

    steps = settings.total_steps(job, len(sequences), processes=settings.world_size())
    depends_on = [
        asdict(job.stage),
        job.base_model,
        job.plan.revision,
        str(job.start),
        steps,
        settings.world_size(),
        versions["torch"],
    ]
    fingerprint = checkpoints.fingerprint(
        [*depends_on, rows_digest(data.train) if objective.kind is ANSWERS else data.digest]
    )
    metrics = job.run / "metrics.jsonl"
    resume = last_checkpoint(job, fingerprint)
    watch = RunCallback(
        metrics=metrics if shown else None, stage=job.stage.name, task=job.task, label=label(job),
        steps=steps, memory=memory, fingerprint=fingerprint,
        scaled=settings.autocast_dtype(job, device) == "float16", shown=shown,
        logged=objective.logged,
    )  # fmt: skip
    goes_on = hasattr(model, "peft_config")  # with the module of an earlier stage
    trainer = build(job, sequences, steps=steps, callback=watch)
    model = trainer.model
    probe = objective.probe(job, data, tokenizer)
    before = probe.answer(model) if shown else None
    evaluator = (
        objective.evaluator(job, trainer, data, fingerprint) if job.judge and shown else None
    )
    if evaluator is not None:
        # A new prefix starts from a prompt, which changes answers by itself: the comparison is with
        # the model as it came.
        with (
            model.disable_adapter()
            if job.stage.update == "prefix" and not goes_on
            else nullcontext()
        ):
            evaluator.evaluate_base()

    if resume is not None:
        record = resume[1]
        if shown:
            watch.losses = cut_metrics(
                metrics, stage=job.stage.name, task=job.task, after=record["step"]
            )
            seen = record["epoch"]
            say(
                f"{label(job)}: going on after step {record['step']} of {steps}, learning rate"
                f" {record['learning_rate']:.3g}, {seen:.2f} times through the data"
            )
    elif shown:
        cut_metrics(metrics, stage=job.stage.name, task=job.task, after=0)
    memory.reset()
    try:
        if resume is not None and resume[1]["step"] >= steps:
            trainer._load_from_checkpoint(str(resume[0]))
        else:
            trainer.train(resume_from_checkpoint=str(resume[0]) if resume else None)
    finally:
        watch.close()
    measured = measurement(memory, watch)
    if not shown:
        return

    trained = without_autocast(trainer.accelerator.unwrap_model(trainer.model))
    if hasattr(trained.config, "use_cache"):
        trained.config.use_cache = True
    objective.save(job, trainer, trained, tokenizer)
    checks: list[Check] = check_saved(job, trained, job.output, probe, before)
    evaluation, verdict = None, None
    if evaluator is not None:
        evaluator.evaluate_tuned()
        evaluation, verdict = evaluator.record(), evaluator.verdict()
        checks += evaluator.checks()
        say(f"{label(job)}: {verdict[1]}")
    for check in checks:
        say(f"{label(job)}: {'ok' if check.ok else 'WARNING'}: {check.text}")
    write_json(
        job.output / "result.json",
        {
            "status": "done",
            "steps": steps,
            "loss_first": watch.losses[0] if watch.losses else None,
            "loss_last": watch.losses[-1] if watch.losses else None,
            "duration_s": time.monotonic() - began_s,
            "measured": measured,
            "data": data.counts(),
            "evaluation": evaluation,
            "checks": [check.record() for check in checks],
            "verdict": {
                "ok": all(check.ok for check in checks),
                "word": verdict[0] if verdict else None,
                "text": verdict[1] if verdict else None,
            },
            "versions": versions,
            "resolved": resolved_settings(job, trainer, device, threads, stops),
        },
    )
    release_base(trained)


def without_autocast(model: Any) -> Any:
    """The model without accelerate's autocast around its forward: what is judged and checked is the
    model as anybody loads it.

    accelerate's own unwrapping (keep_fp32_wrapper=False) would take off the forward of our losses
    with it.
    """
    original = vars(model).pop("_original_forward", None)
    if original is not None:
        model.forward = original
    return model


def measurement(memory: MemoryMeter, watch: Any) -> dict[str, Any]:
    """What the run cost, for result.json."""
    return {
        "peak_bytes": memory.peak_bytes(),
        "counter": memory.counter,
        "reserved_bytes": memory.reserved_bytes(),
        "step_s": watch.step_s,
        "tokens_per_s": watch.tokens / watch.train_s if watch.train_s else None,
        "train_s": watch.train_s,
    }


def label(job: Job) -> str:
    """How the stage is called in what is shown."""
    return job.stage.name if job.task is None else f"{job.task} {job.stage.name}"


def describe(data: Prepared[Any], *, template: bool = True) -> list[str]:
    """The data in a few lines: what is trained on, and what is not."""
    counts = data.counts()
    rows = f"{counts['train_rows']:,} rows to train on, {counts['holdout_rows']:,} held out"
    learned = (
        f", {counts['learned_tokens'] / counts['tokens']:.0%} of them learned"
        if counts["tokens"] and counts["learned_tokens"] > counts["train_rows"]
        else ""
    )
    by = f"; chat template: {data.template}" if data.template and template else ""
    return [
        f"{rows}; {counts['tokens']:,} tokens{learned}{by}",
        *(f"note: {note}" for note in data.notes),
    ]


def build_trainer(
    objective: Objective,
    model: Any,
    tokenizer: Any,
    device: Any,
    update: Any,
    job: Job,
    sequences: Sequence[Sequence[Any]],
    *,
    steps: int,
    callback: Any,
    save: bool = True,
) -> Any:
    """The objective's trainer with our callback alone."""
    from peft import PeftModel
    from transformers import PrinterCallback
    from transformers.trainer_callback import ProgressCallback

    from trainers.frame.progress import say

    arguments = settings.training_arguments(job, device, steps=steps) | (
        {} if save else {"save_strategy": "no"}
    )
    goes_on = isinstance(model, PeftModel)
    peft_config = None if goes_on else update.peft_config(job.stage, job.options, model)
    trainer = objective.trainer(job, model, tokenizer, device, peft_config, sequences, arguments)
    if not goes_on:
        started = update.start(
            job.stage,
            job.options,
            trainer.accelerator.unwrap_model(trainer.model),
            tokenizer,
            [row for sequence in sequences for row in sequence],
        )
        if started and is_main_process():
            say(f"{label(job)}: {started}")
    trainer.add_callback(callback)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    callback.trainer = trainer
    return trainer


def resolved_settings(
    job: Job, trainer: Any, device: Any, threads: int, stops: list[str]
) -> dict[str, Any]:
    """Every value that was really used, defaults included."""
    from peft import PeftModel

    model = trainer.model
    adapter = model.peft_config["default"].to_dict() if isinstance(model, PeftModel) else None
    trainable = sum(
        parameter.numel() for parameter in model.parameters() if parameter.requires_grad
    )
    return {
        "model": job.base_model,
        "start_from": job.start,
        "device": str(device),
        "threads": threads,
        "weights_dtype": job.stage.weights_dtype,
        "autocast": settings.autocast_dtype(job, device),
        "trainable_dtype": (
            str(
                next(parameter.dtype for parameter in model.parameters() if parameter.requires_grad)
            ).removeprefix("torch.")
        ),
        "quantization": job.stage.quantization,
        "double_quantization": (
            job.stage.double_quantization is not False if job.stage.quantization == "nf4" else None
        ),
        "attention": job.stage.attention,
        "packing": job.stage.packing,
        "seq_len": job.stage.seq_len,
        "truncation": job.stage.truncation,
        "holdout": job.stage.holdout,
        "options": job.options,
        "trainable_parameters": trainable,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "stop_tokens_added": stops,
        "trl": settings.resolved_values(trainer.args, RECORDED_ARGUMENTS),
        "peft": adapter,
        "epochs": trainer.state.epoch,
    }
