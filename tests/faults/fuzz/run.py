"""Fuzz: mutate a sound input, give it to the real `advise` in a fork, and judge what it does.

    python -m tests.faults.fuzz.run SEED COUNT [TARGET]

prints a row for each finding and one for each kind of input. Each finding is kept in a folder, with
the command in a file `command`.
"""

from __future__ import annotations

import io
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

from tests.faults.fuzz import forks
from tests.faults.fuzz.mutate import Mutator
from tests.faults.fuzz.seeds import ADVICE, Files, Target, around, targets
from tests.faults.table import IN_MEMORY, ROOT, Row, print_rows

KEPT = Path(os.environ.get("ADVISE_FAULTS_KEPT") or tempfile.gettempdir(), "advise-faults-found")


def advise_main() -> None:
    from advisor.cli import main

    main()


@dataclass(frozen=True, kw_only=True)
class Case:
    """One input, and the command that reads it."""

    what: str  # kind of input
    files: Files
    arguments: Sequence[str]
    codes: Sequence[int] = ADVICE
    env: Mapping[str, str] = field(default_factory=dict)
    run: Callable[[], object] = advise_main
    program: str = "advise"
    limits: forks.Limits = field(default_factory=forks.Limits)
    cpu_s: float = forks.CPU_S
    usual: str = "$^"  # pattern of what is no fault of this kind of input


def draw(target: Target, dice: random.Random) -> Case:
    """A mutated input of this kind."""
    mutator = Mutator(dice)
    seed = dice.choice(target.seeds)
    form = dice.choice(target.forms)
    arguments = list(dice.choice(target.commands))
    name, content = target.file, b""
    match form:
        case "arguments":
            arguments = mutated_arguments(seed, mutator, dice)
        case "file":
            name += seed[0]
            content = mutator.data(seed[1], [other for _, other in target.seeds])
            arguments = [name if word == "DATA" else word for word in arguments]
        case "bytes":
            content = mutator.data(seed, target.seeds)
        case "rows":
            rows = mutator.value(seed, target.seeds)
            lines = map(mutator.as_json, rows[:400] if isinstance(rows, list) else [rows])
            content = b"".join(line.replace(b"\n", b" ") + b"\n" for line in lines)
        case "yaml" | "json":
            value = mutator.value(seed, target.seeds)
            content = mutator.as_yaml(value) if form == "yaml" else mutator.as_json(value)
    if form in ("yaml", "json", "rows") and dice.random() < 0.15:
        content = mutator.data(content, [content])
    files = target.around | ({name: content} if name else {})
    return Case(
        what=target.name, files=files, arguments=arguments, codes=target.codes, env=target.env,
        run=target.run or advise_main,
    )  # fmt: skip


def mutated_arguments(words: Sequence[str], mutator: Mutator, dice: random.Random) -> list[str]:
    """A command line with words changed, dropped, repeated or put in."""
    result = list(words)
    for _ in range(dice.choice((1, 1, 2, 3))):
        at = dice.randrange(len(result))
        word, other = result[at], mutator.text(dice.choice(words))
        changed, twice, before = [mutator.text(word)], [word, word], [other, word]
        result[at : at + 1] = dice.choice([changed] * 11 + [[]] * 3 + [twice] * 2 + [before] * 4)
        result = result or ["--json"]
    safe = [word.replace("\0", "").encode("utf-8", "replace").decode()[:20_000] for word in result]
    return safe if safe[0] != "demo" else ["rules"]


def cases(
    chosen: Sequence[Target], dice: random.Random, count: int, folder: Path
) -> Iterator[Case]:
    """So many inputs; first what reads rules and methods anew, before anything is loaded for good."""
    drawn = dice.choices(chosen, [target.weight for target in chosen], k=count)
    yield from (draw(target, dice) for target in drawn if target.cold)
    warm(chosen, folder / "warm")
    yield from (draw(target, dice) for target in drawn if not target.cold)


