"""A plan for Unsloth: `unsloth.yaml` for `unsloth train`, which knows supervised training alone and
38 keys, and `train.py`, which says all of it. With the data, written whole or not at all.

unsloth_cli/config.py drops a key that it does not know without a word, so every name here is held
against its own classes by a test. Read: unslothai/unsloth 015bdef0d9, 2026-08-22.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from advisor.export.exporter import ExportRequest
from advisor.extras.other_tools.files import (
    BUNDLE,
    chosen_entries,
    commented,
    data_lines,
    fresh_folder,
    no_data,
)
from advisor.extras.other_tools.mapping import flat_stage, usual_values
from advisor.extras.other_tools.rows import TEST, TRAIN, WrittenRows, example_row, write_rows
from advisor.extras.other_tools.tool import ANSWERS, TEXT
from advisor.ground.errors import Fault, InputError
from advisor.ground.files import shown_path
from advisor.ground.types import FSDP
from advisor.ground.version import __version__
from advisor.methods.optimizers import optimizer
from advisor.plan.entries import Entry
from advisor.plan.model import Plan
from advisor.plan.read import read_plan, resolve_path
from advisor.record.smaller import yaml_value
from advisor.situation.models import usable_shape

INSTALL = "pip install unsloth"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
# Keys of a plan that both files say, or that are said in other words.
SAID = {
    "model", "trust_remote_code", "objective", "update", "quantization", "rank", "alpha", "dropout",
    "rslora", "target_modules", "learning_rate", "epochs", "max_steps", "warmup", "weight_decay",
    "micro_batch_size", "grad_accum", "seq_len", "packing", "loss_on", "seed", "revision",
    "gradient_checkpointing", "holdout", "save_minutes", "weights_dtype", "precision", "processes",
    "strategy", "double_quantization", "peft.use_dora",
}  # fmt: skip
WARMUP_STEPS = 5  # its own default, where the number of steps is not known
IN_SCRIPT = {"optimizer", "scheduler"}


def export(wanted: ExportRequest) -> int:
    """Write a plan, or one task or stage. Raises InputError for what Unsloth cannot train."""
    from advisor.extras.other_tools.fits_there import fitting_there

    plan = wanted.plan or read_plan(wanted.source)
    entries = chosen_entries(plan, wanted.only)
    if faults := [fault for entry in entries for fault in _refusals(plan, entry)]:
        raise InputError(faults=list(dict.fromkeys(faults)))
    folder = (wanted.out or Path(f"{plan.name}-unsloth")).expanduser().absolute()
    said = list[str]()
    with fresh_folder(folder) as work:
        for number, entry in enumerate(entries):
            said += _write(plan, entry, wanted.source, work, f".{entry.name}" if number else "")
    wanted.say(f"Wrote {shown_path(folder)}: unsloth.yaml and train.py, for Unsloth.")
    file = next(name for name in ("unsloth.yaml", "train.py") if (folder / name).is_file())
    fitting, wanted.document["memory"] = fitting_there(plan, [folder / file])
    for line in (*said, *fitting):
        wanted.say(line)
    wanted.say(f"Install it in an environment of its own: {INSTALL}")
    wanted.say(f"Start: cd {shlex.quote(shown_path(folder))} && python train.py")
    return 0


def _refusals(plan: Plan, entry: Entry) -> Iterator[Fault]:
    stage, whats = entry.stage, []
    if stage.objective not in ("sft", "cpt"):
        whats.append(
            f"{stage.objective} is not written for Unsloth: its file trains on texts alone"
        )
    if stage.update not in ("lora", "full"):
        whats.append(f"Unsloth has no update '{stage.update}'")
    if stage.options.get("head") not in (None, "language"):
        whats.append(f"`head: {stage.options['head']}` is not written for Unsloth")
    if plan.launch.strategy == FSDP:
        whats.append("Unsloth holds a whole model on each GPU, and this plan divides it (fsdp)")
    if entry.starts_from is not None:
        whats.append("a stage that goes on from another is not written for Unsloth: --only NAME")
    for what in whats:
        yield Fault(where=f"stage {stage.name}", what=what, hint=BUNDLE)


def _write(plan: Plan, entry: Entry, source: Path, work: Path, place: str) -> list[str]:
    """Write both files with the data. Returns what is to be done for them to run."""
    data, rows, notes, said = f"data{place}", None, list[str](), list[str]()
    path = resolve_path(source, entry.data.path)
    if entry.data.path:
        rows = write_rows(entry, path, work / data, (), {})
        notes += rows.notes
    else:
        form = example_row(TEXT if entry.stage.objective == "cpt" else ANSWERS, is_split=False)
        notes.append(no_data(data, form))
        said = [*data_lines(notes, form)]
    settings = _settings(plan, entry, rows)
    kind = rows.kind if rows else TEXT if entry.stage.objective == "cpt" else "answers"
    lost = [
        f"{key} ({yaml_value(value)})"
        for key, value in settings["ours"].items()
        if key not in SAID and value not in (settings["usual"].get(key), "auto")
    ]
    words = {"lost": [one for one in lost if one.split()[0] not in IN_SCRIPT], "notes": notes}
    if is_text := kind == TEXT:
        notes.append("`unsloth train` takes conversations alone: texts are trained by train.py")
    else:
        lost += _lost_in_yaml(settings)
        head = "\n".join(_head(plan, entry, {"lost": lost, "notes": notes}))
        page = yaml.safe_dump(_yaml(settings, data), sort_keys=False, width=1000)
        (work / f"unsloth{place}.yaml").write_text(f"{head}\n\n{page}", "utf-8")
    (work / f"train{place}.py").write_text(_script(settings, data, rows, words, is_text), "utf-8")
    return said


def _settings(plan: Plan, entry: Entry, rows: WrittenRows | None) -> dict[str, Any]:
    stage = entry.stage
    ours = flat_stage(plan, stage)
    usual = usual_values(stage.objective, stage.update)
    shape = usable_shape(plan.model)
    targets = ours.get("target_modules")
    if isinstance(targets, str) or not targets:
        # The experts of a mixture stay as they are, as in a plan: `gate_proj` would name them, too.
        is_mixture = shape is not None and bool(shape.experts)
        targets = ATTENTION if is_mixture else LINEAR
    per_step = stage.micro_batch_size * stage.grad_accum * plan.launch.processes
    steps = stage.max_steps or None
    if rows is not None and not steps and not stage.packing:
        steps = math.ceil(math.ceil(rows.counts[TRAIN] / per_step) * stage.epochs)
    warmup, whole = float(ours.get("warmup") or 0), float(stage.epochs).is_integer()
    # What both files say, in one place: they are two ways to start the same training.
    both = {
        "max_steps": stage.max_steps or (steps if steps and not whole else None),
        "warmup_steps": math.ceil(warmup * steps) if steps else None,
        "rank": int(ours.get("rank") or 16),
        "alpha": int(ours.get("alpha") or 16),
        "dropout": float(ours.get("dropout") or 0.0),
        "rslora": bool(ours.get("rslora")),
        "on_answers": ours.get("loss_on", "answers") == "answers",
    }
    return {
        "ours": ours, "usual": usual, "targets": list(targets), "stage": stage, "both": both,
        "warmup": warmup,
    }  # fmt: skip


def _lost_in_yaml(settings: Mapping[str, Any]) -> Iterator[str]:
    """What the script says and `unsloth.yaml` has no key for."""
    ours, stage, both = settings["ours"], settings["stage"], settings["both"]
    if both["warmup_steps"] is None:
        unknown = f"the number of steps is not known: warmup_steps is {WARMUP_STEPS}"
        yield f"warmup ({settings['warmup']:g}): {unknown}"
    if both["max_steps"] is None and not float(stage.epochs).is_integer():
        passes = math.ceil(stage.epochs)
        yield f"epochs ({stage.epochs:g}): it takes whole ones, so num_epochs is {passes}"
    if stage.quantization == "int8":
        yield "quantization (int8): the base stays in 16 bit"
    for key in ("revision", "trust_remote_code"):
        if ours[key]:
            yield f"{key} ({yaml_value(ours[key])})"


def _yaml(settings: Mapping[str, Any], data: str) -> dict[str, Any]:
    ours, stage, both = settings["ours"], settings["stage"], settings["both"]
    warmup_steps = both["warmup_steps"]
    return {
        "model": ours["model"],
        "data": {"local_dataset": [f"{data}/{TRAIN}"], "format_type": "chatml"},
        "training": {
            "training_type": stage.update,
            "max_seq_length": stage.seq_len,
            "load_in_4bit": stage.quantization == "nf4",
            "output_dir": "out",
            "num_epochs": math.ceil(stage.epochs),
            "learning_rate": float(stage.learning_rate),
            "batch_size": stage.micro_batch_size,
            "gradient_accumulation_steps": stage.grad_accum,
            "warmup_steps": WARMUP_STEPS if warmup_steps is None else warmup_steps,
            "max_steps": both["max_steps"] or 0,
            "weight_decay": float(stage.weight_decay),
            "random_seed": stage.seed,
            "packing": bool(stage.packing),
            "train_on_completions": both["on_answers"],
            "gradient_checkpointing": "unsloth" if stage.gradient_checkpointing else "none",
        },
        "lora": {
            "lora_r": both["rank"],
            "lora_alpha": both["alpha"],
            "lora_dropout": both["dropout"],
            "target_modules": ",".join(settings["targets"]),
            "use_rslora": both["rslora"],
            "use_dora": bool(ours.get("peft.use_dora")),
        },
    }


def _head(plan: Plan, entry: Entry, words: Mapping[str, Any]) -> Iterator[str]:
    stage = entry.stage
    base = f" on a base in {stage.quantization}" if stage.quantization else ""
    yield from commented(
        f"{stage.objective}, {stage.update}{base} of {plan.model}, for Unsloth. Written by"
        f" finetune-advisor {__version__} from the plan {plan.name}."
    )
    yield f"# Install, in an environment of its own:  {INSTALL}"
    for title, lines in (("Not carried over", words["lost"]), ("Notes", words["notes"])):
        if lines:
            yield f"# {title}:"
        for line in dict.fromkeys(lines):
            yield from commented(line, first="#  - ", later="#    ")


SCRIPT = """\
{head}
from unsloth import FastLanguageModel  # before trl and transformers, which it changes
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer{imports}

