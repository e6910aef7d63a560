"""rollouts.jsonl in a stage's folder: some of the answers that the model wrote while it learned
from them, with their rewards. What a reward really pays for is seen there and nowhere else.

A line is one answer. A run has at most about a thousand lines of at most about 5 kB, so 5 MB:
eight answers of every K-th step. Texts have secrets masked and control characters escaped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from advisor.ground.files import DISK, cannot_write
from advisor.ground.terminal import json_shown, mask_secrets
from advisor.record.run import ROLLOUTS
from trainers.job.files import json_value
from trainers.job.job import Job
from trainers.rewards.scoring import Score
from trainers.say.progress import cut_metrics, metrics_line

SAMPLES = 8  # answers of a step
MOST_LINES = 1000  # of a stage, about
PROMPT_BYTES, ANSWER_BYTES = 1800, 3000  # of a text in its line, about


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """An answer, with what it was worth."""

    prompt: str  # as the template writes it
    answer: str
    rewards: Mapping[str, Score]  # by name, before weights
    reward: Score  # their weighted sum
    advantage: float | None
    tokens: int
    ended: bool  # with a stop token; else the limit cut it


class RolloutLog:
    """The file, as long as the stage trains.

    Args:
        job: The stage.
        steps: Optimizer steps of the whole stage.
        engine: What writes the answers.
    """

    def __init__(self, job: Job, steps: int, *, engine: str = "transformers") -> None:
        self.path, self.stage, self.task = job.output / ROLLOUTS, job.stage.name, job.task
        self.steps, self.engine = steps, engine
        self.every = max(1, math.ceil(steps * SAMPLES / MOST_LINES))
        self.last: int | None = None  # the last step in the file; None: not opened yet

    def is_due(self, step: int) -> bool:
        """Whether answers of this step are written: of the first, the last, and every K-th; of each
        step once.

        The first call removes what an earlier attempt wrote of this step and later ones.
        """
        if self.last is None:
            cut_metrics(self.path, stage=self.stage, task=self.task, after=step - 1)
            self.last = last_step(self.path)
        if step <= self.last:
            return False
        return self.last == 0 or step - self.last >= self.every or step == self.steps

    def write(self, step: int, rollouts: Sequence[Rollout]) -> None:
        """Write some of the answers of a step that is due.

        Raises MachineNotReady if the disk does not take them.
        """
        lines = [self.line(step, rollouts[place]) for place in sampled(rollouts)]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            DISK.append(self.path, "".join(lines).encode())
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self.last = step

    def line(self, step: int, rollout: Rollout) -> str:
        """The line of one answer."""
        record = {
            "stage": self.stage,
            "task": self.task,
            "step": step,
            "prompt": shortened(mask_secrets(rollout.prompt), PROMPT_BYTES),
            "answer": shortened(mask_secrets(rollout.answer), ANSWER_BYTES),
            "reward": rounded(rollout.reward),
            "rewards": {name: rounded(score) for name, score in rollout.rewards.items()},
            "advantage": rounded(rollout.advantage),
            "tokens": rollout.tokens,
            "ended": rollout.ended,
            "engine": self.engine,
        }
        return _json(json_value(record)) + "\n"


def last_step(path: Path) -> int:
    """The last step in a file of rollouts; 0 if there is none."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    return max((record["step"] for record in map(metrics_line, lines) if record), default=0)


def sampled(rollouts: Sequence[Rollout], most: int = SAMPLES) -> list[int]:
    """Places of the answers to write, in order: the best, the worst, one that was cut, and others
    at equal distances.
    """
    scored = [place for place, one in enumerate(rollouts) if one.reward is not None]
    cut = [place for place, one in enumerate(rollouts) if not one.ended]
    wanted: dict[int, None] = {}
    if scored:
        wanted[max(scored, key=lambda place: rollouts[place].reward or 0.0)] = None
        wanted[min(scored, key=lambda place: rollouts[place].reward or 0.0)] = None
    wanted |= dict.fromkeys(cut[:1])
    spread = (place * len(rollouts) // most for place in range(most))
    wanted |= dict.fromkeys([*spread, *range(len(rollouts))] if rollouts else [])
    return sorted(list(wanted)[:most])


def shortened(text: str, most_bytes: int) -> str:
    """The text, with its middle left out if its line would hold more bytes of it."""
    length = len(_json(text).encode())
    if length <= most_bytes:
        return text
    kept = max(2, len(text) * most_bytes // length)
    head, tail = text[: kept // 2], text[len(text) - kept // 2 :]
    left_out = len(text) - len(head) - len(tail)
    return f"{head} [... {left_out:,} characters left out ...] {tail}"


def rounded(value: float | None) -> float | None:
    """Six significant digits."""
    return None if value is None else float(f"{value:.6g}")


def _json(value: object) -> str:
    return json_shown(json.dumps(value, ensure_ascii=False))
