"""The four roles of PPO.

With modules they share one frozen base: policy, reference, reward and value are adapters on it,
with two small heads.

| role | with a module | with a model that is trained whole |
| --- | --- | --- |
| policy | the module, trained | the model, trained |
| reference | the module it started from, frozen; else the base alone | a frozen copy |
| reward | the reward model's module and head, frozen | the reward model, frozen |
| value | a copy of the reward's (else of the policy's) module and head, trained | a copy, trained |

A reward model on another base, or trained whole, is loaded beside it. Its tokenizer has to be that
of the policy.

Dimensions: B answers of a batch, S tokens of prompt and answer together, N answer tokens of a batch
laid end to end, H hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from advisor.ground.errors import InputError
from advisor.methods import methods
from trainers.job import AdaptedModel, Device
from trainers.job.job import Job
from trainers.ppo.rollout import Batch, answer_log_probs, answer_states, hidden_states
from trainers.rewards.sources import check_same_tokens, load_reward_model
from trainers.stage.objective import Opened
from trainers.start.loading import load_model, read_adapter_config
from trainers.start.model_files import reading
from trainers.step.answer_loss import add_hidden_call
from trainers.updates.experts import unwrapped
from trainers.updates.lora import HEADS

POLICY, REFERENCE, REWARD, VALUE = "policy", "reference", "reward", "value"
ADAPTERS = {POLICY: "default", REFERENCE: "reference", REWARD: "reward", VALUE: "value"}
BASE = "(base)"


@dataclass
class RoleModel:
    model: Any
    # The adapter on it that plays the role; None: the model itself; BASE: it without adapters.
    adapter: str | None = None
    # From a hidden state to a number: of the value, and of a reward model on the shared base.
    head: Any = None


class Roles:
    """The model of each role. `use` switches to one; methods compute the numbers of the roles."""

    def __init__(self, parts: dict[str, RoleModel], *, shared: bool) -> None:
        self.parts, self.shared = parts, shared
        self._on: str | None = None
        asked = [part for role, part in parts.items() if role != REWARD or part.head is not None]
        for base in {id(base): base for base in (unwrapped(one.model) for one in asked)}.values():
            add_hidden_call(base)

    @contextmanager
    def use(self, role: str) -> Iterator[Any]:
        part = self.parts[role]
        if part.adapter is None:
            yield part.model
        elif part.adapter == BASE:
            try:
                with part.model.disable_adapter():
                    yield part.model
            finally:
                self._on = None  # PEFT has switched its adapters on again
        else:
            if self._on != part.adapter:
                part.model.set_adapter(part.adapter, inference_mode=role not in (POLICY, VALUE))
                self._on = part.adapter
            yield part.model

    def log_probs(
        self, role: str, batch: Batch, temperature: float, *, with_entropy: bool = False
    ) -> tuple[Any, Any | None]:
        """(log-probability of each answer token: N, entropy of its distribution: N or None) under
        the policy or the reference model.
        """
        with self.use(role) as model:
            return answer_log_probs(model, batch, temperature, with_entropy=with_entropy)

    def values(self, batch: Batch) -> Any:
        """The value before each answer token: N."""
        with self.use(VALUE) as model:
            return apply_head(self.parts[VALUE].head, answer_states(model, batch))

    def scores(self, batch: Batch) -> Any:
        """The score of each answer with its prompt, by the reward model on the shared base: B."""
        part = self.parts[REWARD]
        with self.use(REWARD) as model:
            hidden_BSH = hidden_states(model, batch)
            pad_id = unwrapped(model).config.get_text_config().pad_token_id
            last_B = last_tokens(batch.ids_BS, batch.attention_BS, pad_id)
            return apply_head(part.head, hidden_BSH[range(len(last_B)), last_B])

    def trained(self, role: str) -> dict[str, Any]:
        part = self.parts[role]
        found = {
            name: parameter
            for name, parameter in part.model.named_parameters()
            if part.adapter is None or part.adapter in name.split(".")
        }
        if part.head is not None:
            found |= {f"head.{name}": one for name, one in part.head.named_parameters()}
        return found

    def back_to_policy(self) -> None:
        """Leave the policy's model as anybody would ask it."""
        with self.use(POLICY):
            pass

    def models(self) -> list[Any]:
        return list({id(part.model): part.model for part in self.parts.values()}.values())


