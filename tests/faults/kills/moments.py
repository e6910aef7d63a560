"""When a kill strikes: not after some time, but into what the run is doing to its folder."""

from __future__ import annotations

import random
import re
import time
from dataclasses import dataclass

from tests.faults.kills.inotify import Watch
from tests.faults.kills.processes import Command
from tests.faults.kills.scenes import Scene

ENDS_S = 240.0  # no tiny run takes so long
# What happens in a run folder while each of these goes on.
WORDS = {
    "as it starts": r"(\.lock|run\.json|plan\.yaml|prepared|stages/[^/]+/before\.json)$",
    "in a step": r"metrics\.jsonl$",
    "while a checkpoint is written": r"stages/[^/]+/checkpoints/.",
    "while the result is saved": r"stages/[^/]+/(\.saving|(adapter_|model|tokenizer|generation_))",
    "while it is judged": r"stages/[^/]+/[^./][^/]*\.safetensors$",
    "between two stages": r"stages/[^/]+/result\.json$",
}
JUDGING_S = 1.5
ANY_TIME = "at any time"


@dataclass(frozen=True)
class Moment:
    """The nth time that something happens in the run folder, and a little later."""

    name: str
    pattern: str | None  # of the path that changes; None: the delay alone counts
    nth: int = 1
    further: int = 0  # so many further changes, of whatever file
    delay_s: float = 0.0

    def wait(self, watch: Watch, command: Command) -> bool:
        """True once it has come; False if the run ended before."""
        until = time.monotonic() + ENDS_S
        left, after = (self.nth, self.further) if self.pattern else (0, 0)
        matches = re.compile(self.pattern or "").match
        while left > 0 or after > 0:
            for path in watch.events(0.02):
                if left > 0:
                    left -= bool(matches(path))
                elif after > 0:
                    after -= 1
                if left <= 0 and after <= 0:
                    break
            if command.process.poll() is not None or time.monotonic() > until:
                return False
        time.sleep(self.delay_s)
        return command.process.poll() is None


def draw_moment(name: str, scene: Scene, dice: random.Random, *, attempt: int) -> Moment:
    """A moment of this kind. Later attempts have less before them, so their counts are smaller."""
    if name == ANY_TIME:
        return Moment(name, None, delay_s=dice.uniform(0.3, scene.seconds))
    pattern = WORDS[name]
    count = sum(1 for path in scene.events if re.match(pattern, path))
    if name == "while it is judged":
        return Moment(name, pattern, delay_s=dice.uniform(0, JUDGING_S))
    if name == "between two stages":
        stages = 1 if attempt else dice.randint(1, max(1, count - 1))
        return Moment(name, pattern, nth=stages, further=dice.randint(0, 8))
    reached = max(1, count // (attempt + 2)) if name != "as it starts" else count
    return Moment(name, pattern, nth=dice.randint(1, reached))
