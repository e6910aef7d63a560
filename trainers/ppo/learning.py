"""What an update of PPO learns from its answers: a few gradient steps of policy and value.

Dimensions: R answers of the update, T tokens of the longest, N answer tokens of a batch laid end to
end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from advisor.ground.progress import waiting
from trainers.job.types import Device
from trainers.ppo import math
from trainers.ppo.roles import POLICY, VALUE, Roles
from trainers.ppo.rollout import Batch, gather_answers

BUCKET_BYTES = 25 * 2**20  # of gradients in one message, as DDP sends them


@dataclass(frozen=True, kw_only=True)
class Experience:
    """What the answers of an update teach."""

    batches: Sequence[Batch]
    old_RT: Any  # log-probabilities under the policy that generated the answers
    values_RT: Any  # before the update
    advantages_RT: Any  # whitened
    returns_RT: Any  # what the values should be


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """How often and how far the answers of an update move policy and value; from the plan."""

    ppo_epochs: int
    minibatches: int
    clip_range: float
    value_clip_range: float
    step_kl_limit: float
    temperature: float
    max_grad_norm: float


@dataclass(kw_only=True)
class Learner:
    """Takes the gradient steps."""

    roles: Roles
    settings: StepSettings
    optimizer: Any
    device: Device
    autocast: Callable[[], Any]
    scaler: Any = None
    mean: Callable[[Any], Any] | None = None  # over all processes of the run, if there are several
    # How far the ratios of the last update's first minibatch were from 1.
    first_ratio_error: float = 0.0

    def learn(self, experience: Experience) -> dict[str, float]:
        """The epochs over the answers; the means of what their steps showed.

        Batches keep their rows, so that the first ratios are exactly 1; only their order changes.
        """
        import torch

        settings, batches = self.settings, experience.batches
        # Those that memory has room for, together as they were planned.
        groups = [[*group] for _, group in groupby(batches, key=lambda batch: batch.planned)]
        share = -(-len(groups) // min(settings.minibatches, len(groups)))
        seen: list[dict[str, float]] = []
        norms: list[Any] = []  # of the gradients, left on the device until the update is done
        stopped = False
        starts = range(0, len(groups), share)
        passes = 2 * settings.ppo_epochs * len(batches)
        with waiting("learning from the answers", total=passes, unit="passes") as passed:
            for _ in range(settings.ppo_epochs):
                order = torch.randperm(len(groups)).tolist()
                for start in starts:
                    chosen = [groups[place] for place in order[start : start + share]]
                    minibatch = [batch for group in chosen for batch in group]
                    found = self.gradients(experience, minibatch, passed)
                    error = found.pop("ratio_error")
                    if not seen:
                        self.first_ratio_error = error
                    stopped = found["step_kl"] > settings.step_kl_limit and bool(seen)
                    if stopped:
                        self.optimizer.zero_grad(set_to_none=True)
                        break
                    norms.append(self.step())
                    seen.append(found)
                if stopped:
                    break
        for found, norm in zip(seen, torch.stack(norms).tolist(), strict=True):
            found["grad_norm"] = norm
        means = {key: sum(one[key] for one in seen) / len(seen) for key in seen[0]}
        return means | {"inner_steps": len(seen), "stopped_early": float(stopped)}

    def gradients(
        self, experience: Experience, minibatch: Sequence[Batch], passed: Callable[[], None]
    ) -> dict[str, float]:
        """Compute the gradients of one minibatch; its losses and how far the policy has moved.

        Policy and value share no trained weight, so each has its own backward pass: only one graph
        is held at a time.

        Args:
            passed: Called after each pass of a batch.
        """
        import torch

        tokens: Any = float(sum(batch.tokens for batch in minibatch))
        if self.mean is not None:
            # Gradients are averaged over the processes, so each divides by the mean.
            tokens = self.mean(torch.tensor(tokens, device=self.device))
        # Read from the device once for all batches, not three times for each.
        policy: list[Any] = []
        value: list[Any] = []
        for batch in minibatch:
            loss, *others = self._policy_loss(experience, batch, tokens)
            self._backward(loss)
            policy += [loss.detach(), *others]
            passed()
        for batch in minibatch:
            loss = self._value_loss(experience, batch, tokens)
            self._backward(loss)
            value.append(loss.detach())
            passed()
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
        return self.averaged(total) | {"ratio_error": max(of_policy[3::4])}

    def _policy_loss(self, experience: Experience, batch: Batch, tokens: Any) -> tuple[Any, ...]:
        """(loss, how many ratios were clipped, the KL to the policy that generated the answers,
        summed over tokens, how far the ratios are from 1).
        """
        import torch

        old_N = gather_answers(experience.old_RT, batch)
        with self.autocast():
            new_N, _ = self.roles.log_probs(POLICY, batch, self.settings.temperature)
        losses_N, ratio_N, clipped_N = math.policy_losses(
            new_N, old_N, gather_answers(experience.advantages_RT, batch), self.settings.clip_range
        )
        with torch.no_grad():
            moved = math.approximate_kl(new_N.detach(), old_N).sum()
            error = (ratio_N.detach() - 1).abs().max()
        return losses_N.sum() / tokens, clipped_N.sum(), moved, error

    def _value_loss(self, experience: Experience, batch: Batch, tokens: Any) -> Any:
        with self.autocast():
            values_N = self.roles.values(batch)
        old_N, returns_N = (
            gather_answers(table, batch) for table in (experience.values_RT, experience.returns_RT)
        )
        losses_N = math.value_losses(values_N, old_N, returns_N, self.settings.value_clip_range)
        return losses_N.sum() / tokens

    def averaged(self, numbers: Mapping[str, Any]) -> dict[str, float]:
        """Numbers, or tensors of one number, averaged over all processes."""
        import torch

        on_device = {key: one for key, one in numbers.items() if isinstance(one, torch.Tensor)}
        found = dict(numbers)
        if on_device:  # read together
            read = torch.stack([one.float() for one in on_device.values()]).tolist()
            found |= dict(zip(on_device, read, strict=True))
        if self.mean is None:
            return found
        table = torch.tensor(list(found.values()), dtype=torch.float32, device=self.device)
        return dict(zip(found, self.mean(table).tolist(), strict=True))

    def _backward(self, loss: Any) -> None:
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def step(self) -> Any:
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


def mean_over_processes() -> Callable[[Any], Any]:
    """A function that returns a tensor's mean over all processes of the run."""
    import torch.distributed as dist

    def mean(tensor: Any) -> Any:
        dist.all_reduce(tensor)
        return tensor / dist.get_world_size()

    return mean
