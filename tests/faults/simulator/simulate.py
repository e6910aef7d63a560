"""Survive schedules of faults from seeds: python -m tests.faults.simulator.simulate FIRST COUNT."""

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
from advisor.ground.errors import AdviseError, InputError, MachineNotReady, Stopped
from advisor.ground.extras import Checked
from advisor.ground.types import Hardware
from advisor.launch import Options, prepare, record_keeper, run
from advisor.launch.call import Call, ChosenGpus
from advisor.launch.record_keeper import RecordKeeper
from advisor.launch.trainer_process import Ended
from advisor.plan import read
from advisor.plan.entries import Entry
from advisor.plan.model import Plan
from advisor.record.run import ERROR
from advisor.record.run import FinishedRun as RunValue
from advisor.record.stage import ErrorRecord, Expected
from tests.faults.simulator.world import STEPS, Crash, Violation, World, promise
from tests.faults.table import IN_MEMORY, Row, print_rows
from trainers.job.files import write_json
from trainers.job.job import make_job

MACHINE = Hardware(
    kind="cpu", origin="stated", cpu_cores=2, ram_total_bytes=2**33, ram_free_bytes=2**33
)
OPERATIONS = 330  # of an uninterrupted run, about
BYTES = 25_000  # that it writes, about
# A schedule is a few of these, and then attempts without faults until the run is finished.
STRIKES = ("kill", "power cut", "full disk", "signal")
DAMAGES = ("damaged checkpoint", "damaged checkpoint", "moved project", "other weights")
FINISHED = "damaged result"
MOST_ATTEMPTS = 4
PLANS: dict[str, Plan] = {}


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
            if self.random.random() < 0.6:
                self.change(self.random.choice(DAMAGES))
        self.attempt_until_finished()
        if self.random.random() < 0.3:
            self.faults.append(FINISHED)
            self.refuse_damaged_result()
            self.attempt_until_finished()

    def strike(self, kind: str) -> None:
        """One attempt that something stops, unless it is over before."""
        self.faults.append(kind)
        disk, limits = self.world.disk, {}
        match kind:
            case "full disk":
                limits = {"room": self.random.randrange(BYTES)}
            case "signal":
                self.world.stops_in = self.random.randrange(1, 2 * STEPS)
            case _:
                limits = {"crash_at": self.random.randrange(1, OPERATIONS)}
        self.world.tries_second_writer = self.random.random() < 0.1
        try:
            self.attempt(**limits)
        except Crash:
            if kind == "power cut":
                disk.cut_power()
        except AdviseError as error:
            is_told = kind == "full disk" or (kind == "signal" and isinstance(error, Stopped))
            promise(is_told, f"an attempt ended with: {error.text()}")
        self.world.stops_in = None
        disk.restart()
        disk.adopt()
        if kind != "power cut" and self.random.random() < 0.5:
            disk.sync_everything()  # a while later

    def change(self, kind: str) -> None:
        world = self.world
        has_begun = (world.run / "run.json").is_file()
        match kind:
            case "moved project":
                world.move()
            case "damaged checkpoint" if len(world.done) == 2 or not world.damage_newest():
                return
            case "other weights" if not has_begun or world.is_trained():
                return  # nothing would be trained with them
            case "other weights":
                self.refuse_other_weights()
        self.faults.append(kind)

    def refuse_other_weights(self) -> None:
        world = self.world
        world.swap_weights(world.random.randbytes(len(world.base)))
        try:
            self.attempt()
            raise Violation("a run went on with other weights in the base model")
        except InputError as error:
            promise("model" in error.text(), error.text())
        world.swap_weights(world.base)

    def refuse_damaged_result(self) -> None:
        """A finished run with a damaged result is not called finished; its user follows the advice."""
        world = self.world
        path = world.damage_result()
        try:
            self.attempt()
        except InputError as error:
            promise(path.name in error.text(), error.text())
            world.disk.remove(path)
        else:
            promise(path.parent.name in world.done, "a damaged result was called finished")

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
                return Ended(error.exit_code, isinstance(error, Stopped))
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
