"""Damage to what a stopped or finished run left: moved folders, torn checkpoints, another base, a
damaged result, a full disk. Afterwards the same command ends as if nothing had happened, or refuses
with an exit code of its own and leaves what it found.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults.kills.kill import (
    BOTH,
    MOMENTS,
    RUNS_S,
    SAVING,
    Kill,
    Moment,
    last_lines,
    starts,
    status_of,
    steps_lost,
    steps_reached,
)
from tests.faults.kills.scenes import Scene, Watch, difference, result_of
from tests.faults.table import Row

TORN = "torn newest checkpoint"
STOPPED = "stopped"  # the run folder in which everything below begins
DISK_MIB = 320  # more than a run wants free before it begins
FINISHED = (0, 2, 4, 5)  # exit codes of an answer; 70, 1 and signals are none
# What must come of a damage: the run goes on from a checkpoint; the command refuses, and changes
# nothing; or a finished run is called damaged, or is sound.
RESUMES, REFUSED, NOT_SOUND = "resumes", "refused", "not called sound"


@dataclass(frozen=True)
class Damage:
    """What is done to a copy of the project folder, and what must come of it."""

    fault: str
    moment: str
    do: Callable[[Path, Path], Path | None]  # (project, run) -> where the project is now
    then: str = RESUMES


def stop_after(scene: Scene, output: str, step: int) -> None:
    """Kill a run once it has gone beyond a step."""
    run = scene.folder / output
    run.mkdir()
    with Watch(run) as watch:
        command = scene.start(output)
        until = time.monotonic() + RUNS_S
        while command.process.poll() is None and time.monotonic() < until:
            list(watch.events(0.01))
            if max(steps_reached(run).values(), default=0) > step:
                break
        Kill(signal.SIGKILL, BOTH, Moment("", None)).strike(command)
    command.wait_for_all(60)
    command.end()


def newest_checkpoint(run: Path) -> Path:
    """The newest whole checkpoint of a run."""
    whole = [path.parent for path in run.glob("stages/*/checkpoints/checkpoint-*/complete.json")]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]))


# --------------------------------------------------------------------------- what is done


def flip(path: Path) -> None:
    """Turn one bit in the middle of the file."""
    data = bytearray(path.read_bytes())
    if data:
        data[len(data) * 2 // 3] ^= 4
    path.write_bytes(data)


TEARS: dict[str, Callable[[Path], None]] = {
    "cut in half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "with one bit turned": flip,
    "gone": Path.unlink,
}


def tear(name: str, how: str) -> Callable[[Path, Path], None]:
    return lambda project, run: TEARS[how](newest_checkpoint(run) / name)


def tear_result(how: str) -> Callable[[Path, Path], None]:
    return lambda project, run: TEARS[how](next(run.glob("stages/*/*.safetensors")))


def swap_base(project: Path, run: Path) -> None:
    """Zero some of the base's weights in place: the same size, the same name."""
    with (project / "model" / "model.safetensors").open("r+b") as file:
        file.seek(-24_000, os.SEEK_END)
        file.write(bytes(20_000))


def rewrite(path: Path, old: str, new: str) -> None:
    """Replace the first match of a pattern in the file."""
    path.write_text(re.sub(old, new, path.read_text(), count=1))


def move(project: Path, run: Path) -> Path:
    return project.rename(project.with_name(f"{project.name}-moved"))


def rename_model(project: Path, run: Path) -> None:
    """Rename the model's folder, and write its new name into the plan."""
    (project / "model").rename(project / "base")
    for plan in project.glob("*.yaml"):
        rewrite(plan, r"\./model", "./base")


