"""Where llama.cpp is on this machine: its library, and its program that quantises.

The first of these that is there counts: ADVISE_LLAMA_CPP (the library or a folder with it), the
Python package llama-cpp-python, npm's node-llama-cpp (in this folder or one above it, or installed
globally), the folder of llama-cli or llama-quantize on PATH, the system's libraries.
"""

from __future__ import annotations

import ctypes.util
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from advisor.ground.errors import MachineNotReady

VARIABLE = "ADVISE_LLAMA_CPP"
LIBRARY = ("libllama.so*", "libllama*.so", "libllama*.dylib", "llama*.dll")
HOW = (
    "install one of: npm install node-llama-cpp (prebuilt; in this folder), pip install"
    " llama-cpp-python, or llama.cpp itself (llama-cli on PATH, or ADVISE_LLAMA_CPP=FOLDER)"
)


@dataclass(frozen=True, kw_only=True)
class LlamaCpp:
    """The library of one llama.cpp."""

    library: Path
    what: str  # "node-llama-cpp 3.21.1 (llama.cpp v0.4.0)"


def find_llama_cpp() -> LlamaCpp | None:
    """The llama.cpp that exports are proved with; None if there is none.

    Raises MachineNotReady if ADVISE_LLAMA_CPP names a place without one.
    """
    named = os.environ.get(VARIABLE)
    if named:
        path = Path(named).expanduser()
        # A folder of npm holds builds for other processors too.
        found = sorted(_libraries(path, deep=True), key=lambda one: _plain_first(one.parent))
        library = path if path.is_file() else next(iter(found), None)
        if library is None:
            raise MachineNotReady(
                f"{VARIABLE} is {named}: there is no libllama there",
                allowed="the library, or a folder with it",
                hint=HOW,
            )
        return LlamaCpp(library=library.resolve(), what=_node_version(library) or str(library))
    places = (_of_python(), _of_node(), _on_path(), _of_system())
    return next((one for one in places if one is not None), None)


def find_quantize() -> str | None:
    """llama.cpp's program llama-quantize on PATH."""
    return shutil.which("llama-quantize")


def _libraries(folder: Path, *, deep: bool = False) -> Iterator[Path]:
    for pattern in LIBRARY:
        for path in sorted(folder.rglob(pattern) if deep else folder.glob(pattern)):
            if path.is_file() and "common" not in path.name:
                yield path


def _of_python() -> LlamaCpp | None:
    spec = find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return None
    library = next(_libraries(Path(spec.origin).parent / "lib"), None)
    if library is None:
        return None
    number = ""
    with suppress(PackageNotFoundError):
        number = f" {version('llama-cpp-python')}"
    return LlamaCpp(library=library, what=f"llama-cpp-python{number}")


def _of_node() -> LlamaCpp | None:
    here = Path.cwd()
    places = [folder / "node_modules" for folder in (here, *here.parents)]
    node = shutil.which("node")
    if node is not None:
        places.append(Path(node).resolve().parent.parent / "lib" / "node_modules")
    for place in places:
        for inside in (place, place / "node-llama-cpp" / "node_modules"):
            # A build for a GPU may need a driver that is not here; the plain one runs anywhere.
            folders = sorted((inside / "@node-llama-cpp").glob("*/bins/*"), key=_plain_first)
            for folder in folders:
                library = next(_libraries(folder), None)
                if library is not None and is_ours(library, place):
                    return LlamaCpp(
                        library=library.resolve(), what=_node_version(library) or "node-llama-cpp"
                    )
    return None


def is_ours(library: Path, place: Path) -> bool:
    """Whether nobody but this user and root can have put a library there: it is run. A folder above
    the current one, such as that of temporary files, may be everybody's.
    """
    if os.name != "posix":
        return True
    inside = [library.resolve(), *library.parents]
    for path in inside[: inside.index(place) + 1] if place in inside else inside[:2]:
        try:
            status = path.stat()
        except OSError:
            return False
        if status.st_uid not in (0, os.getuid()) or status.st_mode & stat.S_IWOTH:
            return False
    return True


def _plain_first(folder: Path) -> tuple[bool, bool, int]:
    """Order of builds: those for this system and processor, without a GPU."""
    name = folder.name
    import platform

    processor = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64"}.get(
        platform.machine().lower(), platform.machine().lower()
    )
    system = {"darwin": "mac", "windows": "win"}.get(platform.system().lower(), "linux")
    return (not name.startswith(system), processor not in name.split("-"), len(name))


def _node_version(library: Path) -> str:
    """What the files beside the library say of it; empty if nothing."""
    with suppress(OSError, ValueError, KeyError):
        build = json.loads((library.parent / "_nlcBuildMetadata.json").read_text("utf-8"))
        package = json.loads((library.parents[2] / "package.json").read_text("utf-8"))
        release = build["buildOptions"]["llamaCpp"]["release"]
        return f"node-llama-cpp {package['version']} (llama.cpp {release})"
    return ""


def _on_path() -> LlamaCpp | None:
    for program in ("llama-cli", "llama-quantize", "llama-server"):
        found = shutil.which(program)
        if found is None:
            continue
        folder = Path(found).resolve().parent
        for place in (folder, folder.parent / "lib"):
            library = next(_libraries(place), None)
            if library is not None:
                return LlamaCpp(library=library, what=f"llama.cpp in {place}")
    return None


def _of_system() -> LlamaCpp | None:
    name = ctypes.util.find_library("llama")
    return None if name is None else LlamaCpp(library=Path(name), what=f"llama.cpp ({name})")