def warm(chosen: Sequence[Target], folder: Path) -> None:
    """Read rules and catalogues once, so that the forks need not."""
    forks.fill(folder, around())
    nothing = io.StringIO()
    commands = [command for target in chosen if not target.cold for command in target.commands]
    with chdir(folder), redirect_stdout(nothing), redirect_stderr(nothing):
        for command in commands:
            if command and command[0] not in ("chat", "export", "checkpoint"):
                words = ["advise", *command]
                with mock.patch.object(sys, "argv", words), suppress(SystemExit, Exception):
                    advise_main()
    shutil.rmtree(folder)
    forks.settle()


def fuzz(tried: Iterable[Case], folder: Path, name: str) -> list[Row]:
    """Rows of inputs that are tried one after the other in a folder; findings are kept by name."""
    forks.settle()
    counts: Counter[str] = Counter()
    found = []
    for number, case in enumerate(tried):
        place = folder / "case"
        forks.fill(place, case.files)
        outcome = forks.call(
            case.run, place, arguments=case.arguments, env=case.env, limits=case.limits
        )
        faults = forks.faults(outcome, case.arguments, case.codes, cpu_s=case.cpu_s)
        if faults := [one for one in faults if not re.match(case.usual, one)]:
            kept = keep(f"{name}-{number}", case, outcome)
            wrong = [*faults, last_line(outcome.err), str(kept)]
            found.append(Row(fault="fuzzed input", where=case.what, moment=name, wrong=wrong))
        else:
            counts[case.what] += 1
    sound = [
        Row(fault="fuzzed input", where=what, moment=name, count=count)
        for what, count in counts.items()
    ]
    return [*sound, *found]


def keep(name: str, case: Case, outcome: forks.Outcome) -> Path:
    """Keep an input with its command and its output; where."""
    kept = KEPT / name
    kept.parent.mkdir(parents=True, exist_ok=True)
    forks.fill(kept, case.files)
    command = f"{case.program} {shlex.join(case.arguments)}\n"
    (kept / "command").write_text(command, errors="replace")
    (kept / "output").write_bytes(outcome.out[-4000:] + b"\n-----\n" + outcome.err[-6000:])
    return kept


def last_line(text: bytes) -> str:
    lines = [line for line in text.decode(errors="replace").splitlines() if line.strip()]
    return next((line for line in lines if "bug in advise" in line), (lines or [""])[-1])[:200]


def finished_run(folder: Path) -> Files:
    """The files of a run that the stand-in trainer has finished, in a folder named `run`."""
    from advisor.launch import Options, run_plan
    from advisor.render.report import write_report
    from tests.launch.conftest import MACHINE, STAND_IN

    forks.fill(folder, around())
    with chdir(folder):
        run_plan(
            "plan.yaml", Options(output="run", hardware=MACHINE, trainers=STAND_IN, say=lambda text: None,
            on_end=write_report),
        )  # fmt: skip
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in (folder / "run").rglob("*")
        if path.is_file()
    }


def load_everything(folder: Path) -> None:
    """Import all modules of advisor, and replace what would start a trainer or a tool."""
    home = str(folder / "home")
    os.environ |= {"HOME": home, "HF_HUB_OFFLINE": "1", "HF_HOME": f"{home}/hub", "COLUMNS": "100"}
    for name in ("ADVISE_RULES", "ADVISE_METHODS", "XDG_CACHE_HOME"):
        os.environ.pop(name, None)
    (folder / "home").mkdir()
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


def main() -> None:
    seed, count, *only = sys.argv[1:]
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as name:
        folder = Path(name)
        every = targets(finished_run(folder / "made"))
        shutil.rmtree(folder / "made")
        load_everything(folder)
        chosen = [target for target in every if not only or target.name in only]
        drawn = cases(chosen, random.Random(int(seed)), int(count), folder)
        print_rows(fuzz(drawn, folder, f"seed-{seed}"))


if __name__ == "__main__":
    main()
