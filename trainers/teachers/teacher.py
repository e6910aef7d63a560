"""The teacher of a distillation: a model whose next-token distributions are learned.

Both distributions have to be over the same tokens, so the teacher's tokenizer is compared with the
student's before any weight is read. Its output matrix may be padded to another size.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from advisor.ground.errors import InputError
from advisor.methods import methods
from advisor.model_files.folder import tokenizer_faults
from advisor.plan.entries import path_from
from advisor.record.content import folder_digest
from trainers.job.job import Job, model_source
from trainers.job.types import Device, Tokenizer
from trainers.step import settings

# Tokens that one of two tokenizers may lack: special tokens that a later release of a model added.
MISSING_SHARE = 0.005
TEXTS = (
    "train on the teacher's texts instead: let it answer your requests with its own tools, and give"
    " the answers to a stage with objective sft"
)


def teacher_source(job: Job) -> str:
    """The folder or hub id of the stage's teacher.

    Raises InputError if the stage names none, or a folder that holds no model.
    """
    named = job.options.get("teacher")
    at = f"stage {job.stage.name}"
    if not named:
        raise InputError(
            "objective distill needs a teacher",
            where=at,
            allowed="teacher: a folder or a hub id, such as Qwen/Qwen3-8B",
        )
    path = path_from(job.folder, str(named))
    if (path / "adapter_config.json").is_file():
        return str(path.resolve())
    try:
        return model_source(job.folder, str(named))
    except InputError as error:
        what = error.faults[0].headline.removeprefix("model: ")
        raise InputError(what, where=f"{at}: teacher", allowed=error.faults[0].allowed) from None


def is_own_base(job: Job) -> bool:
    """Whether the teacher is the frozen base of the module that is trained: one copy is enough."""
    return (
        methods().update(job.stage.update).is_module
        and teacher_source(job) == job.base_model
        and job.options.get("teacher_quantization") == job.stage.quantization
    )


def teacher_digest(job: Job) -> str:
    """A digest of the teacher's files; of its name if it is one of the hub."""
    source = teacher_source(job)
    if Path(source).is_dir():
        return folder_digest(source)
    return hashlib.sha256(source.encode()).hexdigest()


def check_same_tokens(job: Job, tokenizer: Tokenizer) -> None:
    """Raise InputError if the teacher's tokenizer gives its tokens other numbers than the
    student's.
    """
    from transformers import AutoTokenizer

    from trainers.start.loading import read_adapter_config
    from trainers.start.model_files import check_files, reading

    source = teacher_source(job)
    folder = Path(source)
    if (folder / "adapter_config.json").is_file() and not (
        folder / "tokenizer_config.json"
    ).is_file():
        source = str(read_adapter_config(folder).get("base_model_name_or_path"))
    if source == job.base_model:
        return
    check_files(source, tokenizer_faults)
    with reading(source, "the teacher's tokenizer"):
        other = AutoTokenizer.from_pretrained(source, trust_remote_code=job.plan.trust_remote_code)
    mine, theirs = tokenizer.get_vocab(), other.get_vocab()
    names = {number: token for token, number in theirs.items()}
    wrong = [
        token
        for token, number in mine.items()
        if theirs.get(token, number) != number or names.get(number, token) != token
    ]
    lacking = len(mine.keys() ^ theirs.keys())
    if not wrong and lacking <= MISSING_SHARE * len(mine):
        return
    example = f", for example {wrong[0]!r}" if wrong else ""
    raise InputError(
        f"the teacher {source} has another vocabulary ({len(theirs):,}"
        f" tokens) than the model that is trained ({len(mine):,}): {len(wrong):,} tokens have other"
        f" numbers{example}, and {lacking:,} are in one of them alone",
        where=f"stage {job.stage.name}",
        allowed="a teacher of the same model family",
        hint=TEXTS,
    )


def load_teacher(job: Job, device: Device) -> Any:
    """The teacher, frozen, without PEFT's wrapping.

    Raises InputError if its files cannot be read, or its module cannot be merged into its base.
    """
    from trainers.start.loading import load_frozen, read_adapter_config, update_of

    source = base = teacher_source(job)
    # Nothing of it is trained, so that mixed precision needs no float32 weights of it.
    dtype = settings.autocast_dtype(job, device) or job.stage.weights_dtype
    stage = replace(
        job.stage,
        quantization=job.options.get("teacher_quantization"),
        weights_dtype=dtype,  # type: ignore[arg-type]
    )
    own = replace(job, entry=replace(job.entry, stage=stage))
    is_module = (Path(source) / "adapter_config.json").is_file()
    if is_module:
        config = read_adapter_config(Path(source))
        module, base = update_of(config), str(config.get("base_model_name_or_path"))
        if config.get("task_type") != "CAUSAL_LM" or module is None or not module.merges:
            raise InputError(
                f"{source} holds a module that cannot be merged into its base",
                where=f"stage {job.stage.name}: teacher",
                allowed="a LoRA or a whole model that writes",
            )
    teacher = load_frozen(own, device, source, base=base)
    return teacher.merge_and_unload() if is_module else teacher
