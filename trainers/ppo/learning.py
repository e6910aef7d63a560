"""What an update of PPO learns from its answers: a few gradient steps of policy and value.

Dimensions: R answers of the update, T tokens of the longest, N answer tokens of a batch laid end to
end, M batches of a minibatch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from advisor.ground.progress import waiting
from trainers.job import Device
from trainers.ppo import math
from trainers.ppo.roles import POLICY, VALUE, Roles
from trainers.ppo.rollout import Batch, gather_answers


@dataclass(frozen=True, kw_only=True)
class Experience:
    """What the answers of an update teach."""

    batches: Sequence[Batch]
    old_RT: Any  # log-probabilities under the policy that generated the answers
    values_RT: Any  # before the update
    advantages_RT: Any  # whitened
    returns_RT: Any  # what the values should be


@dataclass(kw_only=True)
class Learner:
    """Takes the gradient steps."""

    roles: Roles
    options: Mapping[str, Any]  # of the stage
    max_grad_norm: float
    optimizer: Any
    device: Device
    autocast: Callable[[], Any]
    scaler: Any = None
    mean: Callable[[Any], Any] | None = None  # over all processes of the run, if there are several

    def learn(self, experience: Experience) -> dict[str, float]:
        """The epochs over the answers; the means of what their steps showed."""
        import torch

        seen: list[dict[str, float]] = []
        norms: list[Any] = []  # of the gradients, left on the device until the update is done
        stopped = False
        passes = 2 * self.options["ppo_epochs"] * len(experience.batches)
        with waiting("learning from the answers", total=passes, unit="passes") as passed:
            for minibatch in self.minibatches(experience.batches):
                found = self.gradients(experience, minibatch, passed)
                stopped = found["step_kl"] > self.options["step_kl_limit"] and bool(seen)
                if stopped:
                    self.optimizer.zero_grad(set_to_none=True)
                    break
                norms.append(self.step())
                seen.append(found)
        for found, norm in zip(seen, torch.stack(norms).tolist(), strict=True):
            found["grad_norm"] = norm
        means = {key: sum(one[key] for one in seen) / len(seen) for key in seen[0]}
        return means | {"inner_steps": len(seen), "stopped_early": float(stopped)}

    def minibatches(self, batches: Sequence[Batch]) -> Iterator[list[Batch]]:
        """The minibatches of all epochs. Batches keep their rows, so that the first ratios are
        exactly 1; only their order changes. Those that memory has room for stay together as they
        were planned.
        """
        import torch

        groups = [[*group] for _, group in groupby(batches, key=lambda batch: batch.planned)]
        share = -(-len(groups) // min(self.options["minibatches"], len(groups)))
        for _ in range(self.options["ppo_epochs"]):
            order = torch.randperm(len(groups)).tolist()
            for start in range(0, len(groups), share):
                yield [one for place in order[start : start + share] for one in groups[place]]

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

        def passes(look: Callable[..., tuple[Any, ...]]) -> Any:
            """The sums over all batches of what one pass of each shows, its loss first."""
            found = []
            for batch in minibatch:
                loss, *others = look(experience, batch, tokens)
                (loss if self.scaler is None else self.scaler.scale(loss)).backward()
                found.append(torch.stack([loss.detach(), *others]).float())
                passed()
            return torch.stack(found).sum(0)

        policy_loss, clipped, moved = passes(self._policy_pass)
        (value_loss,) = passes(self._value_pass)
        # Read from the device once.
        return self.averaged(
            {
                "policy_loss": policy_loss,
                "value_loss": value_loss,
                "clip_fraction": clipped / tokens,
                "step_kl": moved / tokens,
            }
        )

    def _policy_pass(self, experience: Experience, batch: Batch, tokens: Any) -> tuple[Any, ...]:
        """(loss, how many ratios were clipped, the KL to the policy that generated the answers,
        summed over tokens).
        """
        old_N = gather_answers(experience.old_RT, batch)
        with self.autocast():
            new_N, _ = self.roles.log_probs(POLICY, batch, self.options["temperature"])
        advantages_N = gather_answers(experience.advantages_RT, batch)
        losses_N, _, clipped_N = math.policy_losses(
            new_N, old_N, advantages_N, self.options["clip_range"]
        )
        moved = math.approximate_kl(new_N.detach(), old_N).sum()
        return losses_N.sum() / tokens, clipped_N.sum(), moved

    def _value_pass(self, experience: Experience, batch: Batch, tokens: Any) -> tuple[Any]:
        with self.autocast():
            values_N = self.roles.values(batch)
        old_N, returns_N = (
            gather_answers(table, batch) for table in (experience.values_RT, experience.returns_RT)
        )
        losses_N = math.value_losses(values_N, old_N, returns_N, self.options["value_clip_range"])
        return (losses_N.sum() / tokens,)

    def averaged(self, numbers: Mapping[str, Any]) -> dict[str, float]:
        """Numbers, or tensors of one number, averaged over all processes."""
        import torch

        table = torch.stack(
            [
                torch.as_tensor(one, dtype=torch.float32, device=self.device)
                for one in numbers.values()
            ]
        )
        return dict(zip(numbers, (self.mean(table) if self.mean else table).tolist(), strict=True))

    def step(self) -> Any:
        """Take the step; the policy's gradient norm before clipping, on the device."""
        import torch

        if self.mean is not None:
            groups = self.optimizer.param_groups
            average_gradients([one for group in groups for one in group["params"]])
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        # Policy and value are clipped by a norm of their own each.
        norms = {
            role: torch.nn.utils.clip_grad_norm_(
                list(self.roles.trained(role).values()), self.max_grad_norm
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


def average_gradients(parameters: Sequence[Any]) -> None:
    """Average the gradients over all processes: all are on their way before the first is waited
    for.

    Args:
        parameters: In the same order in every process.
    """
    import torch.distributed as dist

    gradients = [one.grad for one in parameters if one.grad is not None]
    for sent in [dist.all_reduce(one, async_op=True) for one in gradients]:
        sent.wait()
    for one in gradients:
        one.div_(dist.get_world_size())


def mean_over_processes(tensor: Any) -> Any:
    """The tensor's mean over all processes of the run."""
    import torch.distributed as dist

    dist.all_reduce(tensor)
    return tensor / dist.get_world_size()
