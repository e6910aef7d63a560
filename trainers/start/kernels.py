"""Kernels that a run needs besides torch's own: whether they work here, found out before the model
loads; and those that go into a model's layers, fused (plan key `kernels`) or compiled (`compile`).
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import MethodType
from typing import Any

from advisor.ground.errors import Fault, MachineNotReady
from advisor.methods import kernels as installed
from advisor.methods.kernels import AUTO, Kernel, kernel
from advisor.plan.model import Stage
from trainers.job import Device, Model
from trainers.job.job import Job
from trainers.job.libraries import first_line
from trainers.say.progress import tell


def why_no_triton() -> str:
    """Why Triton cannot run its kernels here; empty if nothing speaks against it."""
    missing = installed.why_no_triton()
    try:
        missing or importlib.import_module("triton")
    except Exception as error:
        return f"triton cannot be imported ({first_line(error)})"
    return missing


def use_triton_if_it_works(device_type: str) -> str:
    """Let TRL compute its losses in plain torch if Triton does not work; what a person should know
    of it, or an empty text.

    TRL has the same computation, in tiles, for devices without Triton, and takes Triton wherever it
    can be imported: the first step would fail. Call it before a trainer is made.
    """
    reason = why_no_triton() if device_type == "cuda" else ""
    if not reason:
        return ""
    # All of TRL's kernels ask one of these two names.
    logprob: Any = importlib.import_module("trl.kernels.chunked_logprob")
    logprob._TRITON_AVAILABLE = False
    utils: Any = importlib.import_module("trl.trainer.utils")
    utils.is_triton_available = lambda: False
    return (
        f"the loss is computed without Triton's kernels, because {reason}: the same numbers, slower"
        f" steps; {installed.TRITON_NEEDS}"
    )


# --------------------------------------------------------------------------- what is missing


def kernel_faults(stage: Stage, device: Device) -> list[Fault]:
    """The kernels that the stage names and this machine cannot load: a GPU too old, a package that
    is not installed or was built for another torch, no compiler. `auto` is never at fault.
    """
    at, faults = f"stage {stage.name}", []
    for key, instead in (("attention", "sdpa"), ("kernels", "none")):
        one = kernel(getattr(stage, key))
        if one is not None and (reason := why_not(one, device)):
            what = f"{key} is {one.name}, which {reason.what}"
            allowed = f"{key}: {instead}, or auto, which takes what works"
            hint = f"{reason.hint}{', or ' if reason.hint else ''}set {key}: {instead}"
            faults.append(Fault(where=at, what=what, allowed=allowed, hint=hint))
    if stage.compile and (why := installed.why_no_torch_compile(device.type)):
        needs = installed.CPP_NEEDS if device.type == "cpu" else installed.TRITON_NEEDS
        allowed, hint = "compile: false trains the same without", f"{needs}; or set compile: false"
        what = f"compile is true, and {why}"
        faults.append(Fault(where=at, what=what, allowed=allowed, hint=hint))
    return faults


def why_not(one: Kernel, device: Device) -> Fault | None:
    """Why this machine cannot load the kernel, whose name goes before the words; None if nothing
    speaks against it. Imports its module, whose libraries may be built for another torch.
    """
    if device.type != "cuda":
        if one.name == "liger" and installed.triton_is_interpreted():
            return None
        return Fault(what=f"needs a CUDA or ROCm GPU, and this stage runs on {device.type}")
    build, capability = gpu_of(device)
    if build not in one.devices:
        return Fault(what=f"has no kernels for {build}")
    if not one.runs_on(capability):
        has = ".".join(map(str, capability or ()))
        return Fault(what=f"needs {one.needs}, and this GPU has {has}")
    if reason := one.why_not_installed:
        wanted = installed.hub_install() if one.hub else one.package
        what = f"needs the package {' or '.join(one.packages)}: {reason}"
        return Fault(what=what, hint=f"pip install {wanted}")
    if one.triton and (reason := why_no_triton()):
        return Fault(what=f"is compiled here, and {reason}", hint=installed.TRITON_NEEDS)
    if one.module and installed.is_installed(one.module):
        try:
            importlib.import_module(one.module)
        except Exception as error:
            again = "pip install --force-reinstall --no-build-isolation --no-deps"
            return Fault(
                what=f"needs {one.package}, which cannot be loaded: {first_line(error)}",
                hint=f"it was probably built for another torch: {again} {one.package}",
            )
    return None


def gpu_of(device: Device) -> tuple[str, tuple[int, ...] | None]:
    """('cuda' or 'rocm', the GPU's compute capability; None where AMD counts otherwise)."""
    import torch

    if torch.version.hip:
        return "rocm", None
    return "cuda", tuple(torch.cuda.get_device_capability(device))


def bitsandbytes_faults(*, stage: str) -> list[Fault]:
    """What keeps bitsandbytes from using the GPU: it has no library for this torch's CUDA."""
    import torch

    try:
        library: Any = importlib.import_module("bitsandbytes.cextension").lib
        if getattr(type(library), "compiled_with_cuda", False):
            return []
        reason = vars(library).get("error_msg") or "it found no library for this GPU"
    except Exception as error:
        reason = first_line(error)
    build = torch.version.cuda or torch.version.hip
    what = f"bitsandbytes cannot use this GPU: {str(reason).splitlines()[0]}"
    allowed = f"a bitsandbytes with a library for the CUDA of torch ({build})"
    hint = (
        "`python -m bitsandbytes` says what it looks for; or train without it (quantization: null,"
    )
    hint += " optimizer: adamw_fused)"
    return [Fault(where=f"stage {stage}", what=what, allowed=allowed, hint=hint)]


# --------------------------------------------------------------------------- fused layers

FUSED = "_fused_layers"  # set on a model that has them: the word of the plan
# What of Liger is put in: not its losses, which would replace the model's whole forward (ours never
# hold full logits), and not its LayerNorm, parts of which are what PEFT wraps.
LIGER = {
    "rope": True, "rms_norm": True, "swiglu": True, "geglu": True, "layer_norm": False,
    "cross_entropy": False, "fused_linear_cross_entropy": False,
}  # fmt: skip


def fuse_layers(model: Model, job: Job, device: Device) -> None:
    """Put the stage's fused kernels into a freshly loaded model, or say why not.

    Raises MachineNotReady if they fail half-way.
    """
    word = job.stage.kernels
    off = word == AUTO and device.type != "cuda" and not installed.triton_is_interpreted()
    if word == "none" or off:
        return
    name = "liger" if word == AUTO else word
    if reason := _why_unfit(name, model, device):
        tell(job, f"{'' if word == AUTO else 'WARNING: '}kernels: none instead of {name}: {reason}")
        return
    try:
        put_in(model, name)
    except Exception as error:
        raise MachineNotReady(
            f"the kernels of {name} do not fit the model: {first_line(error)}",
            where=f"stage {job.stage.name}",
            hint="set kernels: none",
        ) from error
    tell(job, f"kernels: {name}, in the layers of {model.config.model_type}")


def put_in(model: Any, name: str) -> None:
    """Put fused kernels into the model's layers: Liger's, or those that transformers finds on the
    hub. Liger also replaces the functions of the architecture, for models that load later, too.
    """
    if name == "hub":
        model.set_use_kernels(True)
    elif name == "liger":
        from transformers.integrations import apply_liger_kernel

        apply_liger_kernel(model, LIGER)
    setattr(model, FUSED, name)


def fused_in(model: Model) -> str:
    """The word of the fused kernels in a model, whatever module is on it; 'none' without any."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return str(getattr(base, FUSED, "none"))


def _why_unfit(name: str, model: Model, device: Device) -> str:
    """Why the kernels are not for this machine or model; empty if nothing speaks against it."""
    one = kernel(name)
    reason = why_not(one, device) if one is not None else None
    if reason is not None:
        return f"it {reason.what}{f' ({reason.hint})' if reason.hint else ''}"
    if name == "liger":
        patches: Any = importlib.import_module("liger_kernel.transformers.monkey_patch")
        if model.config.model_type not in patches.MODEL_TYPE_TO_APPLY_LIGER_FN:
            return f"it has no kernels for {model.config.model_type} models"
    return ""


# --------------------------------------------------------------------------- compiled layers

# Widths change from batch to batch, and a layer is compiled anew for a kind of input it has not
# seen: more than these and torch falls back to plain code without a word (its own default is 8).
MOST_VERSIONS = 64


def compile_layers(model: Model, *, backend: str = "inductor") -> str:
    """Compile the forward of the model's repeated layers, in training alone; a line that says how
    many.

    Each kind of layer is compiled once and used for all of its layers (regional compilation).
    Adapters, gradient checkpointing, checkpoints and copies of the model see nothing of it.
    Evaluation and generated answers, whose shapes change with every token, run as they are, and so
    does a layer whose forward a library has replaced.
    """
    config: Any = importlib.import_module("torch._dynamo.config")
    config.recompile_limit = max(config.recompile_limit, MOST_VERSIONS)
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = set(getattr(base, "_no_split_modules", None) or ())
    layers = [
        module
        for module in base.modules()
        if type(module).__name__ in names and "forward" not in module.__dict__
    ]
    for layer in layers:
        kind: Any = type(layer)
        layer.forward = MethodType(_in_training(kind, backend), layer)
    if not layers:
        return "compile: nothing, since transformers names no repeated layers of this model"
    return f"compile: {len(layers)} layers, of which each kind is compiled in the first steps"


@functools.cache
def _in_training(kind: Any, backend: str) -> Callable[..., Any]:
    """The forward of a kind of layer: compiled in training, else as it was. A plain function of the
    layer, so that a copy of a layer uses its own weights.
    """
    import torch

    plain: Any = kind.forward
    compiled: Any = torch.compile(plain, backend=backend)

    @functools.wraps(plain)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return (compiled if self.training else plain)(self, *args, **kwargs)

    return forward
