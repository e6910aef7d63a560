"""Where the reward of an answer comes from: a built-in verifier, a reward model, or a function of
the user.

A reward takes a batch of answers and gives a number for each. The notes of the run name it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from advisor.ground.errors import Fault, InputError, TrainingFailed
from advisor.ground.model_folder import base_faults, folder_faults, tokenizer_faults
from advisor.methods import objective
from trainers.frame.evaluating import evaluating
from trainers.frame.job import Job
from trainers.frame.types import Device, Model, Tokenizer
from trainers.prepare.prompts import Prompt
from trainers.rewards.user_function import load_user_reward
from trainers.rewards.verifiers import matches, same_answer, schema_validator

SOURCES = ("verifier", "reward_model", "reward")


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to be scored."""

    prompt: str  # as the template writes it
    text: str  # what the model wrote, without special tokens
    expected: str | None  # the answer in the data
    prompt_ids: Sequence[int]
    answer_ids: Sequence[int]


@dataclass
class Reward:
    """A number for each answer, and a count of how much they differ."""

    name: str  # in words, for the notes
    score: Callable[[Sequence[Answer]], list[float]]
    seen: int = 0
    values: set[float] = field(default_factory=set)

    def __call__(self, answers: Sequence[Answer], *, counts: bool = True) -> list[float]:
        """The rewards. Raises TrainingFailed if one is missing or not finite.

        Args:
            counts: Whether these answers count for `constant`.
        """
        found = [float(value) for value in self.score(answers)]
        if len(found) != len(answers):
            raise TrainingFailed(
                f"{self.name} gave {len(found)} rewards for {len(answers)} answers",
                hint="give one number for each answer",
            )
        wrong = [value for value in found if not math.isfinite(value)]
        if wrong:
            raise TrainingFailed(
                f"{self.name} gave {wrong[0]} as a reward",
                hint="give a finite number for every answer, even for a bad one",
            )
        if counts:
            self.seen += len(found)
            if len(self.values) < 2:
                self.values.update(
                    found[:1] if all(value == found[0] for value in found) else found[:]
                )
        return found

    @property
    def constant(self) -> bool:
        """True if all answers so far got the same reward: then nothing can be learned."""
        return self.seen > 0 and len(self.values) == 1

    def constant_text(self) -> str:
        """What was constant, in words."""
        return (
            f"{self.name} gave {next(iter(self.values)):g} to all {self.seen:,} answers of the"
            " training"
        )


# --------------------------------------------------------------------------- which


def earlier_reward_model(job: Job) -> str | None:
    """The name of the latest stage before this one that trains a reward model."""
    before = []
    for item in job.plan.stages:
        if item.name == job.stage.name:
            break
        if objective(item.objective).scores:
            before.append(item.name)
    return before[-1] if before else None


def reward_source(job: Job, prompts: Sequence[Prompt] | None = None) -> str | None:
    """verifier, reward_model or reward: what the stage says, else the reward model of an earlier
    stage, else the verifiable answers of the data; None if there is nothing.
    """
    for name in SOURCES:
        if job.options.get(name):
            return name
    if earlier_reward_model(job):
        return "reward_model"
    return (
        "verifier"
        if prompts is not None and prompts and all(row.verifiable for row in prompts)
        else None
    )


def reward_faults(job: Job) -> list[Fault]:
    """What is wrong with the keys that choose the reward."""
    options, at = job.options, f"stage {job.stage.name}:"
    given = [name for name in SOURCES if options.get(name)]
    faults = []
    if len(given) > 1:
        faults.append(
            Fault(
                what=f"{at} {' and '.join(given)} both say where the reward comes from",
                allowed=f"one of {', '.join(SOURCES)}",
            )
        )
    verifier = options.get("verifier")
    for key, owner, content in (
        ("pattern", "regex", "a regular expression"),
        ("schema", "json_schema", "a file with a JSON schema"),
    ):
        if options.get(key) and verifier != owner:
            faults.append(
                Fault(
                    what=f"{at} '{key}' has no effect: verifier is {verifier or 'not set'}",
                    allowed=f"{key} with verifier: {owner}",
                )
            )
        if verifier == owner and not options.get(key):
            faults.append(
                Fault(
                    what=f"{at} verifier {owner} needs the key {key}",
                    hint=f"set {key}: {content}",
                )
            )
    if options.get("pattern"):
        try:
            re.compile(options["pattern"].replace("{answer}", "x"))
        except re.error as error:
            faults.append(Fault(what=f"{at} pattern is not a regular expression: {error}"))
    if options.get("reward"):
        faults += _function_faults(job, options["reward"], at)
    if options.get("schema") and not (job.folder / options["schema"]).is_file():
        faults.append(
            Fault(
                what=f"{at} schema: no such file: {job.folder / options['schema']}",
                allowed="a file with a JSON schema, relative to the plan",
            )
        )
    return faults


