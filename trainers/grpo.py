"""Group relative policy optimisation (arXiv:2402.03300) under any update scheme: the model's own
answers to each prompt, several of them, are compared by a reward.

The rows of a step are prompts. All prompts of an optimizer step are answered together,
`generations` times each, or in as few parts as fit into memory; `micro_batch_size` answers go
through one forward pass. Each answer is used for one update, so that clipping has an effect only
from `trl: {num_iterations: 2}` on.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

from advisor.ground.errors import Fault, InputError, TrainingFailed
from advisor.record.content import folder_digest
from advisor.record.stage import Check, RewardRecord, SavedFile
from trainers.evaluation.generation import general_rows
from trainers.evaluation.loss import answer_log_probs
from trainers.evaluation.rewards import RewardEvaluator, prompt_row
from trainers.evaluation.saved_result import Probe
from trainers.job.job import Job, label
from trainers.job.machine import is_main_process
from trainers.job.types import Device, Model, Tokenizer, Trainer
from trainers.rewards.rollout_log import RolloutLog
from trainers.rewards.scoring import Rewards
from trainers.rewards.sources import build_rewards, model_folders, reward_faults, source_note
from trainers.rewards.watch import (
    Watch,
    differ_checks,
    missing_checks,
    reward_checks,
    reward_records,
    stage_lines,
)
from trainers.rollouts.choose import OpenServer, engine_of, open_rollouts, rollout_faults
from trainers.rollouts.engine import CORRECTION_CAPPED, ENGINE_MISMATCH, Engine, Sampling
from trainers.rows import Prepared
from trainers.rows.prompts import PROMPTS, Prompt
from trainers.say.telling import say
from trainers.stage import run as stage
from trainers.stage.objective import Objective
from trainers.step import settings
from trainers.updates import Update

LARGEST_WEIGHT = 2.0  # of RLOO's importance weights
SHORTEST_PROMPT = 8  # tokens that have to be left for it within seq_len


class GRPO(Objective[Prompt]):
    """Makes those answers of the model likelier whose reward is above that of its other answers to
    the same prompt.
    """

    kind = PROMPTS
    logged: tuple[str, ...] = (
        "reward",
        "reward_std",
        "frac_reward_zero_std",
        "kl",
        "entropy",
        "completions/mean_length",
        "completions/clipped_ratio",
        "clip_ratio/region_mean",
        ENGINE_MISMATCH,
        CORRECTION_CAPPED,
    )
    rewards: Rewards
    watch: Watch
    server: OpenServer | None = None  # that generates the answers; None: this process

    def config_class(self) -> type:
        from trl import GRPOConfig

        return GRPOConfig

    def trainer_class(self) -> type:
        """TRL's trainer."""
        from trl import GRPOTrainer

        return GRPOTrainer

    def own_arguments(self, job: Job) -> dict[str, Any]:
        """What this objective alone sets in TRL's config."""
        return {"epsilon": job.options["clip_range"]}

    def faults(self, job: Job) -> list[Fault]:
        found = [*reward_faults(job), *rollout_faults(job)]
        answer = job.options["response_tokens"]
        if answer + SHORTEST_PROMPT > job.stage.seq_len:
            what = (
                f"response_tokens {answer} leave no room for a prompt"
                f" within seq_len {job.stage.seq_len}"
            )
            found.append(
                Fault(
                    where=f"stage {job.stage.name}",
                    what=what,
                    hint="raise seq_len, or lower response_tokens",
                )
            )
        return found

    def seq_len(self, job: Job) -> int:
        """What an answer leaves of seq_len."""
        return job.stage.seq_len - int(job.options["response_tokens"])

    def rows(self, job: Job, tokenizer: Tokenizer) -> Prepared[Prompt]:
        data: Prepared[Prompt] = super().rows(job, tokenizer)
        at_once = job.stage.micro_batch_size * settings.world_size()
        if len(data.train) < at_once:
            raise InputError(
                f"{len(data.train)} prompts to train on, and {at_once} are answered at once",
                where=f"stage {job.stage.name}",
                hint="lower micro_batch_size, or add prompts",
            )
        note = source_note(job, (*data.train, *data.holdout))
        return replace(data, notes=(*data.notes, note)) if note else data

    def load(
        self, job: Job, device: Device, update: Update, tokenizer: Tokenizer, data: Prepared[Prompt]
    ) -> Any:
        # Before the model is loaded, because the server may be gone and the reward be refused.
        self.server = open_rollouts(job)
        self.rewards = build_rewards(job, tokenizer, (*data.train, *data.holdout), device)
        self.logged = (*type(self).logged, *self.rewards.logs)
        return super().load(job, device, update, tokenizer, data)

    def trainer(
        self,
        job: Job,
        model: Model,
        tokenizer: Tokenizer,
        peft_config: Any,
        sequences: Sequence[Sequence[Prompt]],
        arguments: Mapping[str, Any],
    ) -> Trainer:
        from trainers.rewards.in_trl import Scored, WatchCallback, reward_functions
        from trainers.rollouts.transformers_engine import TransformersEngine
        from trainers.rows.rows_dataset import rows_dataset

        rows = [row for (row,) in sequences]
        generations = job.options["generations"]
        together = steps_together(job, len(rows), processes=settings.world_size())
        rows = filled(rows, together * job.stage.micro_batch_size * settings.world_size())
        own = {
            "beta": job.options["beta"],
            "num_generations": generations,
            "max_completion_length": job.options["response_tokens"],
            "gradient_accumulation_steps": job.stage.grad_accum * generations,
            "steps_per_generation": together * generations,
            "per_device_eval_batch_size": generations,
            "remove_unused_columns": False,
            "reward_weights": [part.weight for part in self.rewards.parts],
            **self.own_arguments(job),
        }
        scored = Scored()
        built = with_prepared_prompts(self.trainer_class())(
            model=model,
            reward_funcs=reward_functions(self.rewards, scored),
            args=settings.build_config(self.config_class(), {**arguments, **own}, job),
            train_dataset=rows_dataset(rows, prompt_columns),
            processing_class=tokenizer,
            peft_config=peft_config,
            dropout=job.options.get("dropout", 0.0),
        )
        built.ids_of = {row.prompt: row.prompt_ids for row in rows}
        local = TransformersEngine(
            built.policy,
            pad_id=tokenizer.pad_token_id,
            models=lambda: [built.accelerator.unwrap_model(built.model)],
            least=job.stage.micro_batch_size * generations,
            # PEFT's generate goes past the forward that accelerate put autocast around.
            autocast=built.accelerator.autocast,
            adapts=not job.dry_run,
            say=say,
        )
        built.rollouts_from(engine_of(job, self.server, local, built.policy))
        built.rewards, built.scored, self.watch = self.rewards, scored, Watch()
        if is_main_process() and not job.dry_run:
            built.rollout_log = RolloutLog.of(job, arguments["max_steps"], engine=built.engine.name)
            built.add_callback(
                WatchCallback(
                    self.watch, self.rewards, self.logged, job.run / "metrics.jsonl",
                    stage=job.stage.name, task=job.task,
                    say=lambda text: say(f"{label(job)}: {text}"),
                )
            )  # fmt: skip
        return built

    def probe(self, job: Job, data: Prepared[Prompt], tokenizer: Tokenizer) -> Probe:
        return Probe(
            row=prompt_row(min(data.train, key=lambda row: (row.tokens, row.number))),
            pad_id=tokenizer.pad_token_id,
        )

    def evaluator(
        self, job: Job, trainer: Trainer, data: Prepared[Prompt], fingerprint: str
    ) -> RewardEvaluator:
        return RewardEvaluator(job, trainer, data, fingerprint, self.rewards)

    def evaluation_loss(self, trainer: Trainer, rows: Sequence[Prompt]) -> float | None:
        general = general_rows(
            trainer.processing_class,
            trainer.args.max_completion_length + max(row.tokens for row in rows),
        )[: len(rows)]
        return (
            -sum(answer_log_probs(trainer, general)) / sum(row.learned for row in general)
            if general
            else None
        )

    def depends_on(self, job: Job, data: Prepared[Prompt]) -> dict[str, str]:
        """The reward model's files; those of a verifier or a function are keys of the stage."""
        folders = model_folders(job, (*data.train, *data.holdout))
        digests = [folder_digest(folder) for folder in folders]
        return {f"reward {place}" if place else "reward": one for place, one in enumerate(digests)}

    def save(
        self, job: Job, trainer: Trainer, model: Model, tokenizer: Tokenizer
    ) -> dict[str, SavedFile]:
        """Write the result.

        Raises TrainingFailed if every answer got the same reward, so that nothing was learned: the
        main process, whose answers are those that the checks look at.
        """
        if is_main_process() and self.rewards.constant and job.max_steps is None:
            hint = (
                "look at the sample answers: the task may be too hard for the model (train it on"
                " examples first), or the reward does not measure it"
            )
            raise TrainingFailed(f"nothing was learned: {self.rewards.constant_text()}", hint=hint)
        return super().save(job, trainer, model, tokenizer)

    def about_rewards(self, job: Job) -> tuple[tuple[RewardRecord, ...], list[Check]]:
        lines = stage_lines(job.run / "metrics.jsonl", stage=job.stage.name, task=job.task)
        records = reward_records(lines, self.rewards.parts)
        checks = [
            *reward_checks(records, self.rewards.parts),
            *missing_checks(lines, self.rewards.parts),
        ]
        return records, [*checks, *self.watch.checks(), *differ_checks(self.rewards)]


