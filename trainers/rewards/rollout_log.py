"""rollouts.jsonl in a stage's folder: some of the answers that the model wrote while it learned
from them, with their rewards. What a reward really pays for is seen there and nowhere else.

A line is one answer. A run has at most about a thousand lines of at most about 5 kB, so 5 MB:
eight answers of every K-th step. Texts have secrets masked and control characters escaped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from advisor.ground.files import DISK, cannot_write
from advisor.ground.terminal import json_shown, mask_secrets
from advisor.record.run import ROLLOUTS
from trainers.job.files import json_value
from trainers.job.job import Job
from trainers.say.progress import cut_metrics, metrics_line

SAMPLES = 8  # answers of a step
MOST_LINES = 1000  # of a stage, about
PROMPT_BYTES, ANSWER_BYTES = 1800, 3000  # of a text in its line, about


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
            lines = DISK.read(self.path).split(b"\n") if self.path.is_file() else []
            self.last = max((one["step"] for one in map(metrics_line, lines) if one), default=0)
        if step <= self.last:
            return False
        return self.last == 0 or step - self.last >= self.every or step == self.steps

    def write(self, step: int, rollouts: Sequence[Mapping[str, Any]]) -> None:
        """Write some of the answers of a step that is due, as `Scored.rollouts` gives them.

        Raises MachineNotReady if the disk does not take them.
        """
        lines = [self.line(step, rollouts[place]) for place in sampled(rollouts)]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            DISK.append(self.path, "".join(lines).encode())
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self.last = step

    def line(self, step: int, rollout: Mapping[str, Any]) -> str:
        record = {
            **{"stage": self.stage, "task": self.task, "step": step},
            **rollout,
            "prompt": shortened(mask_secrets(rollout["prompt"]), PROMPT_BYTES),
            "answer": shortened(mask_secrets(rollout["answer"]), ANSWER_BYTES),
            "reward": rounded(rollout["reward"]),
            "rewards": {name: rounded(score) for name, score in rollout["rewards"].items()},
            "advantage": rounded(rollout["advantage"]),
            "engine": self.engine,
        }
        return _json(json_value(record)) + "\n"


def sampled(rollouts: Sequence[Mapping[str, Any]], most: int = SAMPLES) -> list[int]:
    """Places of the answers to write, in order: the best, the worst, one that was cut, and others
    at equal distances.
    """
    places = range(len(rollouts))
    scored = [place for place in places if rollouts[place]["reward"] is not None]
    scored.sort(key=lambda place: rollouts[place]["reward"])
    cut = [place for place in places if not rollouts[place]["ended"]]
    spread = [place * len(rollouts) // most for place in range(most)] if rollouts else []
    wanted = dict.fromkeys([*scored[-1:], *scored[:1], *cut[:1], *spread, *places])
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
    return None if value is None else float(f"{value:.6g}")


def _json(value: object) -> str:
    return json_shown(json.dumps(value, ensure_ascii=False))
