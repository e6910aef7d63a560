"""One kill of a real `advise run`: what was ended how and when, and whether the run told the truth
about it; then whether the same command ends as if nothing had happened.
"""

import json
import random
import re
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
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
    """Kill one run again and again, then let it end; a row for each kill that struck.

    Args:
        output: Its run folder.
        most: Calls of the command after the last kill until it must be done.
    """
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
    """Start or resume the run and end it: which step of each stage it had reached, and what was not
    as promised; None if it was over before. And what it said.
    """
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
    """Optimizer steps that were done and then done again.

    Args:
        reached: Stage -> the step that a call of the command had reached.
        later: What the calls after it said.
    """
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
