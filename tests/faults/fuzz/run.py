"""Fuzz: mutate a sound input, give it to the real `advise` in a fork, and judge what it does.

    python -m tests.faults.fuzz.run SEED COUNT [TARGET]

prints a row for each finding and one for each kind of input. Each finding is kept in a folder, with
the command in a file `command`. A fork is fast, since everything is loaded before, and safe, since it
has limits, and tells of every file that it writes and every connection that it tries.
"""

import gc
import io
import json
import os
import random
import re
import resource
import select
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

from tests.faults.fuzz.mutate import Mutator
from tests.faults.fuzz.seeds import ARGUMENTS, Files, Target, advise_main, around, targets
from tests.faults.table import IN_MEMORY, ROOT, Row, print_rows
from trainers.step.settings import TRY_PATTERN

KEPT = Path(os.environ.get("ADVISE_FAULTS_KEPT") or tempfile.gettempdir(), "advise-faults-found")
FILE_BYTES = 256 * 2**20
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = (
    "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod",
    "shutil.rmtree", "shutil.move", "shutil.copyfile", "shutil.copytree",
)  # fmt: skip
COPIES = ("shutil.copyfile", "shutil.copytree")
NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.bind")
# Render chat templates, and try patterns on names of modules.
OWN_PROGRAMS = ("/advisor/data/templates/worker.py", repr(TRY_PATTERN))
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn")
# Where rules that were read once are kept (advisor/ground/yaml_files.py), before HOME changes here.
KEPT_RULES = os.path.join(
    os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "finetune-advisor"
)
EXTRA = (  # options that may stand behind others
    ["--json"], ["--gpu", "A100 80GB"], ["--gpu", "none"], ["--model", "./model"],
)  # fmt: skip
FREE = ("/dev/null", "/dev/tty", "/proc/")  # the real path of /proc/self


@dataclass(frozen=True)
class Case:
    """One input, and the command that reads it."""

    of: Target
    files: Files
    arguments: Sequence[str]
    what: str = ""  # of an attack


@dataclass(frozen=True)
class Outcome:
    """How a call ended."""

    code: int  # negative: the signal that ended it
    out: bytes
    err: bytes
    cpu_s: float
    hung: bool
    told: Sequence[str]  # writes outside its folder, connections, programs started
    changed: Sequence[str]  # files in its folder that are new, other or gone


def call(case: Case, folder: Path) -> Outcome:
    """What the case's command does in a fork, in this folder."""
    before = snapshot(folder)
    texts = [folder.parent / f"{folder.name}.{name}" for name in ("out", "err", "told")]
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.environ.update(case.of.env)
            sys.argv = ["advise", *case.arguments]
            code = _in_child(case, folder, texts)
        finally:
            os._exit(code)
    waiter = os.pidfd_open(pid)
    hung = not select.select([waiter], [], [], case.of.most_wall_s)[0]
    if hung:
        os.kill(pid, signal.SIGKILL)
    _, status, used = os.wait4(pid, 0)
    os.close(waiter)
    out, err, told = (text.read_bytes() if text.exists() else b"" for text in texts)
    for text in texts:
        text.unlink(missing_ok=True)
    after = snapshot(folder)
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    return Outcome(
        code=os.waitstatus_to_exitcode(status), out=out, err=err, hung=hung,
        cpu_s=used.ru_utime + used.ru_stime, changed=changed,
        told=told.decode(errors="replace").splitlines(),
    )  # fmt: skip


def snapshot(folder: Path) -> dict[str, Any]:
    """Name -> content of every file below a folder; of anything else, what it is."""

    def content_of(path: Path) -> Any:
        if path.is_symlink():
            return os.readlink(path)
        return path.read_bytes() if path.is_file() else stat.S_IFMT(path.stat().st_mode)

    return {path.relative_to(folder).as_posix(): content_of(path) for path in folder.rglob("*")}


