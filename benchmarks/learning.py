"""What runs teach: ten short runs of SmolLM2-135M-Instruct on the CPU, what was expected of each, its
band, and what was measured; expected once more after the other nine, and after all ten, have taught
it; and the ten measured again. `python -m benchmarks learning [FOLDER]`.

Each run takes one to two minutes on two cores. The folder (default: ./learning-runs) keeps them: a
call that was stopped resumes there. `--once` leaves out the second round.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from advisor.data import profile
from advisor.data.measure.tokenizer import model_tokenizer
from advisor.estimate.past.runs import PastRun, PastRuns
from advisor.ground.resources import trainers_root
from advisor.ground.types import DataProfile
from advisor.ground.units import GIB
from advisor.launch.expected import expect_stage
from advisor.launch.teaching import past_run
from advisor.plan.entries import entries
from advisor.plan.measured_record import Expected
from advisor.plan.read import read_plan
from advisor.plan.record import RunRecord, StageRecord
from advisor.plan.record_files import read_record
from advisor.probe import cpu_hardware
from advisor.situation.of_plan import device_hardware, plan_shape
from benchmarks.measuring import run_process
from benchmarks.side_by_side.model import demo_model
from benchmarks.side_by_side.rows import conversations, spread

ROWS, PAIRS, TEXTS = 24, 12, 24
CHATS_FILE, PAIRS_FILE, TEXTS_FILE = "chats.jsonl", "pairs.jsonl", "texts.txt"
PLAN = """version: 1
name: {name}
model: {model}
data: {{path: {data}}}
stages:
  - {{name: stage, {settings}, holdout: 0.0, epochs: 1}}
launch: {{device: cpu}}
"""
LORA = "update: lora, rank: 16, learning_rate: 2.0e-4, seq_len: 1024"
FLOAT32 = "weights_dtype: float32, gradient_checkpointing: false"
RUNS: Mapping[str, tuple[str, str]] = {  # name -> (data, settings)
    "lora-4": (CHATS_FILE, f"objective: sft, {LORA}, {FLOAT32}, micro_batch_size: 4, grad_accum: 2"),
    "lora-1": (CHATS_FILE, f"objective: sft, {LORA}, {FLOAT32}, micro_batch_size: 1, grad_accum: 8"),
    "lora-8": (CHATS_FILE, f"objective: sft, {LORA}, {FLOAT32}, micro_batch_size: 8, grad_accum: 1"),
    "lora-recomputed": (
        CHATS_FILE,
        f"objective: sft, {LORA}, weights_dtype: float32, gradient_checkpointing: true,"
        " micro_batch_size: 4, grad_accum: 2",
    ),
    "full": (
        CHATS_FILE,
        f"objective: sft, update: full, learning_rate: 1.0e-5, seq_len: 1024, {FLOAT32},"
        " micro_batch_size: 2, grad_accum: 4",
    ),
    "prefix": (
        CHATS_FILE,
        f"objective: sft, update: prefix, prefix_tokens: 20, seq_len: 1024, {FLOAT32},"
        " learning_rate: 1.0e-3, micro_batch_size: 4, grad_accum: 2",
    ),
    "adapter": (
        CHATS_FILE,
        f"objective: sft, update: adapter, bottleneck: 32, seq_len: 1024, {FLOAT32},"
        " learning_rate: 1.0e-3, micro_batch_size: 4, grad_accum: 2",
    ),
    "ia3": (
        CHATS_FILE,
        f"objective: sft, update: ia3, seq_len: 1024, {FLOAT32}, learning_rate: 5.0e-3,"
        " micro_batch_size: 4, grad_accum: 2",
    ),
    "dpo": (
        PAIRS_FILE,
        f"objective: dpo, {LORA}, {FLOAT32}, beta: 0.1, micro_batch_size: 2, grad_accum: 2",
    ),
    "cpt": (
        TEXTS_FILE,
        f"objective: cpt, update: lora, rank: 16, learning_rate: 2.0e-4, seq_len: 512, {FLOAT32},"
        " micro_batch_size: 2, grad_accum: 2",
    ),
}  # fmt: skip


def main(arguments: list[str]) -> int:
    """Run what is not there yet, and print the two tables. Returns an exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks learning", description=__doc__)
    parser.add_argument("folder", nargs="?", default="learning-runs", type=Path)
    parser.add_argument("--once", action="store_true", help="no second round")
    options = parser.parse_args(arguments)
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    model = demo_model()
    write_inputs(folder, model)
    first = {name: trained(folder, "first", name) for name in RUNS}
    lines = {name: line_of(folder, name, stage) for name, stage in first.items()}
    others = {
        name: expected_after(folder, name, [lines[other] for other in RUNS if other != name])
        for name in RUNS
    }
    columns = {
        "formula": {name: expected_after(folder, name, []) for name in RUNS},
        "other nine": others,
        "all ten": {name: expected_after(folder, name, [*lines.values()]) for name in RUNS},
    }
    print(report(columns, first, "first round"))
    if not options.once:
        taught = folder / "second" / "runs.jsonl"
        if not taught.exists():
            taught.parent.mkdir(exist_ok=True)
            text = "".join(json.dumps(line.to_dict()) + "\n" for line in lines.values())
            taught.write_text(text, "utf-8")
        second = {name: trained(folder, "second", name) for name in RUNS}
        again = {name: _expected(stage) for name, stage in second.items()}
        print(report({"taught by the first round": again}, second, "second round"))
    return 0


