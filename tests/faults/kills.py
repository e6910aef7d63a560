"""Kills of a real `advise run`, and damage to what it left: it tells the truth and ends the same.

Signals come at moments that a seed draws over the whole life of a run: while it loads, measures,
trains, saves and judges. Plans train a tiny model for seconds.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from tests.conftest import save_tiny_model
from tests.distributed.models import DATA, REWARD
from tests.faults.table import ROOT, Row
from tests.launch.conftest import flip, write_rows

# --------------------------------------------------------------------------- plans

SHORT = "micro_batch_size: 2, seq_len: 96, holdout: 0.1, save_steps: 2"
LORA = f"update: lora, rank: 4, learning_rate: 1e-2, {SHORT}"
FULL = f"update: full, learning_rate: 1e-3, {SHORT}"
WRITES = "response_tokens: 6, reward: 'own.py:score'"
PPO = f"{LORA.replace('1e-2', '1e-3')}, grad_accum: 2, response_tokens: 6, kl_limit: 100"
# Name -> data, stages, launch. An objective is the name of its stage, sft if the name is none.
PLANS: Mapping[str, tuple[str, Sequence[str], str]] = {
    "sft": ("chats", [f"{LORA}, max_steps: 12"], ""),
    "cpt": ("texts", [f"{FULL}, max_steps: 9"], ""),
    "dpo": ("pairs", [f"{LORA}, max_steps: 8"], ""),
    "kto": ("votes", [f"{LORA.replace('size: 2', 'size: 4')}, max_steps: 6"], ""),
    "rm": ("pairs", [f"{LORA}, max_steps: 9"], ""),
    "rloo": ("pairs", [f"{LORA}, {WRITES}, generations: 4, max_steps: 6"], ""),
    "grpo": (
        "pairs",
        [f"{LORA}, {WRITES}, generations: 4, beta: 0.1, max_steps: 6, trl: {{num_iterations: 2}}"],
        "",
    ),
    "distill": (
        "chats",
        [f"{LORA}, teacher: ./teacher, on_policy: 0.5, response_tokens: 6, max_steps: 6"],
        "",
    ),
    "ppo": ("pairs", [f"{PPO}, reward: 'own.py:score', max_steps: 10"], ""),
    "sft>rm>ppo": (
        "pairs", [f"{LORA}, max_steps: 4", f"{LORA}, max_steps: 4", f"{PPO}, max_steps: 6"], "",
    ),
    "departments": ("", [f"{LORA}, max_steps: 6"], ""),
    "packed, best, muon": (
        "chats",
        [f"{FULL}, optimizer: muon, packing: true, keep: best, early_stopping: 4, max_steps: 8"],
        "",
    ),
    "ddp": ("chats", [f"{LORA}, max_steps: 8"], "processes: 2, strategy: ddp"),
    "fsdp, bf16": (
        "chats",
        [f"{LORA}, weights_dtype: bfloat16, precision: pure, max_steps: 8"],
        "processes: 2, strategy: fsdp",
    ),
    "fsdp, nf4": (
        "chats",
        [f"{LORA}, quantization: nf4, precision: pure, max_steps: 8"],
        "processes: 2, strategy: fsdp",
    ),
    "fsdp, fp32": (
        "chats",
        [f"{FULL}, weights_dtype: float32, precision: pure, max_steps: 8"],
        "processes: 2, strategy: fsdp",
    ),
}  # fmt: skip
SAID = {"legal": "See clause {}.", "hr": "Ask for form {}, please.", "sales": "That is {} euros!"}


def plan_text(name: str) -> str:
    """A plan, for a folder with `fill`'s files."""
    data, stages, launch = PLANS[name]
    names = name.split(">") if all(part.isalpha() for part in name.split(">")) else ["sft"]
    names = ["sft"] if name in ("departments", "ddp") else names
    tasks = ", ".join(f"{{name: {task}, data: {{path: {task}.jsonl}}}}" for task in SAID)
    found = f"data: {{path: {data}.jsonl}}" if data else f"tasks: [{tasks}]"
    listed = "".join(
        f"  - {{name: {one}, objective: {one}, {keys}}}\n"
        for one, keys in zip(names, stages, strict=True)
    )
    end = f"launch: {{{launch}}}\n" if launch else ""
    return f"name: shop\nmodel: ./model\n{found}\nstages:\n{listed}{end}"


