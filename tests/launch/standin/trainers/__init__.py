"""The rest of the real package, such as the launcher of several processes."""

from pathlib import Path

__path__.append(str(Path(__file__).parents[4] / "trainers"))
