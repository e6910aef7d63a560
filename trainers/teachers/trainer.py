"""TRL's trainer with the distance to a teacher as its loss.

GKD (arXiv:2306.13649): a share of the micro-batches keeps the answers of the data, and in the
others the student writes answers of its own, on which the teacher corrects it. All of those of one
optimizer step are written together, before the step. What is drawn depends on the stage's
seed and the number of the step alone, so that a resumed run draws the same.

Why neither of TRL's own: DistillationTrainer (TRL 1.16) learns from the student's answers alone and
refuses prefixes; GKDTrainer holds the logits of both models whole and decides anew in each process
whose turn it is. The loss is TRL's kernel and the frame its SFTTrainer, as in GKDTrainer.

The distance is the generalised Jensen-Shannon divergence of GKD (equation 1), of which beta 0 is
the forward KL(teacher || student) and beta 1 the reverse KL(student || teacher). TRL's kernel
computes it, and its gradient, from hidden states and output matrices in tiles of the vocabulary. On
the CPU, where it takes twice as long (SmolLM2-135M, 384 tokens), and for a head that is no plain
matrix (one with an adapter on it), tokens go through in slices whose logits are computed again in
the backward pass if there are several.

Dimensions: B rows, T tokens of the longest, N learned tokens laid end to end, H hidden size (each
model its own), V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.nn.functional import kl_div, log_softmax
from torch.utils.checkpoint import checkpoint
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

from trainers.job.evaluating import evaluating
from trainers.job.job import Job
from trainers.job.machine import process_rank
from trainers.rows.row import IGNORED
from trainers.stage.trl_trainer import SFT
from trainers.step.answer_loss import PLACES, Head, answer_places, at_places, head_of, read_in

SLICE_LOGITS = 2**25  # of one model in a slice: 128 MiB in float32
ROOM = 8  # tokens that seq_len has to leave for an answer; else the data's answer is kept


def is_on_policy(number: int, share: float) -> bool:
    """Whether the student answers the micro-batch of this number, so that of any n in a row a share
    of n does, one more or less; the same in every process and every attempt.
    """
    return int((number + 1) * share) > int(number * share)


def prompt_length(labels: Sequence[int]) -> int:
    """Where the last answer of a row begins: everything before it is the question to the student.

    0 if the row is all answer: a text has no question.
    """
    end = len(labels)
    while end and labels[end - 1] == IGNORED:
        end -= 1
    while end and labels[end - 1] != IGNORED:
        end -= 1
    return end


def rows_of(batch: Mapping[str, Any]) -> list[dict[str, list[int]]]:
    """The rows that a micro-batch was put together from."""
    columns = (batch["input_ids"], batch["labels"], batch["attention_mask"].bool())
    return [
        {"input_ids": ids[kept].tolist(), "labels": labels[kept].tolist()}
        for ids, labels, kept in zip(*columns, strict=True)
    ]


class Distilling(SFT):
    """SFT's trainer with the distance to a teacher as its loss.

    Args:
        job: The stage.
        teacher: The model that is learned from; None: the student without its module.
    """

    def __init__(self, *args: Any, job: Job, teacher: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stage, self.options, self.teacher = job.stage, job.options, teacher
        self.student = (
            self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        )
        self._written: list[tuple[int, bool]] = []  # tokens of an answer, whether it ended

    # ------------------------------------------------------------------ the student's answers

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        batches = list(islice(epoch_iterator, num_batches))
        first = self.state.global_step * self.args.gradient_accumulation_steps
        chosen = [
            place
            for place in range(len(batches))
            if is_on_policy(first + place, self.options["on_policy"])
        ]
        answered = iter(self.answer([row for place in chosen for row in rows_of(batches[place])]))
        for place in chosen:
            rows = list(islice(answered, len(batches[place]["input_ids"])))
            batches[place] = self.data_collator(rows)
        return super().get_batch_samples(iter(batches), num_batches, device)

    def answer(self, features: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The rows with answers of the student in place of their last ones."""
        from trainers.rollouts import Sampling
        from trainers.rollouts.transformers_engine import stop_ids

        starts = [prompt_length(feature["labels"]) for feature in features]
        room = [self.stage.seq_len - start for start in starts]
        asked = [place for place, start in enumerate(starts) if start > 0 and room[place] >= ROOM]
        rows = [dict(feature) for feature in features]
        if features:  # of all processes or of none, which wait for each other here
            self.engine.load_weights()
        if not asked:
            return rows
        prompts = [list(features[place]["input_ids"][: starts[place]]) for place in asked]
        with own_random_numbers(
            self.args.device, self.stage.seed, self.state.global_step, rank=process_rank()
        ):
            sampling = Sampling(
                limit=min(self.options["response_tokens"], max(room[place] for place in asked)),
                temperature=self.options["temperature"],
                stops=stop_ids(self.model),
            )
            found = self.engine.generate(prompts, sampling)
        for place, prompt, written, ended in zip(
            asked, prompts, found.ids, found.ended, strict=True
        ):
            answer = written[: room[place]]
            rows[place] |= {
                "input_ids": [*prompt, *answer],
                "labels": [*[IGNORED] * len(prompt), *answer],
            }
            self._written.append((len(answer), ended and len(answer) == len(written)))
        return rows

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._written and "loss" in logs:
            lengths, ended = zip(*self._written, strict=True)
            logs["completions/mean_length"] = sum(lengths) / len(lengths)
            logs["completions/clipped_ratio"] = 1 - sum(ended) / len(ended)
            self._written = []
        super().log(logs, start_time)

    # ------------------------------------------------------------------ the loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if not self.model.training:
            return super().compute_loss(model, inputs)
        self.count_tokens(read_in(inputs), inputs)
        found_N, balance = self.distances(model, inputs)
        return self.mean_loss(found_N, balance, num_items_in_batch)

    def distances(self, model: Any, inputs: Mapping[str, Any]) -> tuple[Any, Any | None]:
        """(the divergence at each learned token: N, the loss that balances experts or None)."""
        asked = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        places_N = inputs.get(PLACES)
        if places_N is None:
            places_N = answer_places(inputs["labels"])
        teacher, teacher_NH = self.teacher_states(asked, places_N)

        def distance(student: Any, hidden_BTH: Any) -> Any:
            between = Distance(
                student=head_of(student), teacher=head_of(teacher),
                beta=self.options["beta"], temperature=self.options["temperature"],
            )  # fmt: skip
            return between(at_places(hidden_BTH, places_N), teacher_NH)

        more = (
            {"output_router_logits": True} if self.aux_loss_enabled and self.model.training else {}
        )
        return model(**asked, **more, at_head=distance)

    def teacher_states(self, asked: Mapping[str, Any], places_N: Any) -> tuple[Any, Any]:
        """(the teacher without PEFT's wrapping, its hidden states: N, H)."""
        autocast = self.accelerator.autocast() if torch.is_grad_enabled() else nullcontext()
        if self.teacher is not None:
            teacher = self.teacher
            with torch.no_grad():
                hidden_BTH = teacher.base_model(**asked, use_cache=False).last_hidden_state
        else:
            # PEFT's switched-off prefix goes past the forward that has autocast around it.
            teacher, model = self.student, self.accelerator.unwrap_model(self.model)
            with evaluating(model), model.disable_adapter(), autocast:
                hidden_BTH, _ = model(**asked, at_head=lambda _, hidden_BTH: hidden_BTH)
        return teacher, at_places(hidden_BTH, places_N)

    def held_out_loss(self, model: Any, inputs: Any) -> Any:
        with self.accelerator.autocast():
            return self.distances(model, inputs)[0].mean()

    def row_distances(self, inputs: Mapping[str, Any]) -> Any:
        """The divergence at each learned token of rows that are not trained on: N."""
        with evaluating(self.model):
            return self.distances(self.model, inputs)[0]


