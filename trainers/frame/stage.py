"""The frame that objectives train in: rows, model, trainer, resuming, evaluation, checks on the
saved result, result.json. What an objective does its own way stands in objective.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import chain
from typing import Any, NamedTuple, TypeVar

from advisor.ground.errors import Fault, InputError
from advisor.ground.progress import board, waiting
from advisor.methods import methods
from advisor.methods.optimizers import optimizer
from advisor.plan.evaluation_record import Check
from advisor.plan.measured_record import Measured
from advisor.plan.record import DONE, RESULT, StageResult
from advisor.plan.verdict_record import Verdict
from trainers.evaluation.saved_result import check_saved
from trainers.frame import checkpoints, optimizers, settings, stopping
from trainers.frame.bases import memory_meter, release_base
from trainers.frame.batches import Batches, choose_order
from trainers.frame.cpu_products import use_faster_products
from trainers.frame.dry_run import measure
from trainers.frame.experts import choose_balance, returning_routers
from trainers.frame.files import write_json
from trainers.frame.held_out_curve import (
    SHORT_RUN,
    HeldOutCurve,
    asks_for_curve,
    check_held_out,
    make_curve,
)
from trainers.frame.job import Job, label
from trainers.frame.later_stages import end_of_checks
from trainers.frame.machine import (
    MemoryMeter,
    check_versions,
    is_main_process,
    keep_freed_memory,
    quiet_libraries,
    torch_device,
    use_cores,
    wait_for_all,
)
from trainers.frame.make_optimizer import put_own
from trainers.frame.objective import Objective
from trainers.frame.optimizer_states import end_training
from trainers.frame.out_of_memory import (
    EVALUATING,
    LOADING,
    SAVING,
    TRAINING,
    RowsAtOnce,
    enter,
)
from trainers.frame.parts import AFTER, BEFORE, LOAD, TRAIN, Parts
from trainers.frame.resolved import resolved_settings
from trainers.frame.resuming import evaluated, last_checkpoint, open_store, resume_metrics
from trainers.frame.rows import unpacked_if_seen
from trainers.frame.save_clock import save_clock
from trainers.frame.stopping import end_if_asked, request
from trainers.frame.telling import say, tell
from trainers.frame.token_counting import Tokens
from trainers.frame.trained_dtype import round_to_base
from trainers.frame.types import Device, Model, Tokenizer, Trainer
from trainers.prepare import Prepared
from trainers.prepare.prepared import PreparedRow, rows_digest
from trainers.prepare.sequences import flattened
from trainers.updates import Update, load_update

Item = TypeVar("Item", bound=PreparedRow)


def prepare(job: Job, objective: Objective[Any]) -> tuple[Tokenizer, Prepared[Any]]:
    """(the stage's tokenizer, its rows). Raises InputError for data that cannot be trained on."""
    from trainers.frame.loading import load_tokenizer

    tokenizer = load_tokenizer(job, writes=objective.writes)
    return tokenizer, objective.rows(job, tokenizer)


class OpenStage(NamedTuple):
    """What a stage finds in the process that trains it."""

    versions: dict[str, str]  # of the libraries
    device: Device
    threads: int
    update: Update


def open_stage(
    job: Job, config_class: Callable[[], type], faults: Callable[[Job], Sequence[Fault]]
) -> OpenStage:
    """The device and libraries of this process, ready.

    Raises InputError with everything that the stage cannot do here, and MachineNotReady for missing
    or untested libraries and devices.
    """
    versions = check_versions(
        quantized=job.stage.quantization is not None,
        optimizers=(optimizer(job.stage.optimizer),),
    )
    device = torch_device(job.plan.launch.device)
    threads = use_cores()
    use_faster_products(device)
    keep_freed_memory(device)
    quiet_libraries()
    from trainers.frame.kernels import use_triton_if_it_works
    from trainers.frame.loading import dtype_faults

    update = load_update(job.stage.update)
    settings.check_passed_through(job, config_class(), update, device)
    found = [*dtype_faults(job, device), *faults(job)]
    if found:
        raise InputError(faults=found)
    end_of_checks()
    notes = [use_triton_if_it_works(device.type)]
    if rounding := optimizers.rounding_warning(job.stage):
        notes.append(f"WARNING: {rounding}")
    notes.append(optimizers.rate_note(job.stage) or "")
    for note in notes:
        tell(job, note)
    return OpenStage(versions, device, threads, update)


def train(job: Job, objective: Objective[Any]) -> None:
    """Train the stage, or measure two steps of it, and write the result into its folder.

    Raises InputError for a plan or data that cannot be trained on, MachineNotReady for what the
    machine lacks, and TrainingFailed if training goes wrong or has no effect.
    """
    with Parts(label(job), shown=is_main_process(), folder=job.run) as parts:
        _train(job, objective, parts)


def _train(job: Job, objective: Objective[Any], parts: Parts) -> None:
    """What `train` says, with the clock of the stage."""
    parts.begin(LOAD)
    enter(job, LOADING)
    request.doing = stopping.LOADING
    versions, device, threads, update = open_stage(job, objective.config_class, objective.faults)
    # Imported here: reading the command line and refusing a plan must not wait for them.
    from transformers import set_seed

    from trainers.frame.attention import with_attention
    from trainers.frame.loading import check_vocabulary, enable_stop_tokens
    from trainers.frame.progress import RunCallback

    shown = is_main_process()
    job = with_attention(job, device)
    # A module starts from the same numbers, whatever this process did before.
    set_seed(job.stage.seed)
    tokenizer, data = prepare(job, objective)
    if shown:
        for line in describe(data, template=objective.kind.name not in ("classes", "rewritings")):
            say(f"{label(job)}: {line}")

    check_held_out(job, data.holdout, has_loss=objective.measures_loss)
    memory = memory_meter(device)
    board.memory = memory.in_use
    model = objective.load(job, device, update, tokenizer, data)
    check_vocabulary(model, tokenizer, chain(data.train, data.holdout))
    stops = enable_stop_tokens(model, tokenizer, set(data.turn_ends)) if objective.writes else []
    job, data = unpacked_if_seen(job, data, model)
    sequences = objective.sequences(job, data.train, model)
    builder = TrainerBuilder(objective, model, tokenizer, device, update)
    if job.dry_run:
        enter(job, TRAINING)
        measure(
            job, sequences, data, memory, builder.build, versions,
            evaluate=objective.evaluation_loss,
        )  # fmt: skip
        return

    steps = settings.total_steps(job, len(sequences), processes=settings.world_size())
    store = open_store(
        job, versions, steps=steps, rows=rows_digest(data.train), model=model,
        more=objective.depends_on(job, data),
    )  # fmt: skip
    metrics = job.run / "metrics.jsonl"
    callback = RunCallback(
        metrics=metrics if shown else None, stage=job.stage.name, task=job.task, label=label(job),
        steps=steps, memory=memory, store=store, saves=save_clock(job, steps),
        scaled=settings.autocast_dtype(job, device) == "float16", shown=shown,
        logged=objective.logged,
    )  # fmt: skip
    continues = hasattr(model, "peft_config")  # with the module of an earlier stage
    trainer = builder.build(job, sequences, steps=steps, callback=callback)
    trainer.rows_at_once = rows_at_once(job)
    batches = choose_order(trainer, Batches.of(job, sequences, processes=settings.world_size()))
    if batches is not None:
        tell(job, batches.describe(len(data.train), pairs=objective.kind.name == "pairs"))
    trainer.checkpoint_store = store
    resume = last_checkpoint(job, store)  # the trainer has connected the processes
    request.doing = stopping.BEFORE
    parts.begin(BEFORE)
    model = trainer.model
    probe = objective.probe(job, data, tokenizer)
    before = probe.answer(model) if shown else None
    evaluator = (
        objective.evaluator(job, trainer, data, evaluated(store, data))
        if job.judge and shown
        else None
    )
    enter(job, EVALUATING)
    if evaluator is not None:
        # A new prefix starts from a prompt, which changes answers before any training: the
        # comparison is with the model as it came.
        with (
            trainer.model.disable_adapter()
            if methods().update(job.stage.update).changes_at_start and not continues
            else nullcontext()
        ):
            evaluator.evaluate_base()

    wait_for_all()  # the main process has evaluated the base alone
    curve = held_out_curve(job, objective, trainer, data, sequences, steps)
    if curve is not None:
        curve.resume(resume[1].get("held_out") if resume is not None else None)
        curve.keep_for(store.records())
        callback.curve = curve
    if shown:
        callback.losses, callback.earlier_s = resume_metrics(job, resume, steps)
    memory.reset()
    parts.begin(TRAIN)
    enter(job, TRAINING)
    loaded = None
    try:
        if resume is not None and (
            resume[1]["step"] >= steps or (curve is not None and curve.stopped)
        ):
            trainer._load_from_checkpoint(str(resume[0]))
            if optimizer(job.stage.optimizer).averages:
                loaded = checkpoints.load_state(resume[0], checkpoints.STATE)["optimizer"]
        else:
            with request.finishing_steps():
                trainer.train(resume_from_checkpoint=str(resume[0]) if resume else None)
    finally:
        callback.close()
    end_if_asked(callback.stopped_at, steps)
    end_training(trainer, loaded)
    measured = measurement(memory, callback, trainer.all_tokens())
    if not shown:
        return

    parts.begin(AFTER)
    enter(job, SAVING)
    if curve is not None:
        curve.load_best(trainer.model)
        for line in curve.record().sentences():
            say(f"{label(job)}: {line}")
    trained = without_autocast(trainer.accelerator.unwrap_model(trainer.model))
    resolved = resolved_settings(job, trainer, device, threads, stops)
    round_to_base(trained)
    if hasattr(trained.config, "use_cache"):
        trained.config.use_cache = True
    with waiting("saving the result"):
        files = objective.save(job, trainer, trained, tokenizer)
    with waiting("checking the saved result"):
        checks: list[Check] = check_saved(job, trained, job.output, probe, before)
    checks += rounding_checks(job)
    rewards, noticed = objective.about_rewards(job)
    checks += noticed
    evaluation, verdict = None, None
    enter(job, EVALUATING)
    if evaluator is not None:
        evaluator.evaluate_tuned()
        evaluation, verdict = evaluator.record(), evaluator.verdict()
        checks += evaluator.checks()
    for check in checks:
        say(f"{label(job)}: {'ok' if check.ok else 'WARNING'}: {check.text}")
    times = parts.times()
    result = StageResult(
        status=DONE,
        steps=curve.last_step if curve is not None and curve.stopped else steps,
        loss_first=callback.losses[0] if callback.losses else None,
        loss_last=callback.losses[-1] if callback.losses else None,
        duration_s=times.total_s,
        measured=measured,
        times=times,
        data=data.counts(),
        evaluation=evaluation,
        held_out=curve.record() if curve is not None else None,
        rewards=rewards or None,
        checks=tuple(checks),
        verdict=stage_verdict(checks, verdict),
        files=files,
        versions=versions,
        resolved=resolved,
    )
    write_json(job.output / RESULT, result.to_dict())
    release_base(trained)


def rows_at_once(job: Job) -> RowsAtOnce:
    """How many rows of a micro-batch go through the device at once. Says so if an earlier attempt
    of the stage ran out of memory.
    """

    def tell(text: str) -> None:
        if is_main_process():
            say(f"{label(job)}: {text}")

    found = RowsAtOnce.of(job, say=tell, alone=settings.world_size() == 1)
    if found.rows < found.planned:
        tell(
            f"micro_batch_size is {found.rows} instead of {found.planned}, with the same effective"
            " batch size, since more ran out of memory"
        )
    return found


def held_out_curve(
    job: Job,
    objective: Objective[Any],
    trainer: Trainer,
    data: Prepared[Any],
    sequences: Sequence[Sequence[Any]],
    steps: int,
) -> HeldOutCurve | None:
    """What measures the held-out loss while the stage trains; None if nothing is measured. Says
    what it will measure.
    """
    if not objective.measures_loss or not (job.judge or asks_for_curve(job)):
        return None
    shown = is_main_process()
    curve = make_curve(
        job,
        trainer,
        data.holdout,
        sequences,
        steps=steps,
        inputs=objective.held_out_inputs,
        loss=objective.held_out_loss,
        writes=shown,
    )
    if shown and curve is not None:
        say(f"{label(job)}: {curve.describe()}")
    elif shown and data.holdout:
        say(f"{label(job)}: held-out loss is measured before and after training alone: {SHORT_RUN}")
    return curve


def without_autocast(model: Any) -> Any:
    """The model without accelerate's autocast around its forward, so that it is evaluated and
    checked as anybody would load it.

    accelerate's own unwrapping (keep_fp32_wrapper=False) would also remove the forward of our
    losses.
    """
    original = vars(model).pop("_original_forward", None)
    if original is not None:
        model.forward = original
    return model


def measurement(memory: MemoryMeter, callback: Any, tokens: Tokens) -> Measured:
    """What the run cost, for result.json."""
    return Measured(
        peak_bytes=memory.peak_bytes(),
        counter=memory.counter,
        reserved_bytes=memory.reserved_bytes(),
        step_s=callback.step_s or None,
        tokens_per_s=callback.tokens / callback.train_s if callback.train_s else None,
        train_s=callback.all_train_s,
        tokens=tokens.read,
        computed_tokens=tokens.computed,
        learned_tokens=tokens.learned,
        largest_batch_tokens=tokens.largest,
    )


def rounding_checks(job: Job) -> list[Check]:
    """A failed check where the weights' format rounds many updates away."""
    warning = optimizers.rounding_warning(job.stage)
    return [Check("updates_rounded_away", False, warning)] if warning else []


def stage_verdict(checks: Sequence[Check], compared: tuple[str, str] | None) -> Verdict:
    """The verdict on a stage: of its checks, and of the evaluation if there was one."""
    word, text = compared or (None, None)
    return Verdict(ok=all(check.ok for check in checks), word=word, text=text)


def describe(data: Prepared[Any], *, template: bool = True) -> list[str]:
    """The data in a few lines: what is trained on, and what is not.

    Args:
        template: Say where the chat template came from.
    """
    rows = f"{len(data.train):,} rows to train on, {len(data.holdout):,} held out"
    tokens, learned_tokens = data.tokens, data.learned_tokens
    learned = (
        f", {learned_tokens / tokens:.0%} of them learned"
        if tokens and learned_tokens > len(data.train)
        else ""
    )
    by = f"; chat template: {data.template}" if data.template and template else ""
    return [
        f"{rows}; {tokens:,} tokens{learned}{by}",
        *(f"note: {note}" for note in data.notes),
    ]


class TrainerBuilder(NamedTuple):
    """What every trainer of a stage is built from."""

    objective: Objective[Any]
    model: Model
    tokenizer: Tokenizer
    device: Device
    update: Update

    def build(
        self,
        job: Job,
        sequences: Sequence[Sequence[Any]],
        *,
        steps: int,
        callback: Any,
        save: bool = True,
    ) -> Any:
        """The objective's trainer, with our callback alone.

        Args:
            job: The stage; a dry run shortens it.
            sequences: The trainer's sequences.
            steps: Optimizer steps.
            callback: A RunCallback.
            save: Write checkpoints.
        """
        from peft import PeftModel
        from transformers import PrinterCallback
        from transformers.trainer_callback import ProgressCallback

        from trainers.frame.compiling import compile_said
        from trainers.frame.loading import unquantised_parameters

        arguments = settings.training_arguments(job, self.device, steps=steps)
        if not save:
            arguments["save_strategy"] = "no"
        continues = isinstance(self.model, PeftModel)
        peft_config = (
            None if continues else self.update.peft_config(job.stage, job.options, self.model)
        )
        balance = choose_balance(
            self.model,
            peft_config,
            self.objective.config_class(),
            job.stage.trl,
            writes=self.objective.writes,
        )
        # ORPO and CPO ask the config whether to train with the loss, and only when they are built.
        with returning_routers(self.model, balance.on):
            trainer: Any = self.objective.trainer(
                job,
                self.model,
                self.tokenizer,
                peft_config,
                sequences,
                {**arguments, **balance.arguments},
            )
        plain = unquantised_parameters(trainer.model)
        if plain is not None and plain[1]:
            tell(
                job,
                f"note: {job.stage.quantization} quantises linear layers alone:"
                f" {plain[0]:,} parameters keep {job.stage.weights_dtype}, {plain[1]:,} of them in"
                " routed experts",
            )
        tell(job, balance.said)
        if not continues:
            started = self.update.start(
                job.stage,
                job.options,
                trainer.accelerator.unwrap_model(trainer.model),
                self.tokenizer,
                flattened(sequences),
            )
            tell(job, started or "")
        trainer.add_callback(callback)
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        callback.trainer = trainer
        put_own(trainer, job.stage, steps=steps)
        if job.stage.compile:
            tell(job, compile_said(trainer.model))
        return trainer