def copy_model(project: Path, run: Path) -> None:
    """Replace the model by a copy: other times, the same content."""
    shutil.copytree(project / "model", project / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(project / "model")
    (project / "copy").rename(project / "model")


def forget_lines(project: Path, run: Path) -> None:
    """Leave a line of metrics.jsonl that is no text, as after a power cut."""
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\xfe{"stage": 3}\n[]\n')


def flip_prepared(project: Path, run: Path) -> None:
    for path in (run / "prepared").glob("*.arrow"):
        flip(path)


def mistaken_step(project: Path, run: Path) -> None:
    """Let complete.json claim the last step."""
    rewrite(newest_checkpoint(run) / "complete.json", r'"step": ?\d+', '"step": 12')


def damages(objective: str) -> list[Damage]:
    """All that is tried on a run of this objective, but for torn checkpoints."""
    between = "between two calls"
    found = [
        Damage("moved project folder", between, move),
        Damage("another base under the same name", between, swap_base, REFUSED),
        *(
            Damage("damaged result of a finished run", how, tear_result(how), NOT_SOUND)
            for how in TEARS
            if how != "empty"
        ),
    ]
    if objective == "sft":
        found += [
            Damage("renamed model folder", between, rename_model, REFUSED),
            Damage("copied model folder", between, copy_model),
            Damage(
                "other rows",
                between,
                lambda project, run: rewrite(project / "chats.jsonl", "red", "sea"),
                REFUSED,
            ),
            Damage("complete.json with another step", between, mistaken_step),
            Damage("metrics.jsonl with bytes of a power cut", between, forget_lines),
            Damage("prepared rows with one bit turned", between, flip_prepared),
        ]
    return found


def tears(stopped: Path) -> list[Damage]:
    """Each file of the newest checkpoint of a run, torn in each way."""
    names = sorted(path.name for path in newest_checkpoint(stopped).iterdir())
    return [Damage(TORN, f"{name} {how}", tear(name, how)) for name in names for how in TEARS]


# --------------------------------------------------------------------------- what comes of it


def copy_project(scene: Scene, target: Path, run: str = "") -> None:
    """What a run needs of the scene's folder, and one of the runs in it."""
    target.mkdir()
    for path in scene.folder.iterdir():
        if path.suffix == ".jsonl" or path.name in ("model", "own.py", str(scene.plan), run):
            copy = shutil.copytree if path.is_dir() else shutil.copy2
            copy(path, target / path.name)


def contents(folder: Path) -> dict[str, bytes]:
    """Checkpoints and results, to see whether a refusal left them alone."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.glob("stages/**/*"))
        if path.is_file()
    }


def told(scene: Scene, output: str, project: Path) -> tuple[int | None, str, list[str]]:
    """How the command ended in a copy of the project, what it said, and what it must never do."""
    command = scene.start(output, project)
    code = command.wait(RUNS_S)
    left = command.wait_for_all(10)
    command.end()
    said = command.output
    faults = [f"still alive: {words}" for words in left[:1]]
    if code not in FINISHED or "Traceback" in said or "is a bug" in said:
        faults.append(f"exit code {code}: {last_lines(said)}")
    return code, said, faults


def try_damage(scene: Scene, damage: Damage, place: Path) -> Row:
    """Do it to a copy of the stopped or finished run, give the command again, and see."""
    output = scene.whole if damage.then == NOT_SOUND else STOPPED
    copy_project(scene, place, output)
    place = damage.do(place, place / output) or place
    run = place / output
    reached, before = steps_reached(run), contents(run)
    code, said, faults = told(scene, output, place)
    if code == 0:
        why = difference(scene.result, result_of(run))
        faults += [f"in the end: {why}"] if why else []
        if damage.then == RESUMES and not any(starts(said).values()):
            faults.append("began anew")
    elif damage.then == RESUMES and not faults:
        faults.append(f"exit code {code}: {last_lines(said)}")
    if damage.then == REFUSED:
        faults += ["accepted"] if code == 0 else []
        faults += ["checkpoints or results were changed"] if contents(run) != before else []
    shutil.rmtree(place)
    lost = steps_lost(reached, [said]) if damage.then == RESUMES else None
    about = {"fault": damage.fault, "where": scene.objective, "moment": damage.moment}
    return Row(**about, wrong=faults, lost_steps=lost)


# --------------------------------------------------------------------------- a full disk


@contextmanager
def small_disk(place: Path) -> Iterator[bool]:
    """A file system of its own in memory; False if this machine does not let us make one."""
    place.mkdir()
    mount = [shutil.which("mount") or "false", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs"]
    made = subprocess.run([*mount, str(place)], capture_output=True, check=False).returncode == 0
    try:
        yield made
    finally:
        if made:
            subprocess.run(["umount", "-l", str(place)], check=False)


def full_disk(scene: Scene, place: Path, dice: random.Random) -> list[Row]:
    """The disk becomes full while the run is writing; run.json says `failed`; once there is room
    the same command ends as if nothing had happened. No row where no small disk can be made.
    """
    with small_disk(place) as made:
        if not made:
            return []
        project = place / "project"
        copy_project(scene, project)
        run = project / STOPPED
        run.mkdir()
        moment = Moment("", MOMENTS[SAVING][0], nth=dice.randint(20, 80))
        with Watch(run) as watch:
            command = scene.start(STOPPED, project)
            if moment.wait(watch, command):
                fill_up(place / "filler")
        code = command.wait(RUNS_S)
        command.end()
        is_told = code in (4, 5) and "Traceback" not in command.output
        faults = [] if is_told else [f"exit code {code}: {last_lines(command.output)}"]
        faults += [] if status_of(run) == "failed" else [f"run.json says {status_of(run)}"]
        reached = steps_reached(run)
        (place / "filler").unlink(missing_ok=True)
        code, said, more = told(scene, STOPPED, project)
        why = f"exit code {code}: {last_lines(said)}"
        if code == 0:
            why = difference(scene.result, result_of(run))
        faults += [*more, *([f"with room again, in the end: {why}"] if why else [])]
    lost = steps_lost(reached, [said])
    return [
        Row(fault="full disk", where=scene.objective, moment=SAVING, wrong=faults, lost_steps=lost)
    ]


def fill_up(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
