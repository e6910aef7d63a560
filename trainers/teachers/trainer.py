"""TRL's trainer with the distance to a teacher as its loss.

GKD (arXiv:2306.13649): a share of the micro-batches keeps the answers of the data, and in the
others the student writes answers of its own, on which the teacher corrects it. All of those of one
optimizer step are written together, before the step. What is drawn depends on the stage's
seed and the number of the step alone, so that a resumed run draws the same.

Why neither of TRL's own: DistillationTrainer (TRL 1.16) learns from the student's answers alone and
refuses prefixes; GKDTrainer holds the logits of both models whole and decides anew in each process
whose turn it is. The loss is TRL's kernel and the frame its SFTTrainer, as in GKDTrainer.

Dimensions: B rows, T tokens of the longest, N learned tokens laid end to end, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any

import torch

from trainers.job.evaluating import evaluating
from trainers.job.job import Job
from trainers.job.machine import process_rank
from trainers.rows.row import IGNORED
from trainers.stage.trl_trainer import SFT, AnswersItself
from trainers.step.answer_loss import PLACES, answer_places, at_places, head_of, read_in
from trainers.teachers.divergence import Distance

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


class Distilling(AnswersItself, SFT):
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
        if not asked:
            return rows
        prompts = [list(features[place]["input_ids"][: starts[place]]) for place in asked]
        step, rank = self.state.global_step, process_rank()
        with own_random_numbers(self.args.device, self.stage.seed, step, rank=rank):
            sampling = Sampling(
                limit=min(self.options["response_tokens"], max(room[place] for place in asked)),
                temperature=self.options["temperature"],
                stops=stop_ids(self.model),
            )
            self.engine.load_weights()
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
        with torch.no_grad():
            if self.teacher is not None:
                teacher = self.teacher
                hidden_BTH = teacher.base_model(**asked, use_cache=False).last_hidden_state
            else:
                # PEFT's switched-off prefix goes past the forward that has autocast around it.
                teacher = self.student
                with self.without_module() as model, autocast:
                    hidden_BTH, _ = model(**asked, at_head=lambda _, hidden_BTH: hidden_BTH)
        return teacher, at_places(hidden_BTH, places_N)

    @contextmanager
    def without_module(self) -> Iterator[Any]:
        """The student as its base alone, in evaluation mode."""
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
        try:
            with model.disable_adapter():
                yield model
        finally:
            model.train(was_training)

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
