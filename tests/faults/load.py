"""Load: time may grow with the work, memory and logs may not; test_short_forms.py runs a part."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.table import ROOT, Row

AT_ONCE, DEPARTMENTS, ROWS, STEPS = 100, 200, 10_000_000, 20_000
MIB = 2**20
QUESTION = ("--json", "--task", "qa", "--gpu", "RTX 4090", "--model", "Qwen/Qwen3-8B")
# `advise run` up to the first trainer: everything that is checked and written before it starts.
PREPARE = """
import sys
from advisor.launch import Options, run_plan
from advisor.launch.stages import StageRunner
StageRunner.train = lambda runner: None
run_plan(sys.argv[1], output="run", say=lambda text: None)
"""
FLAT = 1.15  # memory of a large case, of that of a small one
LINEAR = 1.3  # cost of a large case, of what a straight line from a small one gives
GROWN_MIB = 8  # that memory may grow after the first tenth of a run; allocators keep some
MOST_LINES = 5_100  # of metrics: 5,000, and one for each checkpoint and each held-out loss
MOST_BYTES = {
    "metrics.jsonl": 2 * MIB, "report.html": MIB, "run.json": MIB // 4,
    "stages/*/checkpoints/*/trainer_state.json": MIB // 16,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one command did, and cost with its children."""

    code: int
    out: str
    err: str
    cpu_s: float
    wall_s: float
    peak_bytes: int  # of the largest of its processes


def costs(*words: str, folder: Path, count: int = 1) -> list[Cost]:
    """Of a Python command, started so many times at once in a folder."""
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    began = time.monotonic()
    texts = [
        [tempfile.TemporaryFile("w+", errors="replace") for _ in range(2)]  # noqa: SIM115
        for _ in range(count)
    ]
    started = [
        subprocess.Popen(
            [sys.executable, *words], cwd=folder, env=os.environ | own, stdin=subprocess.DEVNULL,
            stdout=out, stderr=err,
        )
        for out, err in texts
    ]  # fmt: skip
    found = []
    for process, each in zip(started, texts, strict=True):
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out, err = (file.seek(0) or file.read() for file in each)
        found.append(
            Cost(
                code=process.returncode, out=out, err=err,
                cpu_s=used.ru_utime + used.ru_stime, wall_s=time.monotonic() - began,
                peak_bytes=used.ru_maxrss * 1024,  # Linux counts in KiB
            )
        )  # fmt: skip
    return found


def grows(small: Cost, large: Cost, times: float) -> bool:
    """Whether a cost grows faster than the work."""
    return large.cpu_s / small.cpu_s > LINEAR * times


def rows() -> list[Row]:
    """Every kind of load in the sizes of the long form."""
    found = []
    for kind in (at_once, departments, rows_checked, steps_trained):
        with tempfile.TemporaryDirectory(prefix="advise-load-") as name:
            found.append(kind(Path(name)))
    return found


def _row(what: str, where: str, wrong: Sequence[str], note: str) -> Row:
    return Row(fault=f"load: {what}", where=where, wrong=wrong, note=note)


def at_once(folder: Path, count: int = AT_ONCE) -> Row:
    """So many `advise --json` at the same time: all answer, and all the same."""
    each = costs("-m", "advisor", *QUESTION, folder=folder, count=count)
    failed = [cost for cost in each if cost.code != 0]
    wrong = [f"{len(failed)} failed: {cost.err.strip()[-200:]}" for cost in failed[:1]]
    if len({cost.out for cost in each}) != 1:
        wrong.append("they differ")
    peak, cpu_s = max(cost.peak_bytes for cost in each), sum(cost.cpu_s for cost in each)
    note = f"{cpu_s / count:.2f} s of a core and {peak / MIB:.0f} MiB each"
    return _row(f"{count} at once", "advise --json", wrong, note)


