"""The stand-in for the trainers, with a launcher of several processes that needs no torch."""

from pathlib import Path

__path__.append(str(Path(__file__).parents[2] / "standin" / "trainers"))
__path__.append(str(Path(__file__).parents[4] / "trainers"))
