"""The rest of the real package; its launcher for several machines is one that needs no torch."""

import os
from pathlib import Path

if "STAND_IN_MACHINES" in os.environ:
    __path__.append(str(Path(__file__).parents[1] / "machines"))
__path__.append(str(Path(__file__).parents[4] / "trainers"))
