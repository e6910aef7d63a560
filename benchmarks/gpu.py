"""Every method of the guide on a real GPU: expected and measured memory, speed beside plain TRL,
Unsloth and LLaMA-Factory, a falling loss and a gradient.

    python -m benchmarks gpu [--model MODEL] [--only NAME]

One call is one part, of at most five minutes. Each row trains in a process of its own, and is kept
in a file as soon as it is done: the next call goes on. Unlike the other benchmarks it is not run
unless it is named.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from advisor.ground.files import write_atomically
from advisor.ground.resources import PACKAGE, trainers_root
from advisor.ground.units import GIB
from advisor.methods.kernels import kernel, why_no_torch_compile, why_no_triton
from advisor.record.run import MachineRecord, RunRecord, StageRecord
from benchmarks.gpu_rows import COLUMNS, UNKNOWN, gpu_row, table_row

PAGE = Path(__file__).resolve().parent.parent / "docs" / "gpu.md"
SPEED_COLUMNS = ("GPU", "model", "method", "trained by", "tokens/s", "allocated GiB",
                 "reserved GiB", "loss", "gradient norm", "verdict")  # fmt: skip
OURS, TRL, UNSLOTH, FACTORY = "advise run", "plain TRL", "Unsloth", "LLaMA-Factory"
PACKAGES = {UNSLOTH: "unsloth", FACTORY: "llamafactory"}
SEQ_LEN, BATCH, SEED, RANK = 512, 4, 42, 16
GRACE_S = 20  # for a child that is asked to end
GO_ON = 75  # rows are left: the exit code of a run that the same command resumes
WRITES = ("ppo", "grpo")  # learn from answers of their own, whose reward need not rise in 20 steps


@dataclass(frozen=True)
class Case:
    """One method: its plan, and who else can train the same."""

    name: str
    objective: str
    update: str
    learning_rate: float
    keys: Mapping[str, Any] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    kernel: str = ""  # what it has beside the row of plain kernels, as a plan names it


LORA = {"rank": RANK, "alpha": 2 * RANK, "target_modules": "all-linear"}
ANSWERS = {"response_tokens": 32, "reward": "own.py:score"}
MODEL = "(the model)"  # as a value: the model that is trained
CASES = (
    Case("full", "sft", "full", 2e-5, {}, (TRL, FACTORY)),
    Case("full-muon", "sft", "full", 2e-5, {"optimizer": "muon"}),
    Case("adapter", "sft", "adapter", 3e-4, {"bottleneck": 64}),
    Case("prefix", "sft", "prefix", 1e-2, {"prefix_tokens": 20}, (TRL,)),
    Case("lora", "sft", "lora", 2e-4, LORA, (TRL, UNSLOTH, FACTORY)),
    Case("qlora", "sft", "lora", 2e-4, {**LORA, "quantization": "nf4"}, (TRL, UNSLOTH, FACTORY)),
    Case("rm", "rm", "lora", 1e-4, LORA, (TRL,)),
    Case("dpo", "dpo", "lora", 1e-4, LORA, (TRL,)),
    # Its own base in 4 bits is a teacher that is not quite the student.
    Case(
        "distill",
        "distill",
        "lora",
        1e-4,
        {**LORA, "teacher": MODEL, "teacher_quantization": "nf4", "response_tokens": 32},
    ),
    Case("ppo", "ppo", "lora", 1e-5, {**LORA, **ANSWERS}),
    Case("grpo", "grpo", "lora", 1e-5, {**LORA, **ANSWERS, "generations": 4}),
)
# Packed rows with each kernel beside the same without: LoRA on a frozen base, where the plan's own
# words are all that differs. The first row is the plain one. Their speed is that of the second half
# of the steps.
PACKED = {**LORA, "packing": True, "seq_len": 2048, "attention": "sdpa", "kernels": "none"}
KERNELS = (
    ("plain", {}),
    ("flash_attention_2", {"attention": "flash_attention_2"}),
    ("kernels-community/flash-attn2", {"attention": "kernels-community/flash-attn2"}),
    ("flash_attention_3", {"attention": "flash_attention_3"}),
    ("kernels-community/flash-attn3", {"attention": "kernels-community/flash-attn3"}),
    ("flex_attention", {"attention": "flex_attention"}),
    ("liger", {"kernels": "liger"}),
    ("hub", {"kernels": "hub"}),
    ("compile", {"compile": True}),
)
CASES += tuple(
    Case(f"packed-{word.rpartition('/')[2].replace('_', '-')}", "sft", "lora", 2e-4,
         {**PACKED, **keys}, kernel=word)
    for word, keys in KERNELS
)  # fmt: skip


def why_left_out(case: Case, settings: Settings) -> str:
    """Why a row of kernels cannot be measured here; empty if nothing speaks against it."""
    if not case.kernel:
        return ""
    if not settings.on_gpu:
        return "kernels are measured on a GPU"
    if case.kernel == "compile":
        return why_no_torch_compile("cuda")
    one = kernel(case.kernel)
    if one is None:
        return ""
    if not one.runs_on(settings.capability):
        return f"it needs {one.needs}"
    return one.why_not_installed or (why_no_triton() if one.triton else "")


@dataclass(frozen=True)
class Settings:
    """What all rows have in common."""

    device: str  # cuda; cpu only shows that the path works
    gpu: str
    model: str
    steps: int
    folder: Path  # of data, runs and results
    bf16: bool
    capability: tuple[int, ...] | None = None  # of the GPU

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    def dtypes(self, case: Case) -> dict[str, str]:
        """weights_dtype and precision of a case, as the rules choose them for this GPU."""
        if not self.on_gpu:
            return {"weights_dtype": "float32", "precision": "pure"}
        if case.update == "full":
            return {"weights_dtype": "float32", "precision": "mixed"}
        return {"weights_dtype": "bfloat16" if self.bf16 else "float16", "precision": "mixed"}


Start = Callable[[Sequence[str], Path, float], str]  # command, folder, seconds -> stdout


# --------------------------------------------------------------------------- data


REWARD = '''"""Share of the letter e: a reward that costs nothing."""


def score(prompts, completions, **columns):
    return [text.count("e") / (1 + len(text)) for text in completions]
'''


def write_data(folder: Path) -> None:
    """chats.jsonl, pairs.jsonl and prompts.jsonl from the bundled conversations, and the reward.

    The rejected answer of a pair is the answer to another question.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = (PACKAGE / "demo" / "support.jsonl").read_text("utf-8").splitlines()
    chats = [json.loads(line)["messages"] for line in lines]
    chats = [chat for chat in chats if [turn["role"] for turn in chat] == ["user", "assistant"]]
    pairs = [
        {
            "prompt": chat[0]["content"],
            "chosen": chat[1]["content"],
            "rejected": chats[(place + 1) % len(chats)][1]["content"],
        }
        for place, chat in enumerate(chats)
    ]
    write_rows(folder / "chats.jsonl", [{"messages": chat} for chat in chats])
    write_rows(folder / "pairs.jsonl", pairs)
    prompts = [{"prompt": pair["prompt"], "answer": pair["chosen"]} for pair in pairs]
    write_rows(folder / "prompts.jsonl", prompts)
    (folder / "own.py").write_text(REWARD, "utf-8")


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def data_of(case: Case) -> str:
    if case.objective in WRITES:
        return "prompts.jsonl"
    return "chats.jsonl" if case.objective in ("sft", "distill") else "pairs.jsonl"


