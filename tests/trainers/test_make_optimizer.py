"""Every optimizer of the plan: built, saved and resumed to the bit, and refused where it does not
go.
"""

from __future__ import annotations

import copy
import importlib.metadata as metadata
import types
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from advisor.ground.errors import MachineNotReady
from advisor.methods.optimizers import NAMES, OPTIMIZERS
from advisor.methods.stage import Stage, stage_keys
from advisor.plan.checks import optimizer_faults
from trainers import sft
from trainers.keep.checkpoints import load_training, save_training, trained_parameters
from trainers.step.make_optimizer import make, optimizer_note, put_own, rounded_away

ON_CPU = [name for name, one in OPTIMIZERS.items() if "cpu" in one.devices]


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
@pytest.mark.parametrize("name", ON_CPU)
def test_four_steps_are_two_and_two_more_after_a_checkpoint(name, dtype, tmp_path):
    """Weights and states come back as they were, bit for bit, from safetensors and JSON."""
    torch.manual_seed(0)
    whole = Tiny().to(getattr(torch, dtype))
    whole.norm.float()  # as a value head stays
    broken, start = copy.deepcopy(whole), copy.deepcopy(whole)
    made = built(name, whole, dtype)
    steps_of(made, whole, range(4))

    first = built(name, broken, dtype)
    steps_of(first, broken, range(2))
    save_training(tmp_path, trained_parameters(broken), first, weights=True)
    resumed = copy.deepcopy(start)
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
    theirs = copy.deepcopy(ours)
    made = built("muon", ours, "float32")
    steps_of(made, ours, range(3))

    matrices = [theirs.q_proj.weight, theirs.down_proj.weight]
    muon = torch.optim.Muon(matrices, lr=1e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    rest = [theirs.embed.weight, theirs.lm_head.weight, theirs.q_proj.bias, theirs.norm.weight]
    groups = [{"params": [theirs.experts], "weight_decay": 0.1}, {"params": rest}]
    adamw = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.0)
    for number in range(3):
        generator = torch.Generator().manual_seed(number)
        for one in theirs.parameters():
            one.grad = torch.randn(one.shape, generator=generator)
        for group in (*muon.param_groups, *adamw.param_groups):
            group["lr"] = 1e-3 / (number + 1)
        muon.step()
        adamw.step()
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


# --------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("paged_adamw_8bit", {}, "pages memory between GPU and host on cuda, this stage on cpu"),
        ("muon", {"update": "ia3"}, "update ia3 trains vectors alone"),
        ("muon", {"trl": {"optim_args": "rank=3"}}, "muon reads no 'rank': it reads momentum"),
        ("sgd", {"trl": {"optim_args": "nesterov=3"}}, "nesterov is '3', expected true or false"),
        (
            "sgd",
            {"trl": {"adam_beta1": 0.8}},
            "'adam_beta1' has no effect: optimizer sgd is no Adam",
        ),
        ("adamw", {"trl": {"max_grad_norm": -1.0}}, "'max_grad_norm' is -1.0: gradients would not"),
        ("adamw", {"trl": {"optim_args": "rank=3"}}, "adamw reads no 'rank', nor any"),
        ("adamw_split", {"weights_dtype": "float32"}, "these are float32"),
        ("adamw_split", {"update": "lora"}, "trains a module in float32"),
    ],
)
def test_what_an_optimizer_cannot_do_is_said(name, changes, said):
    """By name, with what is allowed, before a model loads."""
    faults = optimizer_faults(stage(name, **changes), "cpu")
    assert said in "\n".join(fault.headline for fault in faults)
    assert all(fault.allowed or fault.hint for fault in faults)


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


# --------------------------------------------------------------------------- what is said


def test_what_is_said_of_learning_rates_and_of_small_updates():
    """Of the optimizer whose rate is not AdamW's; a run warns of bfloat16 weights under those that
    round updates away.
    """
    told = optimizer_note(stage("sgd", learning_rate=2e-4), "cpu") or ""
    assert "learning rate 0.0002 under sgd: no rate" in told
    assert optimizer_note(stage("muon"), "cpu") is None
    small = {"learning_rate": 1e-5, "precision": "pure"}
    for name in ("adamw_split", "adamw_stochastic", "sgd"):
        assert rounded_away(stage(name, **small)) == 0.0
    assert rounded_away(stage("muon", **small)) > 0.5


# --------------------------------------------------------------------------- paged memory


def paged_over(parameter: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """bitsandbytes' own paged AdamW, whose buffers carry the mark of paged memory: without a GPU
    there is no managed memory to make them in.
    """
    bitsandbytes = pytest.importorskip("bitsandbytes")
    found = bitsandbytes.optim.PagedAdamW32bit([parameter], lr=1e-3)

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
    for name in ("state1", "state2"):
        assert found[name].is_paged
        assert torch.equal(found[name], state[name])
    assert found["step"] == 3
    assert torch.equal(copy, weights)
