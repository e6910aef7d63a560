"""How public training scripts and notebooks are read (tests/data_cases/scripts.yaml).

`python -m tests.extras.other_tools.public_scripts FOLDER [even|odd|all] [--details]` checks each
file ID.py or ID.ipynb of FOLDER as a child process and says, for each key, how often its value was
found right, found wrong, named as unknown, left to the library's default (nothing stands in the
file, nothing is said) or not named. Of the odd half, which nobody looks at
while the reader is mended, it prints the sums alone unless `--details` asks for more.
"""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

CASES = Path(__file__).parents[2] / "data_cases"
FIRST = ("model_name_or_path", "per_device_train_batch_size", "max_length", "lora_r", "precision")
KEYS = (
    "command", *FIRST, "gradient_accumulation_steps", "load_in_4bit", "load_in_8bit",
    "learning_rate", "num_train_epochs", "max_steps", "dataset",
)  # fmt: skip
WORDS = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "float32"}
ALSO = {"precision": ("bf16", "fp16", "dtype"), "dataset": ("dataset_name",)}
RESULTS = ("right", "default", "wrong", "unknown", "not named")
SILENT = "nothing is said"


def listed(name: str) -> list[dict[str, Any]]:
    """The entries of scripts.yaml or memory_errors.yaml."""
    return list(yaml.safe_load((CASES / f"{name}.yaml").read_text(encoding="utf-8")))


def is_open(entry: Mapping[str, Any]) -> bool:
    """Whether an entry is of the half that may be looked at."""
    return int(entry["id"][1:]) % 2 == 0


def said(document: Mapping[str, Any], key: str) -> Any:
    """What the document says of a key: a value, `unknown` or SILENT."""
    found: dict[str, Any] = {name: one["value"] for name, one in document.get("found", {}).items()}
    names = (key, *ALSO.get(key, ()))
    read = next((found[name] for name in names if name in found), SILENT)
    by_gpu = "".join(one for one in document.get("notes", ()) if "decided by the GPU" in one)
    if key == "precision" and any(f" {name} (" in by_gpu for name in names):
        return "unknown"  # without a GPU, which only the command names
    if key == "precision" and key not in found:
        dtype = WORDS.get(str(found.get("dtype")), SILENT)
        off = found.get("bf16") is found.get("fp16") is False and "dtype" not in found
        read = (
            "bf16" if found.get("bf16") is True else "fp16" if found.get("fp16") is True else dtype
        )
        read = "float32" if off else read
    if read == SILENT and any(one["key"] in names for one in document.get("unknown", ())):
        return "unknown"
    return read.get("flag_default", read) if isinstance(read, dict) else read


def truth(entry: Mapping[str, Any], key: str) -> Any:
    """What a careful reader found: a value, `unknown`, or SILENT for the library's own default."""
    held = entry["holds"].get(key, "none")
    value = held[0] if isinstance(held, list) else held
    if isinstance(value, dict):
        value = "unknown" if "unknown" in value else value["flag_default"]
        return "unknown" if value == "default" else SILENT if value == "none" else value
    return SILENT if value == "none" else value


def verdict(held: Any, read: Any) -> str:
    """One of RESULTS."""
    if read == "unknown":
        return "unknown"
    if read == SILENT or (read is None and held == SILENT):
        return "default" if held == SILENT else "not named"
    same = held == read and isinstance(held, bool) == isinstance(read, bool)
    return "right" if same else "wrong"


def check(path: Path) -> tuple[int, bool, dict[str, Any]]:
    """The exit code of `advise check`, whether it ended in a bug of its own, and its document."""
    command = [sys.executable, "-m", "advisor", "check", str(path), "--json", "--gpu", "RTX 4090"]
    ended = subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", check=False, timeout=120
    )
    broke = "Traceback (most recent call last)" in ended.stderr
    broke = broke or "this is a bug in advise" in ended.stdout + ended.stderr
    return ended.returncode, broke, json.loads(ended.stdout or "{}")


def main(arguments: Sequence[str]) -> None:
    """Prints the table of one half, or of all."""
    details = "--details" in arguments
    folder, half = [*(one for one in arguments if one != "--details"), "even"][:2]
    counts: dict[str, Counter[str]] = {key: Counter() for key in KEYS}
    ends: Counter[str] = Counter()
    for entry in listed("scripts"):
        if half not in ("all", "even" if is_open(entry) else "odd"):
            continue
        code, broke, document = check(Path(folder) / f"{entry['id']}.{entry['kind']}")
        ends.update([f"exit {code}", *(["traceback"] if broke else [])])
        told = []
        for key in KEYS:
            held, read = truth(entry, key), said(document, key)
            result = verdict(held, read) if "found" in document else "not named"
            counts[key].update([result, *(["stands"] if held not in ("unknown", SILENT) else [])])
            if result in ("wrong", "not named"):
                told.append(f"{key} {result} ({read} for {held})")
        if details or is_open(entry):
            print(entry["id"], f"exit {code}", "TRACEBACK" if broke else "", "; ".join(told))
    print(dict(ends))
    counts["these five"] = sum((counts[key] for key in FIRST), Counter())
    for key, row in counts.items():
        cells = (f"{name} {row[name]:3}" for name in RESULTS)
        print(f"{key:28}", *cells, f"right of {row['stands']} that stand there", sep="  ")


if __name__ == "__main__":
    main(sys.argv[1:])