# --------------------------------------------------------------------------- who trains


def plan_of(case: Case, settings: Settings) -> dict[str, Any]:
    """The launch file of a case (JSON is YAML)."""
    paged = settings.on_gpu and case.keys.get("quantization") == "nf4"
    stage = {
        "name": case.name,
        "objective": case.objective,
        "update": case.update,
        "learning_rate": case.learning_rate,
        "optimizer": "paged_adamw_8bit" if paged else "adamw_fused",
        "max_steps": settings.steps,
        "micro_batch_size": BATCH,
        "grad_accum": 1,
        "seq_len": SEQ_LEN,
        "scheduler": "constant",
        "warmup": 0.0,
        "holdout": 0.0,
        "seed": SEED,
        "save_steps": settings.steps,
        **settings.dtypes(case),
        **{key: settings.model if value == MODEL else value for key, value in case.keys.items()},
    }
    return {
        "version": 1,
        "name": f"gpu-{case.name}",
        "model": settings.model,
        "data": {"path": data_of(case)},
        "stages": [stage],
        "launch": {"device": settings.device},
    }


def ours(case: Case, settings: Settings, start: Start, limit_s: float) -> dict[str, Any]:
    """One training by `advise run`, with what its record says."""
    folder = settings.folder
    plan = folder / f"{case.name}.yaml"
    plan.write_text(json.dumps(plan_of(case, settings), indent=1), "utf-8")
    run = folder / "runs" / case.name
    command = [sys.executable, "-m", "advisor", "run", plan.name, "--no-judge", "--json",
               "--output", str(run)]  # fmt: skip
    record = RunRecord.from_dict(record_only(json.loads(start(command, folder, limit_s))))
    lines = read_metrics(run / "metrics.jsonl")
    found = from_record(record, lines, settings)
    if case.kernel:  # the first steps load or compile it
        found["tokens_per_s"] = statistics.median(
            line["tokens_per_s"] for line in lines[len(lines) // 2 :]
        )
    return found


def record_only(document: Mapping[str, Any]) -> dict[str, Any]:
    """What `advise run --json` prints, without what it adds to run.json."""
    added = ("folder", "already_done", "dry_run")
    return {key: value for key, value in document.items() if key not in added}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def from_record(
    record: RunRecord, lines: Sequence[Mapping[str, Any]], settings: Settings
) -> dict[str, Any]:
    """The numbers of a row, from run.json and metrics.jsonl."""
    stage: StageRecord = record.stages[0]
    measured = stage.measured
    assert measured is not None
    if not settings.on_gpu:
        machine = record.hardware or MachineRecord()
        named = MachineRecord.from_dict({**machine.to_dict(), "gpus": [settings.gpu]})
        record = RunRecord.from_dict({**record.to_dict(), "hardware": named.to_dict()})
    return {
        "row": list(gpu_row(record, stage)),
        "tokens_per_s": measured.tokens_per_s,
        "allocated_bytes": measured.peak_bytes,
        "reserved_bytes": measured.reserved_bytes,
        "losses": [line["loss"] for line in lines],
        "grad_norms": [line["grad_norm"] for line in lines if line.get("grad_norm") is not None],
    }


def script(
    case: Case, settings: Settings, side: str, start: Start, limit_s: float
) -> dict[str, Any]:
    """The same training by a minimal script of somebody else's library."""
    given = {
        "case": case.name,
        "objective": case.objective,
        "update": case.update,
        "keys": dict(case.keys),
        "learning_rate": case.learning_rate,
        "model": settings.model,
        "data": str(settings.folder / data_of(case)),
        "steps": settings.steps,
        "batch": BATCH,
        "seq_len": SEQ_LEN,
        "seed": SEED,
        "device": settings.device,
        "output": str(settings.folder / "runs" / f"{case.name}-{side.replace(' ', '-')}"),
        **settings.dtypes(case),
        "bf16": settings.bf16,
    }
    program = Path(__file__).parent / "plain" / f"{side.split()[-1].lower().replace('-', '_')}.py"
    out = start([sys.executable, str(program), json.dumps(given)], settings.folder, limit_s)
    found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return found


# --------------------------------------------------------------------------- verdicts


def verdict(case: Case, result: Mapping[str, Any]) -> str:
    """ok, or what is wrong with a training: no gradient, or a loss that did not fall."""
    norms, losses = result["grad_norms"], result["losses"]
    if not norms or not any(math.isfinite(norm) and norm > 0 for norm in norms):
        return "no gradient"
    if case.objective in WRITES:
        return "ok"
    part = max(1, len(losses) // 4)
    first, last = sum(losses[:part]) / part, sum(losses[-part:]) / part
    return "ok" if last < first else "the loss did not fall"


# --------------------------------------------------------------------------- results


class Results:
    """The finished rows, in a file that is written after each."""

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path, self.about = path, dict(about)
        self.rows: dict[str, dict[str, Any]] = {}
        if path.is_file():
            found = json.loads(path.read_text("utf-8"))
            if found["about"] == self.about:
                self.rows = found["rows"]

    @property
    def longest_s(self) -> float:
        """How long the longest of them took."""
        took = (row.get("took_s", 0.0) for row in self.rows.values() if "failed" not in row)
        return max(took, default=0.0)

    def keep(self, key: str, result: Mapping[str, Any]) -> None:
        self.rows[key] = dict(result)
        text = json.dumps({"about": self.about, "rows": self.rows}, indent=1)
        write_atomically(self.path, text + "\n")


def run_cases(
    cases: Sequence[Case],
    settings: Settings,
    results: Results,
    *,
    start: Start,
    minutes: float,
    say: Callable[[str], None] = print,
) -> int:
    """Train what is not in the results yet, as far as the time goes: how many rows are left.

    What failed before is tried again behind what was never tried, and is not waited for: a row that
    fails each time keeps no other from its turn.
    """
    until = time.monotonic() + 60 * minutes
    wanted = []
    for case in cases:
        if reason := why_left_out(case, settings):
            say(f"{case.name}: left out, {reason}")
            continue
        for side in (OURS, *case.others):
            key = f"{case.name}, {side}"
            package = PACKAGES.get(side)
            if package and importlib.util.find_spec(package) is None:
                say(f"{key}: left out, {package} is not installed")
            elif "failed" in results.rows.get(key, {"failed": ""}):
                wanted.append((key in results.rows, key, case, side))
            else:
                say(f"{key}: kept from before")
    wanted.sort(key=lambda one: one[0])  # and else in their order
    for done, (tried, key, case, side) in enumerate(wanted):
        left_s = until - time.monotonic()
        # The first row has the whole part; one that would not be done in time begins the next part.
        if left_s <= (results.longest_s if done else 0):
            return sum(not one[0] for one in wanted[done:])
        try:
            found = (
                ours(case, settings, start, left_s) if side == OURS
                else script(case, settings, side, start, left_s)
            )  # fmt: skip
            found["verdict"] = verdict(case, found)
        except OutOfTime:
            if done and not tried:
                return sum(not one[0] for one in wanted[done:])
            found = {"failed": f"not done in {minutes:g} minutes; --minutes gives it more"}
        except (RuntimeError, ValueError, KeyError, OSError) as error:
            # The last line that is no hint: of a traceback the error, of ours what is wrong.
            lines = [line for line in str(error).splitlines() if line[:1].strip()]
            found = {"failed": lines[-1] if lines else type(error).__name__}
        found["took_s"] = time.monotonic() - until + left_s
        results.keep(key, found)
        say(f"{key}: {found.get('failed') or found['verdict']}, {found['took_s']:.0f} s")
    return 0


def speed_rows(cases: Sequence[Case], settings: Settings, results: Results) -> list[list[str]]:
    """The table of speeds, each method's sides together."""
    rows = []
    for case in cases:
        for side in (OURS, *case.others):
            found = results.rows.get(f"{case.name}, {side}")
            if found is None:
                continue
            if "failed" in found:
                rows.append([settings.gpu, shown_model(settings), case.name, side, *[UNKNOWN] * 5,
                             f"failed: {found['failed']}"])  # fmt: skip
                continue
            losses, norms = found["losses"], found["grad_norms"]
            rows.append(
                [
                    settings.gpu, shown_model(settings), case.name, side,
                    number(found["tokens_per_s"], ".0f"),
                    number(found["allocated_bytes"], ".2f", 1 / GIB),
                    number(found["reserved_bytes"], ".2f", 1 / GIB),
                    f"{losses[0]:.3f} -> {losses[-1]:.3f}" if losses else UNKNOWN,
                    f"{max(norms):.2g}" if norms else UNKNOWN, found["verdict"],
                ]
            )  # fmt: skip
    return rows


def number(value: float | None, form: str, factor: float = 1.0) -> str:
    return UNKNOWN if value is None else format(value * factor, form)


def shown_model(settings: Settings) -> str:
    """The model without the folder it is in."""
    return Path(settings.model).name


def memory_rows(results: Results) -> list[list[str]]:
    return [found["row"] for found in results.rows.values() if "row" in found]


def write_page(page: Path, tables: Mapping[str, tuple[Sequence[str], list[list[str]]]]) -> None:
    """Put rows into the tables of the page, between their marks. A row of the same first columns is
    replaced, others stay.

    Args:
        tables: Name of the marks -> (columns, rows).
    """
    text = page.read_text("utf-8")
    for name, (columns, rows) in tables.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        found = pattern.search(text)
        if found is None:
            raise RuntimeError(f"{page}: there is no mark <!-- {name} -->")
        old = [
            [cell.strip() for cell in line.strip().strip("|").split("|")]
            for line in found.group().splitlines()[3:-1]
            if line.startswith("|")
        ]
        kept: dict[tuple[str, ...], list[str]] = {}
        for row in [*old, *rows]:
            kept[tuple(row[:5] if name == "memory" else row[:4])] = row
        lines = [table_row(tuple(columns)), table_row(("---",) * len(columns)),
                 *(table_row(tuple(row)) for row in kept.values())]  # fmt: skip
        body = "\n".join(lines) + "\n"
        text = text[: found.start()] + found.group(1) + body + found.group(2) + text[found.end() :]
    write_atomically(page, text)


# --------------------------------------------------------------------------- start


class OutOfTime(Exception):
    """A row was not done before its part ended."""


def start_child(command: Sequence[str], folder: Path, limit_s: float) -> str:
    """Run a command to its end; its stdout. Raises RuntimeError if it fails, OutOfTime if it takes
    too long.
    """
    environment = {**os.environ, "PYTHONPATH": str(trainers_root())}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:  # fmt: skip
        try:
            out, err = child.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            child.terminate()  # `advise run` then ends its trainer first
            try:
                child.communicate(timeout=GRACE_S)
            except subprocess.TimeoutExpired:
                child.kill()
            raise OutOfTime from None
    if child.returncode:
        raise RuntimeError(f"ended with {child.returncode}: {err.strip()[-2000:]}")
    return out


def find_gpu() -> tuple[str, bool, tuple[int, ...] | None]:
    """(name of the first GPU, whether it has bfloat16, its compute capability; None on AMD's).

    Raises RuntimeError without a GPU.
    """
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError(
            f"no GPU: torch {torch.__version__} finds none here. This benchmark measures one;"
            " `advise probe` shows what there is, and docs/gpu.md what is proved without one"
        )
    capability = None if torch.version.hip else torch.cuda.get_device_capability(0)
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cuda.get_device_name(0), bf16, capability


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        "python -m benchmarks gpu",
        description="Train every method of the guide on the GPU, and write docs/gpu.md.",
    )
    found.add_argument("--model", help="a hub id or a folder; default: SmolLM2-135M-Instruct")
    found.add_argument("--only", action="append", choices=[case.name for case in CASES])
    found.add_argument("--steps", type=int, default=20, help="optimizer steps of each row")
    found.add_argument("--minutes", type=float, default=5.0, help="of one part, at most")
    found.add_argument("--folder", type=Path, default=Path("gpu-benchmark"),
                       help="of data, runs and results")  # fmt: skip
    found.add_argument("--page", type=Path, help="default: docs/gpu.md; on the CPU: none")
    found.add_argument("--device", choices=("cuda", "cpu"), default="cuda",
                       help="cpu only shows that every step of the benchmark works")  # fmt: skip
    return found


def main(arguments: Sequence[str], *, start: Start = start_child) -> int:
    """Measure a part, print the tables, write the page. 0: all rows are there; 1: some failed;
    75: some are left; 4: there is no GPU.
    """
    given = parser().parse_args(arguments)
    try:
        gpu, bf16, capability = find_gpu() if given.device == "cuda" else ("CPU", False, None)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 4
    if given.model is None:
        from benchmarks.side_by_side.model import demo_model

        given.model = demo_model()
    folder = given.folder.resolve()
    model = str(Path(given.model).resolve()) if Path(given.model).is_dir() else given.model
    settings = Settings(device=given.device, gpu=gpu, model=model, steps=given.steps,
                        folder=folder, bf16=bf16, capability=capability)  # fmt: skip
    write_data(folder)
    about = {"gpu": gpu, "model": model, "steps": given.steps}
    results = Results(folder / "results.json", about)
    cases = [case for case in CASES if not given.only or case.name in given.only]
    left = run_cases(cases, settings, results, start=start, minutes=given.minutes)
    tables = {
        "memory": (COLUMNS, memory_rows(results)),
        "speed": (SPEED_COLUMNS, speed_rows(cases, settings, results)),
    }
    for columns, rows in tables.values():
        print()
        for row in (columns, *rows):
            print(table_row(tuple(row)))
    page = given.page or (PAGE if settings.on_gpu else None)
    if page is not None:
        write_page(page, tables)
        print(f"\nwritten: {page.name}")
    if left:
        print(f"\n{left} rows are left: the same command goes on")
        return GO_ON
    return int(any(row[-1] != "ok" for row in tables["speed"][1]))
