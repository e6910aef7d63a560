"""Attentions and kernels of layers, and which packages and compilers for them are here, without
importing any: the launcher asks before it starts a trainer, trainers before they load a model.
"""

from __future__ import annotations

import os
import re
import shutil
import sysconfig
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from msgspec import Struct

from advisor.ground.files import text_of
from advisor.ground.resources import rules_dir
from advisor.ground.shape import VERSION, Choice, Date, Keys, ListOf, MapOf, Text
from advisor.ground.yaml_files import SOURCE, read_shipped

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
        text = text_of(Path(spec.origin).parent / "utils" / "import_utils.py")
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


AUTO = "auto"
OWN = ("eager", "sdpa")  # attention that is part of transformers and PyTorch, for every device
ATTENTIONS = (
    AUTO,
    *OWN,
    "flash_attention_2",
    "flash_attention_3",
    "flex_attention",
    "kernels-community/flash-attn2",
    "kernels-community/flash-attn3",
    "kernels-community/aiter-flash-attn",
)
LAYER_KERNELS = ("none", AUTO, "liger", "hub")


class Kernel(Struct, frozen=True, kw_only=True):
    """What one kernel needs."""

    name: str  # as a plan names it
    first: tuple[int, ...] | None = None  # compute capability; None: any
    last: tuple[int, ...] | None = None
    widest_head: int | None = None
    half_only: bool = False  # computes in 16 bit alone
    module: str | None = None  # that it is imported from
    package: str | None = None  # that has the module
    hub: str | None = None  # repository of the hub that has it ready built
    triton: bool = False
    devices: tuple[str, ...] = ("cuda",)

    def runs_on(self, capability: tuple[int, ...] | None) -> bool:
        """Whether a GPU of this compute capability has the instructions; True if it is unknown."""
        if capability is None:
            return True
        return (self.first is None or self.first <= capability) and (
            self.last is None or capability <= self.last
        )

    @property
    def needs(self) -> str:
        """'compute capability 9.0 to 9.9'."""
        first, last = (".".join(map(str, end or ())) for end in (self.first, self.last))
        to = f" to {last}" if last else " and more"
        return f"compute capability {first}{to}" if first else "any GPU"

    @property
    def why_not_installed(self) -> str:
        """Why it cannot be loaded here, as far as files tell; empty if nothing speaks against."""
        return why_no_package(self.module, self.package, hub=self.hub is not None)

    @property
    def packages(self) -> tuple[str, ...]:
        """Names in pip, of which one is enough; empty if it needs none."""
        hub = (HUB_PACKAGE,) if self.hub else ()
        return ((self.package,) if self.package else ()) + hub


@cache
def kernel(name: str) -> Kernel | None:
    """What the kernel needs; None for those that are part of PyTorch or transformers."""
    data = read_shipped(rules_dir() / "hardware" / "cuda.yaml").data  # probe/ checks it
    entry = data["kernels"].get(name)
    if entry is None:
        return None
    cuda = ("cuda",) if entry.get("cuda", True) else ()
    return Kernel(
        name=name,
        first=_capability(entry.get("from")),
        last=_capability(entry.get("to")),
        devices=cuda + (("rocm",) if entry.get("rocm") else ()),
        **{key: entry[key] for key in ("widest_head", "half_only", "module", "package", "hub",
                                       "triton") if key in entry},
    )  # fmt: skip


def _capability(text: str | None) -> tuple[int, ...] | None:
    return tuple(map(int, text.split("."))) if text else None


def is_flash(attention: str) -> bool:
    """Whether it is a flash attention, which takes rows of any lengths laid end to end."""
    return "flash" in attention


def needs_gpu(attention: str) -> bool:
    """Whether its kernels exist for GPUs alone."""
    return attention not in (AUTO, *OWN)


ACCELERATORS_FILE = Keys(
    help="GPUs on which this tool's trainers were never run",
    keys={
        "version": VERSION,
        "review_by": Date(),
        "accelerators": MapOf(
            named=Choice(values=("mps", "rocm")),
            of=Keys(
                keys={
                    "says": Text(help="of every training there"),
                    "in_4_bit": Text(help="of a base in 4 bits besides"),
                    "sources": ListOf(of=SOURCE, least=1),
                },
                required=("says", "in_4_bit", "sources"),
            ),
        ),
    },
    required=("version", "accelerators"),
)


def never_tried(kind: str, quantization: str | None) -> tuple[str, ...]:
    """What is said of training on hardware of a kind (`Hardware.kind`), on such a base."""
    if kind not in ("mps", "rocm"):
        return ()
    entry = accelerators()[kind]
    return (entry["says"], *([entry["in_4_bit"]] if quantization == "nf4" else []))


@cache
def accelerators() -> Mapping[str, Mapping[str, Any]]:
    """Kind of hardware -> what the file says of it."""
    path = rules_dir() / "hardware" / "accelerators.yaml"
    return dict(read_shipped(path, shape=ACCELERATORS_FILE).data["accelerators"])
