"""What the page carries of others: Pyodide and msgspec's wheel for it, each by version and hash.

They are fetched once, by the clients of their registries, into the user's cache folder.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from shutil import which

from advisor.ground.errors import InputError, MachineNotReady
from advisor.ground.resources import cache_folder

PYODIDE = "314.0.8"
PYTHON, PLATFORM = "3.14", "pyemscripten_2026_0_wasm32"  # of this Pyodide
PYODIDE_SHA256 = "9a52704e0ae5b07aaacb8e4fed9f1658e8024694a078695ea45ac79dee4cefcb"
MSGSPEC = "0.23.0"
MSGSPEC_SHA256 = "1836f50ad87e7c56600b648a1b75c3bbcce62835cb1f489435fc5fee8d068831"
AS_IT_IS = ("pyodide.mjs", "pyodide.asm.mjs", "pyodide.asm.wasm")
NEEDED = (*AS_IT_IS, "python_stdlib.zip", "pyodide-lock.json")
WAIT_S = 300
BY_HAND = (
    f"on a machine with the network: npm pack pyodide@{PYODIDE} and unpack it, then pip download"
    f" --no-deps --only-binary=:all: --platform {PLATFORM} --python-version {PYTHON}"
    f" msgspec=={MSGSPEC} into the same folder; name that folder with --pyodide"
)


def node() -> str:
    """The program that runs Pyodide here. Raises InputError if it is not installed."""
    found = which("node")
    if found is None:
        raise InputError(
            "node is not installed, and it compiles the files of the page",
            hint="install Node.js 20 or newer, which brings npm",
        )
    return found


def parts(folder: Path | None) -> tuple[Path, Path]:
    """The folder with Pyodide's files and msgspec's wheel: those of `folder`, or fetched ones.

    Raises InputError if one cannot be had.
    """
    if folder is None:
        folder = _fetched_pyodide()
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{folder}: no {missing[0]}",
            where="--pyodide",
            allowed=f"the unpacked npm package pyodide {PYODIDE}",
        )
    info = json.loads((folder / "pyodide-lock.json").read_text("utf-8"))["info"]
    if f"pyemscripten_{info.get('abi_version')}_wasm32" != PLATFORM:
        raise InputError(
            f"{folder} holds another Pyodide, of Python {info.get('python')}",
            where="--pyodide",
            allowed=f"Pyodide {PYODIDE}, of Python {PYTHON}",
        )
    wheels = sorted(folder.glob(f"msgspec-*{PLATFORM}.whl"))
    return folder.resolve(), wheels[-1] if wheels else _fetched_msgspec()


def _fetched_pyodide() -> Path:
    def npm(into: Path) -> list[str]:
        program = which("npm")
        if program is None:
            raise InputError("npm is not installed, and it brings Pyodide", hint=BY_HAND)
        return [program, "pack", f"pyodide@{PYODIDE}", "--pack-destination", str(into)]

    packed = _fetched(f"pyodide-{PYODIDE}.tgz", PYODIDE_SHA256, npm)
    folder = packed.with_suffix("")
    if not all((folder / name).is_file() for name in NEEDED):
        folder.mkdir(exist_ok=True)
        with tarfile.open(packed) as archive:
            for name in NEEDED:
                member = archive.extractfile(f"package/{name}")
                if member is not None:
                    (folder / name).write_bytes(member.read())
    return folder


def _fetched_msgspec() -> Path:
    def pip(into: Path) -> list[str]:
        asked = ("--no-deps", "--only-binary=:all:", "--platform", PLATFORM, "--dest", str(into))
        version = ("--python-version", PYTHON, "--implementation", "cp")
        abi = f"cp{PYTHON.replace('.', '')}"
        return [
            *(sys.executable, "-m", "pip", "download", "-q", *asked, *version),
            *("--abi", abi, f"msgspec=={MSGSPEC}"),
        ]

    name = f"msgspec-{MSGSPEC}-cp314-cp314-{PLATFORM}.whl"
    return _fetched(name, MSGSPEC_SHA256, pip)


def _fetched(name: str, sha256: str, command: Callable[[Path], list[str]]) -> Path:
    """The file of the cache, fetched if it is not there. Raises InputError."""
    kept = cache_folder() / "site" / name
    if kept.is_file() and hashlib.sha256(kept.read_bytes()).hexdigest() == sha256:
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        words = command(Path(folder))
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=WAIT_S)
            lines = [line for line in done.stderr.splitlines() if "error" in line.lower()]
            said = lines or [f"exit code {done.returncode}"] if done.returncode else []
        except (OSError, subprocess.TimeoutExpired) as error:
            said = [str(error)]
        fetched = Path(folder) / name
        if said or not fetched.is_file():
            why = said[0] if said else f"it brought no {name}"
            raise InputError(f"{name} cannot be fetched: {why}", hint=BY_HAND)
        found = hashlib.sha256(fetched.read_bytes()).hexdigest()
        if found != sha256:
            raise MachineNotReady(
                f"{name} is another file than expected: sha256 {found}",
                allowed=f"sha256 {sha256}",
                hint="nothing of it was used",
            )
        fetched.replace(kept)
    return kept