def steps_together(job: Job, prompts: int, *, processes: int) -> int:
    """How many micro-batches of prompts are answered together: those of an optimizer step, or the
    largest equal part of it that there are prompts for.
    """
    accumulated = job.stage.grad_accum
    return max(
        (
            count
            for count in range(1, accumulated + 1)
            if accumulated % count == 0
            and count * job.stage.micro_batch_size * processes <= prompts
        ),
        default=1,
    )


def prompt_columns(rows: Sequence[Prompt]) -> dict[str, list[Any]]:
    """The columns of the trainer: prompts, the answers that rewards compare with, token ids."""
    return {
        "prompt": [row.prompt for row in rows],
        "answer": [row.answer for row in rows],
        "ids": [list(row.prompt_ids) for row in rows],
    }


def filled(rows: Sequence[Prompt], size: int) -> list[Prompt]:
    """The prompts, and the first of them again until `size` divides their number: TRL leaves out
    what does not fill a part.
    """
    return [*rows, *rows[: -len(rows) % size]]


def groups_of(prompt_ids: Sequence[Sequence[int]], size: int) -> tuple[list[Sequence[int]], int]:
    """(prompts, answers to each) for prompts that are repeated for each of their answers."""
    prompts = list(prompt_ids[::size])
    repeated = [prompt for prompt in prompts for _ in range(size)]
    return (prompts, size) if repeated == list(prompt_ids) else (list(prompt_ids), 1)


