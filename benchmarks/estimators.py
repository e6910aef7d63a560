"""Published peaks: `advise estimate` beside other calculators of training memory, each in an
environment of its own.

Each calculator is one child process of the Python that its variable names; one without its variable
is left out, and the output says so:

    python -m venv fitcheck   && fitcheck/bin/pip install fitcheck-llm==0.3.1
    ESTIMATORS_FITCHECK=fitcheck/bin/python python -m venv ftuneai    && ftuneai/bin/pip install
    ftuneai==0.4.1          ESTIMATORS_FTUNEAI=ftuneai/bin/python python -m venv soup       &&
    soup/bin/pip install soup-cli==0.77.0           ESTIMATORS_SOUP=soup/bin/python python -m venv
    accelerate && accelerate/bin/pip install accelerate
    ESTIMATORS_ACCELERATE=accelerate/bin/python

Models are given by their dimensions (advisor/situation/shapes.py), not by the hub, so that all see
the same model and none needs a network. What none of them can be told: the counter behind a
measured peak, the framework, the loss kernel, packing and padding. So each calculator is scored
twice: as printed, and with its own line for CUDA context and fragmentation left out where the
    counter leaves these out as well.
"""

import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from advisor.commands.estimate import find_model
from advisor.ground.types import ModelShape
from advisor.probe.catalogue import find_gpu
from benchmarks.measuring import Row
from benchmarks.refit import in_and_out_of_sample
from tools.generate.accuracy import Case, published, summary

TITLE = (
    "memory on published cases, advise estimate beside other calculators on the same cases; each"
    " source counts once"
)

ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
# Fused and renamed projections as the calculators' seven names.
SPLIT = {
    **{name: (name,) for name in (*ATTENTION, *MLP)},
    "c_attn": ATTENTION[:3], "W_pack": ATTENTION[:3], "query_key_value": ATTENTION[:3],
    "c_proj": ("o_proj", "down_proj"), "w1": ("gate_proj",), "w2": ("up_proj",),
}  # fmt: skip
WITHOUT_CONTEXT = ("allocated", "active")  # counters of tensors alone: no CUDA context, no cache


@dataclass(frozen=True, kw_only=True)
class Job:
    """A published case in words that calculators share."""

    params: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    experts: int | None
    active_experts: int | None
    method: str  # full | lora | qlora
    weights_dtype: str  # bf16 | fp16 | fp32
    states_dtype: str  # of the optimizer's moments: bf16 | fp32
    mixed: bool
    optimizer: str  # adamw | adamw_8bit
    rank: int | None
    targets: tuple[str, ...]
    double_quant: bool
    micro_batch_size: int
    seq_len: int
    recompute: bool
    flash: bool
    gpus: int
    sharding: str
    gpu_mib: int | None
    gpu: str


