"""The rollout: answers of a model to prompts, and the log-probability of every token in them,
without holding the logits of a whole batch.

Dimensions: R answers of a rollout, T tokens of the longest of them; B answers of a batch, S tokens
of prompt and answer together, N answer tokens of the batch laid end to end, P of them at a time; H
hidden size, V vocabulary.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from trainers.frame.answer_loss import plain_head
from trainers.frame.out_of_memory import give_back_memory, is_out_of_memory, let_go
from trainers.frame.types import Device, Model
from trainers.ppo.math import entropies

# Of float32 logits held at once; a vocabulary of 50,000 gives parts of 335 tokens.
LOGIT_BYTES = 64 * 2**20
# Answers generated at once: each token reads the weights once, so that more answers are hardly
# slower. At least, and on the CPU; at most, where a GPU has room.
AT_ONCE, MOST_AT_ONCE = 32, 512
# The share of the room that is left beside models and optimizer, for the keys and values of answers
# and the logits of their next tokens.
SHARE_OF_ROOM = 0.5


@dataclass
class Answers:
    """The answers of a model to some prompts."""

    prompts: Sequence[Sequence[int]]
    ids: list[list[int]]  # of each answer, with the token that ended it
    ended: list[bool]  # by a stop token; else the limit cut it
    # of each token, as generation computed them; only if `keep_log_probs` was set
    log_probs: list[list[float]] = field(default_factory=list)
    at_once: int = 0  # how many were generated together in the end

    @property
    def tokens(self) -> int:
        """Of prompts and answers together."""
        return sum(map(len, self.prompts)) + sum(map(len, self.ids))


def answers_at_once(device: Device, roles: Any, *, seq_len: int) -> int:
    """How many answers are generated together: on a GPU as many as fit beside the models and what
    their optimizer will hold.

    What other processes hold at the moment does not count: a resumed run has to generate as many.

    Args:
        device: Of the models.
        roles: All models, loaded.
        seq_len: The longest prompt and answer together, in tokens.
    """
    if device.type != "cuda":
        return AT_ONCE
    import torch

    trained = sum(
        parameter.numel() * max(4, parameter.element_size())
        for role in ("policy", "value")
        for parameter in roles.trained(role).values()
    )
    total = torch.cuda.get_device_properties(device).total_memory
    # Gradients and two moments; states in 8 bit leave a little more.
    room = total - torch.cuda.memory_allocated(device) - 3 * trained
    config = roles.parts["policy"].model.config.get_text_config()
    return answers_that_fit(SHARE_OF_ROOM * room, answer_bytes(config, seq_len))


def answer_bytes(config: Any, seq_len: int) -> int:
    """Bytes that one answer takes while it is generated: keys and values of every layer in 16 bit,
    and the logits of its next token, which sampling holds four times in float32.
    """
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    keys_and_values = seq_len * config.num_hidden_layers * 2 * heads * width * 2
    return int(keys_and_values + 4 * 4 * config.vocab_size)


def answers_that_fit(room_bytes: float, each_bytes: int) -> int:
    """The largest power of two of answers in the room, from `AT_ONCE` to `MOST_AT_ONCE`."""
    most = int(max(1.0, room_bytes) // each_bytes)
    return min(MOST_AT_ONCE, max(AT_ONCE, 1 << max(0, most.bit_length() - 1)))


def stop_ids(model: Any) -> list[int]:
    """The tokens that end an answer."""
    stops = model.generation_config.eos_token_id
    return list(stops) if isinstance(stops, list | tuple) else [stops]


def generate_answers(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    pad_id: int,
    limit: int,
    temperature: float,
    stops: Sequence[int],
    at_once: int = AT_ONCE,
    autocast: Any = nullcontext,
    keep_log_probs: bool = False,
    shortest: int = 0,
    say: Any = None,
) -> Answers:
    """One sampled answer to each prompt, of at most `limit` tokens.

    Tokens are drawn from softmax(logits / temperature) over the whole vocabulary. The model's own
    generation settings (top_p, a repetition penalty) are left out: with them the log-probabilities
    would be those of another policy. If the GPU has no room for `at_once` answers, half as many are
    generated at once. Raises torch.OutOfMemoryError if there is no room for one.

    Args:
        model: The policy.
        prompts: As token ids.
        pad_id: The padding token, for prompts of different lengths.
        limit: The longest answer, in tokens.
        temperature: Of the distribution that tokens are drawn from.
        stops: The tokens that end an answer.
        at_once: How many answers are generated together; their prompts are padded on the left.
        autocast: Makes the context that generation runs in.
        keep_log_probs: Keep each token's log-probability as generation computes it.
        shortest: No stop token before so many tokens.
        say: Called with a message if fewer answers fit than `at_once`.
    """
    done = Answers(list(prompts), [], [])
    start = 0
    while start < len(prompts):
        try:
            part: Answers | None = _generate_batch(
                model,
                prompts[start : start + at_once],
                pad_id=pad_id,
                limit=limit,
                temperature=temperature,
                stops=stops,
                autocast=autocast,
                keep=keep_log_probs,
                shortest=shortest,
            )
        except Exception as error:
            if at_once == 1 or not is_out_of_memory(error):
                raise
            let_go(error)
            part = None
        if part is None:
            at_once = max(1, at_once // 2)
            give_back_memory()
            if say is not None:
                say(f"no room to generate so many answers at once: now {at_once}")
            continue
        done.ids += part.ids
        done.ended += part.ended
        done.log_probs += part.log_probs
        start += at_once
    done.at_once = at_once
    return done


def _generate_batch(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    pad_id: int,
    limit: int,
    temperature: float,
    stops: Sequence[int],
    autocast: Any,
    keep: bool,
    shortest: int,
) -> Answers:
    """What `generate_answers` says, for prompts that are answered together.

    Args:
        keep: Keep log-probabilities.
    """
    import torch
    from transformers import GenerationConfig, LogitsProcessorList

    device = next(model.parameters()).device
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad_id)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for place, prompt in enumerate(prompts):
        ids[place, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[place, width - len(prompt) :] = 1
    config = GenerationConfig(
        max_new_tokens=limit,
        min_new_tokens=shortest or None,
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        use_cache=True,
        eos_token_id=list(stops),
        pad_token_id=pad_id,
    )
    recorder = LogProbRecorder(width, temperature) if keep else None
    with torch.no_grad(), autocast(), _generation_settings(model, config), _evaluation_mode(model):
        output = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=config,
            logits_processor=LogitsProcessorList([recorder] if recorder is not None else []),
        )
    lines = output[:, width:].tolist()
    ends = set(stops)
    answers, ended = [], []
    for line in lines:
        end = next((place for place, token in enumerate(line) if token in ends), None)
        answers.append(line if end is None else line[: end + 1])
        ended.append(end is not None)
    kept = (
        []
        if recorder is None
        else [
            line[: len(answer)] for line, answer in zip(recorder.of(output), answers, strict=True)
        ]
    )
    return Answers(list(prompts), answers, ended, kept)


class LogProbRecorder:
    """A logits processor that keeps the log-probability of each drawn token, and only the last
    logits.
    """

    def __init__(self, width: int, temperature: float) -> None:
        self.width, self.temperature = width, temperature
        self.columns: list[Any] = []
        self.last: Any = None

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if self.last is not None:
            self._keep(input_ids[:, -1])
        # transformers applies the temperature after processors like this one.
        self.last = scores.float() / self.temperature
        return scores

    def _keep(self, tokens_B: Any) -> None:
        import torch

        self.columns.append(torch.log_softmax(self.last, dim=-1).gather(1, tokens_B[:, None]))

    def of(self, output: Any) -> list[list[float]]:
        """Log-probabilities of everything that was generated, row by row."""
        import torch

        if output.shape[1] - self.width > len(self.columns):
            self._keep(output[:, -1])
        return torch.cat(self.columns, dim=1).tolist()


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


@contextmanager
def _evaluation_mode(model: Any) -> Iterator[None]:
    """Switch off dropout inside, and the recomputing of activations, which would switch off the
    cache.
    """
    was_training = model.training
    model.eval()
    checkpointing = bool(model.is_activation_checkpointing)
    if checkpointing:
        model.activation_checkpointing_disable()
    try:
        yield
    finally:
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model.train(was_training)


# --------------------------------------------------------------------------- batches


@dataclass
class Batch:
    """Some answers with their prompts, padded on the right.

    The same rows stay together in all epochs: padding changes rounding, and the first ratios of
    probabilities have to be exactly 1.
    """

    rows: list[int]  # the places of its B answers among the R of the rollout
    ids_BS: Any
    attention_BS: Any
    answer_BS: Any  # True where the hidden state predicts an answer token
    targets_N: Any  # the answer tokens
    counts: list[int]  # of each row's answer tokens: nobody has to ask the device for them

    @property
    def tokens(self) -> int:
        """N."""
        return len(self.targets_N)


def batches_of(answers: Answers, size: int, *, pad_id: int, device: Any) -> list[Batch]:
    """The answers in batches of similar length."""
    import torch

    lengths = [
        len(prompt) + len(answer)
        for prompt, answer in zip(answers.prompts, answers.ids, strict=True)
    ]
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    found = []
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        width = max(lengths[row] for row in rows)
        ids_BS = torch.full((len(rows), width), pad_id)
        attention_BS = torch.zeros((len(rows), width), dtype=torch.long)
        answer_BS = torch.zeros((len(rows), width), dtype=torch.bool)
        for place, row in enumerate(rows):
            ids_BS[place, : lengths[row]] = torch.tensor([*answers.prompts[row], *answers.ids[row]])
            attention_BS[place, : lengths[row]] = 1
            answer_BS[place, len(answers.prompts[row]) - 1 : lengths[row] - 1] = True
        targets_N = ids_BS[:, 1:][answer_BS[:, :-1]]
        found.append(
            Batch(
                rows,
                ids_BS.to(device),
                attention_BS.to(device),
                answer_BS.to(device),
                targets_N.to(device),
                [len(answers.ids[row]) for row in rows],
            )
        )
    return found


def split_batch(batch: Batch, size: int) -> list[Batch]:
    """The batch in parts of at most `size` answers, in their order, each as wide as its longest."""
    import torch

    if len(batch.rows) <= size:
        return [batch]
    lengths = batch.attention_BS.sum(1).tolist()
    targets = batch.targets_N.split(batch.counts)
    found = []
    for start in range(0, len(batch.rows), size):
        part = slice(start, start + size)
        width = max(lengths[part])
        found.append(
            Batch(
                batch.rows[part],
                batch.ids_BS[part, :width],
                batch.attention_BS[part, :width],
                batch.answer_BS[part, :width],
                torch.cat(targets[part]),
                batch.counts[part],
            )
        )
    return found


def scatter_answers(parts: Sequence[tuple[Batch, Any]], mask_RT: Any) -> Any:
    """The numbers of all batches' answer tokens as one table: R, T, with zeros after the end of
    each answer.

    Args:
        parts: Each batch with its numbers: N.
        mask_RT: What `answer_mask` returned.
    """
    import torch

    table_RT = torch.zeros(mask_RT.shape, dtype=torch.float32, device=mask_RT.device)
    for batch, values_N in parts:
        for row, values in zip(batch.rows, values_N.float().split(batch.counts), strict=True):
            table_RT[row, : len(values)] = values
    return table_RT


def gather_answers(table_RT: Any, batch: Batch) -> Any:
    """The numbers of a batch's answer tokens from the table of all answers, laid end to end: N."""
    import torch

    return torch.cat(
        [table_RT[row, :count] for row, count in zip(batch.rows, batch.counts, strict=True)]
    )


