"""Answers generated in the training process by `generate` of transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from trainers.job.machine import least_of_all
from trainers.rollouts.engine import Answers, Sampling
from trainers.rollouts.memory import rows_at_once
from trainers.rollouts.merged import merged
from trainers.say.counting_answers import AnswerCount, counting_answers
from trainers.step.out_of_memory import give_back_memory, is_out_of_memory, let_go
from trainers.step.sharding import is_divided

# Each token reads the weights once, so that more answers are hardly slower: at least so many.
AT_ONCE = 32


class TransformersEngine:
    """Generates with the policy itself, all answers of a step together if they fit into memory.

    Args:
        policy: Makes the context in which the model is the policy.
        pad_id: The padding token, for prompts of different lengths.
        models: All models on the device, the policy first: what they hold bounds the answers.
        trained: Trained weights of all models; default: those that require gradients.
        least: How many answers fit in any case.
        autocast: Makes the context that generation runs in.
        adapts: Generate half as many answers at once if memory runs out; otherwise it raises.
        say: Called with a message if fewer answers fit.
    """

    name = "transformers"
    differs = False

    def __init__(
        self,
        policy: Callable[[], AbstractContextManager[Any]],
        *,
        pad_id: int,
        models: Callable[[], Sequence[Any]],
        trained: int | None = None,
        least: int = AT_ONCE,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        adapts: bool = True,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.policy, self.pad_id, self.models = policy, pad_id, models
        self.trained, self.least, self.autocast = trained, least, autocast
        self.adapts, self.say = adapts, say
        self.most_at_once: int | None = None  # answers that do fit, once more did not

    def load_weights(self) -> None:
        """Nothing to do: the policy itself generates."""

    def close(self) -> None:
        """Nothing is held."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        n: int = 1,
        keep_log_probs: bool = False,
        share: Share | None = None,
    ) -> Answers:
        """`n` answers to each prompt, in the prompts' order.

        Raises torch.OutOfMemoryError if there is no room for one.

        Args:
            share: The prompts are a part of a batch; they get the answers that they would get if
                all of it were generated here, as long as it fits into memory at once.
        """
        rows = [list(prompt) for prompt in prompts for _ in range(n)]
        if not rows:
            return Answers([], [], [])
        at_once = self.rows_at_once(rows, sampling.limit)
        # Prompts of similar length together, so that little is padded; in parts alone, because all
        # of them together are padded to the longest anyway.
        order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
        if at_once >= len(rows):
            order = list(range(len(rows)))
        found: dict[int, tuple[list[int], bool, list[float]]] = {}
        with (
            self.policy() as model, self.autocast(), generating(model), merged(model),
            counting_answers(len(rows), sampling.limit) as count,
        ):  # fmt: skip
            start = 0
            while start < len(order):
                part = order[start : start + at_once]
                try:
                    answers = generate_batch(
                        model, [rows[row] for row in part], sampling,
                        pad_id=self.pad_id, keep_log_probs=keep_log_probs, count=count,
                        share=share.of_rows(part) if share is not None else None,
                    )  # fmt: skip
                except Exception as error:
                    alone = self.adapts and not is_divided(model)
                    if not alone or at_once == 1 or not is_out_of_memory(error):
                        raise
                    let_go(error)
                    answers = None
                if answers is None:  # outside of `except`, where Python still holds the error
                    at_once = self.most_at_once = max(1, min(at_once, len(part)) // 2)
                    give_back_memory()
                    if self.say is not None:
                        self.say(f"no room to generate so many answers at once: now {at_once}")
                    continue
                log_probs = answers.log_probs or [[]] * len(part)
                found |= dict(
                    zip(part, zip(answers.ids, answers.ended, log_probs, strict=True), strict=True)
                )
                start += len(part)
                count.finished(len(part), sum(map(len, answers.ids)))
        ordered = [found[row] for row in range(len(rows))]
        return Answers(
            rows,
            [ids for ids, _, _ in ordered],
            [ended for _, ended, _ in ordered],
            [log_probs for _, _, log_probs in ordered] if keep_log_probs else [],
            at_once,
        )

    def rows_at_once(self, rows: Sequence[Sequence[int]], limit: int) -> int:
        """How many answers to generate together: of a divided model as many in each process."""
        most = min(len(rows), self.most_at_once or len(rows))
        fitting = rows_at_once(
            self.models(),
            tokens=max(map(len, rows)) + limit,
            least=min(self.least, most),
            most=most,
            trained=self.trained,
        )
        return least_of_all(fitting) if is_divided(self.models()[0]) else fitting


def stop_ids(model: Any) -> list[int]:
    """The tokens that end an answer."""
    stops = model.generation_config.eos_token_id
    return list(stops) if isinstance(stops, list | tuple) else [stops]


def generate_batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    pad_id: int,
    keep_log_probs: bool = False,
    count: AnswerCount | None = None,
    share: Share | None = None,
) -> Answers:
    """One answer to each prompt, all generated together.

    Args:
        model: The policy, in `generating`.
        prompts: As token ids; they are padded on the left.
        sampling: How answers are drawn.
        pad_id: The padding token.
        keep_log_probs: Keep each token's log-probability as generation computes it.
        count: Shows how far they are.
        share: Which part of a batch the prompts are.
    """
    import torch
    from transformers import LogitsProcessorList

    device = next(model.parameters()).device
    width = max(map(len, prompts)) if share is None else share.width
    ids = torch.full((len(prompts), width), pad_id)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for place, prompt in enumerate(prompts):
        ids[place, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[place, width - len(prompt) :] = 1
    drawn = share is not None and sampling.temperature > 0
    config = generation_config(replace(sampling, temperature=0.0) if drawn else sampling, pad_id)
    draws = DrawnRows(share, sampling.temperature) if share is not None and drawn else None
    recorder = LogProbRecorder(width, sampling.temperature or 1.0) if keep_log_probs else None
    watch = count.watch(width, sampling.stops) if count is not None else None
    with torch.no_grad(), _generation_settings(model, config):
        output = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=config,
            logits_processor=LogitsProcessorList([one for one in (recorder, watch, draws) if one]),
            # All processes compute each token of a divided model, until the last answer ends.
            synced_gpus=is_divided(model),
        )
    lines = output[:, width:].tolist()
    ends = set(sampling.stops)
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