def fill(folder: Path, files: Files) -> None:
    """Make the folder anew, with these files; what is no content is put in place last."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in sorted(files.items(), key=lambda one: not isinstance(one[1], bytes)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content) if isinstance(content, bytes) else content(path)


def _in_child(case: Case, folder: Path, texts: Sequence[Path]) -> int:
    os.setsid()
    streams = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600) for path in texts]
    sources = (os.open(os.devnull, os.O_RDONLY), *streams)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.dup2(sources[number], number)
        mode = "w" if number else "r"
        setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
    resource.setrlimit(resource.RLIMIT_CPU, (case.of.most_cpu_s, case.of.most_cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_AS, (case.of.most_bytes, case.of.most_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    os.chdir(folder)
    _tell_of(folder, streams[2])
    code = 0
    try:
        case.of.run()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1 if left.code else 0
    except BaseException:
        traceback.print_exc()
        code = 1
    for name, module in list(sys.modules.items()):
        origin = getattr(module, "__file__", None)
        if isinstance(origin, str) and Path(origin).is_relative_to(folder):
            os.write(streams[2], f"imported {name} from its input\n".encode())
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except Exception:
        code = 98
    return code


def _tell_of(folder: Path, stream: int) -> None:
    """Write a line for each file that is written elsewhere, each connection, each program."""
    caches = folder.parent / "home"  # where advise may keep what it has read
    inside = (str(folder.resolve()), str(caches.resolve()), KEPT_RULES, *FREE)
    is_busy = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal is_busy
        if is_busy:
            return
        is_busy = True
        try:
            told = [str(arguments)[:400]] if event in (*NETWORK, *STARTS) else []
            told = [one for one in told if not any(name in one for name in OWN_PROGRAMS)]
            paths = map(os.path.realpath, _written(event, arguments))
            told += [path for path in paths if not path.startswith(inside)]
            for text in told:
                os.write(stream, f"{event} {text}\n".encode(errors="replace"))
        finally:
            is_busy = False

    sys.addaudithook(hook)


def _written(event: str, arguments: tuple[Any, ...]) -> list[str]:
    """The paths that an event changes."""
    paths = arguments[event in COPIES : 2] if event in CHANGES else ()  # a copy reads the first
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES:
        paths = arguments[:1]
    return [os.fsdecode(one) for one in paths if isinstance(one, str | bytes | os.PathLike)]


def settle() -> None:
    """Before the first fork: collect garbage once, and leave what is loaded alone."""
    gc.collect()
    gc.freeze()


# --------------------------------------------------------------------------- what must not be

# All but tab and newline; a terminal acts on them. C1 controls are characters of UTF-8 here.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f]")
REFUSED = 2
PAST = (0, 3)  # a reader took the input


def faults(outcome: Outcome, case: Case) -> list[str]:
    """What was not as promised; the first word says of which kind it is."""
    output = outcome.out + outcome.err
    text = output.decode(errors="replace")
    control = CONTROL.search(text)
    around = text[max(0, control.start() - 30) : control.end() + 10] if control else ""
    changed = outcome.changed if outcome.code == REFUSED else ()
    words = list(case.arguments)
    asked = words[: words.index("--")] if "--" in words else words
    checks = {
        "hang: it did not end": outcome.hung,
        f"exit code {outcome.code}": not outcome.hung and outcome.code not in case.of.codes,
        f"slow: {outcome.cpu_s:.1f} s of computing": outcome.cpu_s > case.of.cpu_s,
        "traceback": "Traceback (most recent call last)" in text,
        f"control character in the output: {around!r}": control,
        "output is no UTF-8": output.decode(errors="ignore").encode() != output,
        **{f"outside: {line}": True for line in outcome.told[:3]},
        f"changed although refused: {', '.join(changed[:3])}": changed,
        "silent": outcome.code in (2, 3, 4, 5) and not output.strip(),
    }
    found = [what for what, is_so in checks.items() if is_so]
    if "--json" in asked and not outcome.hung and not {"-h", "--help", "--version"} & set(asked):
        try:
            json.loads(outcome.out, parse_constant=lambda name: json.loads(f"not JSON: {name}"))
        except RecursionError:
            pass
        except ValueError as error:
            found.append(f"standard output is no JSON: {error}")
    return [one for one in found if not re.match(case.of.usual, one)]


# --------------------------------------------------------------------------- inputs


def draw(target: Target, dice: random.Random) -> Case:
    """A mutated input of this kind."""
    mutator = Mutator(dice)
    seed = dice.choice(target.seeds)
    form = dice.choice(target.forms)
    arguments = dice.choice(target.commands).split()
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
    return Case(target, target.around | ({name: content} if name else {}), arguments)


def mutated_arguments(words: Sequence[str], mutator: Mutator, dice: random.Random) -> list[str]:
    """A command line with words changed, dropped, repeated or put in; or, gently, with values that
    another one gives to the same option.
    """
    result = list(words)
    for _ in range(dice.choice((1, 1, 2, 3))):
        at = dice.randrange(len(result))
        word, other = result[at], mutator.text(dice.choice(words))
        if mutator.gentle:
            given = [two for one in ARGUMENTS for two in pairwise(one) if two[0].startswith("--")]
            here = [place for place, one in enumerate(result[:-1]) if one.startswith("--")]
            same = [value for name, value in given if here and name == result[here[0]]]
            if dice.random() < 0.5 and same and not same[0].startswith("--"):
                result[here[0] + 1] = dice.choice(same)
            elif result[0] in ("--json", "estimate", "run"):
                result += dice.choice(EXTRA)
            continue
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
    fill(folder, around())
    nothing = io.StringIO()
    commands = [words.split() for target in chosen if not target.cold for words in target.commands]
    with chdir(folder), redirect_stdout(nothing), redirect_stderr(nothing):
        for command in commands:
            if command and command[0] not in ("chat", "export", "checkpoint"):
                words = ["advise", *command]
                with mock.patch.object(sys, "argv", words), suppress(SystemExit, Exception):
                    advise_main()
    shutil.rmtree(folder)
    settle()


def fuzz(tried: Iterable[Case], folder: Path, name: str, fault: str = "fuzzed input") -> list[Row]:
    """Rows of inputs that are tried one after the other in a folder; findings are kept by name."""
    settle()
    counts: Counter[str] = Counter()
    past: Counter[str] = Counter()
    found, is_read = [], {}
    for number, case in enumerate(tried):
        place, what = folder / "case", case.of.name
        fill(place, case.files)
        outcome = call(case, place)
        is_read[what] = case.of.is_read
        if broken := faults(outcome, case):
            kept = keep(f"{name}-{number}", case, outcome)
            wrong = [*broken, last_line(outcome.err), str(kept)]
            found.append(Row(fault=fault, where=what, moment=case.what or name, wrong=wrong))
        else:
            counts[what] += 1
            past[what] += outcome.code in PAST
    about = {"fault": fault, "moment": name}
    return [
        *(Row(**about, where=what, count=count, past=past[what] if is_read[what] else None)
          for what, count in counts.items()),
        *found,
    ]  # fmt: skip


def keep(name: str, case: Case, outcome: Outcome) -> Path:
    """Keep an input with its command and its output; where."""
    kept = KEPT / name
    kept.parent.mkdir(parents=True, exist_ok=True)
    fill(kept, {name: one for name, one in case.files.items() if isinstance(one, bytes)})
    command = f"{case.of.program} {shlex.join(case.arguments)}\n{case.what}\n"
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

    fill(folder, around())
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


@contextmanager
def prepared() -> Iterator[tuple[Path, list[Target]]]:
    """A scratch folder, and all targets; everything is imported."""
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as name:
        folder = Path(name)
        every = targets(finished_run(folder / "made"))
        shutil.rmtree(folder / "made")
        load_everything(folder)
        yield folder, every


def main() -> None:
    seed, count, *only = sys.argv[1:]
    with prepared() as (folder, every):
        chosen = [target for target in every if not only or target.name in only]
        drawn = cases(chosen, random.Random(int(seed)), int(count), folder)
        print_rows(fuzz(drawn, folder, f"seed-{seed}"))


if __name__ == "__main__":
    main()
