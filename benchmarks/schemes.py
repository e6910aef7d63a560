"""Every update against plain PEFT and TRL with the same settings, and three departments in one
process against three runs.
"""

import json
import sys
import tempfile
from pathlib import Path

from advisor.ground.resources import PACKAGE, trainers_root
from benchmarks.measuring import Row, run_process
from benchmarks.training import LORA, Setting, demo_model, ours, plain

TITLE = (
    "SFT of SmolLM2-135M-Instruct on the bundled data, CPU: each update beside plain TRL;"
    " departments together and one by one"
)
PAIRS = 2
# Adapter has no plain side: PEFT has no bottleneck adapters.
SETTINGS = (
    LORA,
    Setting(
        "prefix", "prefix_tokens: 20", {"class": "PrefixTuningConfig", "num_virtual_tokens": 20}
    ),
    Setting("full", "gradient_checkpointing: false", {}),
    Setting("adapter", "bottleneck: 16", {}),
)
UNITS = {"step": "s a step", "peak": "GiB"}
DEPARTMENTS = """version: 1
name: departments
model: {model}
tasks: [{tasks}]
stages:
  - {{name: sft, objective: sft, update: lora, rank: 16, weights_dtype: float32, learning_rate: 3.0e-4, max_steps: 4, micro_batch_size: 4, seq_len: 256, holdout: 0.0}}
launch: {{device: cpu}}
"""


def updates(folder: Path, model: str, data: str) -> list[Row]:
    """Seconds a step and peak memory of each update, side by side; the unit names the update, so
    that each is compared with its own plain side.
    """
    rows = []
    for setting in SETTINGS:
        sides = (
            {"advise run": ours}
            if setting.update == "adapter"
            else {"plain TRL": plain, "advise run": ours}
        )
        seen: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for turn in range(PAIRS):
            for name, side in sides.items():
                seen[name].append(
                    side(folder, f"{setting.update}-{side.__name__}{turn}", setting, model, data)
                )
        base = "lora" if setting.update == "adapter" else setting.update
        rows += [
            Row(
                f"{setting.update}: {name}",
                tuple(run[key] for run in seen[name]),
                f"{unit}, {base}",
            )
            for key, unit in UNITS.items()
            for name in sides
        ]
    return rows


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
        return updates(Path(folder), model, data) + departments(Path(folder), model, data)
