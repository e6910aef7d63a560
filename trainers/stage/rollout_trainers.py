"""TRL's trainers that learn from answers of the model itself: GRPO and RLOO.

Prompts come as token ids, tools included; the engine of the stage answers them; the reference model
is a frozen copy of the policy.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
import trl.trainer.grpo_trainer
import trl.trainer.rloo_trainer

from trainers.rewards.rollout_log import RolloutLog
from trainers.rewards.scoring import Rewards, Scored
from trainers.rollouts import CORRECTION_CAPPED, ENGINE_MISMATCH, Answers, Sampling
from trainers.stage.trl_trainer import StageTrainer, frozen_copy

LARGEST_WEIGHT = 2.0  # of RLOO's importance weights


class RolloutTrainer(StageTrainer):
    """A mixin for both. What is set before the training: `ids_of` (a prompt's tokens), `rewards`,
    `scored`, and the engine.
    """

    trl_module: Any  # where TRL's trainer looks for the function that loads a reference model
    rewards: Rewards
    scored: Scored
    rollout_log: RolloutLog | None = None  # None: in a dry run, and beside the main process
    ids_of: Mapping[str, Sequence[int]]
    loaded_step = -1  # whose weights the engine has
    drawn: Sequence[Sequence[float]] = ()  # log-probabilities of the last answers

    def __init__(self, *args: Any, model: Any, **kwargs: Any) -> None:
        # TRL loads the reference model by the name in the config. That is a second load, onto
        # whatever devices there are, and of the base if an earlier stage's module was merged.
        loads, config = self.trl_module.create_model_from_path, kwargs["args"]
        self.trl_module.create_model_from_path = lambda *_, **__: frozen_copy(model, config)
        try:
            super().__init__(*args, model=model, **kwargs)
        finally:
            self.trl_module.create_model_from_path = loads
        self.differences: dict[str, list[float]] = defaultdict(list)  # since the last line

    def answers_to(self, prompt_ids: Sequence[Sequence[int]]) -> Answers:
        """An answer to each prompt, which stands once for each of its answers."""
        if self.state.global_step != self.loaded_step:
            self.engine.load_weights()
            self.loaded_step = self.state.global_step
        size = self.num_generations
        groups = list(prompt_ids[::size])
        is_repeated = [one for one in groups for _ in range(size)] == list(prompt_ids)
        given, each = (groups, size) if is_repeated else (list(prompt_ids), 1)
        answers = self.engine.generate(given, self.sampling(), n=each)
        self.drawn = answers.log_probs
        return answers

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

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        """The answers to a batch of prompts; some of them go into rollouts.jsonl."""
        found = super()._generate_and_score_completions(inputs)
        log, step = self.rollout_log, self.state.global_step + 1
        if log is not None and self.model.training and log.is_due(step):
            advantages = found["advantages"].tolist()
            log.write(step, self.scored.rollouts(self.rewards, advantages, self.eos_token_ids))
        if self.engine.differs:
            for name, value in correct(found, self.drawn, self.args).items():
                everywhere = self.accelerator.gather(value.reshape(1))
                self.differences[name].append(everywhere.mean().item())
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= {name: sum(one) / len(one) for name, one in self.differences.items()}
            self.differences.clear()
        super().log(logs, start_time)


class GRPO(RolloutTrainer, trl.trainer.grpo_trainer.GRPOTrainer):
    """Compares the answers to a prompt by their rewards."""

    trl_module = trl.trainer.grpo_trainer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, rollout_func=roll_out, **kwargs)

    def answer_by(self, *args: Any, **kwargs: Any) -> None:
        super().answer_by(*args, **kwargs)
        if self.engine.differs:
            # TRL's name for an engine whose probabilities are not the trainer's: it then computes
            # those of the trainer before the step and corrects its loss by their ratio. That the
            # engine gets new weights is our part.
            self.use_vllm, self._last_loaded_step = True, -1
            self.vllm_generation = SimpleNamespace(sync_weights=lambda: None)


def roll_out(prompts: Sequence[str], trainer: GRPO) -> dict[str, Any]:
    """The answers to a batch of prompts as TRL's GRPO takes them."""
    answers = trainer.answers_to([list(trainer.ids_of[prompt]) for prompt in prompts])
    log_probs = answers.log_probs or None
    return {"prompt_ids": answers.prompts, "completion_ids": answers.ids, "logprobs": log_probs}


class RLOO(RolloutTrainer, trl.trainer.rloo_trainer.RLOOTrainer):
    """Compares each answer with the mean of the others. TRL's takes no function that generates, and
    has no place for the log-probabilities of an engine.
    """

    trl_module = trl.trainer.rloo_trainer

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [list(self.ids_of[prompt]) for prompt in prompts], None, {}

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        return self.answers_to(prompt_ids).ids


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
    mask = found["completion_mask"]
    count = mask.sum().clamp(min=1)
    old = found.get("old_per_token_logps")
    if "old_logps" in found:
        sums = torch.tensor([sum(line) for line in drawn], device=mask.device)
        change = torch.nan_to_num(found["old_logps"] - sums, nan=0.0)
        ratio, largest = change.exp(), LARGEST_WEIGHT
        found["advantages"] = found["advantages"] * ratio.clamp(max=largest)
    elif old is None:  # the plan switched the correction off
        return {}
    else:
        change = torch.nan_to_num((old - found["sampling_per_token_logps"]) * mask, nan=0.0)
        whole = "sequence" in args.vllm_importance_sampling_mode
        ratio = (change.sum(1) if whole else change[mask.bool()]).exp()
        largest = args.vllm_importance_sampling_clip_max
    capped = (ratio > (math.inf if largest is None else largest)).float().mean()
    return {ENGINE_MISMATCH: change.abs().sum() / count, CORRECTION_CAPPED: capped}
