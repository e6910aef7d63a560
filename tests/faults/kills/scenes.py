"""Plans that train in a second, their processes, and what happens in a run folder as it happens:
a kill that is meant to fall into a save of some milliseconds cannot wait for a poll.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil

from tests.conftest import save_tiny_model
from tests.distributed.models import DATA, REWARD
from tests.faults.table import ROOT
from tests.launch.conftest import write_rows

CLOCK = ("tokens_per_s", "memory_bytes", "seconds")  # and *_s: never twice the same
SHORT = "micro_batch_size: 2, seq_len: 96, holdout: 0.1"
LORA = f"update: lora, rank: 4, learning_rate: 1e-2, {SHORT}"
WRITES = "response_tokens: 6, reward: 'own.py:score'"
PPO = f"{LORA.replace('1e-2', '1e-3')}, grad_accum: 2, response_tokens: 6, kl_limit: 100"
# Objective -> the data and the stages of its plan.
PLANS = {
    "sft": ("chats", f"{LORA}, max_steps: 12, save_steps: 2"),
    "cpt": (
        "texts",
        "update: full, learning_rate: 1e-3, micro_batch_size: 2, seq_len: 64, holdout: 0.1,"
        " max_steps: 9, save_steps: 3",
    ),
    "dpo": ("pairs", f"{LORA}, max_steps: 8, save_steps: 2"),
    "kto": ("votes", f"{LORA.replace('size: 2', 'size: 4')}, max_steps: 6, save_steps: 2"),
    "rm": ("pairs", f"{LORA}, max_steps: 9, save_steps: 3"),
    "rloo": ("pairs", f"{LORA}, {WRITES}, generations: 4, max_steps: 6, save_steps: 2"),
    "ppo": ("pairs", f"{PPO}, reward: 'own.py:score', max_steps: 10, save_steps: 2"),
    "sft>rm>ppo": (
        "pairs",
        f"{LORA}, max_steps: 4, save_steps: 2",
        f"{LORA}, max_steps: 4, save_steps: 2",
        f"{PPO}, max_steps: 6, save_steps: 2",
    ),
    "departments": ("", f"{LORA}, max_steps: 6, save_steps: 2"),
    "two processes": ("chats", f"{LORA}, max_steps: 8, save_steps: 2"),
    "two processes, fsdp": (
        "chats",
        f"update: full, learning_rate: 1e-3, {SHORT}, max_steps: 8, save_steps: 2",
    ),
}
# Plans that several processes train.
SEVERAL = {"two processes": "ddp", "two processes, fsdp": "fsdp"}
SAID = {
    "legal": "See clause {} of the contract.",
    "hr": "Ask for form {}, please.",
    "sales": "That is {} euros, today only!",
}


def plan_text(objective: str) -> str:
    """Its plan, for a folder with `fill`'s files."""
    data, *stages = PLANS[objective]
    names = objective.split(">") if data and objective not in SEVERAL else ["sft"]
    tasks = ", ".join(f"{{name: {task}, data: {{path: {task}.jsonl}}}}" for task in SAID)
    found = f"data: {{path: {data}.jsonl}}" if data else f"tasks: [{tasks}]"
    text = f"name: shop\nmodel: ./model\n{found}\nstages:\n"
    for name, keys in zip(names, stages, strict=True):
        text += f"  - {{name: {name}, objective: {name}, {keys}}}\n"
    if objective in SEVERAL:
        text += f"launch: {{processes: 2, strategy: {SEVERAL[objective]}}}\n"
    return text


def fill(folder: Path) -> None:
    """Write the model, the data and the plans into a folder."""
    (folder / "model").mkdir(parents=True)
    save_tiny_model(folder / "model")
    (folder / "own.py").write_text(REWARD)
    for name in ("chats", "pairs", "votes", "texts"):
        write_rows(folder / f"{name}.jsonl", map(DATA[name], range(40)))
    for task, said in SAID.items():
        rows = [{"question": f"What about {n}?", "answer": said.format(n)} for n in range(24)]
        write_rows(folder / f"{task}.jsonl", rows)
    for objective in PLANS:
        (folder / plan_of(objective)).write_text(plan_text(objective))


