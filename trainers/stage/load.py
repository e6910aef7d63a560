"""A stage before its training: libraries and device of this process, then its rows, then its model,
then its trainer. The process that trains it and the one that judges its result build the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

from msgspec import structs

from advisor.ground.counting import counted
from advisor.ground.errors import Fault, InputError, refuse
from advisor.ground.progress import board
from advisor.ground.version import __version__
from advisor.methods.optimizers import optimizer
from advisor.record.files import try_read_part
from advisor.record.run import ADJUSTED
from advisor.record.smaller import valid_adjustments
from advisor.record.stage import Adjusted
from trainers.job import Device, Model, Tokenizer
from trainers.job.job import JUDGE, LOADING, Job
from trainers.job.libraries import check_versions, quiet_libraries
from trainers.job.machine import (
    MemoryMeter,
    connect,
    keep_freed_memory,
    process_count,
    torch_device,
    use_cores,
)
from trainers.keep.checkpoint_store import CheckpointStore, dependencies
from trainers.keep.held_out_curve import asks_for_curve, check_held_out, even_batch, make_curve
from trainers.rows import Prepared
from trainers.rows.batches import Batches
from trainers.rows.sequences import flattened
from trainers.say.progress import LOAD, Parts, tell
from trainers.stage.objective import Build, Objective, Opened, load_recipe
from trainers.start.kernels import (
    compile_layers,
    unpacked_if_seen,
    use_triton_if_it_works,
    with_attention,
)
from trainers.start.loading import (
    check_vocabulary,
    dtype_faults,
    enable_stop_tokens,
    load_tokenizer,
    unquantised_parameters,
)
from trainers.step import make_optimizer, settings
from trainers.step.settings import check_passed_through
from trainers.step.sharding import adjust_sharding, by_the_reader, sharding_arguments
from trainers.updates import Update, load_update
from trainers.updates.experts import Balance, choose_balance, returning_routers


@dataclass(frozen=True, kw_only=True)
class LoadedStage(Opened[Any]):
    """The rows and the model of a stage; its job is packed as this model and memory allow."""

    objective: Objective[Any]
    parts: Parts  # the clock of this process
    memory: MemoryMeter  # counts from before the model was loaded
    model: Model  # without the module that the stage adds
    stops: list[str]  # tokens that were added to those that end an answer
    sequences: Sequence[Sequence[Any]]

    @property
    def continues(self) -> bool:
        """Whether the model came with the module of an earlier stage."""
        return hasattr(self.model, "peft_config")


def load_stage(job: Job, objective: Objective[Any], parts: Parts) -> LoadedStage:
    """The stage's rows and model, loaded.

    Raises InputError for a plan or data that cannot be trained on, and MachineNotReady for what the
    machine lacks.
    """
    parts.begin(LOAD)
    job.enter(LOADING)
    opened = open_stage(job, objective)
    device = opened.device
    memory = job.process.memory = job.process.memory or MemoryMeter(device)
    board.memory = memory.in_use
    connect(device)  # their rows are there
    model = objective.load(opened)
    data, tokenizer = opened.data, opened.tokenizer
    check_vocabulary(model, tokenizer, chain(data.train, data.holdout))
    stops = enable_stop_tokens(model, tokenizer, set(data.turn_ends)) if objective.writes else []
    job, data = unpacked_if_seen(opened.job, data, model, device)
    return LoadedStage(
        **vars(opened) | {"job": job, "data": data},
        objective=objective,
        parts=parts,
        memory=memory,
        model=model,
        stops=stops,
        sequences=objective.sequences(job, data.train, model),
    )


def open_stage(job: Job, objective: Objective[Any]) -> Opened[Any]:
    """The stage in this process, with its rows. Raises as `load_stage` does."""
    versions, device, threads = open_machine(job)
    settings.choose_products(job, device)
    # Imported here: reading the command line and refusing a plan must not wait for them.
    from transformers import set_seed

    update = check_stage(job, objective, device)
    tell(job, use_triton_if_it_works(device.type))
    if rounding := make_optimizer.rounding_warning(job.stage):
        tell(job, f"WARNING: {rounding}")
    tell(job, make_optimizer.optimizer_note(job.stage, device.type))
    job = with_room(with_attention(job, device))
    # A module starts from the same numbers, whatever this process did before.
    set_seed(job.stage.seed)
    tokenizer, data = prepare(job, objective)
    if job.part != JUDGE:  # the process that trained has said it
        for line in describe(data, template=objective.kind.name not in ("classes", "rewritings")):
            tell(job, line)
        rows_read = (job.max_steps or 0) * job.stage.effective_batch_size * process_count()
        if 0 < rows_read < len(data.train):
            tell(job, f"this trial reads about {rows_read:,} of them")
    check_held_out(job, data.holdout, has_loss=objective.measures_loss)
    return Opened(
        job=job, versions=versions, device=device, threads=threads, update=update,
        tokenizer=tokenizer, data=data,
    )  # fmt: skip


def with_room(job: Job) -> Job:
    """The job with the micro-batch that memory had room for, once the launcher has started the
    stage again with a smaller one, which is said. The effective batch size stays.

    The stage of `job.entry` stays as it was planned: what it says of the result still counts.
    """
    kept = try_read_part(Adjusted, job.output / ADJUSTED) if not job.dry_run else None
    changes = valid_adjustments(job.entry.stage, kept)
    if not changes:
        return job
    planned, job = job.stage.micro_batch_size, replace(job, most_rows=changes[-1].micro_batch_size)
    tell(
        job,
        f"micro_batch_size is {job.stage.micro_batch_size} instead of {planned}, with the same"
        " effective batch size, since more ran out of memory",
    )
    return job


def open_machine(job: Job) -> tuple[Mapping[str, str], Device, int]:
    """(versions of the libraries, the device, threads that torch computes with).

    Raises MachineNotReady for what the machine lacks.
    """
    narrow = job.stage.quantization is not None or bool(optimizer(job.stage.optimizer).library)
    versions = check_versions(quantized=narrow)
    device = torch_device(job.plan.launch.device)
    threads = use_cores()
    keep_freed_memory(device)
    quiet_libraries()
    return versions, device, threads


def check_stage(job: Job, objective: Objective[Any], device: Device) -> Update:
    """The stage's update. Raises InputError with everything that the stage cannot do here."""
    update = load_update(job.stage.update)
    common = settings.training_arguments(job, device, steps=1)
    check_passed_through(job, objective.config_class(), update, common)
    found = [*dtype_faults(job, device), *objective.faults(job)]
    if found:
        raise InputError(faults=found)
    return update


