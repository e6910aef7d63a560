"""The kernels that a plan names, before a run starts: the GPU is too old for one, its package is
missing or of another version, there is no compiler. Each fault says what works instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from advisor.ground.errors import Fault
from advisor.ground.installed import (
    CPP_NEEDS,
    HUB_PACKAGE,
    TRITON_NEEDS,
    hub_install,
    triton_is_interpreted,
    why_no_torch_compile,
    why_no_triton,
)
from advisor.ground.types import Gpu, ModelShape
from advisor.methods.kernels import Kernel, kernel
from advisor.plan.entries import Entry
from advisor.plan.model import Plan
from advisor.plan.smaller import key_path

INSTEAD = {"attention": "sdpa", "kernels": "none"}
ALLOWED = {
    "attention": "attention: sdpa or eager need no package; auto takes what works",
    "kernels": "kernels: none, or auto, which takes what works",
}


def kernel_faults(
    plan: Plan, todo: Sequence[Entry], gpus: Sequence[Gpu], shape: ModelShape | None
) -> Iterable[Fault]:
    """The kernels of every stage that cannot run on this machine.

    Whether a package fits the installed PyTorch shows when the trainer imports it, before it loads
    the model.

    Args:
        gpus: Those that the run takes.
        shape: The shape of the plan's model, if it is known.
    """
    device = plan.launch.device
    for entry in todo:
        for key in ("attention", "kernels"):
            one = kernel(getattr(entry.stage, key))
            if one is None:
                continue
            if device in ("cuda", "rocm"):
                yield from _faults(entry, key, one, device, gpus, shape)
            elif not (one.name == "liger" and triton_is_interpreted()):
                yield Fault(
                    where=f"stage {entry.name}",
                    what=f"{key} is {one.name}, which needs a CUDA or ROCm GPU,"
                    f" and `launch.device` is {device}",
                    allowed=ALLOWED[key],
                    hint=f"--set {key_path(entry, key)}={INSTEAD[key]}",
                )
        if entry.stage.compile and (why := why_no_torch_compile(device)):
            yield Fault(
                where=f"stage {entry.name}", what=f"compile is true, and {why}",
                allowed="compile: false trains the same without",
                hint=f"{TRITON_NEEDS if device != 'cpu' else CPP_NEEDS}; or"
                f" --set {key_path(entry, 'compile')}=false",
            )  # fmt: skip


def _faults(
    entry: Entry,
    key: str,
    one: Kernel,
    device: str,
    gpus: Sequence[Gpu],
    shape: ModelShape | None,
) -> Iterable[Fault]:
    at = f"stage {entry.name}: {key} is {one.name}"
    back = f"--set {key_path(entry, key)}={INSTEAD[key]}"
    if device not in one.devices:
        yield Fault(
            where=at,
            what=f"{at}, which has no kernels for {device}",
            allowed=ALLOWED[key],
            hint=back,
        )
        return
    old = next((gpu for gpu in gpus if not one.runs_on(gpu.compute_capability)), None)
    if old is not None:
        has = ".".join(map(str, old.compute_capability or ()))
        yield Fault(
            where=at,
            what=f"{at}, which needs {one.needs}, and {old.name} has {has}",
            allowed=ALLOWED[key],
            hint=back,
        )
    width = shape.head_dim if shape is not None else None
    if one.widest_head and width and width > one.widest_head:
        yield Fault(
            where=at,
            what=f"{at}, whose heads are at most {one.widest_head} wide, and those of the model"
            f" are {width}",
            allowed=ALLOWED[key],
            hint=back,
        )  # fmt: skip
    if why := one.why_not_installed:
        yield Fault(
            where=at,
            what=f"{at}, which needs {packages(one)}: {why}",
            allowed=ALLOWED[key],
            hint=f"pip install {install(one)}, or {back}",
        )
    elif one.triton and (why := why_no_triton()):
        yield Fault(
            where=at,
            what=f"{at}, which is compiled here, and {why}",
            allowed=ALLOWED[key],
            hint=f"{TRITON_NEEDS}; or {back}",
        )


def packages(one: Kernel) -> str:
    """'the package flash-attn or kernels'."""
    return f"the package {' or '.join(one.packages)}"


def install(one: Kernel) -> str:
    """The words after `pip install` that bring the kernel."""
    return hub_install() if HUB_PACKAGE in one.packages else str(one.package)
