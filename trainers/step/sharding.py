"""A model of which every process holds a part: FSDP2 through transformers' own arguments.

Each block of the model (its own `_no_split_modules`) is a unit: its weights are put together for
its forward and backward pass, and its gradients are divided among the processes at once. Blocks
that are computed again are those of transformers' gradient checkpointing, which, unlike
accelerate's, computes dropout again as it was.

On CUDA that is what transformers does by itself. On the CPU accelerate turns FSDP into plain data
parallelism without a word; `prepare_sharding` is the one place that prevents it.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from advisor.ground.errors import InputError
from advisor.ground.types import FSDP
from advisor.methods import update
from trainers.job import Model
from trainers.job.job import Job
from trainers.job.machine import is_main_process, process_count

STORED_IN = "_dtype_of_result"  # on a divided model


def is_sharded(job: Job) -> bool:
    """Whether every process of the stage holds a part of the model."""
    return job.plan.launch.strategy == FSDP and process_count() > 1


# --------------------------------------------------------------------------- before training


def one_reads_for_all() -> AbstractContextManager[None]:
    """Inside, `from_pretrained` with `unread()` makes a model without memory in all processes of a
    machine but the first, with the buffers that no file holds. accelerate then sends each process
    its part.
    """
    from accelerate.utils import patch_environment

    # What transformers asks.
    return patch_environment(ACCELERATE_USE_FSDP=True, FSDP_CPU_RAM_EFFICIENT_LOADING=True)


def reads_once(job: Job) -> bool:
    """Whether one process of a machine reads the base for all of them. Each reads quantised
    weights, which transformers quantises in every process.
    """
    return is_sharded(job) and job.stage.quantization is None


def unread() -> dict[str, Any]:
    """Arguments of `from_pretrained` with which all processes of a machine but the first read no
    weights.
    """
    reads = os.environ.get("LOCAL_RANK", "0") == "0"
    return {} if reads else {"device_map": {"": "meta"}}


def by_the_reader(job: Job, compute: Callable[[], Any]) -> Any:
    """What is computed of a model's weights, by the process that has read them, in all of them.

    Raises in all of them what it raises of the user's input.
    """
    return from_main(compute) if reads_once(job) else compute()


def from_main(compute: Callable[[], Any]) -> Any:
    """What the main process computes, in all of them. Call it in all of them."""
    from torch import distributed

    found: list[Any] = [None]
    try:
        found = [compute() if is_main_process() else None]
    except InputError as error:
        found = [error]
    distributed.broadcast_object_list(found, src=0)
    if isinstance(found[0], InputError):
        raise found[0]
    return found[0]


def block_classes(model: Model) -> list[str]:
    """The classes of the model's blocks that it has, as it names them itself; without one that
    holds the embeddings (BERT's), which accelerate makes a unit of their own.

    Raises InputError for a model that names none.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    embeddings = base.get_input_embeddings()
    there = {
        type(module).__name__
        for module in base.modules()
        if module is embeddings or embeddings not in module.modules()
    }
    named = sorted(there & set(getattr(base, "_no_split_modules", None) or ()))
    if not named:
        raise InputError(
            f"{type(base).__name__} does not say which of its modules are blocks, so it cannot be"
            " divided among several processes",
            where="launch.strategy",
            allowed="strategy: ddp",
        )
    return named


def sharding_arguments(job: Job, model: Model) -> dict[str, Any]:
    """What transformers' arguments say of FSDP2; {} if the stage is not sharded."""
    if not is_sharded(job):
        return {}
    return {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "transformer_layer_cls_to_wrap": block_classes(model),
            "reshard_after_forward": True,
            "cpu_offload": job.plan.launch.offload,
            "cpu_ram_efficient_loading": reads_once(job),
            # What transformers would save is ours (StageTrainer); it refuses the other word.
            "state_dict_type": "FULL_STATE_DICT",
        },
    }


