"""What a run of transformers' Trainer, or of a trainer built on it, has logged: its
trainer_state.json, the newest of a folder with checkpoints, or what it printed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from math import copysign, inf
from pathlib import Path
from typing import Any

from msgspec import Struct

from advisor.extras.other_tools.notebook import json_fault
from advisor.extras.other_tools.printed_log import is_output, printed, printed_state
from advisor.ground.errors import Fault, InputError, refuse
from advisor.ground.files import MOST_CONFIG_BYTES, read_at_most
from advisor.record.run import RECORD

STATE = "trainer_state.json"
ADAPTER, WEIGHTS = "adapter_config.json", ("model.safetensors", "model.safetensors.index.json")
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
MOST_BYTES = 2**28  # of a state: 100,000 entries have a tenth of that
SNIFFED = 4096  # its keys stand in alphabetical order, so that `log_history` is among the first
MOST_READ = 5  # states of one run that are read
MOST_METRICS = 200
LARGEST = 2**53  # of a step; transformers writes a larger one for epochs that are not planned
FAR, NEAR = 1e30, 1e-30  # beyond the one a value counts as infinite, below the other as 0
HINT = f"name a {STATE}, or the folder that holds it or checkpoint-N folders"
# A wrong type in one of these is a fault; another metric that is no number is left out.
NUMBERS = ("step", "loss", "eval_loss", "grad_norm", "learning_rate", "epoch")
KEPT = frozenset(
    (
        *NUMBERS, "reward", "reward_std", "frac_reward_zero_std", "kl", "rewards/margins",
        "rewards/accuracies", "logps/chosen", "logps/rejected", "accuracy", "margin",
        "completions/clipped_ratio",
    )
)  # fmt: skip
SPEEDS = ("_runtime", "_per_second", "_num_tokens", "_time")  # of an evaluation, not its result
Series = dict[int, float]  # step -> value, in the order of steps


class RunLog(Struct, frozen=True, kw_only=True):
    """One run, as its trainer logged it."""

    folder: Path  # of the run, with its checkpoints
    state: Mapping[str, float]  # the numbers beside the log
    best: str  # the name of the checkpoint that the trainer calls the best; empty: none
    series: Mapping[str, Series]
    checkpoints: Mapping[int, Path]  # the newest first
    notes: Sequence[str] = ()

    def of(self, name: str) -> Series:
        """The values of a metric; none if it was not logged."""
        return self.series.get(name, {})

    def weights_of(self, step: int) -> Path | None:
        """The folder with the weights after a step; None if they are not beside the log."""
        is_last = step == self.state["global_step"] and _weights_in(self.folder) is not None
        return self.checkpoints.get(step) or (self.folder if is_last else None)

    def trained(self) -> tuple[str | None, str | None]:
        """(update, base model) by the files beside the log; None for what they do not say."""
        for folder in (self.folder, *self.checkpoints.values()):
            name = _weights_in(folder)
            if name == ADAPTER:
                with suppress(OSError, ValueError):
                    said = json.loads(read_at_most(folder / name, MOST_CONFIG_BYTES))
                    kind, base = (said[key] for key in ("peft_type", "base_model_name_or_path"))
                    return str(kind).lower(), base if isinstance(base, str) else None
            if name is not None:
                return "full", None
        return None, None


def _weights_in(folder: Path) -> str | None:
    """The file that tells weights of an adapter from those of a whole model."""
    return next((name for name in (ADAPTER, *WEIGHTS) if (folder / name).is_file()), None)


def kind_of_run(path: Path) -> str | None:
    """ours, trainer_state, or None for what is no run; only the first bytes of a file are read."""
    if path.is_dir():
        if (path / RECORD).is_file():
            return "ours"
        return "trainer_state" if (path / STATE).is_file() or checkpoints_in(path) else None
    if path.suffix.lower() != ".json" or not path.is_file():
        return None
    start = read_at_most(path, SNIFFED).lstrip()
    if path.name == RECORD and b'"schema_version"' in start:
        return "ours"
    is_state = path.name == STATE or (start.startswith(b"{") and b'"log_history"' in start)
    return "trainer_state" if is_state else None


def checkpoints_in(folder: Path) -> dict[int, Path]:
    """Step -> checkpoint folder, the newest first."""
    named = ((CHECKPOINT.fullmatch(one.name), one) for one in folder.glob("checkpoint-*"))
    found = {int(match[1]): one for match, one in named if match and one.is_dir()}
    return dict(sorted(found.items(), reverse=True))


def read_log(name: str) -> RunLog:
    """The log of a run from the newest of its states; steps that it has lost, as where a resumed
    run begins a new log, come from earlier ones.

    Raises InputError with every fault if no state can be read.
    """
    path = Path(name)
    folder = path if path.is_dir() else path.parent
    is_checkpoint = CHECKPOINT.fullmatch(folder.absolute().name)
    run = folder.absolute().parent if is_checkpoint else folder
    checkpoints, files = checkpoints_in(run), [path]
    if path.is_dir():
        inside = () if is_checkpoint else checkpoints.values()
        files = [one for place in (folder, *inside) if (one := place / STATE).is_file()]
    if not files:
        what = f"no {STATE} in it or its checkpoints"
        raise InputError(what, where=name, hint="copy the checkpoints with it")
    states, notes, faults = list[tuple[str, dict[str, Any]]](), list[str](), list[Fault]()
    for file in files[:MOST_READ]:
        data, said = (
            printed_state(printed(file)) if is_output(file) else (_json_of(file, faults), [])
        )
        notes += said
        states += [(file.parent.name, data)] if data is not None else []
        if len(states) > 1 and _first(states[0][1]) <= _every(states[0][1]):
            break  # the newest is whole
    if not states:
        refuse(faults)
    notes += [f"left out: {one.headline}" for one in faults[:1]]
    states.sort(key=lambda one: -(_number(one[1]["global_step"]) or 0))
    newest = states[0][1]
    series, said = _series(newest["log_history"])
    notes += said
    for place, data in states[1:]:
        first = min((next(iter(one)) for one in series.values() if one), default=0)
        older = {
            key: kept
            for key, values in _series(data["log_history"])[0].items()
            if (kept := {step: value for step, value in values.items() if step < first})
        }
        if older:
            series |= {key: values | series.get(key, {}) for key, values in older.items()}
            notes.append(f"the steps before {first} are from {place}")
    stated = ((key, _number(newest.get(key))) for key in newest if key != "log_history")
    step = _number(newest.get("best_global_step"))
    best = newest.get("best_model_checkpoint") or (f"checkpoint-{step:g}" if step else "")
    return RunLog(
        folder=run, best=re.split(r"[\\/]", str(best))[-1], series=series,
        state={key: one for key, one in stated if one is not None and abs(one) < LARGEST},
        checkpoints=checkpoints, notes=notes,
    )  # fmt: skip


def _json_of(file: Path, faults: list[Fault]) -> dict[str, Any] | None:
    """A state without a fault; None for any other, whose faults are added."""
    where, found = str(file), list[Fault]()
    try:
        raw = read_at_most(file, MOST_BYTES)
        if len(raw) > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES >> 20} MiB")
        data = json.loads(raw)
        found += _wrong(data, where)
    except (ValueError, RecursionError, OSError) as error:
        said, where = json_fault(error, where)
        found.append(Fault(where=where, what=f"cannot be read as JSON: {said}", hint=HINT))
    faults += found
    return None if found else data


def _wrong(data: Any, where: str) -> Iterator[Fault]:
    if not isinstance(data, dict) or not isinstance(data.get("log_history"), list):
        yield Fault(where=where, what="has no list `log_history`: no trainer's state", hint=HINT)
        return
    step = _number(data.get("global_step"))
    if step is None or not 0 <= step < LARGEST:
        yield Fault(where=where, what="`global_step` is no number of steps", allowed="0 or more")
    for number, entry in enumerate(data["log_history"]):
        at = f"{where}: log_history[{number}]"
        if not isinstance(entry, dict):
            yield Fault(where=at, what="is no entry of a log", allowed="a map of names to numbers")
            continue
        for key in NUMBERS:
            if (value := entry.get(key)) is not None and _number(value) is None:
                yield Fault(where=at, what=f"`{key}` is {str(value)[:40]!r}", allowed="a number")


def _number(value: Any) -> float | None:
    """A number, also one that was written as a text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _first(data: Mapping[str, Any]) -> float:
    steps = (_number(one.get("step")) for one in data["log_history"])
    return next((one for one in steps if one is not None), 0)


def _every(data: Mapping[str, Any]) -> float:
    return max(_number(data.get("logging_steps")) or 1, 1)


def _series(entries: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Series], list[str]]:
    """(metric -> step -> value, what was left out). A run that was resumed goes back some steps:
    what it logs anew counts, and what followed before is dropped.
    """
    found: dict[str, Series] = {}
    without = back = last = 0
    for entry in entries:
        step = _number(entry.get("step"))
        if step is None or not abs(step) < LARGEST:
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
