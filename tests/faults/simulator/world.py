"""One project on a simulated disk: a plan of two stages, what has been promised to its user so far,
and a training whose every state is known beforehand.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from random import Random

from advisor.ground.errors import MachineNotReady, Stopped
from advisor.launch.folder import RunFolder
from advisor.record.run import DONE, RESULT, StageResult
from tests.faults.simulator.disk import SimulatedDisk
from trainers.job.files import write_json
from trainers.job.job import Job
from trainers.keep.checkpoint_store import KEPT, CheckpointStore, dependencies
from trainers.keep.results import put_result
from trainers.say.progress import append_line, cut_metrics

STEPS, EVERY = 6, 2
STAGES = ("sft", "dpo")
PLAN = """\
name: simulated
model: model
data: {path: train.jsonl}
stages:
  - {name: sft, objective: sft, update: lora, learning_rate: 1e-4, max_steps: 6, save_steps: 2}
  - {name: dpo, objective: dpo, update: lora, learning_rate: 1e-4, max_steps: 6, save_steps: 2}
"""
WEIGHTS, MOMENTS, RANDOM = (
    "adapter_model.safetensors",
    "training_state.safetensors",
    "random_state_0.safetensors",
)
PARTS = (WEIGHTS, MOMENTS, RANDOM, "trainer_state.json", "complete.json")


class Violation(AssertionError):
    """Something that was promised did not hold."""


def state_after(start: bytes, base: bytes, data: bytes, step: int) -> bytes:
    """The weights of a stage after a step: 320 bytes that depend on everything before."""
    found = hashlib.sha256(b"start" + start).digest()
    for number in range(step):
        found = hashlib.sha256(found + base + data + bytes([number])).digest()
    return found * 10


def promise(holds: object, text: str) -> None:
    """Raise Violation if it does not hold."""
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
        self.tries_second_writer = False
        self.stops_in: int | None = None  # steps until the process is asked to stop

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
            if self.stops_in is not None:
                self.stops_in -= 1
            if step % EVERY == 0 or self.stops_in == 0:
                self.save(store, name, step, weights)
            self.refuse_second_writer(job.run)
            if self.stops_in == 0 and step < STEPS:
                raise Stopped(f"stopped after step {step}")
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

    def refuse_second_writer(self, run: Path) -> None:
        """While one process works in the folder, no other may."""
        if self.tries_second_writer:
            self.tries_second_writer = False
            with suppress(MachineNotReady), RunFolder(run):
                raise Violation("two runs work in one folder")

    # ---------------------------------------------------------------- what happens from outside

    def is_trained(self) -> bool:
        """Whether every stage is done by run.json, which a killed call may not have lived to say."""
        stages = json.loads((self.run / "run.json").read_bytes())["stages"]
        return all(stage["status"] == DONE for stage in stages)

    def damage_newest(self) -> bool:
        """Damage a file of the newest checkpoint of the stage that is not done; whether it was."""
        stage = next(stage for stage in STAGES if stage not in self.done)
        folder = self.run / "stages" / stage / "checkpoints"
        there = {int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*")}
        # One that was complete before the process was told so counts as well.
        step = max(there, default=0)
        path = folder / f"checkpoint-{step}" / self.random.choice(PARTS)
        if max(self.written[stage], default=0) > step or not path.exists():
            return False  # what is wrong here shows when the run goes on
        self.written[stage] = (self.written[stage] & there) - {step}
        self.damage(path)
        return True

    def damage_result(self) -> Path:
        """Damage the result of a finished stage; its file."""
        stage = self.random.choice(sorted(self.done))
        self.done.discard(stage)
        path = self.run / "stages" / stage / WEIGHTS
        self.damage(path)
        return path

    def damage(self, path: Path) -> None:
        how = self.random.choice(("bit", "half", "empty", "gone"))
        if how == "gone":
            self.disk.remove(path)
            self.disk.sync_everything()
            return
        content = bytearray(path.read_bytes())
        if how == "bit":
            content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
        else:
            del content[len(content) // 2 * (how == "half") :]
        path.write_bytes(content)
        self.disk.changed_outside(path)

    def move(self) -> None:
        """Rename the project's folder."""
        self.disk.adopt()
        moved = self.root / f"project-{self.random.randrange(10**6)}"
        self.project.rename(moved)
        self.project = moved
        self.disk.adopt()
        self.disk.sync_everything()

    def swap_weights(self, content: bytes) -> None:
        """Put other weights of the same size into the model's file, with the old time of change."""
        path = self.project / "model" / "model.safetensors"
        before = path.stat()
        path.write_bytes(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        self.disk.changed_outside(path)

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
