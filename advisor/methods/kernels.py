"""The kernels that a plan can name, and what each needs: a GPU, a package, a compiler.

The facts are in rules/hardware/cuda.yaml. What this machine has of it: installed.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from advisor.ground.resources import rules_dir
from advisor.ground.shape import Choice, Date, Keys, ListOf, MapOf, Text
from advisor.ground.yaml_files import SOURCE, read_shipped
from advisor.methods.installed import HUB_PACKAGE, why_no_package

AUTO = "auto"
OWN = ("eager", "sdpa")  # attention that is part of transformers and PyTorch, for every device
ATTENTIONS = (
    AUTO,
    *OWN,
    "flash_attention_2",
    "flash_attention_3",
    "flex_attention",
    "kernels-community/flash-attn2",
    "kernels-community/flash-attn3",
    "kernels-community/aiter-flash-attn",
)
LAYER_KERNELS = ("none", AUTO, "liger", "hub")


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """What one kernel needs."""

    name: str  # as a plan names it
    first: tuple[int, ...] | None = None  # compute capability; None: any
    last: tuple[int, ...] | None = None
    widest_head: int | None = None
    half_only: bool = False  # computes in 16 bit alone
    module: str | None = None  # that it is imported from
    package: str | None = None  # that has the module
    hub: str | None = None  # repository of the hub that has it ready built
    triton: bool = False
    devices: tuple[str, ...] = ("cuda",)

    def runs_on(self, capability: tuple[int, ...] | None) -> bool:
        """Whether a GPU of this compute capability has the instructions; True if it is unknown."""
        if capability is None:
            return True
        return (self.first is None or self.first <= capability) and (
            self.last is None or capability <= self.last
        )

    @property
    def needs(self) -> str:
        """'compute capability 9.0 to 9.9'."""
        first, last = (".".join(map(str, end or ())) for end in (self.first, self.last))
        to = f" to {last}" if last else " and more"
        return f"compute capability {first}{to}" if first else "any GPU"

    @property
    def why_not_installed(self) -> str:
        """Why it cannot be loaded here, as far as files tell; empty if nothing speaks against
        it.
        """
        return why_no_package(self.module, self.package, hub=self.hub is not None)

    @property
    def packages(self) -> tuple[str, ...]:
        """Names in pip, of which one is enough; empty if it needs none."""
        hub = (HUB_PACKAGE,) if self.hub else ()
        return ((self.package,) if self.package else ()) + hub


@cache
def kernel(name: str) -> Kernel | None:
    """What the kernel needs; None for those that are part of PyTorch or transformers."""
    data = read_shipped(rules_dir() / "hardware" / "cuda.yaml").data  # probe/ checks it
    entry = data["kernels"].get(name)
    if entry is None:
        return None
    cuda = ("cuda",) if entry.get("cuda", True) else ()
    return Kernel(
        name=name,
        first=_capability(entry.get("from")),
        last=_capability(entry.get("to")),
        devices=cuda + (("rocm",) if entry.get("rocm") else ()),
        **{key: entry[key] for key in ("widest_head", "half_only", "module", "package", "hub",
                                       "triton") if key in entry},
    )  # fmt: skip


def _capability(text: str | None) -> tuple[int, ...] | None:
    return tuple(map(int, text.split("."))) if text else None


def is_flash(attention: str) -> bool:
    """Whether it is a flash attention, which takes rows of any lengths laid end to end."""
    return "flash" in attention


def needs_gpu(attention: str) -> bool:
    """Whether its kernels exist for GPUs alone."""
    return attention not in (AUTO, *OWN)


ACCELERATORS_FILE = Keys(
    help="GPUs on which this tool's trainers were never run",
    keys={
        "version": Choice(values=(1,)),
        "review_by": Date(),
        "accelerators": MapOf(
            named=Choice(values=("mps", "rocm")),
            of=Keys(
                keys={
                    "says": Text(help="of every training there"),
                    "in_4_bit": Text(help="of a base in 4 bits besides"),
                    "sources": ListOf(of=SOURCE, least=1),
                },
                required=("says", "in_4_bit", "sources"),
            ),
        ),
    },
    required=("version", "accelerators"),
)


def never_tried(kind: str, quantization: str | None) -> tuple[str, ...]:
    """What is said of training on hardware of a kind (`Hardware.kind`), on such a base."""
    if kind not in ("mps", "rocm"):
        return ()
    entry = accelerators()[kind]
    return (entry["says"], *([entry["in_4_bit"]] if quantization == "nf4" else []))


@cache
def accelerators() -> Mapping[str, Mapping[str, Any]]:
    """Kind of hardware -> what the file says of it."""
    path = rules_dir() / "hardware" / "accelerators.yaml"
    found: Mapping[str, Mapping[str, Any]] = read_shipped(path, shape=ACCELERATORS_FILE).data[
        "accelerators"
    ]
    return found
