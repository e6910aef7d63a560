"""Power cuts, kills, full disks and damaged checkpoints, simulated: the launcher, the records and the
code that keeps checkpoints, with a stand-in for training, on a disk that fails from a seed.

    python -m tests.faults.simulator FIRST COUNT

What programs see lies in a real folder, so that any code may read it. Beside it, a model of the
disk notes what is safe: the content of a file since it was synced, the names in a folder since the
folder was. A power cut puts the real folder back to what is safe, plus any part of the rest: of the
names each change or not, in any order between folders; of a file the old content, the new, a
beginning of it, or a tail of zeros.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest import mock

from msgspec import Struct

from advisor.estimate.past_runs import NO_RUNS
from advisor.ground import files
from advisor.ground.errors import AdviseError, MachineNotReady
from advisor.ground.extras import Checked
from advisor.ground.files import Disk
from advisor.ground.types import Hardware
from advisor.launch import Options, prepare, record_keeper, run
from advisor.launch.call import Call, ChosenGpus
from advisor.launch.record_keeper import RecordKeeper
from advisor.launch.trainer_process import Ended
from advisor.plan import read
from advisor.plan.entries import Entry
from advisor.plan.model import Plan
from advisor.record.run import DONE, ERROR, RESULT, StageResult
from advisor.record.run import FinishedRun as RunValue
from advisor.record.stage import ErrorRecord, Expected
from tests.faults.table import IN_MEMORY, Row, print_rows
from trainers.job.files import write_json
from trainers.job.job import Job, make_job
from trainers.keep.checkpoint_store import KEPT, CheckpointStore, dependencies
from trainers.keep.results import put_result
from trainers.say.progress import append_line, cut_metrics

MACHINE = Hardware(
    kind="cpu", origin="stated", cpu_cores=2, ram_total_bytes=2**33, ram_free_bytes=2**33
)
OPERATIONS = 330  # of an uninterrupted run, about
BYTES = 25_000  # that it writes, about
# A schedule is a few of these, and then attempts without faults until the run is finished.
STRIKES = ("kill", "power cut", "full disk")
DAMAGE = "damaged checkpoint"
MOST_ATTEMPTS = 4
STEPS, EVERY = 6, 2
STAGES = ("sft", "dpo")
KEYS = "update: lora, learning_rate: 1e-4, max_steps: 6, save_steps: 2"
LISTED = "".join(f"  - {{name: {name}, objective: {name}, {KEYS}}}\n" for name in STAGES)
PLAN = f"name: simulated\nmodel: model\ndata: {{path: train.jsonl}}\nstages:\n{LISTED}"
WEIGHTS, MOMENTS, RANDOM = PARTS = (
    "adapter_model.safetensors", "training_state.safetensors", "random_state_0.safetensors",
)  # fmt: skip
PLANS: dict[str, Plan] = {}


class Crash(BaseException):
    """The process is gone, in the middle of an operation."""


@dataclass(eq=False)
class File:
    """A file's content as it is read, and what of it is safe."""

    content: bytes
    safe: bytes | None = None  # None: nothing


@dataclass(eq=False)
class Folder:
    """The names in a folder as they are read, and those that are safe."""

    names: dict[str, Node] = field(default_factory=dict)
    safe: dict[str, Node] = field(default_factory=dict)


Node = File | Folder


# Changes of names that may still get lost, together: (folder, name, what it names now).
Change = list[tuple[Folder, str, Node | None]]


def apply(change: Change) -> None:
    """It is safe."""
    for folder, name, node in change:
        folder.safe.pop(name, None)
        folder.safe |= {name: node} if node is not None else {}


def full(path: Path) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