def job_of(case: Mapping[str, Any], shape: ModelShape) -> Job | str:
    """The case as a job, or what no calculator here can be told of it."""
    unsaid = {
        "offload_weights": case.get("offload_weights"),
        "adamw_cpu": case["optimizer"] == "adamw_cpu",
        "optimizer_in_backward": case["optimizer_in_backward"],
        "train_embeddings": case.get("train_embeddings"),
        "selective checkpointing": not isinstance(case["gradient_checkpointing"], bool),
    }  # fmt: skip
    reasons = [name for name, holds in unsaid.items() if holds]
    if reasons:
        return ", ".join(reasons)
    hidden, layers, heads = shape.hidden_size, shape.layers, shape.heads
    if (
        hidden is None
        or layers is None
        or heads is None
        or shape.intermediate_size is None
        or shape.vocab_size is None
    ):
        return "dimensions are not known"
    dtype = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}[case["weights_dtype"]]
    wanted = case.get("target_modules") or ()
    names = (
        (*ATTENTION, *MLP)
        if wanted == "all-linear"
        else tuple(name for module in wanted for name in SPLIT.get(module, ()))
    )
    card = find_gpu(case["gpu"], lenient=True).spec if case.get("gpu") else None
    return Job(
        params=shape.params, hidden=hidden, layers=layers, heads=heads,
        kv_heads=shape.kv_heads or heads, head_dim=shape.head_dim or hidden // heads,
        intermediate=shape.intermediate_size, vocab=shape.vocab_size,
        tied=bool(shape.tied_embeddings), experts=shape.experts,
        active_experts=shape.experts_per_token,
        method=case["update"], weights_dtype=dtype, mixed=case["precision"] == "mixed",
        # PyTorch keeps both moments in the dtype of what is trained; mixed precision trains float32
        # adapters.
        states_dtype="bf16" if dtype != "fp32" and not case["fp32_master_weights"] and (case["update"] == "full" or case["precision"] == "pure") else "fp32",
        optimizer="adamw_8bit" if case["optimizer"].endswith("8bit") else "adamw",
        rank=case.get("rank"),
        targets=tuple(name for name in (*ATTENTION, *MLP) if name in names),
        double_quant=case["double_quantization"], micro_batch_size=case["micro_batch_size"],
        seq_len=case["seq_len"], recompute=case["gradient_checkpointing"],
        flash=case["attention"] != "eager", gpus=case["gpus"],
        sharding=case.get("sharding") or "none",
        gpu_mib=None if card is None or not card.memory_bytes else card.memory_bytes // 2**20,
        gpu=case.get("gpu") or "",
    )  # fmt: skip


def shared(case: Mapping[str, Any]) -> bool:
    """Whether the case is one that every calculator of adapters has words for, but for its counter
    and packing.
    """
    said = (
        case["gpus"] == 1
        and case["weights_dtype"] == "bfloat16"
        and case["optimizer"] in ("adamw", "adamw_fused", "adamw_8bit")
        and case["loss"] == "full"
    )
    targets = case.get("target_modules") or ()
    return bool(said and (targets == "all-linear" or all(name in SPLIT for name in targets)))


Arguments = dict[str, Any] | str  # or why it cannot be asked
Answer = (
    tuple[float, float] | str
)  # GiB, and how much of it is context and fragmentation; or why there is none
Told = tuple[dict[str, Any], Job | str]  # a case with all its keys, and its job or why it has none


def fitcheck(job: Job) -> Arguments:
    """Fields of its TrainingConfig, a config.json for its own reader, and its card."""
    if job.gpus > 1:
        return "one GPU only"
    if job.method != "full" and not job.targets:
        return "LoRA targets unknown to it"
    training: dict[str, Any] = {
        "precision": job.weights_dtype, "quantization": "nf4" if job.method == "qlora" else "none",
        "double_quant": job.method == "qlora" and job.double_quant,
        "optimizer": {"adamw": "adamw", "adamw_8bit": "adam8bit"}[job.optimizer],
        "optimizer_dtype": job.states_dtype, "batch_size": job.micro_batch_size,
        "seq_len": job.seq_len, "lora_rank": None if job.method == "full" else job.rank or 16,
        "grad_checkpoint": job.recompute, "flash_attn": job.flash,
    }  # fmt: skip
    if job.method != "full":
        training["lora_targets"] = list(job.targets)
    config = {
        "model_type": "llama", "hidden_size": job.hidden, "num_hidden_layers": job.layers,
        "num_attention_heads": job.heads, "num_key_value_heads": job.kv_heads,
        "head_dim": job.head_dim, "intermediate_size": job.intermediate, "vocab_size": job.vocab,
        "tie_word_embeddings": job.tied,
    } | ({"num_local_experts": job.experts} if job.experts else {})  # fmt: skip
    # Its T4 is the one card that it has measured; for the others only the size is read.
    return {
        "training": training,
        "config": config,
        "params": job.params,
        "gpu": "t4" if "T4" in job.gpu else None,
        "vram_mib": job.gpu_mib or 81920,
    }


