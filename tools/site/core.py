"""core.bin: the advisor, its rules and what it needs, compiled and prepared for the page.

A line of JSON, `[[path, bytes], ...]`, and the files; gzip. A source whose bytecode is there is
empty: some files are found by their names, none is read.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from advisor.ground.errors import AdviseError
from advisor.ground.resources import PACKAGE, rules_dir
from advisor.situation.catalogue import known_ids
from tools.site.packages import AS_IT_IS, node, parts

HERE = Path(__file__).parent
ROOT = "/advise"  # in the worker's file system, as in site/python.mjs
LEFT_OUT = ("peft_adapter", "_bundled", "__pycache__")  # of advisor/
PURE = ("yaml", "click")  # packages that are copied as they are installed here
# Not for a page: they start processes, windows or tests. Nothing the advisor imports needs them.
NOT_NEEDED = (
    "unittest", "pydoc_data", "ensurepip", "idlelib", "tkinter", "turtle", "turtledemo", "venv",
    "lib2to3", "pdb", "doctest", "sqlite3", "curses", "wsgiref", "xmlrpc", "mailbox", "pickletools",
)  # fmt: skip
EPOCH = (1980, 1, 1, 0, 0, 0)

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


def write_python(
    out: Path, stage: Path, pyodide: Path | None, example: Mapping[str, Any]
) -> dict[str, Any]:
    """Write pyodide/ and core.bin. Returns what the page says of the example, by request.

    Raises AdviseError if a part is missing or cannot be made.
    """
    folder, wheel = parts(pyodide)
    _copy_sources(stage / "core", wheel)
    with zipfile.ZipFile(folder / "python_stdlib.zip") as archive:
        archive.extractall(stage / "stdlib", _wanted(archive.namelist()))
    _run([node(), str(HERE / "prepare.mjs"), str(folder), str(stage)], "the bytecode")
    opening = [("advise", example), ("plan", example)]
    one_of_each = {name.partition("/")[0]: name for name in known_ids()}  # their files are apart
    listed = [{"model": name, "gpu": "T4"} for name in one_of_each.values()]
    texts = _keep_rules(stage / "cache", [*opening, *SAMPLES, ("estimate", listed)])
    (out / "core.bin").write_bytes(_packed(stage))
    (out / "pyodide").mkdir()
    for name in AS_IT_IS:
        shutil.copyfile(folder / name, out / "pyodide" / name)
    (out / "pyodide" / "python_stdlib.zip").write_bytes(_zipped(stage / "stdlib"))
    lock = json.loads((folder / "pyodide-lock.json").read_text("utf-8"))
    text = json.dumps({"info": lock["info"], "packages": {}})
    (out / "pyodide" / "pyodide-lock.json").write_text(text, "utf-8")
    return {name: json.loads(text) for (name, _), text in zip(opening, texts, strict=False)}


def _wanted(names: list[str]) -> Iterator[str]:
    for name in names:
        first = name.partition("/")[0].removesuffix(".py")
        if first not in NOT_NEEDED:
            yield name


def _copy_sources(core: Path, wheel: Path) -> None:
    ignored = shutil.ignore_patterns(*LEFT_OUT, "*.pyi", "*.so", "*.pyd", "_yaml*")
    shutil.copytree(PACKAGE, core / "advisor", ignore=ignored)
    shutil.copytree(rules_dir(), core / "rules", ignore=shutil.ignore_patterns("schema"))
    for name in PURE:
        spec = find_spec(name)
        origin = None if spec is None else spec.origin
        shutil.copytree(Path(str(origin)).parent, core / name, ignore=ignored)
    shutil.copyfile(HERE / "page_entry.py", core / "page_entry.py")
    with zipfile.ZipFile(wheel) as archive:
        inside = [name for name in archive.namelist() if name.startswith("msgspec/")]
        archive.extractall(core, [name for name in inside if not name.endswith(".pyi")])


def _keep_rules(cache: Path, requests: Sequence[tuple[str, Any]]) -> list[str]:
    """Fill the advisor's own cache of its rules with what these requests need. Returns the answers.

    In a process of its own, which has that cache from its start.
    """
    code = (
        "import json, sys; from tools.site.page_entry import answer; print(json.dumps("
        "[answer(name, json.dumps(body))[0] for name, body in json.load(sys.stdin)]))"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONHASHSEED": "0"}
    text = _run([sys.executable, "-c", code], "the rules", json.dumps(requests), environment)
    found: list[str] = json.loads(text)
    return found


def _run(
    words: list[str], what: str, given: str | None = None, env: dict[str, str] | None = None
) -> str:
    done = subprocess.run(
        words, input=given, capture_output=True, text=True, env=env, cwd=HERE.parent.parent
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "Error" in line and len(line) < 500]
        said = (lines or [f"exit code {done.returncode}"])[-1]
        raise AdviseError(f"{what} of the page cannot be made: {said[:500]}", hint="this is a bug")
    return done.stdout


def _packed(stage: Path) -> bytes:
    files: dict[str, bytes] = {}
    for folder, place in ((stage / "core", ROOT), (stage / "cache", f"{ROOT}/cache")):
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                compiled = list((path.parent / "__pycache__").glob(f"{path.stem}.cpython-*.pyc"))
                is_compiled = path.suffix == ".py" and compiled
                name = f"{place}/{path.relative_to(folder).as_posix()}"
                files[name] = b"" if is_compiled else path.read_bytes()
    listed = json.dumps([[name, len(content)] for name, content in files.items()])
    whole = b"".join((listed.encode(), b"\n", *files.values()))
    return gzip.compress(whole, 9, mtime=0)


def _zipped(folder: Path) -> bytes:
    """The standard library as bytecode."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not (path.suffix == ".py" and path.with_suffix(".pyc").is_file()):
                info = zipfile.ZipInfo(path.relative_to(folder).as_posix(), EPOCH)
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, path.read_bytes())
    return out.getvalue()