def _function_faults(job: Job, reward: str, at: str) -> list[Fault]:
    path, _, name = reward.rpartition(":")
    if not path or not name.isidentifier():
        return [Fault(what=f"{at} reward is '{reward}'", allowed="file.py:function")]
    file = job.folder / Path(path).expanduser()
    return (
        []
        if file.is_file()
        else [
            Fault(
                what=f"{at} reward: no such file: {file}",
                allowed="file.py:function, relative to the plan",
            )
        ]
    )


def build_reward(
    job: Job, tokenizer: Tokenizer, prompts: Sequence[Prompt], device: Device
) -> Reward:
    """The stage's reward. Raises InputError if nothing says what it is, or it does not fit the
    model.
    """
    source = reward_source(job, prompts)
    if source == "verifier":
        return _verifier(job, prompts)
    if source == "reward":
        return _user_function(job)
    if source == "reward_model":
        return _reward_model(job, tokenizer, device)
    raise InputError(
        f"stage {job.stage.name}: nothing says what reward an answer gets, and not every row of the"
        " data has an answer that can be verified",
        allowed=(
            "verifier: exact, regex or json_schema; reward_model: a folder or a stage; reward:"
            " file.py:function"
        ),
        hint="a reward model is trained with objective rm on pairs",
    )


def source_note(job: Job, prompts: Sequence[Prompt]) -> str | None:
    """What the notes of the run say about the reward; None if nothing gives one."""
    source = reward_source(job, prompts)
    given = job.options.get(source) if source else None
    if source == "reward":
        return f"the reward is the user's own code: {given}"
    if source == "reward_model":
        return f"the reward is the model {given or earlier_reward_model(job)}"
    if source == "verifier":
        return (
            f"the reward is the verifier {given}"
            if given
            else (
                "the reward is the verifier exact, since every row has an answer that can be"
                " verified"
            )
        )
    return None


# --------------------------------------------------------------------------- verifiers


def _verifier(job: Job, prompts: Sequence[Prompt]) -> Reward:
    kind = job.options.get("verifier") or "exact"
    pattern = job.options.get("pattern") or ""
    needs_answer = kind == "exact" or "{answer}" in pattern
    missing = [row.number for row in prompts if row.answer is None]
    if needs_answer and missing:
        listed = ", ".join(map(str, missing[:5]))
        raise InputError(
            f"stage {job.stage.name}: verifier {kind} needs an answer in every row, and"
            f" {len(missing):,} have none (rows {listed}{', ...' if len(missing) > 5 else ''})"
        )
    if kind == "exact":
        return Reward(
            "verifier exact",
            lambda answers: [
                float(same_answer(item.text, item.expected or "")) for item in answers
            ],
        )
    if kind == "regex":
        return Reward(
            "verifier regex",
            lambda answers: [float(matches(item.text, pattern, item.expected)) for item in answers],
        )
    valid = schema_validator(job.folder / str(job.options["schema"]))
    return Reward(
        "verifier json_schema", lambda answers: [float(valid(item.text)) for item in answers]
    )


# --------------------------------------------------------------------------- a function of the user


def _user_function(job: Job) -> Reward:
    score = load_user_reward(str(job.options["reward"]), job.folder)
    return Reward(
        f"reward {job.options['reward']}",
        lambda answers: score(
            [item.prompt for item in answers],
            [item.text for item in answers],
            [item.expected for item in answers],
        ),
    )


# --------------------------------------------------------------------------- a reward model