def answer_mask(answers: Answers, device: Any) -> Any:
    """Ones on the tokens of each answer, zeros after its end: R, T."""
    import torch

    mask_RT = torch.zeros((len(answers.ids), max(map(len, answers.ids))))
    for row, ids in enumerate(answers.ids):
        mask_RT[row, : len(ids)] = 1
    return mask_RT.to(device)


# --------------------------------------------------------------------------- log-probabilities


def add_hidden_states(model: Any) -> None:
    """Give a model with a head a forward that, called with `hidden_only=True`, returns its last
    hidden states (B, S, H) and computes no logits.
    """
    if getattr(model.forward, "gives_hidden_states", False):
        return
    original = model.forward

    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, hidden_only: bool = False, **kwargs: Any) -> Any:
        if not hidden_only:
            return original(*args, **kwargs)
        kwargs.pop("labels", None)
        kwargs["use_cache"] = False
        return getattr(self, self.base_model_prefix)(*args, **kwargs).last_hidden_state

    forward.gives_hidden_states = True  # type: ignore[attr-defined]  # a mark for the next call
    model.forward = types.MethodType(forward, model)


def hidden_states(model: Any, batch: Batch) -> Any:
    """The hidden states that predict the batch's answer tokens, laid end to end: N, H."""
    return model(input_ids=batch.ids_BS, attention_mask=batch.attention_BS, hidden_only=True)[
        batch.answer_BS
    ]


