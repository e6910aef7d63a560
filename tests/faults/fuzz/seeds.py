"""What is mutated: sound files of every kind that `advise` reads, and how it is asked to read them."""

import csv
import io
import json
import math
import struct
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pyarrow import Table
from pyarrow.parquet import write_table

from tests.fake_model import llama_tensors
from tests.faults.kills import DATA, PLANS, REWARD, plan_text
from tests.faults.table import ROOT
from tests.launch.conftest import CONFIG as LARGER
from trainers.keep.checkpoint_store import COMPLETE, CheckpointStore, Dependencies

# Content; or what puts something else than a file in the place.
Files = dict[str, bytes | Callable[[Path], object]]
CONFIG: dict[str, Any] = LARGER | {
    "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 32,
}  # fmt: skip
CPU_S = 5.0
ADVICE = (0, 2, 3, 4)
RUN = (*ADVICE, 5, 130)


def advise_main() -> None:
    from advisor.cli import main

    main()


@dataclass(frozen=True)
class Target:
    """One kind of input, its sound examples, and the commands that read it."""

    name: str
    seeds: Sequence[Any]  # values, or bytes where there is no structure to keep
    forms: Sequence[str]  # json, yaml: how a value is written
    file: str  # the name of the mutated file; of data: without its ending
    commands: Sequence[str]
    around: Files = field(default_factory=dict)  # sound files beside it
    codes: Sequence[int] = ADVICE
    weight: int = 1
    env: Mapping[str, str] = field(default_factory=dict)
    cold: bool = False  # rules and methods are read anew
    run: Callable[[], object] = advise_main
    program: str = "advise"
    most_cpu_s: int = 15  # more than these ends it
    most_wall_s: float = 60.0
    most_bytes: int = 4 * 2**30
    cpu_s: float = CPU_S  # more is a fault
    usual: str = "$^"  # pattern of what is no fault of this kind of input
    is_read: bool = True  # exit code 0 or 3 means that a reader took it


EXPORTS = ("bundle", "trl", "llamafactory", "axolotl")
TEMPLATES = [
    b"{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] | trim }}<|im_end|>{% endfor %}",
    b"{% set n = namespace(x='') %}{% for m in messages %}{% set n.x = n.x + m.content %}{% endfor %}"
    b"{{ n.x.split(' ') | join('_') | replace('a', 'bb') }}{{ '%s' % (messages | length * 2) }}",
    b"{% macro say(m) %}{{ m.role.upper() ~ ': ' ~ m.content[:40] }}{% endmacro %}"
    b"{% for m in messages if m.content %}{{ say(m).encode('utf-8').decode() }}{% endfor %}",
]


