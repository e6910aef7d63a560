"""Estimates in one process, as advice and what-ifs make them, and one from a cold start."""

import json
import shutil
import sys
import time
from pathlib import Path

from advisor.estimate.answers import run_specs
from advisor.estimate.memory.peak import memory_estimate
from advisor.estimate.run import Device, Run, stage_of
from advisor.estimate.time import machine_of, time_estimate
from advisor.probe.catalogue import find_gpu
from advisor.situation.models import model_shape
from benchmarks.measuring import Row, in_turn

TITLE = (
    "memory and time of 2,000 settings in one process, 5 runs; advise estimate --json cold, 10 runs"
    " in turn"
)
SETTINGS = [
    {
        "objective": "sft",
        "update": update,
        "quantization": bits,
        "rank": rank,
        "micro_batch_size": micro,
        "seq_len": length,
        "gradient_checkpointing": recompute,
    }
    for update, bits in (
        ("lora", None),
        ("lora", "nf4"),
        ("full", None),
        ("adapter", None),
        ("prefix", None),
    )
    for rank in (8, 16, 32, 64, 128)
    for micro in (1, 2, 4, 8, 16)
    for length in (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
    for recompute in (True, False)
]


def measure() -> list[Row]:
    card = find_gpu("RTX 4090").spec
    shape, _ = model_shape("Qwen/Qwen3-8B")
    device, machine = Device(gpu=card, counter="nvidia-smi"), machine_of(card)
    assert shape is not None
    assert machine is not None
    rates, listed = [], []
    for _ in range(5):
        start = time.perf_counter()
        for settings in SETTINGS:
            memory_estimate(run := Run(stage=stage_of(settings), model=shape, device=device))
            time_estimate(run, machine)
        rates.append(len(SETTINGS) / (time.perf_counter() - start))
    text = json.dumps(
        [
            {
                "model": "Qwen/Qwen3-8B",
                "update": "lora",
                "micro_batch_size": micro,
                "gpu": "RTX 4090",
            }
            for micro in range(1, 501)
        ]
    )
    for _ in range(5):
        start = time.perf_counter()
        run_specs(text, find_model=model_shape, find_gpu=find_gpu)
        listed.append(500 / (time.perf_counter() - start))
    rows = [
        Row("settings, memory and time", tuple(rates), "estimates/s", True),
        Row("specs of a list, read and answered", tuple(listed), "specs/s", True),
    ]
    advise = shutil.which("advise", path=str(Path(sys.executable).parent)) or "advise"
    return rows + in_turn(
        {
            "advise estimate --json, cold": [
                advise,
                "estimate",
                "--json",
                "--model",
                "Qwen/Qwen3-8B",
                "--gpu",
                "RTX 4090",
            ]
        },
        runs=10,
    )