def prepare_sharding(config: Any, job: Job) -> None:
    """What the arguments of transformers cannot say of FSDP2. Call it between making them and
    making the trainer, which divides a reference model as it is built.

    Under mixed precision accelerate's own policy adds gradients up in 16 bits and returns logits in
    them. Weights that are trained in place are float32. They are put together in the 16 bits that
    their products are computed in: in float32 twice as much would be sent, and the copies that
    autocast makes of them would stay on each GPU from the forward pass to the backward pass, whole.
    A module's base has the dtype of the plan, its 4-bit weights that of their storage, and its own
    few weights are float32: autocast does the rest, as in one process.

    accelerate knows FSDP for accelerators alone, and takes several CPU processes for plain data
    parallelism, whatever the arguments say. Memory of a machine without an accelerator is not
    pinned, which torch refuses there.
    """
    if not getattr(config, "fsdp", None):
        return
    import torch
    from accelerate import PartialState
    from accelerate.utils import DistributedType
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy

    if config.bf16 or config.fp16:
        half = torch.bfloat16 if config.bf16 else torch.float16
        config.fsdp_plugin_args["mixed_precision_policy"] = MixedPrecisionPolicy(
            param_dtype=half if casts_weights(job) else None, reduce_dtype=torch.float32
        )
    if config.use_cpu:
        assert config.device.type == "cpu"  # the state is made when the device is asked for
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        if job.plan.launch.offload:
            config.fsdp_plugin_args["cpu_offload"] = CPUOffloadPolicy(pin_memory=False)


def casts_weights(job: Job) -> bool:
    """Whether FSDP casts the weights that it puts together, if precision is mixed."""
    return is_sharded(job) and not update(job.stage.update).is_module


def make_divisible(model: Any, *, mixed: bool) -> None:
    """Let accelerate divide the model as it is. Call it in every process, before it is trained.

    Raises InputError for a model that it cannot divide.
    """
    # A copy of the embeddings that trains, and its original, would be parts of different units.
    embeddings, output = model.get_input_embeddings(), model.get_output_embeddings()
    original = getattr(getattr(embeddings, "original_module", None), "weight", None)
    if original is not None and getattr(output, "weight", None) is original:
        raise InputError(
            "modules_to_save names the embeddings alone, and the model's output layer is the same"
            " tensor: such a model cannot be divided among several processes",
            where="launch.strategy",
            allowed="strategy: ddp, or train_embeddings: true, which trains both as one",
        )
    for module in model.modules():  # what stands for packed experts has no numbers to divide
        for part in getattr(module, "nf4_states", ()):
            stand_in = getattr(module, part).detach()
            delattr(module, part)
            module.register_buffer(part, stand_in, persistent=False)
    _give_memory(model, mixed=mixed)
    _keep_ties(model)


def _give_memory(model: Any, *, mixed: bool) -> None:
    """Give addresses to the parameters of processes that read no weights, and no memory: nothing is
    written there before each process gets its part.

    accelerate knows the optimizer's parameters by their addresses: of several that have none, one
    would be trained in the place of all. Under mixed precision it makes float32 copies of what
    trains, which fill memory, unless it is float32 already.
    """
    import torch

    given: dict[int, Any] = {}  # tied weights stay one tensor
    for module in model.modules():
        for name, one in list(module.named_parameters(recurse=False)):
            if one.is_meta:
                if id(one) not in given:
                    dtype = torch.float32 if mixed and one.requires_grad else one.dtype
                    memory = torch.empty_like(one, device="cpu", dtype=dtype)
                    given[id(one)] = torch.nn.Parameter(memory, one.requires_grad)
                setattr(module, name, given[id(one)])


def _keep_ties(model: Any) -> None:
    """Let `model.tie_weights()` tie what is tied now, and nothing else.

    accelerate calls it twice while it divides a model. transformers' own ties what the base model's
    config says: to the copy of the embeddings that a module trains, an output layer that had been
    frozen; and it fails at a copy of the output layer.
    """
    names: dict[int, list[str]] = {}
    for name, one in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(one), []).append(name)
    ties = [found for found in names.values() if len(found) > 1]

    def tie_weights(*_: Any, **__: Any) -> None:
        for first, *others in ties:
            for name in others:
                place, own = name.rpartition(".")[::2]
                setattr(model.get_submodule(place), own, model.get_parameter(first))

    model.tie_weights = tie_weights


