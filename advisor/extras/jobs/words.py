"""What is said of a bundle: on the screen, in its README.txt, and how its job is submitted."""

from __future__ import annotations

import os
import shlex
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advisor.extras.jobs.contents import Contents
from advisor.ground.units import format_gib
from advisor.ground.version import __version__
from advisor.plan.model import Plan

ARCHIVE = ".tar.gz"
SCRIPT = "run.sh"
COPY_HERE = "COPY_HERE.sha256"
WIDTH = 78  # of what is said on the screen and in comments


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What makes a bundle one for a scheduler."""

    ending: str  # of the bundle's name where none was chosen
    files: Mapping[str, str]  # name -> text of what the scheduler reads
    about: Sequence[str]  # what was chosen and what is not known, line by line
    where: str  # "On the cluster": where the commands are typed
    is_copied: bool  # the archive is copied there first
    commands: Sequence[str]  # to be typed in the folder
    facts: Mapping[str, Any]  # the same as JSON


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """A bundle that was written."""

    name: str
    folder: Path | None  # None: the archive alone was wanted
    archive: Path
    contents: Contents
    job: Job | None = None

    def lines(self, here: Path) -> list[str]:
        """What was written, what is not in it, and how it is used."""
        places = [place for place in (self.folder, self.archive) if place is not None]
        size = self.archive.stat().st_size
        lines = [
            f"Wrote {' and '.join(_short(place, here) for place in places)}"
            f" ({size / 1e6:,.1f} MB packed)."
        ]
        lines += _not_carried(self.contents, from_here=True)
        packed = shlex.quote(self.archive.name)
        if self.job is not None:
            return [*lines, *self.job_lines(here)]
        return [
            *lines,
            "On the GPU machine (Linux, Python 3.11 or later):",
            f"  scp {shlex.quote(_short(self.archive, here))} HOST:",
            f"  tar xzf {packed} && bash {shlex.quote(f'{self.name}/{SCRIPT}')}",
        ]

    def facts(self) -> dict[str, Any]:
        """The same as JSON: what was written, and what the job asks for."""
        places = [place for place in (self.folder, self.archive) if place is not None]
        return {
            "written": [str(place) for place in places],
            "not_carried": _not_carried(self.contents, from_here=True),
            **({"job": dict(self.job.facts)} if self.job is not None else {}),
        }

    def job_lines(self, here: Path) -> list[str]:
        """What the job asks for, and how it is submitted."""
        assert self.job is not None
        enter = [f"cd {shlex.quote(_short(self.folder or Path(self.name), here))}"]
        if self.job.is_copied:
            archive = shlex.quote(self.archive.name)
            enter = [
                f"scp {shlex.quote(_short(self.archive, here))} HOST:",
                f"tar xzf {archive} && cd {shlex.quote(self.name)}",
            ]
        elif self.folder is None:
            enter = [f"tar xzf {shlex.quote(_short(self.archive, here))}", *enter]
        commands = (f"  {line}" for line in (*enter, *self.job.commands))
        return [*self.job.about, f"{self.job.where}:", *commands]


def readme(contents: Contents, job: Job | None = None) -> str:
    """What the bundle is and how it is used, in about ten lines."""
    plan = contents.plan
    what = plan.origin.composition or " > ".join(stage.objective for stage in plan.stages)
    start = [
        f"Start (in tmux or screen: closing the terminal saves and stops):  bash {SCRIPT}",
        f"Resume after Ctrl-C, a crash or a restart:  bash {SCRIPT}",
    ]
    if job is not None:
        start = [f"Submit:  {line}" for line in job.commands]
    elif plan.launch.nodes > 1:
        start[:1] = [
            f"Start on every machine, in this folder, which they share, with NODE_RANK=0, 1, ...:"
            f"  NNODES={plan.launch.nodes} MASTER_ADDR=THE_FIRST NODE_RANK=0 bash {SCRIPT}",
        ]
    lines = [
        f"{plan.name}: {what} of {plan.model}, made by finetune-advisor {__version__}.",
        "",
        *start,
        f"It needs Linux, Python 3.11 or later{_device_words(plan)} and a connection for pip.",
        f"{SCRIPT} checks the files, installs advise/ at tested versions into .venv, does a dry run"
        " and trains.",
        "The result and its report are written below runs/. For the commands that are printed then,"
        " such as `advise chat`: source .venv/bin/activate",
        "Bring them back, from the first machine: scp -r HOST:THIS_FOLDER/runs .",
        *_not_carried(contents),
        "This folder holds your data as it is: whoever has it can read them. It holds no token.",
    ]
    return "\n".join([*lines, ""])


def _device_words(plan: Plan) -> str:
    """', an NVIDIA GPU'; nothing for a plan that trains on the processor."""
    kind = {"cuda": "NVIDIA", "rocm": "AMD", "mps": "Apple"}.get(plan.launch.device)
    gpus, machines = plan.launch.processes, plan.launch.nodes
    if kind is None:
        return ""
    each = f", {machines} machines each with" if machines > 1 else ","
    return f"{each} an {kind} GPU" if gpus == 1 else f"{each} {gpus} {kind} GPUs"


def _not_carried(contents: Contents, *, from_here: bool = False) -> list[str]:
    """What is needed and not in the bundle.

    Args:
        from_here: Say where it lies on this machine, which is nobody's business elsewhere.
    """
    lines = []
    for what, name in contents.fetched:
        licence, is_gated = _licence(name) if what == "model" else ("", False)
        known = f" (licence {licence})" if licence else ""
        lines.append(f"Not in it: {what} {name}{known}, which is downloaded there.")
        if is_gated or (what == "model" and not licence):
            first = "Its licence" if is_gated else "If it asks for a licence, that"
            lines.append(
                f"  {first} must be accepted at https://huggingface.co/{name}; then set HF_TOKEN"
                " there."
            )
    left = [one for one in contents.files if not one.is_included]
    for place in dict.fromkeys("/".join(one.name.split("/")[:2]) for one in left):
        files = [one for one in left if f"{one.name}/".startswith(f"{place}/")]
        size = format_gib(sum(one.size_bytes for one in files))
        source = files[0].source if files[0].name == place else files[0].source.parent
        origin = f" from {source}" if from_here else ""
        lines += [
            f"Not in it: {place}, {size}, which is too large.",
            f"  Copy or link it there{origin}; {COPY_HERE} has its SHA-256.",
        ]
    return [*lines, *contents.notes]


def _licence(model: str) -> tuple[str, bool]:
    """(licence, whether it has to be accepted first) of a hub model, as the catalogue knows it."""
    from advisor.situation.shapes import model_shape

    shape = model_shape(model)[0]
    return (shape.license or "", bool(shape.gated)) if shape is not None else ("", False)


def _short(path: Path, here: Path) -> str:
    """The path as short as it can be typed from here."""
    if not path.is_relative_to(here.resolve()):
        return str(path)
    short = os.path.relpath(path, here)
    # scp and tar take '-a' for options and 'a:b' for another machine.
    return f"./{short}" if short.startswith("-") or ":" in short else short


def wrapped(lines: Iterable[str]) -> list[str]:
    """The lines, none wider than a screen; what goes on is set further in."""
    wrapped: list[str] = []
    for line in lines:
        inner = line[: len(line) - len(line.lstrip())] + "    "
        wrapped += textwrap.wrap(
            line, WIDTH, subsequent_indent=inner, break_long_words=False, break_on_hyphens=False
        ) or [""]
    return wrapped
