"""Damage to what a stopped or finished run left: moved folders, torn checkpoints, another base, a
damaged result, a full disk. Afterwards the same command ends as if nothing had happened, or refuses
with an exit code of its own and leaves what it found.
"""

from __future__ import annotations

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

from tests.faults.kills.inotify import Watch
from tests.faults.kills.kill import (
    BOTH,
    Kill,
    last_lines,
    resumed_from,
    status_of,
    steps_lost,
    steps_reached,
)
from tests.faults.kills.moments import WORDS, Moment
from tests.faults.kills.scenes import Scene, difference, result_of
from tests.faults.table import Row

TORN = "torn newest checkpoint"
STOPPED = "stopped"  # the run folder in which everything below begins
DISK_MIB = 320  # more than a run wants free before it begins
FINISHED = (0, 2, 4, 5)  # exit codes of an answer; 70, 1 and signals are none


@dataclass(frozen=True)
class Damage:
    """What is done to a copy of the project folder, and what must come of it."""

    fault: str
    moment: str
    do: Callable[[Path, Path], Path | None]  # (project, run) -> where the project is now
    refused: bool = False  # the command must refuse, and change nothing
    resumes: bool = True  # it must go on from a checkpoint: not all steps are lost


def stop_after(scene: Scene, output: str, step: int) -> None:
    """Kill a run once it has gone beyond a step."""
    run = scene.folder / output
    run.mkdir()
    with Watch(run) as watch:
        command = scene.start(output)
        until = time.monotonic() + 240
        while command.process.poll() is None and time.monotonic() < until:
            list(watch.events(0.01))
            if steps_reached(run) and max(steps_reached(run).values()) > step:
                break
        Kill(signal.SIGKILL, BOTH, Moment("", None)).strike(command)
    command.wait_for_all(60)
    command.end()


def newest_checkpoint(run: Path) -> Path:
    """The newest whole checkpoint of a run."""
    whole = [path.parent for path in run.glob("stages/*/checkpoints/checkpoint-*/complete.json")]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]))


# --------------------------------------------------------------------------- what is done