def plan_of(objective: str) -> Path:
    """The name of its plan's file."""
    return Path(re.sub(r"\W+", "-", objective) + ".yaml")


@dataclass(frozen=True)
class Scene:
    """One objective's plan in a folder, its uninterrupted run, and what happened in that."""

    folder: Path
    objective: str
    events: tuple[str, ...] = ()  # paths in the run folder, in the order in which they changed
    result: Mapping[str, Any] | None = None
    seconds: float = 0.0

    @property
    def plan(self) -> Path:
        return plan_of(self.objective)

    @property
    def whole(self) -> str:
        """The run folder of the uninterrupted run."""
        return f"whole-{self.plan.stem}"

    @property
    def save_steps(self) -> int:
        """Steps between two checkpoints."""
        return max(map(int, re.findall(r"save_steps: (\d+)", plan_text(self.objective))))

    def start(self, output: str, folder: Path | None = None) -> Command:
        place = folder or self.folder
        log = place / f"{output}.log"
        return advise("run", str(self.plan), "--output", output, folder=place, log=log)


def make_scene(folder: Path, objective: str) -> Scene:
    """The scene, once its plan has trained without interruption; a RuntimeError if it fails."""
    scene = Scene(folder, objective)
    run = folder / scene.whole
    run.mkdir()
    events: list[str] = []
    began = time.monotonic()
    with Watch(run) as watch:
        command = scene.start(scene.whole)
        while command.process.poll() is None:
            events += watch.events(0.05)
        events += watch.events(0)
    if command.process.returncode != 0:
        raise RuntimeError(f"{objective} does not train: {command.output}")
    seconds = time.monotonic() - began
    return replace(scene, events=tuple(events), result=result_of(run), seconds=seconds)


def result_of(run: Path) -> dict[str, Any]:
    """What an interruption must not change: weights by the byte, and numbers but the clock's."""
    record = json.loads((run / "run.json").read_text("utf-8"))
    order = [stage["name"] for stage in record["stages"]]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    lines.sort(key=lambda line: (order.index(stage_name(line)), line["step"]))
    kept = ("name", "status", "steps", "loss_first", "loss_last", "evaluation")
    return {
        "status": record["status"],
        "weights": {
            path.relative_to(run).as_posix(): sha256(path.read_bytes()).hexdigest()
            for path in sorted(run.glob("stages/*/*.safetensors"))
        },
        "metrics": [without_clock(line) for line in lines],
        "stages": [
            {key: without_clock(stage.get(key)) for key in kept} for stage in record["stages"]
        ],
        "cross_evaluation": record.get("cross_evaluation"),
        # Names that only something half done would have.
        "left behind": sorted(
            path.relative_to(run).as_posix() for path in run.rglob(".*") if path.name != ".lock"
        ),
    }


def stage_name(line: Mapping[str, Any]) -> str:
    return f"{line['stage']}-{line['task']}" if line.get("task") else str(line["stage"])


def without_clock(value: Any) -> Any:
    """A record without its seconds."""
    if isinstance(value, dict):
        return {
            key: without_clock(item)
            for key, item in value.items()
            if key not in CLOCK and not key.endswith("_s")
        }
    return value


def difference(one: Any, other: Any) -> str:
    """The first place in which two results differ; empty if in none."""
    if isinstance(one, dict) and isinstance(other, dict):
        pairs = [(key, one.get(key), other.get(key)) for key in {**one, **other}]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = list(zip(range(len(one)), one, other, strict=True))
    else:
        return "" if one == other else f"{str(one)[:80]}, not {str(other)[:80]}"
    return next((f"{key}: {difference(a, b)}" for key, a, b in pairs if a != b), "")


# --------------------------------------------------------------------------- processes

