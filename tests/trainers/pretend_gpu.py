"""A GPU that is not there: CPU tensors that remember the device they were asked to, and refuse what
a GPU would refuse.

Inside `pretend_gpu()` torch reports a GPU. Whatever asks for `cuda` gets a CPU tensor whose storage
is noted as `cuda:0`; `tensor.device` says so, results inherit it, and an operation over tensors of
both devices raises the RuntimeError that CUDA raises. So the trainers run a plan for a GPU, in its
dtypes, and a tensor left on the host is found.

What this cannot show: kernels that exist on GPUs alone (Triton, flash attention, the CUDA part of
bitsandbytes), which operations CUDA's autocast runs in float32 (the CPU's list is shorter), memory
and speed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pkgutil import resolve_name
from traceback import walk_stack
from types import SimpleNamespace
from typing import Any
from unittest import mock

import safetensors
import safetensors.torch
import torch
from torch.nn.utils import clip_grad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainers.start import loading

HOST, GPU = torch.device("cpu"), torch.device("cuda", 0)
# Operations that take tensors of several devices, by what they are.
COPIES = ("copy_", "_to_copy", "_foreach_copy_", "_copy_from", "set_")
# Operations in which CUDA takes no scalar of the host either (others promote it).
STRICT = ("_fused_", "_amp_", "cat", "stack", "embedding", "gather", "index_select", "scatter")
INDEXING = ("index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_")
MOVES = (torch.Tensor.to, torch.Tensor.cuda, torch.Tensor.cpu, torch.as_tensor, torch.asarray)
# Operations whose result depends on numbers of the GPU, so that the host waits for them.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "unique_dim")
TO_NUMPY = (torch.Tensor.numpy, torch.Tensor.__array__)
GETTERS = {
    torch.Tensor.device: lambda device: device,
    torch.Tensor.is_cuda: lambda device: device.type == "cuda",
    torch.Tensor.is_cpu: lambda device: device.type == "cpu",
}


def noted_device(tensor: torch.Tensor) -> torch.device | None:
    """Where its storage is said to be; None for a tensor that was made outside."""
    try:
        return getattr(tensor.untyped_storage(), "noted_device", None)
    except (NotImplementedError, RuntimeError):  # a wrapper of torch.func has none
        return noted_device(torch._C._functorch.get_unwrapped(tensor))


def note(tensor: torch.Tensor, device: torch.device) -> None:
    """Say where a tensor's storage is: torch keeps the attribute as long as the storage lives."""
    if not tensor.is_meta:
        tensor.untyped_storage().noted_device = device


def device_of(tensor: torch.Tensor) -> torch.device:
    """What the tensor says when it is asked."""
    return tensor.device if tensor.is_meta else noted_device(tensor) or HOST