def with_prepared_prompts(trainer: type) -> type:
    """TRL's trainer class with our prompts as token ids, tools included, our reference model, and
    answers from the engine of the stage.
    """
    import transformers

    from trainers.rewards.in_trl import with_rollout_log
    from trainers.stage.trl_trainer import frozen_copy, with_safe_checkpoints

    base: Any = with_rollout_log(with_safe_checkpoints(trainer))

    class Prompted(base):
        ids_of: Mapping[str, Sequence[int]]
        engine: Engine
        loaded_step = -1  # whose weights the engine has
        drawn: Sequence[Sequence[float]] = ()  # log-probabilities of the last answers

        def __init__(self, *args: Any, model: Any, **kwargs: Any) -> None:
            # TRL loads the reference model by the name in the config. That is a second load, onto
            # whatever devices there are, and of the base if an earlier stage's module was merged.
            module: Any = sys.modules[trainer.__module__]
            loads = module.create_model_from_path
            config = kwargs["args"]
            module.create_model_from_path = lambda *_, **__: frozen_copy(model, config)
            try:
                super().__init__(*args, model=model, **kwargs)
            finally:
                module.create_model_from_path = loads

        def rollouts_from(self, engine: Engine) -> None:
            """Generate with this engine from now on."""
            self.engine = engine
            # TRL's name for an engine whose probabilities are not the trainer's: it then computes
            # those of the trainer before the step, and GRPO corrects its loss by their ratio.
            self.use_vllm = engine.differs
            self.vllm_mode = "server"

        def train(self, *args: Any, **kwargs: Any) -> Any:
            with closing(self.engine):
                return super().train(*args, **kwargs)

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            found = super()._generate_and_score_completions(inputs)
            if self.engine.differs:
                mode = "train" if self.model.training else "eval"
                for name, value in correct(found, self.drawn, self.args).items():
                    self._metrics[mode][name].append(
                        self.accelerator.gather(value.reshape(1)).mean().item()
                    )
            return found

        def before_parts(self, model: Any, inputs: Any) -> Any:
            model.train()
            return Written(self._prepare_inputs(inputs))

        def plain_step(self, model: Any, inputs: Any, num_items_in_batch: Any) -> Any:
            # TRL's own step also counts it, once for each part.
            return transformers.Trainer.training_step(self, model, inputs, num_items_in_batch)

        def after_parts(self) -> None:
            self._step += 1

        def parts_of(self, inputs: Any, rows: Any, size: int) -> list[tuple[Any, float]]:
            return parts_of_answers(inputs, size)

        def _prepare_inputs(self, generation_batch: Any) -> Any:
            if isinstance(generation_batch, Written):
                return dict(generation_batch)
            return super()._prepare_inputs(generation_batch)

        def _get_per_token_logps_and_entropies(
            self, model: Any, ids: Any, mask: Any, kept: Any, batch_size: Any = None, **kwargs: Any
        ) -> Any:
            if self.rows_at_once is not None and batch_size is not None:
                batch_size = min(batch_size, self.rows_at_once.rows)
            return super()._get_per_token_logps_and_entropies(
                model, ids, mask, kept, batch_size=batch_size, **kwargs
            )

        def _generate_single_turn(
            self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any
        ) -> Any:
            if self.use_transformers_continuous_batching:
                with self.accelerator.autocast():
                    return super()._generate_single_turn(prompt_ids, *args, **kwargs)
            if self.state.global_step != self.loaded_step:
                self.engine.load_weights()
                self.loaded_step = self.state.global_step
            prompts, each = groups_of(prompt_ids, self.num_generations)
            answers = self.engine.generate(
                prompts, self.sampling(), n=each, keep_log_probs=self.engine.differs
            )
            self.drawn = answers.log_probs
            if trainer.__name__ == "RLOOTrainer":  # which has no place for log-probabilities
                return answers.ids
            return answers.ids, answers.log_probs or None

        def sampling(self) -> Sampling:
            """How answers are drawn, from TRL's config."""
            own = self.args.generation_kwargs or {}
            cache = self.args.cache_implementation
            return Sampling(
                limit=self.max_completion_length,
                stops=self.eos_token_ids,
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=self.top_k,
                min_p=self.min_p,
                repetition_penalty=self.repetition_penalty,
                more={**({"cache_implementation": cache} if cache else {}), **own},
            )

        @contextmanager
        def policy(self) -> Iterator[Any]:
            """The whole model, out of what wraps it for training."""
            from trl.models.utils import unwrap_model_for_generation

            with (
                unwrap_model_for_generation(
                    self.model_wrapped,
                    self.accelerator,
                    gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                    gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
                ) as model,
                self._dist.summon_full_params(self.model_wrapped, recurse=False),
            ):
                yield model

        def _tokenize_prompts(
            self, prompts: list[str]
        ) -> tuple[list[list[int]], None, dict[str, Any]]:
            return [list(self.ids_of[prompt]) for prompt in prompts], None, {}

    Prompted.__name__ = f"Prompted{trainer.__name__}"
    return Prompted


