"""A stub of NVIDIA's driver library, compiled once a session, to probe recorded machines with."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
MIB = 2**20
PROBE = (
    "import json; from advisor.probe import probe; from advisor.render.probe import probe_json;"
    " print(json.dumps(probe_json(probe())))"
)


def recorded(name: str) -> dict[str, Any]:
    return json.loads((HERE.parent / "machines" / f"{name}.json").read_text(encoding="utf-8"))


def _lines(machine: Mapping[str, Any]) -> Iterator[str]:
    """The machine as the stub reads it: one "key value" a line, sizes in bytes."""
    yield from (f"{key} {machine[key]}" for key in ("driver", "cuda") if key in machine)
    yield from (f"error.{call} {code}" for call, code in machine.get("errors", {}).items())
    yield f"count {len(machine['gpus'])}"
    for index, gpu in enumerate(machine["gpus"]):
        yield from _device(f"gpu.{index}", gpu)
        for slot, device in enumerate(gpu.get("slices", ())):
            if device is not None:  # an empty slot
                yield from _device(f"gpu.{index}.slice.{slot}", device)


COPIED = (
    "name", "uuid", "mig", "max_slices", "slices_of_seven", "memory_mb", "nvlinks",
    "pcie_generation", "pcie_width", "display_active", "display_mode",
)  # fmt: skip


def _device(prefix: str, device: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{prefix}.{key} {device[key]}" for key in COPIED if key in device)
    if "memory_mib" in device:
        yield f"{prefix}.total {device['memory_mib'] * MIB}"
        yield f"{prefix}.free {device['free_mib'] * MIB}"
    for name, number in zip(("major", "minor"), device.get("capability", ()), strict=False):
        yield f"{prefix}.{name} {number}"
    for call, code in device.get("errors", {}).items():
        yield f"{prefix}.error.{call} {code}"
    for kind in ("compute", "graphics"):
        processes = device.get(kind, ())
        yield f"{prefix}.{kind}.count {len(processes)}"
        for number, process in enumerate(processes):
            yield f"{prefix}.{kind}.{number}.pid {process['pid']}"
            if process["mib"] is not None:
                yield f"{prefix}.{kind}.{number}.bytes {process['mib'] * MIB}"


@pytest.fixture(scope="session")
def stub_library(tmp_path_factory):
    """A folder with libnvidia-ml.so.1: '', 'OLD_DRIVER', 'ANCIENT_DRIVER' or 'BROKEN'."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the driver stub is a Linux library")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler (cc, gcc or clang) to build the driver stub with")

    @cache
    def build(kind):
        library = tmp_path_factory.mktemp(f"nvml{kind.lower()}") / "libnvidia-ml.so.1"
        if kind == "BROKEN":
            library.write_bytes(b"not a library" * 100)
        else:
            flags = [
                "-shared",
                "-fPIC",
                "-O0",
                "-Wall",
                "-Werror",
                *([f"-D{kind}"] if kind else []),
            ]
            subprocess.run([compiler, *flags, "-o", library, HERE / "nvml_stub.c"], check=True)
        return library.parent

    return build


@pytest.fixture
def probed(stub_library, tmp_path):
    """What `advise probe --json` prints on a recorded machine, in a child process."""
    chosen = {"CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"}
    clean = {key: value for key, value in os.environ.items() if key not in chosen}

    def run(machine, *, library="", **environ):
        file = tmp_path / "machine.txt"
        machine = recorded(machine) if isinstance(machine, str) else machine
        file.write_text("\n".join(_lines(machine)) + "\n", encoding="utf-8")
        stub = {"LD_LIBRARY_PATH": str(stub_library(library)), "NVML_STUB_MACHINE": str(file)}
        done = subprocess.run(
            [sys.executable, "-c", PROBE], env={**clean, **stub, **environ}, cwd=HERE.parents[1],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout)

    return run