model, tokenizer = FastLanguageModel.from_pretrained(
    model_name={model!r},
    max_seq_length={seq_len},
    load_in_4bit={in_4bit},
    load_in_8bit={in_8bit},
    full_finetuning={full},
    trust_remote_code={remote},
    revision={revision!r},
    use_gradient_checkpointing={checkpointing!r},
    random_state={seed},
)
{module}data = load_dataset("json", data_files={files!r})
{render}
trainer = SFTTrainer(
    model=model,
    processing_class=tokenizer,
    train_dataset=data["train"],
    eval_dataset=data.get("test"),
    args=SFTConfig(
        output_dir="out",
        dataset_text_field="text",
        max_length={seq_len},
        packing={packing},
        per_device_train_batch_size={batch},
        gradient_accumulation_steps={accumulate},
        num_train_epochs={epochs},
        max_steps={max_steps},
        learning_rate={rate},
        lr_scheduler_type={scheduler!r},
        {warmup},
        weight_decay={decay},
        optim={optim!r},
        eval_strategy="epoch" if "test" in data else "no",
        logging_steps=10,
        seed={seed},
        report_to="none",
    ),
)
{answers}trainer.train()
model.save_pretrained("out")
tokenizer.save_pretrained("out")
"""
MODULE = """\
model = FastLanguageModel.get_peft_model(
    model,
    r={rank},
    target_modules={targets!r},
    lora_alpha={alpha},
    lora_dropout={dropout},
    bias="none",
    use_gradient_checkpointing={checkpointing!r},
    random_state={seed},
    max_seq_length={seq_len},
    use_rslora={rslora},
)
"""
RENDER = """\


