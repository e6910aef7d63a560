"""Reward models: their folder, whether they fit the policy, loading them, and their scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from advisor.ground.errors import InputError
from advisor.methods import objective
from advisor.model_files.folder import folder_faults, tokenizer_faults
from trainers.job.evaluating import evaluating
from trainers.job.job import Job
from trainers.job.types import Device, Model, Tokenizer
from trainers.rewards.scoring import Answer
from trainers.rows.packing import head_outputs

SCORES = "SequenceClassification"


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
    """The reward model, frozen, in the stage's dtype; a whole one is not quantised.

    Raises InputError if it gives no single score.
    """
    from trainers.start.loading import load_frozen, read_adapter_config
    from trainers.start.model_files import check_files

    check_files(str(folder), folder_faults)
    if (folder / "adapter_config.json").is_file():
        is_scoring = read_adapter_config(folder).get("task_type") == "SEQ_CLS"
        what, base = "the module in it generates text", job.whole_model(folder)
    else:
        names = json.loads((folder / "config.json").read_text("utf-8")).get("architectures")
        kind = str(names[0]) if isinstance(names, list) and names else "a model"
        is_scoring = "ForSequenceClassification" in kind
        what, base = f"it holds {kind}", str(folder)
        job = replace(job, entry=replace(job.entry, stage=replace(job.stage, quantization=None)))
    if not is_scoring:
        raise InputError(
            f"{folder} gives no scores: {what}",
            where=f"stage {job.stage.name}: reward_model",
            allowed="the result of a stage with objective rm, or a model with a head for one score",
        )
    return load_frozen(job, device, str(folder), base=base, head=SCORES, num_labels=1)


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