def departments(folder: Path, count: int = DEPARTMENTS) -> Row:
    """Advice, estimate and checks of so many departments, against a plan with a quarter of them."""
    from tests.fake_model import write_fake_model
    from tests.launch.conftest import CONFIG, write_rows

    write_fake_model(folder / "model", CONFIG)
    (folder / "data").mkdir()
    for task in range(count):
        pairs = ((f"Question {n} for {task}?", f"Answer {n * (task + 3)}.") for n in range(60))
        rows = ({"prompt": prompt, "completion": answer} for prompt, answer in pairs)
        write_rows(folder / "data" / f"{task}.jsonl", rows)
    found: dict[str, list[Cost]] = {}
    for size in (max(1, count // 4), count):
        tasks = "".join(f"  dep-{task}: data/{task}.jsonl\n" for task in range(size))
        answers, plan, own = f"a{size}.yaml", f"p{size}.yaml", folder / f"work{size}"
        (folder / answers).write_text(
            f"task: multi_department\ngpu: none\nmodel: ./model\ntasks:\n{tasks}"
        )
        own.mkdir()
        for what, words, place in (
            ("advice", ("-m", "advisor", "--json", "--answers", answers, "--plan", plan), folder),
            ("estimate", ("-m", "advisor", "estimate", plan), folder),
            ("preparation", ("-c", PREPARE, f"../{plan}"), own),
        ):
            found.setdefault(what, []).extend(costs(*words, folder=place))
    wrong = [
        f"{what}: {cost.err.strip()[-300:]}"
        for what, each in found.items()
        for cost in each
        if cost.code != 0
    ]
    wrong += [
        f"{what} grows faster than the plan: {small.cpu_s:.2f}, {large.cpu_s:.2f} s"
        for what, (small, large) in found.items()
        if grows(small, large, count / max(1, count // 4))
    ]
    told = ", ".join(f"{what} {large.cpu_s:.1f} s" for what, (_, large) in found.items())
    peak = max(cost.peak_bytes for each in found.values() for cost in each)
    return _row(f"{count} departments", "advise", wrong, f"{told}, {peak / MIB:.0f} MiB")


def rows_checked(folder: Path, count: int = ROWS) -> Row:
    """`advise check` of so many rows, in no more memory than of a quarter of them."""
    path, found = folder / "rows.jsonl", []
    for size in (count // 4, count):
        with path.open("w") as file:
            file.writelines(
                f'{{"prompt": "What is {n} and {n}?", "completion": "It is {2 * n}."}}\n'
                for n in range(size)
            )
        found += costs("-m", "advisor", "check", "rows.jsonl", folder=folder)
    small, large = found
    wrong = [cost.err.strip()[-300:] for cost in found if cost.code != 0]
    if large.peak_bytes > FLAT * small.peak_bytes:
        wrong.append(f"{small.peak_bytes / MIB:.0f} MiB for a quarter of the rows")
    if grows(small, large, 4):
        wrong.append(f"{small.cpu_s:.0f} s for a quarter of the rows")
    note = f"{large.cpu_s:.0f} s of a core, {large.peak_bytes / MIB:.0f} MiB"
    return _row(f"{count:,} rows", "advise check", wrong, note)


def steps_trained(folder: Path, count: int = STEPS) -> Row:
    """A run of so many tiny steps: memory stays, log, checkpoints and report are bounded."""
    from tests.conftest import PAIRS, save_tiny_model

    (folder / "model").mkdir()
    save_tiny_model(folder / "model")
    (folder / "rows.jsonl").write_text(PAIRS)
    (folder / "plan.yaml").write_text(
        "version: 1\nname: x\nmodel: ./model\ndata: {path: rows.jsonl}\n"
        "stages: [{name: sft, objective: sft, update: lora, rank: 2, target_modules: [q_proj],"
        f" learning_rate: 1e-5, max_steps: {count}, micro_batch_size: 1, seq_len: 48,"
        f" save_steps: {max(1, count // 4)}, packing: false, holdout: 0.1}}]\nlaunch: {{device: cpu}}\n"
    )
    (cost,) = costs("-m", "advisor", "run", "plan.yaml", "--output", "run", folder=folder)
    if cost.code != 0:
        return _row(f"{count:,} steps", "sft", [cost.err.strip()[-300:]], "")
    text = (folder / "run" / "metrics.jsonl").read_text()
    memory = [json.loads(line)["memory_bytes"] for line in text.splitlines()]
    grown, told = (memory[-1] - memory[len(memory) // 10]) / MIB, []
    checks = {
        f"memory grew by {grown:.0f} MiB after the first tenth": grown > GROWN_MIB,
        f"{len(memory):,} lines of metrics": len(memory) > MOST_LINES,
    }
    for pattern, most in MOST_BYTES.items():
        size = max((path.stat().st_size for path in (folder / "run").glob(pattern)), default=0)
        told.append(f"{Path(pattern).name} {size / 1024:.0f} KiB")
        checks[told[-1]] = size > most
    wrong = [what for what, is_so in checks.items() if is_so]
    note = f"{cost.wall_s:.0f} s, memory {grown:+.1f} MiB after the first tenth; {', '.join(told)}"
    return _row(f"{count:,} steps", "sft", wrong, note)