def correct(found: dict[str, Any], drawn: Sequence[Sequence[float]], args: Any) -> dict[str, Any]:
    """The numbers to record of answers that another program drew, over the tokens of this process.

    GRPO's loss is corrected by TRL. RLOO compares whole answers, so their advantages are weighted
    by the ratio of whole answers, min(pi_old / pi_drawn, C) with C = 2 (Yao et al. 2025, as in
    trainers/ppo/math.py).

    Args:
        found: A batch of TRL with its advantages.
        drawn: Log-probabilities of each answer's tokens, as the engine drew them.
        args: TRL's config.
    """
    import torch

    mask = found["completion_mask"]
    count = mask.sum().clamp(min=1)
    if "old_logps" in found:
        sums = torch.tensor([sum(line) for line in drawn], device=mask.device)
        change = torch.nan_to_num(found["old_logps"] - sums, nan=0.0)
        ratio = change.exp()
        found["advantages"] = found["advantages"] * ratio.clamp(max=LARGEST_WEIGHT)
        capped = (ratio > LARGEST_WEIGHT).float().mean()
        return {ENGINE_MISMATCH: change.abs().sum() / count, CORRECTION_CAPPED: capped}
    old, engine = found.get("old_per_token_logps"), found["sampling_per_token_logps"]
    if old is None:  # the plan switched the correction off
        return {}
    change = torch.nan_to_num((old - engine) * mask, nan=0.0)
    largest = args.vllm_importance_sampling_clip_max
    whole = "sequence" in args.vllm_importance_sampling_mode
    ratio = (change.sum(1) if whole else change[mask.bool()]).exp()
    capped = (ratio > (math.inf if largest is None else largest)).float().mean()
    return {ENGINE_MISMATCH: change.abs().sum() / count, CORRECTION_CAPPED: capped}


class Written(dict[str, Any]):
    """A micro-batch of answers with their rewards, ready to be trained on."""


def parts_of_answers(inputs: Mapping[str, Any], size: int) -> list[tuple[Any, float]]:
    """Answers in parts of at most `size`, each with its share of them. Rewards were compared within
    whole groups before.
    """
    import torch

    count = len(inputs["completion_ids"])
    if count <= size:
        return [(inputs, 1.0)]
    parts = []
    for start in range(0, count, size):
        part = Written(
            {
                name: value[start : start + size]
                if isinstance(value, torch.Tensor) and value.dim() > 0
                else value
                for name, value in inputs.items()
            }
        )
        share = min(size, count - start) / count
        # TRL divides some losses by all tokens of the answers that were written together, times
        # the steps that it accumulates, which count for a part by its share.
        if "num_items_in_batch" in part:
            part["num_items_in_batch"] = part["num_items_in_batch"] * share
        parts.append((part, share))
    return parts


def train(job: Job) -> None:
    """Train the stage, or measure two steps of it, and write the result into its folder."""
    stage.train(job, GRPO())
