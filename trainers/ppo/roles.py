"""The four roles of PPO.

With modules they share one frozen base: policy, reference, reward and value are adapters on it, and
two small heads.

| role | with a module | with update: full |
| --- | --- | --- |
| policy | the module that is trained | the model that is trained |
| reference | the module it started from, frozen; without one, the base alone | a frozen copy |
| reward | the reward model's module and its head, frozen | the reward model, frozen |
| value | a copy of the reward's (else of the policy's) module and head, trained | a copy of the reward model, trained |

A reward model that stands on another base, or was trained whole, is loaded beside. Its tokenizer
has to be the policy's.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advisor.ground.errors import InputError
from trainers.frame.job import Job
from trainers.frame.loading import load_model
from trainers.ppo.rollout import Batch, add_hidden_states, hidden_states, token_log_probs
from trainers.rewards.sources import check_same_tokens, load_reward_model
from trainers.updates import Update

POLICY, REFERENCE, REWARD, VALUE = "policy", "reference", "reward", "value"
ADAPTERS = {POLICY: "default", REFERENCE: "reference", REWARD: "reward", VALUE: "value"}
HEADS = ("score", "classifier")  # what transformers calls the layer that scores


@dataclass
class RoleModel:
    """One role: a model, and the adapter on it that makes the model play the role (None: the model
    itself; BASE: no adapter).
    """

    model: Any
    adapter: str | None = None
    # that makes a number of a hidden state: of the value, and of a reward on the shared base
    head: Any = None


BASE = "(base)"


class Roles:
    """Who plays what. `use` switches; the numbers of each role are methods."""

    def __init__(self, parts: dict[str, RoleModel], *, shared: bool) -> None:
        self.parts, self.shared = parts, shared
        self._on: str | None = None
        for part in parts.values():
            base = unwrap_peft(part.model)
            if role_needs_hidden(base):
                add_hidden_states(base)

    @contextmanager
    def use(self, role: str) -> Iterator[Any]:
        """The model, playing the role."""
        part = self.parts[role]
        if part.adapter is None:
            yield part.model
        elif part.adapter == BASE:
            with part.model.disable_adapter():
                yield part.model
            self._on = None  # PEFT has switched its adapters on again
        else:
            if self._on != part.adapter:
                part.model.set_adapter(part.adapter, inference_mode=role not in (POLICY, VALUE))
                self._on = part.adapter
            yield part.model

    def log_probs(
        self, role: str, batch: Batch, temperature: float, *, with_entropy: bool = False
    ) -> tuple[Any, Any | None]:
        """(log-probability of each answer token, entropy before each) under the policy or the
        reference.
        """
        with self.use(role) as model:
            return token_log_probs(model, batch, temperature, with_entropy=with_entropy)

    def values(self, batch: Batch) -> Any:
        """What reward each answer token's place promises: N."""
        with self.use(VALUE) as model:
            return apply_head(self.parts[VALUE].head, hidden_states(model, batch))

    def scores(self, batch: Batch) -> Any:
        """The reward model's score of each answer with its prompt: B."""
        import torch

        part = self.parts[REWARD]
        pad_id = padding_of(part.model)
        with self.use(REWARD) as model:
            if part.head is not None:
                hidden_BSH = model(
                    input_ids=batch.ids_BS, attention_mask=batch.attention_BS, hidden_only=True
                )
                last_B = last_tokens(batch.ids_BS, batch.attention_BS, pad_id)
                return apply_head(part.head, hidden_BSH[range(len(last_B)), last_B])
            if pad_id is not None:
                return (
                    model(
                        input_ids=batch.ids_BS.masked_fill(batch.attention_BS == 0, pad_id),
                        attention_mask=batch.attention_BS,
                    )
                    .logits[:, 0]
                    .float()
                )
            # Without a padding token in its config a model scores single texts alone.
            texts = [
                ids[: int(attention.sum())][None]
                for ids, attention in zip(batch.ids_BS, batch.attention_BS, strict=True)
            ]
            return torch.cat(
                [
                    model(input_ids=text, attention_mask=torch.ones_like(text)).logits[:, 0].float()
                    for text in texts
                ]
            )

    def trained(self, role: str) -> dict[str, Any]:
        """The parameters that the policy or the value trains, by name."""
        part = self.parts[role]
        names = dict(part.model.named_parameters())
        if part.adapter is not None:
            names = {
                name: parameter
                for name, parameter in names.items()
                if part.adapter in name.split(".")
            }
        return names | (
            {f"head.{name}": parameter for name, parameter in part.head.named_parameters()}
            if part.head is not None
            else {}
        )

    def models(self) -> list[Any]:
        """Each model once, however many roles it plays."""
        return list({id(part.model): part.model for part in self.parts.values()}.values())

    def recompute(self) -> None:
        """Compute activations again in the backward pass instead of holding them."""
        for role in (POLICY, VALUE):
            self.parts[role].model.activation_checkpointing_enable({"use_reentrant": False})

    def only_policy(self) -> Any:
        """The policy alone, the other modules taken off its base."""
        part = self.parts[POLICY]
        if part.adapter is not None:
            for name in [name for name in part.model.peft_config if name != part.adapter]:
                part.model.delete_adapter(name)
            part.model.set_adapter(part.adapter)
        return part.model


