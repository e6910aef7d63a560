"""Reward models: their folder, whether they fit the policy, loading them, and their scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from advisor.ground.errors import InputError
from advisor.methods import objective
from advisor.model_files.folder import base_faults, folder_faults, tokenizer_faults
from trainers.job.evaluating import evaluating
from trainers.job.job import Job
from trainers.job.types import Device, Model, Tokenizer
from trainers.rewards.scoring import Answer
from trainers.rows.packing import head_outputs


def reward_folder(job: Job, named: str) -> Path:
    """The folder of a reward model: the result of a stage of the plan, or a folder.

    Raises InputError if there is none.

    Args:
        named: What the stage says.
    """
    stages = {item.name: item for item in job.plan.stages}
    if named in stages:
        if not objective(stages[named].objective).scores:
            raise InputError(
                f"reward_model names the stage {named}, whose objective is"
                f" {stages[named].objective}",
                where=f"stage {job.stage.name}",
                allowed="a stage with objective rm, or a folder",
            )
        folder = job.run / "stages" / (f"{named}-{job.task}" if job.task else named)
    else:
        folder = job.folder / Path(named).expanduser()
    if not any((folder / file).is_file() for file in ("adapter_config.json", "config.json")):
        hint = "run that stage first" if named in stages else ""
        raise InputError(
            f"{folder} holds no model",
            where=f"stage {job.stage.name}: reward_model",
            allowed="a stage with objective rm, or the folder of a reward model",
            hint=hint,
        )
    return folder


def check_same_tokens(job: Job, tokenizer: Tokenizer, folder: Path) -> None:
    """Raise InputError if the reward model has another tokenizer than the policy."""
    from transformers import AutoTokenizer

    from trainers.start.model_files import check_files, reading

    if not (folder / "tokenizer_config.json").is_file():
        raise InputError(
            f"{folder} has no tokenizer",
            where=f"stage {job.stage.name}: reward_model",
            hint="save the tokenizer it was trained with into that folder",
        )
    check_files(str(folder), tokenizer_faults)
    with reading(folder, "the tokenizer"):
        other = AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=job.plan.trust_remote_code
        )
    if other.get_vocab() != tokenizer.get_vocab():
        raise InputError(
            f"the reward model in {folder} has another tokenizer"
            f" ({len(other):,} tokens) than the model it would score ({len(tokenizer):,})",
            where=f"stage {job.stage.name}",
            hint="train the reward model on the same base: objective rm in the same plan",
        )


def load_reward_model(job: Job, folder: Path, device: Device) -> Any:
    """The reward model, frozen, in the stage's dtype.

    Raises InputError if it gives no single score.
    """
    import torch
    import transformers

    from trainers.start.loading import placement
    from trainers.start.model_files import check_files, check_loaded, reading

    check_files(str(folder), folder_faults)
    options: dict[str, Any] = {
        "dtype": getattr(torch, job.stage.weights_dtype),
        "attn_implementation": job.stage.attention,
        "num_labels": 1,
        "trust_remote_code": job.plan.trust_remote_code,
        **placement(device),
    }
    if (folder / "adapter_config.json").is_file():
        model = _with_adapter(job, folder, device, options)
    else:
        labels = json.loads((folder / "config.json").read_text("utf-8"))
        names = labels.get("architectures")
        kind = str(names[0]) if isinstance(names, list) and names else "a model"
        if "ForSequenceClassification" not in kind:
            raise InputError(
                f"{folder} holds {kind}, which gives no scores",
                where=f"stage {job.stage.name}: reward_model",
                allowed="a model with a head for one score",
            )
        with reading(folder, "the reward model"):
            loader = transformers.AutoModelForSequenceClassification
            model, info = loader.from_pretrained(
                str(folder), output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
        check_loaded(model, info, str(folder), new_head=False)
        model = model.to(device)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval()


def _with_adapter(job: Job, folder: Path, device: Device, options: dict[str, Any]) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    from trainers.start.loading import (
        keep_weights_unpacked,
        quantization_config,
        read_adapter_config,
        register_method,
    )
    from trainers.start.model_files import check_adapter, check_files, reading

    config = read_adapter_config(folder)
    if config.get("task_type") != "SEQ_CLS":
        raise InputError(
            f"the module in {folder} generates text and gives no scores",
            where=f"stage {job.stage.name}: reward_model",
            allowed="the result of a stage with objective rm",
        )
    register_method(config)
    source = job.whole_model(folder)
    check_files(source, base_faults)
    if source == job.base_model and job.plan.revision:
        options = {**options, "revision": job.plan.revision}
    quantized = quantization_config(job)
    if quantized is not None:
        options = {**options, "quantization_config": quantized, "device_map": {"": device}}
    with reading(folder, "the adapter"):
        base = AutoModelForSequenceClassification.from_pretrained(source, **options)
        model = PeftModel.from_pretrained(base, str(folder))
        check_adapter(model, folder)
    return keep_weights_unpacked(model) if quantized is not None else model.to(device)


def model_scores(model: Model, answers: Sequence[Answer], *, at_once: int) -> list[float]:
    """The reward model's score of each prompt with its answer.

    Args:
        at_once: How many of the longest texts go through the model together.
    """
    if not answers:
        return []
    texts = [[*answer.prompt_ids, *answer.answer_ids] for answer in answers]
    pad_id = model.config.get_text_config().pad_token_id
    with evaluating(model):
        scores: list[float] = head_outputs(model, texts, pad_id, at_once=at_once)[:, 0].tolist()
    return scores
