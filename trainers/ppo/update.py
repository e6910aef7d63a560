"""One update of PPO: a rollout with its rewards, the advantage of every token, and a few gradient
steps of policy and value.

Dimensions: R answers of the update, T tokens of the longest, N answer tokens of a batch laid end to
end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trainers.frame.types import Device, Tokenizer
from trainers.ppo import math
from trainers.ppo.roles import POLICY, REFERENCE, Roles
from trainers.ppo.rollout import (
    AT_ONCE,
    Answers,
    Batch,
    answer_mask,
    batches_of,
    gather_answers,
    generate_answers,
    scatter_answers,
)
from trainers.prepare.prompts import Prompt
from trainers.rewards.sources import Answer, Reward


@dataclass(frozen=True, kw_only=True)
class PPOSettings:
    """What an update takes from the plan."""

    micro_batch_size: int
    response_tokens: int
    temperature: float
    missing_end_penalty: float
    whiten_rewards: bool
    gamma: float
    lam: float
    ppo_epochs: int
    minibatches: int
    clip_range: float
    value_clip_range: float
    step_kl_limit: float
    max_grad_norm: float = 1.0  # as transformers' trainers

    @classmethod
    def of(cls, options: dict[str, Any], micro_batch_size: int) -> PPOSettings:
        """From the options of a stage."""
        names = [name for name in cls.__dataclass_fields__ if name in options]
        return cls(micro_batch_size=micro_batch_size, **{name: options[name] for name in names})


@dataclass(kw_only=True)
class PPO:
    """Everything that updates change or use."""

    roles: Roles
    settings: PPOSettings
    kl_coefficient: math.KLCoefficient
    optimizer: Any
    tokenizer: Tokenizer
    stops: Sequence[int]
    device: Device
    autocast: Callable[[], Any]
    reward: Reward | None = None  # a verifier or a function; None: the reward model of the roles
    scaler: Any = None
    say: Callable[[str], None] | None = None
    mean: Callable[[Any], Any] | None = None  # over all processes of the run, if there are several
    # How far the ratios of the last update's first minibatch were from 1.
    first_ratio_error: float = 0.0

    # ---------------------------------------------------------------- rollout

    def generate(self, prompts: Sequence[Prompt], *, shortest: int = 0) -> Answers:
        """The policy's answers."""
        with self.roles.use(POLICY) as model:
            return generate_answers(
                model, [list(row.prompt_ids) for row in prompts],
                pad_id=self.tokenizer.pad_token_id, limit=self.settings.response_tokens,
                temperature=self.settings.temperature,
                stops=self.stops, at_once=max(AT_ONCE, self.settings.micro_batch_size),
                autocast=self.autocast, shortest=shortest, say=self.say,
            )  # fmt: skip

    def batches(self, answers: Answers) -> list[Batch]:
        """The answers in batches of micro_batch_size."""
        return batches_of(
            answers,
            self.settings.micro_batch_size,
            pad_id=self.tokenizer.pad_token_id,
            device=self.device,
        )

    def texts(self, answers: Answers) -> list[str]:
        """The answers as people read them, without the token that ends them."""
        return [
            self.tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True).strip()
            for ids, ended in zip(answers.ids, answers.ended, strict=True)
        ]

    def scores(self, prompts: Sequence[Prompt], answers: Answers, batches: Sequence[Batch]) -> Any:
        """The reward of each answer, before any penalty: R, float32."""
        import torch

        if self.reward is not None:
            scored = [
                Answer(row.prompt, text, row.answer, row.prompt_ids, ids)
                for row, text, ids in zip(prompts, self.texts(answers), answers.ids, strict=True)
            ]
            return torch.tensor(
                self.reward(scored, counts=False), dtype=torch.float32, device=self.device
            )
        scores_R = torch.zeros(len(answers.ids), device=self.device)
        with torch.no_grad(), self.autocast():
            for batch in batches:
                scores_R[batch.rows] = self.roles.scores(batch)
        return scores_R

    # ---------------------------------------------------------------- one update

    def update(self, prompts: Sequence[Prompt], *, shortest: int = 0) -> dict[str, float]:
        """Train on one answer to each prompt; the numbers to record.

        Args:
            shortest: No stop token before so many tokens.
        """
        import torch

        began = time.monotonic()
        answers = self.generate(prompts, shortest=shortest)
        rollout_s = time.monotonic() - began
        batches = self.batches(answers)
        mask_RT = answer_mask(answers, self.device)
        scores_R = self.scores(prompts, answers, batches)
        # Role by role, so that modules are switched three times per update, not three times per
        # batch.
        with torch.no_grad(), self.autocast():
            policy = [
                self.roles.log_probs(POLICY, batch, self.settings.temperature, with_entropy=True)
                for batch in batches
            ]
            reference = [
                self.roles.log_probs(REFERENCE, batch, self.settings.temperature)[0]
                for batch in batches
            ]
            values = [self.roles.values(batch) for batch in batches]
        old_RT, reference_RT, values_RT = (
            scatter_answers(list(zip(batches, parts, strict=True)), mask_RT)
            for parts in ([log_probs for log_probs, _ in policy], reference, values)
        )
        ended_R = torch.tensor(answers.ended, device=self.device)
        # Huang et al. 2024, "EOS trick": an answer that does not end is worth less, whatever it
        # says.
        penalised_R = scores_R - self.settings.missing_end_penalty * (~ended_R)
        penalty_RT = math.kl_penalty(old_RT, reference_RT, mask_RT)
        rewards_RT = math.token_rewards(penalised_R, penalty_RT, mask_RT, self.kl_coefficient.value)
        if self.settings.whiten_rewards:
            rewards_RT = math.whiten(rewards_RT, mask_RT, keep_mean=True)
        advantages_RT, returns_RT = math.generalized_advantages(
            rewards_RT, values_RT, mask_RT, gamma=self.settings.gamma, lam=self.settings.lam
        )
        advantages_RT = math.whiten(advantages_RT, mask_RT)
        steps = self._learn(batches, old_RT, values_RT, advantages_RT, returns_RT)
        seen = self._over_processes(
            {
                "reward": float(scores_R.mean()),
                "reward_spread": float(scores_R.std(correction=0)),
                "kl": float(math.masked_mean(penalty_RT, mask_RT)),
                "kl_per_answer": float(penalty_RT.sum(1).mean()),
                "entropy": float(torch.cat([entropy for _, entropy in policy]).mean()),
                "explained_variance": float(
                    math.explained_variance(values_RT, returns_RT, mask_RT)
                ),
                "response_tokens": float(mask_RT.sum(1).mean()),
                "ended": float(ended_R.float().mean()),
                "tokens": float(answers.tokens),
            }
        )
        seen |= {
            "loss": steps["policy_loss"] + steps["value_loss"],
            **steps,
            "kl_coef": self.kl_coefficient.value,
        }
        self.kl_coefficient.adapt(seen["kl_per_answer"], len(prompts))
        return seen | {"writing_s": rollout_s, "learning_s": time.monotonic() - began - rollout_s}

    def _learn(
        self,
        batches: Sequence[Batch],
        old_RT: Any,
        values_RT: Any,
        advantages_RT: Any,
        returns_RT: Any,
    ) -> dict[str, float]:
        """The epochs over the rollout; the means of what they showed.

        Batches keep their rows, so that the first ratios are exactly 1; only their order changes.

        Args:
            batches: The rollout.
            old_RT: Log-probabilities under the policy that generated the answers.
            values_RT: The values before the update.
            advantages_RT: Whitened.
            returns_RT: What the values should be.
        """
        import torch

        share = -(-len(batches) // min(self.settings.minibatches, len(batches)))
        seen: list[dict[str, float]] = []
        for _ in range(self.settings.ppo_epochs):
            order = torch.randperm(len(batches)).tolist()
            for start in range(0, len(order), share):
                minibatch = [batches[place] for place in order[start : start + share]]
                found = self._gradients(minibatch, old_RT, values_RT, advantages_RT, returns_RT)
                if not seen:
                    self.first_ratio_error = found.pop("ratio_error")
                found.pop("ratio_error", None)
                if found["step_kl"] > self.settings.step_kl_limit and seen:
                    self.optimizer.zero_grad(set_to_none=True)
                    return _mean(seen) | {"inner_steps": len(seen), "stopped_early": 1.0}
                found["grad_norm"] = self._step()
                seen.append(found)
        return _mean(seen) | {"inner_steps": len(seen), "stopped_early": 0.0}

    def _gradients(
        self,
        minibatch: Sequence[Batch],
        old_RT: Any,
        values_RT: Any,
        advantages_RT: Any,
        returns_RT: Any,
    ) -> dict[str, float]:
        """Compute the gradients of one minibatch; its losses and how far the policy has moved.

        Policy and value share no trained weight, so each has its own backward pass: only one graph
        is held at a time. Arguments as in `_learn`.
        """
        import torch

        c = self.settings
        tokens = float(sum(batch.tokens for batch in minibatch))
        if self.mean is not None:
            # Gradients are averaged over the processes, so each divides by the mean.
            tokens = float(self.mean(torch.tensor(tokens, device=self.device)))
        total = dict.fromkeys(("policy_loss", "value_loss", "clip_fraction", "step_kl"), 0.0)
        error = 0.0
        for batch in minibatch:
            old_N, advantages_N = (
                gather_answers(old_RT, batch),
                gather_answers(advantages_RT, batch),
            )
            with self.autocast():
                new_N, _ = self.roles.log_probs(POLICY, batch, c.temperature)
            losses_N, ratio_N, clipped_N = math.policy_losses(
                new_N, old_N, advantages_N, c.clip_range
            )
            loss = losses_N.sum() / tokens
            self._backward(loss)
            total["policy_loss"] += loss.item()
            total["clip_fraction"] += clipped_N.sum().item() / tokens
            total["step_kl"] += math.approximate_kl(new_N.detach(), old_N).sum().item() / tokens
            error = max(error, (ratio_N.detach() - 1).abs().max().item())
        for batch in minibatch:
            with self.autocast():
                values_N = self.roles.values(batch)
            loss = (
                math.value_losses(
                    values_N,
                    gather_answers(values_RT, batch),
                    gather_answers(returns_RT, batch),
                    c.value_clip_range,
                ).sum()
                / tokens
            )
            self._backward(loss)
            total["value_loss"] += loss.item()
        total = self._over_processes(total)
        return total | {"ratio_error": error}

    def _over_processes(self, numbers: dict[str, float]) -> dict[str, float]:
        """The numbers, averaged over all processes."""
        import torch

        if self.mean is None:
            return numbers
        averaged = self.mean(
            torch.tensor(list(numbers.values()), dtype=torch.float32, device=self.device)
        ).tolist()
        return dict(zip(numbers, averaged, strict=True))

    def _backward(self, loss: Any) -> None:
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def _step(self) -> float:
        """Take the step; the policy's gradient norm before clipping."""
        import torch

        if self.mean is not None:
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.grad = self.mean(parameter.grad)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norms = {
            group["role"]: float(
                torch.nn.utils.clip_grad_norm_(group["params"], self.settings.max_grad_norm)
            )
            for group in self.optimizer.param_groups
        }
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norms[POLICY]


def _mean(seen: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: sum(one[key] for one in seen) / len(seen) for key in seen[0]}