def plan_of(name: str) -> str:
    return re.sub(r"\W+", "-", name) + ".yaml"


def fill(folder: Path) -> None:
    """Write models, data and plans into a folder."""
    for model in ("model", "teacher"):
        (folder / model).mkdir(parents=True)
        save_tiny_model(folder / model)
    swap_base(folder, folder, "teacher")  # another one than its student
    (folder / "own.py").write_text(REWARD)
    for name in ("chats", "pairs", "votes", "texts"):
        write_rows(folder / f"{name}.jsonl", map(DATA[name], range(40)))
    for task, said in SAID.items():
        rows = [{"question": f"What about {n}?", "answer": said.format(n)} for n in range(24)]
        write_rows(folder / f"{task}.jsonl", rows)
    for name in PLANS:
        (folder / plan_of(name)).write_text(plan_text(name))


# --------------------------------------------------------------------------- processes

MARK = "ADVISE_FAULTS_MARK"  # in the environment of every process of one run
# A background shell leaves SIGINT ignored, nohup SIGHUP, and children inherit that.
START = (
    "import signal, sys; [signal.signal(n, signal.SIG_DFL) for n in (1, 2, 15)];"
    " signal.signal(2, signal.default_int_handler); sys.argv[0] = 'advise';"
    " from advisor.cli import main; main()"
)
RUNS_S = 1800.0  # no tiny run takes so long, on a machine that many share either
ENDED_S = 300.0  # from a signal to the end of `advise run`
GONE_S = 60.0  # from its end to that of the last process


class Command:
    """One `advise run` in a folder, in a process group of its own, with its output in a file."""

    def __init__(self, plan: str, output: str, folder: Path) -> None:
        self.mark, self.log = uuid.uuid4().hex, folder / f"{output}.log"
        own = {
            "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "", MARK: self.mark,
        }  # fmt: skip
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-c", START, "run", plan, "--output", output],
                cwd=folder, env=os.environ | own, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip

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
        others = {pid: words for pid, words in self.running().items() if "trainers" in words}
        others.pop(self.process.pid, None)
        return sorted(others, key=lambda pid: ("say.torchrun" not in others[pid], pid))

    def end(self, seconds: float) -> tuple[int | None, list[str]]:
        """(its exit code, None if it did not end in time; what lived on, and is killed now)."""
        code = None
        with suppress(subprocess.TimeoutExpired):
            code = self.process.wait(timeout=seconds)
        until = time.monotonic() + (GONE_S if code is not None else 0)
        while (left := self.running()) and time.monotonic() < until:
            time.sleep(0.1)
        for pid in left:
            send(pid, signal.SIGKILL)
        self.process.wait()
        return code, list(left.values())


def send(pid: int, number: int, *, group: bool = False) -> bool:
    """Send a signal, to the process or to its whole group; False if the process is gone."""
    try:
        os.killpg(os.getpgid(pid), number) if group else os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


# --------------------------------------------------------------------------- phases of a run

LOADING, TRAINING, SAVING, JUDGING = "loading", "in a step", "saving", "judging"
PHASES = {"loading": LOADING, "training": TRAINING, "saving": SAVING, "evaluating": JUDGING}
ANY, BEGINNING, MEASURING = "at any time", "before the trainer", "before the steps"
LOOK_S = 0.01


def phase_of(run: Path) -> str:
    """What a run is doing, by what its trainer left in the folder."""
    found = BEGINNING
    with suppress(OSError, ValueError, KeyError):  # it goes on meanwhile
        doing = max(run.glob("stages/*/doing.json"), key=lambda path: path.stat().st_mtime_ns)
        found = PHASES[json.loads(doing.read_bytes())["doing"]]
        kept = [path for path in doing.parent.glob("checkpoints/checkpoint-*") if path.is_dir()]
        if any(not (path / "complete.json").exists() for path in kept):
            return SAVING
        measured = [*doing.parent.glob("before.json"), *doing.parent.glob("*.safetensors")]
        if found == JUDGING and not measured:
            return MEASURING
    return found


