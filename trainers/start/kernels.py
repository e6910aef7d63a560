"""Kernels that a run needs besides torch's own: whether they work here, found out before the model
loads.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from functools import cache
from typing import Any, NamedTuple

from advisor.ground.errors import Fault
from advisor.methods import kernels as installed
from advisor.methods.kernels import Kernel, kernel
from advisor.plan.model import Stage
from trainers.job.types import Device


def why_no_triton() -> str:
    """Why Triton cannot run its kernels here; empty if nothing speaks against it."""
    missing = installed.why_no_triton()
    if missing:
        return missing
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
        f" numbers, slower steps; {installed.TRITON_NEEDS}"
    )


def set_triton(on: bool) -> None:
    """Switch TRL's use of Triton on or off. All its kernels ask one of these two names."""
    logprob: Any = importlib.import_module("trl.kernels.chunked_logprob")
    logprob._TRITON_AVAILABLE = on
    utils: Any = importlib.import_module("trl.trainer.utils")
    utils.is_triton_available = lambda: on


# --------------------------------------------------------------------------- other kernels


def kernel_faults(stage: Stage, device: Device) -> list[Fault]:
    """The kernels that the stage names and this machine cannot load: a GPU too old, a package that
    is not installed or was built for another torch, no compiler. `auto` is never at fault.
    """
    faults = []
    for key, instead in (("attention", "sdpa"), ("kernels", "none")):
        one = kernel(getattr(stage, key))
        if one is None:
            continue
        if reason := why_not(one, device):
            faults.append(
                Fault(
                    where=f"stage {stage.name}",
                    what=f"{key} is {one.name}, {reason.what}",
                    allowed=f"{key}: {instead}, or auto, which takes what works",
                    hint=f"{reason.hint}set {key}: {instead}",
                )
            )
    if stage.compile and (why := installed.why_no_torch_compile(device.type)):
        needs = installed.CPP_NEEDS if device.type == "cpu" else installed.TRITON_NEEDS
        faults.append(
            Fault(
                where=f"stage {stage.name}",
                what=f"compile is true, and {why}",
                allowed="compile: false trains the same without",
                hint=f"{needs}; or set compile: false",
            )
        )
    return faults


class WhyNot(NamedTuple):
    """Why a kernel cannot be used."""

    what: str  # goes on from "attention is X, "
    hint: str = ""  # ends with "or "


def why_not(one: Kernel, device: Device) -> WhyNot | None:
    """Why this machine cannot load the kernel; None if nothing speaks against it. Imports its
    module, whose libraries may be built for another torch.
    """
    if device.type != "cuda":
        if one.name == "liger" and installed.triton_is_interpreted():
            return None
        return WhyNot(f"which needs a CUDA or ROCm GPU, this stage runs on {device.type}")
    build, capability = gpu_of(device)
    if build not in one.devices:
        return WhyNot(f"which has no kernels for {build}")
    if not one.runs_on(capability):
        has = ".".join(map(str, capability or ()))
        return WhyNot(f"which needs {one.needs}, and this GPU has {has}")
    if reason := one.why_not_installed:
        wanted = installed.hub_install() if one.hub else one.package
        return WhyNot(
            f"which needs the package {' or '.join(one.packages)}: {reason}",
            f"pip install {wanted}, or ",
        )
    if one.triton and (reason := why_no_triton()):
        return WhyNot(f"which is compiled here, and {reason}", f"{installed.TRITON_NEEDS}; or ")
    if one.module and installed.is_installed(one.module):
        return _why_not_imported(one.module, str(one.package))
    return None


def gpu_of(device: Device) -> tuple[str, tuple[int, ...] | None]:
    """('cuda' or 'rocm', the GPU's compute capability; None where AMD counts otherwise)."""
    import torch

    if torch.version.hip:
        return "rocm", None
    return "cuda", tuple(torch.cuda.get_device_capability(device))


def _why_not_imported(module: str, package: str) -> WhyNot | None:
    try:
        importlib.import_module(module)
    except Exception as error:
        return WhyNot(
            f"but {_built(package)} cannot be loaded: {first_line(error)}",
            "it was probably built for another torch: pip install --force-reinstall"
            f" --no-build-isolation --no-deps {package}, or ",
        )
    return None


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
            where=f"stage {stage}",
            what=f"{_built('bitsandbytes')} cannot use this GPU: {reason}",
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
