"""This version of the product as a wheel, made from its own files: no build tool, no network, and
the same bytes whenever it is made from the same files.
"""

from __future__ import annotations

import base64
import hashlib
import io
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from advisor.ground.errors import MachineNotReady
from advisor.ground.resources import PACKAGE, resource_root
from advisor.ground.version import __version__

DISTRIBUTION = "finetune-advisor"
CONSTRAINTS = "constraints-tested.txt"
DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip file can hold: no clock in it
WHEEL = f"""Wheel-Version: 1.0
Generator: {DISTRIBUTION} {__version__}
Root-Is-Purelib: true
Tag: py3-none-any
"""
ENTRY_POINTS = "[console_scripts]\nadvise = advisor.cli:main\n"


def product_wheel() -> tuple[str, bytes]:
    """(file name, content) of the wheel of the running version.

    Raises MachineNotReady if neither a checkout nor an installation is found around it.
    """
    name = f"{DISTRIBUTION.replace('-', '_')}-{__version__}"
    info = f"{name}.dist-info"
    project = _checkout()
    contents = {f"advisor/{inner}": path.read_bytes() for inner, path in _files(PACKAGE)}
    if project is not None:  # what a build takes in from beside the package
        beside = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
        for source, target in beside.items():
            place = PACKAGE.parent / source
            taken = _files(place) if place.is_dir() else [("", place)]
            for inner, path in taken:
                contents[f"{target}/{inner}" if inner else target] = path.read_bytes()
        licence = PACKAGE.parent / "LICENSE"
        contents[f"{info}/licenses/LICENSE"] = licence.read_bytes()
    contents |= {
        f"{info}/METADATA": _metadata(project).encode(),
        f"{info}/WHEEL": WHEEL.encode(),
        f"{info}/entry_points.txt": ENTRY_POINTS.encode(),
    }
    record = "".join(
        f"{path},sha256={_digest(content)},{len(content)}\n"
        for path, content in sorted(contents.items())
    )
    contents[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    return f"{name}-py3-none-any.whl", _zipped(contents)


def tested_versions() -> bytes:
    """The exact versions this release was tested with, as a pip constraints file."""
    return (resource_root() / CONSTRAINTS).read_bytes()


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name from the folder, file) of what belongs to the product: no caches, no hidden files."""
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        is_ours = not any(part.startswith(".") or part == "__pycache__" for part in inner.parts)
        if is_ours and path.suffix != ".pyc" and path.is_file():
            yield inner.as_posix(), path


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def _zipped(contents: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in sorted(contents.items()):
            entry = zipfile.ZipInfo(path, DATE)
            entry.external_attr = 0o100644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return made.getvalue()


def _checkout() -> dict[str, Any] | None:
    """pyproject.toml of the checkout that is running; None for an installed package."""
    project = PACKAGE.parent / "pyproject.toml"
    if resource_root() != PACKAGE.parent or not project.is_file():
        return None
    return tomllib.loads(project.read_text("utf-8"))


def _metadata(project: dict[str, Any] | None) -> str:
    if project is not None:
        return _metadata_of(project["project"])
    try:
        text = distribution(DISTRIBUTION).read_text("METADATA")
    except PackageNotFoundError:
        text = None
    if text is None:
        raise MachineNotReady(
            f"no wheel of {DISTRIBUTION} can be made: it is neither installed nor a checkout",
            hint="install it with pip, or call `advise` from its checkout",
        )
    return text


def _metadata_of(project: dict[str, Any]) -> str:
    """What pip needs to know of a checkout."""
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {project['name']}",
        f"Version: {__version__}",
        f"Summary: {project['description']}",
        f"Requires-Python: {project['requires-python']}",
        *(f"Requires-Dist: {needed}" for needed in project["dependencies"]),
    ]
    for extra, needed in sorted(project["optional-dependencies"].items()):
        lines.append(f"Provides-Extra: {extra}")
        lines += [f'Requires-Dist: {one}; extra == "{extra}"' for one in needed]
    return "\n".join([*lines, ""])
