"""What SkyPilot calls the GPUs of rules/hardware/ (rules/clusters/skypilot.yaml)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

from advisor.ground.resources import rules_dir
from advisor.ground.shape import Choice, Date, Keys, ListOf, MapOf, Text
from advisor.ground.sources import LINK
from advisor.ground.yaml_cache import read_shipped

SKYPILOT_FILE = Keys(
    help="What SkyPilot calls GPUs",
    keys={
        "version": Choice(values=(1,)),
        "checked": Date(help="the day somebody read the source"),
        "source": Text(pattern=LINK),
        "accelerators": MapOf(
            of=ListOf(of=Text(), least=1, help="keys under `gpus` in rules/hardware/"),
            help="SkyPilot's name -> the GPUs that it stands for",
        ),
    },
    required=("version", "checked", "source", "accelerators"),
)


@cache
def skypilot_accelerators() -> Mapping[str, Sequence[str]]:
    """SkyPilot's name -> ids of GPUs. Raises InputError with the faults of the file."""
    path = rules_dir() / "clusters" / "skypilot.yaml"
    found: Mapping[str, Sequence[str]] = read_shipped(path, shape=SKYPILOT_FILE).data[
        "accelerators"
    ]
    return found


def names_of(gpu_id: str) -> list[str]:
    """SkyPilot's names of a GPU, in the order of the file; none if it has none."""
    return [name for name, ids in skypilot_accelerators().items() if gpu_id in ids]
