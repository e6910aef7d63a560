"""Checkpoints without pickle: what of a run goes into them, and back.

transformers writes optimizer, scheduler and random states with torch.save, which is pickle. Here
tensors go to safetensors, and all else as JSON into the header of the same file. What every process
holds its own part of (the weights and states of a divided model) is written by
torch.distributed.checkpoint: any number of processes can go on from it.

checkpoint_store.py says when a checkpoint is complete, and which one a run resumes from.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, set_seed

from advisor.ground.errors import MachineNotReady
from trainers.job.files import read_json
from trainers.job.machine import is_main_process, process_count, process_rank
from trainers.keep.checkpoint_store import COMPLETE
from trainers.keep.results import load_saved

STATE, DIVIDED = "training_state.safetensors", "divided"  # a file, and a folder of files
RANDOM = "random_state_{}.safetensors"  # of each process
WEIGHT = "weight"  # before a parameter's name, where others have the name of a state
PAGED = ("state1", "state2")  # what bitsandbytes pages
TREE, TENSOR = "tree", "tensor"  # in the header of a file, and what stands there for a tensor


# --------------------------------------------------------------------------- one file


def write_state(path: Path, value: Any) -> None:
    """Write a value of JSON in which tensors may stand, as one safetensors file; tuples become
    lists.

    Raises TypeError for a value that neither JSON nor safetensors can hold.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Any] = {}
    memory = set()

    def take_out(one: Any) -> dict[str, str]:
        if not isinstance(one, torch.Tensor):
            raise TypeError(f"a checkpoint cannot hold a {type(one).__name__}")
        name, content = f"t{len(tensors)}", one.detach().cpu().contiguous()
        place = content.untyped_storage().data_ptr()
        # bitsandbytes has one table for all states, but a file holds each tensor alone.
        tensors[name] = content.clone() if place in memory else content
        memory.add(place)
        return {TENSOR: name}

    tree = json.dumps(value, default=take_out)
    save_file(tensors, path, metadata={TREE: tree})


