"""What each machine of a run tells of itself, and whether the machines fit together."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from advisor.ground.errors import Fault
from advisor.ground.types import Gpu, Hardware
from advisor.ground.units import format_gib
from advisor.ground.version import __version__

Report = dict[str, Any]
LIBRARIES = (
    "torch", "transformers", "peft", "trl", "accelerate", "datasets", "safetensors", "bitsandbytes",
)  # fmt: skip
SAME_MEMORY = 0.02  # GPUs of one kind tell slightly different sizes
SHOWN_CHARS = 200


def report_of(
    *, digest: str, command: Mapping[str, Any], hardware: Hardware, gpus: Sequence[Gpu]
) -> Report:
    """What this machine tells.

    Args:
        digest: Of the plan, with what --set changes.
        command: Flag -> value, of those that have to be the same everywhere.
        hardware: This machine.
        gpus: Those that the run takes.
    """
    python = ".".join(map(str, sys.version_info[:2]))
    libraries = {name: hardware.software.get(name) for name in LIBRARIES}
    return {
        "versions": {"advise": __version__, "Python": python, **libraries},
        "machine": os.uname().machine,
        "plan": digest,
        "command": dict(command),
        "gpus": [
            {
                "name": gpu.name,
                "memory_total_bytes": gpu.memory_total_bytes,
                "memory_free_bytes": gpu.memory_free_bytes,
                "index": gpu.index,
            }
            for gpu in gpus
        ],
    }


def gpus_of(report: Mapping[str, Any]) -> tuple[Gpu, ...]:
    """The GPUs that a machine has told of."""
    return tuple(
        Gpu(
            name=str(one.get("name"))[:SHOWN_CHARS],
            memory_total_bytes=_whole(one.get("memory_total_bytes")),
            memory_free_bytes=_whole(one.get("memory_free_bytes")),
            index=_whole(one.get("index")),
        )
        for one in _dicts(report.get("gpus"))
    )


def input_faults(own: Report, other: Report, words: str) -> Iterator[Fault]:
    """What another machine was started with that is not what this one was started with.

    Args:
        words: Of the other machine: 'node 1 (gpu-b)'.
    """
    if other.get("plan") != own["plan"]:
        yield Fault(
            where=words,
            what="it was started with another plan than node 0",
            allowed="the same plan file, and the same --set, on every machine",
        )
    if other.get("command") != own["command"]:
        here, there = own["command"], other.get("command")
        differing = [
            flag
            for flag, value in here.items()
            if not isinstance(there, dict) or there.get(flag) != value
        ]
        yield Fault(
            where=words,
            what=f"it was started with other flags than node 0: {', '.join(differing) or 'others'}",
            allowed="the same command on every machine",
        )


def machine_faults(own: Report, other: Report, words: str) -> Iterator[Fault]:
    """What keeps another machine from training together with this one."""
    here, there = own["versions"], other.get("versions")
    there = there if isinstance(there, dict) else {}
    differing = [name for name in here if there.get(name) != here[name]]
    if differing:
        pairs = (f"{one} {_shown(there.get(one))} ({_shown(here[one])} here)" for one in differing)
        yield Fault(
            where=words,
            what=f"other versions than on node 0: {', '.join(pairs)}",
            allowed="the same versions on every machine, or results depend on where they ran",
            hint="install the same environment on all, or one on the shared disk",
        )
    if other.get("machine") != own["machine"]:
        yield Fault(
            where=words,
            what=f"its processor is {_shown(other.get('machine'))}, and {own['machine']} here",
            allowed="machines of one kind",
        )
    mine, others = gpus_of(own), gpus_of(other)
    kinds = [sorted(gpu.name for gpu in gpus) for gpus in (mine, others)]
    if kinds[0] != kinds[1] and len(mine) == len(others):
        yield Fault(
            where=words,
            what=f"other GPUs than on node 0: {_list(kinds[1])}, and {_list(kinds[0])} here",
            allowed="GPUs of one kind: the slowest and smallest would decide for all",
            hint="ask the scheduler for one kind (Slurm: --constraint or --gres=gpu:KIND:N)",
        )
    elif len(mine) == len(others):
        sizes = [sorted(gpu.memory_total_bytes or 0 for gpu in gpus) for gpus in (mine, others)]
        for one, two in zip(*sizes, strict=True):
            if one and two and abs(one - two) > SAME_MEMORY * max(one, two):
                yield Fault(
                    where=words,
                    what=f"its GPUs have other memory than on node 0: {format_gib(two)}, and"
                    f" {format_gib(one)} here",
                    allowed="GPUs of one kind: the smallest would decide for all",
                )
                break


def changed_inputs(own: Mapping[str, str], other: Mapping[str, Any], words: str) -> Iterator[Fault]:
    """Data and models that hold something else on another machine.

    Args:
        own: Name of an input -> digest of what it holds.
    """
    differing = [name for name, digest in own.items() if other.get(name) != digest]
    if differing:
        yield Fault(
            where=words,
            what=f"it reads something else than node 0 in: {', '.join(differing[:5])}",
            allowed="the same model and the same rows on every machine",
            hint="put them on the shared disk, or copy them again",
        )


def faults_to_message(faults: Sequence[Fault]) -> list[dict[str, str]]:
    """As they are sent."""
    return [
        {name: getattr(fault, name)[:2000] for name in ("what", "where", "allowed", "hint")}
        for fault in faults[:20]
    ]


def faults_of(value: object, words: str) -> list[Fault]:
    """The faults that another machine has found, each under its name."""
    return [
        Fault(
            where=words,
            what=": ".join(filter(None, (str(one.get("where", "")), str(one.get("what", ""))))),
            allowed=str(one.get("allowed", "")),
            hint=str(one.get("hint", "")),
        )
        for one in _dicts(value)
    ]


def _dicts(value: object) -> list[dict[str, Any]]:
    found = value if isinstance(value, list) else []
    return [one for one in found if isinstance(one, dict)]


def _whole(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 2**60 else None


def _shown(value: object) -> str:
    return "not installed" if value is None else str(value)[:SHOWN_CHARS]


def _list(kinds: Sequence[str]) -> str:
    return ", ".join(kinds)[:SHOWN_CHARS] or "none"
