"""Every optimizer is built, saved and resumed to the bit, or refused; small updates survive."""

import importlib.metadata as metadata
import types
from copy import deepcopy
from functools import partial
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from safetensors.torch import load_file

from advisor.estimate.memory.static import CHUNK_ELEMENTS
from advisor.ground.errors import MachineNotReady
from advisor.methods.optimizers import NAMES, OPTIMIZERS
from advisor.methods.stage import Stage, stage_keys
from advisor.plan.checks import optimizer_faults
from tests.trainers.runs import losses, trained, weights, whole_and_broken
from trainers import sft
from trainers.keep import checkpoints
from trainers.keep.checkpoints import load_training, save_training, trained_parameters
from trainers.step import own_optimizers
from trainers.step.make_optimizer import (
    make,
    optimizer_note,
    put_own,
    rounded_away,
    rounding_warning,
)
from trainers.step.own_optimizers import (
    CHUNK,
    BFloat16AdamW,
    join_halves,
    round_stochastically,
    split_halves,
)


def stage(name: str, **changes: Any) -> Stage:
    return Stage(
        **{
            "name": "sft", "objective": "sft", "update": "full", "learning_rate": 1e-3,
            "optimizer": name, "weights_dtype": "bfloat16", "weight_decay": 0.1, **changes,
        }
    )  # fmt: skip


class Tiny(torch.nn.Module):
    """The kinds of weights a model has, experts among them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(40, 64)
        self.q_proj = torch.nn.Linear(64, 96, bias=True)
        self.down_proj = torch.nn.Linear(96, 64, bias=False)
        self.experts = torch.nn.Parameter(torch.randn(3, 64, 32) * 0.02)
        self.norm = torch.nn.LayerNorm(64)
        self.lm_head = torch.nn.Linear(64, 40, bias=False)

    def get_input_embeddings(self) -> Any:
        return self.embed

    def get_output_embeddings(self) -> Any:
        return self.lm_head


def steps_of(made: Any, model: Any, numbers: range) -> None:
    """Steps on gradients that depend on their number alone."""
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        for one in model.parameters():
            one.grad = torch.randn(one.shape, generator=generator).to(one.dtype)
        for group in made.param_groups:  # as a scheduler does
            group["lr"] = 1e-3 / (number + 1)
        torch.manual_seed(number)  # a checkpoint holds the random states, too
        made.step()


def built(name: str, model: Any, dtype: str) -> Any:
    decayed = ("q_proj.weight", "down_proj.weight", "experts")
    pulled = [one for path, one in model.named_parameters() if path in decayed]
    others = [one for path, one in model.named_parameters() if path not in decayed]
    groups = [
        {"params": params, "lr": 1e-3, "weight_decay": decay}
        for params, decay in ((pulled, 0.1), (others, 0.0))
    ]
    return make(stage(name, weights_dtype=dtype), groups, [model])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [name for name, one in OPTIMIZERS.items() if "cpu" in one.devices])
def test_four_steps_are_two_and_two_more_after_a_checkpoint(name, dtype, tmp_path):
    """Weights and states come back as they were, bit for bit, from safetensors and JSON."""
    torch.manual_seed(0)
    whole = Tiny().to(getattr(torch, dtype))
    whole.norm.float()  # as a value head stays
    broken, start = deepcopy(whole), deepcopy(whole)
    steps_of(built(name, whole, dtype), whole, range(4))

    first = built(name, broken, dtype)
    steps_of(first, broken, range(2))
    save_training(tmp_path, trained_parameters(broken), first, weights=True)
    resumed = deepcopy(start)
    second = built(name, resumed, dtype)
    load_training(tmp_path, trained_parameters(resumed), second)
    steps_of(second, resumed, range(2, 4))

    for (path, one), other in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other), path
    assert not torch.equal(whole.q_proj.weight, start.q_proj.weight)


def test_muon_moves_matrices_as_torch_does_and_the_rest_as_adamw():
    """Against torch.optim.Muon and torch.optim.AdamW, each alone; experts belong to AdamW."""
    torch.manual_seed(0)
    ours = Tiny()
    theirs = deepcopy(ours)
    steps_of(built("muon", ours, "float32"), ours, range(3))

    matrices = [theirs.q_proj.weight, theirs.down_proj.weight]
    muon = torch.optim.Muon(matrices, lr=1e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    rest = [theirs.embed.weight, theirs.lm_head.weight, theirs.q_proj.bias, theirs.norm.weight]
    groups = [{"params": [theirs.experts], "weight_decay": 0.1}, {"params": rest}]
    adamw = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.0)
    both = types.SimpleNamespace(
        param_groups=[*muon.param_groups, *adamw.param_groups],
        step=lambda: (muon.step(), adamw.step()),
    )
    steps_of(both, theirs, range(3))
    for name in ("q_proj.weight", "down_proj.weight", "embed.weight", "lm_head.weight",
                 "q_proj.bias", "norm.weight", "experts"):  # fmt: skip
        assert torch.equal(ours.get_parameter(name), theirs.get_parameter(name)), name


def test_a_run_says_that_muon_moves_no_experts():
    """Expert weights are one tensor of three dimensions a layer, which torch's Muon refuses."""
    args = types.SimpleNamespace(adam_beta1=0.9, adam_beta2=0.999, adam_epsilon=1e-8)
    trainer = types.SimpleNamespace(model=Tiny(), args=args)
    told = put_own(trainer, stage("muon")) or ""
    assert "1 tensors of three dimensions, are moved by AdamW" in told
    assert put_own(trainer, stage("adamw_split")) is None


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("paged_adamw_8bit", {}),
        ("muon", {"update": "ia3"}),
        ("muon", {"trl": {"optim_args": "rank=3"}}),
        ("sgd", {"trl": {"optim_args": "nesterov=3"}}),
        ("sgd", {"trl": {"adam_beta1": 0.8}}),
        ("adamw", {"trl": {"max_grad_norm": -1.0}}),
        ("adamw", {"trl": {"optim_args": "rank=3"}}),
        ("adamw_split", {"weights_dtype": "float32"}),
        ("adamw_split", {"update": "lora"}),
    ],
    ids=str,
)
def test_what_an_optimizer_cannot_do_is_said(name, changes, approved):
    """By name, with what is allowed, before a model loads."""
    approved([fault.lines() for fault in optimizer_faults(stage(name, **changes), "cpu")])


