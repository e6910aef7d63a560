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
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import safetensors
import safetensors.torch
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.utils import clip_grad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

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


class Storages:
    """Which device the storages of living tensors are said to be on."""

    def __init__(self) -> None:
        # The weak reference keeps the address from being used again.
        self._device: dict[int, tuple[StorageWeakRef, torch.device]] = {}
        self._purge_at = 20_000

    def device_of(self, tensor: torch.Tensor) -> torch.device | None:
        """None for a tensor of which nothing is known: one made outside."""
        try:
            found = self._device.get(tensor.untyped_storage()._cdata)
        except (NotImplementedError, RuntimeError):  # a wrapper of torch.func has none
            inner = torch._C._functorch.get_unwrapped(tensor)
            return self.device_of(inner)
        return found[1] if found else None

    def note(self, tensor: torch.Tensor, device: torch.device) -> None:
        """Say where a tensor's storage is."""
        if tensor.is_meta:
            return
        storage = tensor.untyped_storage()
        self._device[storage._cdata] = (StorageWeakRef(storage), device)
        if len(self._device) > self._purge_at:
            self._device = {
                key: value for key, value in self._device.items() if not value[0].expired()
            }
            self._purge_at = 20_000 + 2 * len(self._device)


def tensors_in(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """The tensors among arguments or results, also in lists."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)
        elif isinstance(value, dict):
            yield from tensors_in(value.values())


def asks_a_mask(func: Any, args: Any) -> bool:
    """Whether an operation takes or writes what a mask chooses, of which the host has to know how
    much it is: CUDA calls `nonzero` below the dispatcher. One value is written without.
    """
    if func._opname not in INDEXING or ("put" in func._opname and args[2].numel() == 1):
        return False
    return any(one.dtype in (torch.bool, torch.uint8) for one in tensors_in(args[1:2]))


class Operations(TorchDispatchMode):
    """Gives each result of an operation the device of its inputs, and refuses mixed ones."""

    def __init__(self, storages: Storages) -> None:
        super().__init__()
        self.storages = storages
        self.waits: list[str] = []  # where the host waits for the GPU
        self.depth = 0  # calls under way that were given a tensor of the GPU

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():
            kwargs = kwargs or {}
            inputs = [
                (tensor, self.storages.device_of(tensor) or HOST)
                for tensor in tensors_in((args, kwargs))
                if not tensor.is_meta
            ]
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
                if not tensor.is_meta and self.storages.device_of(tensor) is None:
                    self.storages.note(tensor, device)
            return result

    def wait(self, what: str) -> None:
        """Note that the host waits for the GPU, and which module makes it."""
        frame: Any = sys._getframe()
        while frame and (
            frame.f_code.co_filename == __file__ or "/torch/" in frame.f_code.co_filename
        ):
            frame = frame.f_back
        self.waits.append(f"{what} in {frame.f_globals['__name__']}")

    def check(self, func: Any, args: Any, inputs: list[tuple[torch.Tensor, torch.device]]) -> None:
        """Raise the RuntimeError of CUDA for an operation over both devices."""
        name = func._opname
        if name in COPIES:
            return
        if name in INDEXING and (self.storages.device_of(args[0]) or HOST) == GPU:
            values = args[2:3] if "put" in name else ()
            inputs = [(tensor, self.storages.device_of(tensor) or HOST)
                      for tensor in tensors_in((args[0], values))]  # fmt: skip
        strict = name.startswith(STRICT)
        for tensor, device in inputs:
            if device == HOST and (strict or tensor.dim()):
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two"
                    f" devices, cuda:0 and cpu! (aten.{name}: a host tensor of shape"
                    f" {tuple(tensor.shape)}, {tensor.dtype})"
                )


class Calls(TorchFunctionMode):
    """Answers for the devices of tensors, and turns what asks for a GPU into a noted CPU tensor."""

    def __init__(self, operations: Operations) -> None:
        super().__init__()
        self.operations, self.storages = operations, operations.storages

    def device_of(self, tensor: torch.Tensor) -> torch.device:
        return tensor.device if tensor.is_meta else self.storages.device_of(tensor) or HOST

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(func, "__name__", "") == "__get__":
            getter = GETTERS.get(getattr(func, "__self__", None))
            if getter is not None:
                return getter(self.device_of(args[0]))
        if func is torch.Tensor.get_device:
            return 0 if self.device_of(args[0]) == GPU else -1
        if func is torch.device:
            return as_device(args[0]) if len(args) == 1 else func(*args, **kwargs)
        if func is torch.Tensor.pin_memory:
            return args[0]
        if func in TO_NUMPY and self.device_of(args[0]) == GPU:
            raise TypeError("can't convert cuda:0 device type tensor to numpy.")
        on_gpu = any(self.device_of(tensor) == GPU for tensor in tensors_in((args, kwargs)))
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
            wanted = self.device_of(args[1])
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
                self.storages.note(result, self.device_of(args[0]))
            return result
        moved = func in MOVES and isinstance(args[0], torch.Tensor)
        same = moved and self.device_of(args[0]) == wanted
        # To the host always, to the GPU unless told otherwise.
        if moved and not same and (wanted == HOST or not kwargs.get("non_blocking")):
            self.operations.wait(f"{func.__name__} {wanted}")
        result = func(*args, **kwargs)
        if same:
            return result
        for tensor in tensors_in((result,)):
            if moved and result.untyped_storage()._cdata == args[0].untyped_storage()._cdata:
                result = tensor = tensor.clone()
            self.storages.note(tensor, wanted)
        return result


def answer(value: Any, *_: Any, **__: Any) -> Any:
    """The value, whatever was asked."""
    return value


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
    operations = Operations(Storages())
    calls = Calls(operations)
    bf16 = capability >= (8, 0)
    about = SimpleNamespace(
        name=name, total_memory=memory_bytes, major=capability[0], minor=capability[1],
        multi_processor_count=108, gcnArchName="",
    )  # fmt: skip
    state = torch.zeros(16, dtype=torch.uint8)
    nothing = (
        "set_device", "synchronize", "empty_cache", "reset_peak_memory_stats", "manual_seed",
        "manual_seed_all", "set_rng_state", "set_rng_state_all",
    )  # fmt: skip
    values: dict[str, Any] = {
        "is_available": True, "device_count": 1, "current_device": 0,
        "max_memory_allocated": 2**20, "max_memory_reserved": 2**21, "memory_allocated": 2**20,
        "memory_reserved": 2**21, "mem_get_info": (memory_bytes, memory_bytes),
        "get_device_capability": capability, "get_device_properties": about,
        "get_device_name": name, **dict.fromkeys(nothing),
    }  # fmt: skip
    answers: dict[str, Any] = {
        **{attribute: partial(answer, value) for attribute, value in values.items()},
        "is_bf16_supported": lambda including_emulation=True: bf16 or including_emulation,
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
        def asked(device_type: str = "cuda", *args: Any) -> Any:
            return function("cpu" if device_type == "cuda" else device_type, *args)

        return asked

    import_libraries()
    grouped = torch.optim.Optimizer._group_tensors_by_device_and_dtype

    def by_noted_device(tensors: Any, *args: Any) -> Any:
        """Optimizers group in C++, which sees the real device."""
        return {
            (calls.device_of(lists[0][0]), dtype): (lists, places)
            for (_, dtype), (lists, places) in grouped(tensors, *args).items()
        }

    random = [one for one in answers if "rng_state" in one or "seed" in one]
    autocast = ("is_autocast_enabled", "get_autocast_dtype", "set_autocast_enabled",
                "set_autocast_dtype")  # fmt: skip
    places = [
        (torch.optim.Optimizer, "_group_tensors_by_device_and_dtype", by_noted_device),
        (clip_grad, "_group_tensors_by_device_and_dtype", by_noted_device),
        *((torch.cuda, attribute, value) for attribute, value in answers.items()),
        *((torch.cuda.random, attribute, answers[attribute]) for attribute in random),
        (torch, "Generator", HostGenerator),
        (torch.version, "cuda", "12.8"),
        # The library found is the one for CPUs, which computes what the GPU's would.
        (loading, "bitsandbytes_faults", partial(answer, [])),
        (torch.amp.autocast_mode.autocast, "__init__", autocast_init),
        *((torch, attribute, about_host(getattr(torch, attribute))) for attribute in autocast),
        (safetensors.torch, "safe_open", OpenFile),
    ]
    with ExitStack() as stack:
        for place in places:
            stack.enter_context(mock.patch.object(*place))
        # Threads would load weights outside of the modes, which belong to one thread.
        stack.enter_context(mock.patch.dict(os.environ, HF_DEACTIVATE_ASYNC_LOAD="1"))
        stack.callback(forget_devices)
        # A plan for a GPU may choose TF32, which some processors have, too.
        precision = torch.get_float32_matmul_precision()
        stack.callback(torch.set_float32_matmul_precision, precision)
        forget_devices()
        stack.enter_context(without_triton())
        stack.enter_context(operations)
        stack.enter_context(calls)
        yield calls


class OpenFile:
    """An open file of weights whose tensors come to the device that was asked for: the library
    itself would pin memory for a GPU.
    """

    def __init__(self, file: Any, framework: str, device: Any = "cpu", **rest: Any) -> None:
        self.device = as_device(device)
        self.file = safetensors.safe_open(file, framework, device="cpu", **rest)

    def __enter__(self) -> OpenFile:
        self.file.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self.file.__exit__(*raised)

    def keys(self) -> list[str]:
        return list(self.file.keys())

    def get_tensor(self, name: str) -> torch.Tensor:
        return self.file.get_tensor(name).to(self.device)

    def get_tensors(self) -> dict[str, torch.Tensor]:
        return {name: self.get_tensor(name) for name in self.keys()}


def import_libraries() -> None:
    """Import what trains before a GPU is pretended: some modules compile for it as they load."""
    import bitsandbytes
    import peft
    import trl
    from transformers import AutoModelForCausalLM, Trainer

    assert all((bitsandbytes, peft, AutoModelForCausalLM, Trainer))
    for name in ("SFT", "DPO", "KTO", "Reward", "GRPO", "RLOO"):
        getattr(trl, f"{name}Trainer")


@contextmanager
def without_triton() -> Iterator[None]:
    """TRL's fused head in its version without Triton, whose kernels need a real GPU; and its
    divergence with 16-bit products that are first made float32, as a CPU multiplies.
    """
    from trl.kernels import chunked_divergence, chunked_logprob

    with (
        mock.patch.object(chunked_logprob, "_TRITON_AVAILABLE", False),
        mock.patch.object(chunked_divergence, "_MM_OUT_DTYPE", False),
    ):
        yield


def forget_devices() -> None:
    """Clear what transformers and accelerate remember of the devices of this process."""
    import transformers.utils.import_utils as known
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for name in ("is_torch_cuda_available", "is_torch_bf16_gpu_available", "is_torch_available",
                 "is_torch_fp16_available_on_device", "is_cuda_platform", "is_triton_available"):  # fmt: skip
        clear = getattr(getattr(known, name, None), "cache_clear", None)
        if clear is not None:
            clear()
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    GradientState._reset_state()
