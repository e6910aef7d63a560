"""The readers of files, fuzzed with the help of coverage: what reaches new code is mutated further.

    python -m tests.faults.fuzz.guided SEED COUNT

Needs atheris (pip install atheris; it has wheels for Linux), which no test and no run of advise does.
Each reader is called in this process with a file; anything but a result or an AdviseError is a
finding, and so is one call that computes for more than five seconds. Files that are too small to be
told apart by their reader (safetensors, Parquet) are mutated as bytes, the others by their structure.
"""

import io
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import atheris
import yaml

with atheris.instrument_imports(include=["advisor", "trainers.keep.checkpoint_store"]):
    from advisor.commands.check import check_data
    from advisor.commands.check_options import CheckOptions
    from advisor.commands.session import read_answers
    from advisor.estimate.answers import run_specs
    from advisor.ground.errors import AdviseError
    from advisor.ground.yaml_files import read_yaml
    from advisor.model_files.folder import DamagedFile, model_faults, read_header
    from advisor.plan.read import read_plan
    from advisor.record.files import read_record
    from advisor.ruleset.load import load_rules
    from trainers.keep import checkpoint_store  # noqa: F401 - to be instrumented

from tests.faults.fuzz import seeds
from tests.faults.fuzz.mutate import Mutator
from tests.faults.fuzz.run import KEPT, fill, finished_run
from tests.faults.table import IN_MEMORY, Row, print_rows

LARGEST = 20_000  # bytes of an input
NEWER = f"{seeds.CHECKPOINTS}/checkpoint-6/complete.json"


def specs_of(path: Path) -> None:
    run_specs(path.read_text("utf-8", errors="replace"), find_model=lambda *_, **__: (None, []))


def header_of(path: Path) -> None:
    with suppress(DamagedFile):
        read_header(path)


def checkpoint_of(path: Path) -> None:
    folder = path.parents[2]
    fill(folder, seeds.checkpoint_files() | {NEWER: path.read_bytes()})
    seeds.checkpoint_store(folder).newest(lambda text: None)


# (name, its file, reader, sound examples: values, or bytes)
Reader = tuple[str, str, Callable[[Path], object], list[Any]]


def readers(run: seeds.Files) -> list[Reader]:
    """Everything that is read, with examples."""
    options = CheckOptions(seq_len=64)
    return [
        ("yaml", "a.yaml", read_yaml, [*seeds.ANSWERS, *seeds.plans()]),
        ("plan", "a.yaml", read_plan, seeds.plans()),
        ("answers", "a.yaml", lambda path: read_answers(str(path), {}, ()), seeds.ANSWERS),
        ("rules", "a.yaml", lambda path: load_rules(overlays=(path,)), seeds.rules()),
        ("specs", "a.json", specs_of, seeds.SPECS),
        (
            "run.json", "run.json", lambda path: read_record(path.parent),
            [json.loads(run["run/run.json"])],
        ),
        ("config.json", "config.json", lambda path: model_faults(path.parent), [seeds.CONFIG]),
        ("checkpoint", NEWER, checkpoint_of, seeds.checkpoint_records()),
        ("safetensors", "a", header_of, [seeds.safetensors()[:2000]]),
        *(
            (f"data{ending}", f"data{ending}", lambda path: check_data(str(path), options), [content])
            for ending, content in seeds.data_files()
        ),
    ]  # fmt: skip


class Guided:
    """Calls a reader with what libFuzzer gives, and keeps one finding a place in our code."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.readers = readers(finished_run(folder / "made"))
        self.tried: Counter[str] = Counter()
        self.found: dict[str, Row] = {}

    def corpus(self) -> Path:
        """The sound examples, each behind one byte that chooses its reader."""
        place = self.folder / "corpus"
        place.mkdir()
        for number, (*_, examples) in enumerate(self.readers):
            for index, example in enumerate(examples):
                content = example
                if not isinstance(example, bytes):
                    content = yaml.safe_dump(example, sort_keys=False, allow_unicode=True).encode()
                if len(content) < LARGEST:
                    (place / f"{number}-{index}").write_bytes(bytes([number]) + content)
        return place

    def mutate(self, data: bytes, most: int, seed: int) -> bytes:
        """Half of the time by libFuzzer, else by structure or by our own changes of bytes."""
        dice = random.Random(seed)
        if dice.random() < 0.4 or len(data) < 2:
            return bytes(atheris.Mutate(data, most))
        number, content = data[:1], data[1:]
        *_, examples = self.readers[number[0] % len(self.readers)]
        mutator = Mutator(dice)
        if isinstance(examples[0], bytes) or dice.random() < 0.3:
            others = [one for one in examples if isinstance(one, bytes)]
            return (number + mutator.data(content, others))[:most]
        value = dice.choice(examples)
        with suppress(Exception):
            value = yaml.safe_load(content)
        text = mutator.data(content, [])
        with suppress(Exception):
            changed = mutator.value(value, examples)
            text = mutator.as_yaml(changed) if dice.random() < 0.5 else mutator.as_json(changed)
        return (number + text)[:most]

    def one(self, data: bytes) -> None:
        name, file, read, _ = self.readers[data[0] % len(self.readers)] if data else self.readers[0]
        self.tried[name] += 1
        place = self.folder / "case"
        fill(place, {file: data[1:]})
        began = time.process_time()
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                read(place / file)
        except AdviseError as error:
            error.text()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self.keep(name, data[1:], "".join(traceback.format_exception(error)))
        if time.process_time() - began > seeds.CPU_S:
            self.keep(name, data[1:], f"slow: {time.process_time() - began:.1f} s")

    def keep(self, name: str, content: bytes, what: str) -> None:
        ours = [line for line in what.splitlines() if "/advisor/" in line or "/trainers/" in line]
        place = f"{name}: {ours[-1].strip() if ours else what[:60]}"
        if place not in self.found:
            kept = KEPT / f"guided-{name}-{len(self.found)}"
            kept.parent.mkdir(parents=True, exist_ok=True)
            fill(kept, {"file": content, "output": what.encode(errors="replace")})
            wrong = [what.strip().splitlines()[-1][:160], place[-160:], str(kept)]
            self.found[place] = Row(fault="fuzzed input", where=name, wrong=wrong)

    def rows(self) -> list[Row]:
        sound = self.tried - Counter(row.where for row in self.found.values())
        about = [{"where": name, "count": count} for name, count in sound.items()]
        return [*(Row(fault="fuzzed input", **one) for one in about), *self.found.values()]


def main() -> None:
    seed, count = map(int, sys.argv[1:])
    folder = Path(tempfile.mkdtemp(dir=IN_MEMORY))
    os.environ |= {"HOME": str(folder), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    guided = Guided(folder)

    def one(data: bytes) -> None:
        """libFuzzer ends the process by itself after its last run: the rows are printed before."""
        guided.one(data)
        if guided.tried.total() == count:
            print_rows(guided.rows())
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(0)

    options = [
        f"-seed={seed}", f"-max_len={LARGEST}", "-timeout=60", "-rss_limit_mb=4096", "-verbosity=0",
    ]  # fmt: skip
    atheris.Setup(
        ["guided", *options, str(guided.corpus())], one,
        custom_mutator=guided.mutate, internal_libfuzzer=True,
    )  # fmt: skip
    atheris.Fuzz()


if __name__ == "__main__":
    main()