def phases(run: Path, command: Command) -> Iterator[tuple[str, float]]:
    """(phase, when it began) of a run as it goes, until it ends."""
    before = None
    while command.process.poll() is None:
        now = phase_of(run)
        if now != before:
            before = now
            yield now, time.monotonic()
        time.sleep(LOOK_S)


@dataclass(frozen=True)
class Scene:
    """A plan in a folder, and its run that nobody interrupted."""

    folder: Path
    name: str
    lengths: Mapping[str, Sequence[float]] = field(
        default_factory=dict
    )  # seconds, of each time that a phase came
    result: Mapping[str, Any] | None = None
    seconds: float = 0.0

    @property
    def whole(self) -> str:
        return f"whole-{Path(plan_of(self.name)).stem}"

    @property
    def is_divided(self) -> bool:
        return "processes: 2" in PLANS[self.name][2]

    def start(self, output: str, folder: Path | None = None) -> Command:
        return Command(plan_of(self.name), output, folder or self.folder)


def make_scene(folder: Path, name: str) -> Scene:
    """The scene, once its plan has trained without interruption; a RuntimeError if it fails."""
    scene, began = Scene(folder, name), time.monotonic()
    command = scene.start(scene.whole)
    came = [*phases(folder / scene.whole, command), ("", time.monotonic())]
    code, _ = command.end(RUNS_S)
    if code != 0:
        raise RuntimeError(f"{name} does not train: {command.output}")
    lengths: dict[str, list[float]] = {}
    for (phase, at), (_, end) in pairwise(came):
        lengths.setdefault(phase, []).append(end - at)
    result = result_of(folder / scene.whole)
    return replace(scene, lengths=lengths, result=result, seconds=time.monotonic() - began)


CLOCK = ("tokens_per_s", "memory_bytes", "seconds")  # and *_s: never twice the same


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
        "stages": [{key: without_clock(one.get(key)) for key in kept} for one in record["stages"]],
        "cross_evaluation": record.get("cross_evaluation"),
        # Names that only something half done would have.
        "left behind": sorted(path.name for path in run.rglob(".*") if path.name != ".lock"),
    }


def stage_name(line: Mapping[str, Any]) -> str:
    return f"{line['stage']}-{line['task']}" if line.get("task") else str(line["stage"])


def without_clock(value: Any) -> Any:
    """A record without its seconds."""
    if not isinstance(value, dict):
        return value
    kept = {key: one for key, one in value.items() if not (key in CLOCK or key.endswith("_s"))}
    return {key: without_clock(one) for key, one in kept.items()}


def difference(one: Any, other: Any) -> str:
    """The first place in which two results differ; empty if in none."""
    if isinstance(one, dict) and isinstance(other, dict):
        pairs = [(key, one.get(key), other.get(key)) for key in {**one, **other}]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = list(zip(range(len(one)), one, other, strict=True))
    else:
        return "" if one == other else f"{str(one)[:80]}, not {str(other)[:80]}"
    return next((f"{key}: {difference(a, b)}" for key, a, b in pairs if a != b), "")


# --------------------------------------------------------------------------- kills

PARENT, TRAINER, BOTH, GROUPS, WORKER = "advise", "trainer", "both", "process groups", "a worker"
KINDS = (  # and how often each is drawn
    (signal.SIGKILL, BOTH, 3), (signal.SIGKILL, PARENT, 2), (signal.SIGKILL, TRAINER, 2),
    (signal.SIGKILL, GROUPS, 1), (signal.SIGTERM, PARENT, 2), (signal.SIGTERM, TRAINER, 2),
    (signal.SIGTERM, GROUPS, 2), (signal.SIGINT, PARENT, 1), (signal.SIGHUP, PARENT, 1),
    (signal.SIGHUP, TRAINER, 1),
)  # fmt: skip
IN_ONE_RUN = 3  # kills of one run before it is let alone
# A phase for each kill, in turn; those that are short come as often as those that are long.
TURNS = (LOADING, SAVING, JUDGING, LOADING, SAVING, JUDGING, TRAINING, ANY, MEASURING)