def tensors_in(values: Any) -> list[torch.Tensor]:
    """The tensors among arguments or results, also in lists."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def asks_a_mask(func: Any, args: Any) -> bool:
    """Whether an operation asks how much a mask chooses, which CUDA does below the dispatcher."""
    if func._opname not in INDEXING or ("put" in func._opname and args[2].numel() == 1):
        return False
    return any(one.dtype in (torch.bool, torch.uint8) for one in tensors_in(args[1:2]))


class Operations(TorchDispatchMode):
    """Gives each result of an operation the device of its inputs, and refuses mixed ones."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []  # where the host waits for the GPU
        self.depth = 0  # calls under way that were given a tensor of the GPU

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():
            kwargs = kwargs or {}
            given = tensors_in((args, kwargs))
            inputs = [(tensor, device_of(tensor)) for tensor in given if not tensor.is_meta]
            on_gpu = any(device == GPU for _, device in inputs)
            if on_gpu:
                self.check(func, args, inputs)
                if func._opname in WAITS or asks_a_mask(func, args):
                    self.wait(func._opname)
            result = func(*args, **kwargs)
            device = GPU if on_gpu or (self.depth and not inputs) else HOST
            if func._opname in COPIES and not func._opname.startswith("_to"):
                return result
            for tensor in tensors_in((result,)):
                if not tensor.is_meta and noted_device(tensor) is None:
                    note(tensor, device)
            return result

    def wait(self, what: str) -> None:
        """Note that the host waits for the GPU, and which module makes it."""
        frames = (frame for frame, _ in walk_stack(sys._getframe()))
        places = ((frame, frame.f_code.co_filename) for frame in frames)
        asks = next(one for one, file in places if file != __file__ and "/torch/" not in file)
        self.waits.append(f"{what} in {asks.f_globals['__name__']}")

    def check(self, func: Any, args: Any, inputs: list[tuple[torch.Tensor, torch.device]]) -> None:
        """Raise the RuntimeError of CUDA for an operation over both devices."""
        name = func._opname
        if name in COPIES:
            return
        if name in INDEXING and device_of(args[0]) == GPU:
            values = args[2:3] if "put" in name else ()
            inputs = [(one, device_of(one)) for one in tensors_in((args[0], values))]
        host = [tensor for tensor, device in inputs if device == HOST]
        if wrong := [one for one in host if one.dim() or name.startswith(STRICT)]:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices,"
                f" cuda:0 and cpu! (aten.{name}: a host tensor of shape {tuple(wrong[0].shape)},"
                f" {wrong[0].dtype})"
            )


class Calls(TorchFunctionMode):
    """Answers for the devices of tensors, and turns what asks for a GPU into a noted CPU tensor."""

    def __init__(self, operations: Operations) -> None:
        super().__init__()
        self.operations = operations

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        asked = func.__self__ if getattr(func, "__name__", "") == "__get__" else None
        if asked in GETTERS:
            return GETTERS[asked](device_of(args[0]))
        if func is torch.Tensor.get_device:
            return 0 if device_of(args[0]) == GPU else -1
        if func is torch.device:
            return as_device(args[0]) if len(args) == 1 else func(*args, **kwargs)
        if func is torch.Tensor.pin_memory:
            return args[0]
        if func in TO_NUMPY and device_of(args[0]) == GPU:
            raise TypeError("can't convert cuda:0 device type tensor to numpy.")
        on_gpu = any(device_of(tensor) == GPU for tensor in tensors_in((args, kwargs)))
        self.operations.depth += on_gpu
        try:
            if func is torch.Tensor.backward:
                with self:  # recomputed layers and hooks ask for devices, too
                    names = ("gradient", "retain_graph", "create_graph")
                    given = {**dict(zip(names, args[1:], strict=False)), **kwargs}
                    torch.autograd.backward(
                        args[0], given.get("gradient"), given.get("retain_graph"),
                        bool(given.get("create_graph")), inputs=given.get("inputs"),
                    )  # fmt: skip
                return None
            return self.call(func, args, kwargs)
        finally:
            self.operations.depth -= on_gpu

    def call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """The call with every device replaced by the host's, and its results noted."""
        wanted: torch.device | None = None
        if func is torch.Tensor.cpu:
            wanted = HOST
        elif func is torch.Tensor.cuda:
            wanted, func, args = GPU, torch.Tensor.to, (args[0], HOST)
        elif func is torch.Tensor.to and len(args) > 1 and isinstance(args[1], torch.Tensor):
            wanted = device_of(args[1])
        elif isinstance(kwargs.get("device"), (str, int, torch.device)):
            wanted = as_device(kwargs["device"])
            kwargs["device"] = host_of(wanted)
        elif func in (torch.Tensor.to, torch.as_tensor):
            for place, value in enumerate(args[1:], 1):
                if isinstance(value, torch.device) or (isinstance(value, (str, int))
                                                       and not isinstance(value, bool)):  # fmt: skip
                    wanted = as_device(value)
                    args = (*args[:place], host_of(wanted), *args[place + 1 :])
                    break
        if wanted is None or wanted.type == "meta":
            result = func(*args, **kwargs)
            if func is torch.Tensor.__deepcopy__ or func is torch.Tensor.new_tensor:
                note(result, device_of(args[0]))
            return result
        moved = func in MOVES and isinstance(args[0], torch.Tensor)
        same = moved and device_of(args[0]) == wanted
        # To the host always, to the GPU unless told otherwise.
        if moved and not same and (wanted == HOST or not kwargs.get("non_blocking")):
            self.operations.wait(f"{func.__name__} {wanted}")
        result = func(*args, **kwargs)
        if same:
            return result
        for tensor in tensors_in((result,)):
            if moved and result.untyped_storage()._cdata == args[0].untyped_storage()._cdata:
                result = tensor = tensor.clone()
            note(tensor, wanted)
        return result


