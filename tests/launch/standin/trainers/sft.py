"""A stand-in for the real trainer: the same command line and the same files, no training. Only the tests' launcher finds it.

STAND_IN says how it behaves; a real trainer takes seconds to start, and cannot be made to fail in every way on demand.
"""

import argparse
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from advisor.plan.read import read_plan, resolve_path


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("objective", choices=["sft", "dpo"])
    parser.add_argument("plan", type=Path)
    parser.add_argument("--stage")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--task")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--no-judge", action="store_true")
    parser.add_argument("--part")
    args = parser.parse_args()
    stage = read_plan(args.plan).stage(args.stage)
    folder = args.run / "stages" / (args.stage + (f"-{args.task}" if args.task else ""))
    folder.mkdir(parents=True, exist_ok=True)
    mode, _, only = os.environ.get("STAND_IN", "ok").partition("@")
    if only and only != folder.name:
        mode = "ok"
    print("talk on the trainer's stdout", flush=True)
    seen = {
        "cwd": os.getcwd(),
        "argv": sys.argv,
        "cuda": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "path": sys.path[:2],
        "file": __file__,
        "sid": os.getsid(0),
        "rank": os.environ.get("RANK"),
    }
    (folder / f"seen{os.environ.get('RANK', '')}.json").write_text(json.dumps(seen))
    (folder / "pid").write_text(str(os.getpid()))
    if args.dry_run:
        (folder / "dry_run.json").write_text(
            json.dumps(
                {"measured": {"peak_bytes": 1000, "step_s": 0.5, "largest_batch_tokens": 100}}
            )
        )
    with (folder / "parts").open("a") as file:
        file.write(f"{args.part or 'whole'}\n")
    if mode.startswith("parts"):
        in_parts(folder, args.part, mode)
    if mode == "wait":
        wait(folder)
    elif mode == "sigkill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif mode == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif mode == "oom":
        fail(folder, "TrainingFailed", "out of memory: tried to allocate 2.00 GiB", 5)
    elif mode.startswith("room-") and micro_batch(folder, stage) > int(mode.rpartition("-")[2]):
        (folder / "doing.json").write_text(json.dumps({"doing": os.environ["STAND_IN_DOING"]}))
        line = {"stage": "sft", "task": args.task, "step": 3}
        (args.run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        if "killed" in mode:
            os.kill(os.getpid(), signal.SIGKILL)
        fail(folder, "OutOfMemory", "out of memory: tried to allocate 2.00 GiB", 5)
    elif mode == "full":
        fail(
            folder,
            "AdviseError",
            "unexpected SafetensorError: I/O error: No space left on device (os error 28)",
            70,
        )
    elif mode == "input":
        fail(folder, "InputError", "row 3 has no answer", 2)
    elif mode == "crash":
        sys.exit(1)
    elif mode == "disk":
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    result = {
        "status": "done",
        "steps": args.max_steps or 10,
        "loss_first": 3.0,
        "loss_last": 1.5,
        "duration_s": 2.0,
        "measured": {"peak_bytes": 2**29, "step_s": 0.2, "tokens_per_s": 100.0},
        "evaluation": {
            "before": {"loss": 3.1, "perplexity": 22.2},
            "after": {"loss": 1.6, "perplexity": 4.95},
            "rows": 5,
        },
        "checks": [],
        "versions": {"torch": "2.0"},
        "resolved": {
            "learning_rate": stage.learning_rate,
            "resumed_from": (folder / "checkpoints").is_dir(),
        },
    }
    if "STAND_IN_CHECKS" in os.environ:  # whether each check passed
        passed = json.loads(os.environ["STAND_IN_CHECKS"])
        result["checks"] = [
            {"name": f"c{number}", "ok": ok, "text": f"check {number} of the result"}
            for number, ok in enumerate(passed)
        ]
        result["verdict"] = {"ok": all(passed)}
    result["files"] = save(folder, str(resolve_path(args.plan, read_plan(args.plan).model)))
    text = json.dumps(result)
    if mode == "nan":
        text = text.replace("1.5", "NaN")
    if mode == "half":
        text = text[: len(text) // 2]
    if mode != "no-result":
        (folder / "result.json").write_text(text)


def in_parts(folder, part, mode):
    """As several processes do it: the training leaves a record, and the judging takes it away."""
    record = folder / "trained" / "record.json"
    if part is None:
        record.parent.mkdir(exist_ok=True)
        record.write_text("{}")
        if mode == "parts-stopped":
            os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(0.5)
        sys.exit(0)
    if mode == "parts-fail":
        fail(folder, "TrainingFailed", "the tuned model never stops", 5)
    if mode == "parts-memory" and not (folder / "adjusted.json").exists():
        fail(folder, "OutOfMemory", "out of memory while evaluating: 2 GiB", 5)
    record.unlink()
    if mode == "parts-other" and not (folder / "again").exists():
        (folder / "again").touch()  # what was trained is not what the plan says now
        sys.exit(0)


def save(folder, base):
    """A module of one tensor, and its configuration: what result.json says of its files."""
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    files = {
        "adapter_config.json": json.dumps(
            {"base_model_name_or_path": base, "peft_type": "LORA"}
        ).encode(),
        "adapter_model.safetensors": len(header).to_bytes(8, "little") + header + b"\0\0\0\0",
        "tokenizer_config.json": b"{}",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    }


def micro_batch(folder, stage):
    """As the plan says, or as it was adjusted."""
    path = folder / "adjusted.json"
    if not path.exists():
        return stage.micro_batch_size
    return json.loads(path.read_text())["adjusted"][-1]["micro_batch_size"]


def wait(folder):
    def stop(number, frame):
        with open(folder / "signals", "a") as file:
            file.write(f"{number}\n")
        if os.environ.get("STAND_IN_STUBBORN"):
            return
        fail(folder, "Stopped", "stopped", 130)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "ready").write_text("")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(0.05)


def fail(folder, kind, what, code):
    (folder / "error.json").write_text(
        json.dumps(
            {"kind": kind, "what": what, "allowed": "", "hint": "the hint", "exit_code": code}
        )
    )
    sys.exit(code)