@dataclass(frozen=True)
class Kill:
    """A signal, who gets it, and when: in a phase that has come so often, after a share of it."""

    number: signal.Signals
    target: str
    phase: str
    nth: int = 1
    share: float = 0.5

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

    def wait(self, scene: Scene, run: Path, command: Command) -> bool:
        """True once its moment has come; False if the run ended before."""
        if self.phase == ANY:
            time.sleep(self.share * scene.seconds)
            return command.process.poll() is None
        left = self.nth
        for phase, _ in phases(run, command):
            left -= phase == self.phase
            if left == 0:
                usual = sorted(scene.lengths.get(self.phase, [0.0]))
                time.sleep(self.share * usual[len(usual) // 2])
                break
        return command.process.poll() is None

    def faults(self, code: int | None, status: str | None) -> list[str]:
        """What is not as promised about how `advise run` ended, and about what run.json says."""
        allowed: dict[int, Sequence[str | None]] = {130: ("stopped",)}
        if self.number == signal.SIGKILL:
            ended = (-signal.SIGKILL, ("running", "stopped", "failed", None))
            allowed = dict([(5, ("failed",)) if self.target in (TRAINER, WORKER) else ended])
        elif status is None:  # nothing had been written yet
            allowed = {130: (None,), -self.number: (None,)}
        is_sound = code is not None and status in allowed.get(code, ())
        return [] if is_sound else [f"exit code {code}, run.json says {status}, not {allowed}"]


def draw_kills(scene: Scene, dice: random.Random, turn: int, only: str | None) -> list[Kill]:
    """The kills of one run; later ones have less before them."""
    found = []
    for attempt in range(IN_ONE_RUN):
        number, target, _ = dice.choices(KINDS, [kind[-1] for kind in KINDS])[0]
        if scene.is_divided and number == signal.SIGKILL and dice.random() < 0.5:
            target = WORKER
        phase = only or TURNS[(turn * IN_ONE_RUN + attempt) % len(TURNS)]
        times = max(1, len(scene.lengths.get(phase, ())) // (attempt + 1))
        found.append(Kill(number, target, phase, dice.randint(1, times), dice.random()))
    return found


def survive(scene: Scene, output: str, kills: Sequence[Kill]) -> list[Row]:
    """Kill one run again and again, then let it end; a row for each kill that struck."""
    run = scene.folder / output
    struck, said = [], []
    for kill in kills:
        one, text = kill_once(scene, run, kill)
        said.append(text)
        if one is None:
            break
        struck.append((kill, *one))
    for _ in range(3):
        command = scene.start(output)
        code, _ = command.end(RUNS_S)
        said.append(command.output)
        if code in (0, None):
            break
    why = f"exit code {code}: {last_lines(said[-1])}"
    if code == 0:
        why = difference(scene.result, result_of(run))
    rows = []
    for call, (kill, steps, faults) in enumerate(struck):
        faults += [f"in the end: {why}"] if why else []
        trained = starts(said[call])  # of the others nothing was lost by this kill
        reached = {stage: step for stage, step in steps.items() if stage in trained}
        lost, most = steps_lost(reached, said[call + 1 :]), 2 * (kill.number == signal.SIGKILL)
        faults += [f"{lost} steps lost, not at most {most}"] if lost > most else []
        about = {"fault": str(kill), "where": scene.name, "moment": kill.phase}
        rows.append(Row(**about, wrong=faults, lost_steps=lost))
    return rows


def kill_once(
    scene: Scene, run: Path, kill: Kill
) -> tuple[tuple[dict[str, int], list[str]] | None, str]:
    """Start or resume a run and end it: the steps reached and faults, or None; what it said."""
    record = run / "run.json"
    before = record.read_bytes() if record.exists() else None
    command = scene.start(run.name)
    came = kill.wait(scene, run, command) and kill.strike(command)
    code, left = command.end(ENDED_S if came else RUNS_S)
    status = status_of(run)
    if not came or (code == 0 and status == "done"):
        return None, command.output
    if (record.read_bytes() if record.exists() else None) == before:
        status = None  # it had not begun: the record is still that of the call before
    faults = kill.faults(code, status)
    faults += [f"still alive: {words[:120]}" for words in left[:1]]
    if told := re.search(r"Traceback.*|[^\n]*this is a bug.*", command.output, re.S):
        faults.append(f"a traceback, or called a bug: {told[0][-600:]}")
    if faults:
        faults.append(last_lines(command.output))
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


def killed(folder: Path, name: str, count: int, seed: int, only: str | None) -> Iterator[Row]:
    """Kill runs of one plan, until so many kills have struck."""
    scene, struck = make_scene(folder, name), 0
    for turn in range(4 * count):  # some moments come too late
        drawn = draw_kills(scene, random.Random(f"{seed} {name} {turn}"), turn, only)
        rows = survive(scene, f"run-{scene.whole}-{turn}", drawn[: count - struck])
        yield from rows
        struck += len(rows)
        if struck >= count:
            return


# --------------------------------------------------------------------------- damage

STOPPED = "stopped"  # the run folder in which everything below begins
DISK_MIB = 320  # more than a run wants free before it begins
FINISHED = (0, 2, 4, 5)  # exit codes of an answer; 70, 1 and signals are none
# What must come of a damage: the run goes on from a checkpoint; the command refuses, and changes
# nothing; or a finished run is called damaged, or is sound.
RESUMES, REFUSED, NOT_SOUND = "resumes", "refused", "not called sound"
Change = Callable[[Path, Path], object]  # (project, run) -> where the project is now, if it moved
TEARS: Mapping[str, Callable[[Path], object]] = {
    "cut in half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "with one bit turned": lambda path: flip(path) if path.stat().st_size else None,
    "gone": Path.unlink,
}


def newest_checkpoint(run: Path) -> Path:
    """The newest whole checkpoint of a run."""
    whole = [path.parent for path in run.glob("stages/*/checkpoints/checkpoint-*/complete.json")]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]))


