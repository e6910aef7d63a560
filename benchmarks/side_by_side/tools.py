"""One training by each tool: its command line, and what it logged.

Two cases. `equal`: the same plan for all; the others read the file and the data that `advise
export` writes of it (`exported`). `defaults`: each tool chooses for itself, apart from the learning
rate, so that a falling loss can be asked of all; the same rows, read as often.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from advisor.ground.resources import trainers_root
from benchmarks.measuring import Process, run_process
from benchmarks.side_by_side.rows import Rows

EPOCHS = 3  # the loss of the last has to be below that of the first
RATE, RANK, ALPHA, SEQ_LEN, MICRO, ACCUM, SEED = 3e-4, 16, 32, 1024, 4, 1, 42
CASES = ("equal", "defaults")
# What is set in every file of another tool: the loss of each step, and no service that is told.
SHOWN = {"logging_steps": 1, "report_to": "none"}
LLAMA_FACTORY = "ADVISE_LLAMA_FACTORY"  # environment: the command llamafactory-cli
LLAMA_FACTORY_VERSION = "0.9.5"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune-advisor"


class NotRun(Exception):
    """A tool is not here, with the reason."""


@dataclass(frozen=True)
class Training:
    """What one training took, and what it logged."""

    train_s: float  # of the training loop
    losses: Sequence[float]  # of each step
    grad_norms: Sequence[float]
    process: Process


@dataclass(frozen=True)
class Task:
    """What is to be trained, and where the files of this training go."""

    case: str
    model: str
    rows: Rows
    folder: Path
    cores: int

    @property
    def steps(self) -> int:
        """Optimizer steps of the equal case."""
        return EPOCHS * (self.rows.rows // (MICRO * ACCUM))

    def environment(self) -> dict[str, str]:
        """Threads for every core; nothing from the network; no cache of an earlier run."""
        return {
            "OMP_NUM_THREADS": str(self.cores),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(self.folder / "cache"),
            "TOKENIZERS_PARALLELISM": "false",
        }


# --------------------------------------------------------------------------- ours

EQUAL_PLAN: dict[str, Any] = {
    "name": "sft", "objective": "sft", "update": "lora", "rank": RANK, "alpha": ALPHA,
    "target_modules": "all-linear", "weights_dtype": "float32", "precision": "pure",
    "warmup": 0.1, "scheduler": "cosine", "optimizer": "adamw_fused",
    "micro_batch_size": MICRO, "grad_accum": ACCUM, "seq_len": SEQ_LEN,
    "packing": False, "group_by_length": False, "gradient_checkpointing": False, "seed": SEED,
}  # fmt: skip


def write_plan(task: Task) -> Path:
    """The plan of the case: the same for all tools, or what our rules choose."""
    about = {"model": task.model, "data": {"path": str(task.rows.chats), "format": "messages"}}
    if task.case == "equal":
        stage = dict(EQUAL_PLAN)
        plan = {"version": 1, "name": "benchmark", **about, "launch": {"device": "cpu"}}
        plan["stages"] = [stage]
    else:
        plan = advised(task) | about
        stage = plan["stages"][0]
    stage |= {"learning_rate": RATE, "epochs": EPOCHS, "holdout": 0.0}
    path = task.folder / "plan.yaml"
    path.write_text(yaml.safe_dump(plan, sort_keys=False), "utf-8")
    return path


def exported(task: Task, form: str) -> dict[str, Any]:
    """What `advise export` writes of the plan for a tool, in the task's folder `form`, where the
    tool is to be started. Raises NotRun with the reason where it refuses.
    """
    command = [sys.executable, "-m", "advisor", "export", str(write_plan(task)), "--to", form]
    place = task.folder / form
    try:
        run_process([*command, "--out", str(place)], env={"PYTHONPATH": str(trainers_root())})
    except RuntimeError as error:
        raise NotRun(str(error).partition(": ")[2].splitlines()[0]) from None
    settings: dict[str, Any] = yaml.safe_load((place / f"{form}.yaml").read_text("utf-8"))
    return settings


def ours(task: Task) -> Training:
    """`advise run`. The comparison with the base, which no other tool makes, is left out."""
    write_plan(task)
    command = [sys.executable, "-m", "advisor", "run", "plan.yaml", "--no-judge", "--json"]
    done = run_process(
        [*command, "--output", "run"],
        cwd=str(task.folder),
        env={**task.environment(), "PYTHONPATH": str(trainers_root())},
    )
    stage_result = json.loads(done.stdout)["stages"][0]
    learned = stage_result["data"]["learned_tokens"]
    assert learned == task.rows.learned, f"ours learned {learned} tokens, not {task.rows.learned}"
    adapter(task.folder / "run")
    lines = (task.folder / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    seconds = stage_result["measured"]["train_s"]
    return training_of(seconds, [json.loads(line) for line in lines], done)


def advised(task: Task) -> dict[str, Any]:
    """The plan by our rules for a thousand such rows: LoRA on this CPU."""
    path = task.folder / "advised.yaml"
    command = [sys.executable, "-m", "advisor", "--data", str(task.rows.many), "--gpu", "none"]
    command += ["--model", task.model, "--task", "chat_assistant", "--choose", "sft+lora"]
    run_process(
        [*command, "--force", "--plan", str(path)], env={"PYTHONPATH": str(trainers_root())}
    )
    plan: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return plan


# --------------------------------------------------------------------------- TRL


def trl(task: Task) -> Training:
    """`trl sft`, whose launcher would compute with one thread if nobody set them."""
    program = Path(sys.executable).with_name("trl")
    if not program.is_file():
        raise NotRun(f"{program.name} is not installed beside this Python")
    out, place = task.folder / "out", task.folder / "trl"
    if task.case == "equal":
        settings = exported(task, "trl")
    else:
        place.mkdir()
        settings = {
            "model_name_or_path": task.model, "dataset_name": str(task.rows.tokens),
            "use_peft": True, "num_train_epochs": EPOCHS, "learning_rate": RATE, "use_cpu": True,
        }  # fmt: skip
    settings |= {"output_dir": str(out), **SHOWN}
    (place / "sft.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    done = run_process(
        [str(program), "sft", "--config", "sft.yaml"], cwd=str(place), env=task.environment()
    )
    return hugging_face(task, out, done)


# --------------------------------------------------------------------------- LLaMA-Factory


def llama_factory(task: Task) -> Training:
    """`llamafactory-cli train`, from an environment of its own.

    It loads a model in the dtype of its config.json, so the equal case gives it a copy that says
    float32.
    """
    program = llama_factory_command()
    out, place = task.folder / "out", task.folder / "llamafactory"
    if task.case == "equal":
        settings = exported(task, "llamafactory")
        copy = in_float32(Path(task.model), task.folder / "model")
        settings |= {"model_name_or_path": str(copy)}
    else:
        place.mkdir()
        settings = {
            "model_name_or_path": task.model, "stage": "sft", "do_train": True,
            "finetuning_type": "lora", "template": "default", "dataset": "rows",
            "tokenized_path": str(task.rows.dataset), "num_train_epochs": EPOCHS,
            "learning_rate": RATE,
        }  # fmt: skip
    settings |= {"output_dir": str(out), **SHOWN}
    (place / "train.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    done = run_process(
        [program, "train", "train.yaml"],
        cwd=str(place),
        env={**task.environment(), "DISABLE_VERSION_CHECK": "1"},
    )
    return hugging_face(task, out, done)


def llama_factory_command() -> str:
    """Its command: what the environment names, else of an environment in our cache, made on first
    use. Raises NotRun if it cannot be had.
    """
    if named := os.environ.get(LLAMA_FACTORY):
        if not Path(named).is_file():
            raise NotRun(f"{LLAMA_FACTORY}: {named} is not a file")
        return named
    home = CACHE / f"llama-factory-{LLAMA_FACTORY_VERSION}"
    program = home / "bin" / "llamafactory-cli"
    if not program.is_file():
        import torch

        # The same torch as ours: what is compared are the tools.
        wanted = [
            f"llamafactory=={LLAMA_FACTORY_VERSION}",
            f"torch=={torch.__version__.split('+')[0]}",
        ]
        try:
            run_process([sys.executable, "-m", "venv", str(home)])
            run_process([str(home / "bin" / "pip"), "install", "-q", *wanted])
            without_sound(home)
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise NotRun(f"pip could not install it: {lines[-1] if lines else error}") from None
    return str(program)


def without_sound(home: Path) -> None:
    """Remove the compiled part of torchaudio if it does not load: LLaMA-Factory imports the
    package whatever it trains, and torchaudio on the package index needs CUDA's libraries.
    """
    try:
        run_process([str(home / "bin" / "python"), "-c", "import torchaudio"])
    except RuntimeError:
        for library in home.glob("lib/python*/site-packages/torchaudio/lib/*.so"):
            library.unlink()


def in_float32(model: Path, folder: Path) -> Path:
    """A copy of the model whose config says float32, with links to everything else."""
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).symlink_to(path.resolve())
    config = json.loads((model / "config.json").read_text("utf-8"))
    (folder / "config.json").unlink()
    config = {key: value for key, value in config.items() if key != "torch_dtype"}
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}), "utf-8")
    return folder


# --------------------------------------------------------------------------- what they logged


def hugging_face(task: Task, out: Path, done: Process) -> Training:
    """What transformers' Trainer left in its last checkpoint, and the time that it printed."""
    adapter(out)
    steps = {int(path.name.rpartition("-")[2]): path for path in out.glob("checkpoint-*")}
    state = json.loads((steps[max(steps)] / "trainer_state.json").read_text("utf-8"))
    if task.case == "equal":
        assert state["global_step"] == task.steps, f"{state['global_step']} steps: {task.steps}"
    seen = [line["num_tokens"] for line in state["log_history"] if "num_tokens" in line]
    wanted = EPOCHS * task.rows.all_tokens
    assert not seen or seen[-1] == wanted, f"{seen[-1]} tokens seen, not {wanted}"
    said = re.findall(r"train_runtime['\"]?\s*[:=]\s*['\"]?([\d.:]+)", done.stdout + done.stderr)
    return training_of(seconds_of(said[0]), state["log_history"], done)


def seconds_of(text: str) -> float:
    """'61.5' or '0:01:01.5'."""
    total = 0.0
    for part in text.split(":"):
        total = total * 60 + float(part)
    return total


def adapter(folder: Path) -> Path:
    """The saved adapter; an error if there is none."""
    return next(folder.rglob("adapter_model.safetensors"))


def training_of(seconds: float, lines: Sequence[dict[str, Any]], done: Process) -> Training:
    """Checked: each step learned something, and the last reading went better than the first."""
    losses = [line["loss"] for line in lines if "loss" in line]
    norms = [line["grad_norm"] for line in lines if "grad_norm" in line]
    assert min(norms, default=0) > 0, f"gradient norms {norms}"
    half = len(losses) // EPOCHS
    first, last = sum(losses[:half]) / half, sum(losses[-half:]) / half
    assert last < first, f"the loss did not fall: {first:.3f}, then {last:.3f} ({losses})"
    return Training(seconds, losses, norms, done)


TOOLS: dict[str, Callable[[Task], Training]] = {
    "advise run": ours,
    "LLaMA-Factory": llama_factory,
    "TRL": trl,
}