def divided_copy(model: Any, config: Any) -> Any:
    """A copy of the model as it is now that nothing trains, divided by its blocks as the model is
    going to be. TRL would make one unit of it, which each GPU holds whole in every forward pass.
    Call it in every process, behind `prepare_sharding`.
    """
    import torch
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

    empty = {
        id(one): torch.nn.Parameter(torch.empty_like(one, device="meta"), requires_grad=False)
        for one in model.parameters()
    }
    frozen = copy.deepcopy(model, empty)
    buffers = dict(frozen.named_buffers())
    offload = config.fsdp_config.get("cpu_offload")
    policy = config.fsdp_plugin_args.get("mixed_precision_policy") or MixedPrecisionPolicy()
    options: dict[str, Any] = {
        "mesh": init_device_mesh(config.device.type, (process_count(),)),
        "mp_policy": policy,
        "reshard_after_forward": True,
        **({"offload_policy": CPUOffloadPolicy(pin_memory=not config.use_cpu)} if offload else {}),
    }
    blocks = block_classes(model)
    for module in list(frozen.modules()):
        if type(module).__name__ in blocks:
            fully_shard(module, **options)
    fully_shard(frozen, **options)
    frozen.to_empty(device="cpu" if offload else config.device)
    whole = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(frozen, model.state_dict() if is_main_process() else {}, options=whole)
    for name, value in buffers.items():
        place, _, own = name.rpartition(".")
        setattr(frozen.get_submodule(place), own, value.to(config.device))
    return frozen.eval()


def adjust_sharding(trainer: Any, job: Job) -> None:
    """What a model that is going to be divided needs, and its reference, which TRL has divided.

    accelerate puts autocast around the forward of any other model under mixed precision: a divided
    one would compute in the dtype of its weights alone.
    """
    if not is_sharded(job):
        return
    import torch

    setattr(trainer.model, STORED_IN, getattr(torch, job.stage.weights_dtype))
    for model in (getattr(trainer, "ref_model", None), trainer.model):
        if model is not None:
            trainer.accelerator.prepare_model(model, evaluation_mode=True)


# --------------------------------------------------------------------------- looking at it


def sharded_tensors(model: Model) -> int:
    """How many of the model's parameters are divided among the processes."""
    if process_count() == 1:
        return 0
    from torch.distributed.tensor import DTensor

    return sum(isinstance(parameter, DTensor) for parameter in model.parameters())


def is_divided(model: Model) -> bool:
    """Whether each process holds a part of this model, so that all take part in a forward pass."""
    return sharded_tensors(model) > 0


def whole(tensor: Any) -> Any:
    """The whole of a tensor that may be divided, in every process. Call it in all of them."""
    from torch.distributed.tensor import DTensor

    if not isinstance(tensor, DTensor):
        return tensor
    device = tensor.device_mesh.device_type
    return (tensor if tensor.device.type == device else tensor.to(device)).full_tensor()


@contextmanager
def whole_prompt(model: Model, weights: Mapping[str, Any]) -> Iterator[None]:
    """Inside, a prefix of the model, which PEFT computes once more to save it, has the weights that
    `whole_weights` returned.
    """
    import torch

    swapped: list[tuple[Any, str, Any]] = []
    encoder = getattr(model, "prompt_encoder", None) if weights else None
    for place, module in encoder.named_modules() if encoder is not None else ():
        for name, one in list(module.named_parameters(recurse=False)):
            whole_one = weights[".".join(filter(None, ("prompt_encoder", place, name)))]
            swapped.append((module, name, one))
            setattr(module, name, torch.nn.Parameter(whole_one, one.requires_grad))
    try:
        yield
    finally:
        for module, name, one in swapped:
            setattr(module, name, one)


def whole_weights(model: Model, *, trained_only: bool) -> Mapping[str, Any]:
    """Name -> weight of the model, whole and on the host, in the main process; {} in the others.
    Call it in all of them: one weight after another is put together.

    Weights that are trained in place are float32 under mixed precision, whatever the stage's dtype:
    they get that back, so that the result is as large as its base.

    Args:
        trained_only: Leave out frozen ones: those of a module, which stay as they are.
    """
    dtype = None if trained_only else getattr(model, STORED_IN, None)
    found: dict[str, Any] = {}
    seen: dict[int, Any] = {}  # tied weights stay one tensor
    for name, one in model.state_dict(keep_vars=True).items():
        if trained_only and not one.requires_grad:
            continue
        if id(one) not in seen:
            value = whole(one.detach())
            if dtype is not None and value.is_floating_point():
                value = value.to(dtype)
            seen[id(one)] = value.cpu() if is_main_process() else None
        found[name] = seen[id(one)]
    return found if is_main_process() else {}
