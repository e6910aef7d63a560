"""Load: time may grow with the work, memory and logs may not; test_short_forms.py runs a part."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.faults.table import ROOT, Row

AT_ONCE, DEPARTMENTS, ROWS, STEPS = 100, 200, 10_000_000, 20_000
MIB = 2**20
QUESTION = ("--json", "--task", "qa", "--gpu", "RTX 4090", "--model", "Qwen/Qwen3-8B")
FLAT = 1.15  # memory of a large case, of that of a small one
LINEAR = 1.3  # cost of a large case, of what a straight line from a small one gives
GROWN_MIB = 8  # that memory may grow after the first tenth of a run; allocators keep some
MOST_LINES = 5_100  # of metrics: 5,000, and one for each checkpoint and each held-out loss
MOST_BYTES = {
    "metrics.jsonl": 2 * MIB, "report.html": MIB, "run.json": MIB // 4,
    "stages/*/checkpoints/*/trainer_state.json": MIB // 16,
}  # fmt: skip


class Cost(NamedTuple):
    """What one command did, and cost with its children."""

    code: int
    out: str
    cpu_s: float
    wall_s: float
    peak_bytes: int  # of the largest of its processes


def costs(*words: str, folder: Path, count: int = 1) -> list[Cost]:
    """Of an `advise` command, started so many times at once in a folder."""
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    began, found = time.monotonic(), []
    texts = [tempfile.TemporaryFile("w+", errors="replace") for _ in range(count)]  # noqa: SIM115
    command = [sys.executable, "-m", "advisor", *words]
    started = [
        subprocess.Popen(
            command, cwd=folder, env=os.environ | own, stdin=subprocess.DEVNULL, stdout=text,
            stderr=subprocess.STDOUT if words[0] == "run" else subprocess.DEVNULL,
        )
        for text in texts
    ]  # fmt: skip
    for process, text in zip(started, texts, strict=True):
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        text.seek(0)
        cpu_s, peak = used.ru_utime + used.ru_stime, used.ru_maxrss * 1024  # Linux counts in KiB
        wall_s = time.monotonic() - began
        found.append(Cost(process.returncode, text.read(), cpu_s, wall_s, peak))
    return found


def failures(what: str, found: Sequence[Cost], times: float = 0) -> list[str]:
    """What failed; with `times`, also whether the last costs more than so many of the first."""
    wrong = [f"{what}: {cost.code}: {cost.out.strip()[-200:]}" for cost in found if cost.code][:1]
    if times and found[-1].cpu_s > LINEAR * times * found[0].cpu_s:
        wrong.append(f"{what} grows faster: {found[0].cpu_s:.2f}, {found[-1].cpu_s:.2f} s")
    return wrong


def rows() -> list[Row]:
    """Every kind of load in the sizes of the long form."""
    found = []
    for kind in (at_once, departments, rows_checked, steps_trained):
        with tempfile.TemporaryDirectory(prefix="advise-load-") as name:
            found.append(kind(Path(name)))
    return found


def at_once(folder: Path, count: int = AT_ONCE) -> Row:
    """So many `advise --json` at the same time: all answer, and all the same."""
    each = costs(*QUESTION, folder=folder, count=count)
    wrong = failures("one of them", each)
    wrong += ["they differ"] if len({cost.out for cost in each}) != 1 else []
    peak, cpu_s = max(cost.peak_bytes for cost in each), sum(cost.cpu_s for cost in each)
    note = f"{cpu_s / count:.2f} s of a core and {peak / MIB:.0f} MiB each"
    return Row(fault=f"load: {count} at once", where="advise --json", wrong=wrong, note=note)


def departments(folder: Path, count: int = DEPARTMENTS) -> Row:
    """Advice and estimate of so many departments, against a plan with a quarter of them."""
    from tests.fake_model import write_fake_model
    from tests.launch.conftest import CONFIG, write_rows

    write_fake_model(folder / "model", CONFIG)
    for task in range(count):
        pairs = ((f"Question {n} for {task}?", f"Answer {n * (task + 3)}.") for n in range(60))
        rows = ({"prompt": prompt, "completion": answer} for prompt, answer in pairs)
        write_rows(folder / f"{task}.jsonl", rows)
    sizes, found = (max(1, count // 4), count), []
    for size in sizes:
        tasks = "".join(f"  dep-{task}: {task}.jsonl\n" for task in range(size))
        text = f"task: multi_department\ngpu: none\nmodel: ./model\ntasks:\n{tasks}"
        (folder / f"a{size}.yaml").write_text(text)
        advice = ("--json", "--answers", f"a{size}.yaml", "--plan", f"p{size}.yaml")
        found += [costs(*words, folder=folder) for words in (advice, ("estimate", f"p{size}.yaml"))]
    each = {"advice": found[0] + found[2], "estimate": found[1] + found[3]}
    wrong = [one for what in each for one in failures(what, each[what], sizes[1] / sizes[0])]
    note = ", ".join(f"{what} {two[1].cpu_s:.1f} s" for what, two in each.items())
    return Row(fault=f"load: {count} departments", where="advise", wrong=wrong, note=note)


def rows_checked(folder: Path, count: int = ROWS) -> Row:
    """`advise check` of so many rows, in no more memory than of a quarter of them."""
    path, found = folder / "rows.jsonl", []
    for size in (count // 4, count):
        with path.open("w") as file:
            file.writelines(
                f'{{"prompt": "What is {n} and {n}?", "completion": "It is {2 * n}."}}\n'
                for n in range(size)
            )
        found += costs("check", "rows.jsonl", folder=folder)
    small, large = found
    wrong = failures("checking", found, 4)
    if large.peak_bytes > FLAT * small.peak_bytes:
        wrong.append(f"{small.peak_bytes / MIB:.0f} MiB for a quarter of the rows")
    note = f"{large.cpu_s:.0f} s of a core, {large.peak_bytes / MIB:.0f} MiB"
    return Row(fault=f"load: {count:,} rows", where="advise check", wrong=wrong, note=note)


def steps_trained(folder: Path, count: int = STEPS) -> Row:
    """A run of so many tiny steps: memory stays, log, checkpoints and report are bounded."""
    from tests.faults import kills

    kills.fill(folder / "project")
    sets = {"max_steps": count, "save_steps": max(1, count // 4), "seq_len": 48, "rank": 2}
    words = [word for key, one in sets.items() for word in ("--set", f"stages.sft.{key}={one}")]
    command = ("run", "sft.yaml", "--output", "run", *words)
    (cost,) = costs(*command, folder=folder / "project")
    about, wrong = {"fault": f"load: {count:,} steps", "where": "sft"}, failures("training", [cost])
    if wrong:
        return Row(**about, wrong=wrong)
    run = folder / "project" / "run"
    lines = (run / "metrics.jsonl").read_text().splitlines()
    memory = [json.loads(line)["memory_bytes"] for line in lines]
    grown = (memory[-1] - memory[len(memory) // 10]) / MIB
    sizes = {
        pattern: max((path.stat().st_size for path in run.glob(pattern)), default=0)
        for pattern in MOST_BYTES
    }
    wrong = [f"{name}: {size} bytes" for name, size in sizes.items() if size > MOST_BYTES[name]]
    wrong += [f"memory grew by {grown:.0f} MiB"] if grown > GROWN_MIB else []
    wrong += [f"{len(memory):,} lines of metrics"] if len(memory) > MOST_LINES else []
    note = f"{cost.wall_s:.0f} s, memory {grown:+.1f} MiB after the first tenth"
    return Row(**about, wrong=wrong, note=note)
