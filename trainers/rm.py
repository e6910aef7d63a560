"""A reward model from pairs of a chosen and a rejected answer, under any update scheme: a base with
a head that gives one score.

The loss is that of the Bradley-Terry model of paired comparisons, as in InstructGPT
(arXiv:2203.02155, section 3.4). The result is a sequence classifier with one label:
AutoPeftModelForSequenceClassification or AutoModelForSequenceClassification loads it with
`num_labels=1`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from advisor.ground.errors import InputError
from advisor.methods import methods
from trainers.evaluation import Subject
from trainers.evaluation.reward_model import RewardModelEvaluator
from trainers.evaluation.saved_result import SCORES, Probe, probe_row
from trainers.job.job import Job
from trainers.job.types import Model, Tokenizer
from trainers.rows import Prepared
from trainers.rows.preference import PAIRS, Pair, reward_columns
from trainers.rows.sequences import used_ids
from trainers.stage import run as stage
from trainers.stage.objective import Objective, Opened
from trainers.updates import load_update

HEAD_NAMES = ("score", "classifier")


class RewardModel(Objective[Pair]):
    """Learns to score the chosen answer of each pair higher."""

    config = "trl:RewardConfig"
    trained_by = "trainers.stage.trl_classes:Reward"
    kind = PAIRS
    columns = staticmethod(reward_columns)
    head = SCORES
    writes = False
    measures_loss = True
    logged = ("accuracy", "margin", "mean_reward")

    def rows(self, job: Job, tokenizer: Tokenizer) -> Prepared[Pair]:
        data: Prepared[Pair] = super().rows(job, tokenizer)
        reason = why_module_is_new(job)
        return replace(data, notes=(*data.notes, reason)) if reason else data

    def load(self, opened: Opened[Pair]) -> Any:
        return load_scorer(opened)

    def own_arguments(self, job: Job) -> dict[str, Any]:
        return {"max_length": None}

    def probe(self, job: Job, data: Prepared[Pair], tokenizer: Tokenizer) -> Probe:
        row = SimpleNamespace(input_ids=probe_row(data.train).input_ids)
        return Probe(row=row, pad_id=tokenizer.pad_token_id, head=SCORES)

    def evaluator(self, subject: Subject[Pair]) -> RewardModelEvaluator:
        return RewardModelEvaluator(subject, scored_before=start_task(subject.job) == "SEQ_CLS")


# --------------------------------------------------------------------------- what it starts from


def adapter_config(job: Job) -> dict[str, Any] | None:
    """The config of the module that this stage continues from; None if it starts from whole
    weights.
    """
    from trainers.start.loading import read_adapter_config

    start = job.start
    if start is None or not (start / "adapter_config.json").is_file():
        return None
    return read_adapter_config(start)


def start_task(job: Job) -> str | None:
    """SEQ_CLS if the stage continues from a reward model, CAUSAL_LM from a model that generates
    text, None from the plan's model.
    """
    if job.start is None:
        return None
    config = adapter_config(job)
    if config is not None:
        return str(config.get("task_type"))
    names = json.loads((job.start / "config.json").read_text("utf-8")).get("architectures") or [""]
    return "SEQ_CLS" if "ForSequenceClassification" in names[0] else "CAUSAL_LM"


def why_module_is_new(job: Job) -> str | None:
    """Why the module of the reward model cannot start from that of the stage before, in words; None
    if it does, or if there is none.

    A new module is no harm: PPO trains the policy's module further and only reads this one.
    """
    config = adapter_config(job)
    if config is None or not methods().update(job.stage.update).is_module:
        return None
    update = load_update(job.stage.update)
    config_class = update.config_class()
    kind = config_class().peft_type if config_class is not None else None
    name = job.entry.starts_from or str(job.start)
    if str(getattr(kind, "value", kind)) != config.get("peft_type"):
        return (
            f"the reward model's module starts from the base: that of {name} is a"
            f" {config.get('peft_type')} module, this one is {job.stage.update}"
        )
    for field, key in update.PLAN_KEYS.items():
        value = job.options.get(key)
        if (
            key in job.options
            and key != "target_modules"
            and value is not None
            and config.get(field) != value
        ):
            return (
                f"the reward model's module starts from the base: {key} is {config.get(field)} in"
                f" the module of {name} and {value} here"
            )
    return None


def load_scorer(opened: Opened[Pair]) -> Any:
    """The model with a score head: a new one, or that of the reward model that the stage continues
    from.
    """
    from transformers import set_seed

    from trainers.start.loading import load_base

    job = opened.job
    config = adapter_config(job)
    set_seed(job.stage.seed)  # the head starts from random numbers
    model = load_base(job, opened.device, job.whole_model(job.start), head=SCORES, num_labels=1)
    choose_padding(model, opened.tokenizer, opened.data)
    if config is None or why_module_is_new(job):
        return model
    return with_module(job, model, config)


def with_module(job: Job, model: Model, config: Mapping[str, Any]) -> Any:
    """The model with the module of the start folder, without a language head that was saved with
    it.

    Raises InputError if the module belongs to another model.
    """
    from peft import (
        PeftConfig,
        get_peft_model,
        get_peft_model_state_dict,
        set_peft_model_state_dict,
    )
    from safetensors.torch import load_file

    from trainers.start.loading import register_method
    from trainers.start.model_files import reading

    register_method(config)
    start = job.start
    assert start is not None
    with reading(start, "the adapter"):
        made = PeftConfig.from_pretrained(str(start))
        saved = load_file(start / "adapter_model.safetensors")
    made.task_type, made.inference_mode = "SEQ_CLS", False
    made.modules_to_save = [
        name
        for name in getattr(made, "modules_to_save", None) or []
        if name != "lm_head" and name not in HEAD_NAMES
    ] or None
    with reading(start, "the adapter"):
        wrapped = get_peft_model(model, made)
    weights = {name: tensor for name, tensor in saved.items() if "lm_head" not in name}
    # PEFT wants every module that it saves to be in the file. A model that generates text has no
    # score head, so the new one is used.
    heads = {
        key: tensor.clone()
        for key, tensor in get_peft_model_state_dict(wrapped).items()
        if set(key.split(".")) & set(HEAD_NAMES)
    }
    with reading(start, "the adapter"):
        found = set_peft_model_state_dict(wrapped, heads | weights)
    # PEFT loads a prefix separately and strictly, and still reports it as unexpected.
    if found.unexpected_keys and not made.is_prompt_learning:
        raise InputError(
            f"the module in {start} belongs to another model:"
            f" {found.unexpected_keys[0]} has no place in it",
            where=f"stage {job.stage.name}",
        )
    if methods().update(job.stage.update).is_module:
        return wrapped
    merged = wrapped.merge_and_unload()
    for parameter in merged.parameters():
        parameter.requires_grad_(True)
    return merged


def choose_padding(model: Model, tokenizer: Tokenizer, data: Prepared[Pair]) -> None:
    """Let model and tokenizer agree on a padding token with which the plainly loaded result gives
    the same scores.

    transformers reads the score at the last token that is not padding. If the base's config names
    no padding token, it reads a single text at its very last token; so padding must be a token that
    no row ends with: the end token would move the place by one.
    """
    config = model.config.get_text_config()
    if config.pad_token_id is not None and config.pad_token_id >= 0:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)
        return
    used = {
        token
        for rows in (data.train, data.holdout)
        for name in ("prompt_ids", "chosen_ids", "rejected_ids")
        for token in used_ids(rows, name)
    }
    spare = next(
        (
            token
            for token in sorted(tokenizer.get_added_vocab().values(), reverse=True)
            if token not in used
        ),
        None,
    )
    if spare is None:
        spare = next(token for token in sorted(tokenizer.get_vocab().values()) if token not in used)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(spare)
    config.pad_token_id = spare


def train(job: Job) -> None:
    """Train the stage, or measure two steps of it, and write the result into its folder."""
    stage.train(job, RewardModel())
