"""What a run of transformers' Trainer, or of a trainer built on it, has logged: its
trainer_state.json, or the newest of a folder with checkpoints.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from math import copysign, inf
from pathlib import Path
from typing import Any

from msgspec import Struct

from advisor.ground.errors import Fault, InputError, refuse
from advisor.ground.files import read_at_most
from advisor.record.run import RECORD

STATE = "trainer_state.json"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
MOST_BYTES = 2**28  # of a state: 100,000 entries have a tenth of that
SNIFFED = 4096  # its keys stand in alphabetical order, so that `log_history` is among the first
MOST_READ = 3  # states that are tried, where the newest is damaged
MOST_EARLIER = 5  # checkpoints that are asked for what the newest has lost
HINT = f"name a {STATE}, or the folder that holds it or checkpoint-N folders"
MOST_METRICS = 200
FAR, NEAR = 1e30, 1e-30  # beyond the one a value counts as infinite, below the other as 0

# Numbers that are read; a wrong type in one of these is a fault, in any other metric it is no
# number and left out.
NUMBERS = ("loss", "eval_loss", "grad_norm", "learning_rate", "epoch")
KEPT = frozenset(
    (
        *NUMBERS, "reward", "reward_std", "frac_reward_zero_std", "kl", "rewards/margins",
        "rewards/accuracies", "rewards/chosen", "logps/chosen", "logps/rejected", "accuracy",
        "margin", "mean_reward", "completions/clipped_ratio", "mean_token_accuracy",
    )
)  # fmt: skip
SPEEDS = ("_runtime", "_per_second", "_num_tokens", "_time")  # of an evaluation, not its result
Series = dict[int, float]  # step -> value


class RunLog(Struct, frozen=True, kw_only=True):
    """One run, as its trainer logged it."""

    name: str  # as it was typed
    folder: Path  # of the run, with its checkpoints
    state: Mapping[str, float]  # the numbers beside the log
    best: str  # the checkpoint that the trainer calls the best; empty: none
    series: Mapping[str, Series]  # metric -> its values in the order of steps
    checkpoints: Mapping[int, Path]
    notes: Sequence[str] = ()

    def of(self, name: str) -> Series:
        """The values of a metric; none if it was not logged."""
        return self.series.get(name, {})


def kind_of_run(path: Path) -> str | None:
    """ours, trainer_state, or None for what is no run; only the first bytes of a file are read."""
    if path.is_dir():
        if (path / RECORD).is_file():
            return "ours"
        return "trainer_state" if (path / STATE).is_file() or checkpoints_in(path) else None
    if path.name == STATE:
        return "trainer_state"
    if path.suffix.lower() != ".json" or not path.is_file():
        return None
    start = read_at_most(path, SNIFFED)
    if path.name == RECORD and b'"schema_version"' in start:
        return "ours"
    is_state = b'"log_history"' in start and start.lstrip().startswith(b"{")
    return "trainer_state" if is_state else None


def checkpoints_in(folder: Path) -> dict[int, Path]:
    """Step -> checkpoint folder, the newest first."""
    named = ((CHECKPOINT.fullmatch(one.name), one) for one in folder.glob("checkpoint-*"))
    found = {int(match[1]): one for match, one in named if match and one.is_dir()}
    return dict(sorted(found.items(), reverse=True))


def read_log(name: str) -> RunLog:
    """The log of a run, from the newest of its states that can be read.

    Raises InputError with every fault of the newest state, if none can be read.
    """
    path = Path(name)
    folder = path if path.is_dir() else path.parent
    inside = CHECKPOINT.fullmatch(folder.absolute().name)
    run = folder.absolute().parent if inside else folder
    checkpoints = checkpoints_in(run)
    files = [path]
    if path.is_dir():
        files = [folder / STATE, *(() if inside else (one / STATE for one in checkpoints.values()))]
        files = [one for one in files if one.is_file()]
        if not files:
            what = f"no {STATE} in it or its checkpoints"
            raise InputError(what, where=name, hint="copy the checkpoints with it")
    read, notes, faults = list[tuple[Path, dict[str, Any]]](), list[str](), list[Fault]()
    for file in files[:MOST_READ]:  # the run's own, and those of the newest checkpoints
        found = list(_faults_of(file, read))
        faults += found
        notes += [f"left out: {one.headline}" for one in found[:1]]
        if len(read) == 2:
            break
    if not read:
        refuse(faults)
    own, newest = max(read, key=lambda one: _number(one[1]["global_step"]) or 0)
    series, said = _series(newest["log_history"])
    notes += said
    notes += _fill_from_earlier(series, newest, [one for one in files if one != own])
    numbers = ("global_step", "max_steps", "num_train_epochs", "epoch", "best_metric")
    # The largest integer stands for the epochs where steps alone are planned.
    stated = ((key, _number(newest.get(key))) for key in numbers)
    state = {key: value for key, value in stated if value is not None and abs(value) < 2**53}
    step = _number(newest.get("best_global_step"))
    best = str(newest.get("best_model_checkpoint") or "") or (
        f"checkpoint-{step:g}" if step else ""
    )
    return RunLog(
        name=name, folder=run, state=state, best=re.split(r"[\\/]", best)[-1],
        series=series, checkpoints=checkpoints, notes=tuple(notes),
    )  # fmt: skip


def _fill_from_earlier(
    series: dict[str, Series], newest: Mapping[str, Any], files: Sequence[Path]
) -> Iterator[str]:
    """Add the steps before the first that the newest state holds, from earlier checkpoints."""
    first = min(map(min, filter(None, series.values())), default=0)
    every = _number(newest.get("logging_steps")) or 1
    for file in files[:MOST_EARLIER]:
        if first <= max(every, 1):
            return
        read = list[tuple[Path, dict[str, Any]]]()
        if list(_faults_of(file, read)):
            continue
        before = first
        for key, values in _series(read[0][1]["log_history"])[0].items():
            older = {step: value for step, value in values.items() if step < before}
            first = min((first, *older))
            series[key] = {**older, **series.get(key, {})}
        if first < before:
            yield f"the steps before {before} are from {file.parent.name}"


def _faults_of(file: Path, read: list[tuple[Path, dict[str, Any]]]) -> Iterator[Fault]:
    """What is wrong with a state; one without a fault is added to `read`."""
    where = str(file)
    try:
        raw = read_at_most(file, MOST_BYTES)
        data = None if len(raw) > MOST_BYTES else json.loads(raw)
    except (ValueError, RecursionError, OSError) as error:
        said = error if isinstance(error, ValueError) else type(error).__name__
        yield Fault(where=where, what=f"cannot be read as JSON: {said}", hint=HINT)
        return
    if data is None:
        most = f"at most {MOST_BYTES >> 20} MiB"
        yield Fault(where=where, what="is too large, or null", allowed=most, hint=HINT)
        return
    found = list(_wrong(data, where))
    yield from found
    if not found:
        read.append((file, data))


def _wrong(data: Any, where: str) -> Iterator[Fault]:
    if not isinstance(data, dict) or not isinstance(data.get("log_history"), list):
        yield Fault(where=where, what="has no list `log_history`: no trainer's state", hint=HINT)
        return
    step = data.get("global_step")
    if not _is_number(step) or step is None or not 0 <= float(step) < 2**53:
        yield Fault(where=where, what="`global_step` is no number of steps", allowed="0 or more")
    for number, entry in enumerate(data["log_history"]):
        at = f"{where}: log_history[{number}]"
        if not isinstance(entry, dict):
            yield Fault(where=at, what="is no entry of a log", allowed="a map of names to numbers")
            continue
        for key in ("step", *NUMBERS):
            if key in entry and not _is_number(entry[key]):
                said = f"`{key}` is {str(entry[key])[:40]!r}"
                yield Fault(where=at, what=said, allowed="a number")


def _is_number(value: Any) -> bool:
    return value is None or _number(value) is not None


def _number(value: Any) -> float | None:
    """A number, also one that was written as a text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _series(entries: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Series], list[str]]:
    """(metric -> step -> value in the order of steps, what was left out). A run that was resumed
    goes back some steps: what it logs anew counts, and what followed before is dropped.
    """
    found: dict[str, Series] = {}
    without = back = last = 0
    for entry in entries:
        step = _number(entry.get("step"))
        if step is None or not abs(step) < 2**53:
            without += 1
            continue
        at = int(step)
        if at < last:
            back += 1
            for values in found.values():
                while values and next(reversed(values)) > at:
                    values.popitem()
        last = at
        for key, value in entry.items():
            is_result = key.startswith("eval_") and not key.endswith(SPEEDS)
            if not (key in KEPT or is_result) or (number := _number(value)) is None:
                continue
            if key in found or len(found) < MOST_METRICS:
                number = copysign(inf, number) if abs(number) > FAR else number
                found.setdefault(key, {})[at] = 0.0 if abs(number) < NEAR else number
    notes = [f"{without} entries of the log name no step and are left out"] if without else []
    if back:
        times = "once" if back == 1 else f"{back} times"
        notes.append(f"the log goes back {times}, as of a resumed run: the later entries count")
    return found, notes
