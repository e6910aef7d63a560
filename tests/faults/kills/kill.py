"""One kill of a real `advise run`: what was ended how and when, and whether the run told the truth
about it; then whether the same command ends as if nothing had happened.
"""

from __future__ import annotations

import json
import random
import re
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.faults.kills.inotify import Watch
from tests.faults.kills.moments import Moment, draw_moment
from tests.faults.kills.processes import Command, send, send_group
from tests.faults.kills.scenes import SEVERAL, Scene, difference, result_of, stage_name
from tests.faults.table import Row

PARENT, TRAINER, BOTH, GROUPS, WORKER = "advise", "trainer", "both", "process groups", "a worker"
ENDED_S = 60.0  # from a signal to the end of `advise run`
GONE_S = 45.0  # from its end to that of the last process: torch's launcher gives workers 30 s
RESUMED = re.compile(r"^(?P<label>[\w -]+): resuming after (step|update) (?P<step>\d+) of", re.M)


@dataclass(frozen=True)
class Kill:
    """A signal, who gets it, and when."""

    number: signal.Signals
    target: str
    moment: Moment

    def __str__(self) -> str:
        return f"{self.number.name} of {self.target}"

    def strike(self, command: Command) -> bool:
        """Send it; False if there was nobody any more."""
        trainers = command.trainers() if self.target != PARENT else []
        parent = command.process.pid
        if self.target == PARENT:
            return send(parent, self.number)
        if self.target == GROUPS:
            for pid in [parent, *trainers]:
                send_group(pid, self.number)
            return True
        if self.target == BOTH:
            chosen = [parent, *trainers]
        else:
            chosen = trainers[-1:] if self.target == WORKER else trainers[:1]
        return sum(send(pid, self.number) for pid in chosen) > 0

    def most_lost(self, scene: Scene) -> int:
        """Steps that may have to be trained again. A signal that is handled loses none; `advise`
        passes it on, so a trainer that gets it too hears a second one, and ends at once.
        """
        handled = self.number != signal.SIGKILL and self.target in (PARENT, TRAINER)
        return 0 if handled else scene.save_steps

    def faults(self, code: int | None, status: str | None) -> list[str]:
        """What is not as promised about how `advise run` ended, and about what run.json says."""
        if code is None:
            return [f"it did not end within {ENDED_S:.0f} s"]
        reached_parent = self.target in (PARENT, BOTH, GROUPS)
        if self.number == signal.SIGKILL and reached_parent:
            allowed = {-signal.SIGKILL: ("running", "stopped", "failed", None)}
        elif self.number == signal.SIGKILL:
            allowed = {5: ("failed",)}
        else:
            allowed = {130: ("stopped",)}
            if status is None:  # nothing had been written yet
                allowed = {130: (None,), -self.number: (None,)}
        if code not in allowed:
            return [f"exit code {code}, not {' or '.join(map(str, allowed))}"]
        return [] if status in allowed[code] else [f"exit code {code}, but run.json says {status}"]


@dataclass(frozen=True)
class Struck:
    """What a kill left."""

    kill: Kill
    reached: dict[str, int]  # stage -> step of its last line in metrics.jsonl
    half_written: bool  # a checkpoint or result was being written
    faults: tuple[str, ...]
    seconds: float


def kill_once(scene: Scene, output: str, kill: Kill) -> tuple[Struck | None, Command]:
    """Start the run, or resume it, and end it; None if it was over before the moment came."""
    run = scene.folder / output
    run.mkdir(exist_ok=True)
    began, before = time.monotonic(), content_of(run / "run.json")
    with Watch(run) as watch:
        command = scene.start(output)
        came = kill.moment.wait(watch, command) and kill.strike(command)
    code = command.wait(ENDED_S if came else 240.0)
    left = command.wait_for_all(GONE_S)
    status = status_of(run)
    if not came or (code == 0 and status == "done"):
        command.end()
        return None, command
    if content_of(run / "run.json") == before:
        status = None  # it had not begun: the record is still that of the call before
    faults = kill.faults(code, status)
    if left:
        faults.append(f"still alive: {left[0][:120]}")
    if "Traceback" in command.output or "this is a bug" in command.output:
        told = re.search(r"Traceback.*|.*this is a bug.*", command.output, re.S)
        faults.append(f"a traceback, or called a bug: {told[0][-600:] if told else ''}")
    command.end()
    half = is_half_written(run)
    return Struck(kill, steps_reached(run), half, tuple(faults), time.monotonic() - began), command


