"""Group relative policy optimisation (arXiv:2402.03300) under any update scheme: the model's own
answers to each prompt, several of them, are compared by a reward.

The rows of a step are prompts. `micro_batch_size` prompts are answered at once, `generations` times
each, and `micro_batch_size` answers go through one forward pass. Each answer is used for one
update, so that clipping has an effect only from `trl: {num_iterations: 2}` on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from advisor.ground.errors import Fault, InputError, TrainingFailed
from trainers.evaluation.generation import general_rows
from trainers.evaluation.loss import answer_log_probs
from trainers.evaluation.rewards import RewardEvaluator, prompt_row
from trainers.evaluation.saved_result import Probe
from trainers.frame import settings, stage
from trainers.frame.job import Job
from trainers.frame.stage import Objective
from trainers.frame.types import Device, Model, Tokenizer, Trainer
from trainers.prepare import Prepared
from trainers.prepare.prompts import PROMPTS, Prompt
from trainers.rewards.sources import Answer, Reward, build_reward, reward_faults, source_note
from trainers.updates import Update

SHORTEST_PROMPT = 8  # tokens that have to be left for it within seq_len


class GRPO(Objective[Prompt]):
    """Makes those answers of the model likelier whose reward is above that of its other answers to
    the same prompt.
    """

    kind = PROMPTS
    logged = (
        "reward",
        "reward_std",
        "frac_reward_zero_std",
        "kl",
        "entropy",
        "completions/mean_length",
        "completions/clipped_ratio",
    )
    reward: Reward

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
        found = reward_faults(job)
        answer = job.options["response_tokens"]
        if answer + SHORTEST_PROMPT > job.stage.seq_len:
            what = (
                f"stage {job.stage.name}: response_tokens {answer} leave no room for a prompt"
                f" within seq_len {job.stage.seq_len}"
            )
            found.append(Fault(what=what, hint="raise seq_len, or lower response_tokens"))
        return found

    def seq_len(self, job: Job) -> int:
        """What an answer leaves of seq_len."""
        return job.stage.seq_len - int(job.options["response_tokens"])

    def rows(self, job: Job, tokenizer: Tokenizer) -> Prepared[Prompt]:
        data: Prepared[Prompt] = super().rows(job, tokenizer)
        at_once = job.stage.micro_batch_size * settings.world_size()
        if len(data.train) < at_once:
            raise InputError(
                f"stage {job.stage.name}: {len(data.train)} prompts to train on, and {at_once} are"
                " answered at once",
                hint="lower micro_batch_size, or add prompts",
            )
        note = source_note(job, (*data.train, *data.holdout))
        return replace(data, notes=(*data.notes, note)) if note else data

    def load(
        self, job: Job, device: Device, update: Update, tokenizer: Tokenizer, data: Prepared[Prompt]
    ) -> Any:
        # Before the model is loaded, because the reward may be refused.
        self.reward = build_reward(job, tokenizer, (*data.train, *data.holdout), device)
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
        from datasets import Dataset

        rows = [row for (row,) in sequences]
        generations = job.options["generations"]
        own = {
            "beta": job.options["beta"],
            "num_generations": generations,
            "max_completion_length": job.options["response_tokens"],
            "gradient_accumulation_steps": job.stage.grad_accum * generations,
            "steps_per_generation": generations,
            "per_device_eval_batch_size": generations,
            "remove_unused_columns": False,
            **self.own_arguments(job),
        }
        built = with_prepared_prompts(self.trainer_class())(
            model=model,
            reward_funcs=reward_function(self.reward),
            args=settings.build_config(self.config_class(), {**arguments, **own}, job),
            train_dataset=Dataset.from_dict(
                {
                    "prompt": [row.prompt for row in rows],
                    "answer": [row.answer for row in rows],
                    "ids": [list(row.prompt_ids) for row in rows],
                }
            ),
            processing_class=tokenizer,
            peft_config=peft_config,
            dropout=job.options.get("dropout", 0.0),
        )
        built.ids_of = {row.prompt: list(row.prompt_ids) for row in rows}
        return built

    def probe(self, job: Job, data: Prepared[Prompt], tokenizer: Tokenizer) -> Probe:
        return Probe(
            row=prompt_row(min(data.train, key=lambda row: (row.tokens, row.number))),
            pad_id=tokenizer.pad_token_id,
        )

    def evaluator(
        self, job: Job, trainer: Trainer, data: Prepared[Prompt], fingerprint: str
    ) -> RewardEvaluator:
        return RewardEvaluator(job, trainer, data, fingerprint, self.reward)

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

    def save(self, job: Job, trainer: Trainer, model: Model, tokenizer: Tokenizer) -> None:
        """Write the result.

        Raises TrainingFailed if every answer got the same reward, so that nothing was learned.
        """
        if self.reward.constant and job.max_steps is None:
            hint = (
                "look at the sample answers: the task may be too hard for the model (train it on"
                " examples first), or the reward does not measure it"
            )
            raise TrainingFailed(f"nothing was learned: {self.reward.constant_text()}", hint=hint)
        super().save(job, trainer, model, tokenizer)


def with_prepared_prompts(trainer: type) -> type:
    """TRL's trainer class, reading the token ids of our prompts, tools included, not their text."""
    from trainers.frame.trl_trainer import with_safe_checkpoints

    base: Any = with_safe_checkpoints(trainer)

    class Prompted(base):
        ids_of: Mapping[str, list[int]]

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            reference = getattr(self, "ref_model", None)
            if reference is not None and not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
                # TRL loads it by the name in the config, but after an earlier stage's module was
                # merged that is the name of the base.
                self.accelerator.unwrap_model(reference).load_state_dict(self.model.state_dict())

        def _tokenize_prompts(
            self, prompts: list[str]
        ) -> tuple[list[list[int]], None, dict[str, Any]]:
            return [list(self.ids_of[prompt]) for prompt in prompts], None, {}

    Prompted.__name__ = f"Prompted{trainer.__name__}"
    return Prompted


def reward_function(reward: Reward) -> Any:
    """The reward as a function that TRL can call."""

    def rewards(
        *,
        prompts: Sequence[str],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        answer: Sequence[str | None],
        ids: Sequence[list[int]],
        **_: Any,
    ) -> list[float]:
        return reward(
            [
                Answer(*parts)
                for parts in zip(prompts, completions, answer, ids, completion_ids, strict=True)
            ]
        )

    return rewards


def train(job: Job) -> None:
    """Train the stage, or measure two steps of it, and write the result into its folder."""
    stage.train(job, GRPO())