def unwrap_peft(model: Any) -> Any:
    """The model under PEFT's wrapping."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def role_needs_hidden(base: Any) -> bool:
    """True if the model has a head on hidden states of its backbone, which an encoder with a
    pooler has not.
    """
    return base.get_output_embeddings() is not None or hasattr(base, "score")


def apply_head(head: Any, hidden_NH: Any) -> Any:
    """What a small head makes of hidden states, in float32: autocast would round every reward and
    value to three digits.
    """
    import torch

    with torch.autocast(hidden_NH.device.type, enabled=False):
        return head(hidden_NH.float())[:, 0]


def padding_of(model: Any) -> int | None:
    """The padding token that the model's config names, None if it names none."""
    found = unwrap_peft(model).config.get_text_config().pad_token_id
    return found if isinstance(found, int) and found >= 0 else None


def last_tokens(ids_BS: Any, attention_BS: Any, pad_id: int | None) -> Any:
    """The place where transformers' models for sequence classification read the score of each text.

    It is the rightmost token that is not the padding token; where padding and end token are the
    same, the one before the end.
    """
    import torch

    places_S = torch.arange(ids_BS.shape[1], device=ids_BS.device)
    counts_BS = attention_BS.bool() if pad_id is None else attention_BS.bool() & (ids_BS != pad_id)
    return (places_S * counts_BS).argmax(-1)


# --------------------------------------------------------------------------- building


def build_roles(
    job: Job, device: Any, update: Update, tokenizer: Any, reward: Path | None, rows: Sequence[Any]
) -> tuple[Roles, list[str]]:
    """The roles of a stage and, in words, who stands on what.

    Args:
        reward: The reward model's folder; None: a function of the user's scores.
        rows: Training rows with input_ids, for a module that starts from text.
    """
    if reward is not None:
        check_same_tokens(job, tokenizer, reward)
    if job.stage.update == "full":
        return _four_models(job, device, update, reward)
    from peft import PeftModel, get_peft_model

    model, notes = load_model(job, device, update), []
    if isinstance(model, PeftModel):
        add_module(model, job.start, ADAPTERS[REFERENCE])
        reference = RoleModel(model, ADAPTERS[REFERENCE])
    else:
        model = get_peft_model(model, update.peft_config(job.stage, job.options, model))
        started = update.start(job.stage, job.options, model, tokenizer, rows)
        notes += [started] if started else []
        reference = RoleModel(model, BASE)
    parts = {POLICY: RoleModel(model, ADAPTERS[POLICY]), REFERENCE: reference}
    width = model.config.get_text_config().hidden_size
    if reward is not None and _same_base(model, reward):
        weight = add_module(model, reward, ADAPTERS[REWARD])
        add_module(model, reward, ADAPTERS[VALUE])
        parts[REWARD] = RoleModel(
            model, ADAPTERS[REWARD], score_head(width, weight, device, trained=False)
        )
        parts[VALUE] = RoleModel(
            model, ADAPTERS[VALUE], score_head(width, weight, device, trained=True)
        )
        notes.append("policy, reference, reward and value share one base")
    else:
        copy_module(model, ADAPTERS[POLICY], ADAPTERS[VALUE])
        parts[VALUE] = RoleModel(
            model, ADAPTERS[VALUE], score_head(width, None, device, trained=True)
        )
        if reward is not None:
            parts[REWARD] = RoleModel(load_reward_model(job, reward, device))
            notes.append(
                "policy, reference and value share one base; the reward model stands on another and"
                " is loaded beside it: the value starts untrained"
            )
        else:
            notes.append("policy, reference and value share one base; the value starts untrained")
    return Roles(parts, shared=True), notes


