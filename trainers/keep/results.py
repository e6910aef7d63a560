"""What a stage leaves: its weights in the layout that every library reads, written whole and on the
disk before anything says that they are; the values that it was really trained with; and what its
processes hand to the one that judges their result.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec.structs import asdict, fields, replace
from safetensors import SafetensorError

from advisor.ground.files import DISK, Disk, write_atomically
from advisor.ground.types import DDP
from advisor.ground.units import GIB
from advisor.methods.optimizers import optimizer
from advisor.methods.stage import recorded_values
from advisor.record.files import ANSWER, TRAINED, TrainedStage, trained_record, try_read_part
from advisor.record.run import ResolvedSettings, StageResult
from advisor.record.stage import LaunchRecord, SavedFile, Times
from trainers.job import Device, Model, Trainer
from trainers.job.files import make_folder, write_json
from trainers.job.job import Job
from trainers.job.machine import (
    MemoryMeter,
    is_main_process,
    over_processes,
    process_count,
    process_rank,
)
from trainers.keep.checkpoint_store import CheckpointStore, disk_refused, fingerprint
from trainers.rows.template import template_record
from trainers.start.kernels import fused_in
from trainers.start.loading import unquantised_parameters
from trainers.step import settings
from trainers.step.sharding import is_divided, sharded_tensors, whole_prompt, whole_weights
from trainers.updates.experts import returning_routers


def save_weights(model: Any, folder: Path, *, state_dict: Any = None) -> None:
    """Write the adapter or model in the plain PEFT or Hugging Face layout."""
    from peft import PeftModel

    folder.mkdir(parents=True, exist_ok=True)
    # "auto" would ask the hub for the base model's config at every save; no embedding is resized
    # here. The frozen copy of the adapter that serves as reference model is not part of the result.
    extra = (
        {"save_embedding_layers": False, "selected_adapters": ["default"]}
        if isinstance(model, PeftModel)
        else {}
    )
    with returning_routers(model), whole_prompt(model, state_dict or {}):
        model.save_pretrained(str(folder), state_dict=state_dict, **extra)
    (folder / "README.md").unlink(missing_ok=True)  # a template that PEFT leaves empty


def save_result(model: Any, tokenizer: Any, folder: Path) -> dict[str, SavedFile]:
    """Write the trained adapter or model with its tokenizer (chat template included) into the
    stage's folder, each file whole or not at all; the files, with their sizes and hashes. Call it
    in every process of the run: the main one writes, and the others know no files. The weights of a
    divided model are put together first, by all of them.

    Raises MachineNotReady if the disk does not take it.
    """
    is_module = hasattr(model, "peft_config")
    weights = whole_weights(model, trained_only=is_module) if is_divided(model) else None
    if not is_main_process():
        return {}
    unfinished = folder / ".saving"
    try:
        DISK.remove(unfinished)
        save_weights(model, unfinished, state_dict=weights)
        tokenizer.save_pretrained(str(unfinished))
        # A model that scores has no generation settings.
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.save_pretrained(str(unfinished))
        return put_result(unfinished, folder)
    except (OSError, SafetensorError) as error:
        DISK.discard(unfinished)
        raise disk_refused(folder, error) from error


def put_result(unfinished: Path, folder: Path, *, disk: Disk = DISK) -> dict[str, SavedFile]:
    """Move the files of a result out of an unfinished folder, which is removed, into the stage's
    that it lies in; each of them with its size and hash. Raises OSError as the system does.
    """
    disk.sync_tree(unfinished)
    files = {
        name: SavedFile(bytes=disk.size(unfinished / name), sha256=disk.digest(unfinished / name))
        for name in disk.files(unfinished)
    }
    for name in disk.names(unfinished):
        if (folder / name).is_dir():  # of an earlier attempt: a rename replaces files alone
            disk.remove(folder / name)
        disk.rename(unfinished / name, folder / name)
    for place in (folder, *folder.parents[:3]):  # the names of the folders may be new, too
        disk.sync(place)
    disk.remove(unfinished)
    return files


def load_saved(model: Any, folder: Path) -> None:
    """Give the model the saved weights; of a PeftModel, its adapter alone.

    Raises RuntimeError if they do not fit the model.
    """
    if hasattr(model, "peft_config"):
        from peft import load_peft_weights, set_peft_model_state_dict

        weights = load_peft_weights(str(folder), device="cpu")
        set_peft_model_state_dict(model, weights)
        return
    from safetensors import safe_open
    from safetensors.torch import load_file

    # The files one after the other, so that no second copy of the model is in memory. Not the state
    # of a run, which lies beside the weights of a checkpoint.
    files = sorted(folder.glob("model*.safetensors"))
    stored: set[str] = set()
    for path in files:
        with safe_open(path, framework="pt") as file:
            stored.update(file.keys())
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    if set(model.state_dict()) - tied <= stored:
        for path in files:
            model.load_state_dict(load_file(path), strict=False)
        return
    # transformers keeps the experts of a mixture in one tensor, and saves each by itself: it reads
    # them, into the class that is there already; no code is looked for.
    read = type(model).from_pretrained(
        str(folder), dtype=next(model.parameters()).dtype, trust_remote_code=False
    )
    model.load_state_dict(read.state_dict())


# --------------------------------------------------------------------------- what was used

# The arguments of TRL's config that are recorded even at their defaults; beside them, whatever
# differs from TRL's defaults is recorded.
RECORDED_ARGUMENTS = (
    "adam_beta1", "adam_beta2", "adam_epsilon", "bf16", "fp16", "gradient_accumulation_steps",
    "gradient_checkpointing", "learning_rate", "loss_type", "lr_scheduler_type", "max_grad_norm",
    "max_steps", "optim", "per_device_train_batch_size", "save_steps", "seed", "warmup_steps",
    "weight_decay",
)  # fmt: skip


def resolved_settings(
    job: Job, trainer: Trainer, device: Device, threads: int, stops: list[str]
) -> ResolvedSettings:
    """Every value that was really used, defaults included."""
    from peft import PeftModel

    model, stage, entry = trainer.model, job.stage, optimizer(job.stage.optimizer)
    adapter = model.peft_config["default"].to_dict() if isinstance(model, PeftModel) else None
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    planned = recorded_values(stage) | {
        "kernels": fused_in(model),
        "double_quantization": (
            stage.double_quantization is not False if stage.quantization == "nf4" else None
        ),
        "group_by_length": stage.group_by_length and not stage.packing,
    }
    return ResolvedSettings(
        **planned,
        model=job.base_model,
        start_from=None if job.start is None else str(job.start),
        device=str(device),
        threads=threads,
        autocast=settings.autocast_dtype(job, device),
        trainable_dtype=str(trained[0].dtype).removeprefix("torch."),
        unquantised_parameters=(unquantised_parameters(model) or (None,))[0],
        **template_record(trainer.processing_class),
        options=job.options,
        trainable_parameters=sum(parameter.numel() for parameter in trained),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        stop_tokens_added=tuple(stops),
        trl=settings.resolved_values(trainer.args, RECORDED_ARGUMENTS)
        | ({} if entry.transformers else {"optim": entry.name}),
        peft=adapter,
        epochs=trainer.state.epoch,
    )


def launch_record(job: Job, model: Model, memory: MemoryMeter) -> LaunchRecord:
    """What became of the plan's `launch`. Call it in every process."""
    launch, count = job.plan.launch, process_count()
    own = memory.peak_bytes() / GIB
    table = [own if rank == process_rank() else 0.0 for rank in range(count)]
    return LaunchRecord(
        strategy=(launch.strategy or DDP) if count > 1 else None,
        processes=max(1, count // launch.nodes),
        nodes=launch.nodes,
        sharded_tensors=sharded_tensors(model),
        peak_gib_per_rank=tuple(round(peak, 3) for peak in over_processes(table, "SUM")),
    )


# --------------------------------------------------------------------------- for the judge


def dependency(store: CheckpointStore) -> str:
    """A digest of what the training depends on."""
    found = store.dependencies
    return fingerprint([found.parts, found.settings, found.processes])


def keep_trained(folder: Path, result: StageResult, answer: Any, **about: Any) -> None:
    """Write a result, as far as it goes without judging, with the trained model's answer to the row
    of the checks, into the stage's folder; `about` are the other keys of TrainedStage.

    Raises MachineNotReady if the disk does not take it.
    """
    from safetensors.torch import save

    make_folder(folder / TRAINED)
    path, content = folder / TRAINED / ANSWER, save({"answer": answer.contiguous()})
    write_atomically(path, content)
    saved = SavedFile(bytes=len(content), sha256=DISK.digest(path))
    record = TrainedStage(**asdict(result), answer=saved, **about)
    write_json(trained_record(folder), record.to_dict())


def read_trained(folder: Path) -> tuple[TrainedStage, Any] | None:
    """(the record of a stage that is trained and not judged, the trained model's answer); None if
    there is none, or if it is not what was written.
    """
    from safetensors.torch import load

    record = try_read_part(TrainedStage, trained_record(folder))
    path = folder / TRAINED / ANSWER
    if record is None or not path.is_file() or DISK.digest(path) != record.answer.sha256:
        return None
    return record, load(DISK.read(path))["answer"]


def forget_trained(folder: Path) -> None:
    """Remove the record: the stage is judged, or is trained again. The record itself goes first."""
    trained_record(folder).unlink(missing_ok=True)
    DISK.discard(folder / TRAINED)


def together(one: Times | None, other: Times) -> Times:
    """The times of both processes that worked on a stage, part by part."""
    if one is None:
        return other
    names = [part.name for part in fields(Times) if part.name != "extra"]
    pairs = {name: (getattr(one, name), getattr(other, name)) for name in names}
    sums: dict[str, Any] = {
        name: None if pair == (None, None) else round(sum(value or 0.0 for value in pair), 3)
        for name, pair in pairs.items()
    }
    return replace(other, **sums)