def ftuneai(job: Job) -> Arguments:
    """Fields of its ModelSpec and TrainingConfig."""
    shardings = {
        "none": "none",
        "ddp": "none",
        "zero1": "zero_1",
        "zero2": "zero_2",
        "zero3": "zero_3",
        "fsdp": "fsdp",
    }
    targets = (
        "all_linear"
        if set(job.targets) & set(MLP)
        else "attention"
        if set(job.targets) <= {"q_proj", "v_proj"}
        else "attention_all"
    )
    model = {
        "parameters": job.params, "hidden_size": job.hidden, "num_layers": job.layers,
        "num_attention_heads": job.heads, "num_kv_heads": job.kv_heads,
        "intermediate_size": job.intermediate, "vocab_size": job.vocab,
        "max_seq_length": job.seq_len,
        "default_dtype": {"bf16": "bfloat16", "fp16": "float16",
        "fp32": "float32"}[job.weights_dtype],
        "is_moe": job.experts is not None, "num_experts": job.experts,
        "num_active_experts": job.active_experts,
    }  # fmt: skip
    config = {
        "batch_size": job.micro_batch_size, "seq_length": job.seq_len,
        "gradient_checkpointing": job.recompute, "lora_rank": job.rank or 16,
        "flash_attention": job.flash,
        "num_gpus": job.gpus,
    }  # fmt: skip
    words = {
        "method": job.method,
        "quantization": "4bit" if job.method == "qlora" else "none",
        "optimizer": {"adamw": "adamw", "adamw_8bit": "adam_8bit"}[job.optimizer],
    }
    return {
        "model": model,
        "config": config,
        "words": {**words, "lora_target": targets, "sharding": shardings[job.sharding]},
    }


def soup(job: Job) -> Arguments:
    """Arguments of the function behind `soup profile`; it has no words for dtype, targets or
    attention.
    """
    if job.gpus > 1:
        return "one GPU only"
    if job.weights_dtype == "fp32":
        return "no float32"
    return {
        "model_name": "model", "model_params_b": job.params / 1e9,
        "quantization": "4bit" if job.method == "qlora" else "none", "lora_r": job.rank or 16,
        "lora_alpha": 16,
        "batch_size": job.micro_batch_size, "seq_len": job.seq_len,
        "optimizer": {"adamw": "adamw_torch", "adamw_8bit": "adamw_bnb_8bit"}[job.optimizer],
        "gradient_checkpointing": job.recompute, "peft": job.method,
    }  # fmt: skip


def accelerate(job: Job) -> Arguments:
    """The float32 size of the empty model and the precision, for its "Training using Adam"."""
    if job.gpus > 1 or job.method != "full" or job.optimizer != "adamw":
        return "Adam training of all parameters on one GPU only"
    return {
        "size_bytes": 4 * job.params,
        "precision": "float32" if job.weights_dtype == "fp32" and not job.mixed else "bfloat16",
    }


