"""What the files about GPUs and those that read them have in common."""

from __future__ import annotations

from advisor.ground.shape import Text

FOLDERS = ("hardware", "prices")  # below rules/
# Facts about GPUs in general, and devices that are none.
NOT_GPUS = ("sources.yaml", "cuda.yaml", "not-supported.yaml", "accelerators.yaml", "links.yaml")
FORMATS = ("fp16", "bf16", "fp8", "fp4", "tf32", "fp32")
RELEASE = Text(pattern=r"\d+\.\d+", such_as='"12.8", quoted so that 12.10 stays 12.10')


def capability(text: object) -> tuple[int, int] | None:
    """A compute capability as numbers: "8.9" -> (8, 9); None for anything else."""
    major, dot, minor = str(text).partition(".")
    return (int(major), int(minor)) if dot and major.isdigit() and minor.isdigit() else None
