"""Answers generated in the training process by `generate` of transformers.

How many are generated at once follows from the model's shape and the device's memory, not from what
is free now: a run that resumes draws the same random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy

from advisor.ground.progress import Wait, waiting
from trainers.job.evaluating import generating
from trainers.job.machine import held_bytes, over_processes
from trainers.rollouts import Answers, Sampling
from trainers.rows.packing import padded_inputs
from trainers.say.progress import watch_tokens
from trainers.step.sharding import is_divided

# Each token reads the weights once, so that more answers are hardly slower: at least so many.
AT_ONCE = 32
SHARE = 0.5  # of the memory that weights and optimizer leave; the rest is for fragmentation
HOST_BYTES = 2 * 2**30  # for answers on a CPU, whose memory others use too
# While prompts are read, a token holds about so many hidden states and MLP activations.
HIDDEN_STATES, MLP_STATES = 8, 3
# Sampling holds the logits of the next token so often in float32.
LOGIT_COPIES = 4
OPTIMIZER_BYTES = 12  # for a trained weight: its gradient and two moments in float32


class TransformersEngine:
    """Generates with the policy itself, all answers of a step together if they fit into memory.

    Args:
        policy: Makes the context in which the model is the policy.
        models: All models on the device, the policy first: what they hold bounds the answers.
        least: How many answers fit in any case.
        room: The share of what would fit: less than 1 once a stage has run out of memory.
        autocast: Makes the context that generation runs in.
        trained: Parameters that are trained on the device; default: those with gradients now.
    """

    name = "transformers"
    differs = False

    def __init__(
        self,
        policy: Callable[[], AbstractContextManager[Any]],
        *,
        models: Callable[[], Sequence[Any]],
        least: int = AT_ONCE,
        room: float = 1.0,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        trained: int | None = None,
    ) -> None:
        self.policy, self.models, self.autocast = policy, models, autocast
        self.least, self.room, self.trained = least, room, trained

    def load_weights(self) -> None:
        """Nothing to do: the policy itself generates."""

    def close(self) -> None:
        """Nothing is held."""

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, n: int = 1
    ) -> Answers:
        """`n` answers to each prompt, in the prompts' order. Raises torch.OutOfMemoryError if they
        do not fit.
        """
        rows = [list(prompt) for prompt in prompts for _ in range(n)]
        if not rows:
            return Answers([], [], [])
        at_once = self.rows_at_once(rows, sampling.limit)
        # Prompts of similar length together, so that little is padded; in parts alone, because all
        # of them together are padded to the longest anyway.
        order = list(range(len(rows)))
        if at_once < len(rows):
            order.sort(key=lambda row: -len(rows[row]))
        found: dict[int, list[int]] = {}
        with (
            self.policy() as model, self.autocast(), generating(model),
            waiting("generating answers", total=len(rows), unit="answers") as wait,
        ):  # fmt: skip
            for start in range(0, len(order), at_once):
                part = order[start : start + at_once]
                answers = generate_batch(model, [rows[row] for row in part], sampling, wait)
                found |= dict(zip(part, answers, strict=True))
                wait.at(wait.done + len(part), text="")
        ids, ends = [found[row] for row in range(len(rows))], set(sampling.stops)
        return Answers(rows, ids, [answer[-1] in ends for answer in ids])

    def rows_at_once(self, rows: Sequence[Sequence[int]], limit: int) -> int:
        """How many answers to generate together: of a divided model as many in each process."""
        models, longest = self.models(), max(map(len, rows)) + limit
        fits = free_bytes(models, self.trained) // max(1, row_bytes(models[0], longest))
        fitting = max(1, int(self.room * min(len(rows), max(self.least, fits))))
        least = over_processes([fitting], "MIN") if is_divided(models[0]) else [fitting]
        return int(least[0])


def row_bytes(model: Any, tokens: int) -> int:
    """What an answer holds: keys and values of every layer, what reading its prompt takes, and the
    logits of its next token.
    """
    config = model.config.get_text_config()
    # One config for each layer, where they differ (Gemma 4).
    layers = list(getattr(config, "per_layer_config", [config] * config.num_hidden_layers))
    inner = [
        getattr(layer, "intermediate_size", None) or 4 * config.hidden_size for layer in layers
    ]
    cached = sum(map(_cached, layers))
    read = HIDDEN_STATES * config.hidden_size + MLP_STATES * int(numpy.max(inner))
    a_token = int(next(model.parameters()).element_size()) * int(cached + read)
    return tokens * a_token + 4 * LOGIT_COPIES * int(config.vocab_size)


def _cached(layer: Any) -> int:
    """Numbers that a layer keeps of a token; 0 of one whose state does not grow (Mamba)."""
    heads = getattr(layer, "num_attention_heads", None) or 0
    width = getattr(layer, "head_dim", None) or layer.hidden_size // max(1, heads)
    return 2 * int(width) * int(getattr(layer, "num_key_value_heads", None) or heads)


def free_bytes(models: Sequence[Any], trained: int | None = None) -> int:
    """What the device has for answers."""
    import torch

    device = next(models[0].parameters()).device
    if device.type != "cuda":
        return HOST_BYTES
    held = held_bytes(*models)
    if trained is None:
        weights = (one for model in models for one in model.parameters())
        trained = sum(one.numel() for one in weights if one.requires_grad)
    total = torch.cuda.get_device_properties(device).total_memory
    return int(SHARE * (total - held - OPTIMIZER_BYTES * trained))


def stop_ids(model: Any) -> list[int]:
    """The tokens that end an answer; [] if the model names none."""
    stops = model.generation_config.eos_token_id
    return list(stops) if isinstance(stops, list | tuple) else [] if stops is None else [stops]


def generate_batch(
    model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, wait: Wait
) -> list[list[int]]:
    """One answer to each prompt, all generated together: its tokens, with the one that ended it.

    Args:
        model: The policy, in `generating`.
        prompts: As token ids; they are padded on the left, for an encoder on the right.
        sampling: How answers are drawn.
        wait: Shows how far they are.
    """
    device, encodes = next(model.parameters()).device, bool(model.config.is_encoder_decoder)
    width = 1 if encodes else max(map(len, prompts))  # a decoder begins with a token of its own
    config = generation_config(sampling)
    for name in ("decoder_start_token_id", "forced_bos_token_id"):
        setattr(config, name, getattr(model.generation_config, name, None))
    with _generation_settings(model, config):
        output = model.generate(
            **padded_inputs(prompts, config.pad_token_id, device, on_left=not encodes),
            generation_config=config,
            logits_processor=[watch_tokens(wait, width=width, limit=sampling.limit)],
            # All processes compute each token of a divided model, until the last answer ends.
            synced_gpus=is_divided(model),
        )
    ends = set(sampling.stops)
    answers = []
    for line in output[:, width:].tolist():
        end = next((place for place, token in enumerate(line, 1) if token in ends), None)
        answers.append(line[:end])
    return answers


def generation_config(sampling: Sampling) -> Any:
    """The settings of transformers for this sampling, and for nothing else."""
    from transformers import GenerationConfig

    drawn = {name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    is_drawn = sampling.temperature > 0
    options: dict[str, Any] = {
        "max_new_tokens": sampling.limit,
        "min_new_tokens": sampling.shortest or None,
        "do_sample": is_drawn,
        **(drawn if is_drawn else dict.fromkeys(drawn)),
        "repetition_penalty": sampling.repetition_penalty,
        "use_cache": True,
        "eos_token_id": list(sampling.stops),
        "pad_token_id": sampling.stops[0],  # nothing looks at it
    }
    return GenerationConfig(**{**options, **sampling.more})


@contextmanager
def _generation_settings(model: Any, config: Any) -> Iterator[None]:
    """Replace the model's generation settings inside: `generate` takes from them what it is not
    given.
    """
    holders = [model, *([model.get_base_model()] if hasattr(model, "get_base_model") else [])]
    before = [holder.generation_config for holder in holders]
    for holder in holders:
        holder.generation_config = config
    try:
        yield
    finally:
        for holder, old in zip(holders, before, strict=True):
            holder.generation_config = old