def swap_base(project: Path, run: Path, model: str = "model") -> None:
    """Zero some of the base's weights in place: the same size, the same name."""
    with (project / model / "model.safetensors").open("r+b") as file:
        file.seek(-24_000, os.SEEK_END)
        file.write(bytes(20_000))


def rewrite(path: Path, old: str, new: str) -> None:
    """Replace the first match of a pattern in the file."""
    path.write_text(re.sub(old, new, path.read_text(), count=1))


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


DAMAGES: Sequence[tuple[str, Change, str]] = [
    ("moved project folder", lambda project, run: project.rename(f"{project}-moved"), RESUMES),
    ("another base under the same name", swap_base, REFUSED),
    ("renamed model folder", rename_model, REFUSED),
    ("copied model folder", copy_model, RESUMES),
    ("metrics.jsonl with bytes of a power cut", forget_lines, RESUMES),
    ("prepared rows with one bit turned",
     lambda project, run: [flip(path) for path in (run / "prepared").glob("*.arrow")], RESUMES),
    ("complete.json with another step",
     lambda project, run: rewrite(
         newest_checkpoint(run) / "complete.json", r'"step": ?\d+', '"step": 12'), RESUMES),
    ("other rows",
     lambda project, run: [
         rewrite(path, r"parcel 3|order 3", "thing 3") for path in project.glob("*s.jsonl")
     ], REFUSED),
    *((f"result of a finished run {how}",
       lambda project, run, how=how: TEARS[how](next(run.glob("stages/*/*.safetensors"))), NOT_SOUND)
      for how in TEARS if how != "empty"),
]  # fmt: skip


def damaged(folder: Path, name: str, step: int, torn: int, seed: int) -> list[Row]:
    """Damage a stopped run of one plan in every way, and tear so many files of its checkpoint."""
    own, dice = folder / f"damage-{name}", random.Random(f"{seed} damage {name}")
    fill(own)
    scene = make_scene(own, name)
    stop_after(scene, STOPPED, step)
    files = sorted(path.name for path in newest_checkpoint(own / STOPPED).iterdir())
    tears: list[tuple[str, Change, str]] = [
        (f"torn newest checkpoint: {file} {how}",
         lambda project, run, file=file, how=how: TEARS[how](newest_checkpoint(run) / file), RESUMES)
        for file in files for how in TEARS
    ]  # fmt: skip
    chosen = [*DAMAGES, *dice.sample(tears, min(torn, len(tears)))]
    return [
        try_damage(scene, one, folder / f"damaged-{name}-{number}")
        for number, one in enumerate(chosen)
    ] + full_disk(scene, folder / f"disk-{name}", dice)


