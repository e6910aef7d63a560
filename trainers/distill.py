"""Distillation under any update scheme: the student's next-token distributions are drawn towards a
teacher's, on the data's answers, on answers that the teacher writes before training, and on answers
that the student writes while it trains (GKD, arXiv:2306.13649).

Where the teacher is the frozen base of the module that is trained, one copy of it is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from advisor.data import recognise
from advisor.ground.errors import Fault
from advisor.plan.vllm import asks_server, unservable
from trainers.evaluation.generation import TextEvaluator
from trainers.evaluation.loss import Sample, held_out
from trainers.job import Model, Tokenizer, Trainer
from trainers.job.job import Job
from trainers.job.libraries import check_versions
from trainers.job.machine import torch_device
from trainers.rollouts.transformers_engine import AT_ONCE
from trainers.rollouts.vllm_engine import OpenServer, open_rollouts
from trainers.rows import Prepared, Row
from trainers.rows.conversation import PROMPTS, Prompt
from trainers.rows.packing import in_batches, padded_batch
from trainers.rows.stage_rows import data_source, prepare_rows
from trainers.sft import SFT
from trainers.stage.objective import Build, EvaluatedBy, Opened, room_faults
from trainers.stage.run import trains
from trainers.start.loading import check_vocabulary
from trainers.teachers.teacher import (
    Answering,
    Written,
    answered,
    answered_row,
    answers_folder,
    check_same_tokens,
    cut_note,
    is_own_base,
    load_teacher,
    teacher_digest,
    teacher_source,
    written_answers,
)

TEACHER, DATA = "teacher", "data"
DISTANCE = "divergence from the teacher"


class DistillationEvaluator(TextEvaluator):
    """Also measures the distance to the teacher on held-out rows."""

    def own_scores(self, samples: Sequence[Sample]) -> dict[str, list[float | None]]:
        trainer = cast(Any, self.trainer)
        device, pad = trainer.args.device, trainer.processing_class.pad_token_id
        at_once = trainer.args.per_device_train_batch_size

        def means(places: list[int]) -> list[Any]:
            rows = [self.rows[place] for place in places]
            found_N = trainer.row_distances(padded_batch(rows, pad, device))
            return [part.mean() for part in found_N.split([row.learned for row in rows])]

        sizes = [row.tokens for row in self.rows]
        found = in_batches(sizes, at_once, means, "distance to the teacher")
        return {DISTANCE: list(map(float, found))}

    def is_better_higher(self, name: str) -> bool:
        return False

    def weights(self, name: str) -> list[float]:
        return [row.learned for row in self.rows]


class Distillation(SFT):
    """Learns a teacher's distribution over the next token, at every token of an answer."""

    trained_by = "trainers.teachers.trainer:Distilling"
    evaluated_by: EvaluatedBy | None = DistillationEvaluator
    logged = ("completions/mean_length", "completions/clipped_ratio")
    asks_teacher = True
    teacher: Any = None  # the teacher's model, once something needs it
    server: OpenServer | None = None  # that generates the student's answers

    def faults(self, job: Job) -> list[Fault]:
        teacher_source(job)
        if job.options.get("teacher_quantization"):
            check_versions(quantized=True)
        stage, found = job.stage, list(unservable(job.stage, job.options))
        at = f"stage {stage.name}"
        if self.answers_from(job) == TEACHER:
            found += room_faults(job)
        if asks_server(stage) and job.options["on_policy"] == 0:
            what = "rollouts: vllm has no effect: at on_policy 0 the student writes nothing"
            found.append(Fault(where=at, what=what, hint="raise on_policy, or remove rollouts"))
        if stage.trl.get("loss_type") not in (None, "nll"):
            what = "trl: 'loss_type' has no effect: the loss is the distance to the teacher"
            found.append(Fault(where=at, what=what, hint="remove it; beta says which distance"))
        return found

    # ------------------------------------------------------------------ rows

    def answers_from(self, job: Job) -> str:
        """Whose answers are learned where the student writes none: the data's, if it has any."""
        chosen = job.options.get("answers")
        if chosen is not None:
            return str(chosen)
        kind = recognise(data_source(job), mapping=job.data.mapping).kind
        return TEACHER if kind == "prompts_with_verifier" else DATA

    def rows(self, job: Job, tokenizer: Tokenizer) -> Prepared[Row]:
        check_same_tokens(job, tokenizer)  # before any model is loaded
        if self.answers_from(job) == DATA:
            return super().rows(job, tokenizer)
        limit = int(job.options["response_tokens"])
        data: Prepared[Prompt] = prepare_rows(
            job, tokenizer, PROMPTS, seq_len=job.stage.seq_len - limit
        )
        held, asked, notes = held_out(data.holdout), list(data.train), []
        none, longest = ([tokenizer.eos_token_id] * count for count in (1, limit))
        if job.dry_run:  # of the length that answers may have
            written = [Written(longest, True)] * len([*held, *asked])
        else:
            if job.options["on_policy"] == 1:
                notes.append(f"the student itself answers the {len(asked):,} requests of training")
                asked = []
            written = self.write_answers(job, tokenizer, [*held, *asked], data.digest)
            notes.append(cut_note(written, limit))
            if rest := len(data.holdout) - len(held):
                notes.append(f"{rest:,} held-out requests are not measured on")
            written += [Written(none, True)] * (len(data.train) - len(asked))
        pairs = zip([*held, *data.train], written, strict=True)
        rows = [answered_row(prompt, answer, tokenizer) for prompt, answer in pairs]
        return answered(data, rows[: len(held)], rows[len(held) :], notes)

    def write_answers(
        self, job: Job, tokenizer: Tokenizer, prompts: Sequence[Prompt], digest: str
    ) -> list[Written]:
        """The teacher's answers to the requests, from the run folder as far as they are there.

        Args:
            digest: Of the data that the requests come from.
        """
        device = torch_device(job.plan.launch.device)
        answering = Answering(
            job=job,
            tokenizer=tokenizer,
            load=lambda: load_teacher(job, device),
            limit=int(job.options["response_tokens"]),
            temperature=job.options["temperature"],
            model=self.teacher,
        )
        folder = answers_folder(job, f"{digest} {len(prompts)}")
        found = written_answers(folder, prompts, answering)
        self.teacher = answering.model
        return found

    def depends_on(self, job: Job, data: Prepared[Row]) -> dict[str, str]:
        return {"teacher": teacher_digest(job)}

    # ------------------------------------------------------------------ training

    def load(self, opened: Opened[Row]) -> Model:
        job, data = opened.job, opened.data
        self.server = open_rollouts(job)  # before the model is loaded: it may be gone
        model: Any = super().load(opened)
        if is_own_base(job):
            self.teacher = None
        elif self.teacher is None:
            self.teacher = load_teacher(job, opened.device)
        if self.teacher is not None:
            check_vocabulary(self.teacher, opened.tokenizer, (*data.train, *data.holdout))
        return model

    def trainer_parts(self, build: Build[Row], config: Any) -> dict[str, Any]:
        own = {"job": build.job, "teacher": self.teacher}
        return {**super().trainer_parts(build, config), **own}

    def trainer(self, build: Build[Row]) -> Trainer:
        built: Any = super().trainer(build)
        beside = [] if self.teacher is None else [self.teacher]
        built.answer_by(build.job, self.server, least=AT_ONCE, beside=beside)
        return cast(Trainer, built)


train = trains(Distillation)
