"""static/pyodide/ and static/core.tar.gz: the advisor, its rules and what it needs, compiled and
prepared by the Python of the page.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from typing import Any

import click
import yaml

from advisor.ground.errors import AdviseError, InputError
from advisor.ground.resources import PACKAGE, rules_dir
from advisor.situation.catalogue import known_ids
from tools.site.packages import MSGSPEC, PYODIDE, fetched

HERE = Path(__file__).parent
AS_IT_IS = ("pyodide.mjs", "pyodide.asm.mjs", "pyodide.asm.wasm", "pyodide-lock.json")
LEFT_OUT = (
    "peft_adapter",
    "_bundled",
    "__pycache__",
    "*.schema.json",
    "*.pyi",
    "*.so",
    "*.pyd",
    "_yaml*",
)

# What the builder asks, so that what the advisor keeps of its rules is there from the beginning.
_QA = {"task": "qa", "gpu": "RTX 4090", "model": "Qwen/Qwen3-8B"}
_SCRIPT = "SFTTrainer(model='Qwen/Qwen3-8B', args=SFTConfig(output_dir='out', bf16=True))\n"
_LOG = {"log_history": [{"step": step, "loss": 2.0} for step in (1, 2)], "global_step": 2}
SAMPLES: tuple[tuple[str, Any], ...] = (
    ("advise", _QA),
    ("advise", {"task": "reasoning", "budget": {"usd": 50, "hours": 20}, "gpu": "none"}),
    ("advise", {"task": "multi_department", "gpu": "8 x MI300X", "model": "bert-base-uncased"}),
    ("advise", {"task": "classification", "gpu": "M3 Max 64GB", "budget": "low"}),
    ("plan", _QA),
    ("estimate", [{"model": "Qwen/Qwen3-8B", "gpu": "T4", "framework": "unsloth"}]),
    ("check", {"name": "rows.jsonl", "text": '{"question": "a", "answer": "b"}\n' * 40}),
    ("check", {"name": "trl.yaml", "text": "model_name_or_path: Qwen/Qwen3-8B\nuse_peft: true\n"}),
    ("check", {"name": "axolotl.yaml", "text": "base_model: Qwen/Qwen3-8B\nadapter: lora\n"}),
    ("check", {"name": "train.py", "text": _SCRIPT, "gpu": "T4"}),
    ("check", {"name": "trainer_state.json", "text": json.dumps(_LOG)}),
    ("check", {"name": "lf.yaml", "text": "model_name_or_path: Qwen/Qwen3-8B\nstage: sft\n"}),
)  # fmt: skip


def write_python(out: Path, given: Path | None, example: Mapping[str, Any]) -> dict[str, Any]:
    """Write pyodide/ and core.tar.gz. Returns what the page says of the example, by request.

    Raises AdviseError if a part is missing or cannot be made.
    """
    pyodide, wheel = fetched(PYODIDE, given), fetched(MSGSPEC, given)
    if which("node") is None:
        what = "node is not installed, and it compiles the files of the page"
        raise InputError(what, hint="install Node.js 20 or newer, which brings npm")
    with TemporaryDirectory(prefix=".stage-", dir=out) as folder:
        stage = Path(folder)
        core, library, package = stage / "core", stage / "stdlib", stage / "package"
        with tarfile.open(pyodide) as packed:
            packed.extractall(stage, filter="data")  # it holds package/
        shutil.unpack_archive(package / "python_stdlib.zip", library)
        shutil.unpack_archive(wheel, core, "zip")
        ignored = shutil.ignore_patterns(*LEFT_OUT)
        for one in (rules_dir(), PACKAGE, Path(yaml.__file__).parent, Path(click.__file__).parent):
            shutil.copytree(one, core / one.name, ignore=ignored)
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
        _zip(library, out / "pyodide" / "python_stdlib.zip")
        _tar(core, out / "core.tar.gz")
    return {name: json.loads(text) for (name, _), text in zip(opening, answers, strict=False)}


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
    answers: list[str] = json.loads(_run([sys.executable, "-c", code], given, cache=cache))
    return answers


def _run(words: list[str], given: str = "", cache: Path | None = None) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": "0", "XDG_CACHE_HOME": str(cache or "")}
    done = subprocess.run(
        words, input=given, capture_output=True, text=True, env=environment, cwd=HERE.parent.parent
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "Error" in line and len(line) < 500]
        why = (said or [f"exit code {done.returncode}"])[-1]
        raise AdviseError(f"the page's Python cannot be made: {why}", hint="this is a bug")
    return done.stdout


def _tar(folder: Path, to: Path) -> None:
    def plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.mtime = info.uid = info.gid = 0
        info.uname, info.gname, info.mode = "", "", 0o755 if info.isdir() else 0o644
        return info

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.add(folder, ".", filter=plain)
    to.write_bytes(gzip.compress(out.getvalue(), 9, mtime=0))


def _zip(folder: Path, to: Path) -> None:
    with zipfile.ZipFile(to, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                info = zipfile.ZipInfo(path.relative_to(folder).as_posix())  # of 1980
                archive.writestr(info, path.read_bytes(), zipfile.ZIP_DEFLATED, 9)
