"""Generation and classification with a prefix, where PEFT 0.21 and transformers disagree about a
name.

From 5.24 on transformers calls the cache `cache`; PEFT 0.21 looks for `past_key_values`. A model
that writes gets none while it generates, and the answers come out as if there were no prefix (its
forward passes, and so training and loss, are not affected). A model with a score or classification
head is called on another way, that fails. To be deleted once PEFT's own
`PeftModelForCausalLM.prepare_inputs_for_generation` and
`PeftModelForSequenceClassification._prefix_tuning_forward` read `cache`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def mend_generation() -> None:
    """Let prefixes take part in generation; nothing where the installed versions agree, or where
    this was done before.
    """
    from peft import PeftModelForCausalLM
    from transformers import GenerationMixin

    original = PeftModelForCausalLM.prepare_inputs_for_generation
    if "cache" not in inspect.signature(
        GenerationMixin.prepare_inputs_for_generation
    ).parameters or '"cache"' in inspect.getsource(original):
        return
    generate = PeftModelForCausalLM.generate

    @functools.wraps(original)
    def prepare(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not _has_prefix(self):
            return original(self, *args, **kwargs)
        kwargs.pop("task_ids", None)
        return with_prefix(self, self.base_model_prepare_inputs_for_generation(*args, **kwargs))

    @functools.wraps(generate)
    def generate_with_own_settings(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _has_prefix(
            self
        ):  # PEFT gives the adapter's stop tokens to the wrong module where nothing is wrapped
            self.base_model.generation_config = self.generation_config
        return generate(self, *args, **kwargs)

    PeftModelForCausalLM.prepare_inputs_for_generation = prepare
    PeftModelForCausalLM.generate = generate_with_own_settings


def mend_heads() -> None:
    """Let prefixes stand under a head that scores or classifies; nothing where the installed
    versions agree, or where this was done before.
    """
    from peft import PeftModelForSequenceClassification

    original = PeftModelForSequenceClassification._prefix_tuning_forward
    if '"cache"' in inspect.getsource(original):
        return

    @functools.wraps(original)
    def forward(self: Any, input_ids: Any = None, inputs_embeds: Any = None, **kwargs: Any) -> Any:
        if "cache" not in inspect.signature(self.base_model.forward).parameters:
            return original(self, input_ids=input_ids, inputs_embeds=inputs_embeds, **kwargs)
        rows = len(input_ids if input_ids is not None else inputs_embeds)
        given = {key: value for key, value in kwargs.items() if value is not None}
        return self.base_model(
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            **given | {"cache": self.get_prompt(batch_size=rows)},
        )

    disabled = PeftModelForSequenceClassification.disable_adapter

    @contextmanager
    def disable_adapter(self: Any) -> Iterator[None]:
        if not _has_prefix(self):
            with disabled(self):
                yield
            return
        # PEFT would set generation aside as well, which a model with a head has not.
        own, self.forward = self.forward, self.base_model.forward
        try:
            yield
        finally:
            self.forward = own

    PeftModelForSequenceClassification._prefix_tuning_forward = forward
    PeftModelForSequenceClassification.disable_adapter = disable_adapter


def _has_prefix(model: Any) -> bool:
    return str(getattr(model.active_peft_config.peft_type, "value", "")) in (
        "PREFIX_TUNING",
        "CARTRIDGE",
    )


def with_prefix(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of one step of generation with the prefix in the cache, in the attention mask and
    before the positions.
    """
    import torch

    length = model.active_peft_config.num_virtual_tokens
    ids = inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"]
    cache = inputs.get("cache")
    if cache is None or not cache.get_seq_length() or inputs.get("use_cache") is False:
        # Without use_cache every step reads the whole text again, so the prefix is made anew for
        # each.
        inputs["cache"] = model.get_prompt(batch_size=ids.shape[0], max_cache_len=-1)
    mask = inputs.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.ndim == 2:
        inputs["attention_mask"] = torch.cat([mask.new_ones((mask.shape[0], length)), mask], dim=1)
    elif mask is not None:
        raise ValueError(
            "a prefix needs a cache that grows (DynamicCache): with a static one the attention mask"
            " cannot be extended"
        )
    if inputs.get("position_ids") is not None:
        inputs["position_ids"] = inputs["position_ids"] + length
    return inputs
