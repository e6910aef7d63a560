"""What a stage that learns from its own answers shows of them: each reward over the run, and a few
answers of rollouts.jsonl from its start and its end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from advisor.ground.files import text_of
from advisor.plan.record import RewardRecord

MOST_BYTES = 32 * 2**20  # of a file; trainers write about 5 MB
SHOWN_CHARACTERS = 400  # of a text
SAMPLE_COLUMNS = ("step", "which", "prompt", "answer", "reward", "tokens")
REWARD_COLUMNS = ("reward", "weight", "first step", "last step", "spread", "without a score")


def read_rollouts(path: Path) -> list[dict[str, Any]]:
    """The lines of rollouts.jsonl; one that is damaged is left out, and so is a file that is far
    larger than trainers write it.
    """
    if not path.is_file() or path.stat().st_size > MOST_BYTES:
        return []
    found = []
    for line in text_of(path, errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            found.append(entry)
    return found


def sample_rows(lines: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """The best and the worst answer of the first and of the last step, and one that was cut."""
    steps = sorted({line["step"] for line in lines})
    for step in dict.fromkeys(steps[:1] + steps[-1:]):
        own = [line for line in lines if line["step"] == step]
        scored = [line for line in own if isinstance(line.get("reward"), int | float)]
        shown: list[int] = []
        for which, chosen in (
            ("best", max(scored, key=_reward, default=None)),
            ("worst", min(scored, key=_reward, default=None)),
            ("cut", next((line for line in own if line.get("ended") is False), None)),
        ):
            if chosen is not None and id(chosen) not in shown:
                shown.append(id(chosen))
                cut = which != "cut" and chosen.get("ended") is False
                yield _row(step, f"{which}, cut" if cut else which, chosen)


def _reward(line: Mapping[str, Any]) -> float:
    return float(line["reward"])


def _row(step: int, which: str, line: Mapping[str, Any]) -> list[str]:
    rewards = line.get("rewards")
    parts = [
        f"{name} {_number(score)}"
        for name, score in (rewards.items() if isinstance(rewards, dict) else ())
    ]
    listed = f" ({', '.join(parts)})" if len(parts) > 1 else ""
    tokens = line.get("tokens")
    return [
        f"{step:,}",
        which,
        _text(line.get("prompt")),
        _text(line.get("answer")),
        f"{_number(line.get('reward'))}{listed}",
        f"{tokens:,}" if isinstance(tokens, int) else "",
    ]


def _text(value: Any) -> str:
    words = " ".join(value.split()) if isinstance(value, str) else ""
    return words if len(words) <= SHOWN_CHARACTERS else f"{words[:SHOWN_CHARACTERS]} ..."


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else "none"


def _known(value: float | None) -> str:
    return "" if value is None else _number(value)


def reward_rows(records: Sequence[RewardRecord]) -> list[list[str]]:
    """One row for each of several rewards."""
    return [
        [
            one.name,
            f"{one.weight:g}",
            _known(one.first),
            _known(one.last),
            "always the same"
            if one.constant
            else ""
            if one.spread is None
            else _number(one.spread),
            "" if one.missing is None else f"{one.missing:.1%}",
        ]
        for one in records
    ]