def jsonl(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


ANSWERS: list[dict[str, Any]] = [
    {
        "task": "customer_service", "budget": "low", "depth": "style",
        "data": {"path": "chats.jsonl"},
    },
    {
        "task": "multi_department", "tasks": {"legal": "chats.jsonl", "hr": "pairs.jsonl"},
        "model": "Qwen/Qwen3-8B", "gpu": {"name": "RTX 4090", "vram_gib": 24, "count": 2},
    },
    {
        "task": "chat_assistant", "budget": {"usd": 50, "hours": 8}, "depth": "alignment",
        "data": {"kind": "preference", "rows": 5000, "tokens": 2_000_000}, "model": "./model",
        "gpu": "none", "serve_with": "vllm", "priority": "quality",
        "signals": ["facts_change_often", "prompting_tried"],
    },
    {
        "task": "qa", "n_tasks": 12, "model": "Llama 13B", "model_params_b": 13,
        "gpu": {"name": "unknown"},
    },
]  # fmt: skip
RICH = {
    "trl": {"adam_beta1": 0.8, "logging_steps": 2}, "peft": {"rank_pattern": {"q_proj": 4}},
    "warmup": 0.1, "scheduler": "cosine", "early_stopping": 3, "keep": "best",
}  # fmt: skip
SPECS: list[list[dict[str, Any]]] = [
    [
        {
            "model": "Qwen/Qwen3-8B", "update": "lora", "rank": 16, "gpu": "RTX 4090", "seq_len": 2048,
        },
        {
            "model_params_b": 7, "update": "full", "gpus": 8, "sharding": "zero3",
            "framework": "axolotl",
        },
    ],
    [
        {
            "architecture": {"hidden_size": 4096, "num_hidden_layers": 32, "vocab_size": 32000},
            "objective": "dpo", "quantization": "nf4", "micro_batch_size": 4,
            "gradient_checkpointing": True, "counter": "nvidia-smi",
        }
    ],
]  # fmt: skip
CONFIGURATIONS: list[dict[str, Any]] = [
    {  # axolotl
        "base_model": "NousResearch/Llama-2-7b-hf", "adapter": "qlora", "load_in_4bit": True,
        "sequence_len": 4096, "sample_packing": True, "lora_r": 32, "micro_batch_size": 2,
        "datasets": [{"path": "chats.jsonl", "type": "alpaca"}], "optimizer": "paged_adamw_8bit",
    },
    {  # LLaMA-Factory
        "model_name_or_path": "Qwen/Qwen3-8B", "stage": "sft", "finetuning_type": "lora",
        "dataset": "alpaca_en", "template": "qwen3", "cutoff_len": 2048, "lora_rank": 8,
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "bf16": True,
    },
    {  # TRL
        "model_name_or_path": "Qwen/Qwen2.5-7B-Instruct", "dataset_name": "chats.jsonl",
        "use_peft": True, "lora_r": 16, "learning_rate": 2e-4, "max_length": 1024, "packing": True,
        "datasets": [{"path": "json", "data_files": "chats.jsonl"}], "dtype": "bfloat16",
    },
]  # fmt: skip
ARGUMENTS = (
    ("--json", "--task", "qa", "--budget", "usd=20,hours=6", "--gpu", "RTX 4090", "--gpus", "2"),
    ("--json", "--data", "chats.jsonl", "--model", "./model", "--signal", "prompting_tried"),
    ("--json", "--tasks", "legal=chats.jsonl", "--tasks", "hr=pairs.jsonl", "--choose", "sft+qlora"),
    ("estimate", "--model", "Qwen/Qwen3-8B", "--update", "lora", "--rank", "16", "--gpu", "A100 80GB"),
    ("estimate", "plan.yaml", "--json", "--gpu", "H100"),
    ("check", "chats.jsonl", "--map", "question=messages", "--seq-len", "128", "--json"),
    ("check", "pairs.jsonl", "--eval", "chats.jsonl", "--model", "./model"),
    ("run", "plan.yaml", "--output", "out", "--set", "stages.0.learning_rate=1e-4", "--only", "sft"),
    ("run", "plan.yaml", "--max-steps", "3", "--no-judge", "--dry-run"),
    ("rules", "document/scenario-5", "--rules", "document"),
    ("rules", "lora"), ("probe", "--json"), ("chat", "run"), ("export", "run", "--to", "merged"),
)  # fmt: skip


def rows_of(kind: str, count: int = 12) -> list[dict[str, Any]]:
    return [DATA[kind](n) for n in range(count)]


def plans() -> list[dict[str, Any]]:
    """The plans of the kills, with a model that is beside them, and one with keys of every kind."""
    found = [{"version": 1, **yaml.safe_load(plan_text(objective))} for objective in PLANS]
    rich = {"template": {"enable_thinking": False}, "launch": {"device": "cpu", "processes": 1}}
    return [*found, found[0] | rich | {"stages": [found[0]["stages"][0] | RICH]}]


def rules() -> list[dict[str, Any]]:
    found = yaml.safe_load((ROOT / "examples/acme/acme.yaml").read_text())
    return [found | {"tables": {name: rows[:2] for name, rows in found["tables"].items()}}]


def data_files() -> list[tuple[str, bytes]]:
    """(ending, content) of data of every kind and form."""
    chats, pairs, votes = map(rows_of, ("chats", "pairs", "votes"))
    table = io.StringIO()
    rows = ((f"What is {n}, please?", f"It is {n}.\nOf course.") for n in range(12))
    csv.writer(table).writerows([("question", "answer"), *rows])
    sharegpt = [
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes?"}]}
    ]
    packed = io.BytesIO()
    write_table(Table.from_pylist(pairs), packed)
    return [
        *((".jsonl", jsonl(rows)) for rows in (chats, pairs, votes)),
        (".json", json.dumps(sharegpt * 8).encode()),
        (".json", json.dumps({"data": pairs}).encode()),
        (".csv", table.getvalue().encode()),
        (".tsv", table.getvalue().replace(",", "\t").encode()),
        (".txt", "\n\n".join(f"The shop sells tea number {n}." for n in range(40)).encode()),
        (".parquet", packed.getvalue()),
    ]


def safetensors() -> bytes:
    """The whole model as a file, all zeros."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in llama_tensors(CONFIG).items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "<|im_end|>": 2}, "merges": []},
    "added_tokens": [{"id": 2, "content": "<|im_end|>", "special": True}],
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
}


# Two whole checkpoints, of which the newer gets a mutated file.
SAVED = (3, 6)
SAVED_FILES = {
    "adapter_model.safetensors": b"weights of step %d " * 20,
    "random_state_0.safetensors": b'{"map": [[{"value": "python"}, {"value": %d}]]}',
    "trainer_state.json": b'{"global_step": %d, "log_history": [{"loss": 1.5}], "epoch": 0.5}',
}


def checkpoint_store(folder: Path) -> CheckpointStore:
    """The store of the checkpoints below a folder."""
    needs = Dependencies(
        parts={"base_model": "b", "rows": "r"}, settings={"learning_rate": 1e-4, "seed": 42}
    )
    return CheckpointStore(folder / "checkpoints", needs, {"torch": "2.13.0"})


@cache
def checkpoint_files() -> Mapping[str, bytes]:
    """The files of both checkpoints, named from the folder above."""
    with tempfile.TemporaryDirectory() as name:
        one = checkpoint_store(Path(name))
        for step in SAVED:
            place = one.begin(step)
            for file, content in SAVED_FILES.items():
                (place / file).write_bytes(content.replace(b"%d", str(step).encode()))
            one.complete(step, {"steps": 9, "learning_rate": 1e-4, "epoch": 0.5})
        paths = [path for path in one.folder.rglob("*") if path.is_file()]
        return {path.relative_to(name).as_posix(): path.read_bytes() for path in paths}


def checkpoint_records() -> list[dict[str, Any]]:
    """complete.json of both."""
    names = (f"checkpoints/checkpoint-{step}/{COMPLETE}" for step in reversed(SAVED))
    return [json.loads(checkpoint_files()[name]) for name in names]


def read_checkpoint() -> None:
    """Look for the newest checkpoint; exit code 1 for one that was not written so."""
    from advisor.ground.errors import AdviseError

    try:
        found = checkpoint_store(Path()).newest(print)
    except AdviseError as error:
        print(error.text())
        raise SystemExit(error.exit_code) from None
    if found is None:
        raise SystemExit("both checkpoints were refused, and one is sound")
    for file, content in SAVED_FILES.items():
        assert (found.path / file).read_bytes() == content.replace(b"%d", str(found.step).encode())
    assert found.record["steps"] == 9


# What a vLLM server answers, by path; the plan asks for rollouts of it.
SERVER = {
    "/health": "", "/version": {"version": "0.33.0"}, "/server_info": {"vllm_config": {}},
    "/v1/models": {"data": [{"id": "MODEL", "max_model_len": 4096}]},
}  # fmt: skip


def run_beside_a_server() -> None:
    """Run a plan whose server answers as server.json says; what is no table answers everything."""
    from advisor.launch import call
    from tests.launch.test_lying_server import Liar

    call.trainers_root = lambda: ROOT  # type: ignore[attr-defined]  # they know this objective
    text = Path("server.json").read_text("utf-8", "replace")
    table: Any = text.replace("MODEL", str(Path("model").resolve()))
    with suppress(ValueError, RecursionError):
        table = json.loads(table)
    table = table if isinstance(table, dict) else dict.fromkeys(SERVER, text)
    with Liar(table) as server:
        sys.argv += ["--set", f"launch.vllm.url={server.url}"]
        advise_main()


def server_plan() -> Files:
    """The plan that asks it."""
    plan = yaml.safe_load(plan_text("grpo")) | {"launch": {"device": "cpu"}}
    plan["launch"]["vllm"] = {"url": "http://127.0.0.1:9", "timeout_s": 1}
    plan["stages"][0]["rollouts"] = "vllm"
    return around() | {"plan.yaml": yaml.safe_dump(plan).encode()}


CHECKPOINT: dict[str, Any] = {
    "around": checkpoint_files(), "codes": (0,), "run": read_checkpoint, "is_read": False,
}  # fmt: skip


def around() -> Files:
    """Sound files for every command: a model, data, a reward and a plan."""
    return {
        "model/config.json": json.dumps(CONFIG).encode(),
        "model/model.safetensors": safetensors(),
        "model/tokenizer.json": json.dumps(TOKENIZER).encode(),
        **{f"{name}.jsonl": jsonl(rows_of(name)) for name in ("chats", "pairs", "votes", "texts")},
        "own.py": REWARD.encode(),
        "plan.yaml": yaml.safe_dump(plans()[0], sort_keys=False).encode(),
    }


def targets(run_folder: Files) -> list[Target]:
    """Everything that is fuzzed. `run_folder` holds the files of a finished run named `run`."""
    beside, both = around(), ("json", "yaml", "yaml")
    with_run, text = {**beside, **run_folder}, run_folder["run/run.json"]
    assert isinstance(text, bytes)
    methods = [
        yaml.safe_load((ROOT / name).read_text())
        for name in ("rules/objectives/orpo.yaml", "rules/updates/ia3.yaml")
    ]
    # Of each: sound examples, how they are written, the file, the commands that read it.
    table: Sequence[tuple[str, Sequence[Any], Sequence[str], str, Sequence[str], dict[str, Any]]] = [
        ("answers", ANSWERS, both, "answers.yaml",
         ["--json --answers answers.yaml", "--answers answers.yaml"], {"weight": 5}),
        ("plan", plans(), both, "plan.yaml",
         ["estimate plan.yaml", "estimate plan.yaml --json", "run plan.yaml --output out",
          "run plan.yaml --output out --json", *(f"export plan.yaml --to {to}" for to in EXPORTS)],
         {"codes": RUN, "weight": 7}),
        ("rules", rules(), ("yaml", "yaml", "json"), "own.yaml",
         ["--json --task qa --rules own.yaml", "rules --rules own.yaml"],
         {"weight": 2, "cold": True}),
        ("data rows", [rows_of(kind, 6) for kind in ("chats", "pairs", "votes")], ("rows",),
         "data.jsonl",
         ["check data.jsonl", "check data.jsonl --json", "--json --data data.jsonl"],
         {"weight": 5}),
        ("data file", data_files(), ("file",), "data",
         ["check DATA", "check DATA --json", "--json --task qa --data DATA"], {"weight": 6}),
        ("configuration of another tool", CONFIGURATIONS, both, "config.yaml",
         ["check config.yaml", "check config.yaml --json"], {"weight": 3}),
        ("config.json", [CONFIG, LARGER], ("json",), "model/config.json",
         ["--json --task qa --model ./model", "estimate plan.yaml", "run plan.yaml --output out"],
         {"codes": RUN, "weight": 4}),
        ("model file", [safetensors()[:-1500], safetensors()], ("bytes",),
         "model/model.safetensors", ["estimate plan.yaml", "run plan.yaml --output out"],
         {"codes": RUN}),
        ("tokenizer", [TOKENIZER], ("json",), "model/tokenizer.json",
         ["check chats.jsonl --model ./model", "run plan.yaml --output out"], {"codes": RUN}),
        ("chat template", TEMPLATES, ("bytes",), "model/chat_template.jinja",
         ["check chats.jsonl --model ./model"], {"weight": 2}),
        ("run.json", [json.loads(text)], ("json",), "run/run.json",
         ["run plan.yaml --output run", "run run", "run plan.yaml --output run --json",
          "chat run", "check run", "export run --to merged"],
         {"around": with_run, "codes": RUN, "weight": 5,  # who looked last stands in the lock
          "usual": r"changed although refused: run/\.lock$"}),
        ("checkpoint", checkpoint_records(), ("json",), "checkpoints/checkpoint-6/complete.json",
         ["checkpoint"], CHECKPOINT),
        *(("checkpoint", [content.replace(b"%d", b"6")], ("bytes",),
           f"checkpoints/checkpoint-6/{name}", ["checkpoint"], CHECKPOINT)
          for name, content in SAVED_FILES.items()),
        ("answers of a vLLM server", [SERVER], ("json",), "server.json",
         ["run plan.yaml --output out"],
         {"around": server_plan(), "codes": RUN, "weight": 2, "run": run_beside_a_server,
          "is_read": False, "usual": r"outside: socket\."}),
        ("specs", SPECS, ("json",), "specs.json",
         ["estimate --json --specs specs.json", "estimate --specs specs.json"], {"weight": 4}),
        ("methods", methods, ("yaml", "yaml", "json"), "methods/rules/objectives/own.yaml",
         ["rules lora", "estimate plan.yaml", "--json --task qa"],
         {"env": {"ADVISE_METHODS": "methods"}, "cold": True}),
        ("arguments", [list(words) for words in ARGUMENTS], ("arguments",), "", [""],
         {"around": with_run, "codes": RUN, "weight": 6}),
    ]  # fmt: skip
    return [
        Target(name, seeds, forms, file, commands, **{"around": beside} | about)
        for name, seeds, forms, file, commands, about in table
    ]
