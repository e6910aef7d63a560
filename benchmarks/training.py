"""LoRA on the CPU by `advise run`, by TRL's command line and by LLaMA-Factory's, in turn: the same
rows and settings first, then each tool with its own defaults.

Speed counts the tokens that the loss counts, so that padding and prompts are no work. Every
training must have gradients above zero and a falling loss. ADVISE_BENCHMARK_ROWS and
ADVISE_BENCHMARK_PAIRS make it longer or shorter; rows.py and tools.py name the other variables.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from advisor.ground.resources import trainers_root
from benchmarks.measuring import Row
from benchmarks.side_by_side.rows import make_rows
from benchmarks.side_by_side.tools import CASES, EPOCHS, MICRO, TOOLS, NotRun, Task, Training

ROWS = int(os.environ.get("ADVISE_BENCHMARK_ROWS", "16"))
PAIRS = int(os.environ.get("ADVISE_BENCHMARK_PAIRS", "3"))
TITLE = f"LoRA of SmolLM2-135M-Instruct on {ROWS} rows of alpaca's lengths, {EPOCHS} epochs, CPU"


@dataclass
class Seen:
    """The trainings of one tool in one case."""

    speed: list[float] = field(default_factory=list)  # learned tokens a second of training
    whole_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    peak: list[float] = field(default_factory=list)

    def add(self, training: Training, learned: int) -> None:
        self.speed.append(learned / training.train_s)
        self.whole_s.append(training.process.wall_s)
        self.cpu_s.append(training.process.cpu_s)
        self.peak.append(training.process.peak_bytes / 2**30)

    def rows(self, name: str, case: str) -> list[Row]:
        values = {
            "learned tokens/s": self.speed,
            "s command to adapter": self.whole_s,
            "CPU s of it": self.cpu_s,
            "GiB peak resident": self.peak,
        }
        return [Row(name, tuple(seen), unit, group=case) for unit, seen in values.items()]


def demo_model() -> str:
    """The folder of the model, fetched once."""
    environment = {**os.environ, "PYTHONPATH": str(trainers_root()), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-P", "-m", "trainers.tools.demo_model"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return done.stdout.strip().splitlines()[-1]


def measure() -> list[Row]:
    model, cores = demo_model(), len(os.sched_getaffinity(0))
    assert ROWS % MICRO == 0, f"ADVISE_BENCHMARK_ROWS: a multiple of {MICRO}"
    seen = {case: {name: Seen() for name in TOOLS} for case in CASES}
    with tempfile.TemporaryDirectory() as temporary:
        rows = make_rows(Path(temporary), model, ROWS)
        learned = EPOCHS * rows.learned
        print(
            f"{rows.rows} rows, {rows.all_tokens:,} tokens, {rows.learned:,} of them learned,"
            f" the longest {rows.longest}\n"
        )
        absent: set[str] = set()
        for turn in range(PAIRS):
            for case in CASES:
                for name, run in TOOLS.items():
                    if name in absent:
                        continue
                    folder = Path(temporary) / f"{case}-{name.replace(' ', '-')}-{turn}"
                    folder.mkdir()
                    try:
                        training = run(Task(case, model, rows, folder, cores))
                    except NotRun as error:
                        absent.add(name)
                        print(f"{name}: not run: {error}")
                        continue
                    seen[case][name].add(training, learned)
                    print(said(case, name, training, learned), file=sys.stderr, flush=True)
                    shutil.rmtree(folder)
    return [
        row
        for case in CASES
        for unit in range(4)
        for name in TOOLS
        if name not in absent
        for row in [seen[case][name].rows(name, case)[unit]]
    ]


def said(case: str, name: str, training: Training, learned: int) -> str:
    """One training in a line, as soon as it is over."""
    process, losses = training.process, training.losses
    return (
        f"  {case:9}{name:15}{process.wall_s:7.1f} s, {process.cpu_s:.1f} s of CPU,"
        f" {learned / training.train_s:.1f} tokens/s, {process.peak_bytes / 2**30:.2f} GiB,"
        f" loss {losses[0]:.3f} to {losses[-1]:.3f} in {len(losses)} steps"
    )
