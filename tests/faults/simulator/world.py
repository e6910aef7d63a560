"""One project on a simulated disk: a plan of two stages, what has been promised to its user so far,
and a training whose every state is known beforehand.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from advisor.ground.errors import AdviseError, MachineNotReady, Stopped
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


@dataclass
class World:
    """A project below a folder, and what its user may rely on.

    Args:
        root: An empty folder.
        random: Decides everything.
    """

    root: Path
    random: Random
    project: Path = field(init=False)
    written: dict[str, set[int]] = field(default_factory=dict)  # stage -> complete checkpoints
    done: set[str] = field(default_factory=set)
    said: list[str] = field(default_factory=list)
    tries_second_writer: bool = False
    stops_in: int | None = None  # steps until the process is asked to stop

    def __post_init__(self) -> None:
        self.base, self.data = self.random.randbytes(600), self.random.randbytes(100).hex().encode()
        self.project = self.root / "project"
        self.write_project()
        self.disk = SimulatedDisk(self.root, self.random)
        self.written = {stage: set() for stage in STAGES}
        first = state_after(b"", self.base, self.data, STEPS)
        self.starts = dict(zip(STAGES, (b"", first), strict=True))

    def write_project(self) -> None:
        folder = self.project / "model"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"model_type": "llama"}')
        (folder / "model.safetensors").write_bytes(self.base)
        (self.project / "train.jsonl").write_bytes(self.data)
        (self.project / "plan.yaml").write_text(PLAN)

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
        if name in self.done:
            raise Violation(f"{name} was done, and is trained again")
        base = Path(job.base_model, "model.safetensors").read_bytes()
        data = job.data_path.read_bytes()
        start = (job.start / WEIGHTS).read_bytes() if job.start is not None else b""
        metrics = job.run / "metrics.jsonl"
        store = CheckpointStore(
            job.checkpoints,
            dependencies(job, {"rows": hashlib.sha256(data).hexdigest()}, steps=STEPS),
            {"torch": "2.13.0"},
            metrics,
            self.disk,
        )
        found = store.newest(self.said.append)
        step = found.step if found is not None else 0
        weights = state_after(start, base, data, step)
        if found is not None:
            weights = (found.path / WEIGHTS).read_bytes()
            for part in (WEIGHTS, MOMENTS, RANDOM):
                if (found.path / part).read_bytes() != self.part(part, name, step):
                    raise Violation(f"{name} goes on from another {part} than step {step} had")
        newest = max(self.written[name], default=0)
        if step < newest:
            raise Violation(f"{name} goes on from step {step}, though {newest} was complete")
        cut_metrics(metrics, stage=name, task=None, after=step, disk=self.disk)
        while step < STEPS:
            step += 1
            weights = hashlib.sha256(weights[:32] + base + data + bytes([step - 1])).digest() * 10
            line = {"stage": name, "task": None, "step": step, "loss": weights[0]}
            append_line(metrics, line, disk=self.disk)
            is_stopped = self.is_asked_to_stop()
            if step % EVERY == 0 or is_stopped:
                self.save(store, name, step, weights)
            self.refuse_second_writer(job.run)
            if is_stopped and step < STEPS:
                raise Stopped(f"stopped after step {step}")
        self.finish(job, weights)

    def is_asked_to_stop(self) -> bool:
        """Whether a signal came during this step."""
        if self.stops_in is not None:
            self.stops_in -= 1
        return self.stops_in == 0

    def part(self, part: str, stage: str, step: int) -> bytes:
        """What a file of a checkpoint holds."""
        weights = self.expected(stage, step)
        return weights if part == WEIGHTS else part.encode() + weights[:64]

    def save(self, store: CheckpointStore, stage: str, step: int, weights: bytes) -> None:
        place = store.begin(step)
        with store.writing(step):
            for part in (MOMENTS, RANDOM, WEIGHTS):
                content = weights if part == WEIGHTS else part.encode() + weights[:64]
                self.disk.write(place / part, content)
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
        if not self.tries_second_writer:
            return
        self.tries_second_writer = False
        try:
            with RunFolder(run):
                pass
        except MachineNotReady:
            return
        raise Violation("two runs work in one folder")

    # ---------------------------------------------------------------- what happens from outside

    def is_trained(self) -> bool:
        """Whether every stage is done by run.json, which a killed call may not have lived to say."""
        stages = json.loads((self.run / "run.json").read_bytes())["stages"]
        return all(stage["status"] == DONE for stage in stages)

    def damage_newest(self) -> str | None:
        """Damage a file of the newest checkpoint of the stage that is not done; what was done."""
        stage = next(stage for stage in STAGES if stage not in self.done)
        folder = self.run / "stages" / stage / "checkpoints"
        there = {int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*")}
        if not there:
            return None
        # One that was complete before the process was told so counts as well.
        step = max(there)
        path = folder / f"checkpoint-{step}" / self.random.choice(PARTS)
        if max(self.written[stage], default=0) > step or not path.exists():
            return None  # what is wrong here shows when the run goes on
        self.written[stage] = (self.written[stage] & there) - {step}
        return self.damage(path)

    def damage_result(self) -> Path:
        """Damage the result of a finished stage; its file."""
        stage = self.random.choice(sorted(self.done))
        self.done.discard(stage)
        path = self.run / "stages" / stage / WEIGHTS
        self.damage(path)
        return path

    def damage(self, path: Path) -> str:
        how = self.random.choice(("bit", "half", "empty", "gone"))
        content = bytearray(path.read_bytes())
        if how == "gone":
            self.disk.remove(path)
            self.disk.sync_everything()
            return how
        if how == "bit":
            content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
        else:
            del content[len(content) // 2 * (how == "half") :]
        path.write_bytes(content)
        self.disk.changed_outside(path)
        return how

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
        if record["status"] != DONE:
            raise Violation(f"run.json says {record['status']}")
        for stage in STAGES:
            folder = self.run / "stages" / stage
            if (folder / WEIGHTS).read_bytes() != self.expected(stage, STEPS):
                raise Violation(f"{stage} ended with other weights than an uninterrupted run")
        lines = [json.loads(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]
        steps = sorted((line["stage"], line["step"]) for line in lines)
        wanted = sorted((stage, step) for stage in STAGES for step in range(1, STEPS + 1))
        if steps != wanted:
            raise Violation(f"metrics.jsonl holds the steps {steps}")


def error_of(error: Exception) -> AdviseError:
    """What a trainer's process makes of an error."""
    if isinstance(error, AdviseError):
        return error
    if isinstance(error, OSError):
        return MachineNotReady(f"{error.filename}: {error.strerror}")
    raise error