def apply_head(head: Any, hidden_NH: Any) -> Any:
    """The outputs of a small head on hidden states: N, in float32, because autocast would round
    every reward and value to three digits.
    """
    with torch.autocast(hidden_NH.device.type, enabled=False):
        return head(hidden_NH.float())[:, 0]


def last_tokens(ids_BS: Any, attention_BS: Any, pad_id: int | None) -> Any:
    """Where transformers' models for sequence classification read the score of each text: B.

    That is the rightmost token that is not the padding token; if padding and end token are the
    same, the one before the end.
    """
    places_S = torch.arange(ids_BS.shape[1], device=ids_BS.device)
    counts_BS = attention_BS.bool() if pad_id is None else attention_BS.bool() & (ids_BS != pad_id)
    return (places_S * counts_BS).argmax(-1)


# --------------------------------------------------------------------------- building


def build_roles(opened: Opened[Any], reward: Path | None) -> tuple[Roles, list[str]]:
    """(the roles of a stage, notes on which models they share).

    Raises InputError if the reward model or an earlier module does not fit the policy.

    Args:
        opened: The stage.
        reward: The reward model's folder; None: a verifier or a function gives the reward.
    """
    job, device, update, tokenizer = opened.job, opened.device, opened.update, opened.tokenizer
    if reward is not None:
        check_same_tokens(job, tokenizer, reward)
    if not methods().update(job.stage.update).is_module:
        return _four_models(opened, reward)
    from peft import PeftModel, get_peft_model

    model, notes = load_model(job, device, update), []
    if isinstance(model, PeftModel):
        copy_module(model, POLICY, REFERENCE)
        reference = RoleModel(model, ADAPTERS[REFERENCE])
    else:
        model = get_peft_model(model, update.peft_config(job.stage, job.options, model))
        rows = [SimpleNamespace(input_ids=row.prompt_ids) for row in opened.data.train]
        started = update.start(job.stage, job.options, model, tokenizer, cast(Any, rows))
        notes += [started] if started else []
        reference = RoleModel(model, BASE)
    parts = {POLICY: RoleModel(model, ADAPTERS[POLICY]), REFERENCE: reference}
    width, weight = model.config.get_text_config().hidden_size, None
    if reward is not None and _same_base(job, model, reward):
        weight = add_module(model, reward, ADAPTERS[REWARD])
        copy_module(model, REWARD, VALUE)
        head = score_head(width, weight, device, trained=False)
        parts[REWARD] = RoleModel(model, ADAPTERS[REWARD], head)
        notes.append("policy, reference, reward and value share one base")
    else:
        copy_module(model, POLICY, VALUE)
        beside = ""
        if reward is not None:
            parts[REWARD] = RoleModel(load_reward_model(job, reward, device))
            beside = "the reward model has another one, loaded beside it: "
        notes.append(
            f"policy, reference and value share one base; {beside}the value starts untrained"
        )
    head = score_head(width, weight, device, trained=True)
    parts[VALUE] = RoleModel(model, ADAPTERS[VALUE], head)
    return Roles(parts, shared=True), notes


