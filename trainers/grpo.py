"""Group relative policy optimisation (arXiv:2402.03300) under any update scheme: the model's own
answers to each prompt, several of them, are compared by a reward.

The rows of a step are prompts. All prompts of an optimizer step are answered together,
`generations` times each, or in as few parts as fit into memory; of fewer prompts than a step has,
the first come again. `micro_batch_size` answers go through one forward pass. Each answer is used
for one update, so that clipping has an effect only from `trl: {num_iterations: 2}` on.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any, cast

from advisor.ground.errors import TrainingFailed
from advisor.record.stage import SavedFile
from trainers.job import Model, Tokenizer, Trainer
from trainers.job.job import Job
from trainers.job.machine import is_main_process, process_count
from trainers.rewards.rollout_log import RolloutLog
from trainers.rewards.scoring import Scored, reward_functions
from trainers.rewards.watch import Watch, differ_check, lines_of, watching
from trainers.rollouts import CORRECTION_CAPPED, ENGINE_MISMATCH
from trainers.rows.conversation import Prompt
from trainers.stage.objective import Build, Opened, Rewarded
from trainers.stage.run import trains


class GRPO(Rewarded):
    """Makes those answers of the model likelier whose reward is above that of its other answers to
    the same prompt.
    """

    config = "trl:GRPOConfig"
    trained_by = "trainers.stage.rollout_trainers:GRPO"
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

    def own_arguments(self, job: Job) -> dict[str, Any]:
        generations, clip_range = job.options["generations"], job.options.get("clip_range")
        clipped = {} if clip_range is None else {"epsilon": clip_range}  # RLOO has no such key
        return clipped | {
            "beta": job.options["beta"],
            "num_generations": generations,
            "max_completion_length": job.options["response_tokens"],
            # TRL answers all of these together, as many as an optimizer step has.
            "gradient_accumulation_steps": job.stage.grad_accum * generations,
            "per_device_eval_batch_size": generations,
            "remove_unused_columns": False,
            "reward_weights": [part.weight for part in self.rewards.parts],
        }

    def load(self, opened: Opened[Prompt]) -> Any:
        self.open_rewards(opened)
        return super().load(opened)

    def dataset(self, build: Build[Prompt]) -> Any:
        stage = build.job.stage
        size = stage.effective_batch_size * process_count()
        return build.dataset(filled(build.rows, size), prompt_columns)

    def trainer_parts(self, build: Build[Prompt], config: Any) -> dict[str, Any]:
        self.scored = Scored()
        functions = reward_functions(self.rewards, self.scored)
        return {**super().trainer_parts(build, config), "reward_funcs": functions}

    def trainer(self, build: Build[Prompt]) -> Trainer:
        job, built = build.job, cast(Any, super().trainer(build))
        built.ids_of = {row.prompt: row.prompt_ids for row in build.rows}
        least = job.stage.micro_batch_size * job.options["generations"]
        built.answer_by(job, self.server, least=least)
        built.rewards, built.scored, self.watch = self.rewards, self.scored, Watch()
        if is_main_process() and not job.dry_run:
            steps = build.arguments["max_steps"]
            built.rollout_log = RolloutLog(job, steps, engine=built.engine.name)
            built.add_callback(watching(job, self.watch, self.logged))
        return built

    def save(
        self, job: Job, trainer: Trainer, model: Model, tokenizer: Tokenizer
    ) -> dict[str, SavedFile]:
        """Write the result.

        Raises TrainingFailed if no two answers to one prompt got different rewards, so that nothing
        was learned.
        """
        differ = differ_check(lines_of(job), self.rewards)
        if is_main_process() and not differ.ok and job.max_steps is None:
            hint = (
                "look at the sample answers: the task may be too hard for the model (train it on"
                " examples first), or the reward does not measure it"
            )
            raise TrainingFailed(f"nothing was learned: {differ.text}", hint=hint)
        return super().save(job, trainer, model, tokenizer)

    def outcome(self, job: Job) -> dict[str, Any]:
        found = super().outcome(job)
        return {**found, "checks": (*found["checks"], differ_check(lines_of(job), self.rewards))}


def prompt_columns(rows: Sequence[Prompt]) -> dict[str, list[Any]]:
    """The columns of the trainer: prompts, the answers that rewards compare with, token ids."""
    return {
        "prompt": [row.prompt for row in rows],
        "answer": [row.answer for row in rows],
        "ids": [list(row.prompt_ids) for row in rows],
    }


def filled(rows: Sequence[Prompt], size: int) -> list[Prompt]:
    """The prompts, and the first of them again until `size` divides their number: TRL leaves out
    what does not fill an optimizer step.
    """
    return list(islice(cycle(rows), -(-len(rows) // size) * size))


train = trains(GRPO)