def test_a_library_that_is_missing_is_named_with_the_command(make, monkeypatch):
    """Exit code 4 with what to install, before the model loads."""
    real = metadata.version

    def version(name: str) -> str:
        if name == "bitsandbytes":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(MachineNotReady, match="bitsandbytes is not installed"):
        sft.train(make(update="full", optimizer="adamw_8bit"))


@pytest.mark.parametrize("name", ["galore_adamw", "lion_8bit", "adamw_torch_8bit", "adamw_fuse"])
def test_a_name_that_no_plan_can_give_is_refused(name):
    """With those that it can; transformers' own names of these are taken, too."""
    from advisor.ground.shape import NamedValue

    shape = stage_keys()["optimizer"].shape
    (fault,) = shape.faults(name, NamedValue("optimizer", name), ())
    assert all(one in fault.allowed for one in OPTIMIZERS)
    assert "adamw_bnb_8bit" in NAMES
    assert not list(shape.faults("adamw_torch", NamedValue("optimizer", "adamw_torch"), ()))


def test_what_is_said_of_learning_rates_and_of_slow_steps(monkeypatch):
    """A rate that is not AdamW's and slow steps on a GPU without Triton are told, nothing else."""
    missing = "the package triton is not installed"
    monkeypatch.setattr("trainers.step.make_optimizer.why_no_triton", lambda: missing)
    rate = "learning rate 0.0002 under sgd: no rate"
    slow = f"adamw_split is not compiled, because {missing}"
    for name, device, said in (
        ("sgd", "cpu", rate), ("muon", "cpu", ""), ("adamw", "cuda", ""),
        ("adamw_split", "cuda", slow), ("adamw_split", "cpu", ""),
    ):  # fmt: skip
        note = optimizer_note(stage(name, learning_rate=2e-4), device) or ""
        assert said in note
        assert bool(note) is bool(said)