# Each child reads a list of arguments, and prints [total GiB, GiB of it that are context and
# fragmentation] or a reason for each.
CHILD = """
import json, sys
from importlib.metadata import version
{imports}
def gib(item):
{body}
answers = []
for item in json.load(sys.stdin):
    try:
        answers.append([float(value) for value in gib(item)])
    except Exception as error:
        answers.append(f"{{type(error).__name__}}: {{error}}"[:200])
print(json.dumps({{"version": version("{package}"), "answers": answers}}))
"""
# A cached config.json is what its documentation names for work without the hub. The hub's own count
# of parameters, which it compares with that of the dimensions and refuses at 2 %, is compared here.
FITCHECK = (
    """
import os, pathlib, tempfile
cache = tempfile.TemporaryDirectory()
os.environ.update(HF_HUB_CACHE=cache.name, HF_HUB_OFFLINE="1")
from dataclasses import replace
from fitcheck import TrainingConfig, estimate, fetch_model_config, get_gpu
""",
    """
    here = pathlib.Path(cache.name, f"models--shape--{abs(hash(json.dumps(item['config'])))}")
    snapshot = here / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True, exist_ok=True)
    (here / "refs").mkdir(exist_ok=True)
    (here / "refs" / "main").write_text("0" * 40)
    (snapshot / "config.json").write_text(json.dumps(item["config"]))
    config = fetch_model_config(here.name.removeprefix("models--").replace("--", "/"))
    if abs(config.num_params / item["params"] - 1) > 0.02:
        raise ValueError(f"parameters by its formula {config.num_params}, in truth {item['params']}: it refuses above 2 %")
    card = get_gpu(item["gpu"]) if item["gpu"] else get_gpu("card", vram_mib=item["vram_mib"])
    report = estimate(replace(config, num_params=item["params"]), TrainingConfig(**item["training"]), card)
    return report.total_mib / 1024, report.overhead_mib / 1024
""",
)
FTUNEAI = (
    """
from ftuneai import FineTuneMethod, LoRATarget, ModelSpec, OptimizerType, Quantization, ShardingStrategy, TrainingConfig
from ftuneai.core.memory import MemoryEstimator
KINDS = {"method": FineTuneMethod, "quantization": Quantization, "optimizer": OptimizerType, "lora_target": LoRATarget, "sharding": ShardingStrategy}
""",
    """
    words = {key: KINDS[key](value) for key, value in item["words"].items()}
    found = MemoryEstimator(ModelSpec(name="shape", **item["model"]), TrainingConfig(**item["config"], **words)).estimate()
    return found.total_gb, found.overhead_gb
""",
)
SOUP = (
    "from soup_cli.utils.profiler import estimate_total",
    """
    found = estimate_total(**item)
    return found["total_memory_gb"], found["overhead_gb"]
""",
)
ACCELERATE = (
    "from accelerate.commands.estimate import estimate_training_usage",
    """
    return max(estimate_training_usage(item["size_bytes"], item["precision"]).values()) / 2**30, 0
""",
)


@dataclass(frozen=True)
class Calculator:
    """Another calculator: its package, the variable that names its Python, how it is asked, and
    what its rows leave out.
    """

    package: str
    variable: str
    arguments: Callable[[Job], Arguments]
    child: tuple[str, str]
    note: str
    has_adapters: bool = True  # knows LoRA
    has_context: bool = True  # has a line for CUDA context and fragmentation

    @property
    def script(self) -> str:
        imports, body = self.child
        return CHILD.format(imports=imports.strip(), body=body.strip("\n"), package=self.package)


CALCULATORS = (
    Calculator(
        "fitcheck-llm",
        "ESTIMATORS_FITCHECK",
        fitcheck,
        FITCHECK,
        "one GPU; refuses mixtures of experts and models whose parameters differ from its"
        " formula's; no lm_head adapters",
    ),
    Calculator(
        "ftuneai",
        "ESTIMATORS_FTUNEAI",
        ftuneai,
        FTUNEAI,
        "the nearest of three sets of LoRA targets; no double quantisation, no dtype of optimizer"
        " states",
    ),
    Calculator(
        "soup-cli",
        "ESTIMATORS_SOUP",
        soup,
        SOUP,
        "`soup profile`: one GPU; the size is all it knows of a model; its GB read as GiB; no"
        " targets, dtypes, attention",
    ),
    Calculator(
        "accelerate",
        "ESTIMATORS_ACCELERATE",
        accelerate,
        ACCELERATE,
        "full fine-tuning with Adam on one GPU; no batch, length or activations; its rule applied"
        " to the parameter count",
        has_adapters=False,
        has_context=False,
    ),
)


def jobs() -> list[Told]:
    """Every published case with all its keys, and its job."""
    data = published()
    found: list[Told] = []
    for row in data["cases"]:
        case = {**data["defaults"], **row}
        shape, _ = find_model(case["model"], case.get("model_params_b"))
        found.append((case, "model not known" if shape is None else job_of(case, shape)))
    return found


