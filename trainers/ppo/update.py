"""One update of PPO: a rollout with its rewards, the advantage of every token, and a few gradient
steps of policy and value.

Dimensions: R answers of the update, T tokens of the longest, N answer tokens of a batch laid end to
end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from advisor.ground.progress import Wait, waiting
from trainers.job.job import Job
from trainers.job.types import Device, Tokenizer
from trainers.ppo import math
from trainers.ppo.roles import POLICY, REFERENCE, VALUE, Roles
from trainers.ppo.rollout import (
    Batch,
    answer_mask,
    batches_of,
    gather_answers,
    scatter_answers,
    split_batch,
)
from trainers.rewards.rollout_log import Rollout, RolloutLog
from trainers.rewards.scoring import Answer, Reward, Rewards, Score, filled
from trainers.rollouts.engine import CORRECTION_CAPPED, ENGINE_MISMATCH, Answers, Engine, Sampling
from trainers.rollouts.transformers_engine import TransformersEngine
from trainers.rows.conversation import Prompt

BUCKET_BYTES = 25 * 2**20  # of gradients in one message, as DDP sends them


@dataclass(frozen=True, kw_only=True)
class PPOSettings:
    """What an update takes from the plan."""

    micro_batch_size: int
    rows_at_once: int  # of these, that memory has room for
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
    def of(cls, job: Job) -> PPOSettings:
        """Those of a stage."""
        options = job.options
        return cls(
            micro_batch_size=job.entry.stage.micro_batch_size,
            rows_at_once=job.stage.micro_batch_size,
            **{name: options[name] for name in cls.__dataclass_fields__ if name in options},
        )


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
    engine: Engine  # generates the answers that are learned from
    local: TransformersEngine  # in this process: generates those of evaluations
    rewards: Rewards | None = None  # None: the reward model of the roles alone
    rollout_log: RolloutLog | None = None  # None: nothing is written
    scaler: Any = None
    mean: Callable[[Any], Any] | None = None  # over all processes of the run, if there are several
    done: int = 0  # updates
    learned: Wait | None = None  # counts what the gradient steps of an update have gone through
    # How far the ratios of the last update's first minibatch were from 1.
    first_ratio_error: float = 0.0

    @property
    def reward_parts(self) -> list[Reward]:
        """The rewards, as far as they are not the reward model of the roles alone."""
        return [] if self.rewards is None else self.rewards.parts

    # ---------------------------------------------------------------- rollout

    def sampling(self, shortest: int = 0) -> Sampling:
        """How the policy's answers are drawn.

        Args:
            shortest: No stop token before so many tokens.
        """
        return Sampling(
            limit=self.settings.response_tokens,
            temperature=self.settings.temperature,
            stops=self.stops,
            shortest=shortest,
        )

    def generate(
        self, prompts: Sequence[Prompt], *, engine: Engine | None = None, shortest: int = 0
    ) -> Answers:
        """The policy's answers.

        Args:
            engine: Default: that of evaluations.
            shortest: No stop token before so many tokens.
        """
        engine = engine or self.local
        return engine.generate([list(row.prompt_ids) for row in prompts], self.sampling(shortest))

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

    def scores(
        self,
        prompts: Sequence[Prompt],
        answers: Answers,
        batches: Sequence[Batch],
        parts: dict[str, list[Score]] | None = None,
    ) -> Any:
        """The reward of each answer, before any penalty: R, float32.

        An answer that no reward scores gets the mean of the others: it is made neither likelier nor
        less likely for it. Raises TrainingFailed if no answer has a score.

        Args:
            parts: Where each reward's own scores go, by its name.
        """
        import torch

        sums = self.sums(prompts, answers, batches, parts)
        scores = sums if self.rewards is None else filled(sums)
        return torch.tensor(scores, dtype=torch.float32, device=self.device)

    def sums(
        self,
        prompts: Sequence[Prompt],
        answers: Answers,
        batches: Sequence[Batch],
        parts: dict[str, list[Score]] | None = None,
    ) -> list[Score]:
        """The same before answers that no reward scores are dealt with: None for each of them."""
        if self.rewards is None:
            found = self._scores_of_roles(batches).tolist()
            if parts is not None:
                parts["reward"] = found
            return list(found)
        scored = [
            Answer(row.prompt, text, row.answer, row.prompt_ids, ids)
            for row, text, ids in zip(prompts, self.texts(answers), answers.ids, strict=True)
        ]
        found = [
            self._scores_of_roles(batches).tolist()
            if part.score is None
            else part(scored, counts=False)
            for part in self.rewards.parts
        ]
        if parts is not None:
            keys = (part.key for part in self.rewards.parts)
            parts |= dict(zip(keys, found, strict=True))
        return self.rewards.sums(found)

    def _scores_of_roles(self, batches: Sequence[Batch]) -> Any:
        """What the reward model of the roles says of each answer: R, float32."""
        import torch

        count = sum(len(batch.rows) for batch in batches)
        scores_R = torch.zeros(count, device=self.device)
        with torch.no_grad(), self.autocast():
            for batch in self._followed(batches, "scores"):
                scores_R[batch.rows] = self._of_parts(batch, self.roles.scores)
        return scores_R

    def _followed(self, batches: Sequence[Batch], what: str) -> Iterator[Batch]:
        """The batches, while it shows for how many answers something is computed."""
        count = sum(len(batch.rows) for batch in batches)
        with waiting(what, total=count, unit="answers") as done:
            for batch in batches:
                yield batch
                done(len(batch.rows))

    # ---------------------------------------------------------------- what fits into memory

    def _parts(self, batch: Batch) -> list[Batch]:
        """The batch in as many parts as memory needs: its rows are those of the plan."""
        return split_batch(batch, self.settings.rows_at_once)

    def _of_parts(self, batch: Batch, numbers: Callable[[Batch], Any]) -> Any:
        """The numbers of a batch's answers or tokens, in their order, computed in parts."""
        import torch

        return torch.cat([numbers(part) for part in self._parts(batch)])

    # ---------------------------------------------------------------- one update

    def update(self, prompts: Sequence[Prompt], *, shortest: int = 0) -> dict[str, float]:
        """Train on one answer to each prompt; the numbers to record.

        Args:
            shortest: No stop token before so many tokens.
        """
        import torch

        began = time.monotonic()
        self.engine.load_weights()
        answers = self.generate(prompts, engine=self.engine, shortest=shortest)
        rollout_s = time.monotonic() - began
        batches = self.batches(answers)
        mask_RT = answer_mask(answers, self.device)
        parts: dict[str, list[Score]] = {}
        scores_R = self.scores(prompts, answers, batches, parts)
        # Role by role, so that modules are switched three times per update, not three times per
        # batch.
        with torch.no_grad(), self.autocast():
            temperature = self.settings.temperature
            policy = [
                self._of_parts(batch, lambda part: self._policy(part, temperature))
                for batch in self._followed(batches, "probabilities under the policy")
            ]
            reference = [
                self._of_parts(
                    batch, lambda part: self.roles.log_probs(REFERENCE, part, temperature)[0]
                )
                for batch in self._followed(batches, "probabilities under the reference model")
            ]
            values = [
                self._of_parts(batch, self.roles.values)
                for batch in self._followed(batches, "values")
            ]
        old_RT, reference_RT, values_RT = (
            scatter_answers(list(zip(batches, parts, strict=True)), mask_RT)
            for parts in ([numbers[:, 0] for numbers in policy], reference, values)
        )
        correction_RT, engine_numbers = self._correction(answers, old_RT, mask_RT)
        ended_R = torch.tensor(answers.ended, device=self.device)
        # Huang et al. 2024, "EOS trick": an answer that does not end is worth less, whatever it
        # says.
        penalised_R = scores_R - self.settings.missing_end_penalty * (~ended_R)
        penalty_RT = math.kl_penalty(old_RT, reference_RT, mask_RT)
        rewards_RT = math.token_rewards(penalised_R, penalty_RT, mask_RT, self.kl_coefficient.value)
        if self.settings.whiten_rewards:
            rewards_RT = math.whiten(rewards_RT, mask_RT, keep_mean=True, over_processes=self.mean)
        advantages_RT, returns_RT = math.generalized_advantages(
            rewards_RT, values_RT, mask_RT, gamma=self.settings.gamma, lam=self.settings.lam
        )
        advantages_RT = math.whiten(advantages_RT, mask_RT, over_processes=self.mean)
        if self.rollout_log is not None and self.rollout_log.is_due(self.done + 1):
            means_R = (advantages_RT * mask_RT).sum(1) / mask_RT.sum(1)
            rollouts = self._rollouts(prompts, answers, parts, scores_R, means_R)
            self.rollout_log.write(self.done + 1, rollouts)
        if correction_RT is not None:
            advantages_RT = advantages_RT * correction_RT
        # Each answer goes through policy and value, in each epoch.
        passes = 2 * self.settings.ppo_epochs * len(answers.ids)
        with waiting("learning from the answers", total=passes, unit="passes") as self.learned:
            steps = self._learn(batches, old_RT, values_RT, advantages_RT, returns_RT)
        seen = self._over_processes(
            {
                "reward": scores_R.mean(),
                "reward_spread": scores_R.std(correction=0),
                "kl": math.masked_mean(penalty_RT, mask_RT),
                "kl_per_answer": penalty_RT.sum(1).mean(),
                "entropy": torch.cat([numbers[:, 1] for numbers in policy]).mean(),
                "explained_variance": math.explained_variance(values_RT, returns_RT, mask_RT),
                "response_tokens": mask_RT.sum(1).mean(),
                "ended": ended_R.float().mean(),
                "tokens": float(answers.tokens),
                **self._of_each_reward(parts),
                **engine_numbers,
            }
        )
        seen |= {
            "loss": steps["policy_loss"] + steps["value_loss"],
            **steps,
            "kl_coef": self.kl_coefficient.value,
        }
        self.kl_coefficient.adapt(seen["kl_per_answer"], len(prompts))
        return seen | {"writing_s": rollout_s, "learning_s": time.monotonic() - began - rollout_s}

    def _of_each_reward(self, parts: Mapping[str, Sequence[Score]]) -> dict[str, float]:
        """Mean and spread of each of several rewards, and the share of answers without a score, by
        their names in metrics.jsonl.
        """
        found: dict[str, float] = {}
        for name in self.rewards.logs if self.rewards is not None else ():
            _, key, number = name.split("/")
            given = [score for score in parts[key] if score is not None]
            mean = sum(given) / max(1, len(given))
            found[name] = {
                "mean": mean,
                "std": (sum((one - mean) ** 2 for one in given) / max(1, len(given))) ** 0.5,
                "missing": 1 - len(given) / len(parts[key]),
            }[number]
        return found

    def _rollouts(
        self,
        prompts: Sequence[Prompt],
        answers: Answers,
        parts: Mapping[str, Sequence[Score]],
        scores_R: Any,
        advantages_R: Any,
    ) -> list[Rollout]:
        """The answers with what they were worth, for the log.

        Args:
            parts: Each reward's own scores.
            scores_R: The weighted sums.
            advantages_R: The mean advantage of each answer's tokens.
        """
        return [
            Rollout(
                prompt=row.prompt,
                answer=text,
                rewards={name: scores[place] for name, scores in parts.items()},
                reward=score,
                advantage=advantage,
                tokens=len(answers.ids[place]),
                ended=answers.ended[place],
            )
            for place, (row, text, score, advantage) in enumerate(
                zip(
                    prompts, self.texts(answers), scores_R.tolist(), advantages_R.tolist(),
                    strict=True,
                )
            )
        ]  # fmt: skip

    def _correction(
        self, answers: Answers, old_RT: Any, mask_RT: Any
    ) -> tuple[Any | None, dict[str, Any]]:
        """(importance weights, numbers to record) for answers that another program drew; (None, {})
        for the policy's own.

        The weights are positive, so that a token's loss times its weight is the loss of its
        advantage times the weight.
        """
        import torch

        if not answers.log_probs:
            return None, {}
        drawn_RT = torch.zeros_like(old_RT)
        for row, values in enumerate(answers.log_probs):
            drawn_RT[row, : len(values)] = torch.tensor(values)
        weights_RT, mismatch, capped = math.importance_weights(old_RT, drawn_RT, mask_RT)
        return weights_RT, {ENGINE_MISMATCH: mismatch, CORRECTION_CAPPED: capped}

    def _policy(self, batch: Batch, temperature: float) -> Any:
        """The policy's log-probability of each answer token, and its entropy there: N, 2."""
        import torch

        log_probs_N, entropy_N = self.roles.log_probs(POLICY, batch, temperature, with_entropy=True)
        assert entropy_N is not None
        return torch.stack([log_probs_N, entropy_N], dim=1)

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
        norms: list[Any] = []  # of the gradients, left on the device until the update is done
        for _ in range(self.settings.ppo_epochs):
            order = torch.randperm(len(batches)).tolist()
            for start in range(0, len(order), share):
                minibatch = [batches[place] for place in order[start : start + share]]
                found = self._gradients(
                    [part for batch in minibatch for part in self._parts(batch)],
                    *(old_RT, values_RT, advantages_RT, returns_RT),
                )
                if not seen:
                    self.first_ratio_error = found.pop("ratio_error")
                found.pop("ratio_error", None)
                if found["step_kl"] > self.settings.step_kl_limit and seen:
                    self.optimizer.zero_grad(set_to_none=True)
                    return self._learned(seen, norms, stopped=True)
                norms.append(self._step())
                seen.append(found)
        return self._learned(seen, norms, stopped=False)

    def _learned(
        self, seen: Sequence[dict[str, float]], norms: Sequence[Any], *, stopped: bool
    ) -> dict[str, float]:
        """The means over the steps of an update."""
        import torch

        steps = [
            {**found, "grad_norm": norm}
            for found, norm in zip(seen, torch.stack(list(norms)).tolist(), strict=True)
        ]
        return _mean(steps) | {"inner_steps": len(steps), "stopped_early": float(stopped)}

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
        tokens: Any = float(sum(batch.tokens for batch in minibatch))
        if self.mean is not None:
            # Gradients are averaged over the processes, so each divides by the mean.
            tokens = self.mean(torch.tensor(tokens, device=self.device))
        # Read from the device once for all batches, not three times for each.
        policy: list[Any] = []
        value: list[Any] = []
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
            self._count_pass(batch)
            with torch.no_grad():
                policy += [
                    loss.detach(),
                    clipped_N.sum(),
                    math.approximate_kl(new_N.detach(), old_N).sum(),
                    (ratio_N.detach() - 1).abs().max(),
                ]
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
            self._count_pass(batch)
            value.append(loss.detach())
        read = [*policy, *value] if self.mean is None else [*policy, *value, tokens]
        numbers = torch.stack([number.float() for number in read]).tolist()
        count = tokens if self.mean is None else numbers.pop()
        of_policy, of_value = numbers[: len(policy)], numbers[len(policy) :]
        total = {
            "policy_loss": sum(of_policy[0::4]),
            "value_loss": sum(of_value),
            "clip_fraction": sum(clipped / count for clipped in of_policy[1::4]),
            "step_kl": sum(moved / count for moved in of_policy[2::4]),
        }
        error = max(of_policy[3::4])
        return self._over_processes(total) | {"ratio_error": error}

    def _over_processes(self, numbers: Mapping[str, Any]) -> dict[str, float]:
        """Numbers, or tensors of one number, averaged over all processes."""
        import torch

        on_device = {key: one for key, one in numbers.items() if isinstance(one, torch.Tensor)}
        found = dict(numbers)
        if on_device:  # read together
            read = torch.stack([one.float() for one in on_device.values()]).tolist()
            found |= dict(zip(on_device, read, strict=True))
        if self.mean is None:
            return found
        averaged = self.mean(
            torch.tensor(list(found.values()), dtype=torch.float32, device=self.device)
        ).tolist()
        return dict(zip(found, averaged, strict=True))

    def _count_pass(self, batch: Batch) -> None:
        """Its answers went forward and back once; those of a minibatch that did not fit into memory
        and is done again count for no more than there are.
        """
        if self.learned is not None:
            self.learned.at(min(self.learned.total, self.learned.done + len(batch.rows)))

    def _backward(self, loss: Any) -> None:
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def _step(self) -> Any:
        """Take the step; the policy's gradient norm before clipping, on the device."""
        import torch

        if self.mean is not None:
            groups = self.optimizer.param_groups
            average_gradients([one for group in groups for one in group["params"]], self.mean)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        # Policy and value are clipped by a norm of their own each.
        norms = {
            role: torch.nn.utils.clip_grad_norm_(
                list(self.roles.trained(role).values()), self.settings.max_grad_norm
            )
            for role in (POLICY, VALUE)
        }
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norms[POLICY].float()


def average_gradients(parameters: Sequence[Any], mean: Callable[[Any], Any]) -> None:
    """Average the gradients over all processes, many in one message.

    Args:
        parameters: In the same order in every process.
        mean: Of a tensor over all processes.
    """
    import torch

    bucket: list[Any] = []
    held = 0

    def send() -> None:
        if not bucket:
            return
        sizes = [parameter.grad.numel() for parameter in bucket]
        averaged = mean(torch.cat([parameter.grad.reshape(-1) for parameter in bucket]))
        for parameter, part in zip(bucket, averaged.split(sizes), strict=True):
            parameter.grad.copy_(part.view_as(parameter.grad))
        bucket.clear()

    for parameter in parameters:
        if parameter.grad is None:
            continue
        size = parameter.grad.numel() * parameter.grad.element_size()
        if bucket and (held + size > BUCKET_BYTES or bucket[0].grad.dtype != parameter.grad.dtype):
            send()
            held = 0
        bucket.append(parameter)
        held += size
    send()


def _mean(seen: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: sum(one[key] for one in seen) / len(seen) for key in seen[0]}
