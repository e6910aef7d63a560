"""Types of GGUF files: those that we write, and those that llama.cpp makes of a 16-bit file."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

from advisor.ground.errors import InputError, MachineNotReady, nearest
from advisor.ground.progress import waiting
from trainers.tools.gguf.engine import LIMITS_S, EngineFailed, Process
from trainers.tools.gguf.find import HOW, LlamaCpp, find_quantize
from trainers.tools.gguf.libllama import QUANTIZATIONS
from trainers.tools.gguf.write import Written, whole_file

OURS = ("F16", "BF16", "Q8_0")
MORE_BITS = re.compile(r"(\d+) of (\d+) tensor\S* required fallback")  # what llama.cpp says


def check_level(kind: str, llama_cpp: LlamaCpp | None) -> None:
    """Raise InputError for a type that is none, MachineNotReady for one that needs llama.cpp
    where there is none.
    """
    if not kind:
        return
    if kind not in QUANTIZATIONS:
        raise InputError(
            f"unknown type of GGUF file '{kind}'",
            where=f"--to gguf:{kind}",
            allowed=f"types: {', '.join(QUANTIZATIONS)}",
            hint=nearest(kind.upper(), QUANTIZATIONS),
        )
    if kind not in OURS and llama_cpp is None and find_quantize() is None:
        raise MachineNotReady(f"{kind} is made by llama.cpp, and it is not here", hint=HOW)


def quantize(source: Written, path: Path, kind: str, llama_cpp: LlamaCpp | None) -> Written:
    """The file in a smaller type. Raises MachineNotReady with what llama.cpp said."""
    with whole_file(path) as temporary, waiting(f"quantising to {kind}"):
        said = _by_library(source.path, temporary, kind, llama_cpp) if llama_cpp else ""
        if llama_cpp is None:
            _by_program(source.path, temporary, kind)
    notes = list(source.notes)
    if counted := MORE_BITS.search(said):
        notes.append(
            f"llama.cpp kept more bits in {counted[1]} of {counted[2]} tensors: their rows are no"
            f" multiple of the blocks of {kind}"
        )
    return replace(
        source,
        path=path,
        kind=kind,
        size_bytes=path.stat().st_size,
        rounding="",
        notes=tuple(notes),
    )


def _by_library(source: Path, target: Path, kind: str, llama_cpp: LlamaCpp) -> str:
    try:
        with Process(llama_cpp) as engine:
            return engine.quantize(source, target, kind)
    except EngineFailed as error:
        raise MachineNotReady(f"llama.cpp cannot make {kind}: {error}", hint=HOW) from None


def _by_program(source: Path, target: Path, kind: str) -> None:
    program = find_quantize()
    assert program is not None
    try:
        done = subprocess.run(
            [program, str(source), str(target), kind],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=LIMITS_S["quantize"],
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise MachineNotReady(f"llama-quantize did not make {kind} in hours", hint=HOW) from None
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise MachineNotReady(f"llama-quantize cannot make {kind}: {' '.join(last)}", hint=HOW)