def _four_models(opened: Opened[Any], reward: Path | None) -> tuple[Roles, list[str]]:
    job, device = opened.job, opened.device
    policy = load_model(job, device, opened.update)
    parts = {POLICY: RoleModel(policy), REFERENCE: RoleModel(copy.deepcopy(policy))}
    value: Any = None
    weight: Any = None
    if reward is not None:
        parts[REWARD] = RoleModel(load_reward_model(job, reward, device))
        value = copy.deepcopy(parts[REWARD].model)
        value = value.merge_and_unload() if hasattr(value, "merge_and_unload") else value
    if hasattr(value, "score"):
        weight = value.score.weight
        del value.score  # its weight continues in a head with a bias
    else:
        value = copy.deepcopy(policy)
    width = policy.config.get_text_config().hidden_size if weight is None else weight.shape[1]
    parts[VALUE] = RoleModel(value, None, score_head(width, weight, device, trained=True))
    for role, part in parts.items():
        for parameter in part.model.parameters():
            parameter.requires_grad_(role in (POLICY, VALUE))
    return Roles(parts, shared=False), [f"{len(parts)} models in memory: {', '.join(parts)}"]


def score_head(width: int, weight: Any, device: Device, *, trained: bool) -> Any:
    """A linear layer from a hidden state to a number, in float32, with this weight, else with
    zeros.
    """
    head = torch.nn.Linear(width, 1, device=device, dtype=torch.float32)
    with torch.no_grad():
        head.bias.zero_()
        head.weight.zero_() if weight is None else head.weight.copy_(weight)
    return head.requires_grad_(trained)


def add_module(model: AdaptedModel, folder: Path, name: str) -> Any:
    """Add a saved module to the base, under a name; the weight of its score head, or None if it has
    none.

    Raises InputError if the module is of another kind or does not fit this base.
    """
    from peft import PeftConfig, load_peft_weights, set_peft_model_state_dict

    with reading(folder, "the adapter"):
        config = PeftConfig.from_pretrained(str(folder))
        weights = load_peft_weights(str(folder), device="cpu")
    config.task_type, config.inference_mode = "CAUSAL_LM", True
    if getattr(config, "modules_to_save", None):
        config.modules_to_save = [
            module for module in config.modules_to_save if module not in HEADS
        ] or None
    heads = {key: weights.pop(key) for key in list(weights) if set(key.split(".")) & set(HEADS)}
    try:
        model.add_adapter(name, config)
        result = set_peft_model_state_dict(model, weights, adapter_name=name)
    except (ValueError, RuntimeError, KeyError) as error:
        raise InputError(
            f"its module does not fit this base beside the policy's: {str(error).splitlines()[0]}",
            where=str(folder),
            hint="use the same update in all stages",
        ) from None
    missing = [key for key in getattr(result, "missing_keys", []) if name in key.split(".")]
    # PEFT loads a prefix separately and strictly, and still reports it as missing and unexpected.
    if not config.is_prompt_learning and (missing or getattr(result, "unexpected_keys", [])):
        raise InputError(
            f"its module does not fit this base: {(missing or result.unexpected_keys)[0]}",
            where=str(folder),
            hint="it was trained on another model",
        )
    return next((weight for key, weight in heads.items() if key.endswith("weight")), None)


def copy_module(model: AdaptedModel, source: str, role: str) -> None:
    """Add a copy of the module of one role for another."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    weights = get_peft_model_state_dict(
        model, adapter_name=ADAPTERS[source], save_embedding_layers=False
    )
    config = copy.deepcopy(model.peft_config[ADAPTERS[source]])
    config.inference_mode = role != VALUE
    model.add_adapter(ADAPTERS[role], config)
    set_peft_model_state_dict(model, weights, adapter_name=ADAPTERS[role])


def _same_base(job: Job, model: AdaptedModel, reward: Path) -> bool:
    """True if the reward model is a module of the policy's kind on the policy's own base."""
    if not (reward / "adapter_config.json").is_file():
        return False
    own = model.peft_config[ADAPTERS[POLICY]].peft_type
    return read_adapter_config(reward).get("peft_type") == str(getattr(own, "value", own)) and (
        job.whole_model(reward) == job.whole_model(job.start)
    )