def check_later_stages(jobs: Sequence[Job]) -> None:
    """Raise InputError with what the stages behind these cannot do here: their keys, and what they
    pass on to TRL and PEFT.
    """
    faults: list[Fault] = []
    for job, objective in _described(jobs):
        try:
            _, device, _ = open_machine(job)
            check_stage(job, objective, device)
        except InputError as error:
            faults += [fault for fault in error.faults if fault not in faults]
    refuse(faults)


def check_rows(jobs: Sequence[Job]) -> None:
    """Raise InputError with the faults of every task's data, each under the task's name."""
    faults: list[Fault] = []
    for job, objective in _described(jobs):
        try:  # no teacher loads before its task begins
            prepare(replace(job, dry_run=objective.asks_teacher), objective)
        except InputError as error:
            faults += [
                structs.replace(fault, where=f"task {job.task}", what=fault.headline)
                for fault in error.faults
            ]
    refuse(faults)


def _described(jobs: Sequence[Job]) -> Iterator[tuple[Job, Objective[Any]]]:
    """The jobs with their objectives; without those whose recipe does not say: it might train."""
    for job in jobs:
        find = getattr(load_recipe(job.stage.objective).train, "objective_of", None)
        if find is not None:
            yield job, find(job)


def prepare(job: Job, objective: Objective[Any]) -> tuple[Tokenizer, Prepared[Any]]:
    """(the stage's tokenizer, its rows). Raises InputError for data that cannot be trained on."""
    tokenizer = load_tokenizer(job, writes=objective.writes)
    return tokenizer, objective.rows(job, tokenizer)


def describe(data: Prepared[Any], *, template: bool = True) -> list[str]:
    """The data in a few lines: what is trained on, what is not, and where its template is from."""
    rows = f"{counted(len(data.train), 'row')} to train on, {len(data.holdout):,} held out"
    tokens, learned_tokens = data.tokens, data.learned_tokens
    learned = (
        f", {learned_tokens / tokens:.0%} of them learned"
        if tokens and learned_tokens > len(data.train)
        else ""
    )
    by = f"; chat template: {data.template}" if data.template and template else ""
    return [f"{rows}; {tokens:,} tokens{learned}{by}", *(f"note: {note}" for note in data.notes)]


