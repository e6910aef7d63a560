"""Which training packages are installed, and whether the installed PyTorch can use the card: read
from files, nothing imported.

importlib.metadata answers the same but costs 30 ms to import; the names of the metadata folders
hold all that is asked here.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from advisor.ground.files import text_of
from advisor.ground.types import Gpu, Hardware
from advisor.probe.gpu_files import cuda_facts

PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "datasets")
BY_HAND = "a CUDA 12.6 build of PyTorch, as its site says (plain pip brings none for this card)"
_METADATA = re.compile(r"([A-Za-z0-9_.]+?)-([^-]+)(?:-[^/]*)?\.(?:dist|egg)-info$")


class TorchBuild(Struct, frozen=True, kw_only=True):
    """What the installed PyTorch was built for."""

    version: str
    cuda: str | None  # "12.8"; None: not for CUDA
    hip: str | None  # ROCm

    @property
    def target(self) -> str:
        return f"CUDA {self.cuda}" if self.cuda else f"ROCm {self.hip}" if self.hip else "CPU"

    @property
    def text(self) -> str:
        return f"{self.version} ({self.target} build)"

    @property
    def release(self) -> str:
        return self.version.partition("+")[0]


def installed_versions(path: Sequence[str] | None = None) -> dict[str, str | None]:
    """Package -> installed version, None where it is not installed."""
    found = _metadata_folders(path)
    return {name: found[name][0] if name in found else None for name in PACKAGES}


def _metadata_folders(path: Sequence[str] | None) -> dict[str, tuple[str, Path]]:
    """Package -> version and its folder; the first on the path wins, as in an import."""
    found: dict[str, tuple[str, Path]] = {}
    for folder in sys.path if path is None else path:
        try:
            names = os.listdir(folder or ".")
        except OSError:  # zip files, folders that are gone
            continue
        for name in names:
            match = _METADATA.match(name)
            package = match[1].lower().replace("-", "_").replace(".", "_") if match else ""
            if match and package in PACKAGES:
                found.setdefault(package, (match[2], Path(folder or ".")))
    return found


def torch_build(path: Sequence[str] | None = None) -> TorchBuild | None:
    """The installed PyTorch and its target, by its version file; None if it is not installed."""
    entry = _metadata_folders(path).get("torch")
    if entry is None:
        return None
    version, folder = entry
    try:
        text = text_of(folder / "torch" / "version.py")
    except (OSError, UnicodeDecodeError):
        text = ""
    local = version.partition("+")[2]
    values: dict[str, str] = dict(
        re.findall(r"^(cuda|hip)\b[^=\n]*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE)
    )
    tag = re.match(r"cu(\d+)(\d)$", local)  # 2.9.1+cu128
    cuda = values.get("cuda") or (f"{tag[1]}.{tag[2]}" if tag else None)
    hip = values.get("hip") or (local.removeprefix("rocm") if local.startswith("rocm") else None)
    return TorchBuild(version=version, cuda=cuda, hip=hip)


def cuda_problem(hardware: Hardware, build: TorchBuild | None = None) -> str | None:
    """Why the installed PyTorch cannot use the probed GPU, with the line to install; else None.

    An absent PyTorch is another matter (the training extra), as is hardware that was stated.
    """
    build = build or torch_build()
    if build is None or hardware.origin != "probed" or not hardware.gpus:
        return None
    is_there = f"{hardware.gpus[0].name} is there, but PyTorch {build.text}"
    if hardware.kind == "rocm" and not build.hip:
        return (
            f"{is_there} has no ROCm. Install PyTorch's ROCm build of {build.release} as its site"
            " says"
        )
    if hardware.kind != "cuda":
        return None
    if build.cuda is None:
        return f"{is_there} cannot use it. Install: {_install(hardware)}"
    driver, built = _generation(hardware.cuda_version), _generation(build.cuda)
    if driver is not None and built is not None and built > driver:
        return (
            f"{is_there} needs a newer NVIDIA driver: {hardware.driver_version or 'this one'} runs"
            f" CUDA up to {hardware.cuda_version} (updating it{_driver_from(built)} helps too)."
            f" Install: {_install(hardware)}"
        )
    return _without_code(hardware, build)


def _without_code(hardware: Hardware, build: TorchBuild) -> str | None:
    """The problem of a GPU that is too old or too new for the installed official wheel."""
    fitting = (
        row
        for row in cuda_facts()["wheels"]
        if _numbers(build.cuda) >= _numbers(row["cuda"])
        and _below(build.version, row.get("torch_below"))
    )
    row = next(fitting, None)
    official = ("", f"cu{(build.cuda or '').replace('.', '')}")
    if row is None or build.version.partition("+")[2] not in official:
        return None
    for gpu in hardware.gpus:
        has = gpu.compute_capability
        if has is not None and not _has_code(row, has):
            age = "too old" if has < _numbers(row["from"]) else "too new"
            return (
                f"{gpu.name} (compute capability {has[0]}.{has[1]}) is {age} for PyTorch"
                f" {build.text}, which has code for {row['from']} to {row['to']}. Install:"
                f" {_install(hardware)}"
            )
    return None


def _has_code(row: Mapping[str, str], capability: tuple[int, int]) -> bool:
    return _numbers(row["from"]) <= capability <= _numbers(row["to"])


def _newest(capabilities: Iterable[tuple[int, int]], generation: int | None = None) -> str | None:
    """The newest PyTorch of plain pip that has code for these cards, and runs on the driver."""
    rows = {int(key): row for key, row in cuda_facts()["pip_torch"].items()}
    for key, row in sorted(rows.items(), reverse=True):
        runs = generation is None or generation >= key
        if runs and all(_has_code(row, has) for has in capabilities):
            return f'"{row["requirement"]}"'
    return None


def _install(hardware: Hardware) -> str:
    """The one line that brings a PyTorch for this driver and card, as far as plain pip has one."""
    generation = _generation(hardware.cuda_version)
    capabilities = [gpu.compute_capability for gpu in hardware.gpus if gpu.compute_capability]
    first = min(map(int, cuda_facts()["pip_torch"]))
    if (requirement := _newest(capabilities, generation)) is not None:
        return f"pip install --force-reinstall {requirement}"
    if generation is not None and generation < first:
        return f"first a driver{_driver_from(first)}, then pip install --force-reinstall torch"
    return BY_HAND


def older_torch_note(gpu: Gpu) -> str | None:
    """Which PyTorch a GPU needs if the one that pip brings has no code for it; None if it has."""
    has, rows = gpu.compute_capability, cuda_facts()["pip_torch"]
    if has is None or _has_code(rows[max(rows, key=int)], has):
        return None
    requirement = _newest([has])
    cure = f"pip install {requirement}" if requirement else BY_HAND
    return (
        f"{gpu.name} has compute capability {has[0]}.{has[1]}, for which the PyTorch that plain pip"
        f" brings today has no code; install: {cure}"
    )


def _driver_from(generation: int) -> str:
    first = cuda_facts()["driver_from"].get(str(generation))
    return f" to {first} or newer" if first else ""


def _generation(version: str | None) -> int | None:
    major = (version or "").partition(".")[0]
    return int(major) if major.isdigit() else None


def _numbers(version: str | None) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", (version or "").partition("+")[0])[:2])


def _below(version: str, bound: str | None) -> bool:
    return bound is None or _numbers(version) < _numbers(bound)
