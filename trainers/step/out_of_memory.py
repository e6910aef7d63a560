"""When memory runs out: what such an error looks like, and what the stage was doing.

A trainer that runs out of memory ends. `advise run` starts it again with a smaller micro-batch and
more accumulation, from its last checkpoint or the beginning: adjusted.json says which.
"""

from __future__ import annotations

import errno
import re
from dataclasses import replace

from advisor.ground.errors import OutOfMemory
from advisor.record.files import try_read_part
from advisor.record.run import ADJUSTED
from advisor.record.smaller import valid_adjustments
from advisor.record.stage import Adjusted
from trainers.job.job import Job
from trainers.say.progress import tell

# What torch, its libraries and the system say, in lower case.
WORDS = (
    "out of memory",  # CUDA, HIP, XPU, MPS, NCCL, bitsandbytes
    "defaultcpuallocator",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "unable to allocate",
    "failed to allocate",
    "alloc_failed",  # CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_ALLOC_FAILED
    "std::bad_alloc",
    "bad allocation",
    "can't start new thread",  # there is no room for its stack
    "failed to map segment from shared object",
    "error return without exception set",  # of an extension in C whose allocation failed
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or what it was raised from, says that memory ran out."""
    return _root(error) is not None


def _root(error: BaseException | None) -> BaseException | None:
    """The error that says that memory ran out: this one, or one that it was raised from."""
    while error is not None:
        text = str(error).lower()
        if (
            isinstance(error, MemoryError | OutOfMemory)
            or type(error).__name__ == "OutOfMemoryError"
            or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
            or (
                isinstance(error, RuntimeError | OSError | ImportError | SystemError)
                and any(words in text for words in WORDS)
            )
        ):
            return error
        error = error.__cause__
    return None


def first_line(error: BaseException) -> str:
    """What an error says of memory, in a line, without the place in torch's own code."""
    root = _root(error) or error
    text = (str(root).splitlines() or [""])[0]
    text = re.sub(r"^\[enforce fail at .*?\] err == 0\. ", "", text).strip()
    return text or "the system has no more memory for this process"


# --------------------------------------------------------------------------- a smaller micro-batch


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
