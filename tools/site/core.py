"""static/pyodide/ and static/core.tar.gz: the advisor, its rules and what it needs, compiled and
prepared by the Python of the page.

Pyodide and msgspec's wheel for it are fetched once, by the clients of their registries, each by
version and hash, into the user's cache folder.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from advisor.ground.errors import InputError
from advisor.ground.resources import PACKAGE, cache_folder, rules_dir
from advisor.situation.catalogue import known_ids

HERE = Path(__file__).parent
PLATFORM = "pyemscripten_2026_0_wasm32"
PYODIDE, MSGSPEC = "pyodide-314.0.8.tgz", f"msgspec-0.23.0-cp314-cp314-{PLATFORM}.whl"
SHA256 = {
    PYODIDE: "9a52704e0ae5b07aaacb8e4fed9f1658e8024694a078695ea45ac79dee4cefcb",
    MSGSPEC: "1836f50ad87e7c56600b648a1b75c3bbcce62835cb1f489435fc5fee8d068831",
}
COMMANDS = {
    PYODIDE: "npm pack pyodide@314.0.8",
    MSGSPEC: "python -m pip download -q --no-deps --only-binary=:all: --python-version 3.14"
    f" --platform {PLATFORM} msgspec==0.23.0",
}
BY_HAND = (
    f"on a machine with the network, in an empty folder: {' && '.join(COMMANDS.values())}; name"
    " that folder with --pyodide"
)
PACKAGES = ("yaml", "click", "phonenumbers")  # beside msgspec; tests/site knows what needs no other
AS_IT_IS = ("pyodide.mjs", "pyodide.asm.mjs", "pyodide.asm.wasm", "pyodide-lock.json")
LEFT_OUT = shutil.ignore_patterns(
    "peft_adapter", "_bundled", "__pycache__", "*.schema.json", "*.pyi", "*.so", "*.pyd", "_yaml*"
)

# What the builder asks, so that what the advisor keeps of its rules is there from the beginning.
_QA = {"task": "qa", "gpu": "RTX 4090", "model": "Qwen/Qwen3-8B"}
_SCRIPT = "SFTTrainer(model='Qwen/Qwen3-8B', args=SFTConfig(output_dir='out', bf16=True))\n"
_LOG = {"log_history": [{"step": step, "loss": 2.0} for step in (1, 2)], "global_step": 2}
_CHECKED = {
    "rows.jsonl": '{"question": "a", "answer": "b"}\n' * 40,
    "trl.yaml": "model_name_or_path: Qwen/Qwen3-8B\nuse_peft: true\n",
    "axolotl.yaml": "base_model: Qwen/Qwen3-8B\nadapter: lora\n",
    "train.py": _SCRIPT,
    "trainer_state.json": json.dumps(_LOG),
    "lf.yaml": "model_name_or_path: Qwen/Qwen3-8B\nstage: sft\n",
}
SAMPLES: tuple[tuple[str, Any], ...] = (
    ("advise", _QA),
    ("advise", {"task": "reasoning", "budget": {"usd": 50, "hours": 20}, "gpu": "none"}),
    ("advise", {"task": "multi_department", "gpu": "8 x MI300X", "model": "bert-base-uncased"}),
    ("advise", {"task": "classification", "gpu": "M3 Max 64GB", "budget": "low"}),
    ("plan", _QA),
    ("estimate", [{"model": "Qwen/Qwen3-8B", "gpu": "T4", "framework": "unsloth"}]),
    *(("check", {"name": name, "text": text}) for name, text in _CHECKED.items()),
)


def write_python(out: Path, given: Path | None, example: Mapping[str, Any]) -> dict[str, Any]:
    """Write pyodide/ and core.tar.gz. Returns what the page says of the example, by request.

    Raises InputError if a part is missing or cannot be made.
    """
    pyodide, wheel = fetched(PYODIDE, given), fetched(MSGSPEC, given)
    with TemporaryDirectory(prefix=".stage-", dir=out) as folder:
        stage = Path(folder)
        core, library, package = stage / "core", stage / "stdlib", stage / "package"
        shutil.unpack_archive(pyodide, stage, filter="data")  # it holds package/
        shutil.unpack_archive(package / "python_stdlib.zip", library)
        shutil.unpack_archive(wheel, core, "zip")
        packages = (Path(str(import_module(name).__file__)).parent for name in PACKAGES)
        for one in (rules_dir(), PACKAGE, *packages):
            shutil.copytree(one, core / one.name, ignore=LEFT_OUT)
        shutil.copyfile(HERE / "page_entry.py", core / "page_entry.py")
        _run(["node", str(HERE / "prepare.mjs"), folder])
        for path in core.rglob("*.py"):
            path.write_bytes(b"")  # some are found by their names, none is read
        for path in library.rglob("*.py"):
            path.unlink()
        opening = [("advise", example), ("plan", example)]
        answers = _keep_rules(core / "cache", [*opening, *SAMPLES])
        (out / "pyodide").mkdir()
        for name in AS_IT_IS:
            shutil.copyfile(package / name, out / "pyodide" / name)
        with zipfile.ZipFile(out / "pyodide" / "python_stdlib.zip", "w") as archive:
            for path in sorted(filter(Path.is_file, library.rglob("*"))):
                info = zipfile.ZipInfo(path.relative_to(library).as_posix())  # of 1980
                archive.writestr(info, path.read_bytes(), zipfile.ZIP_DEFLATED, 9)
        with (
            gzip.GzipFile(out / "core.tar.gz", "wb", mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w") as archive,
        ):
            archive.add(core, ".", filter=_of_nobody)
    return {name: json.loads(text) for (name, _), text in zip(opening, answers, strict=False)}


def fetched(name: str, given: Path | None) -> Path:
    """The file of that name in the given folder, or else in the cache, where it is fetched to.

    Raises InputError if it cannot be had, or is another file than expected.
    """
    folder = given or cache_folder() / "site"
    path = folder / name
    if given is None and not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder) as new:
            _run(COMMANDS[name].split(), f"{name} cannot be fetched", BY_HAND, cwd=new)
            Path(new, name).replace(path)
    if not path.is_file():
        raise InputError(f"there is no {name}", where=f"--pyodide {folder}", hint=BY_HAND)
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256[name]:
        what, allowed = "is another file than expected", f"sha256 {SHA256[name]}"
        raise InputError(what, where=str(path), allowed=allowed, hint="remove it")
    return path


def _keep_rules(cache: Path, requests: Sequence[tuple[str, Any]]) -> list[str]:
    """Fill the advisor's own cache of its rules with what these requests need. Returns the answers.

    In a process of its own, which has that cache from its start.
    """
    one_of_each = {name.partition("/")[0]: name for name in known_ids()}  # their files are apart
    listed = [{"model": name, "gpu": "T4"} for name in one_of_each.values()]
    code = (
        "import json, sys; from tools.site.page_entry import answer; print(json.dumps("
        "[answer(name, json.dumps(body))[0] for name, body in json.load(sys.stdin)]))"
    )
    given = json.dumps([*requests, ("estimate", listed)])
    answers: list[str] = json.loads(_run(["python", "-c", code], given=given, cache=str(cache)))
    return answers


def _run(
    words: Sequence[str],
    what: str = "the page's Python cannot be made",
    hint: str = "Node.js 20 or newer compiles it",
    *,
    given: str = "",
    cwd: str | Path = HERE.parent.parent,
    cache: str = "",
) -> str:
    """What a program prints; `python` is this one. Raises InputError if it fails."""
    program, environment = shutil.which(words[0]), {**os.environ, "PYTHONHASHSEED": "0"}
    environment |= {"XDG_CACHE_HOME": cache} if cache else {}
    program = sys.executable if words[0] == "python" else program
    if program is None:
        raise InputError(f"{words[0]} is not installed: {what}", hint=hint)
    try:
        return subprocess.run(
            [program, *words[1:]], input=given, cwd=cwd, env=environment,
            capture_output=True, text=True, check=True, timeout=600,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", None) or error).splitlines()
        why = [line for line in said if "error" in line.lower() and line[:1] != " "]
        raise InputError(f"{what}: {(why or [str(error)])[0]:.500}", hint=hint) from None


def _of_nobody(info: tarfile.TarInfo) -> tarfile.TarInfo:
    mode = 0o755 if info.isdir() else 0o644
    return info.replace(mtime=0, uid=0, gid=0, uname="", gname="", mode=mode, deep=False)
