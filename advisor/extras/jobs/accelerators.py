"""The GPUs of a plan by SkyPilot's names."""

from __future__ import annotations

from advisor.extras.jobs.catalogue import names_of, skypilot_accelerators
from advisor.extras.jobs.needs import Needs
from advisor.ground.errors import InputError, nearest
from advisor.probe.catalogue import load_catalogue

WHICH = "--to skypilot:NAME"


def known_name(name: str) -> str:
    """A name of SkyPilot as its list writes it. Raises InputError for one that is not there."""
    known = {one.lower(): one for one in skypilot_accelerators()}
    if name.lower() not in known:
        raise InputError(
            f"'{name}' is not in SkyPilot's list of GPUs",
            where=f"--to skypilot:{name}",
            allowed=f"known: {', '.join(known.values())}",
            hint=nearest(name.upper(), known.values()),
        )
    return known[name.lower()]


def gpu_of(name: str) -> str:
    """The GPU that a name of SkyPilot stands for first."""
    return skypilot_accelerators()[name][0]


def accelerators(needs: Needs, name: str | None) -> dict[str, int]:
    """SkyPilot's name -> GPUs of each machine: any one of them will do. Empty without a GPU.

    Raises InputError for a GPU that SkyPilot has no name for, with the nearest that have.
    """
    if not needs.gpus:
        return {}
    if name is not None and needs.gpu is not None:
        device = {"nvidia": "cuda", "amd": "rocm"}.get(needs.gpu.vendor)
        if device != needs.plan.launch.device:
            raise InputError(
                f"{needs.gpu.name} is not a GPU for this plan: launch.device is"
                f" {needs.plan.launch.device}",
                where=f"--to skypilot:{name}",
                hint=f"another GPU, or `device: {device}` in the plan",
            )
        return {name: needs.gpus}
    if needs.gpu is None:
        raise InputError(
            "which GPU the plan is for is not known, and SkyPilot rents one by its name",
            where="--to skypilot",
            hint=f"{WHICH}, such as --to skypilot:{_like(None)[0]}",
        )
    names = names_of(needs.gpu.id)
    if not names:
        raise InputError(
            f"SkyPilot's list of GPUs has no {needs.gpu.name}",
            where="--to skypilot",
            allowed=f"the nearest by memory: {', '.join(_like(needs.gpu.memory_bytes))}",
            hint=f"{WHICH} takes another GPU, and the estimate is then for that one",
        )
    return dict.fromkeys(names, needs.gpus)


def _like(memory_bytes: int | None) -> list[str]:
    """Three names of GPUs with at least as much memory, the smallest first; without one the
    largest.
    """
    catalogue = load_catalogue()
    sizes = {
        name: catalogue[ids[0]].memory_bytes or 0 for name, ids in skypilot_accelerators().items()
    }
    by_size = sorted(sizes, key=lambda name: sizes[name])
    enough = [name for name in by_size if memory_bytes and sizes[name] >= memory_bytes]
    return (enough or by_size[::-1])[:3]
