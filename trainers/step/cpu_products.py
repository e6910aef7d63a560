"""Float32 matrix products on the CPU by oneDNN where MKL leaves half of the processor idle.

torch multiplies float32 matrices by MKL, which computes with AVX2 on processors that are not
Intel's, whatever they offer. oneDNN, which torch brings along, computes with AVX-512. Both add in
float32 and in a fixed order, so losses agree to rounding and a run repeats to the last bit.

Measured on an EPYC with AVX-512, torch 2.13, one thread, the shapes of SmolLM2-135M: 95 to 107
GFLOP/s by MKL and 165 to 240 by oneDNN, forward and backward.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainers.job.types import Device

SMALLEST = 2**20  # multiplications of a product; below it the call itself takes longer
_library: Any = None  # keeps the kernels registered while it lives


def use_faster_products(device: Device) -> bool:
    """Let oneDNN multiply float32 matrices in this process, if this processor gains by it; whether
    it does. A second call changes nothing.
    """
    global _library
    if device.type != "cpu" or not (leaves_units_idle() and _has_both()):
        return False
    if _library is None:
        _library = _replace_products()
    return True


def leaves_units_idle(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether MKL uses less of this processor than there is: it has AVX-512 and is not Intel's.
    Decided by what the processor is, not by a measurement, so that a resumed run computes alike.
    """
    found: dict[str, str] = {}
    with suppress(OSError):
        for line in cpuinfo.read_text("utf-8", "replace").splitlines():
            name, _, value = line.partition(":")
            found.setdefault(name.strip(), value.strip())
    vendor, flags = found.get("vendor_id", ""), found.get("flags", "").split()
    return vendor not in ("", "GenuineIntel") and "avx512f" in flags


def _has_both() -> bool:
    """Whether this torch has both libraries."""
    import torch

    return torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()


def _replace_products() -> Any:
    """Put oneDNN behind `mm` and `addmm` of the CPU, which linear layers, their gradients and
    attention written out come down to.
    """
    import torch

    linear = torch.ops.mkldnn._linear_pointwise.default
    plain_mm = torch.library.get_kernel("aten::mm", "CPU")
    plain_addmm = torch.library.get_kernel("aten::addmm", "CPU")
    float32 = torch.float32

    def suits(a: Any, b: Any) -> bool:
        return (
            a.dtype is float32
            and b.dtype is float32
            and a.shape[0] * a.shape[1] * b.shape[1] >= SMALLEST
        )

    works = True

    def by_onednn(a: Any, b: Any, bias: Any) -> Any:
        """The product; None from when on oneDNN had no memory for a kernel ("could not create a
        primitive"): it would wait for that kernel for ever. The plain product then works, or fails
        with the allocator's error, after which a step is taken in smaller parts.
        """
        nonlocal works
        if not works:
            return None
        try:
            return linear(a, b.t(), bias, "none", [], "")
        except RuntimeError:
            works = False
            return None

    def mm(keys: Any, a: Any, b: Any) -> Any:
        found = by_onednn(a, b, None) if suits(a, b) else None
        return plain_mm.call_boxed(keys, a, b) if found is None else found

    def addmm(keys: Any, bias: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
        plain = beta == 1 and alpha == 1 and bias.dim() == 1 and bias.dtype is float32
        found = by_onednn(a, b, bias) if plain and suits(a, b) else None
        if found is None:
            return plain_addmm.call_boxed(keys, bias, a, b, beta=beta, alpha=alpha)
        return found

    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():  # that a kernel is replaced, which is the purpose
        warnings.simplefilter("ignore")
        library.impl("mm", mm, "CPU", with_keyset=True, allow_override=True)
        library.impl("addmm", addmm, "CPU", with_keyset=True, allow_override=True)
    return library