def write_inputs(folder: Path, model: str) -> None:
    """The three data files and a plan for each run."""
    chats = spread(conversations(1000), ROWS)
    answers = [chat[-1]["content"] for chat in chats]
    pairs = [
        {"prompt": chat[0]["content"], "chosen": answer, "rejected": other}
        for chat, answer, other in zip(chats, answers, [*answers[1:], answers[0]], strict=True)
    ][:PAIRS]
    (folder / CHATS_FILE).write_text(_jsonl([{"messages": chat} for chat in chats]), "utf-8")
    (folder / PAIRS_FILE).write_text(_jsonl(pairs), "utf-8")
    (folder / TEXTS_FILE).write_text("\n\n".join(answers[:TEXTS]) + "\n", "utf-8")
    for name, (data, settings) in RUNS.items():
        text = PLAN.format(name=name, model=json.dumps(model), data=data, settings=settings)
        (folder / f"{name}.yaml").write_text(text, "utf-8")


def _jsonl(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def trained(folder: Path, turn: str, name: str) -> StageRecord:
    """The record of a run, which is trained if it is not done yet.

    In the first round nothing is remembered, so that no run teaches another.
    """
    output = folder / turn / name
    record = _record(output)
    if record is None or record.status != "done":
        print(f"{turn} round: {name}", file=sys.stderr, flush=True)
        past = folder / turn / "runs.jsonl" if turn == "second" else "off"
        run_process(
            [sys.executable, "-m", "advisor", "run", f"{name}.yaml", "--no-judge", "--output",
             str(output)],
            env={"PYTHONPATH": os.pathsep.join([str(trainers_root()), os.getcwd()]),
                 "ADVISE_RUNS": str(past)},
            cwd=str(folder),
        )  # fmt: skip
        record = _record(output)
    assert record is not None
    return record.stages[0]


def _record(output: Path) -> RunRecord | None:
    return read_record(output) if output.is_dir() else None


def _expected(stage: StageRecord) -> Expected:
    assert stage.expected is not None
    return stage.expected


def line_of(folder: Path, name: str, stage: StageRecord) -> PastRun:
    """What the run teaches, by the formula as it is now: a folder of earlier runs can be read again
    once the formula has changed.
    """
    path = folder / f"{name}.yaml"
    plan = read_plan(path)
    assert stage.measured is not None
    found = past_run(
        plan,
        entries(plan)[0],
        plan_shape(plan, path),
        device_hardware(plan, cpu_hardware()),
        stage.measured,
        kind="run",
        step_s=expected_after(folder, name, []).step_s,
        versions={},
    )
    assert found is not None
    return found


def expected_after(folder: Path, name: str, runs: list[PastRun]) -> Expected:
    """What is expected of a run once these have taught it."""
    path = folder / f"{name}.yaml"
    plan = read_plan(path)
    (entry,) = entries(plan)
    return expect_stage(
        plan,
        entry,
        plan_shape(plan, path),
        device_hardware(plan, cpu_hardware()),
        profile=_profile(folder / entry.data.path, plan.model),
        past=PastRuns(runs),
    )


@cache
def _profile(path: Path, model: str) -> DataProfile:
    return profile(path, count_tokens=model_tokenizer(model)[0])


def report(
    columns: Mapping[str, Mapping[str, Expected]], measured: Mapping[str, StageRecord], title: str
) -> str:
    """Memory and time of every run beside what was expected of it, and the errors of each
    column. Memory is what the trainer counts; so is the band, in the same share of the process.
    """
    memory = {name: stage.measured.peak_bytes for name, stage in measured.items() if stage.measured}
    times = {name: stage.measured.step_s for name, stage in measured.items() if stage.measured}
    heads = "".join(f"{column:>28}" for column in columns)
    lines = [f"{title}, peak in GiB, expected (band)", f"{'':18}{'measured':>9}{heads}"]
    inside = dict.fromkeys(columns, 0)
    for name, peak in memory.items():
        assert peak is not None
        cells = []
        for column, expected in columns.items():
            low, middle, high = _band(expected[name])
            is_inside = low <= peak <= high
            inside[column] += is_inside
            text = f"{middle / GIB:.2f} ({low / GIB:.2f}-{high / GIB:.2f})"
            cells.append(f"{text + ('' if is_inside else ' out'):>28}")
        lines.append(f"{name:18}{peak / GIB:9.2f}{''.join(cells)}")
    lines.append(_errors(columns, memory, lambda one: one.counted_bytes))
    lines.append(f"{'inside the band':27}" + "".join(f"{count:>28}" for count in inside.values()))
    lines += ["", f"{title}, seconds of an optimizer step, expected"]
    for name, step_s in times.items():
        cells = [f"{expected[name].step_s:>28.2f}" for expected in columns.values()]
        lines.append(f"{name:18}{step_s:9.2f}{''.join(cells)}")
    lines.append(_errors(columns, times, lambda one: one.step_s))
    return "\n".join([*lines, ""])


def _band(expected: Expected) -> tuple[float, float, float]:
    """(low, expected, high) of what the trainer counts, whose error is that of the whole: what it
    leaves out is constant.
    """
    assert expected.peak_bytes is not None
    assert expected.counted_bytes is not None
    assert expected.low_bytes is not None
    assert expected.high_bytes is not None
    fixed = expected.peak_bytes - expected.counted_bytes
    return expected.low_bytes - fixed, expected.counted_bytes, expected.high_bytes - fixed


def _errors(
    columns: Mapping[str, Mapping[str, Expected]],
    measured: Mapping[str, float | None],
    value: Callable[[Expected], float | None],
) -> str:
    errors = (
        statistics.median(
            abs((value(expected[name]) or 0.0) / found - 1)
            for name, found in measured.items()
            if found
        )
        for expected in columns.values()
    )
    return f"{'median error':27}" + "".join(f"{error:>28.0%}" for error in errors)
