"""Kernels that a run needs besides torch's own: whether they work here, found out before the model
loads.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import shutil
import sysconfig
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from advisor.ground.errors import Fault

# Value of `attention` -> (package to import, its name in pip).
ATTENTION_PACKAGES = {"flash_attention_2": ("flash_attn", "flash-attn")}
HUB_KERNELS = "kernels"  # brings ready-built kernels from the hub; transformers falls back to it


def why_no_triton() -> str:
    """Why Triton cannot run its kernels here; empty if nothing speaks against it.

    Triton compiles a small C file for each kernel that it starts for the first time: it needs a C
    compiler (CC, else gcc or clang) and Python's header files
    (triton/runtime/build.py, triton/backends/nvidia/driver.c).
    """
    if find_spec("triton") is None:
        return "the package triton is not installed"
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if not compiler or shutil.which(compiler.split()[0]) is None:
        named = os.environ.get("CC")
        return f"CC names {named}, which is not there" if named else "there is no C compiler (gcc)"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        return f"Python's header files are not installed ({header} is missing)"
    try:
        importlib.import_module("triton")
    except Exception as error:
        return f"triton cannot be imported ({first_line(error)})"
    return ""


@cache
def triton_works() -> bool:
    """Whether TRL's kernels in Triton can run here; if not, TRL computes the same in plain torch.

    Without this, TRL takes Triton wherever it can be imported, and the first step fails.
    """
    return not why_no_triton()


def use_triton_if_it_works(device_type: str) -> str:
    """Let TRL compute its losses in plain torch if Triton does not work; what a person should know
    of it, or an empty text.

    TRL has the same computation, in tiles, for devices without Triton. Call it before a trainer is
    made.
    """
    if device_type != "cuda" or triton_works():
        return ""
    set_triton(False)
    return (
        f"the loss is computed without Triton's kernels, because {why_no_triton()}: the same"
        " numbers, slower steps; Triton needs its package, gcc and the Python headers (python3-dev)"
    )


def set_triton(on: bool) -> None:
    """Switch TRL's use of Triton on or off. All its kernels ask one of these two names."""
    logprob: Any = importlib.import_module("trl.kernels.chunked_logprob")
    logprob._TRITON_AVAILABLE = on
    utils: Any = importlib.import_module("trl.trainer.utils")
    utils.is_triton_available = lambda: on


# --------------------------------------------------------------------------- other kernels


def attention_faults(attention: str, *, stage: str) -> list[Fault]:
    """What keeps the kernels of an attention from being loaded: its package is not installed, or
    was built for another torch.
    """
    if attention not in ATTENTION_PACKAGES:
        return []
    module, package = ATTENTION_PACKAGES[attention]
    if find_spec(module) is None:
        if find_spec(HUB_KERNELS) is not None:
            return []
        return [
            Fault(
                what=(
                    f"stage {stage}: attention is {attention}, which needs the package {package} or"
                    f" {HUB_KERNELS}, and neither is installed"
                ),
                allowed="attention: sdpa or eager need no package",
                hint=f"pip install {HUB_KERNELS}, or set attention: sdpa",
            )
        ]
    try:
        importlib.import_module(module)
    except Exception as error:
        return [
            Fault(
                what=(
                    f"stage {stage}: attention is {attention}, but {_built(package)} cannot be"
                    f" loaded: {first_line(error)}"
                ),
                allowed="attention: sdpa or eager need no package",
                hint=(
                    f"it was probably built for another torch: pip install --force-reinstall"
                    f" --no-build-isolation --no-deps {package}, or set attention: sdpa"
                ),
            )
        ]
    return []


def bitsandbytes_faults(*, stage: str) -> list[Fault]:
    """What keeps bitsandbytes from using the GPU: it has no library for this torch's CUDA."""
    try:
        native: Any = importlib.import_module("bitsandbytes.cextension")
    except Exception as error:
        reason = first_line(error)
    else:
        if getattr(type(native.lib), "compiled_with_cuda", False):
            return []
        own = vars(native.lib).get("error_msg", "")
        reason = str(own).splitlines()[0] if own else "it found no library for this GPU"
    import torch

    build = torch.version.cuda or torch.version.hip
    return [
        Fault(
            what=f"stage {stage}: {_built('bitsandbytes')} cannot use this GPU: {reason}",
            allowed=f"a bitsandbytes with a library for the CUDA of torch ({build})",
            hint=(
                "`python -m bitsandbytes` says what it looks for; or train without it"
                " (quantization: null, optimizer: adamw_fused)"
            ),
        )
    ]


def _built(package: str) -> str:
    """'flash-attn 2.8.3 (torch 2.13.0)'."""
    import torch

    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        version = ""
    return f"{package}{f' {version}' if version else ''} (with torch {torch.__version__})"


def first_line(error: BaseException) -> str:
    """The first line of an error's text; its type if it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
