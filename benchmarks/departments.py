"""Three departments in one process against three runs."""

import json
import sys
import tempfile
from pathlib import Path

from advisor.ground.resources import PACKAGE, trainers_root
from benchmarks.measuring import Row, run_process
from benchmarks.side_by_side.model import demo_model

TITLE = "SFT of SmolLM2-135M-Instruct on the bundled data, CPU: departments together and one by one"
PAIRS = 2
DEPARTMENTS = """version: 1
name: departments
model: {model}
tasks: [{tasks}]
stages:
  - {{name: sft, objective: sft, update: lora, rank: 16, weights_dtype: float32, learning_rate: 3.0e-4, max_steps: 4, micro_batch_size: 4, seq_len: 256, holdout: 0.0}}
launch: {{device: cpu}}
"""


def departments(folder: Path, model: str, data: str) -> list[Row]:
    """Wall seconds and base loads of three tasks as three runs and as one."""
    names = ("legal", "hr", "sales")
    tasks = ", ".join(f"{{name: {name}, data: {{path: {json.dumps(data)}}}}}" for name in names)
    (folder / "departments.yaml").write_text(DEPARTMENTS.format(model=model, tasks=tasks))
    command = [sys.executable, "-m", "advisor", "run", "departments.yaml", "--no-judge", "--output"]
    env = {"PYTHONPATH": str(trainers_root())}
    apart, together = [], []
    for turn in range(PAIRS):
        apart.append(
            sum(
                run_process(
                    [*command, str(folder / f"{name}{turn}"), "--only", name],
                    cwd=str(folder),
                    env=env,
                ).wall_s
                for name in names
            )
        )
        together.append(
            run_process(
                [*command, str(folder / f"together{turn}")], cwd=str(folder), env=env
            ).wall_s
        )
    return [
        Row("three runs, a base load each", tuple(apart), "s in all"),
        Row("one run, one base load", tuple(together), "s in all"),
    ]


def measure() -> list[Row]:
    model, data = demo_model(), str(PACKAGE / "demo" / "support.jsonl")
    with tempfile.TemporaryDirectory() as folder:
        return departments(Path(folder), model, data)
