"""Two processes against one, on the cores of this machine, and against the plain libraries.

Full weights of SmolLM2-135M-Instruct in float32; every row has the same number of tokens, and every
way has as many rows in an optimizer step. One process computes with all cores, each of two with
half of them. ADVISE_BENCHMARK_ROUNDS and ADVISE_BENCHMARK_LAYERS (the first layers of the model
alone) make it longer or shorter.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from advisor.ground.resources import trainers_root
from benchmarks.measuring import Row, run_process
from benchmarks.packing import LAYERS, shortened
from benchmarks.side_by_side.model import demo_model

ROUNDS = int(os.environ.get("ADVISE_BENCHMARK_ROUNDS", "3"))
STEPS, MICRO, TOKENS, RATE, PROCESSES = 6, 2, 128, 1e-5, 2
CORES = len(os.sched_getaffinity(0))
PLAIN = Path(__file__).parent / "plain" / "distributed.py"
TITLE = (
    f"full weights of {f'the first {LAYERS} layers of ' if LAYERS else ''}SmolLM2-135M-Instruct,"
    f" {STEPS} steps of {PROCESSES * MICRO} rows of {TOKENS} tokens, CPU: one process and"
    f" {PROCESSES}"
)
STAGE: dict[str, Any] = {
    "name": "sft", "objective": "sft", "update": "full", "weights_dtype": "float32",
    "precision": "pure", "optimizer": "adamw_fused", "learning_rate": RATE, "max_steps": STEPS,
    "seq_len": TOKENS, "truncation": "truncate", "holdout": 0.0, "packing": False,
    "micro_batch_size": MICRO, "save_steps": 1000,
}  # fmt: skip
SPEED, BESIDE = "tokens/s", "s beside the steps"


def write_rows(path: Path) -> None:
    """Texts longer than a row, all different."""
    words = [
        "the",
        "order",
        "of",
        "cups",
        "and",
        "kettles",
        "in",
        "blue",
        "and",
        "green",
        "was",
        "sent",
        "to",
        "the",
        "shop",
        "on",
        "monday",
    ]
    texts = (
        " ".join(words[(start + place * (start + 1)) % len(words)] for place in range(2 * TOKENS))
        for start in range(STEPS * PROCESSES * MICRO)
    )
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")


def ours(folder: Path, model: str, strategy: str | None) -> tuple[float, float]:
    """(tokens a second, seconds of the command beside the steps) of `advise run`."""
    launch: dict[str, Any] = {"device": "cpu"}
    stage = {**STAGE, "grad_accum": PROCESSES}
    if strategy is not None:
        launch |= {"processes": PROCESSES, "strategy": strategy}
        stage["grad_accum"] = 1
    folder.mkdir()
    write_rows(folder / "rows.jsonl")
    plan = {
        "version": 1, "name": "benchmark", "model": model, "data": {"path": "rows.jsonl"},
        "stages": [stage], "launch": launch,
    }  # fmt: skip
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False), "utf-8")
    command = [sys.executable, "-m", "advisor", "run", "plan.yaml", "--no-judge", "--json"]
    done = run_process(
        [*command, "--output", "run"], cwd=str(folder), env=environment(strategy is not None)
    )
    record = json.loads(done.stdout)
    launched, measured = record["launch"], record["stages"][0]["measured"]
    assert launched["strategy"] == strategy
    assert (launched["sharded_tensors"] > 0) is (strategy == "fsdp")
    lines = (folder / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == STEPS
    assert min(json.loads(line)["grad_norm"] for line in lines) > 0
    return per_second(measured["step_s"]), done.wall_s - measured["train_s"]


def plain(model: str, way: str) -> tuple[float, float]:
    """The same of a loop over accelerate or torch alone."""
    given = {
        "model": model, "way": way, "steps": STEPS, "rows": MICRO, "tokens": TOKENS,
        "learning_rate": RATE,
    }  # fmt: skip
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(PROCESSES), str(PLAIN), json.dumps(given)),
    ]
    done = run_process(command, env=environment(shared=True))
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["losses"][-1] < found["losses"][0]
    return per_second(found["step_s"]), done.wall_s - found["train_s"]


def environment(shared: bool) -> dict[str, str]:
    """Threads for the cores that a process has, and nothing from the network."""
    threads = max(1, CORES // PROCESSES) if shared else CORES
    return {
        "PYTHONPATH": str(trainers_root()), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)
    }  # fmt: skip


def per_second(step_s: float) -> float:
    """Tokens a second, all processes together."""
    return PROCESSES * MICRO * TOKENS / step_s


def measure() -> list[Row]:
    """Each way in turn, several times; the groups compare what shares the work in the same way."""
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        model = demo_model()
        if LAYERS:
            model = shortened(model, base / "model")
        for number in range(ROUNDS):
            for name, strategy in (("one", None), ("ddp", "ddp"), ("fsdp", "fsdp")):
                pair = ours(base / f"{name}-{number}", model, strategy)
                found.setdefault(f"advise run, {name}", []).append(pair)
                if strategy is not None:
                    found.setdefault(f"plain, {name}", []).append(plain(model, name))
    rows = []
    for group, first, second in (
        ("two processes against one", "advise run, one", "advise run, ddp"),
        ("ddp against a loop over accelerate", "plain, ddp", "advise run, ddp"),
        ("fsdp against a loop over torch's FSDP2", "plain, fsdp", "advise run, fsdp"),
    ):
        for name in (first, second):
            speeds, besides = zip(*found[name], strict=True)
            rows.append(Row(name, speeds, SPEED, more_is_better=True, group=group))
            rows.append(Row(name, besides, BESIDE, group=group))
    return rows
