"""A reward model from pairs of a chosen and a rejected answer, under any update scheme: a base with
a head that gives one score.

The loss is that of the Bradley-Terry model of paired comparisons, as in InstructGPT
(arXiv:2203.02155, section 3.4). The result is a sequence classifier with one label:
AutoPeftModelForSequenceClassification or AutoModelForSequenceClassification loads it with
`num_labels=1`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import chain
from typing import Any

from advisor.ground.errors import InputError
from advisor.ground.files import text_of
from advisor.methods import methods
from trainers.evaluation import Subject
from trainers.evaluation.pairs import RewardModelEvaluator
from trainers.evaluation.saved_result import SCORES
from trainers.job import Model, Tokenizer
from trainers.job.job import Job
from trainers.rows import Prepared
from trainers.rows.preference import PAIRS, Pair, reward_columns
from trainers.stage.objective import Objective, Opened
from trainers.stage.run import trains
from trainers.start.loading import (
    check_same_module,
    load_base,
    read_adapter_config,
    register_method,
)
from trainers.start.model_files import reading
from trainers.updates import load_update

NO_MODULES = ("lm_head", "score", "classifier")  # heads: PEFT adds that of this model


class RewardModel(Objective[Pair]):
    """Learns to score the chosen answer of each pair higher."""

    config = "trl:RewardConfig"
    trained_by = "trl:RewardTrainer"
    kind = PAIRS
    columns = staticmethod(reward_columns)
    head = SCORES
    writes = False
    measures_loss = True
    logged = ("accuracy", "margin", "mean_reward")

    def rows(self, job: Job, tokenizer: Tokenizer) -> Prepared[Pair]:
        data: Prepared[Pair] = super().rows(job, tokenizer)
        reason = why_module_is_new(job, module_before(job))
        return replace(data, notes=(*data.notes, reason)) if reason else data

    def load(self, opened: Opened[Pair]) -> Any:
        """The model with a score head: a new one, or that of the reward model that the stage
        continues from.
        """
        from transformers import set_seed

        job, module = opened.job, module_before(opened.job)
        set_seed(job.stage.seed)  # the head starts from random numbers
        model = load_base(job, opened.device, job.whole_model(job.start), head=SCORES, num_labels=1)
        choose_padding(model, opened.tokenizer, opened.data)
        is_new = module is None or why_module_is_new(job, module)
        return model if is_new else with_module(job, model, module)

    def own_arguments(self, job: Job) -> dict[str, Any]:
        return {"max_length": None}

    def evaluator(self, subject: Subject[Pair]) -> RewardModelEvaluator:
        return RewardModelEvaluator(subject, scored_before=starts_from_scorer(subject.job))


# --------------------------------------------------------------------------- what it starts from


def module_before(job: Job) -> Any | None:
    """PEFT's config of the module that this stage continues from; None if it starts from whole
    weights.

    Raises InputError if its files cannot be read.
    """
    from peft import PeftConfig

    start = job.start
    if start is None or not (start / "adapter_config.json").is_file():
        return None
    register_method(read_adapter_config(start))
    with reading(start, "the adapter"):
        return PeftConfig.from_pretrained(str(start))


def starts_from_scorer(job: Job) -> bool:
    """Whether the stage continues from a reward model."""
    module = module_before(job)
    if module is not None or job.start is None:
        return module is not None and module.task_type == "SEQ_CLS"
    names = json.loads(text_of(job.start / "config.json")).get("architectures") or [""]
    return "ForSequenceClassification" in names[0]


def why_module_is_new(job: Job, module: Any | None) -> str:
    """Why the module of the reward model cannot start from that of the stage before, in words; ""
    if it does, or if there is none.

    A new module is no harm: PPO trains the policy's module further and only reads this one.
    """
    try:
        if module is not None and methods().update(job.stage.update).is_module:
            check_same_module(job, module, load_update(job.stage.update))
    except InputError as error:
        return f"the reward model's module starts from the base: {error.faults[0].headline}"
    return ""


def with_module(job: Job, model: Model, module: Any) -> Any:
    """The model with the module of the start folder, without a language head that was saved with
    it.

    Raises InputError if the module belongs to another model.
    """
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    start = job.start
    assert start is not None
    module.task_type, module.inference_mode = "SEQ_CLS", False
    own = getattr(module, "modules_to_save", None) or []
    module.modules_to_save = [name for name in own if name not in NO_MODULES] or None
    with reading(start, "the adapter"):
        saved = load_file(start / "adapter_model.safetensors")
        wrapped = get_peft_model(model, module)
        weights = {name: tensor for name, tensor in saved.items() if "lm_head" not in name}
        # A model that generates text has no score head, which PEFT wants to be in the file.
        weights = get_peft_model_state_dict(wrapped) | weights
        found = set_peft_model_state_dict(wrapped, weights)
    # PEFT loads a prefix separately and strictly, and still reports it as unexpected.
    if found.unexpected_keys and not module.is_prompt_learning:
        raise InputError(
            f"the module in {start} belongs to another model:"
            f" {found.unexpected_keys[0]} has no place in it",
            where=f"stage {job.stage.name}",
        )
    if methods().update(job.stage.update).is_module:
        return wrapped
    return wrapped.merge_and_unload().requires_grad_(True)


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
    used: set[int] = set()
    for row in chain(data.train, data.holdout):
        used.update(row.prompt_ids, row.chosen_ids, row.rejected_ids)
    added = sorted(tokenizer.get_added_vocab().values(), reverse=True)
    known = chain(added, sorted(tokenizer.get_vocab().values()))
    spare = next(token for token in known if token not in used)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(spare)
    config.pad_token_id = spare


train = trains(RewardModel)
