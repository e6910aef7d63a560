"""Prefix tuning: keys and values in front of every layer's attention are trained (Li & Liang 2021,
arXiv:2101.00190).

The prefix starts from what the model computes for a real prompt: the keys and values of its first
tokens. From random numbers it hardly learns (18.6 against 41.6 points in PEFT's comparison on
MetaMathQA).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import advisor.peft_adapter  # noqa: F401  (lets prefixes take part in generation, see advisor/peft_adapter/prefix.py)
from advisor.ground.errors import InputError
from advisor.plan.model import Stage
from trainers.job import AdaptedModel, Model, Tokenizer
from trainers.job.evaluating import evaluating
from trainers.rows.row import IGNORED, PreparedRow
from trainers.updates import COMMON_KEYS

PLAN_KEYS: Mapping[str, str] = {
    **COMMON_KEYS,
    "num_virtual_tokens": "prefix_tokens",
    "token_dim": "model",
    "num_attention_heads": "model",
    "num_layers": "model",
    "num_transformer_submodules": "model",
    # They would start the prefix from something else than real activations.
    **dict.fromkeys(("prefix_projection", "encoder_hidden_size", "init_weights"), "prefix_text"),
}
CONFIG = "peft:PrefixTuningConfig"


def arguments(stage: Stage, options: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """Size and shape of the prefix.

    Raises InputError if the model has no cache of keys and values that a prefix could fill, or too
    few positions.
    """
    length = options["prefix_tokens"]
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and length + stage.seq_len > longest:
        raise InputError(
            f"prefix_tokens {length} and seq_len {stage.seq_len} make"
            f" {length + stage.seq_len} positions, the model has {longest}",
            where=f"stage {stage.name}",
        )
    # Measured, because the keys of configs differ between architectures.
    layers = _cache(model, [0])
    shapes = {tuple(tensor.shape) for layer in layers for tensor in layer}
    if len(shapes) != 1:
        raise InputError(
            f"the layers of {type(model).__name__} have keys and values of"
            " different shapes, which PEFT's prefix cannot fill",
            where=f"stage {stage.name}",
            hint="update: lora fits every architecture",
        )
    _, heads, _, width = next(iter(shapes))
    return {
        "num_virtual_tokens": length,
        "num_layers": len(layers),
        "num_attention_heads": heads,
        "token_dim": heads * width,
    }


def start(
    stage: Stage,
    options: Mapping[str, Any],
    model: Model,
    tokenizer: Tokenizer,
    rows: Sequence[PreparedRow],
) -> str:
    """Give the prefix the model's own keys and values of `prefix_text` and of the answers of the
    first training rows; which, in words.

    Raises InputError if text and rows have too few tokens, or the text too many.
    """
    import torch

    length, text = options["prefix_tokens"], options["prefix_text"]
    ids = text_ids(tokenizer, text) if text else []
    if len(ids) > length:
        raise InputError(
            f"prefix_text has {len(ids)} tokens, prefix_tokens is {length}",
            where=f"stage {stage.name}",
            hint=f"set prefix_tokens: {len(ids)}, or shorten the text",
        )
    given, used = len(ids), 0
    for row in rows:
        if len(ids) >= length:
            break
        ids, used = [*ids, *learned_ids(row)], used + 1
    if len(ids) < length:
        source = "prefix_text and the answers" if text else "the answers"
        hint = f"set prefix_tokens: {max(1, len(ids))}, or add rows"
        raise InputError(
            f"{source} of all rows have {len(ids)} tokens, prefix_tokens is {length}",
            where=f"stage {stage.name}",
            hint=hint,
        )
    adapted = cast(AdaptedModel, model)
    cache = _cache(adapted.get_base_model(), ids[:length])  # a prefix changes nothing in the base
    # PEFT has a row for each token: keys and values of each layer in turn, their heads in order.
    states = [tensor[0].transpose(0, 1).flatten(1) for pair in cache for tensor in pair]
    weight = adapted.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        weight.copy_(torch.cat(states, dim=1))
    parts = [f"prefix_text ({given} tokens)"] * bool(given) + [
        f"the answers of the first {used} training row{'s' * (used > 1)} ({length - given} tokens)"
    ] * bool(used)
    return f"the prefix starts from the keys and values of {' and '.join(parts)}"


def learned_ids(row: Any) -> list[int]:
    """The learned tokens of a row, or all of them if the row has no labels.

    Answers alone are the better start. With SmolLM2-135M on the demo's rows, 30 tokens of answers
    give a loss of 3.37, and 30 tokens of whole rows (most of them the template's system message)
    4.12; without a prefix it is 4.17, with a random one 9.91.
    """
    if getattr(row, "labels", None) is None:
        return list(row.input_ids)
    return [
        token for token, label in zip(row.input_ids, row.labels, strict=True) if label != IGNORED
    ]


def text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a prompt: as a system message if the chat template takes one, else as plain
    text.
    """
    if getattr(tokenizer, "chat_template", None):
        try:
            return list(
                tokenizer.apply_chat_template(
                    [{"role": "system", "content": text}], tokenize=True, return_dict=False
                )
            )
        except InputError:  # the template does not end
            raise
        except Exception:  # noqa: S110  (a template may refuse a system message with any exception)
            pass
    return list(tokenizer(text)["input_ids"])


def _cache(model: Model, ids: Sequence[int]) -> list[tuple[Any, Any]]:
    """The model's keys and values of a prompt: for each layer a pair, each 1, heads, T, width.

    Raises InputError if the model caches none.
    """
    import torch

    with evaluating(model):
        output = model(
            input_ids=torch.tensor([list(ids)], device=next(model.parameters()).device),
            use_cache=True,
        )
    # transformers calls it `cache` from 5.24 on.
    cache = output["cache"] if "cache" in output else output.get("past_key_values")
    layers = getattr(cache, "layers", ())
    pairs = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in layers]
    if not pairs or any(tensor is None or tensor.ndim != 4 for pair in pairs for tensor in pair):
        raise InputError(
            f"{type(model).__name__} does not cache keys and values in every layer, so that a"
            " prefix has no place in it",
            hint="update: lora fits every architecture",
        )
    return pairs