class SimulatedDisk(Disk):
    """The disk of everything below `root`; `random` decides what a power cut leaves."""

    def __init__(self, root: Path, random: Random) -> None:
        self.root, self.random = root, random
        self.tree = Folder()
        self.changes: list[Change] = []
        self.restart()
        self.adopt()
        self.sync_everything()

    # ---------------------------------------------------------------- what processes do

    def make_folder(self, path: Path) -> None:
        if path.is_dir():
            return
        self.make_folder(path.parent)
        with self._operation():
            if not self._room(1):
                raise full(path)
            path.mkdir(exist_ok=True)
            self._set(path, Folder())
        self.sync(path.parent)

    def append(self, path: Path, content: bytes) -> None:
        node = self._find(path)
        self.write(path, content, node.content if isinstance(node, File) else b"")

    def write(self, path: Path, content: bytes, before: bytes = b"") -> None:
        with self._operation() as torn:
            if torn:
                content = content[: self.random.randrange(len(content) + 1)]
            room = self._room(len(content))
            whole = before + content[:room]
            path.write_bytes(whole)
            node = self._find(path)
            if isinstance(node, File):
                node.content = whole
            else:
                self._set(path, File(whole))
            if room < len(content):
                raise full(path)

    def sync(self, path: Path) -> None:
        if not f"{path}/".startswith(f"{self.root}/"):
            return
        with self._operation():
            match node := self._find(path):
                case File():
                    node.safe = node.content
                case Folder():
                    self._adopt(node, path)
                    for change in list(self.changes):
                        if any(folder is node for folder, *_ in change):
                            apply(change)
                            self.changes.remove(change)
                case _:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

    def rename(self, source: Path, target: Path) -> None:
        with self._operation():
            os.replace(source, target)
            node = self._find(source)
            assert node is not None, source
            one, other = self._folder(source), self._folder(target)
            del one.names[source.name]
            other.names[target.name] = node
            self.changes.append([(one, source.name, None), (other, target.name, node)])

    def remove(self, path: Path) -> None:
        if not os.path.lexists(path):
            return
        for name in self.names(path):
            self.remove(path / name)
        with self._operation():
            path.rmdir() if path.is_dir() else path.unlink()
            self._set(path, None)

    # ---------------------------------------------------------------- what happens to them

    @contextmanager
    def _operation(self) -> Iterator[bool]:
        """Count an operation; whether the process dies in the middle of it."""
        self.operations += 1
        if not self.dead and self.operations == self.crash_at:
            self.dead = True
            if self.random.random() < 0.5:
                yield True
        elif not self.dead:
            yield False
        if self.dead:  # also before it did anything
            raise Crash

    def _room(self, wanted: int) -> int:
        """How many of so many bytes the disk still takes."""
        if self.room is None:
            return wanted
        taken = max(0, min(wanted, self.room))
        self.room -= wanted  # once it was full, nothing fits
        return taken

    def restart(self, crash_at: int | None = None, room: int | None = None) -> None:
        """A new process, to die inside an operation or to have so many bytes of disk."""
        self.dead, self.operations, self.crash_at, self.room = False, 0, crash_at, room

    def cut_power(self) -> None:
        """Lose what was not safe, or a part of it, and put the real folder into that state."""
        self.adopt()
        in_order = self.random.random() < 0.3  # some file systems write changes in their order
        last = self.random.randrange(len(self.changes) + 1)
        for place, change in enumerate(self.changes):
            if place < last if in_order else self.random.random() < 0.5:
                apply(change)
        self.changes.clear()
        shutil.rmtree(self.root)
        self._settle(self.tree, self.root)

    def _settle(self, folder: Folder, path: Path) -> None:
        path.mkdir()
        folder.names = dict(folder.safe)
        for name, node in folder.names.items():
            if isinstance(node, Folder):
                self._settle(node, path / name)
            else:
                if node.content != node.safe:
                    node.content = node.safe = self._torn(node)
                (path / name).write_bytes(node.content)

    def _torn(self, file: File) -> bytes:
        """What is left of a file that was not synced."""
        before, now = file.safe or b"", file.content
        cut = self.random.randrange(len(now) + 1)
        if now.startswith(before):  # appended to: what was safe stays
            cut = max(cut, len(before))
        return self.random.choice([before, now, now[:cut], now[:cut] + bytes(len(now) - cut)])

    def sync_everything(self) -> None:
        """All that is there is safe, as after a long while."""
        self.changes.clear()
        left: list[Node] = [self.tree]
        while left:
            node = left.pop()
            if isinstance(node, Folder):
                node.safe = dict(node.names)
                left += node.names.values()
            else:
                node.safe = node.content

    # ---------------------------------------------------------------- what goes past this class

    def adopt(self) -> None:
        """Take over what was made or removed without this disk, such as a lock file."""
        self._adopt(self.tree, self.root, deep=True)

    def changed_outside(self, path: Path) -> None:
        """A file was changed by somebody else, or by the disk itself: it is safe as it is now."""
        node = self._find(path)
        if path.exists():
            assert isinstance(node, File)
            node.content = node.safe = path.read_bytes()

    def _adopt(self, folder: Folder, path: Path, *, deep: bool = False) -> None:
        there = set(os.listdir(path)) if path.is_dir() else set()
        for name in set(folder.names) - there:
            del folder.names[name]
            self.changes.append([(folder, name, None)])
        for name in there:
            is_new = name not in folder.names
            if is_new:
                is_folder = (path / name).is_dir()
                node = Folder() if is_folder else File((path / name).read_bytes())
                folder.names[name] = node
                self.changes.append([(folder, name, node)])
            inner = folder.names[name]
            if isinstance(inner, Folder) and (deep or is_new):
                self._adopt(inner, path / name, deep=True)

    # ---------------------------------------------------------------- the tree

    def _find(self, path: Path) -> Node | None:
        node: Node | None = self.tree
        inside = str(path)[len(str(self.root)) + 1 :]  # pathlib would take a tenth of the time
        for part in inside.split("/") if inside else ():
            node = node.names.get(part) if isinstance(node, Folder) else None
        if node is None and path.exists() and path != self.root:
            parent = self._find(path.parent)
            if isinstance(parent, Folder):
                self._adopt(parent, path.parent)
                return parent.names.get(path.name)
        return node

    def _folder(self, path: Path) -> Folder:
        """The folder that holds a name."""
        found = self._find(path.parent)
        assert isinstance(found, Folder), path
        return found

    def _set(self, path: Path, node: Node | None) -> None:
        folder = self._folder(path)
        folder.names.pop(path.name, None)
        if node is not None:
            folder.names[path.name] = node
        self.changes.append([(folder, path.name, node)])