def generation_config(sampling: Sampling, pad_id: int) -> Any:
    """The settings of transformers for this sampling, and for nothing else."""
    from transformers import GenerationConfig

    drawn = sampling.temperature > 0
    options: dict[str, Any] = {
        "max_new_tokens": sampling.limit,
        "min_new_tokens": sampling.shortest or None,
        "do_sample": drawn,
        "temperature": sampling.temperature if drawn else None,
        "top_k": sampling.top_k if drawn else None,
        "top_p": sampling.top_p if drawn else None,
        "min_p": sampling.min_p if drawn else None,
        "repetition_penalty": sampling.repetition_penalty,
        "use_cache": True,
        "eos_token_id": list(sampling.stops),
        "pad_token_id": pad_id,
    }
    return GenerationConfig(**{**options, **sampling.more})


@dataclass(frozen=True)
class Share:
    """Some prompts of a batch that other processes generate the rest of."""

    places: Sequence[int]  # of the prompts in the batch
    of: int  # prompts of the batch
    width: int  # tokens of its longest prompt

    def of_rows(self, rows: Sequence[int]) -> Share:
        """The same for a part of these prompts."""
        return replace(self, places=[self.places[row] for row in rows])


class DrawnRows:
    """A logits processor that draws the tokens of a share with the random numbers of the whole
    batch: behind it, the likeliest token is the drawn one.

    torch.multinomial divides the probabilities by exponential random numbers and takes the largest.
    """

    def __init__(self, share: Share, temperature: float) -> None:
        self.share, self.temperature = share, temperature

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        import torch

        size = (self.share.of, scores.shape[-1])
        noise = torch.empty(size, dtype=torch.float32, device=scores.device).exponential_(1)
        probabilities = torch.softmax(scores.float() / self.temperature, dim=-1)
        return probabilities / noise[list(self.share.places)]


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
def generating(model: Any) -> Iterator[None]:
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