def stop_after(scene: Scene, output: str, step: int) -> None:
    """Kill a run once it has gone beyond a step."""
    run, command = scene.folder / output, scene.start(output)
    while command.process.poll() is None:
        if max(steps_reached(run).values(), default=0) > step:
            break
        time.sleep(LOOK_S)
    Kill(signal.SIGKILL, BOTH, ANY).strike(command)
    command.end(ENDED_S)


def copy_project(scene: Scene, target: Path, run: str = "") -> None:
    """What a run needs of the scene's folder, and one of the runs in it."""
    target.mkdir()
    wanted = ("model", "teacher", "own.py", plan_of(scene.name), run)
    for path in scene.folder.iterdir():
        if path.suffix == ".jsonl" or path.name in wanted:
            copy = shutil.copytree if path.is_dir() else shutil.copy2
            copy(path, target / path.name)


def contents(run: Path) -> dict[str, bytes]:
    """Checkpoints and results, to see whether a refusal left them alone."""
    return {str(path): path.read_bytes() for path in run.glob("stages/**/*") if path.is_file()}


def told(scene: Scene, output: str, project: Path) -> tuple[int | None, str, list[str]]:
    """How the command ended in a copy of the project, what it said, and what it must never do."""
    command = scene.start(output, project)
    code, left = command.end(RUNS_S)
    said = command.output
    faults = [f"still alive: {words}" for words in left[:1]]
    if code not in FINISHED or "Traceback" in said or "is a bug" in said:
        faults.append(f"exit code {code}: {last_lines(said)}")
    return code, said, faults


def try_damage(scene: Scene, damage: tuple[str, Change, str], place: Path) -> Row:
    """Do it to a copy of the stopped or finished run, give the command again, and see."""
    fault, change, then = damage
    output = scene.whole if then == NOT_SOUND else STOPPED
    copy_project(scene, place, output)
    moved = change(place, place / output)
    place = moved if isinstance(moved, Path) else place
    run = place / output
    reached, before = steps_reached(run), contents(run)
    code, said, faults = told(scene, output, place)
    if code == 0:
        why = difference(scene.result, result_of(run))
        faults += [f"in the end: {why}"] if why else []
    resumed = code == 0 and any(starts(said).values())
    if not faults and ((then == RESUMES and not resumed) or (then == REFUSED and code == 0)):
        faults.append(f"it was not {then}: exit code {code}: {last_lines(said)}")
    if then == REFUSED and contents(run) != before:
        faults.append("checkpoints or results were changed")
    shutil.rmtree(place)
    lost = steps_lost(reached, [said]) if then == RESUMES else None
    kind, _, moment = fault.partition(": ")
    return Row(fault=kind, where=scene.name, moment=moment, wrong=faults, lost_steps=lost)


@contextmanager
def small_disk(place: Path) -> Iterator[bool]:
    """A file system of its own in memory; False if this machine does not let us make one."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(place)]
    made = subprocess.run(mount, capture_output=True, check=False).returncode == 0
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
        project, filler = place / "project", place / "filler"
        copy_project(scene, project)
        run, command = project / STOPPED, scene.start(STOPPED, project)
        if Kill(signal.SIGKILL, BOTH, SAVING, dice.randint(1, 2), 0.3).wait(scene, run, command):
            with filler.open("wb", buffering=0) as file:
                for size in (1 << 20, 1 << 12, 1):
                    with suppress(OSError):
                        while True:
                            file.write(bytes(size))
        code, _ = command.end(RUNS_S)
        is_told = code in (4, 5) and "Traceback" not in command.output
        faults = [] if is_told else [f"exit code {code}: {last_lines(command.output)}"]
        faults += [] if status_of(run) == "failed" else [f"run.json says {status_of(run)}"]
        reached = steps_reached(run)
        filler.unlink(missing_ok=True)
        code, said, more = told(scene, STOPPED, project)
        why = f"exit code {code}: {last_lines(said)}"
        if code == 0:
            why = difference(scene.result, result_of(run))
        faults += [*more, *([f"with room again, in the end: {why}"] if why else [])]
    lost = steps_lost(reached, [said])
    return [Row(fault="full disk", where=scene.name, moment=SAVING, wrong=faults, lost_steps=lost)]