class HostGenerator(torch.Generator):
    """A generator of random numbers for whatever device; it draws them on the host."""

    def __new__(cls, device: Any = None) -> HostGenerator:
        return super().__new__(cls, device=HOST)


def as_device(value: Any) -> torch.device:
    """A device as torch reads it, with the number of the only GPU; a bare number is a GPU's."""
    device = GPU if isinstance(value, int) else torch.device(value)
    return GPU if device.type == "cuda" else device


def host_of(device: torch.device) -> torch.device:
    """Where a tensor for this device really is."""
    return HOST if device.type == "cuda" else device


@contextmanager
def pretend_gpu(
    name: str = "NVIDIA A100-SXM4-80GB", *, capability: tuple[int, int] = (8, 0),
    memory_bytes: int = 80 * 10**9,
) -> Iterator[Calls]:  # fmt: skip
    """Let this process believe in one GPU. Library code that asks torch is told the same."""
    import_libraries()
    from trl.kernels import chunked_divergence, chunked_logprob
    from trl.trainer import utils as trl_utils

    calls = Calls(Operations())
    state = torch.zeros(16, dtype=torch.uint8)
    values: dict[str, Any] = {
        "is_available": True, "device_count": 1, "current_device": 0,
        "max_memory_allocated": 2**20, "max_memory_reserved": 2**21, "memory_allocated": 2**20,
        "memory_reserved": 2**21, "mem_get_info": (memory_bytes, memory_bytes),
        "get_device_capability": capability, "get_device_properties": SimpleNamespace(
            name=name, total_memory=memory_bytes, major=capability[0], minor=capability[1],
            multi_processor_count=108, gcnArchName="",
        ),
        "get_device_name": name, **dict.fromkeys((
            "set_device", "synchronize", "empty_cache", "reset_peak_memory_stats", "manual_seed",
            "manual_seed_all", "set_rng_state", "set_rng_state_all",
        )),
    }  # fmt: skip
    answers: dict[str, Any] = {
        **{attribute: mock.Mock(return_value=value) for attribute, value in values.items()},
        "is_bf16_supported": lambda including_emulation=True: (
            including_emulation or capability >= (8, 0)
        ),
        "get_rng_state": lambda device=None: state.clone(),
        "get_rng_state_all": lambda: [state.clone()],
        "device": lambda device=None: nullcontext(),
    }
    original = torch.amp.autocast_mode.autocast.__init__

    def autocast_init(
        self: Any, device_type: str, dtype: Any = None, *args: Any, **rest: Any
    ) -> None:
        if device_type == "cuda":
            device_type, dtype = "cpu", dtype or torch.float16
        original(self, device_type, dtype, *args, **rest)

    def about_host(function: Any) -> Any:
        return lambda kind="cuda", *args: function("cpu" if kind == "cuda" else kind, *args)

    grouped = torch.optim.Optimizer._group_tensors_by_device_and_dtype

    def by_noted_device(tensors: Any, *args: Any) -> Any:
        """Optimizers group in C++, which sees the real device."""
        return {
            (device_of(lists[0][0]), dtype): (lists, places)
            for (_, dtype), (lists, places) in grouped(tensors, *args).items()
        }

    places = [
        (torch.optim.Optimizer, "_group_tensors_by_device_and_dtype", by_noted_device),
        (clip_grad, "_group_tensors_by_device_and_dtype", by_noted_device),
        *((torch.cuda, attribute, value) for attribute, value in answers.items()),
        *((torch.cuda.random, name, answers[name]) for name in answers if "rng_state" in name),
        *((torch.cuda.random, name, answers[name]) for name in ("manual_seed", "manual_seed_all")),
        (torch, "Generator", HostGenerator),
        (torch.version, "cuda", "12.8"),
        # A build for CUDA would ask the driver in C++; one for CPUs pins no memory.
        (torch.accelerator, "is_available", mock.Mock(return_value=False)),
        (torch.accelerator, "current_accelerator", mock.Mock(return_value=None)),
        # The library found is the one for CPUs, which computes what the GPU's would.
        (loading, "bitsandbytes_faults", mock.Mock(return_value=[])),
        (torch.amp.autocast_mode.autocast, "__init__", autocast_init),
        (torch, "is_autocast_enabled", about_host(torch.is_autocast_enabled)),
        (torch, "get_autocast_dtype", about_host(torch.get_autocast_dtype)),
        (torch, "set_autocast_enabled", about_host(torch.set_autocast_enabled)),
        (torch, "set_autocast_dtype", about_host(torch.set_autocast_dtype)),
        (safetensors.torch, "safe_open", open_file),
        # TRL's fused head in its version without Triton, whose kernels need a real GPU; and its
        # divergence with 16-bit products that are first made float32, as a CPU multiplies.
        (chunked_logprob, "_TRITON_AVAILABLE", False),
        (chunked_divergence, "_MM_OUT_DTYPE", False),
        (trl_utils, "is_triton_available", mock.Mock(return_value=False)),
    ]
    with ExitStack() as stack:
        for place in places:
            stack.enter_context(mock.patch.object(*place))
        # Threads would load weights outside of the modes, which belong to one thread.
        stack.enter_context(mock.patch.dict(os.environ, HF_DEACTIVATE_ASYNC_LOAD="1"))
        stack.callback(forget_devices)
        # A plan for a GPU may choose TF32, which some processors have, too.
        stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        forget_devices()
        stack.enter_context(calls.operations)
        stack.enter_context(calls)
        yield calls