def read_state(path: Path) -> Any:
    """The value that `write_state` wrote, tensors on the CPU."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:

        def put_back(one: dict[str, Any]) -> Any:
            return file.get_tensor(one[TENSOR]) if one.keys() == {TENSOR} else one

        return json.loads(file.metadata()[TREE], object_hook=put_back)


# --------------------------------------------------------------------------- one checkpoint


def save_training(
    place: Path, parameters: Mapping[str, Any], optimizer: Any, *, weights: bool, **more: Any
) -> None:
    """Write what a run needs to resume into the folder of a checkpoint. Call it in every process:
    each writes its random states and its part of what is divided, the main one all else.

    Args:
        parameters: Those that are trained, by name.
        weights: Whether the parameters themselves are written.
        more: Whatever else has to be put back, by name.
    """
    plain = getattr(optimizer, "optimizer", optimizer)  # inside accelerate's wrapper
    parts = {f"{WEIGHT}:{name}": one.detach() for name, one in parameters.items() if weights}
    for name, parameter in parameters.items():
        state = plain.state.get(parameter, {})
        parts |= {f"{key}:{name}": value for key, value in state.items()}
    dtypes = write_divided(place / DIVIDED, parts) if process_count() > 1 else {}
    if is_main_process():
        value = {
            "parts": {name: one for name, one in parts.items() if name not in dtypes},
            "divided": dtypes,
            "groups": [
                {key: value for key, value in group.items() if key != "params"}
                for group in plain.param_groups
            ],
        }  # fmt: skip
        write_state(place / STATE, value | more)
    write_state(place / RANDOM.format(process_rank()), random_states())


def load_training(place: Path, parameters: Mapping[str, Any], optimizer: Any) -> dict[str, Any]:
    """Put back what `save_training` wrote, random states apart, and without an optimizer weights
    alone; its `more`. Call it in every process.
    """
    value: dict[str, Any] = read_state(place / STATE)
    parts, dtypes, groups = (value.pop(name) for name in ("parts", "divided", "groups"))
    divided = {}
    for name, dtype in dtypes.items():
        key, _, of = name.partition(":")
        own = parameters[of].detach()
        if key == WEIGHT:
            divided[name] = own
        elif optimizer is not None:
            divided[name] = torch.zeros_like(own, dtype=getattr(torch, dtype))
    if divided:  # by whatever so many processes it was written
        from torch.distributed import checkpoint

        reader = checkpoint.HuggingFaceStorageReader(str(place / DIVIDED))
        checkpoint.load(divided, storage_reader=reader)
    states: dict[str, dict[str, Any]] = {name: {} for name in parameters}
    for name, part in {**parts, **divided}.items():
        key, _, of = name.partition(":")
        if key != WEIGHT:
            states[of][key] = part
        elif name not in divided:
            parameters[of].detach().copy_(part)
    if optimizer is not None:
        names = {id(one): name for name, one in parameters.items()}
        plain = getattr(optimizer, "optimizer", optimizer)
        for group, saved in zip(plain.param_groups, groups, strict=True):
            group |= {
                key: tuple(one) if isinstance(one, list) else one for key, one in saved.items()
            }
            for parameter in group["params"]:
                if state := states[names[id(parameter)]]:
                    plain.state[parameter] = placed(state, plain, group, parameter)
    return value


def placed(
    state: Mapping[str, Any], optimizer: Any, group: Mapping[str, Any], parameter: Any
) -> dict[str, Any]:
    """The state of a parameter where the optimizer expects it, in its own dtypes: torch's way to
    load it would cast all to that of the weights, and take paged memory away.
    """
    found = dict(state)
    is_paged = getattr(optimizer, "is_paged", False)
    counts = bool(group.get("fused") or group.get("capturable"))  # on the device, by a kernel
    for key, value in state.items():
        if is_paged and key in PAGED:
            # Small ones are not paged; bitsandbytes decides by the parameter's size.
            found[key] = optimizer.get_state_buffer(parameter, dtype=value.dtype).copy_(value)
        elif isinstance(value, torch.Tensor):
            device = value.device if key == "step" and not counts else parameter.device
            found[key] = value.to(device, copy=True)  # not what was read, whose memory is the file
    return found


def write_divided(folder: Path, parts: Mapping[str, Any]) -> dict[str, str]:
    """Write those of the tensors of which each process holds a part; name -> dtype of them."""
    from torch.distributed import checkpoint
    from torch.distributed.tensor import DTensor

    divided = {name: one for name, one in parts.items() if isinstance(one, DTensor)}
    if divided:
        writer = checkpoint.HuggingFaceStorageWriter(str(folder), save_distributed=True)
        checkpoint.save(divided, storage_writer=writer)
    return {name: str(one.dtype).removeprefix("torch.") for name, one in divided.items()}


def trained_parameters(model: Any) -> dict[str, Any]:
    """Name -> parameter, of those that are trained."""
    return {name: one for name, one in model.named_parameters() if one.requires_grad}


def load_random_states(place: Path, *, seed: int) -> None:
    """Set the generators of this process as they were; anew from the seed, the checkpoint's step
    and the process if another number of processes wrote the checkpoint.

    Raises MachineNotReady if its states are not there: the run would go on with other numbers.
    """
    rank, count = process_rank(), process_count()
    if (read_json(place / COMPLETE) or {}).get("processes", count) != count:
        step = int(place.name.rpartition("-")[2])
        set_seed((seed + 7919 * step + 104_729 * rank) % 2**32)  # any large primes
    elif (path := place / RANDOM.format(rank)).is_file():
        restore_random_states(read_state(path))
    else:
        raise MachineNotReady(
            f"{place} has no random state of process {rank}, so the run cannot be resumed from it"
            " as if it had never stopped",
            hint="remove this checkpoint: the same command then resumes from the one before it",
        )


def random_states() -> dict[str, Any]:
    """The states of every generator that training, or a user's reward, may draw from."""
    import numpy

    kind, keys, *rest = numpy.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(numpy.asarray(keys, dtype="int64")), *rest),
        "torch": torch.random.get_rng_state(),
        "cuda": torch.cuda.random.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_random_states(value: dict[str, Any]) -> None:
    """Set every generator to a state that `random_states` returned."""
    import numpy

    version, numbers, last = value["python"]
    random.setstate((version, tuple(numbers), last))
    kind, keys, *rest = value["numpy"]
    numpy.random.set_state((kind, keys.numpy().astype("uint32"), *rest))
    torch.random.set_rng_state(value["torch"])
    if value["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.random.set_rng_state(value["cuda"])


# --------------------------------------------------------------------------- transformers


def unwrapped(trainer: Any) -> Any:
    return trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)


def load_weights(trainer: Any, place: Path) -> None:
    """Give the trainer's model the weights of a checkpoint. Call it in every process."""
    model = unwrapped(trainer)
    if trainer.is_fsdp_enabled:
        load_training(place, trained_parameters(model), None)
    else:
        load_saved(model, place)


class Resuming(TrainerCallback):
    """Puts a checkpoint back before the first step of a trainer that is told to resume from it."""

    def __init__(self, trainer: Any, place: Path) -> None:
        self.trainer, self.place = trainer, place
        self.is_waiting = True  # for the first step

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        parameters = trained_parameters(unwrapped(trainer))
        if not trainer.is_fsdp_enabled:
            load_weights(trainer, self.place)
        more = load_training(self.place, parameters, trainer.optimizer)
        trainer.lr_scheduler.load_state_dict(more["scheduler"])
        scaler = getattr(trainer.accelerator, "scaler", None)
        if scaler is not None and more["scaler"] is not None:
            scaler.load_state_dict(more["scaler"])

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A run that was never stopped begins an epoch with the numbers behind the last step."""
        if self.is_waiting:
            load_random_states(self.place, seed=args.seed)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Inside an epoch, its first batches have been read once more since."""
        if self.is_waiting and not float(state.epoch).is_integer():
            load_random_states(self.place, seed=args.seed)
        self.is_waiting = False
