"""The readers of files, fuzzed with the help of coverage: what reaches new code is mutated further.

    python -m tests.faults.fuzz.guided SEED COUNT

Needs atheris (pip install atheris; it has wheels for Linux), which no test and no run of advise does.
Each reader is called in this process with a file; anything but a result or an AdviseError is a
finding, and so is one call that computes for more than five seconds. Files that are too small to be
told apart by their reader (safetensors, Parquet) are mutated as bytes, the others by their structure.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris
import yaml

with atheris.instrument_imports(include=["advisor", "trainers.keep.checkpoint_store"]):
    from advisor.commands.check import check_data
    from advisor.commands.options import CheckOptions
    from advisor.commands.session import read_answers
    from advisor.estimate.answers import run_specs
    from advisor.ground.errors import AdviseError
    from advisor.ground.yaml_files import read_yaml
    from advisor.model_files.folder import model_faults, read_header
    from advisor.plan.read import read_plan
    from advisor.record.files import read_record
    from advisor.ruleset.load import load_rules
    from trainers.keep.checkpoint_store import CheckpointStore

from tests.faults.fuzz import checkpoints, forks, seeds
from tests.faults.fuzz.judge import CPU_S
from tests.faults.fuzz.mutate import Mutator
from tests.faults.fuzz.run import KEPT, finished_run

Read = Callable[[Path], object]
LARGEST = 20_000  # bytes of an input
assert CheckpointStore


def data_of(ending: str) -> Read:
    def read(path: Path) -> object:
        named = path.with_name(f"data{ending}")
        path.rename(named)
        return check_data(str(named), CheckOptions(seq_len=64))

    return read


def record_of(path: Path) -> object:
    path.rename(path.with_name("run.json"))
    return read_record(path.parent)


def config_of(path: Path) -> object:
    path.rename(path.with_name("config.json"))
    return model_faults(path.parent)


def specs_of(path: Path) -> object:
    text = path.read_text("utf-8", errors="replace")
    return run_specs(text, find_model=lambda *_, **__: (None, []))


def header_of(path: Path) -> object:
    from advisor.model_files.folder import DamagedFile

    with contextlib.suppress(DamagedFile):
        return read_header(path)
    return None


def checkpoint_of(path: Path) -> object:
    target = path.parent / checkpoints.FOLDER / "checkpoint-6" / "complete.json"
    for name, content in CHECKPOINTS.items():
        place = path.parent / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    path.rename(target)
    return checkpoints.store_in(path.parent).newest(requires=(checkpoints.RANDOM_STATE,))


CHECKPOINTS = checkpoints.written()


def readers(run: seeds.Files) -> list[tuple[str, Read, list[Any]]]:
    """(name, reader, sound examples: values, or bytes)."""
    record = json.loads(run["run/run.json"])
    table = [
        ("yaml", read_yaml, [*seeds.ANSWERS, *seeds.plans()]),
        ("plan", read_plan, seeds.plans()),
        ("answers", lambda path: read_answers(str(path), {}, ()), seeds.ANSWERS),
        ("rules", lambda path: load_rules(overlays=(path,)), seeds.rules()),
        ("specs", specs_of, seeds.SPECS),
        ("run.json", record_of, [record]),
        ("config.json", config_of, [seeds.CONFIG]),
        ("checkpoint", checkpoint_of, checkpoints.records()),
        ("safetensors", header_of, [seeds.safetensors()[:2000]]),
    ]
    return [
        *table,
        *((f"data{ending}", data_of(ending), [content]) for ending, content in seeds.data_files()),
    ]


class Guided:
    """Calls a reader with what libFuzzer gives, and keeps what must not be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        forks.fill(folder / "made", {})
        self.readers = readers(finished_run(folder / "made"))
        self.tried: Counter[str] = Counter()
        self.found: dict[str, dict[str, Any]] = {}

    def corpus(self) -> Path:
        """The sound examples, each behind one byte that chooses its reader."""
        place = self.folder / "corpus"
        place.mkdir()
        for number, (_, _, examples) in enumerate(self.readers):
            for index, example in enumerate(examples):
                content = example if isinstance(example, bytes) else text_of(example)
                if len(content) < LARGEST:
                    (place / f"{number}-{index}").write_bytes(bytes([number]) + content)
        return place

    def mutate(self, data: bytes, most: int, seed: int) -> bytes:
        """Half of the time by libFuzzer, else by structure or by our own changes of bytes."""
        dice = random.Random(seed)
        if dice.random() < 0.4 or len(data) < 2:
            return bytes(atheris.Mutate(data, most))
        number, content = data[:1], data[1:]
        _, _, examples = self.readers[number[0] % len(self.readers)]
        mutator = Mutator(dice)
        if isinstance(examples[0], bytes) or dice.random() < 0.3:
            others = [one for one in examples if isinstance(one, bytes)]
            return (number + mutator.data(content, others))[:most]
        try:
            value = yaml.safe_load(content)
        except Exception:
            value = dice.choice(examples)
        try:
            changed = mutator.value(value, examples)
            text = mutator.as_yaml(changed) if dice.random() < 0.5 else mutator.as_json(changed)
        except Exception:
            text = mutator.data(content, [])
        return (number + text)[:most]

    def one(self, data: bytes) -> None:
        if not data:
            return
        name, read, _ = self.readers[data[0] % len(self.readers)]
        self.tried[name] += 1
        place = self.folder / "case"
        forks.fill(place, {"file.yaml": data[1:]})
        began = time.process_time()
        try:
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                read(place / "file.yaml")
        except AdviseError as error:
            error.text()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            self.keep(name, data[1:], "".join(traceback.format_exception(error)))
        if time.process_time() - began > CPU_S:
            self.keep(name, data[1:], f"slow: {time.process_time() - began:.1f} s")

    def keep(self, name: str, content: bytes, what: str) -> None:
        """One finding for each place in our code."""
        ours = [
            line.strip()
            for line in what.splitlines()
            if "/advisor/" in line or "/trainers/" in line
        ]
        place = f"{name}: {ours[-1] if ours else what[:60]}"
        if place in self.found:
            return
        kept = KEPT / f"guided-{name}-{len(self.found)}"
        forks.fill(kept.parent, {}) if not kept.parent.is_dir() else None
        forks.fill(kept, {"file": content, "output": what.encode(errors="replace")})
        last = what.strip().splitlines()[-1][:160]
        self.found[place] = {
            "target": name,
            "faults": [last],
            "last": place[-160:],
            "kept": str(kept),
        }


def text_of(value: Any) -> bytes:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=200).encode()


def main() -> None:
    seed, count = map(int, sys.argv[1:])
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=shared if shared.is_dir() else None))
    os.environ |= {"HOME": str(folder), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    guided = Guided(folder)
    corpus = guided.corpus()
    left = [count]

    def one(data: bytes) -> None:
        """libFuzzer ends the process by itself after its last run: the findings are printed before."""
        guided.one(data)
        left[0] -= 1
        if left[0] == 0:
            finish()

    def finish() -> None:
        for finding in guided.found.values():
            print(json.dumps(finding))
        print(json.dumps({"tried": dict(guided.tried)}), flush=True)
        forks.shutil.rmtree(folder, ignore_errors=True)
        os._exit(1 if guided.found else 0)

    options = [
        f"-seed={seed}",
        f"-max_len={LARGEST}",
        "-timeout=60",
        "-rss_limit_mb=4096",
        "-verbosity=0",
    ]
    atheris.Setup(
        ["guided", *options, str(corpus)],
        one,
        custom_mutator=guided.mutate,
        internal_libfuzzer=True,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
