"""The libraries that train: the versions that were tested, without words, bars and questions of
their own; and code that comes with a model.
"""

from __future__ import annotations

import errno
import functools
import importlib.metadata
import logging
import re
import sys
import threading
import tomllib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from advisor.ground.errors import Fault, InputError, MachineNotReady, OutOfMemory
from advisor.ground.progress import BYTES, Wait, board, track
from advisor.ground.resources import install_line, resource_root

ALWAYS = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "safetensors")


def check_versions(*, quantized: bool) -> dict[str, str]:
    """Library -> installed version; of bitsandbytes too, if weights or the optimizer need it.

    Raises MachineNotReady, with the installed and the wanted version of each library that is
    missing or untested.
    """
    from packaging.requirements import Requirement

    # The `train` extra is the only place that lists what the trainers have been tested with.
    project = tomllib.loads((resource_root() / "pyproject.toml").read_text("utf-8"))["project"]
    tested = [Requirement(line) for line in project["optional-dependencies"]["train"]]
    wanted = {one.name: one.specifier for one in tested}
    faults, versions = [], {}
    for name in (*ALWAYS, *(["bitsandbytes"] if quantized else [])):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            what = f"{name} is not installed"
        else:
            if wanted[name].contains(versions[name], prereleases=True):
                continue
            what = (
                f"{name} {versions[name]} is installed, which the trainers have not been tested"
                " with"
            )
        allowed = f"wanted: {name}{wanted[name]}"
        faults.append(Fault(what=what, allowed=allowed, hint=install_line()))
    if faults:
        raise MachineNotReady(faults=faults)
    return versions | {"python": ".".join(map(str, sys.version_info[:3]))}


def quiet_libraries() -> None:
    """Silence warnings, logs, progress bars and questions of the libraries: we count ourselves what
    is dropped or changed. Chat templates get their limits.
    """
    import datasets
    import huggingface_hub.utils
    import transformers
    from transformers import dynamic_module_utils

    from advisor.data.templates.bounded import bound_chat_templates

    warnings.filterwarnings("ignore")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    transformers.utils.logging.set_tqdm_hook(watch_loading)
    watch_downloads(huggingface_hub.utils.tqdm)
    # It would ask on the terminal whether to run a model's own code, where a `y` runs it.
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    bound_chat_templates()


# --------------------------------------------------------------------------- what they wait for

LOADING = "Loading weights"  # what transformers calls it
TRANSFER = "Downloading bytes"  # a second bar of the hub for the same file, before decompression


def watch_loading(
    factory: Callable[..., Any], given: Sequence[Any], named: Mapping[str, Any]
) -> Any:
    """What transformers goes through in place of a bar; a hook for its `set_tqdm_hook`."""
    if named.get("desc") != LOADING or not given:
        return factory(*given, **named)
    return track(given[0], "reading weights", unit="tensors")


def watch_downloads(bars: Any) -> None:
    """Let every bar of this class that counts bytes tell of them; files that come at the same time,
    in threads, are one wait.

    The class itself is changed, since modules of the hub hold it by name.
    """
    if getattr(bars, "is_watched", False):
        return
    begin, lock = bars.__init__, threading.RLock()
    wait = Wait("")  # the one that is open
    running, seen = set[int](), list[Any]()  # its bars

    @functools.wraps(begin)
    def new_begin(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        if kwargs.get("unit") == "B" and not str(kwargs.get("desc")).startswith(TRANSFER):
            follow(self)

    def follow(bar: Any) -> None:
        nonlocal wait
        update, close = bar.update, bar.close

        def new_update(count: float | None = 1) -> Any:
            with lock:
                wait.total = sum(int(one.total or 0) for one in seen)
                wait.at(wait.done + int(count or 0))
            return update(count)

        def new_close() -> None:
            with lock:
                running.discard(id(bar))
                if not running:
                    board.close(wait)
            close()

        with lock:
            if not running:
                seen.clear()
                wait = board.open("downloading", unit=BYTES, done=bar.n)
            else:
                wait.done += bar.n  # some of it may be there already
            seen.append(bar)
            running.add(id(bar))
        bar.update, bar.close = new_update, new_close

    bars.__init__, bars.is_watched = new_begin, True


# --------------------------------------------------------------------------- code of models

KEY = "trust_remote_code"  # which every load of ours passes: the plan says whether it runs


def refused_code(error: BaseException, model: object = "the model") -> InputError | None:
    """The error of a model whose own code was refused; None for any other error."""
    if not isinstance(error, ValueError) or KEY not in str(error):
        return None
    return InputError(
        "it comes with Python code of its own, which was not run",
        where=str(model),
        allowed="a model that transformers knows",
        hint=f"{KEY}: true in the plan runs that code with your rights; read it first",
    )


# --------------------------------------------------------------------------- what they say


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if isinstance(error, KeyError):
        text = f"{text} is missing or not known"
    # The heading of a list of errors says nothing without the first of them.
    return f"{text} {lines[1]}" if text.endswith(":") and len(lines) > 1 else text


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


def lack_of_memory(error: BaseException | None) -> str | None:
    """What an exception, or one that it was raised from, says of lacking memory, in one line and
    without the place in torch's own code; None if it says nothing of it.
    """
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
            line = (str(error).splitlines() or [""])[0]
            line = re.sub(r"^\[enforce fail at .*?\] err == 0\. ", "", line).strip()
            return line or "the system has no more memory for this process"
        error = error.__cause__
    return None
