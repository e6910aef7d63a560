"""The table of a run of faults, a row for each fault, and the processes that try some of them."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
IN_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # for scratch files
HEADER = ("fault", "where", "tried", "survived", "steps trained again")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One fault, or many of one kind, and what came of it."""

    fault: str  # SIGKILL of both, torn checkpoint, fuzzed input
    where: str  # the trained plan, or what was fuzzed
    moment: str = ""  # when it struck
    wrong: Sequence[str] = ()  # what was not as promised
    lost_steps: int | None = None  # optimizer steps that had to be trained again; None: no training
    count: int = 1
    past: int | None = None  # of fuzzed inputs: those that a reader took; None: not fuzzed
    note: str = ""


def as_markdown(rows: Sequence[Row]) -> str:
    """The table of docs/reliability.md: each fault with all its places in one line, and the sum."""
    faults = dict.fromkeys(row.fault for row in rows)
    kinds = {fault: [row for row in rows if row.fault == fault] for fault in faults}
    lines = []
    for fault, some in [*kinds.items(), ("all", rows)]:
        places = dict.fromkeys(row.where for row in some if some is not rows)
        lost = [row.lost_steps for row in some if row.lost_steps is not None]
        again = f"{max(lost)} at most, {sum(lost) / len(lost):.1f} in the mean" if lost else ""
        tried = sum(row.count for row in some)
        survived = tried - sum(row.count for row in some if row.wrong)
        lines.append((fault, ", ".join(places), f"{tried:,}", f"{survived:,}", again))
    return table(HEADER, lines)


def by_phase(rows: Sequence[Row]) -> str:
    """The kills of each plan by the phase in which they struck: so many survived of so many."""
    kills = [row for row in rows if row.fault.startswith("SIG")]
    moments = sorted({row.moment for row in kills})

    def cell(plan: str, moment: str) -> str:
        all_of_it = [one for one in kills if plan in ("all", one.where) and one.moment == moment]
        survived = sum(not one.wrong for one in all_of_it)
        return f"{survived} of {len(all_of_it)}" if all_of_it else ""

    plans = [*dict.fromkeys(row.where for row in kills), "all"]
    lines = ([plan, *(cell(plan, moment) for moment in moments)] for plan in plans)
    return table(("kills survived", *moments), lines) + "\n" if kills else ""


def past_readers(rows: Sequence[Row]) -> str:
    """How many fuzzed inputs got past the readers, as a sentence; empty if none was tried."""
    fuzzed = [row for row in rows if row.fault == "fuzzed input"]
    tried, past = sum(row.count for row in fuzzed), sum(row.past or 0 for row in fuzzed)
    share = f"{past:,} of {tried:,} fuzzed inputs ({past / max(tried, 1):.0%}) were taken by their"
    return f"{share} readers: exit code 0 or 3.\n" if fuzzed else ""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [header, ["---"] * len(header), *rows])


def made_with(*packages: str) -> str:
    """When, on what and with which versions something was tried."""
    versions = [f"{name} {version(name)}" for name in packages]
    python = ".".join(map(str, sys.version_info[:3]))
    today = date.today().isoformat()
    return f"{today}, {os.cpu_count()} CPU cores, Python {python}, {', '.join(versions)}"


def rows_of(module: str, *words: object) -> list[Row]:
    """What `python -m tests.faults.MODULE WORDS` prints: `print_rows`."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.faults.{module}", *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    rows = [Row(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not rows:
        raise RuntimeError(f"{module} ended with {done.returncode}: {done.stderr[-400:]}")
    return rows


def print_rows(rows: Iterable[Row]) -> None:
    """One line of JSON each."""
    for row in rows:
        print(json.dumps(asdict(row)), flush=True)