MARK = "ADVISE_FAULTS_MARK"  # in the environment of every process of one run
# A background shell leaves SIGINT ignored, nohup SIGHUP, and children inherit that.
START = (
    "import signal, sys; [signal.signal(n, signal.SIG_DFL) for n in (1, 2, 15)];"
    " signal.signal(2, signal.default_int_handler); sys.argv[0] = 'advise';"
    " from advisor.cli import main; main()"
)


@dataclass
class Command:
    """One `advise` process, with its output in a file."""

    process: subprocess.Popen[bytes]
    mark: str
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text("utf-8", errors="replace")

    def running(self) -> dict[int, str]:
        """Process number -> command line, of everything that belongs to this run and lives."""
        every = (one.info for one in psutil.process_iter(["pid", "cmdline", "environ", "status"]))
        return {
            one["pid"]: " ".join(one["cmdline"] or ())
            for one in every
            if (one["environ"] or {}).get(MARK) == self.mark and one["status"] != "zombie"
        }

    def trainers(self) -> list[int]:
        """The child that trains; of several processes, the launcher first and then its workers."""
        others = {
            pid: words
            for pid, words in self.running().items()
            if pid != self.process.pid and "trainers" in words
        }
        return sorted(others, key=lambda pid: ("say.torchrun" not in others[pid], pid))

    def wait(self, seconds: float) -> int | None:
        """The exit code; None if it did not end in time."""
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None

    def wait_for_all(self, seconds: float) -> list[str]:
        """Command lines of what still lives after so many seconds."""
        until = time.monotonic() + seconds
        while (left := self.running()) and time.monotonic() < until:
            time.sleep(0.05)
        return list(left.values())

    def end(self) -> None:
        for pid in [self.process.pid, *self.running()]:
            send(pid, signal.SIGKILL)
        self.process.wait()


def advise(*arguments: str, folder: Path, log: Path) -> Command:
    """Start `advise ARGUMENTS` in a folder, in a process group of its own."""
    mark = uuid.uuid4().hex
    env = {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "", MARK: mark,
    }  # fmt: skip
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", START, *arguments],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Command(process, mark, log)


def send(pid: int, number: int, *, group: bool = False) -> bool:
    """Send a signal, to the process or to its whole group; False if the process is gone."""
    try:
        os.killpg(os.getpgid(pid), number) if group else os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


# --------------------------------------------------------------------------- its folder

# Of Linux' inotify, through the C library.
MODIFY, MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x02, 0x40, 0x80, 0x100, 0x200
WATCHED = MODIFY | MOVED_FROM | MOVED_TO | CREATE | DELETE
IS_FOLDER = 0x40000000
HEAD = struct.Struct("iIII")


class Watch:
    """Events below a folder, those of folders made later included. A context manager."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        self.library = ctypes.CDLL(None, use_errno=True)
        self.places: dict[int, Path] = {}

    def __enter__(self) -> Watch:
        self.fd = self.library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        list(self._add(self.root))
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def _add(self, folder: Path) -> Iterator[str]:
        """Watch the folder; the paths of what was in it before it was watched."""
        number = self.library.inotify_add_watch(self.fd, os.fsencode(folder), WATCHED)
        if number < 0:
            return  # it is gone again
        self.places[number] = folder
        with suppress(OSError):
            for path in list(folder.iterdir()):
                yield path.relative_to(self.root).as_posix()
                if path.is_dir() and not path.is_symlink():
                    yield from self._add(path)

    def events(self, timeout_s: float) -> Iterator[str]:
        """Paths, relative to the folder, of what happened since the last call; waits for the first."""
        if not select.select([self.fd], [], [], timeout_s)[0]:
            return
        data, at = os.read(self.fd, 1 << 16), 0
        while at < len(data):
            number, mask, _, length = HEAD.unpack_from(data, at)
            at += HEAD.size + length
            name = data[at - length : at].rstrip(b"\0")
            if number not in self.places or not name:
                continue
            path = self.places[number] / os.fsdecode(name)
            yield path.relative_to(self.root).as_posix()
            if mask & IS_FOLDER and mask & (CREATE | MOVED_TO):
                yield from self._add(path)
