"""Kills of a real `advise run` and damage to what it left: it tells the truth and ends the same."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from tests.faults.kills.scenes import (
    SEVERAL,
    Command,
    Scene,
    Watch,
    difference,
    result_of,
    send,
    stage_name,
)
from tests.faults.table import Row

PARENT, TRAINER, BOTH, GROUPS, WORKER = "advise", "trainer", "both", "process groups", "a worker"
RUNS_S = 240.0  # no tiny run takes so long
ENDED_S = 60.0  # from a signal to the end of `advise run`
GONE_S = 45.0  # from its end to that of the last process: torch's launcher gives workers 30 s
JUDGING_S = 1.5
IN_ONE_RUN = 3  # kills of one run before it is let alone
# What happens in a run folder at each moment, and how often it is drawn.
SAVING, STEP, JUDGED = "while a checkpoint is written", "in a step", "while it is judged"
START, ANY_TIME, BETWEEN = "as it starts", "at any time", "between two stages"
MOMENTS = {
    SAVING: (r"stages/[^/]+/checkpoints/.", 4),
    STEP: (r"metrics\.jsonl$", 2),
    "while the result is saved": (
        r"stages/[^/]+/(\.saving|(adapter_|model|tokenizer|generation_))",
        1,
    ),
    JUDGED: (r"stages/[^/]+/[^./][^/]*\.safetensors$", 1),
    START: (r"(\.lock|run\.json|plan\.yaml|prepared|stages/[^/]+/before\.json)$", 1),
    ANY_TIME: (None, 1),
}
BETWEEN_STAGES = {BETWEEN: (r"stages/[^/]+/result\.json$", 3)}
STAGED = ("sft>rm>ppo", "departments")
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
OF_RANKS = ((signal.SIGKILL, WORKER, 1), (signal.SIGKILL, PARENT, 1))


@dataclass(frozen=True)
class Moment:
    """The nth time that something happens in the run folder, and a little later."""

    name: str
    pattern: str | None  # of the path that changes; None: the delay alone counts
    nth: int = 1
    further: int = 0  # so many further changes, of whatever file
    delay_s: float = 0.0

    def wait(self, watch: Watch, command: Command) -> bool:
        """True once it has come; False if the run ended before."""
        until = time.monotonic() + RUNS_S
        left = self.nth + self.further if self.pattern else 0
        matches = re.compile(self.pattern or "").match
        while left > 0:
            for path in watch.events(0.02):
                left -= bool(left <= self.further or matches(path))
                if left <= 0:
                    break
            if command.process.poll() is not None or time.monotonic() > until:
                return False
        time.sleep(self.delay_s)
        return command.process.poll() is None


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
        chosen = {
            PARENT: [parent], BOTH: [parent, *trainers], GROUPS: [parent, *trainers],
            WORKER: trainers[-1:], TRAINER: trainers[:1],
        }[self.target]  # fmt: skip
        return sum(send(pid, self.number, group=self.target == GROUPS) for pid in chosen) > 0

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
        allowed: dict[int, Sequence[str | None]] = {130: ("stopped",)}
        if self.number == signal.SIGKILL and self.target in (PARENT, BOTH, GROUPS):
            allowed = {-signal.SIGKILL: ("running", "stopped", "failed", None)}
        elif self.number == signal.SIGKILL:
            allowed = {5: ("failed",)}
        elif status is None:  # nothing had been written yet
            allowed = {130: (None,), -self.number: (None,)}
        is_sound = status in allowed.get(code, ())
        return [] if is_sound else [f"exit code {code}, run.json says {status}, not {allowed}"]


def survive(scene: Scene, output: str, kills: Sequence[Kill], *, most: int = 3) -> list[Row]:
    """Kill one run again and again, then let it end; a row for each kill that struck."""
    struck: list[tuple[dict[str, int], list[str]]] = []  # by the first calls, each with its kill
    said: list[str] = []  # by each call
    run = scene.folder / output
    run.mkdir()
    for kill in kills:
        one, text = kill_once(scene, output, kill)
        said.append(text)
        if one is None:
            break
        struck.append(one)
    for _ in range(most):
        command = scene.start(output)
        code = command.wait(RUNS_S)
        command.end()
        said.append(command.output)
        if code == 0 or code is None:
            break
    why = f"exit code {code}: {last_lines(said[-1])}"
    if code == 0:
        why = difference(scene.result, result_of(run))
    rows = []
    for call, (kill, (steps, faults)) in enumerate(zip(kills, struck, strict=False)):
        faults += [f"in the end: {why}"] if why else []
        trained = starts(said[call])  # of the others nothing was lost by this kill
        reached = {stage: step for stage, step in steps.items() if stage in trained}
        lost, most_lost = steps_lost(reached, said[call + 1 :]), kill.most_lost(scene)
        faults += [f"{lost} steps lost, not at most {most_lost}"] if lost > most_lost else []
        about = {"fault": str(kill), "where": scene.objective, "moment": kill.moment.name}
        rows.append(Row(**about, wrong=faults, lost_steps=lost))
    return rows


def kill_once(
    scene: Scene, output: str, kill: Kill
) -> tuple[tuple[dict[str, int], list[str]] | None, str]:
    """Start or resume a run and end it: the steps reached and faults, or None; what it said."""
    run = scene.folder / output
    record = run / "run.json"
    before = record.read_bytes() if record.exists() else None
    with Watch(run) as watch:
        command = scene.start(output)
        came = kill.moment.wait(watch, command) and kill.strike(command)
    code = command.wait(ENDED_S if came else RUNS_S)
    left, status = command.wait_for_all(GONE_S), status_of(run)
    command.end()
    if not came or (code == 0 and status == "done"):
        return None, command.output
    if (record.read_bytes() if record.exists() else None) == before:
        status = None  # it had not begun: the record is still that of the call before
    faults = kill.faults(code, status)
    faults += [f"still alive: {words[:120]}" for words in left[:1]]
    if told := re.search(r"Traceback.*|[^\n]*this is a bug.*", command.output, re.S):
        faults.append(f"a traceback, or called a bug: {told[0][-600:]}")
    return (steps_reached(run), faults), command.output


def status_of(run: Path) -> str | None:
    """What run.json says; None if there is none."""
    try:
        return str(json.loads((run / "run.json").read_text("utf-8"))["status"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError) as error:
        return f"nothing that can be read ({error})"


def steps_reached(run: Path) -> dict[str, int]:
    """Stage -> the last step that metrics.jsonl has of it, without lines that are none."""
    reached: dict[str, int] = {}
    path = run / "metrics.jsonl"
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with suppress(ValueError, KeyError, TypeError):
            entry: Any = json.loads(line)
            reached[stage_name(entry)] = entry["step"]
    return reached


BEGAN = re.compile(r"^(?:([\w-]+) )?(\w+): (?:resuming after \w+ (\d+)|training: )", re.M)


def starts(said: str) -> dict[str, int]:
    """Stage -> the step from which a call trained it, by what it said."""
    found: dict[str, int] = {}
    for task, stage, step in BEGAN.findall(said):
        found.setdefault(f"{stage}-{task}" if task else stage, int(step or 0))
    return found


def steps_lost(reached: Mapping[str, int], later: Sequence[str]) -> int:
    """Optimizer steps that one call of the command had `reached` and a `later` one did again."""
    lost = 0
    for stage, step in reached.items():
        again = (begun[stage] for said in later if stage in (begun := starts(said)))
        lost += step - min(step, next(again, step))
    return lost


def last_lines(text: str) -> str:
    return " / ".join(text.strip().splitlines()[-3:])[:300]


# --------------------------------------------------------------------------- by chance


def draw_kills(
    scene: Scene, dice: random.Random, kinds: Sequence[tuple[signal.Signals, str, int]]
) -> Iterator[Kill]:
    """Kills for one run, without end, by chance; those that end more come more often."""
    moments = MOMENTS | (BETWEEN_STAGES if scene.objective in STAGED else {})
    for attempt in count():
        number, target, _ = dice.choices(kinds, [kind[-1] for kind in kinds])[0]
        if scene.objective in SEVERAL and target == TRAINER and dice.random() < 0.6:
            target = WORKER
        (name,) = dice.choices(list(moments), [weight for _, weight in moments.values()])
        first = 1
        if scene.objective == "ppo" and attempt == 0:  # behind its first checkpoint
            name, first = SAVING, 22 + dice.randint(0, 20)
        yield Kill(number, target, draw_moment(name, moments[name][0], scene, dice, attempt, first))


def draw_moment(
    name: str, pattern: str | None, scene: Scene, dice: random.Random, attempt: int, first: int
) -> Moment:
    """A moment of this kind. Later attempts have less before them, so their counts are smaller."""
    if pattern is None:
        return Moment(name, None, delay_s=dice.uniform(0.3, scene.seconds))
    if name == JUDGED:
        return Moment(name, pattern, delay_s=dice.uniform(0, JUDGING_S))
    times = sum(bool(re.match(pattern, path)) for path in scene.events)
    if name == BETWEEN:
        stages = 1 if attempt else dice.randint(1, max(1, times - 1))
        return Moment(name, pattern, nth=stages, further=dice.randint(0, 8))
    reached = max(1, times // (attempt + 2)) if name != START else times
    return Moment(name, pattern, nth=max(first, dice.randint(1, reached)))


# --------------------------------------------------------------------------- damage

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
    """A full disk fails the run, which ends soundly given room; no row without a small disk."""
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
