"""Whether the attention and the fused kernels of each stage run on this machine.

Whether a package fits the installed PyTorch shows when the trainer imports it, before it loads the
model.
"""

from __future__ import annotations

from collections.abc import Iterator

from advisor.ground.errors import Fault
from advisor.ground.extras import Checked
from advisor.launch.call import Call
from advisor.methods.kernels import (
    CPP_NEEDS,
    HUB_PACKAGE,
    TRITON_NEEDS,
    Kernel,
    hub_install,
    kernel,
    triton_is_interpreted,
    why_no_torch_compile,
    why_no_triton,
)
from advisor.plan.entries import Entry
from advisor.record.smaller import key_path

PHASE = "machine"
INSTEAD = {"attention": "sdpa", "kernels": "none"}
ALLOWED = {
    "attention": "attention: sdpa or eager need no package; auto takes what works",
    "kernels": "kernels: none, or auto, which takes what works",
}


def check(call: Call) -> Checked:
    """Kernels that have no code for the device, no package or no compiler."""
    return Checked(lacking=[fault for entry in call.left for fault in _faults(call, entry)])


def _faults(call: Call, entry: Entry) -> Iterator[Fault]:
    device, at = call.run.plan.launch.device, f"stage {entry.name}"
    for key in ("attention", "kernels"):
        one = kernel(getattr(entry.stage, key))
        if one is None:
            continue
        named, allowed = f"{at}: {key} is {one.name}", ALLOWED[key]
        back = f"--set {key_path(entry, key)}={INSTEAD[key]}"
        if device in ("cuda", "rocm"):
            for why, way_in in _obstacles(call, one):
                what = f"{named}, {why}"
                yield Fault(where=named, what=what, allowed=allowed, hint=way_in + back)
        elif not (one.name == "liger" and triton_is_interpreted()):
            needs = f"needs a CUDA or ROCm GPU, and `launch.device` is {device}"
            what = f"{key} is {one.name}, which {needs}"
            yield Fault(where=at, what=what, allowed=allowed, hint=back)
    if entry.stage.compile and (why := why_no_torch_compile(device)):
        yield Fault(
            where=at,
            what=f"compile is true, and {why}",
            allowed="compile: false trains the same without",
            hint=f"{TRITON_NEEDS if device != 'cpu' else CPP_NEEDS}; or"
            f" --set {key_path(entry, 'compile')}=false",
        )


def _obstacles(call: Call, one: Kernel) -> Iterator[tuple[str, str]]:
    device = call.run.plan.launch.device
    if device not in one.devices:
        yield f"which has no kernels for {device}", ""
        return
    for gpu in call.gpus.gpus:
        if not one.runs_on(gpu.compute_capability):
            has = ".".join(map(str, gpu.compute_capability or ()))
            yield f"which needs {one.needs}, and {gpu.name} has {has}", ""
            break
    width = call.shape.head_dim if call.shape is not None else None
    if one.widest_head and width and width > one.widest_head:
        widest = f"whose heads are at most {one.widest_head} wide"
        yield f"{widest}, and those of the model are {width}", ""
    if why := one.why_not_installed:
        packages = " or ".join(one.packages)
        install = hub_install() if HUB_PACKAGE in one.packages else str(one.package)
        yield f"which needs the package {packages}: {why}", f"pip install {install}, or "
    elif one.triton and (why := why_no_triton()):
        yield f"which is compiled here, and {why}", f"{TRITON_NEEDS}; or "