def content_of(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def status_of(run: Path) -> str | None:
    try:
        return str(json.loads((run / "run.json").read_text("utf-8"))["status"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError) as error:
        return f"nothing that can be read ({error})"


def steps_reached(run: Path) -> dict[str, int]:
    """Stage -> the last step that metrics.jsonl has of it."""
    reached: dict[str, int] = {}
    path = run / "metrics.jsonl"
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:  # the line that was being written
            continue
        reached[stage_name(entry)] = entry["step"]
    return reached


def is_half_written(run: Path) -> bool:
    """Whether a checkpoint or a result lies there that is not whole."""
    checkpoints = [path for path in run.glob("stages/*/checkpoints/*") if path.is_dir()]
    half = [path for path in checkpoints if not (path / "complete.json").exists()]
    hidden = [path for path in run.rglob(".*") if path.name != ".lock"]
    odd = [path for path in checkpoints if not re.fullmatch(r"checkpoint-\d+", path.name)]
    return bool(half or hidden or odd)


def steps_lost(before: dict[str, int], output: str, record: dict[str, int]) -> int:
    """Optimizer steps that were done and had to be done again.

    Args:
        before: Stage -> step that had been reached.
        output: What the resumed run said.
        record: Stage -> step from which it went on, as it said.
    """
    lost = 0
    for stage, step in before.items():
        # "stage sft-legal (1 of 3) again: ..." is said of each stage that is trained again.
        if re.search(rf"^stage {re.escape(stage)} \(", output, re.M):
            lost += step - min(step, record.get(stage, 0))
    return lost


def resumed_from(output: str) -> dict[str, int]:
    """Stage -> the step that a run said it went on from. A task is named before its stage."""
    found = {}
    for match in RESUMED.finditer(output):
        task, _, stage = match["label"].rpartition(" ")
        found[f"{stage}-{task}" if task else stage] = int(match["step"])
    return found


def survive(scene: Scene, output: str, kills: Sequence[Kill], *, most: int = 3) -> list[Row]:
    """Kill one run again and again, then let it end; a row for each kill that struck.

    Args:
        output: Its run folder.
        most: Calls of the command after the last kill until it must be done.
    """
    struck: list[tuple[Struck, int | None]] = []
    for kill in kills:
        one, command = kill_once(scene, output, kill)
        struck = note_lost(struck, command.output)
        if one is None:
            break
        struck.append((one, None))
    why = ""
    for _ in range(most):
        command = scene.start(output)
        code = command.wait(240)
        command.end()
        struck = note_lost(struck, command.output)
        why = "" if code == 0 else f"exit code {code} at the end: {last_lines(command.output)}"
        if code == 0 or code is None:
            break
    if not why:
        why = difference(scene.result, result_of(scene.folder / output))
    return [row(scene, one, lost, why) for one, lost in struck]


def note_lost(
    struck: list[tuple[Struck, int | None]], output: str
) -> list[tuple[Struck, int | None]]:
    """The kills, with the steps that the next call trained again, once one has got so far."""
    waiting = [at for at, (_, lost) in enumerate(struck) if lost is None]
    if not waiting:
        return struck
    before = struck[waiting[-1]][0].reached
    if not all(has_begun(stage, output) for stage in before):
        return struck  # it was killed before it trained: the call after it will tell
    noted = list(struck)
    for at in waiting:
        noted[at] = (struck[at][0], 0)
    noted[waiting[0]] = (struck[waiting[0]][0], steps_lost(before, output, resumed_from(output)))
    return noted


def has_begun(stage: str, output: str) -> bool:
    """False if a call was to train the stage, and has not said from which step."""
    name, _, task = stage.partition("-")
    label = f"{task} {name}" if task else name
    told = rf"^{re.escape(label)}: (resuming after|step \d|update \d)"
    asked = rf"^stage {re.escape(stage)} \("
    return bool(re.search(told, output, re.M)) or (
        re.search(asked, output, re.M) is None and bool(output.strip())
    )


def row(scene: Scene, one: Struck, lost: int | None, why: str) -> Row:
    faults = [*one.faults, *([f"in the end: {why}"] if why else [])]
    if lost is not None and lost > one.kill.most_lost(scene):
        faults.append(f"{lost} steps lost, not at most {one.kill.most_lost(scene)}")
    into = ", into a write" if one.half_written else ""
    return Row(
        fault=str(one.kill),
        objective=scene.objective,
        moment=one.kill.moment.name + into,
        survived=not faults,
        lost_steps=lost,
        seconds=round(one.seconds, 1),
        note="; ".join(faults),
    )


def last_lines(text: str, count: int = 3) -> str:
    return " / ".join(text.strip().splitlines()[-count:])[:300]


IN_ONE_RUN = 3  # kills of one run before it is let alone
KINDS = (
    (signal.SIGKILL, BOTH, 3),
    (signal.SIGKILL, PARENT, 2),
    (signal.SIGKILL, TRAINER, 2),
    (signal.SIGKILL, GROUPS, 2),
    (signal.SIGTERM, PARENT, 2),
    (signal.SIGTERM, TRAINER, 1),
    (signal.SIGTERM, GROUPS, 1),
    (signal.SIGINT, PARENT, 1),
    (signal.SIGHUP, PARENT, 1),
)
MOMENTS = (
    ("while a checkpoint is written", 4),
    ("in a step", 2),
    ("while the result is saved", 1),
    ("while it is judged", 1),
    ("as it starts", 1),
    ("at any time", 1),
)
STAGED = ("sft>rm>ppo", "departments")


def draw_kills(scene: Scene, dice: random.Random) -> Iterator[Kill]:
    """Kills for one run, without end: the kind and the moment by chance, kinds that end more and
    moments in which more is at stake more often.
    """
    attempt = 0
    while True:
        number, target, _ = weighted(KINDS, dice)
        if scene.objective in SEVERAL and target == TRAINER and dice.random() < 0.6:
            target = WORKER
        moments = [*MOMENTS, *([("between two stages", 3)] if scene.objective in STAGED else [])]
        name = weighted(moments, dice)[0]
        if scene.objective == "ppo" and attempt == 0:
            name = "while a checkpoint is written"
        moment = draw_moment(name, scene, dice, attempt=attempt)
        if scene.objective == "ppo" and attempt == 0:  # behind its first checkpoint
            moment = replace(moment, nth=max(moment.nth, 22 + dice.randint(0, 20)))
        yield Kill(number, target, moment)
        attempt += 1


def draw_rank_kills(scene: Scene, dice: random.Random, left: Mapping[str, int]) -> list[Kill]:
    """Kills of one run by SIGKILL, each at a moment by chance.

    Args:
        left: Whom to kill -> how often at most.
    """
    targets = [target for target, count in left.items() for _ in range(count)]
    dice.shuffle(targets)
    return [
        Kill(
            signal.SIGKILL,
            target,
            draw_moment(weighted(MOMENTS, dice)[0], scene, dice, attempt=attempt),
        )
        for attempt, target in enumerate(targets[:IN_ONE_RUN])
    ]


def weighted(entries: Sequence[tuple], dice: random.Random) -> tuple:
    return dice.choices(entries, weights=[entry[-1] for entry in entries])[0]
