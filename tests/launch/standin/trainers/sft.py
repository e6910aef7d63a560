"""A stand-in for the real trainer: the same command line and the same files, no training.

STAND_IN says how it behaves; behind an @, of the stage of this name or the process of this number
alone. A real trainer takes seconds to start, and cannot be made to fail in every way on demand.
"""

import argparse
import hashlib
import json
import os
import resource
import signal
import socket
import sys
import time
from pathlib import Path

import yaml

RANK = os.environ.get("RANK", "")
SEVERAL = "TORCHELASTIC_RUN_ID" in os.environ and "STAND_IN_MACHINES" in os.environ


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("objective")
    parser.add_argument("plan", type=Path)
    flag = {"action": "store_true"}
    for name, keys in (
        ("run", {"type": Path}), ("max-steps", {"type": int}), ("stage", {}), ("task", {}),
        ("part", {}), ("dry-run", flag), ("no-judge", flag),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", **keys)
    args = parser.parse_args()
    # By the plain parser: `advise run` has read the plan, and its reader takes 0.15 s to import.
    plan = yaml.load(args.plan.read_text("utf-8"), yaml.CSafeLoader)
    stage = next(one for one in plan["stages"] if one["name"] == args.stage)
    folder = args.run / "stages" / (args.stage + (f"-{args.task}" if args.task else ""))
    folder.mkdir(parents=True, exist_ok=True)
    mode, _, only = os.environ.get("STAND_IN", "ok").partition("@")
    if only and only not in (folder.name, RANK):
        mode = "wait" if SEVERAL else "ok"
    print("talk on the trainer's stdout", flush=True)
    note(folder, args)
    if mode.startswith("parts"):
        in_parts(folder, args.part, mode)
    if mode.startswith("room-") and micro_batch(folder, stage) > int(mode.rpartition("-")[2]):
        (folder / "doing.json").write_text(
            json.dumps({"doing": os.environ.get("STAND_IN_DOING", "training")})
        )
        line = {"stage": "sft", "task": args.task, "step": 3}
        (args.run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        mode = "sigkill" if "killed" in mode else "no room"
    if mode in FAILURES:
        fail(folder, *FAILURES[mode])
    match mode:
        case "wait":
            wait(folder)
        case "sigkill" | "segfault":
            os.kill(os.getpid(), signal.SIGKILL if mode == "sigkill" else signal.SIGSEGV)
        case "crash":
            sys.exit(1)
        case "disk":
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if SEVERAL and RANK != "0":
        return
    base = os.path.normpath(args.plan.resolve().parent / plan["model"])
    text = json.dumps(result(args, folder, stage, base))
    text = {"nan": text.replace("1.5", "NaN"), "half": text[: len(text) // 2]}.get(mode, text)
    if mode != "no-result":
        (folder / "result.json").write_text(text)


def train(job):
    """A recipe that waits in one part of a training until it is asked to stop."""
    from advisor.ground.errors import InputError

    part, stop = os.environ["STAND_IN"].partition("-")[2], job.process.stop

    def at(name, until=lambda: False):
        if part == name:
            (job.output / "pid").write_text(str(os.getpid()))
            (job.output / "ready").touch()
            left = iter(range(400))
            while not until() and next(left, None) is not None:
                time.sleep(0.05)

    class Dropping:
        def __del__(self):  # Python drops what is raised in it
            at("dropping")

    job.enter("loading")
    Dropping()
    try:
        at("blaming")
    except BaseException:
        raise InputError("a library refuses what the plan passes on to it") from None
    job.enter("training")
    with stop.in_steps():
        at("steps", until=lambda: stop.is_noted)
        time.sleep(0.2)  # the step is finished
    time.sleep(0.2)
    stop.end_if_asked(3, 9)
    job.enter("evaluating")
    at("judging")


MEMORY = "out of memory: tried to allocate 2.00 GiB"
FULL = "unexpected SafetensorError: I/O error: No space left on device (os error 28)"
FAILURES = {
    "oom": ("TrainingFailed", MEMORY, 5), "no room": ("OutOfMemory", MEMORY, 5),
    "full": ("AdviseError", FULL, 70), "input": ("InputError", "row 3 has no answer", 2),
    "fail": ("TrainingFailed", "the loss is not a number", 5),
}  # fmt: skip


def note(folder, args):
    seen = {
        "cwd": os.getcwd(), "argv": sys.argv, "cuda": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "path": sys.path[:2], "file": __file__, "pid": os.getpid(), "rank": RANK or None,
    }  # fmt: skip
    seen |= {
        name: os.environ.get(name) for name in ("WORLD_SIZE", "LOCAL_RANK", "GLOO_SOCKET_IFNAME")
    }
    (folder / f"seen{RANK}").write_text(json.dumps(seen))
    (folder / f"seen{RANK}").rename(folder / f"seen{RANK}.json")  # whole, to whoever waits for it
    (folder / "pid").write_text(str(os.getpid()))
    if args.dry_run:
        measured = {"peak_bytes": 1000, "step_s": 0.5, "largest_batch_tokens": 100}
        (folder / "dry_run.json").write_text(json.dumps({"measured": measured}))
    with (folder / "parts").open("a") as file:
        file.write(f"{args.part or 'whole'}\n")


def result(args, folder, stage, base):
    found = {
        "status": "done", "steps": args.max_steps or 10, "loss_first": 3.0, "loss_last": 1.5,
        "duration_s": 2.0,
        "measured": {"peak_bytes": 2**29, "step_s": 0.2, "tokens_per_s": 100.0},
        "evaluation": {
            "before": {"loss": 3.1, "perplexity": 22.2}, "after": {"loss": 1.6, "perplexity": 4.95},
            "rows": 5,
        },
        "checks": [], "versions": {"torch": "2.0"},
        "resolved": {
            "learning_rate": float(stage.get("learning_rate", 2e-4)),
            "resumed_from": (folder / "checkpoints").is_dir(),
        },
    }  # fmt: skip
    if "STAND_IN_CHECKS" in os.environ:  # whether each check passed
        passed = json.loads(os.environ["STAND_IN_CHECKS"])
        found["verdict"] = {"ok": all(passed)}
        found["checks"] = [
            {"name": f"c{number}", "ok": ok, "text": f"check {number} of the result"}
            for number, ok in enumerate(passed)
        ]
    return found | {"files": save(folder, base)}


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
        fail(folder, "TrainingFailed", "the result never stops", 5)
    if mode == "parts-memory" and not (folder / "adjusted.json").exists():
        fail(folder, "OutOfMemory", "out of memory while evaluating: 2 GiB", 5)
    record.unlink()
    if mode == "parts-other" and not (folder / "again").exists():
        (folder / "again").touch()  # what was trained is not what the plan says now
        sys.exit(0)


def save(folder, base):
    """A module of one tensor, and its configuration: what result.json says of its files."""
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    config = {"base_model_name_or_path": base, "peft_type": "LORA"}
    files = {
        "adapter_config.json": json.dumps(config).encode(),
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
    if (path := folder / "adjusted.json").exists():
        return json.loads(path.read_text())["adjusted"][-1]["micro_batch_size"]
    return stage["micro_batch_size"]


def wait(folder):
    def stop(number, frame):
        with open(folder / "signals", "a") as file:
            file.write(f"{number}\n")
        if not os.environ.get("STAND_IN_STUBBORN"):
            fail(folder, "Stopped", "stopped after step 3 of 9" if SEVERAL else "stopped", 130)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / f"ready{RANK if SEVERAL else ''}").write_text("")
    for _ in range(1200):
        time.sleep(0.05)


def fail(folder, kind, what, code):
    error = {"kind": kind, "what": what, "allowed": "", "hint": "the hint", "exit_code": code}
    name = "error.json"
    if SEVERAL:
        name = f"error-rank{RANK}.json"
        error |= {"rank": int(RANK), "at_s": 1.0, "host": socket.gethostname()}
    (folder / name).write_text(json.dumps(error))
    sys.exit(code)