@contextmanager
def own_random_numbers(device: Any, seed: int, step: int, *, rank: int = 0) -> Iterator[None]:
    """Random numbers that depend on the seed, the step and the process, and leave those of the
    training as they were.
    """
    cards = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cards):
        torch.manual_seed((seed * 1_000_003 + step) * 4096 + rank)
        yield


# --------------------------------------------------------------------------- the distance


@dataclass(frozen=True, kw_only=True)
class Distance:
    """Called with the hidden states before both heads (N, H), it gives the divergence at each
    token, in nats: N. Its gradient goes to the student alone.
    """

    student: Head
    teacher: Head
    beta: float  # 0 forward KL, 1 reverse KL, between them Jensen-Shannon
    temperature: float = 1.0  # both models' logits are divided by it

    @property
    def size(self) -> int:
        """Tokens that both heads score: matrices of one tokenizer may be padded differently."""
        return min(int(head.module.weight.shape[0]) for head in (self.student, self.teacher))

    def __call__(self, student_NH: Any, teacher_NH: Any) -> Any:
        if not len(student_NH):
            return student_NH.sum(dim=-1)
        is_plain = self.student.is_plain and self.teacher.is_plain
        if is_plain and student_NH.device.type == "cuda":
            return self.in_tiles(student_NH, teacher_NH)
        return self.in_slices(student_NH, teacher_NH)

    def in_tiles(self, student_NH: Any, teacher_NH: Any) -> Any:
        """By TRL's kernel, for heads that are plain matrices."""
        mine, theirs = self.student, self.teacher
        found_N, _ = ChunkedDivergenceFunction.apply(
            student_NH, *_matrix(mine, self.size), teacher_NH, *_matrix(theirs, self.size),
            float(self.beta), self.temperature, mine.scale, mine.cap, theirs.scale, theirs.cap,
        )  # fmt: skip
        return found_N

    def in_slices(self, student_NH: Any, teacher_NH: Any) -> Any:
        """From the logits of some tokens at a time; those of several slices are computed again in
        the backward pass.
        """

        def of_slice(own_NH: Any, other_NH: Any) -> Any:
            return logit_divergences(
                self.student.logits(own_NH, self.size) / self.temperature,
                self.teacher.logits(other_NH, self.size).detach() / self.temperature,
                beta=self.beta,
            )

        step = max(1, SLICE_LOGITS // self.size)
        if len(student_NH) <= step:
            return of_slice(student_NH, teacher_NH)
        slices = zip(student_NH.split(step), teacher_NH.split(step), strict=True)
        return torch.cat([checkpoint(of_slice, *these, use_reentrant=False) for these in slices])


def logit_divergences(student_NV: Any, teacher_NV: Any, *, beta: float) -> Any:
    """The divergence at each token from logits: N."""
    own_NV, other_NV = log_softmax(student_NV, dim=-1), log_softmax(teacher_NV, dim=-1)

    def kl_N(of_NV: Any, towards_NV: Any) -> Any:
        return kl_div(towards_NV, of_NV, reduction="none", log_target=True).sum(dim=-1)

    if beta == 0:
        return kl_N(other_NV, own_NV)
    if beta == 1:
        return kl_N(own_NV, other_NV)
    mixed_NV = torch.logaddexp(own_NV + math.log1p(-beta), other_NV + math.log(beta))
    return beta * kl_N(other_NV, mixed_NV) + (1 - beta) * kl_N(own_NV, mixed_NV)


def _matrix(head: Head, size: int) -> tuple[Any, Any | None]:
    bias = head.module.bias
    return head.module.weight[:size], None if bias is None else bias[:size]
