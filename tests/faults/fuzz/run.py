"""Fuzz: mutate a sound input, give it to the real `advise` in a fork, and judge what it does.

    python -m tests.faults.fuzz.run SEED COUNT [TARGET]

prints one JSON line for each finding and one with the counts. Each finding is kept in a folder, with
the command in a file `command`.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.faults.fuzz import forks
from tests.faults.fuzz.judge import faults
from tests.faults.fuzz.mutate import Mutator
from tests.faults.fuzz.seeds import Files, Target, targets
from tests.faults.table import Row

ROOT = Path(__file__).resolve().parents[3]
KEPT = Path(os.environ.get("ADVISE_FAULTS_KEPT") or tempfile.gettempdir(), "advise-faults-found")


@dataclass(frozen=True)
class Case:
    """One input, and the command that reads it."""

    target: Target
    files: Files
    arguments: Sequence[str]


def draw(target: Target, dice: random.Random) -> Case:
    """A mutated input of this kind."""
    mutator = Mutator(dice)
    seed = dice.choice(target.seeds)
    form = dice.choice(target.forms)
    arguments = list(dice.choice(target.commands))
    name = target.file
    if form == "arguments":
        return Case(target, target.around, mutated_arguments(seed, mutator, dice))
    if form == "file":
        ending, content = seed
        name = f"{name}{ending}"
        content = mutator.data(content, [other for _, other in target.seeds])
        arguments = [name if word == "DATA" else word for word in arguments]
    elif form == "bytes":
        content = mutator.data(seed, target.seeds)
    elif form == "rows":
        rows = mutator.value(seed, target.seeds)
        lines = rows if isinstance(rows, list) else [rows]
        content = b"".join(mutator.as_json(row).replace(b"\n", b" ") + b"\n" for row in lines[:400])
    else:
        value = mutator.value(seed, target.seeds)
        content = mutator.as_yaml(value) if form == "yaml" else mutator.as_json(value)
    if form in ("yaml", "json", "rows") and dice.random() < 0.15:
        content = mutator.data(content, [content])
    return Case(target, {**target.around, name: content}, arguments)


def mutated_arguments(words: Sequence[str], mutator: Mutator, dice: random.Random) -> list[str]:
    """A command line with words changed, dropped, repeated or put in."""
    result = list(words)
    for _ in range(dice.choice((1, 1, 2, 3))):
        at = dice.randrange(len(result))
        kind = dice.random()
        if kind < 0.55:
            result[at] = mutator.text(result[at])
        elif kind < 0.7:
            del result[at]
        elif kind < 0.8:
            result.insert(at, result[at])
        else:
            result.insert(at, mutator.text(dice.choice(words)))
        result = result or ["--json"]
    safe = [word.replace("\0", "").encode("utf-8", "replace").decode()[:20_000] for word in result]
    return safe if safe[0] not in ("demo",) else ["rules"]


class Fuzzer:
    """Everything loaded, and a folder to work in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        os.environ |= {
            "HOME": str(folder / "home"),
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(folder / "home" / "hub"),
            "COLUMNS": "100",
        }
        for name in ("ADVISE_RULES", "ADVISE_METHODS", "XDG_CACHE_HOME"):
            os.environ.pop(name, None)
        (folder / "home").mkdir()
        self.targets = targets(finished_run(folder / "made"))
        shutil.rmtree(folder / "made")
        load_everything()
        self.tried: Counter[str] = Counter()
        self.codes: Counter[int] = Counter()
        self.cpu_s = 0.0

    def warm(self) -> None:
        """Read rules and catalogues once, so that the forks need not."""
        case = self.folder / "warm"
        forks.fill(case, self.targets[0].around)
        here, argv, streams = Path.cwd(), sys.argv, (sys.stdout, sys.stderr)
        os.chdir(case)
        with open(os.devnull, "w") as nothing:
            sys.stdout = sys.stderr = nothing
            try:
                for target in self.targets:
                    for command in target.commands if not target.cold else ():
                        if target.name != "arguments" and command[0] not in ("chat", "export"):
                            sys.argv = ["advise", *command]
                            try:
                                advise_main()
                            except (SystemExit, Exception):
                                continue
            finally:
                sys.stdout, sys.stderr = streams
                os.chdir(here)
                sys.argv = argv
        shutil.rmtree(case)

    def run(self, seed: int, count: int, only: str | None = None) -> list[dict[str, Any]]:
        """Findings of so many inputs."""
        chosen = [target for target in self.targets if only in (None, target.name)]
        dice = random.Random(seed)
        drawn = dice.choices(chosen, [target.weight for target in chosen], k=count)
        forks.settle()
        found = []
        # First what reads rules and methods anew, before anything is loaded for good.
        for target in sorted(drawn, key=lambda target: not target.cold):
            if not target.cold and not self.warmed:
                self.warm()
                self.warmed = True
                forks.settle()
            one = self.try_case(draw(target, dice), f"{seed}-{sum(self.tried.values())}")
            found += [one] if one else []
        return found

    warmed = False

    def try_case(self, case: Case, name: str) -> dict[str, Any] | None:
        """Try one input; what is known of it if it is a finding."""
        self.tried[case.target.name] += 1
        place = self.folder / "case"
        forks.fill(place, case.files)
        outcome = forks.call(
            case.target.run or advise_main, place, arguments=case.arguments, env=case.target.env
        )
        self.cpu_s += outcome.cpu_s
        self.codes[outcome.code] += 1
        told = faults(outcome, case.arguments, case.target.codes)
        if not told:
            return None
        return {
            "target": case.target.name,
            "faults": told,
            **keep(name, case.files, case.arguments, outcome),
        }


