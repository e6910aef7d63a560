"""Checkpoints without pickle: what of a run goes into them, and back.

transformers writes optimizer, scheduler and random states with torch.save, which is pickle. Here
tensors go to safetensors and the rest to JSON. checkpoint_store.py says when a checkpoint is
complete, and which one a run resumes from.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from advisor.ground.errors import MachineNotReady
from advisor.ground.files import DISK, ELSEWHERE, cannot_write
from advisor.ground.progress import waiting
from advisor.record.stage import SavedFile
from trainers.job.files import read_json
from trainers.job.machine import is_main_process, process_count, wait_for_all
from trainers.job.random_states import random_states, restore_random_states
from trainers.keep.checkpoint_store import COMPLETE, CheckpointStore, disk_refused
from trainers.keep.result_files import put_result
from trainers.keep.saved_weights import load_saved
from trainers.step import sharded_state
from trainers.step.optimizer_states import (
    is_projector,
    is_quantised,
    load_optimizer,
    projector,
    projector_parts,
    quantised,
    quantised_parts,
)
from trainers.step.sharding import sharded_tensors, whole_prompt, whole_weights
from trainers.updates.experts import own_router_settings

STATE = "training_state"


def take_out_tensors(value: Any, tensors: dict[str, Any]) -> Any:
    """The value as JSON, with every tensor moved into `tensors` and its name in its place.

    Raises TypeError for a value that neither JSON nor safetensors can hold.
    """
    import torch

    if is_quantised(value):
        return {"quantised": take_out_tensors(quantised_parts(value), tensors)}
    if is_projector(value):
        return {"projector": take_out_tensors(projector_parts(value), tensors)}
    if isinstance(value, torch.Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {
            "map": [
                [take_out_tensors(key, tensors), take_out_tensors(item, tensors)]
                for key, item in value.items()
            ]
        }
    if isinstance(value, tuple):
        return {"tuple": [take_out_tensors(item, tensors) for item in value]}
    if isinstance(value, list):
        return {"list": [take_out_tensors(item, tensors) for item in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")


def put_back_tensors(value: Any, tensors: dict[str, Any]) -> Any:
    """The value that `take_out_tensors` was given."""
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "quantised":
        return quantised(put_back_tensors(inner, tensors))
    if kind == "projector":
        return projector(put_back_tensors(inner, tensors))
    if kind == "map":
        return {
            put_back_tensors(key, tensors): put_back_tensors(item, tensors) for key, item in inner
        }
    if kind == "tuple":
        return tuple(put_back_tensors(item, tensors) for item in inner)
    if kind == "list":
        return [put_back_tensors(item, tensors) for item in inner]
    return inner


def save_state(folder: Path, name: str, value: Any) -> None:
    """Write a nested value with tensors as NAME.safetensors and NAME.json."""
    from safetensors.torch import save_file

    tensors: dict[str, Any] = {}
    tree = take_out_tensors(value, tensors)
    save_file(tensors, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(tree), encoding="utf-8")


def load_state(folder: Path, name: str) -> Any:
    """The value written by `save_state`, tensors on the CPU; None if there is none."""
    from safetensors.torch import load_file

    path = folder / f"{name}.json"
    if not path.is_file():
        return None
    return put_back_tensors(
        json.loads(path.read_text("utf-8")), load_file(folder / f"{name}.safetensors")
    )


class SafeCheckpoints:
    """A mixin for transformers' Trainer: saves and loads what a run needs to resume, without
    pickle.

    Of a model that is divided among processes, each writes its part (sharded_state.py).
    """

    model: Any
    optimizer: Any
    lr_scheduler: Any
    accelerator: Any
    args: Any
    state: Any
    processing_class: Any
    is_fsdp_enabled: bool
    checkpoint_store: CheckpointStore  # set before training
    _writes_into: str | None = None  # the folder that stands for output_dir while one is saved

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights in plain layout; of a divided model put together, one by one."""
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)  # type: ignore[misc]
            return
        weights = whole_weights(self.model, trained_only=hasattr(self.model, "peft_config"))
        self._save(output_dir, state_dict=weights)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write the weights alone, in plain layout: no training_args.bin, and no look-up of the
        base model on the hub.
        """
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        save_weights(
            self.accelerator.unwrap_model(self.model, keep_torch_compile=False),
            folder,
            state_dict=state_dict,
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Read the weights that `_save` wrote."""
        found = self.accelerator.unwrap_model(model or self.model, keep_torch_compile=False)
        if self.is_fsdp_enabled:
            sharded_state.load_weights(found, Path(resume_from_checkpoint))
        elif not hasattr(found, "peft_config"):
            # transformers would leave out tensors that it saves under other names than it has them.
            load_saved(found, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write the checkpoint into the store's temporary folder; `RunCallback.on_save`, which is
        called next, completes it. transformers' own deletion of old ones finds one alone there.
        """
        store: CheckpointStore = self.checkpoint_store
        if is_main_process():
            store.begin(self.state.global_step)
        wait_for_all()
        self._writes_into = str(store.unfinished(self.state.global_step).parent)
        try:
            with store.writing(), waiting("saving a checkpoint"):
                super()._save_checkpoint(model, trial)  # type: ignore[misc]
        finally:
            self._writes_into = None

    def _get_output_dir(self, trial: Any) -> str:
        return self._writes_into or str(super()._get_output_dir(trial))  # type: ignore[misc]

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write nothing: the run's report describes the model."""

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        folder = Path(output_dir)
        if self.is_fsdp_enabled:
            optimizer = sharded_state.save_divided(self.model, self.optimizer, folder)
        elif self.args.should_save:
            optimizer = self.optimizer.state_dict()
        if self.args.should_save:
            scaler = getattr(self.accelerator, "scaler", None)
            value = {
                "optimizer": optimizer,
                "scheduler": self.lr_scheduler.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else None,
            }
            save_state(folder, STATE, value)

    def _save_scaler(self, output_dir: str) -> None:
        """Nothing: it is part of the state above."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        value = load_state(folder, STATE)
        if self.is_fsdp_enabled:
            sharded_state.load_optimizer(self.model, self.optimizer, folder, value["optimizer"])
        else:
            load_optimizer(self.optimizer, value["optimizer"])
        self.lr_scheduler.load_state_dict(value["scheduler"])
        scaler = getattr(self.accelerator, "scaler", None)
        if scaler is not None and value["scaler"] is not None:
            scaler.load_state_dict(value["scaler"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Nothing: it is part of the state above."""

    def _save_rng_state(self, output_dir: str) -> None:
        os.makedirs(output_dir, exist_ok=True)
        save_state(Path(output_dir), random_state_name(self.args.process_index), random_states())

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_random_states(Path(checkpoint), self.args.process_index, seed=self.args.seed)


def random_state_name(rank: int) -> str:
    """The name, without endings, of the random states of one process in a checkpoint."""
    return f"random_state_{rank}"


def random_state_files(processes: int) -> list[str]:
    """The files that hold the random states of all processes."""
    names = [random_state_name(rank) for rank in range(processes)]
    return [f"{name}.{ending}" for name in names for ending in ("json", "safetensors")]


def load_random_state(checkpoint: Path, rank: int) -> Any:
    """The random states of one process.

    Raises MachineNotReady if they are not there: the run would go on with other random numbers.
    """
    value = load_state(checkpoint, random_state_name(rank))
    if value is None:
        raise MachineNotReady(
            f"{checkpoint} has no random state of process {rank}, so the run cannot be resumed from"
            " it as if it had never stopped",
            hint="remove this checkpoint: the same command then resumes from the one before it",
        )
    return value


def load_random_states(checkpoint: Path, rank: int, *, seed: int) -> None:
    """Set the generators of one process as they were; anew from the seed, the checkpoint's step
    and the process if another number of processes wrote the checkpoint.

    Raises MachineNotReady if its states are not there.
    """
    written_by = (read_json(checkpoint / COMPLETE) or {}).get("processes", process_count())
    if written_by == process_count():
        restore_random_states(load_random_state(checkpoint, rank))
        return
    from transformers import set_seed

    step = int(checkpoint.name.rpartition("-")[2])
    set_seed((seed + 7919 * step + 104_729 * rank) % 2**32)  # any large primes


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
    with own_router_settings(model), whole_prompt(model, state_dict or {}):
        model.save_pretrained(str(folder), state_dict=state_dict, **extra)
    (folder / "README.md").unlink(missing_ok=True)  # a template that PEFT leaves empty


def save_result(model: Any, tokenizer: Any, folder: Path) -> dict[str, SavedFile]:
    """Write the trained adapter or model with its tokenizer (chat template included) into the
    stage's folder, each file whole or not at all; the files, with their sizes and hashes. Call it
    in every process of the run: the main one writes, and the others know no files. The weights of a
    divided model are put together first, by all of them.

    Raises MachineNotReady if the disk does not take it.
    """
    is_divided = sharded_tensors(model) > 0
    is_module = hasattr(model, "peft_config")
    weights = whole_weights(model, trained_only=is_module) if is_divided else None
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
    except OSError as error:
        DISK.discard(unfinished)
        raise cannot_write(folder, error, way_out=ELSEWHERE) from error
    except SafetensorError as error:  # a full disk, in the words of its library
        DISK.discard(unfinished)
        raise disk_refused(folder, error) from error
