"""What a trainer needs of the machine: the device of the plan, memory counters, and the processes
of a run: how they find each other, wait for each other and end.

Importing this module before torch, transformers and trl also switches off their telemetry and
progress messages.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from advisor.ground.errors import MachineNotReady, TrainingFailed
from advisor.ground.files import DISK, TEMPORARY, text_of
from trainers.job import Device
from trainers.job.files import make_folder

# Set before the libraries are imported: huggingface_hub reads these once. TRL sends a usage ping
# for every trainer it builds; nobody asked for that.
for name, value in {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    # transformers asks a bot of the hub to convert a model that is stored in the old format.
    "DISABLE_SAFETENSORS_CONVERSION": "1",
    # One tokenizer call at a time; silences the fork warning of data loaders.
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    # Threads that wait sleep instead of spinning. With another training run on the same two cores,
    # a LoRA step of the 135M model took 15 s and more with spinning, 4 to 8 s with sleeping. What
    # it costs on an idle machine has not been measured.
    "OMP_WAIT_POLICY": "passive",
}.items():
    os.environ.setdefault(name, value)


def torch_device(wanted: str) -> Any:
    """The torch device of the plan's `launch.device`.

    Raises MachineNotReady if this machine or this torch cannot use it.
    """
    import torch

    if wanted == "cpu":
        return torch.device("cpu")
    on_cpu = "`advise --gpu none` makes a plan for the CPU"
    if wanted == "mps":
        if torch.backends.mps.is_available():
            return torch.device("mps")
        what = "the plan is for an Apple GPU (launch.device: mps), which torch cannot use here"
        raise MachineNotReady(what, hint=on_cpu)
    plan, torch_here = (
        f"the plan is for a GPU (launch.device: {wanted})",
        f"torch {torch.__version__}",
    )
    build = torch.version.hip if wanted == "rocm" else torch.version.cuda
    if build is None:
        needed = "ROCm" if wanted == "rocm" else "CUDA"
        raise MachineNotReady(
            f"{plan}, but the installed {torch_here} is built without {needed}",
            hint=(
                "install the torch build for your driver (pytorch.org/get-started shows the line);"
                f" {on_cpu}"
            ),
        )
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if not torch.cuda.is_available() or torch.cuda.device_count() <= local:
        raise MachineNotReady(
            f"{plan}, but {torch_here} (CUDA {build}) finds {torch.cuda.device_count()} usable"
            " here",
            allowed=(
                "a driver that supports this CUDA version and a visible device"
                " (CUDA_VISIBLE_DEVICES)"
            ),
            hint=f"`advise probe` shows what is there; {on_cpu}",
        )
    device = torch.device("cuda", local)
    try:
        torch.cuda.set_device(device)
        torch.zeros(1, device=device).add_(1).item()
    except RuntimeError as error:
        what = f"the GPU cannot be used by {torch_here}: {str(error).splitlines()[0]}"
        raise MachineNotReady(what, hint="`advise probe` shows driver and device") from None
    return device


def usable_cores() -> int:
    """CPU cores this process may use: affinity, and the cgroup's quota if there is one."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    with suppress(OSError, ValueError):
        quota, period = text_of(Path("/sys/fs/cgroup/cpu.max")).split()
        if quota != "max":
            cores = min(cores, max(1, -(-int(quota) // int(period))))
    return cores


# On the host, for a process that is alive and does not come: the main one may write a checkpoint
# to a slow disk. One that ends is noticed at once (docs/reliability.md).
LONGEST_WAIT_S = 3600

MEMORY_LIMIT = "ADVISE_MEMORY_BYTES"  # set by `advise run`: what this computer lets a run use

KERNELS_KEPT = 128  # several times what one step needs; no step was slower with 32


def use_cores() -> int:
    """Threads torch computes with: all usable cores, unless OMP_NUM_THREADS says otherwise.

    Also limits the kernels that oneDNN keeps.
    """
    import torch

    # oneDNN keeps a compiled kernel for every shape of a bfloat16 product, up to 1,024 of them:
    # half a GiB for rows of many lengths.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS_KEPT))
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(usable_cores())
    return int(torch.get_num_threads())


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)


def keep_freed_memory(device: Device) -> None:
    """On the CPU, let this process keep the memory that a step frees for the next step. glibc would
    give it back, and the kernel clear each page again: three micro-batches of SmolLM2-135M (1,161,
    900 and 1,161 tokens) took 650,000 page faults and 17.7 s of CPU, and 10,000 and 16.8 s without.
    The peak is 0.2 GiB higher.
    """
    if device.type != "cpu" or sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_MMAP_THRESHOLD, 2**31 - 1)


def give_back_memory(device: Device) -> None:
    """Let the system have what a model held that nobody needs any more: the next one is measured
    from there.
    """
    gc.collect()
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def process_count() -> int:
    """How many processes this run has, as the launcher says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def several_machines() -> bool:
    """Whether processes of this run are on other machines, as the launcher says."""
    return process_count() > int(os.environ.get("LOCAL_WORLD_SIZE", process_count()))


def process_rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main_process() -> bool:
    """True in the one process that writes files and shows progress."""
    return process_rank() == 0


def wait_for_all() -> None:
    """Return once every process of the run has come here; at once if there is one alone.

    The processes wait on the host and for long: the main process may have to write more than a slow
    disk takes in the half an hour after which the GPUs' own collectives give up.
    """
    if is_connected():
        import torch.distributed as dist

        dist.barrier(group=_meeting_group())


def over_processes(values: Sequence[float], operation: str) -> list[float]:
    """Numbers, each the MAX, MIN or SUM of those of all processes of the run, in float64 and on the
    host: no GPU waits for it. Call it in every process; two on two busy cores took 0.15 ms.
    """
    if not is_connected():
        return list(values)
    import torch
    import torch.distributed as dist

    table = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(table, op=getattr(dist.ReduceOp, operation), group=_meeting_group())
    return table.tolist()


def is_connected() -> bool:
    """Whether this process has met the others of its run; False if there is one alone."""
    if process_count() == 1:
        return False
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


@cache
def _meeting_group() -> Any:
    """The group in which processes wait for each other."""
    import torch.distributed as dist

    return dist.new_group(backend="gloo", timeout=timedelta(seconds=LONGEST_WAIT_S))


# --------------------------------------------------------------------------- waiting for each other
# What the main process does alone before they are connected, the others wait for: they look for its
# file. A main process that fails says so in a file of its own, so that nobody waits for what will
# never come, whatever started the processes.

Made = TypeVar("Made")
FIRST_LOOK_S, LAST_LOOK_S = 0.05, 2.0  # between two looks, longer and longer


class ConnectionLost(TrainingFailed):
    """A process failed because another one was gone: not the cause, but what follows from it."""


def failure_file(file: Path) -> Path:
    """Where the main process of this start of the run says that it could not make a file."""
    # The launcher's number of the run is the same on all machines; without it, there is one alone.
    start = os.environ.get("TORCHELASTIC_RUN_ID") or os.getppid()
    return file.with_name(f"{TEMPORARY}failed-{start}-{file.stem}")


@contextmanager
def others_wait_for(file: Path) -> Iterator[None]:
    """The main process makes a file; if it fails, the processes that wait for it are told."""
    if process_count() == 1:
        yield
        return
    failed = failure_file(file)
    DISK.discard(failed)
    try:
        yield
    except BaseException as error:
        make_folder(failed.parent)
        failed.write_text(type(error).__name__, encoding="utf-8")
        raise


def wait_for(file: Path, look: Callable[[], Made | None]) -> Made:
    """What `look` reads of a file that the main process makes, as soon as that is not None.

    Raises ConnectionLost if the main process failed or is gone.
    """
    parent, pause_s = os.getppid(), FIRST_LOOK_S
    while True:
        failed = failure_file(file).exists()  # before the look: a retry would make both
        made = look()
        if made is not None:
            return made
        if failed:
            raise ConnectionLost("process 0 could not prepare the rows", hint="its error says why")
        if os.getppid() != parent:
            raise ConnectionLost("the launcher of this process is gone while it waited for rows")
        time.sleep(pause_s)
        pause_s = min(LAST_LOOK_S, 1.5 * pause_s)


# For all to join, and for one that is alive and does not come to an exchange of gradients; one that
# ends is noticed at once (docs/reliability.md). A model may be loaded meanwhile.
JOIN_S = 1800


def connect(device: Device) -> None:
    """Connect this process with the others of the run; nothing if it is alone. transformers does
    so with its arguments, on the CPU without a limit of ours, and a base that one process reads for
    all has to know of the others before.

    On CUDA also for tensors on the host, where offloaded gradients are clipped, and parts of a
    checkpoint agreed upon.

    Raises ConnectionLost if another one does not come.
    """
    if process_count() == 1:
        return
    from torch import distributed

    if distributed.is_initialized():
        return
    backend = "gloo" if device.type == "cpu" else "cuda:nccl,cpu:gloo"
    try:
        distributed.init_process_group(backend, timeout=timedelta(seconds=JOIN_S))
    except (distributed.DistStoreError, distributed.DistNetworkError) as error:
        raise ConnectionLost(
            f"not all of the {process_count()} processes joined the run within {JOIN_S / 60:g}"
            " minutes",
            hint=(
                "one of them hangs, or cannot reach the others over the network; its output is"
                " above"
            ),
        ) from error


def run_and_leave(main: Callable[[], int]) -> int:
    """What `main` does; its exit code, unless the process has left with it before.

    The process ends without taking the interpreter down: gloo's threads may still hold tensors, and
    asking for the interpreter's lock then aborts a process that had done its work (about one in
    eight here; https://github.com/pytorch/pytorch/pull/179291).
    """
    code: str | int | None = 1

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)

    atexit.register(leave)  # before anything else: called after everything else
    try:
        code = main()
    except SystemExit as error:
        code = error.code
        raise
    return code


# --------------------------------------------------------------------------- memory


def free_host_bytes() -> int:
    """Memory of this machine that programs can have without swapping."""
    import psutil  # comes with accelerate

    return int(psutil.virtual_memory().available)


def held_bytes(*models: Any) -> int:
    """Memory of the models' weights, of divided ones as if whole. Experts in 4 bits are buffers,
    beside a parameter of one number that is seen at their shape.
    """
    tensors = (one for model in models for one in chain(model.parameters(), model.buffers()))
    return sum(one.element_size() * (one.numel() if any(one.stride()) else 1) for one in tensors)


def resident_bytes(*, highest: bool = False) -> int:
    """This process's resident memory now, or its highest; the highest where the system tells no
    other.
    """
    field = "VmHWM:" if highest else "VmRSS:"
    with suppress(OSError, ValueError, IndexError):
        for line in text_of(Path("/proc/self/status")).splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class MemoryMeter:
    """Peak memory of one device since the meter was made.

    On a GPU: what torch allocated (and reserved). On the CPU: how much resident memory has grown
    since before the model was loaded, because imports and tokenised rows are not part of it.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.cuda: Any = None  # torch's counters; None: there is no GPU
        limit = os.environ.get(MEMORY_LIMIT, "")
        self.total_bytes = int(limit) if limit.isdigit() else None  # None: not known
        if device.type == "cuda":
            import torch

            self.cuda = torch.cuda
            self.total_bytes = int(torch.cuda.get_device_properties(device).total_memory)
        self.counter = "rss_growth" if self.cuda is None else "allocated"  # what is counted
        self.reset()
        self.baseline_bytes = resident_bytes() if self.cuda is None else 0

    def reset(self) -> None:
        """Forget the peak so far, keep the baseline."""
        if self.cuda is not None:
            self.cuda.reset_peak_memory_stats(self.device)
            return
        with suppress(OSError):  # 5: reset this process's high-water mark (proc(5), clear_refs)
            Path("/proc/self/clear_refs").write_text("5")

    def peak_bytes(self) -> int:
        """The peak since the last `reset`."""
        if self.cuda is not None:
            return int(self.cuda.max_memory_allocated(self.device))
        return max(0, resident_bytes(highest=True) - self.baseline_bytes)

    def in_use(self) -> tuple[int, int | None]:
        """(bytes now, the limit if it is known): what torch holds of the GPU, or what this process
        holds of the computer's memory.
        """
        if self.cuda is not None:
            return int(self.cuda.memory_reserved(self.device)), self.total_bytes
        return resident_bytes(), self.total_bytes

    def reserved_bytes(self) -> int | None:
        """What torch reserved at its peak; None on the CPU."""
        return None if self.cuda is None else int(self.cuda.max_memory_reserved(self.device))