# --------------------------------------------------------------------------- its trainer


@dataclass(frozen=True, kw_only=True)
class BuiltStage(LoadedStage):
    """A stage with its trainer."""

    steps: int  # optimizer steps of the whole stage
    store: CheckpointStore
    callback: Any  # a RunCallback
    trainer: Any


def build_stage(loaded: LoadedStage, *, processes: int) -> BuiltStage:
    """The stage with its trainer, and what so many processes that train it go on from."""
    from trainers.keep.progress import RunCallback

    job, objective, data = loaded.job, loaded.objective, loaded.data
    steps = settings.total_steps(job, len(loaded.sequences), processes=processes)
    parts = {"rows": data.digest, **objective.depends_on(job, data)}
    depends_on = dependencies(job, parts, steps=steps, model=loaded.model, processes=processes)
    versions = {**loaded.versions, "advise": __version__}
    store = CheckpointStore(job.checkpoints, depends_on, versions, job.run / "metrics.jsonl")
    callback = RunCallback(
        job, steps=steps, memory=loaded.memory, store=store, logged=objective.logged
    )  # fmt: skip
    if objective.measures_loss and (job.judge or asks_for_curve(job)) and job.part != JUDGE:
        callback.curve = make_curve(job, data.holdout, loaded.sequences, steps=steps)
    trainer = build_trainer(
        loaded, loaded.sequences, steps=steps, callback=callback,
        held_out=callback.curve.rows if callback.curve is not None else (),
    )  # fmt: skip
    if objective.orders_rows:
        trainer.batches = Batches.of(job, loaded.sequences, processes=processes)
        if job.part != JUDGE:
            pairs = objective.kind.name == "pairs"
            tell(job, trainer.batches.describe(len(data.train), pairs=pairs))
    trainer.checkpoint_store = store
    return BuiltStage(**vars(loaded), steps=steps, store=store, callback=callback, trainer=trainer)


def build_trainer(
    loaded: LoadedStage,
    sequences: Sequence[Sequence[Any]],
    *,
    steps: int,
    callback: Any,
    held_out: Sequence[Any] = (),
) -> Any:
    """The objective's trainer over sequences of the stage, of which a dry run takes some, with our
    callback alone; it evaluates on the rows that are held out.
    """
    from transformers import PrinterCallback

    job, objective, model = loaded.job, loaded.objective, loaded.model
    update, stage, options = loaded.update, loaded.job.stage, loaded.job.options
    arguments = settings.training_arguments(job, loaded.device, steps=steps)
    arguments |= sharding_arguments(job, model)
    arguments["save_strategy"] = "no" if callback.store is None else "steps"
    if held_out:
        arguments["per_device_eval_batch_size"] = even_batch(
            len(held_out) // process_count(), stage.micro_batch_size
        )
    continues = loaded.continues  # PEFT names its config on the model that it is put on, too
    # A prefix asks the model for the shape of its keys, and starts from some of them.
    asked = partial(update.peft_config, stage, options, model)
    peft_config = None if continues else by_the_reader(job, asked)
    balance = Balance()
    if objective.balances_experts:
        config = objective.config_class()
        balance = choose_balance(model, peft_config, config, stage.trl, writes=objective.writes)
    # ORPO and CPO ask the config whether to train with the loss, and only when they are built.
    with returning_routers(model, balance.on):
        trainer: Any = objective.trainer(
            Build(
                job=job,
                model=model,
                tokenizer=loaded.tokenizer,
                peft_config=peft_config,
                sequences=sequences,
                held_out=held_out,
                arguments={**arguments, **balance.arguments},
            )
        )
    plain = unquantised_parameters(trainer.model)
    if plain is not None and plain[1]:
        tell(
            job,
            f"note: {stage.quantization} quantises linear layers alone: {plain[0]:,} parameters"
            f" keep {stage.weights_dtype}, {plain[1]:,} of them in routed experts",
        )
    tell(job, balance.said)
    adjust_sharding(trainer, job)
    if not continues:
        whole = trainer.accelerator.unwrap_model(trainer.model)
        start = partial(update.start, stage, options, whole, loaded.tokenizer, flattened(sequences))
        tell(job, by_the_reader(job, start))
    trainer.add_callback(callback)
    trainer.remove_callback(PrinterCallback)
    callback.trainer = trainer
    tell(job, make_optimizer.put_own(trainer, stage))
    if stage.compile:
        tell(job, compile_layers(trainer.model))
    return trainer