# --------------------------------------------------------------------------- the project


class Violation(AssertionError):
    """Something that was promised did not hold."""


def state_after(start: bytes, base: bytes, data: bytes, step: int) -> bytes:
    """The weights of a stage after a step: 320 bytes that depend on everything before."""
    found = hashlib.sha256(b"start" + start).digest()
    for number in range(step):
        found = hashlib.sha256(found + base + data + bytes([number])).digest()
    return found * 10


def promise(holds: object, text: str) -> None:
    if not holds:
        raise Violation(text)


def part_of(part: str, weights: bytes) -> bytes:
    """What a file of a checkpoint holds."""
    return weights if part == WEIGHTS else part.encode() + weights[:64]


class World:
    """A project below an empty folder, and what its user may rely on; `random` decides everything."""

    def __init__(self, root: Path, random: Random) -> None:
        self.root, self.random = root, random
        self.base, self.data = random.randbytes(600), random.randbytes(100).hex().encode()
        self.project = root / "project"
        folder = self.project / "model"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"model_type": "llama"}')
        (folder / "model.safetensors").write_bytes(self.base)
        (self.project / "train.jsonl").write_bytes(self.data)
        (self.project / "plan.yaml").write_text(PLAN)
        self.disk = SimulatedDisk(root, random)
        self.written: dict[str, set[int]] = {stage: set() for stage in STAGES}  # whole checkpoints
        self.done: set[str] = set()
        first = state_after(b"", self.base, self.data, STEPS)
        self.starts = dict(zip(STAGES, (b"", first), strict=True))

    @property
    def run(self) -> Path:
        return self.project / "run"

    def expected(self, stage: str, step: int) -> bytes:
        """The weights of an uninterrupted run after a step of a stage."""
        return state_after(self.starts[stage], self.base, self.data, step)

    # ---------------------------------------------------------------- the stand-in for a trainer

    def train(self, job: Job) -> None:
        """Train a stage as the real trainers do, with real files and without arithmetic."""
        name = job.stage.name
        promise(name not in self.done, f"{name} was done, and is trained again")
        base = Path(job.base_model, "model.safetensors").read_bytes()
        data = job.data_path.read_bytes()
        start = (job.start / WEIGHTS).read_bytes() if job.start is not None else b""
        metrics = job.run / "metrics.jsonl"
        needs = dependencies(job, {"rows": hashlib.sha256(data).hexdigest()}, steps=STEPS)
        store = CheckpointStore(job.checkpoints, needs, {"torch": "2.13.0"}, metrics, self.disk)
        found = store.newest(lambda text: None)
        step = found.step if found is not None else 0
        for part in (WEIGHTS, MOMENTS, RANDOM) if found is not None else ():
            is_whole = (found.path / part).read_bytes() == part_of(part, self.expected(name, step))
            promise(is_whole, f"{name} goes on from another {part} than step {step} had")
        newest = max(self.written[name], default=0)
        promise(step >= newest, f"{name} goes on from step {step}, though {newest} was complete")
        cut_metrics(metrics, stage=name, task=None, after=step, disk=self.disk)
        while step < STEPS:
            step += 1
            weights = state_after(start, base, data, step)
            line = {"stage": name, "task": None, "step": step, "loss": weights[0]}
            append_line(metrics, line, disk=self.disk)
            if step % EVERY == 0:
                self.save(store, name, step, weights)
        self.finish(job, state_after(start, base, data, STEPS))

    def save(self, store: CheckpointStore, stage: str, step: int, weights: bytes) -> None:
        place = store.begin(step)
        with store.writing(step):
            for part in (MOMENTS, RANDOM, WEIGHTS):
                self.disk.write(place / part, part_of(part, weights))
            state = json.dumps({"global_step": step}).encode()
            self.disk.write(place / "trainer_state.json", state)
        store.complete(step, {"steps": STEPS, "learning_rate": 1e-4, "epoch": 1.0})
        self.written[stage] = set(sorted({*self.written[stage], step})[-KEPT:])

    def finish(self, job: Job, weights: bytes) -> None:
        unfinished = job.output / ".saving"
        self.disk.remove(unfinished)
        self.disk.make_folder(unfinished)
        self.disk.write(unfinished / "adapter_config.json", b'{"peft_type": "LORA"}')
        self.disk.write(unfinished / WEIGHTS, weights)
        files = put_result(unfinished, job.output, disk=self.disk)
        result = StageResult(status=DONE, steps=STEPS, files=files)
        write_json(job.output / RESULT, result.to_dict())

    # ---------------------------------------------------------------- what happens from outside

    def damage_newest(self) -> bool:
        """Damage a file of the newest checkpoint of the stage that is not done; whether it was."""
        stage = next((stage for stage in STAGES if stage not in self.done), STAGES[0])
        folder = self.run / "stages" / stage / "checkpoints"
        there = {int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*")}
        # One that was complete before the process was told so counts as well.
        step = max(there, default=0)
        names = (*PARTS, "trainer_state.json", "complete.json")
        path = folder / f"checkpoint-{step}" / self.random.choice(names)
        if stage in self.done or max(self.written[stage], default=0) > step or not path.exists():
            return False  # what is wrong here shows when the run goes on
        self.written[stage] = (self.written[stage] & there) - {step}
        how = self.random.choice(("bit", "half", "empty", "gone"))
        if how == "gone":
            self.disk.remove(path)
            self.disk.sync_everything()
            return True
        content = bytearray(path.read_bytes())
        if how == "bit":
            content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
        else:
            del content[len(content) // 2 * (how == "half") :]
        path.write_bytes(content)
        self.disk.changed_outside(path)
        return True

    # ---------------------------------------------------------------- in the end

    def check_finished(self) -> None:
        """Everything is what an uninterrupted run leaves."""
        record = json.loads((self.run / "run.json").read_bytes())
        promise(record["status"] == DONE, f"run.json says {record['status']}")
        for stage in STAGES:
            weights = (self.run / "stages" / stage / WEIGHTS).read_bytes()
            is_equal = weights == self.expected(stage, STEPS)
            promise(is_equal, f"{stage} ended with other weights than an uninterrupted run")
        lines = [json.loads(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]
        steps = sorted((line["stage"], line["step"]) for line in lines)
        wanted = sorted((stage, step) for stage in STAGES for step in range(1, STEPS + 1))
        promise(steps == wanted, f"metrics.jsonl holds the steps {steps}")


# --------------------------------------------------------------------------- schedules


@dataclass
class Counts:
    """What was tried and what was survived."""

    schedules: int = 0
    faults: Counter[str] = field(default_factory=Counter)  # kind -> how many
    survived: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


def simulate(seeds: Iterable[int], *, stop_early: bool = False) -> Counts:
    """Run the schedule of each seed, in memory where the machine has such a place."""
    counts = Counts()
    with (
        tempfile.TemporaryDirectory(prefix="advise-simulated-", dir=IN_MEMORY) as name,
        light_launcher(),
    ):
        for seed in seeds:
            root = Path(name) / str(seed)
            root.mkdir()
            schedule = Schedule(World(root, Random(seed)))
            try:
                schedule.run()
                counts.survived.update(schedule.faults)
            except Violation as found:
                counts.violations.append(f"seed {seed}: {' > '.join(schedule.faults)}: {found}")
            counts.schedules += 1
            counts.faults.update(schedule.faults)
            shutil.rmtree(root, ignore_errors=True)
            if counts.violations and stop_early:
                break
    return counts


class Schedule:
    """The faults of one seed, one after the other, on one project."""

    def __init__(self, world: World) -> None:
        self.world, self.random = world, world.random
        self.faults: list[str] = []

    def run(self) -> None:
        """Raises Violation as soon as something that was promised does not hold."""
        for _ in range(self.random.randint(1, 3)):
            self.strike(self.random.choice(STRIKES))
            if self.random.random() < 0.5 and self.world.damage_newest():
                self.faults.append(DAMAGE)
        self.attempt_until_finished()

    def strike(self, kind: str) -> None:
        """One attempt that something stops, unless it is over before."""
        self.faults.append(kind)
        disk, limits = self.world.disk, {}
        match kind:
            case "full disk":
                limits = {"room": self.random.randrange(BYTES)}
            case _:
                limits = {"crash_at": self.random.randrange(1, OPERATIONS)}
        try:
            self.attempt(**limits)
        except Crash:
            if kind == "power cut":
                disk.cut_power()
        except AdviseError as error:
            promise(kind == "full disk", f"an attempt ended with: {error.text()}")
        disk.restart()
        disk.adopt()
        if kind != "power cut" and self.random.random() < 0.5:
            disk.sync_everything()  # a while later

    def attempt_until_finished(self) -> None:
        for _ in range(MOST_ATTEMPTS):
            try:
                ended = self.attempt()
            except AdviseError as error:
                raise Violation(f"an attempt without a fault ended with: {error.text()}") from None
            if ended.record.status == "done":
                break
        self.world.check_finished()

    def attempt(self, **limits: int) -> RunValue:
        world, accept = self.world, RecordKeeper.accept
        world.disk.restart(**limits)

        def accepted(keeper: RecordKeeper, name: str, *args: Any, **keys: Any) -> None:
            accept(keeper, name, *args, **keys)
            world.done.add(name)

        with (
            mock.patch.object(run, "TrainerStarter", return_value=Starter(world)),
            mock.patch.object(files, "DISK", world.disk),
            mock.patch.object(RecordKeeper, "accept", accepted),
        ):
            ended = run.run_plan(
                world.project / "plan.yaml",
                Options(output=world.run, hardware=MACHINE, judge=False, say=lambda text: None),
            )
        assert isinstance(ended, RunValue)
        return ended


class Starter(Struct, frozen=True):
    """Trains in this process what the launcher would start a process for."""

    world: World
    lock_fd: int = -1

    def train(self, entries: Sequence[Entry], folder: Path, *_: Any, **__: Any) -> Ended:
        plan = plan_in(folder / files.PLAN_FILE)
        for entry in entries:
            job = make_job(plan, stage=entry.stage.name, run=folder, folder=folder)
            try:
                self.world.train(job)
            except (AdviseError, OSError) as error:
                if isinstance(error, OSError):
                    error = MachineNotReady(f"{error.filename}: {error.strerror}")
                with suppress(AdviseError):
                    write_json(job.output / ERROR, ErrorRecord.of(error).to_dict())
                return Ended(error.exit_code, False)
        return Ended(0, False)


@contextmanager
def light_launcher() -> Iterator[None]:
    """The launcher without what looks at the machine: a schedule takes hundredths of a second."""
    stubs = {
        "shape": None, "gpus": ChosenGpus(), "used": MACHINE, "past": (NO_RUNS, ()),
        "expected": defaultdict(Expected),
    }  # fmt: skip
    one_thread = nullcontext(SimpleNamespace(map=map))
    with (
        mock.patch.multiple(Call, **stubs),
        mock.patch.object(run, "run_checks", return_value=Checked()),
        mock.patch.object(futures, "ThreadPoolExecutor", return_value=one_thread),
        mock.patch.object(prepare, "read_plan", plan_in),
        mock.patch.object(record_keeper, "RESERVE_BYTES", 99),
    ):
        yield


def plan_in(path: Path) -> Plan:
    """A plan file, of which equal ones are read once: that takes a third of the time."""
    text = path.read_text("utf-8")
    if text not in PLANS:
        PLANS[text] = read.read_plan(path)
    return PLANS[text]


def main() -> None:
    """Print what the schedules of so many seeds came to, from a first one on."""
    first, count = map(int, sys.argv[1:])
    counts = simulate(range(first, first + count))
    for kind, tried in counts.faults.items():
        about: dict[str, Any] = {"fault": f"simulated {kind}", "where": "stand-in trainer"}
        lost = tried - counts.survived[kind]
        broken = [Row(**about, count=lost, wrong=counts.violations)] if lost else []
        print_rows([Row(**about, count=tried - lost), *broken])


if __name__ == "__main__":
    main()