@contextmanager
def open_file(
    file: Any, framework: str, device: Any = "cpu", **rest: Any
) -> Iterator[SimpleNamespace]:
    """Weights for the asked device: the library itself would pin memory for a GPU."""
    with safetensors.safe_open(file, framework, device="cpu", **rest) as found:
        there = as_device(device)
        yield SimpleNamespace(
            get_tensors=lambda: {name: one.to(there) for name, one in found.get_tensors().items()}
        )


def import_libraries() -> None:
    """Import what trains before a GPU is pretended: some modules compile for it as they load."""
    for name in ("bitsandbytes", "peft", "transformers.AutoModelForCausalLM", "transformers.Trainer",
                 "trl.SFTTrainer", "trl.DPOTrainer", "trl.KTOTrainer", "trl.RewardTrainer",
                 "trl.GRPOTrainer", "trl.RLOOTrainer"):  # fmt: skip
        resolve_name(name)


def forget_devices() -> None:
    """Clear what transformers and accelerate remember of the devices of this process."""
    import transformers.utils.import_utils as known
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for name in ("is_torch_cuda_available", "is_torch_bf16_gpu_available", "is_torch_available",
                 "is_torch_fp16_available_on_device", "is_cuda_platform", "is_triton_available"):  # fmt: skip
        getattr(known, name).cache_clear()
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    GradientState._reset_state()
