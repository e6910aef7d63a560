"""Full fine-tuning in each precision and with each optimizer the plan can state. It keeps the small
updates that bfloat16 weights would round away.

Weights of std 0.02, as large models have them, and gradients of a direction that stays under noise
three times as large; what each format does with the same gradients is compared with float32.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from msgspec.structs import replace

pytest.importorskip("torch")

import torch
from safetensors.torch import load_file

from advisor.estimate.memory.static import CHUNK_ELEMENTS
from advisor.methods.optimizers import OPTIMIZERS
from advisor.plan.model import Stage
from tests.trainers.runs import losses, trained, weights, whole_and_broken
from trainers.keep import checkpoints
from trainers.step import own_optimizers
from trainers.step.make_optimizer import optimizer_note, rounded_away, rounding_warning
from trainers.step.own_optimizers import (
    CHUNK,
    BFloat16AdamW,
    join_halves,
    round_stochastically,
    split_halves,
)

WEIGHTS, STEPS = 20_000, 100
STAGE = Stage(
    name="sft", objective="sft", update="full", weights_dtype="bfloat16", learning_rate=1e-5
)


def optimizer_over(parameter: Any, kind: str, rate: float) -> Any:
    keys = {"lr": rate, "weight_decay": 0.01}
    if kind in ("float32", "plain"):
        return torch.optim.AdamW([parameter], **keys)
    return BFloat16AdamW([parameter], keeps=kind, seed=42, **keys)


def stepped(kind: str, rate: float, steps: int = STEPS) -> tuple[Any, Any]:
    """(the change of all weights that training goes on with, of the weights that the model sees),
    in float32.
    """
    random = torch.Generator().manual_seed(0)
    start = (torch.randn(WEIGHTS, generator=random) * 0.02).bfloat16()
    direction = torch.randn(WEIGHTS, generator=random) * 3e-5
    parameter = torch.nn.Parameter(start.float() if kind == "float32" else start.clone())
    optimizer = optimizer_over(parameter, kind, rate)
    for step in range(steps):
        gradient = direction + 1e-4 * torch.randn(WEIGHTS, generator=random)
        parameter.grad = gradient.to(parameter.dtype)
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimizer.step()
    seen = parameter.detach()
    halves = optimizer.state[parameter].get("lower_half")
    kept = seen.float() if halves is None else join_halves(seen, halves)
    return kept - start.float(), seen.float() - start.float()


def share_moved(change: Any) -> float:
    return float((change != 0).float().mean())


direction_of = partial(torch.cosine_similarity, dim=0)


@pytest.mark.parametrize(
    ("rate", "plain_moves", "plain_turns", "rounded_turns"),
    [(1e-5, 0.2, 0.4, 0.7), (5e-7, 0.02, 0.1, 0.2)],
)
def test_what_each_format_keeps(rate, plain_moves, plain_turns, rounded_turns):
    """At 1e-5 plain bfloat16 moves 15 % of the weights, at 5e-7 one in a hundred; two halves move
    all of them as float32 does, and random rounding goes the right way on average.
    """
    wanted, _ = stepped("float32", rate)
    assert share_moved(wanted) > 0.999
    plain, _ = stepped("plain", rate)
    assert share_moved(plain) < plain_moves
    assert direction_of(plain, wanted) < plain_turns
    split, seen = stepped("split", rate)
    assert share_moved(split) > 0.99
    assert direction_of(split, wanted) > 0.999
    assert float(split.norm() / wanted.norm()) == pytest.approx(1, abs=0.01)
    rounded, _ = stepped("stochastic", rate)
    assert direction_of(rounded, wanted) > rounded_turns
    # The mean step is the right one: its part along the wanted direction is as long as that.
    assert float(rounded @ wanted / (wanted @ wanted)) == pytest.approx(1, abs=0.15)
    # What the model computes with is the float32 weight, rounded once to the nearest.
    assert float((seen - split).abs().max()) <= 2.0**-10


def run_of(kind: str) -> list[Any]:
    """Weights and states after five steps of parameters of several sizes and dtypes."""
    random = torch.Generator().manual_seed(5)
    sizes = ((133,), (20, 15), (64,), (17,))
    parameters = [torch.nn.Parameter(torch.randn(size, generator=random)) for size in sizes]
    for one in parameters[:3]:
        one.data = one.data.bfloat16()
    optimizer = BFloat16AdamW(parameters, keeps=kind, seed=1, lr=1e-3, weight_decay=0.1)
    for step in range(5):
        for one in parameters:
            one.grad = torch.randn(one.shape, generator=random).to(one.dtype)
        optimizer.param_groups[0]["lr"] = 1e-3 / (step + 1)
        optimizer.step()
    states = [value for one in parameters for value in optimizer.state[one].values()]
    return [*parameters, *(value for value in states if isinstance(value, torch.Tensor))]


@pytest.mark.parametrize("kind", ["split", "stochastic"])
def test_no_step_is_compiled_anew(kind, monkeypatch):
    """Neither a step nor a learning rate compiles anew: there is code for the first size, for any
    other, and for float32. The numbers are those of plain code; torch's front end fuses one product
    with a sum, which rounds once less.
    """
    monkeypatch.setattr(own_optimizers, "CHUNK", 64)
    plain = run_of(kind)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    made = own_optimizers.compiled("eager")
    monkeypatch.setattr(own_optimizers, "compiled", lambda: made)
    monkeypatch.setattr(own_optimizers, "compiles", lambda device_type: True)
    for mine, theirs in zip(run_of(kind), plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3


def test_weights_in_float32_move_as_torchs_adamw_moves_them():
    """To the bit, whatever the order of its operations is."""
    random = torch.Generator().manual_seed(6)
    mine = torch.nn.Parameter(torch.randn(5000, generator=random))
    theirs = torch.nn.Parameter(mine.detach().clone())
    keys: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.1}
    ours = BFloat16AdamW([mine], keeps="split", seed=1, **keys)
    torchs = torch.optim.AdamW([theirs], foreach=False, **keys)
    for _ in range(5):
        mine.grad = theirs.grad = torch.randn(5000, generator=random)
        ours.step()
        torchs.step()
    assert torch.equal(mine, theirs)


def test_without_triton_a_run_on_a_gpu_is_told_that_steps_are_slower():
    """In one line; on the CPU, and with other optimizers, nothing is said."""
    stage = replace(STAGE, optimizer="adamw_split")
    told = optimizer_note(stage, "cuda") or ""
    assert "adamw_split is not compiled, because the package triton is not installed" in told
    assert optimizer_note(stage, "cpu") is None
    assert optimizer_note(replace(STAGE, optimizer="adamw"), "cuda") is None


def test_the_second_moment_does_not_stall():
    """After gradients have become ten times smaller, a bfloat16 second moment follows them down as
    a float32 one does.
    """
    moments = []
    for kind in ("float32", "split", "stochastic"):
        dtype = torch.float32 if kind == "float32" else torch.bfloat16
        parameter = torch.nn.Parameter(torch.zeros(4000, dtype=dtype))
        optimizer = optimizer_over(parameter, kind, 1e-5)
        for step in range(300):
            size = 1e-3 if step < 20 else 1e-4
            parameter.grad = torch.full((4000,), size, dtype=dtype)
            optimizer.step()
        moments.append(float(optimizer.state[parameter]["exp_avg_sq"].float().mean()))
    exact, *rounded = moments
    assert rounded == pytest.approx([exact, exact], rel=0.02)
    # The same decay rounded to the nearest stays where it was.
    assert torch.tensor(exact).bfloat16() * 0.999 == torch.tensor(exact).bfloat16()


def test_two_halves_are_one_float32_number():
    """Any float32 number comes back bit for bit, and its upper half is the nearest bfloat16."""
    random = torch.Generator().manual_seed(1)
    bits = torch.randint(-(2**31), 2**31, (100_000,), dtype=torch.int32, generator=random)
    values = bits.view(torch.float32)
    values = values[values.abs() < 3e38]
    upper, lower = split_halves(values)
    assert torch.equal(join_halves(upper, lower), values)
    assert torch.all((upper.float() - values).abs() <= (values.bfloat16().float() - values).abs())


def test_stochastic_rounding_is_right_on_average():
    """A number a quarter of the way to the next goes there in a quarter of the cases, whatever its
    sign.
    """
    random = torch.Generator().manual_seed(2)
    noise = torch.randint(-(2**31), 2**31, (40_000,), dtype=torch.int32, generator=random)
    for value in (1 + 0.25 * 2**-7, -1 - 0.25 * 2**-7):
        rounded = round_stochastically(torch.full((40_000,), value), noise).float()
        assert set(rounded.tolist()) == {value / abs(value), value / abs(value) * (1 + 2**-7)}
        assert float(rounded.mean()) == pytest.approx(value, abs=2e-4)


def test_processes_round_alike_whatever_they_drew_before():
    """Weights stay equal in all processes: the noise follows from seed, step and parameter, and
    drawing it changes no other random number.
    """
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        weights = torch.nn.Parameter(torch.full((3000,), 0.02).bfloat16())
        idle = torch.nn.Parameter(torch.zeros(3).bfloat16())
        optimizer = BFloat16AdamW([idle, weights], keeps="stochastic", seed=7, lr=1e-5)
        weights.grad = torch.ones(3000).bfloat16()
        optimizer.step()
        assert torch.equal(torch.random.get_rng_state(), before)
        results.append(weights.detach())
    assert torch.equal(*results)
    assert len(results[0].unique()) == 2


@pytest.mark.parametrize("kind", ["split", "stochastic"])
def test_the_estimate_counts_every_byte_of_the_state(kind):
    """The optimizer keeps 6 and 4 bytes a weight, as the estimate of memory says, and computes as
    many weights at once.
    """
    parameter = torch.nn.Parameter(torch.zeros(1000).bfloat16())
    optimizer = optimizer_over(parameter, kind, 1e-5)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    held = sum(getattr(one, "nbytes", 0) for one in optimizer.state[parameter].values())
    entry = OPTIMIZERS[f"adamw_{kind}"]
    assert held == 1000 * (2 * 2 + entry.beside_bfloat16) == 1000 * (6 if kind == "split" else 4)
    assert entry.holds == "chunks"
    assert CHUNK_ELEMENTS == CHUNK


@pytest.mark.parametrize("optimizer", ["adamw_fused", "adamw_split"])
def test_the_settings_of_a_gpu_plan_move_every_weight(optimizer, make, tiny_model):
    """A run with a usual plan's learning rate moves more than 99 % of the weights; the checkpoint
    of two halves holds what its bfloat16 result cannot show. Mixed precision computes in 16 bit.
    """
    halves = optimizer == "adamw_split"
    dtype, precision = ("bfloat16", "pure") if halves else ("float32", "mixed")
    job = make(
        update="full", weights_dtype=dtype, precision=precision, optimizer=optimizer,
        learning_rate=2e-5, scheduler="constant", max_steps=4, save_steps=4, weight_decay=0.01,
        job_judge=False,
    )  # fmt: skip
    found = trained(job)["resolved"]
    assert found["trl"]["optim"] in (optimizer, "adamw_torch_fused")
    assert (found["trainable_dtype"], found["autocast"]) == (dtype, None if halves else "bfloat16")
    before, after = load_file(tiny_model / "model.safetensors"), weights(job)
    assert {value.dtype for value in after.values()} == {getattr(torch, dtype)}
    # Words that no row has get no gradient; weight decay moves them, but for exact zeros.
    changes = {name: after[name] - before[name].float() for name in after}
    if halves:
        changes = checkpoints.read_state(job.checkpoints / "checkpoint-4" / checkpoints.STATE)[
            "parts"
        ]
        changes = {name: one for name, one in changes.items() if name.startswith("lower_half:")}
    assert share_moved(torch.cat([one.reshape(-1).float() for one in changes.values()])) > 0.99


@pytest.mark.parametrize("rate", [2e-5, 1e-5, 5e-7])
def test_the_warning_says_how_many_weights_stay(rate):
    """The stated share is what a plain AdamW leaves in place, within three points."""
    plain, _ = stepped("plain", rate, steps=20)
    stated = rounded_away(replace(STAGE, learning_rate=rate, optimizer="adamw"))
    assert stated == pytest.approx(1 - share_moved(plain), abs=0.03)


def test_a_plan_that_rounds_updates_away_is_told_so(make, capsys):
    """bfloat16 weights with a plain AdamW run, with a warning before and in the result that says
    how much is lost and what to set; other formats, and large rates, are left alone.
    """
    keys = {"update": "full", "weights_dtype": "bfloat16", "learning_rate": 2e-5, "max_steps": 1}
    result = trained(make(**keys, job_max_steps=1, job_judge=False))
    told = capsys.readouterr().err
    assert "about 70% of the weights are rounded away; set optimizer: adamw_split" in told
    assert {one["name"]: one["ok"] for one in result["checks"]}["updates_rounded_away"] is False
    assert result["verdict"]["ok"] is False
    for other in (
        {"optimizer": "adamw_split"}, {"weights_dtype": "float32"}, {"learning_rate": 3e-3},
        {"update": "lora"},
    ):  # fmt: skip
        assert rounding_warning(replace(STAGE, **other)) is None


# --------------------------------------------------------------------------- whole stages


@pytest.mark.parametrize(
    ("optimizer", "changes"),
    [
        ("adamw", {"precision": "pure"}),
        ("adamw_8bit", {}),
        ("adafactor", {"weights_dtype": "bfloat16", "precision": "pure"}),
        ("sgd", {"learning_rate": 3e-1}),
        ("muon", {"trl": {"optim_args": "momentum=0.9"}}),
    ],
)
def test_each_optimizer_trains_and_is_recorded(optimizer, changes, make):
    """The choice of the plan is the optimizer that ran; pure bfloat16 keeps weights in 16 bit."""
    common = {"update": "full", "learning_rate": 3e-3, "max_steps": 8, "weights_dtype": "float32"}
    result = trained(make(**{**common, "optimizer": optimizer, "job_judge": False, **changes}))
    assert result["loss_last"] < result["loss_first"]
    found = result["resolved"]
    assert found["trl"]["optim"] == (OPTIMIZERS[optimizer].transformers or optimizer)
    assert found["trainable_dtype"] == changes.get("weights_dtype", "float32")
    assert found["autocast"] is None


def test_a_broken_run_ends_with_the_same_weights(make, monkeypatch):
    """Four steps at once, and two, a crash and two more: the same losses and the same file, bit for
    bit, though bits are rounded at random.
    """
    whole, broken = whole_and_broken(
        make, 3, monkeypatch, update="full", optimizer="adamw_stochastic", weights_dtype="bfloat16",
        learning_rate=3e-3, max_steps=4, save_steps=2,
    )  # fmt: skip
    assert losses(broken) == losses(whole)
    folders = (whole.output, broken.output, whole.checkpoints / "checkpoint-4")
    end, *others = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert others == [end, end]
    for name in ("model.safetensors", "result.json"):  # as if it had been stopped while it saved
        (whole.output / name).unlink()
    trained(whole)
    assert (whole.output / "model.safetensors").read_bytes() == end
