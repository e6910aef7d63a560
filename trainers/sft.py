"""Supervised fine-tuning under any update scheme, on chat, prompt and completion, or raw text.

Run: python -P -m trainers.sft PLAN --stage NAME --run FOLDER [--task NAME] [--dry-run] [--max-steps N] [--no-judge]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

from advisor.errors import InputError
from trainers import checkpoints, judge, settings
from trainers.dry_run import measure
from trainers.files import read_json, write_json
from trainers.job import Job, run_trainer
from trainers.machine import MemoryMeter, check_versions, is_main_process, quiet_libraries, torch_device, use_cores
from trainers.prepare import Prepared, Row
from trainers.prepare.prepared import rows_digest
from trainers.rows import read_prepared, sequences_of
from trainers.updates import update_named

OBJECTIVES = ("sft",)
# Of TRL's config, what a person would ask for; beside these, whatever differs from TRL's own defaults is recorded.
ASKED_FOR = (
    *("learning_rate", "max_steps", "warmup_steps", "lr_scheduler_type", "weight_decay", "optim", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "max_grad_norm", "loss_type"),
    *("bf16", "fp16", "gradient_checkpointing", "seed", "save_steps"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    return run_trainer(train, argv, objectives=OBJECTIVES, prog="trainers.sft")


def train(job: Job) -> None:
    """Train the stage, or measure two steps of it, and write what came of it into its folder."""
    began_s = time.monotonic()
    versions = check_versions(quantized=job.stage.quantization is not None or "8bit" in job.stage.optimizer or "paged" in job.stage.optimizer)
    device = torch_device(job.plan.launch.device)
    threads = use_cores()
    quiet_libraries()
    # Imported here: reading the command line and refusing a plan must not wait for them.
    from trl import SFTConfig

    from trainers.checks import check_saved, check_stops, log_probs, probe_row
    from trainers.loading import check_vocabulary, dtype_faults, enable_stop_tokens, load_model, load_tokenizer
    from trainers.progress import Watch, cut_metrics, say

    shown = is_main_process()
    update = update_named(job.stage.update)
    settings.check_passed_through(job, SFTConfig, update)
    faults = dtype_faults(job, device)
    if faults:
        raise InputError(faults=faults)

    tokenizer = load_tokenizer(job)
    data = read_prepared(job, tokenizer)
    if shown:
        for line in describe(data):
            say(f"{label(job)}: {line}")

    memory = MemoryMeter(device)
    model = load_model(job, device, update)
    check_vocabulary(model, tokenizer)
    stops = enable_stop_tokens(model, tokenizer, set(data.turn_ends))
    groups = sequences_of(job, data.train, model)
    if job.dry_run:
        measure(job, groups, data, memory, lambda *args, **kwargs: build_trainer(model, tokenizer, device, update, *args, **kwargs), versions)
        return

    steps = settings.total_steps(job, len(groups), processes=settings.world_size())
    depends_on = [asdict(job.stage), job.base_model, job.plan.revision, str(job.start), steps, settings.world_size(), versions["torch"]]
    mark = checkpoints.fingerprint([*depends_on, rows_digest(data.train)])
    metrics = job.run / "metrics.jsonl"
    if shown and checkpoints.others_there(job.checkpoints, mark=mark):
        say(f"{label(job)}: the checkpoints there belong to other settings or data: starting from the beginning")
    resume = checkpoints.last_complete(job.checkpoints, mark=mark, remove=shown)
    watch = Watch(
        metrics=metrics if shown else None,
        stage=job.stage.name,
        task=job.task,
        label=label(job),
        steps=steps,
        memory=memory,
        mark=mark,
        scaled=settings.mixed_dtype(job, device) == "float16",
        shown=shown,
    )
    trainer = build_trainer(model, tokenizer, device, update, job, groups, steps=steps, callback=watch)
    model = trainer.model
    row = probe_row(data.train)
    before = log_probs(model, row, tokenizer.pad_token_id) if shown else None
    verdict = Judge(job, trainer, data, mark) if job.judge and shown else None
    if verdict is not None:
        verdict.ask_base()

    if resume is not None:
        record = resume[1]
        if shown:
            watch.losses = cut_metrics(metrics, stage=job.stage.name, task=job.task, after=record["step"])
            seen = record["epoch"]
            say(f"{label(job)}: going on after step {record['step']} of {steps}, learning rate {record['learning_rate']:.3g}, {seen:.2f} times through the data")
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
    measured = {
        "peak_bytes": memory.peak_bytes(),
        "counter": memory.counter,
        "reserved_bytes": memory.reserved_bytes(),
        "step_s": watch.step_s,
        "tokens_per_s": watch.tokens / watch.train_s if watch.train_s else None,
        "train_s": watch.train_s,
    }
    if not shown:
        return

    trained = trainer.accelerator.unwrap_model(trainer.model)
    trained.config.use_cache = True
    checkpoints.save_result(trained, tokenizer, job.output)
    checks = check_saved(job, trained, job.output, row, tokenizer, before)
    evaluation = None
    if verdict is not None:
        verdict.ask_tuned()
        evaluation = verdict.record()
        checks += check_stops(job, verdict.tuned, verdict.base, tokenizer, verdict.limit)
    if verdict is not None and verdict.sentence():
        say(f"{label(job)}: {verdict.sentence()}")
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
            "verdict": {"ok": all(check.ok for check in checks), "text": verdict.sentence() if verdict is not None else None},
            "versions": versions,
            "resolved": resolved(job, trainer, device, threads, stops),
        },
    )


def label(job: Job) -> str:
    """How the stage is called in what is shown."""
    return job.stage.name if job.task is None else f"{job.task} {job.stage.name}"


def describe(data: Prepared) -> list[str]:
    """The data in a few lines: what is trained on, and what is not."""
    counts = data.counts()
    share = counts["learned_tokens"] / counts["tokens"]
    rows = f"{counts['train_rows']:,} rows to train on, {counts['holdout_rows']:,} held out"
    line = f"{rows}; {counts['tokens']:,} tokens, {share:.0%} of them learned; chat template: {data.template}"
    return [line, *(f"note: {note}" for note in data.notes)]


def build_trainer(model: Any, tokenizer: Any, device: Any, update: Any, job: Job, groups: Sequence[Sequence[Row]], *, steps: int, callback: Any, save: bool = True) -> Any:
    """TRL's trainer on rows that are ready: masked, within seq_len, packed where the plan says so."""
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PrinterCallback
    from transformers.trainer_callback import ProgressCallback
    from trl import SFTConfig

    from trainers.answer_loss import answer_trainer
    from trainers.prepare import PackedBatches, columns
    from trainers.progress import say

    goes_on = isinstance(model, PeftModel)  # with the module of an earlier stage
    flat = job.stage.packing and job.stage.attention == "flash_attention_2"
    arguments = settings.training_arguments(job, device, steps=steps) | {
        "max_length": job.stage.seq_len,
        "packing": flat,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
    if not save:
        arguments["save_strategy"] = "no"
    config = settings.built(SFTConfig, arguments, job)
    trainer = answer_trainer()(
        model=model,
        args=config,
        train_dataset=Dataset.from_dict(columns(groups, lengths=job.stage.packing)),
        processing_class=tokenizer,
        data_collator=PackedBatches(tokenizer.pad_token_id) if job.stage.packing and not flat else None,
        peft_config=None if goes_on else update.peft_config(job.stage, job.options, model),
        callbacks=[callback],
    )
    if not goes_on:
        started = update.start(job.stage, job.options, trainer.accelerator.unwrap_model(trainer.model), tokenizer, [row for group in groups for row in group])
        if started and is_main_process():
            say(f"{label(job)}: {started}")
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    callback.trainer = trainer
    return trainer


def resolved(job: Job, trainer: Any, device: Any, threads: int, stops: list[str]) -> dict[str, Any]:
    """Every value that was really used, defaults included."""
    from peft import PeftModel

    model = trainer.model
    adapter = model.peft_config["default"].to_dict() if isinstance(model, PeftModel) else None
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {
        "model": job.base_model,
        "start_from": job.start,
        "device": str(device),
        "threads": threads,
        "weights_dtype": job.stage.weights_dtype,
        "autocast": settings.mixed_dtype(job, device),
        "trainable_dtype": str(next(parameter.dtype for parameter in model.parameters() if parameter.requires_grad)).removeprefix("torch."),
        "quantization": job.stage.quantization,
        "double_quantization": job.stage.double_quantization is not False if job.stage.quantization == "nf4" else None,
        "attention": job.stage.attention,
        "packing": job.stage.packing,
        "seq_len": job.stage.seq_len,
        "truncation": job.stage.truncation,
        "holdout": job.stage.holdout,
        "options": job.options,
        "trainable_parameters": trainable,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "stop_tokens_added": stops,
        "trl": settings.resolved(trainer.args, ASKED_FOR),
        "peft": adapter,
        "epochs": trainer.state.epoch,
    }


class Judge:
    """Base against tuned on held-out rows. The base is asked before training, so that it need not be loaded twice."""

    def __init__(self, job: Job, trainer: Any, data: Prepared, mark: str) -> None:
        self.job, self.trainer, self.mark = job, trainer, mark
        trial = job.max_steps is not None
        self.rows = judge.held_out(data.holdout, limit=8 if trial else judge.HELD_OUT_ROWS)
        self.asked = judge.asked(self.rows or data.train, seq_len=job.stage.seq_len)[: 2 if trial else judge.SAMPLES]
        self.limit = judge.sample_limit(self.asked)
        self.base: list[judge.Sample] = []
        self.tuned: list[judge.Sample] = []
        self.loss_before: float | None = None
        self.loss_after: float | None = None
        self.cache = job.output / "before.json"

    def _autocast(self) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self.trainer.compute_loss_context_manager()
        return context

    def _samples(self) -> list[judge.Sample]:
        return judge.answers(self.trainer.model, self.trainer.processing_class, self.asked, limit=self.limit, autocast=self._autocast)

    def ask_base(self) -> None:
        """Measure the model as it is before training; once, also where a run was resumed."""
        known = read_json(self.cache)
        if isinstance(known, dict) and known.get("fingerprint") == self.mark:
            self.loss_before = known["loss"]
            self.base = [judge.Sample(**sample) for sample in known["samples"]]
            return
        self.loss_before = judge.mean_loss(self.trainer, self.rows)
        self.base = self._samples()
        samples = [{"text": sample.text, "tokens": sample.tokens, "stopped": sample.stopped} for sample in self.base]
        write_json(self.cache, {"fingerprint": self.mark, "loss": self.loss_before, "samples": samples})

    def ask_tuned(self) -> None:
        """Measure the trained model."""
        self.loss_after = judge.mean_loss(self.trainer, self.rows)
        self.tuned = self._samples()

    def sentence(self) -> str | None:
        """What changed, in one line; None where nothing was held out."""
        if self.loss_before is None or self.loss_after is None:
            return None
        return f"held-out loss {self.loss_before:.2f} before, {self.loss_after:.2f} after ({len(self.rows)} rows)"

    def record(self) -> dict[str, Any]:
        """The comparison for result.json."""
        return {
            "holdout_loss_before": self.loss_before,
            "holdout_loss_after": self.loss_after,
            "perplexity_before": judge.perplexity(self.loss_before),
            "perplexity_after": judge.perplexity(self.loss_after),
            "rows": len(self.rows),
            "samples": [
                {"prompt": row.shown, "expected": row.expected, "base": base.text, "tuned": tuned.text, "base_stopped": base.stopped, "tuned_stopped": tuned.stopped}
                for row, base, tuned in zip(self.asked, self.base, self.tuned, strict=True)
            ],
        }


if __name__ == "__main__":
    sys.exit(main())
