"""The optimizer of PPO: what `trl:` sets of it, which weights decay, and how processes agree."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

pytest.importorskip("torch")

import torch
from safetensors.torch import load_file

from advisor.methods.optimizers import OPTIMIZERS
from trainers.job.files import read_json
from trainers.ppo import math, train
from trainers.ppo.learning import Learner, PPOArguments, make_optimizer, rate_share, set_rates
from trainers.ppo.loop import shuffled
from trainers.ppo.roles import POLICY, VALUE


class Block(torch.nn.Module):
    """The kinds of parameters a model has, by their usual names."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = torch.nn.Linear(4, 4)
        self.input_layernorm = torch.nn.Linear(4, 1, bias=False)  # an RMSNorm goes by its name
        self.ln_1 = torch.nn.LayerNorm(4)


def roles() -> Any:
    parts = {
        role: SimpleNamespace(model=Block().bfloat16(), head=head)
        for role, head in ((POLICY, None), (VALUE, torch.nn.Linear(4, 1)))
    }
    names = {role: dict(part.model.named_parameters()) for role, part in parts.items()}
    names[VALUE] |= {f"head.{name}": one for name, one in parts[VALUE].head.named_parameters()}
    return SimpleNamespace(parts=parts, trained=lambda role: names[role])


@pytest.fixture
def stage(make):
    return make(update="full", weight_decay=0.1, learning_rate=1e-3).stage


def test_norms_and_biases_do_not_decay(stage):
    """Weight decay pulls matrices alone, as under transformers' Trainer; every trained parameter is
    in one group of its role.
    """
    found = roles()
    optimizer = make_optimizer(stage, {"value_learning_rate": 5e-4}, found, PPOArguments())
    for role, rate in ((POLICY, 1e-3), (VALUE, 5e-4)):
        of_role = [group for group in optimizer.param_groups if group["role"] == role]
        assert {group["full_rate"] for group in of_role} == {rate}
        decays = {id(one): group["weight_decay"] for group in of_role for one in group["params"]}
        wanted = {
            id(one): 0.1 if name in ("q_proj.weight", "head.weight") else 0.0
            for name, one in found.trained(role).items()
        }
        assert decays == wanted


def test_trl_sets_the_optimizer_of_ppo(stage):
    """`trl: {adam_beta1, adam_beta2, adam_epsilon}` reach the optimizer, ours among them; without
    them they are transformers' defaults.
    """
    given = PPOArguments(adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6)
    for name in ("adamw_fused", "adamw_stochastic", "adamw_split"):
        optimizer = make_optimizer(
            replace(stage, optimizer=name), {"value_learning_rate": None}, roles(), given
        )
        assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.95)}
        assert {group["eps"] for group in optimizer.param_groups} == {1e-6}
    plain = make_optimizer(stage, {"value_learning_rate": None}, roles(), PPOArguments())
    assert plain.defaults["betas"] == (0.9, 0.999)
    assert plain.defaults["eps"] == 1e-8


@pytest.mark.parametrize("name", [name for name, one in OPTIMIZERS.items() if "cpu" in one.devices])
def test_ppo_takes_the_same_optimizers(name, stage):
    """Each is built over policy and value with a rate of its own, which the schedule sets, and
    steps.
    """
    found = roles()
    chosen = replace(stage, optimizer=name, learning_rate=0.1)
    optimizer = make_optimizer(chosen, {"value_learning_rate": 0.05}, found, PPOArguments())
    set_rates(optimizer, 0.5)
    rates = {group["role"]: float(group["lr"]) for group in optimizer.param_groups}
    assert rates == pytest.approx({POLICY: 0.05, VALUE: 0.025})
    before = found.trained(POLICY)["q_proj.weight"].detach().clone()
    for role in (POLICY, VALUE):
        for one in found.trained(role).values():
            one.grad = torch.ones_like(one)
    optimizer.step()
    assert not torch.equal(found.trained(POLICY)["q_proj.weight"], before)


