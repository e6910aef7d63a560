"""The same LoRA on the CPU by `advise run`, by TRL's command line and by LLaMA-Factory's, in turn.

In the equal case the others read the files that `advise export --to trl|llamafactory` writes of
our plan; their first and last losses are then ours, but for the line end behind each answer, which
they learn too. In the other case each tool has its own defaults. Every training must have gradients
above zero and a falling loss.

A step of the equal case has the same rows for all. Where batches differ, speed counts the tokens
that the loss counts, so that padding and prompts are no work. ADVISE_BENCHMARK_ROWS and
ADVISE_BENCHMARK_PAIRS make it longer or shorter; rows.py and tools.py name the other variables.
"""

import os
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measuring import Row
from benchmarks.side_by_side.model import demo_model
from benchmarks.side_by_side.rows import make_rows
from benchmarks.side_by_side.tools import CASES, EPOCHS, MICRO, TOOLS, NotRun, Task, Training

ROWS = int(os.environ.get("ADVISE_BENCHMARK_ROWS", "16"))
PAIRS = int(os.environ.get("ADVISE_BENCHMARK_PAIRS", "3"))
TITLE = f"LoRA of SmolLM2-135M-Instruct on {ROWS} rows of alpaca's lengths, {EPOCHS} epochs, CPU"
UNITS = (
    "s a step", "learned tokens/s", "s command to adapter", "CPU s of it", "GiB peak resident",
    "first loss", "last loss",
)  # fmt: skip
LOSS_TOLERANCE = 0.005  # of the first and of the last loss, between two tools: they print 3 digits


@dataclass
class Seen:
    """The trainings of one tool in one case, and why one did not run."""

    trainings: list[Training] = field(default_factory=list)
    absent: str = ""

    def row(self, name: str, case: str, unit: str, learned: int) -> Row:
        """One line of the table: the values of all trainings in one unit, or the reason."""
        if self.absent:
            return Row(name, (), unit, group=case, note=f"not run: {self.absent}")
        values = [measured(training, learned)[unit] for training in self.trainings]
        return Row(name, tuple(values), unit, group=case)


def measured(training: Training, learned: int) -> dict[str, float]:
    """Unit -> what it was; `learned` tokens were counted by the loss."""
    process, steps = training.process, len(training.losses)
    values = (
        training.train_s / steps, learned / training.train_s, process.wall_s, process.cpu_s,
        process.peak_bytes / 2**30, training.losses[0], training.losses[-1],
    )  # fmt: skip
    return dict(zip(UNITS, values, strict=True))


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
        for turn in range(PAIRS):
            for case in CASES:
                for name, run in TOOLS.items():
                    if seen[case][name].absent:
                        continue
                    folder = Path(temporary) / f"{case}-{name.replace(' ', '-')}-{turn}"
                    folder.mkdir()
                    try:
                        training = run(Task(case, model, rows, folder, cores))
                    except NotRun as error:
                        seen[case][name].absent = str(error)
                        continue
                    finally:
                        shutil.rmtree(folder)
                    seen[case][name].trainings.append(training)
                    print(said(case, name, training, learned), file=sys.stderr, flush=True)
    print("\n".join(agreements(seen["equal"])), end="\n\n")
    return table_rows(seen, learned)


def table_rows(seen: dict[str, dict[str, Seen]], learned: int) -> list[Row]:
    """The lines of the table: each unit of all tools, and one line for a tool that did not run."""
    return [
        row
        for case, tools in seen.items()
        for place, unit in enumerate(UNITS)
        for name, of_tool in tools.items()
        for row in [of_tool.row(name, case, unit, learned)]
        if row.values or place == 0
    ]


def agreements(tools: dict[str, Seen]) -> list[str]:
    """Of each tool that ran beside the first: whether its first and last loss are the same."""
    ran = {name: one.trainings[0].losses for name, one in tools.items() if one.trainings}
    (first, ours), *others = ran.items()
    lines = []
    for name, losses in others:
        apart = max(abs(losses[0] - ours[0]), abs(losses[-1] - ours[-1]))
        word = "equal" if apart <= LOSS_TOLERANCE else "NOT equal"
        lines.append(
            f"first and last loss {word}: {first} {ours[0]:.3f} to {ours[-1]:.3f},"
            f" {name} {losses[0]:.3f} to {losses[-1]:.3f}"
        )
    return lines


def said(case: str, name: str, training: Training, learned: int) -> str:
    """One training in a line, as soon as it is over."""
    process, losses = training.process, training.losses
    return (
        f"  {case:9}{name:15}{process.wall_s:7.1f} s, {process.cpu_s:.1f} s of CPU,"
        f" {learned / training.train_s:.1f} tokens/s, {process.peak_bytes / 2**30:.2f} GiB,"
        f" loss {losses[0]:.3f} to {losses[-1]:.3f} in {len(losses)} steps"
    )
