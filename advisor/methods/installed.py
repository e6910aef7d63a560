"""Which packages and compilers for kernels are here, without importing any: the launcher asks
before it starts a trainer, and trainers before they load a model.
"""

from __future__ import annotations

import os
import re
import shutil
import sysconfig
from functools import cache
from importlib.util import find_spec
from pathlib import Path

HUB_PACKAGE = "kernels"  # loads ready-built kernels from the hub
CPP_COMPILERS = ("g++", "clang++")


def is_installed(module: str) -> bool:
    """Whether the top-level module can be found, without importing it."""
    try:
        return find_spec(module) is not None
    except ValueError:  # in sys.modules without a spec: a stand-in
        return True


@cache
def hub_range() -> str:
    """The versions of the package `kernels` that the installed transformers takes, such as
    '>=0.18.2,<0.19.0', read from its source; empty if that is not known.
    """
    spec = find_spec("transformers")
    if spec is None or not spec.origin:
        return ""
    try:
        text = (Path(spec.origin).parent / "utils" / "import_utils.py").read_text("utf-8")
    except OSError:
        return ""
    found = dict(re.findall(r'^KERNELS_(MIN|MAX)_VERSION = "([\d.]+)"', text, re.MULTILINE))
    return f">={found['MIN']},<{found['MAX']}" if len(found) == 2 else ""


def why_no_hub() -> str:
    """Why transformers cannot load kernels of the hub; empty if nothing speaks against it.

    transformers ignores the package `kernels` of another version than it was written for.
    """
    if not is_installed(HUB_PACKAGE):
        return f"the package {HUB_PACKAGE} is not installed"
    from importlib.metadata import PackageNotFoundError, version

    wanted = hub_range()
    try:
        here = version(HUB_PACKAGE)
    except PackageNotFoundError:
        return f"the package {HUB_PACKAGE} is not installed"
    first, _, last = wanted.replace(">=", "").replace("<", "").partition(",")
    if wanted and not _numbers(first) <= _numbers(here) < _numbers(last):
        return f"{HUB_PACKAGE} {here} is installed, and transformers takes {wanted}"
    return ""


def hub_install() -> str:
    """The words after `pip install` that bring what transformers takes."""
    return f"'{HUB_PACKAGE}{hub_range()}'" if hub_range() else HUB_PACKAGE


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def why_no_package(module: str | None, package: str | None, *, hub: bool) -> str:
    """Why a kernel cannot be loaded here, as far as files tell; empty if nothing speaks against it.

    Args:
        module: What it is imported from.
        package: The package that has the module, as pip names it.
        hub: The hub has it ready built, for the package `kernels`.
    """
    if module and is_installed(module):
        return ""
    missing = f"the package {package} is not installed" if package else ""
    if not hub:
        return missing
    reason = why_no_hub()
    return " and ".join(part for part in (missing, reason) if part) if reason else ""


# --------------------------------------------------------------------------- compilers


def why_no_compiler(names: tuple[str, ...], *, variable: str = "CC") -> str:
    """Why nothing can be compiled here; empty if nothing speaks against it.

    Args:
        names: The compilers that are looked for, if the environment names none.
        variable: The environment variable that may name one.
    """
    named = os.environ.get(variable)
    if named:
        there = bool(named.split()) and shutil.which(named.split()[0]) is not None
        return "" if there else f"{variable} names {named}, which is not there"
    if not any(shutil.which(name) for name in names):
        return f"there is no {'C++' if 'g++' in names else 'C'} compiler ({names[0]})"
    return ""


def why_no_triton() -> str:
    """Why Triton cannot compile its kernels here; empty if nothing speaks against it. Whether the
    package fits the installed PyTorch shows only when it is imported.

    Triton compiles a small C file for each kernel that it starts for the first time: it needs a C
    compiler (CC, else gcc or clang) and Python's header files
    (triton/runtime/build.py, triton/backends/nvidia/driver.c).
    """
    if not is_installed("triton"):
        return "the package triton is not installed"
    missing = why_no_compiler(("gcc", "clang"))
    if missing:
        return missing
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        return f"Python's header files are not installed ({header} is missing)"
    return ""


def triton_is_interpreted() -> bool:
    """Whether Triton interprets its kernels (TRITON_INTERPRET=1), on the CPU and slowly: a way to
    check their numbers without a GPU.
    """
    return os.environ.get("TRITON_INTERPRET") == "1"


TRITON_NEEDS = "Triton needs its package, gcc and the Python headers (python3-dev)"
CPP_NEEDS = "torch.compile needs g++ here"


def why_no_torch_compile(device: str) -> str:
    """Why torch.compile cannot run on the device; empty if nothing speaks against it.

    Its compiler writes Triton on a GPU and C++ on a processor
    (torch/_inductor/codegen/, torch/_inductor/cpp_builder.py).
    """
    if device in ("cuda", "rocm"):
        return why_no_triton()
    if device == "cpu":
        return why_no_compiler(CPP_COMPILERS, variable="CXX")
    return f"it is not tested on {device}"