def asked(
    calculator: Calculator, python: str, told: Sequence[Told]
) -> tuple[str, dict[str, Answer]]:
    """Its version, and its answer by case. Raises RuntimeError where the child fails."""
    arguments = {
        case["id"]: job if isinstance(job, str) else calculator.arguments(job) for case, job in told
    }
    items = {name: value for name, value in arguments.items() if not isinstance(value, str)}
    child = subprocess.run(
        [python, "-c", calculator.script],
        input=json.dumps(list(items.values())),
        capture_output=True,
        text=True,
    )
    if child.returncode:
        raise RuntimeError(
            f"{calculator.package} ended with {child.returncode}: {child.stderr[-2000:]}"
        )
    said = json.loads(child.stdout.splitlines()[-1])
    answers = dict(zip(items, said["answers"], strict=True))
    found: dict[str, Answer] = {}
    for name, value in arguments.items():
        answer = value if isinstance(value, str) else answers[name]
        found[name] = answer if isinstance(answer, str) else (answer[0], answer[1])
    return said["version"], found


def as_cases(
    answers: Mapping[str, Answer], told: Sequence[Told], *, context: bool
) -> dict[str, Case]:
    """Their answers as cases; without context and fragmentation where the counter leaves these out,
    unless `context`.
    """
    found = {}
    for case, _ in told:
        answer = answers[case["id"]]
        if not isinstance(answer, str):
            left_out = 0.0 if context or case["counter"] not in WITHOUT_CONTEXT else answer[1]
            found[case["id"]] = Case(case, {"peak_gib": answer[0] - left_out})
    return found


def compared(
    subset: str, names: Sequence[str], sides: Mapping[str, Mapping[str, Case]]
) -> list[Row]:
    """Rows of all sides on the same cases, ours first; the unit names the subset, so that the ratio
    column compares within it.
    """
    if not names:
        return []
    rows = []
    for title, cases in sides.items():
        found = summary([cases[name] for name in names])
        rows += [
            Row(f"{title}: median error", (found["median_error"] * 100,), f"% err {subset}"),
            Row(f"{title}: within 20 %", (found["within_20"] * 100,), f"% near {subset}", True),
            Row(f"{title}: 10 % too low", (found["too_low"] * 100,), f"% low {subset}"),
        ]
    return [*rows, Row(f"cases: {subset}", (float(len(names)),), f"cases {subset}")]


def measure() -> list[Row]:
    told = jobs()
    spoken: list[tuple[Calculator, dict[str, Case], dict[str, dict[str, Case]]]] = []
    for calculator in CALCULATORS:
        python = os.environ.get(calculator.variable)
        if not python:
            print(
                f"{calculator.package}: left out, {calculator.variable} names no Python (see"
                " benchmarks/estimators.py)"
            )
            continue
        version, answers = asked(calculator, python, told)
        printed = as_cases(answers, told, context=True)
        sides = {
            f"{calculator.package} {version}": printed,
            f"{calculator.package} {version}, no context": as_cases(answers, told, context=False),
        }
        spoken.append(
            (calculator, printed, dict(list(sides.items())[: 2 if calculator.has_context else 1]))
        )
        print(
            f"{calculator.package} {version}: answers {len(printed)} of {len(told)};"
            f" {calculator.note}"
        )
    if not spoken:
        return []
    print(
        "shared: one GPU, bf16, AdamW, plain loss, answered by all that ran and know adapters. No"
        " context: their line for CUDA context and fragmentation"
    )
    print(
        f"left out for peaks counted as {' or '.join(WITHOUT_CONTEXT)}. Refitted: our constants"
        " fitted without the case's source.\n"
    )
    ours = {
        title: {case.facts["id"]: case for case in found}
        for title, found in zip(("ours", "ours, refitted"), in_and_out_of_sample(), strict=True)
    }
    rows: list[Row] = []
    for calculator, printed, sides in spoken:
        rows += compared(calculator.package.split("-")[0], list(printed), {**ours, **sides})
    adapters = [
        (printed, sides) for calculator, printed, sides in spoken if calculator.has_adapters
    ]
    if adapters:
        names = [
            case["id"]
            for case, _ in told
            if shared(case) and all(case["id"] in printed for printed, _ in adapters)
        ]
        rows += compared(
            "shared",
            names,
            ours | {title: cases for _, sides in adapters for title, cases in sides.items()},
        )
        for calculator, printed, sides in spoken:
            if not calculator.has_adapters:
                rows += compared(
                    "shared/full", [name for name in names if name in printed], {**ours, **sides}
                )
    return rows
