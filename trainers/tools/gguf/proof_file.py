"""proof.json: what stands in a folder of GGUF files, and what shows that they are the model."""

from __future__ import annotations

import platform
import shlex
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from advisor.ground.files import shown_path
from advisor.ground.units import format_gib
from advisor.ground.version import __version__
from trainers.frame.files import read_json, write_json
from trainers.tools.gguf.find import LlamaCpp
from trainers.tools.gguf.prove import Proof

FILE = "proof.json"
PACKAGES = ("gguf", "torch", "transformers", "peft")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """One file of an export."""

    file: str  # its name in the folder
    label: str  # task or stage; `base` for the base of several adapters
    role: str  # model | base | adapter
    kind: str  # F16, BF16, Q8_0, Q4_K_M, adapter
    size_bytes: int
    base: str | None  # of an adapter: the file that it belongs on
    ends: list[int]  # tokens that end an answer
    rounding: str
    notes: list[str]
    proof: Proof | None

    @property
    def is_proved(self) -> bool:
        return self.proof is not None and self.proof.holds

    def lines(self, out: Path) -> list[str]:
        """What a user reads of it."""
        path = out / self.file
        lines = [f"{self.label}: {shown_path(path)} ({format_gib(self.size_bytes)}, {self.kind})"]
        if self.rounding:
            lines.append(f"  {self.rounding}")
        if self.proof is not None:
            lines += [f"  {line}" for line in self.proof.lines()]
        lines += [f"  {note}" for note in self.notes]
        if self.is_proved:
            lines.append(f"  serve it:  {self.serve(out)}")
        return lines

    def serve(self, out: Path) -> str:
        """The command that serves it."""
        if self.role == "adapter":
            base, own = (
                shlex.quote(shown_path(out / str(name))) for name in (self.base, self.file)
            )
            return f"llama-server -m {base} --lora {own} --jinja"
        return f"llama-server -m {shlex.quote(shown_path(out / self.file))} --jinja"

    def record(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "proved": self.is_proved,
            "proof": self.proof.record() if self.proof is not None else None,
        }


def keep_record(out: Path, exported: Exported, llama_cpp: LlamaCpp | None) -> None:
    """Put the file into proof.json, beside the others that are still there."""
    path = out / FILE
    earlier: list[dict[str, Any]] = []
    with suppress(OSError, ValueError, KeyError, TypeError):
        earlier = [
            one
            for one in read_json(path)["files"]
            if one["file"] != exported.file and (out / one["file"]).is_file()
        ]
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    write_json(
        path,
        {
            "schema_version": 1,
            "files": [*earlier, exported.record()],
            "versions": {
                "advise": __version__,
                **found,
                "llama_cpp": llama_cpp.what if llama_cpp is not None else None,
                "python": platform.python_version(),
            },
        },
    )