def token_log_probs(
    model: Any,
    batch: Batch,
    temperature: float,
    *,
    with_entropy: bool = False,
    budget_bytes: int = LOGIT_BYTES,
) -> tuple[Any, Any | None]:
    """(log-probability of each answer token: N, entropy of the distribution it was drawn from: N),
    in float32, under softmax(logits / temperature). The entropy is None without `with_entropy`.

    The head is applied to P tokens at a time. For gradients each part is recomputed in the backward
    pass, so that the logits of one part (P, V) are all that is ever held.

    Args:
        model: With `add_hidden_states`.
        batch: Prompts and answers.
        temperature: That the answers were drawn with.
        with_entropy: Compute the entropy, too; it has no gradient.
        budget_bytes: For the logits of one part.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if plain_head(base):
        hidden_NH, head = hidden_states(model, batch), base.get_output_embeddings()
    else:  # a head with a soft cap or a scale: the logits as the model computes them
        hidden_NH, head = (
            model(
                input_ids=batch.ids_BS, attention_mask=batch.attention_BS, use_cache=False
            ).logits[batch.answer_BS],
            torch.nn.Identity(),
        )

    def part(hidden_PH: Any, targets_P: Any) -> tuple[Any, Any]:
        logits_PV = head(hidden_PH).float()
        if temperature != 1:
            logits_PV = logits_PV / temperature
        chosen_P = logits_PV.gather(1, targets_P[:, None])[:, 0] - torch.logsumexp(
            logits_PV, dim=-1
        )
        with torch.no_grad():  # for display and guards, not part of the loss
            entropy_P = entropies(logits_PV) if with_entropy else chosen_P.detach()
        return chosen_P, entropy_P

    size = max(1, budget_bytes // (4 * base.get_output_embeddings().weight.shape[0]))
    parts = list(zip(hidden_NH.split(size), batch.targets_N.split(size), strict=True))
    again = torch.is_grad_enabled() and len(parts) > 1
    results = [
        checkpoint(part, hidden, targets, use_reentrant=False) if again else part(hidden, targets)
        for hidden, targets in parts
    ]
    chosen_N = torch.cat([chosen for chosen, _ in results])
    return chosen_N, torch.cat([entropy for _, entropy in results]) if with_entropy else None