def reward_folder(job: Job) -> Path:
    """The folder of the stage's reward model: the result of a stage of the plan, or a folder it
    names.

    Raises InputError if there is none.
    """
    named = str(job.options.get("reward_model") or earlier_reward_model(job))
    stages = {item.name: item for item in job.plan.stages}
    if named in stages:
        if not objective(stages[named].objective).scores:
            raise InputError(
                f"stage {job.stage.name}: reward_model names the stage {named}, whose objective is"
                f" {stages[named].objective}",
                allowed="a stage with objective rm, or a folder",
            )
        folder = job.run / "stages" / (f"{named}-{job.task}" if job.task else named)
    else:
        folder = job.folder / Path(named).expanduser()
    if not any((folder / file).is_file() for file in ("adapter_config.json", "config.json")):
        hint = "run that stage first" if named in stages else ""
        raise InputError(
            f"stage {job.stage.name}: reward_model: {folder} holds no model",
            allowed="a stage with objective rm, or the folder of a reward model",
            hint=hint,
        )
    return folder


def check_same_tokens(job: Job, tokenizer: Tokenizer, folder: Path) -> None:
    """Raise InputError if the reward model has another tokenizer than the policy."""
    from transformers import AutoTokenizer

    from trainers.frame.model_files import check_files, reading

    if not (folder / "tokenizer_config.json").is_file():
        raise InputError(
            f"stage {job.stage.name}: reward_model: {folder} has no tokenizer",
            hint="save the tokenizer it was trained with into that folder",
        )
    check_files(str(folder), tokenizer_faults)
    with reading(folder, "the tokenizer"):
        other = AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=job.plan.trust_remote_code
        )
    if other.get_vocab() != tokenizer.get_vocab():
        raise InputError(
            f"stage {job.stage.name}: the reward model in {folder} has another tokenizer"
            f" ({len(other):,} tokens) than the model it would score ({len(tokenizer):,})",
            hint="train the reward model on the same base: objective rm in the same plan",
        )


def load_reward_model(job: Job, folder: Path, device: Device) -> Any:
    """The reward model, frozen, in the stage's dtype.

    Raises InputError if it gives no single score.
    """
    import torch
    import transformers

    from trainers.frame.loading import placement
    from trainers.frame.model_files import check_files, check_loaded, reading

    check_files(str(folder), partial(folder_faults, writes=False))
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
                f"stage {job.stage.name}: reward_model: {folder} holds {kind},"
                " which gives no scores",
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
    from peft import AutoPeftModelForSequenceClassification

    from trainers.frame.loading import (
        keep_weights_unpacked,
        quantization_config,
        read_adapter_config,
        register_method,
    )
    from trainers.frame.model_files import check_adapter, check_files, reading

    config = read_adapter_config(folder)
    if config.get("task_type") != "SEQ_CLS":
        raise InputError(
            f"stage {job.stage.name}: reward_model: the module in {folder} generates text and"
            " gives no scores",
            allowed="the result of a stage with objective rm",
        )
    register_method(config)
    check_files(str(config.get("base_model_name_or_path")), partial(base_faults, writes=False))
    quantized = quantization_config(job)
    if quantized is not None:
        options = {**options, "quantization_config": quantized, "device_map": {"": device}}
    with reading(folder, "the adapter"):
        model = AutoPeftModelForSequenceClassification.from_pretrained(str(folder), **options)
        check_adapter(model, folder)
    return keep_weights_unpacked(model) if quantized is not None else model.to(device)


def _reward_model(job: Job, tokenizer: Tokenizer, device: Device) -> Reward:
    folder = reward_folder(job)
    check_same_tokens(job, tokenizer, folder)
    model = load_reward_model(job, folder, device)
    return Reward(
        f"reward model {folder.name}",
        lambda answers: model_scores(model, answers, at_once=job.stage.micro_batch_size),
    )


def model_scores(model: Model, answers: Sequence[Answer], *, at_once: int) -> list[float]:
    """The reward model's score of each prompt with its answer.

    Args:
        at_once: How many texts go through the model together.
    """
    import torch

    device = next(model.parameters()).device
    pad = model.config.get_text_config().pad_token_id
    found: list[float] = []
    with evaluating(model):
        # Without a padding token in its config a model scores single texts alone.
        for start in range(0, len(answers), at_once if pad is not None else 1):
            texts = [
                [*item.prompt_ids, *item.answer_ids]
                for item in answers[start : start + (at_once if pad is not None else 1)]
            ]
            width = max(map(len, texts))
            ids = torch.tensor(
                [text + [pad or 0] * (width - len(text)) for text in texts], device=device
            )
            mask = torch.tensor(
                [[1] * len(text) + [0] * (width - len(text)) for text in texts], device=device
            )
            found += model(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist()
    return found
