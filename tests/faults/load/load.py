"""Each kind of load as a function that gives a row of the table: `python -m tests.faults` tries the
sizes that the issue of reliability names, the tests of this folder smaller ones.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.faults.load.measured import MIB, Command, advise, growth
from tests.faults.table import Row

AT_ONCE, DEPARTMENTS, ROWS, STEPS = 100, 200, 10_000_000, 20_000
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


def rows(seed: int) -> list[Row]:
    """Every kind of load in the sizes of the long form."""
    kinds: tuple[Callable[[Path], Row], ...] = (at_once, departments, rows_checked, steps_trained)
    found = []
    for kind in kinds:
        with tempfile.TemporaryDirectory(prefix="advise-load-") as name:
            found.append(kind(Path(name)))
    return found


def _row(what: str, where: str, problems: list[str], note: str, seconds: float, count: int) -> Row:
    told = "; ".join([*problems, note])
    return Row(
        fault=f"load: {what}",
        objective=where,
        moment="",
        survived=not problems,
        seconds=seconds,
        count=count,
        note=told,
    )


# --------------------------------------------------------------------------- many at once


def at_once(folder: Path, count: int = AT_ONCE) -> Row:
    """So many `advise --json` at the same time: all answer, and all the same."""
    started = [Command("-m", "advisor", *QUESTION, folder=folder) for _ in range(count)]
    costs = [command.wait() for command in started]
    problems = []
    failed = [cost for cost in costs if cost.code != 0]
    if failed:
        problems.append(f"{len(failed)} failed: {failed[0].err.strip()[-200:]}")
    if len({cost.out for cost in costs}) != 1:
        problems.append("they differ")
    peak, cpu_s = max(cost.peak_bytes for cost in costs), sum(cost.cpu_s for cost in costs)
    wall_s = max(cost.wall_s for cost in costs)
    note = f"{wall_s:.0f} s, {cpu_s / count:.2f} s of a core and {peak / MIB:.0f} MiB each"
    return _row(f"{count} at once", "advise --json", problems, note, wall_s, count)


# --------------------------------------------------------------------------- departments


def departments(folder: Path, count: int = DEPARTMENTS) -> Row:
    """A plan with so many departments: advice, estimate, and everything before the first trainer,
    against a plan with a quarter of them.
    """
    from tests.fake_model import write_fake_model
    from tests.launch.conftest import CONFIG

    sizes = (max(1, count // 4), count)
    write_fake_model(folder / "model", CONFIG)
    (folder / "data").mkdir()
    for task in range(count):
        lines = [
            {"prompt": f"Question {n} for {task}?", "completion": f"Answer {n * (task + 3)}."}
            for n in range(60)
        ]
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (folder / "data" / f"{task}.jsonl").write_text(text)
    costs: dict[str, list[float]] = {}
    peaks: list[int] = []
    problems = []
    for size in sizes:
        tasks = "".join(f"  dep-{task}: data/{task}.jsonl\n" for task in range(size))
        answers = f"task: multi_department\ngpu: none\nmodel: ./model\ntasks:\n{tasks}"
        (folder / f"a{size}.yaml").write_text(answers)
        plan = f"p{size}.yaml"
        own = folder / f"work{size}"
        own.mkdir()
        for what, cost in (
            (
                "advice",
                advise("--json", "--answers", f"a{size}.yaml", "--plan", plan, folder=folder),
            ),
            ("estimate", advise("estimate", plan, folder=folder)),
            ("preparation", Command("-c", PREPARE, f"../{plan}", folder=own).wait()),
        ):
            costs.setdefault(what, []).append(cost.cpu_s)
            peaks.append(cost.peak_bytes)
            if cost.code != 0:
                problems.append(f"{what} of {size}: {cost.err.strip()[-300:]}")
    for what, found in costs.items():
        if len(found) == 2 and growth(found, sizes) > LINEAR:
            problems.append(f"{what} grows faster than the plan: {found[0]:.2f}, {found[1]:.2f} s")
    told = ", ".join(f"{what} {found[-1]:.1f} s" for what, found in costs.items())
    note = f"{told}, {max(peaks) / MIB:.0f} MiB"
    return _row(f"{count} departments", "advise", problems, note, sum(map(max, costs.values())), 1)


# --------------------------------------------------------------------------- rows


def rows_checked(folder: Path, count: int = ROWS) -> Row:
    """`advise check` of so many rows, in no more memory than of a quarter of them."""
    costs = []
    for size in (count // 4, count):
        path = folder / "rows.jsonl"
        with path.open("w") as file:
            for n in range(size):
                file.write(
                    f'{{"prompt": "What is {n} and {n}?", "completion": "It is {2 * n}."}}\n'
                )
        costs.append(advise("check", "rows.jsonl", folder=folder))
        path.unlink()
    small, large = costs
    problems = [cost.err.strip()[-300:] for cost in costs if cost.code != 0]
    if large.peak_bytes > FLAT * small.peak_bytes:
        problems.append(f"{small.peak_bytes / MIB:.0f} MiB for a quarter of the rows")
    if growth([small.cpu_s, large.cpu_s], [1, 4]) > LINEAR:
        problems.append(f"{small.cpu_s:.0f} s for a quarter of the rows")
    note = f"{large.cpu_s:.0f} s of a core, {large.peak_bytes / MIB:.0f} MiB"
    return _row(f"{count:,} rows", "advise check", problems, note, large.wall_s, 1)


# --------------------------------------------------------------------------- steps


def steps_trained(folder: Path, count: int = STEPS) -> Row:
    """A run of so many tiny steps: memory stays, log, checkpoints and report are bounded."""
    from tests.conftest import PAIRS, save_tiny_model

    (folder / "model").mkdir()
    save_tiny_model(folder / "model")
    (folder / "rows.jsonl").write_text(PAIRS)
    plan = (
        "version: 1\nname: x\nmodel: ./model\ndata: {path: rows.jsonl}\n"
        "stages: [{name: sft, objective: sft, update: lora, rank: 2, target_modules: [q_proj],"
        f" learning_rate: 1e-5, max_steps: {count}, micro_batch_size: 1, seq_len: 48,"
        f" save_steps: {max(1, count // 4)}, packing: false, holdout: 0.1}}]\nlaunch: {{device: cpu}}\n"
    )
    (folder / "plan.yaml").write_text(plan)
    cost = advise("run", "plan.yaml", "--output", "run", folder=folder)
    problems = [cost.err.strip()[-300:]] if cost.code != 0 else []
    run = folder / "run"
    text = (run / "metrics.jsonl").read_text() if (run / "metrics.jsonl").exists() else ""
    lines = [json.loads(line) for line in text.splitlines()]
    memory = [line["memory_bytes"] for line in lines]
    early = memory[len(memory) // 10] if memory else 0
    grown = (memory[-1] - early) / MIB if memory else 0.0
    if grown > GROWN_MIB:
        problems.append(f"memory grew by {grown:.0f} MiB after the first tenth")
    if len(lines) > MOST_LINES:
        problems.append(f"{len(lines):,} lines of metrics")
    sizes = {name: _size(run / name) for name in ("metrics.jsonl", "report.html", "run.json")}
    states = [path.stat().st_size for path in run.rglob("trainer_state.json")]
    sizes["trainer_state.json"] = max(states, default=0)
    for (name, size), most in zip(sizes.items(), (2 * MIB, MIB, MIB // 4, MIB // 16), strict=True):
        if size > most:
            problems.append(f"{name} has {size / 1024:.0f} KiB")
    told = ", ".join(f"{name} {size / 1024:.0f} KiB" for name, size in sizes.items())
    note = f"{cost.wall_s:.0f} s, memory {grown:+.1f} MiB after the first tenth; {told}"
    return _row(f"{count:,} steps", "sft", problems, note, cost.wall_s, 1)


GROWN_MIB = 8  # that memory may grow after the first tenth of a run; allocators keep some
MOST_LINES = 5_100  # of metrics: 5,000, and one for each checkpoint and each held-out loss


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