def test_clipping_acts_and_is_recorded(make):
    """One plain step at rate 0.5 with `trl: {max_grad_norm: 0.001}` moves the policy by at most
    0.0005, and result.json says what was set.
    """
    job = make(
        max_steps=1, ppo_epochs=1, job_judge=False, optimizer="sgd", learning_rate=0.5, warmup=0.0,
        trl={"max_grad_norm": 0.001},
    )  # fmt: skip
    train(job)
    saved = load_file(job.output / "adapter_model.safetensors")
    # These halves of a LoRA start at zero.
    moved = sum(float((one**2).sum()) for name, one in saved.items() if "lora_B" in name) ** 0.5
    assert 0.00025 < moved <= 0.0005 * 1.001
    assert read_json(job.output / "result.json")["resolved"]["max_grad_norm"] == 0.001


@pytest.mark.parametrize("keep_mean", [False, True])
def test_processes_whiten_over_all_their_tokens(keep_mean):
    """Two processes with different rewards scale by the mean and variance of all tokens, as one
    process with all of them does; each by its own would hide which answers were better.
    """
    random = torch.Generator().manual_seed(0)
    values = torch.randn(4, 6, generator=random) + torch.tensor([[3.0], [3], [0], [0]])
    mask = (torch.rand(4, 6, generator=random) > 0.3).float()
    alone = math.whiten(values, mask, keep_mean=keep_mean)
    parts = [slice(0, 2), slice(2, 4)]
    # Each process sends two numbers twice, in step; what it gets back is the mean of both.
    firsts = [torch.stack([(values[part] * mask[part]).sum(), mask[part].sum()]) for part in parts]
    mean = sum(firsts)[0] / sum(firsts)[1]
    seconds = [
        torch.stack([((values[part] - mean) ** 2 * mask[part]).sum(), mask[part].sum()])
        for part in parts
    ]
    for number, part in enumerate(parts):
        rounds = iter([(firsts[number], sum(firsts) / 2), (seconds[number], sum(seconds) / 2)])

        def over(tensor: Any, rounds: Any = rounds) -> Any:
            mine, both = next(rounds)
            assert torch.allclose(tensor, mine)
            return both

        found = math.whiten(values[part], mask[part], keep_mean=keep_mean, over_processes=over)
        assert torch.allclose(found, alone[part], atol=1e-5)
        assert not torch.allclose(found, math.whiten(values[part], mask[part]), atol=0.1)


def test_the_device_is_read_once_an_inner_step(make, monkeypatch):
    """Numbers of all micro-batches are read together: one read for the two of each step."""
    reads: list[int] = []
    real_list, real = torch.Tensor.tolist, Learner.gradients

    def gradients(self, *given):
        counted = 0

        def read(tensor):
            nonlocal counted
            counted += 1
            return real_list(tensor)

        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "tolist", read)
            waits = "a micro-batch waits for the device"
            patch.setattr(torch.Tensor, "item", lambda tensor: pytest.fail(waits))
            found = real(self, *given)
        reads.append(counted)
        return found

    monkeypatch.setattr(Learner, "gradients", gradients)
    train(make(max_steps=1, grad_accum=4, minibatches=2, ppo_epochs=1, job_judge=False))
    assert reads == [1, 1]


def test_every_prompt_is_answered_once_before_any_is_answered_again():
    """Ten prompts in updates of four: two and a half updates see each once; the next pass has
    another order.
    """
    starts = range(0, 20, 4)
    seen = [one for at in starts for one in shuffled(range(10), range(at, at + 4), seed=1)]
    assert sorted(seen[:10]) == sorted(seen[10:20]) == list(range(10))
    assert seen[:10] != seen[10:20]


@pytest.mark.parametrize(
    ("scheduler", "warmup", "shares"),
    [
        ("linear", 0.2, [1 / 3, 2 / 3, *(left / 8 for left in range(8, 0, -1))]),
        ("constant", 0.5, [1.0] * 4),
        ("constant_with_warmup", 0.25, [0.5, 1.0, 1.0, 1.0]),
        ("cosine", 0.0, [1.0, 0.75, 0.25]),
        ("cosine", 0.0, [1.0, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2]),
    ],
)
def test_learning_rates(scheduler, warmup, shares):
    """Ten updates, two of warm-up: 1/3, 2/3, 1, then down by eighths; constant stays; cosine is
    half way at the middle, and its last update still learns.
    """
    count = len(shares)
    found = [rate_share(step, count, warmup=warmup, scheduler=scheduler) for step in range(count)]
    assert found == pytest.approx(shares)