def keep(
    name: str,
    files: Files,
    arguments: Sequence[str],
    outcome: forks.Outcome,
    *,
    program: str = "advise",
) -> dict[str, Any]:
    """Keep an input with its command and its output; what is told of it."""
    kept = KEPT / name
    kept.parent.mkdir(parents=True, exist_ok=True)
    forks.fill(kept, files)
    (kept / "command").write_text(f"{program} {shlex.join(arguments)}\n", errors="replace")
    (kept / "output").write_bytes(outcome.out[-4000:] + b"\n-----\n" + outcome.err[-6000:])
    return {"command": list(arguments), "kept": str(kept), "last": last_line(outcome.err)}


def last_line(text: bytes) -> str:
    lines = [line for line in text.decode(errors="replace").splitlines() if line.strip()]
    first = next((line for line in lines if "bug in advise" in line), None)
    return (first or (lines[-1] if lines else ""))[:200]


def finished_run(folder: Path) -> Files:
    """The files of a run that the stand-in trainer has finished, in a folder named `run`."""
    from tests.faults.fuzz.seeds import around
    from tests.launch.conftest import MACHINE, STAND_IN

    forks.fill(folder, around())
    here = Path.cwd()
    os.chdir(folder)
    try:
        from advisor.launch import Options, run_plan
        from advisor.render.report import write_report

        run_plan(
            "plan.yaml", Options(output="run", hardware=MACHINE, trainers=STAND_IN, say=lambda text: None,
            on_end=write_report),
        )  # fmt: skip
    finally:
        os.chdir(here)
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in (folder / "run").rglob("*")
        if path.is_file()
    }


def load_everything() -> None:
    """Import all modules of advisor, and replace what would start a trainer or a tool."""
    for path in sorted((ROOT / "advisor").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if "peft_adapter" not in name and "_bundled" not in name and "__main__" not in name:
            import_module(name)
    from advisor.commands import chat, check, export
    from advisor.launch import call, trainer_process
    from tests.launch.conftest import MACHINE, STAND_IN

    stopped = trainer_process.Ended(130, True)
    trainer_process.TrainerStarter._run = lambda *_, **__: stopped  # type: ignore[method-assign]
    call.trainers_root = lambda: STAND_IN
    call.probe = lambda: MACHINE
    for module in (chat, export, check):
        module.run_tool = read_results


def read_results(name: str, *arguments: str, **_: Any) -> subprocess.CompletedProcess[str]:
    """Instead of a tool that needs torch: read the run as it would."""
    if name in ("chat", "merge"):
        from trainers.tools.results import results_of

        results_of(Path(arguments[0]))
    return subprocess.CompletedProcess([name], 0, "", "")


def advise_main() -> None:
    from advisor.cli import main

    main()


def fuzz_chunk(seed: int, count: int, module: str = "run") -> list[Row]:
    """Rows of so many inputs, tried in a process of its own."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", f"tests.faults.fuzz.{module}", str(seed), str(count)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode not in (0, 1) or not lines:
        raise RuntimeError(f"the fuzzer ended with {done.returncode}: {done.stderr[-400:]}")
    counts = lines.pop()["tried"]
    seconds = round(time.monotonic() - began, 1)
    bad = Counter(line["target"] for line in lines)
    rows = [
        Row(fault="fuzzed input", objective=name, moment=f"seed {seed}", survived=True, count=number - bad[name], seconds=seconds)
        for name, number in counts.items()
    ]  # fmt: skip
    for line in lines:
        note = f"{'; '.join(line['faults'])} | {line['last']} | {line['kept']}"
        rows.append(
            Row(fault="fuzzed input", objective=line["target"], moment=f"seed {seed}", survived=False, note=note)
        )  # fmt: skip
    return rows


def main() -> int:
    seed, count, *only = sys.argv[1:]
    began = time.monotonic()
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as name:
        fuzzer = Fuzzer(Path(name))
        found = fuzzer.run(int(seed), int(count), only[0] if only else None)
    for one in found:
        print(json.dumps(one))
    about = {"codes": dict(fuzzer.codes), "cpu_s": round(fuzzer.cpu_s)}
    print(
        json.dumps(
            {"tried": dict(fuzzer.tried), **about, "wall_s": round(time.monotonic() - began)}
        )
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