def paged_over(parameter: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """bitsandbytes' paged AdamW with buffers marked as paged: managed memory needs a GPU."""
    found = pytest.importorskip("bitsandbytes").optim.PagedAdamW32bit([parameter], lr=1e-3)

    def paged(p: Any, dtype: Any = torch.float32) -> Any:
        buffer = torch.zeros_like(p, dtype=dtype)
        buffer.is_paged = True  # type: ignore[attr-defined]
        return buffer

    monkeypatch.setattr(found, "get_state_buffer", paged)
    return found


def test_loaded_states_are_paged_and_the_same(tmp_path, monkeypatch):
    """Both moments come back in paged buffers with the same numbers, whose table is one for all."""
    weights = torch.nn.Parameter(torch.randn(64, 64))
    copy = torch.nn.Parameter(weights.detach().clone())
    first = paged_over(weights, monkeypatch)
    weights.grad = torch.ones_like(weights)
    first.initialized = True
    state = first.state[weights]
    first.init_state(first.param_groups[0], weights, 0, 0)
    state["state1"] += 0.25
    state["state2"] += 0.5
    state["step"] = 3
    save_training(tmp_path, {"weights": weights}, first, weights=True)

    resumed = paged_over(copy, monkeypatch)
    copy.data.zero_()
    wrapped = types.SimpleNamespace(optimizer=resumed)  # as accelerate does
    load_training(tmp_path, {"weights": copy}, wrapped)
    found = resumed.state[copy]
    assert found["step"] == 3
    for name in ("state1", "state2"):
        assert (found[name].is_paged, found[name].tolist()) == (True, state[name].tolist())
    assert torch.equal(copy, weights)


WEIGHTS, STEPS = 20_000, 100


def optimizer_over(parameter: Any, kind: str, rate: float) -> Any:
    keys = {"lr": rate, "weight_decay": 0.01}
    if kind in ("float32", "plain"):
        return torch.optim.AdamW([parameter], **keys)
    return BFloat16AdamW([parameter], keeps=kind, seed=42, **keys)


def stepped(kind: str, rate: float, steps: int = STEPS) -> tuple[Any, Any]:
    """The changes, in float32, of the weights training goes on with and of those the model sees."""
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
    """Two halves move all weights as float32 does, and random rounding is right on average."""
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
    """Code is made for the first size, any other, and float32; a fused product rounds once less."""
    monkeypatch.setattr(own_optimizers, "CHUNK", 64)
    plain = run_of(kind)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    made = own_optimizers.compiled("eager")
    monkeypatch.setattr(own_optimizers, "compiled", lambda: made)
    monkeypatch.setattr(own_optimizers, "compiles", lambda device_type: True)
    for one, other in zip(run_of(kind), plain, strict=True):  # of halves the low one counts in ones
        atol = 1e-9 if one.is_floating_point() else 1
        torch.testing.assert_close(one, other, rtol=1e-6, atol=atol)
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


def test_the_second_moment_does_not_stall():
    """A bfloat16 second moment follows gradients ten times smaller as a float32 one does."""
    moments = []
    for kind in ("float32", "split", "stochastic"):
        dtype = torch.float32 if kind == "float32" else torch.bfloat16
        parameter = torch.nn.Parameter(torch.zeros(4000, dtype=dtype))
        optimizer = optimizer_over(parameter, kind, 1e-5)
        for step in range(300):
            parameter.grad = torch.full((4000,), 1e-3 if step < 20 else 1e-4, dtype=dtype)
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
    """A number a quarter of the way to the next goes there in a quarter of cases, of any sign."""
    random = torch.Generator().manual_seed(2)
    noise = torch.randint(-(2**31), 2**31, (40_000,), dtype=torch.int32, generator=random)
    for value in (1 + 0.25 * 2**-7, -1 - 0.25 * 2**-7):
        rounded = round_stochastically(torch.full((40_000,), value), noise).float()
        assert set(rounded.tolist()) == {value / abs(value), value / abs(value) * (1 + 2**-7)}
        assert float(rounded.mean()) == pytest.approx(value, abs=2e-4)


def test_processes_round_alike_whatever_they_drew_before():
    """Noise follows from seed, step and parameter, and changes no other random number."""
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
    """The optimizer keeps 6 and 4 bytes a weight, and computes as many weights at once."""
    parameter = torch.nn.Parameter(torch.zeros(1000).bfloat16())
    optimizer = optimizer_over(parameter, kind, 1e-5)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    held = sum(getattr(one, "nbytes", 0) for one in optimizer.state[parameter].values())
    entry = OPTIMIZERS[f"adamw_{kind}"]
    assert held == 1000 * (2 * 2 + entry.beside_bfloat16) == 1000 * (6 if kind == "split" else 4)
    assert (entry.holds, CHUNK_ELEMENTS) == ("chunks", CHUNK)


@pytest.mark.parametrize("optimizer", ["adamw_fused", "adamw_split"])
def test_the_settings_of_a_gpu_plan_move_every_weight(optimizer, make, tiny_model):
    """A usual rate moves over 99 %, and two halves keep what a bfloat16 result cannot show."""
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
    """The share that a plain AdamW leaves in place is stated within three points."""
    pure = {"learning_rate": 1e-5, "precision": "pure"}
    shares = {name: rounded_away(stage(name, **pure)) for name in OPTIMIZERS}
    assert shares["adamw_split"] == shares["adamw_stochastic"] == shares["sgd"] == 0.0
    assert shares["muon"] > 0.5
    plain, _ = stepped("plain", rate, steps=20)
    stated = rounded_away(stage("adamw", learning_rate=rate))
    assert stated == pytest.approx(1 - share_moved(plain), abs=0.03)


def test_a_plan_that_rounds_updates_away_is_told_so(make, capsys):
    """A warning before and in the result says how much is lost, and what to set."""
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
        assert rounding_warning(stage("adamw", **{"learning_rate": 1e-5, **other})) is None


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
    found, dtype = result["resolved"], changes.get("weights_dtype", "float32")
    kept = (OPTIMIZERS[optimizer].transformers or optimizer, dtype, None)
    assert (found["trl"]["optim"], found["trainable_dtype"], found["autocast"]) == kept


def test_a_broken_run_ends_with_the_same_weights(make, monkeypatch):
    """Losses and file are the same bit for bit, though bits are rounded at random."""
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
