"""What the page carries of others: Pyodide and msgspec's wheel for it, each by version and hash.

They are fetched once, by the clients of their registries, into the user's cache folder.
"""

from __future__ import annotations

import hashlib
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from shutil import which

from advisor.ground.errors import InputError
from advisor.ground.resources import cache_folder

PLATFORM = "pyemscripten_2026_0_wasm32"
PYODIDE, MSGSPEC = "pyodide-314.0.8.tgz", f"msgspec-0.23.0-cp314-cp314-{PLATFORM}.whl"
SHA256 = {
    PYODIDE: "9a52704e0ae5b07aaacb8e4fed9f1658e8024694a078695ea45ac79dee4cefcb",
    MSGSPEC: "1836f50ad87e7c56600b648a1b75c3bbcce62835cb1f489435fc5fee8d068831",
}
PIP = f"pip download -q --no-deps --only-binary=:all: --platform {PLATFORM} --python-version 3.14"
COMMANDS = {PYODIDE: "npm pack pyodide@314.0.8", MSGSPEC: f"{PIP} msgspec==0.23.0"}
WAIT_S = 300
BY_HAND = (
    f"on a machine with the network, in an empty folder: {' && '.join(COMMANDS.values())}; name"
    " that folder with --pyodide"
)


def fetched(name: str, given: Path | None) -> Path:
    """The file of that name in the given folder, or else in the cache, where it is fetched to.

    Raises InputError if it cannot be had, or is another file than expected.
    """
    folder = given or cache_folder() / "site"
    path = folder / name
    if given is None and not path.is_file():
        _fetch(name, folder)
    if not path.is_file():
        raise InputError(f"there is no {name}", where=f"--pyodide {folder}", hint=BY_HAND)
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256[name]:
        what, allowed = "is another file than expected", f"sha256 {SHA256[name]}"
        raise InputError(what, where=str(path), allowed=allowed, hint="remove it")
    return path


def _fetch(name: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    program, *words = shlex.split(COMMANDS[name])
    if program != "pip" and which(program) is None:
        raise InputError(f"{program} is not installed, and it brings {name}", hint=BY_HAND)
    command = [sys.executable, "-m", "pip"] if program == "pip" else [program]
    with tempfile.TemporaryDirectory(dir=folder) as new:
        try:
            subprocess.run(
                [*command, *words],
                cwd=new,
                check=True,
                capture_output=True,
                text=True,
                timeout=WAIT_S,
            )
            Path(new, name).replace(folder / name)
        except (OSError, subprocess.SubprocessError) as error:
            said = str(getattr(error, "stderr", None) or error).splitlines()
            why = next((line for line in said if "error" in line.lower()), str(error))
            raise InputError(f"{name} cannot be fetched: {why}", hint=BY_HAND) from None