def half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip(path: Path) -> None:
    """Turn one bit in the middle of the file."""
    data = bytearray(path.read_bytes())
    if data:
        data[len(data) * 2 // 3] ^= 4
    path.write_bytes(data)


def remove(path: Path) -> None:
    path.unlink()


TEARS: dict[str, Callable[[Path], None]] = {
    "cut in half": half,
    "empty": empty,
    "with one bit turned": flip,
    "gone": remove,
}


def tear(name: str, how: str) -> Callable[[Path, Path], None]:
    def do(project: Path, run: Path) -> None:
        path = newest_checkpoint(run) / name
        if path.exists():
            TEARS[how](path)

    return do


def swap_base(project: Path, run: Path) -> None:
    """Zero some of the base's weights in place: the same size, the same name."""
    with (project / "model" / "model.safetensors").open("r+b") as file:
        file.seek(-24_000, os.SEEK_END)
        file.write(bytes(20_000))


def change_rows(project: Path, run: Path) -> None:
    """Change one word of the data, to another of the same length."""
    path = next(
        project / name for name in ("chats.jsonl", "pairs.jsonl") if (project / name).exists()
    )
    path.write_text(path.read_text().replace("red", "sea", 1).replace("order 3", "order 4", 1))


def move(project: Path, run: Path) -> Path:
    return project.rename(project.with_name(f"{project.name}-moved"))


def rename_model(project: Path, run: Path) -> None:
    """Rename the model's folder, and write its new name into the plan."""
    (project / "model").rename(project / "base")
    for plan in project.glob("*.yaml"):
        plan.write_text(plan.read_text().replace("./model", "./base"))


def copy_model(project: Path, run: Path) -> None:
    """Replace the model by a copy: other times, the same content."""
    shutil.copytree(project / "model", project / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(project / "model")
    (project / "copy").rename(project / "model")


def mistaken_step(project: Path, run: Path) -> None:
    """Let complete.json claim the last step."""
    path = newest_checkpoint(run) / "complete.json"
    path.write_text(re.sub(r'"step": ?\d+', '"step": 12', path.read_text()))


def forget_lines(project: Path, run: Path) -> None:
    """Leave a line of metrics.jsonl that is no text, as after a power cut."""
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\xfe{"stage": 3}\n[]\n')


def flip_prepared(project: Path, run: Path) -> None:
    for path in (run / "prepared").glob("*.arrow"):
        flip(path)


def first_only(objective: str) -> list[Damage]:
    """Damage that is tried once, with sft."""
    if objective != "sft":
        return []
    return [
        Damage("renamed model folder", "between two calls", rename_model, refused=True),
        Damage("copied model folder", "between two calls", copy_model),
        Damage("other rows", "between two calls", change_rows, refused=True),
        Damage("complete.json with another step", "between two calls", mistaken_step),
        Damage("metrics.jsonl with bytes of a power cut", "between two calls", forget_lines),
        Damage("prepared rows with one bit turned", "between two calls", flip_prepared),
    ]


def damages(scene: Scene, stopped: Path) -> list[Damage]:
    """All that is tried on a stopped run of this objective."""
    names = sorted(path.name for path in newest_checkpoint(stopped).iterdir())
    torn = [Damage(TORN, f"{name} {how}", tear(name, how)) for name in names for how in TEARS]
    return [
        Damage("moved project folder", "between two calls", move),
        Damage("another base under the same name", "between two calls", swap_base, refused=True),
        *first_only(scene.objective),
        *torn,
    ]


# --------------------------------------------------------------------------- what comes of it


def project_files(scene: Scene) -> list[str]:
    """What a copy of the project needs of the scene's folder."""
    texts = [
        path.name for path in scene.folder.iterdir() if path.suffix in (".jsonl", ".txt", ".py")
    ]
    return [*texts, scene.plan, "model"]


def copy_project(scene: Scene, run: str, target: Path) -> None:
    target.mkdir()
    for name in [*project_files(scene), run]:
        source = scene.folder / name
        if source.is_dir():
            shutil.copytree(source, target / name)
        else:
            shutil.copy2(source, target / name)


def contents(folder: Path) -> dict[str, bytes]:
    """Checkpoints and results, to see whether a refusal left them alone."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "stages" in path.parts
    }


def try_damage(scene: Scene, damage: Damage, place: Path) -> Row:
    """Do it to a copy of the stopped run, give the command again, and see."""
    began = time.monotonic()
    copy_project(scene, STOPPED, place)
    place = damage.do(place, place / STOPPED) or place
    run = place / STOPPED
    reached, before = steps_reached_safely(run), contents(run)
    command = scene.start(STOPPED, folder=place)
    code = command.wait(240)
    left = command.wait_for_all(10)
    command.end()
    faults = [f"still alive: {left[0]}"] if left else []
    lost = steps_lost(reached, command.output, resumed_from(command.output))
    if code not in FINISHED or "Traceback" in command.output or "is a bug" in command.output:
        faults.append(f"exit code {code}: {last_lines(command.output)}")
    elif damage.refused:
        if code == 0:
            faults.append("accepted")
        if contents(run) != before:
            faults.append("refused, but checkpoints or results were changed")
    elif code != 0:
        faults.append(f"exit code {code}: {last_lines(command.output)}")
    else:
        why = difference(scene.result, result_of(run))
        faults += [f"in the end: {why}"] if why else []
        if damage.resumes and not resumed_from(command.output):
            faults.append("began anew")
    shutil.rmtree(place)
    return Row(
        fault=damage.fault,
        objective=scene.objective,
        moment=damage.moment,
        survived=not faults,
        lost_steps=None if damage.refused else lost,
        seconds=round(time.monotonic() - began, 1),
        note="; ".join(faults),
    )


def steps_reached_safely(run: Path) -> dict[str, int]:
    try:
        return steps_reached(run)
    except (ValueError, KeyError, TypeError):
        return {"sft": 0}


def damaged_result(scene: Scene, place: Path, how: str) -> Row:
    """A finished run whose result is damaged is not called sound."""
    began = time.monotonic()
    run = next(path for path in scene.folder.iterdir() if path.name == scene.whole)
    copy_project(scene, run.name, place)
    weights = next((place / run.name).glob("stages/*/*.safetensors"))
    TEARS[how](weights)
    command = scene.start(run.name, folder=place)
    code = command.wait(240)
    command.end()
    faults = []
    if code not in FINISHED or "Traceback" in command.output:
        faults.append(f"exit code {code}: {last_lines(command.output)}")
    elif code == 0 and (why := difference(scene.result, result_of(place / run.name))):
        faults.append(f"called done: {why}")
    shutil.rmtree(place)
    return Row(
        fault="damaged result of a finished run",
        objective=scene.objective,
        moment=how,
        survived=not faults,
        seconds=round(time.monotonic() - began, 1),
        note="; ".join(faults),
    )


# --------------------------------------------------------------------------- a full disk


@contextmanager
def small_disk(place: Path, mebibytes: int) -> Iterator[bool]:
    """A file system of its own in memory; False if this machine does not let us make one."""
    place.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(place)]
    try:
        made = subprocess.run(["mount", *options], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        made = False
    try:
        yield made
    finally:
        if made:
            subprocess.run(["umount", "-l", str(place)], check=False)


def full_disk(scene: Scene, place: Path, dice: random.Random) -> Row | None:
    """The disk becomes full while the run is writing; run.json says `failed`; once there is room
    the same command ends as if nothing had happened. None where no small disk can be made.
    """
    began = time.monotonic()
    with small_disk(place, DISK_MIB) as made:
        if not made:
            return None
        project = place / "project"
        project.mkdir()
        for name in project_files(scene):
            source = scene.folder / name
            copy = shutil.copytree if source.is_dir() else shutil.copy2
            copy(source, project / name)
        run = project / STOPPED
        run.mkdir()
        moment = Moment("", WORDS["while a checkpoint is written"], nth=dice.randint(20, 80))
        with Watch(run) as watch:
            command = scene.start(STOPPED, folder=project)
            if moment.wait(watch, command):
                fill_up(place / "filler")
        code = command.wait(240)
        command.end()
        faults, reached = [], steps_reached(run)
        if code not in (4, 5) or "Traceback" in command.output:
            faults.append(f"exit code {code}: {last_lines(command.output)}")
        if status_of(run) != "failed":
            faults.append(f"run.json says {status_of(run)}")
        (place / "filler").unlink(missing_ok=True)
        again = scene.start(STOPPED, folder=project)
        code = again.wait(240)
        again.end()
        lost = steps_lost(reached, again.output, resumed_from(again.output))
        if code != 0:
            faults.append(f"with room again: exit code {code}: {last_lines(again.output)}")
        elif why := difference(scene.result, result_of(run)):
            faults.append(f"in the end: {why}")
    return Row(
        fault="full disk",
        objective=scene.objective,
        moment="while a checkpoint is written",
        survived=not faults,
        lost_steps=lost,
        seconds=round(time.monotonic() - began, 1),
        note="; ".join(faults),
    )


def fill_up(path: Path) -> None:
    """Take all the space that is left."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