def rendered(row):
    return {"text": tokenizer.apply_chat_template(row["messages"], tokenize=False)}


data = data.map(rendered)
"""


def _script(
    settings: Mapping[str, Any], data: str, rows: WrittenRows | None, words: Mapping[str, Any],
    is_text: bool,
) -> str:  # fmt: skip
    ours, stage, both = settings["ours"], settings["stage"], settings["both"]
    on_answers = not is_text and both["on_answers"]
    named = optimizer(stage.optimizer).transformers
    lost = [*words["lost"], *([] if named else [f"optimizer ({stage.optimizer})"])]
    if ours.get("peft.use_dora"):
        lost.append("peft.use_dora (true): get_peft_model has no such argument; unsloth.yaml does")
    warmup = f"warmup_steps={both['warmup_steps']}"
    if both["warmup_steps"] is None:
        warmup = f"warmup_ratio={settings['warmup']:g}"
    files = {"train": f"{data}/{TRAIN}"}
    if rows is not None and rows.counts[TEST]:
        files["test"] = f"{data}/{TEST}"
    values = {
        "model": ours["model"], "seq_len": stage.seq_len, "seed": stage.seed,
        "in_4bit": stage.quantization == "nf4", "in_8bit": stage.quantization == "int8",
        "full": stage.update == "full", "remote": bool(ours["trust_remote_code"]), "files": files,
        "batch": stage.micro_batch_size, "accumulate": stage.grad_accum, "epochs": stage.epochs,
        "max_steps": both["max_steps"] or -1, "rate": stage.learning_rate,
        "scheduler": stage.scheduler, "warmup": warmup, "revision": ours["revision"],
        "decay": stage.weight_decay, "optim": named or "adamw_8bit", "packing": bool(stage.packing),
        "rank": both["rank"], "alpha": both["alpha"], "dropout": both["dropout"],
        "targets": settings["targets"], "rslora": both["rslora"],
        "checkpointing": "unsloth" if stage.gradient_checkpointing else False,
    }  # fmt: skip
    return SCRIPT.format(
        head="\n".join(_head_of_script(lost, words["notes"])),
        imports="\nfrom unsloth.chat_templates import train_on_responses_only" * on_answers,
        module=MODULE.format(**values) if stage.update == "lora" else "",
        render="" if is_text else RENDER,
        answers="trainer = train_on_responses_only(trainer)  # by the chat template\n" * on_answers,
        **values,
    )


def _head_of_script(lost: list[str], notes: list[str]) -> Iterator[str]:
    yield '"""Trains with Unsloth, in the folder of this file: python train.py"""'
    for line in (*(f"Not carried over: {one}" for one in lost), *notes):
        yield from commented(line)