def _four_models(
    job: Job, device: Any, update: Update, reward: Path | None
) -> tuple[Roles, list[str]]:
    policy = load_model(job, device, update)
    parts = {POLICY: RoleModel(policy), REFERENCE: RoleModel(copy.deepcopy(policy))}
    width = policy.config.get_text_config().hidden_size
    value: Any = None
    weight: Any = None
    if reward is not None:
        parts[REWARD] = RoleModel(load_reward_model(job, reward, device))
        value = load_reward_model(job, reward, device)
        value = value.merge_and_unload() if hasattr(value, "merge_and_unload") else value
        weight = (
            value.score.weight if hasattr(value, "score") and role_needs_hidden(value) else None
        )
    if weight is not None:
        add_hidden_states(value)
        del value.score  # its weight goes on in a head with a bias
        parts[VALUE] = RoleModel(
            value, None, score_head(weight.shape[1], weight, device, trained=True)
        )
    else:
        parts[VALUE] = RoleModel(
            copy.deepcopy(policy), None, score_head(width, None, device, trained=True)
        )
    for role, part in parts.items():
        for parameter in part.model.parameters():
            parameter.requires_grad_(role in (POLICY, VALUE))
    return Roles(parts, shared=False), [f"{len(parts)} models in memory: {', '.join(parts)}"]


def score_head(width: int, weight: Any, device: Any, *, trained: bool) -> Any:
    """A linear layer from a hidden state to a number, in float32: the reward model's where there is
    one, else zero.
    """
    import torch

    head = torch.nn.Linear(width, 1, device=device, dtype=torch.float32)
    with torch.no_grad():
        head.bias.zero_()
        head.weight.zero_() if weight is None else head.weight.copy_(weight)
    return head.requires_grad_(trained)


def add_module(model: Any, folder: Path, name: str) -> Any:
    """Put a saved module onto the base beside those that are there; the weight of its scoring head,
    or None if it has none.

    Raises InputError if the module is of another kind or does not fit this base.
    """
    from peft import PeftConfig, load_peft_weights, set_peft_model_state_dict

    config = PeftConfig.from_pretrained(str(folder))
    config.task_type, config.inference_mode = "CAUSAL_LM", True
    if getattr(config, "modules_to_save", None):
        config.modules_to_save = [
            module for module in config.modules_to_save if module not in HEADS
        ] or None
    weights = load_peft_weights(str(folder), device="cpu")
    heads = {key: weights.pop(key) for key in list(weights) if set(key.split(".")) & set(HEADS)}
    try:
        model.add_adapter(name, config)
        result = set_peft_model_state_dict(model, weights, adapter_name=name)
    except (ValueError, RuntimeError, KeyError) as error:
        raise InputError(
            f"{folder}: its module does not fit this base beside the policy's:"
            f" {str(error).splitlines()[0]}",
            hint="use the same update in all stages",
        ) from None
    missing = [key for key in getattr(result, "missing_keys", []) if name in key.split(".")]
    # PEFT loads a prefix on a way of its own, strictly, and still names it as missing and
    # unexpected.
    if not config.is_prompt_learning and (missing or getattr(result, "unexpected_keys", [])):
        raise InputError(
            f"{folder}: its module does not fit this base:"
            f" {(missing or result.unexpected_keys)[0]}",
            hint="it was trained on another model",
        )
    return next((weight for key, weight in heads.items() if key.endswith("weight")), None)


def copy_module(model: Any, source: str, name: str) -> None:
    """A second module like one that is there."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    weights = {
        key: value.detach().clone()
        for key, value in get_peft_model_state_dict(
            model, adapter_name=source, save_embedding_layers=False
        ).items()
    }
    model.add_adapter(name, copy.deepcopy(model.peft_config[source]))
    set_peft_model_state_dict(model, weights, adapter_name=name)


def _same_base(model: Any, reward: Path) -> bool:
    """True if the reward model is a module of the policy's kind on the policy's own base."""
    path = reward / "adapter_config.json"
    if not path.is_file():
        return False
    config, own = json.loads(path.read_text("utf-8")), model.peft_config[ADAPTERS[POLICY]]

    def place(text: str | None) -> str:
        return str(Path(text).resolve()) if text and Path(text).is_dir() else str(text)

    kind = str(getattr(own.peft_type, "value", own.peft_type))
    return config.get("peft_type") == kind and place(
        config.get("base_model_name_or_path")
    ) == place(own.base_model_name_or_path)


def weights_fingerprint(folder: Path) -> str:
    """A digest of a reward model's weights by size and ends, so that checkpoints trained on another
    one do not count.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        with path.open("rb") as file:
            digest.update(f"{path.name} {size}".encode() + file.read(2**20))
            file.seek(max(0, size - 2**20))
            digest.update(file.read())
    return digest.hexdigest()[:16]
