"""Every optimizer of the plan: built, saved and resumed to the bit, and refused where it does not
go.
"""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from advisor.ground.errors import InputError, MachineNotReady
from advisor.methods.optimizers import OPTIMIZERS, optimizer
from advisor.methods.stage import Stage, stage_keys
from advisor.plan.checks import optimizer_faults
from trainers import sft
from trainers.job.machine import check_versions
from trainers.keep.checkpoints import load_training, save_training, trained_parameters
from trainers.step.make_optimizer import hidden_matrices, model_optimizer, target_matrices
from trainers.step.muon import MuonWithAdamW
from trainers.step.optimizer_states import as_evaluated
from trainers.step.optimizers import rate_note, rounded_away

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


def needs(name: str) -> None:
    library = optimizer(name).library
    if library is not None and importlib.util.find_spec(library.module.split(".")[0]) is None:
        pytest.skip(f"{library.name} is not installed")


def steps_of(made: Any, model: Any, numbers: range) -> None:
    """Steps on gradients that depend on their number alone."""
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        for one in model.parameters():
            one.grad = torch.randn(one.shape, generator=generator).to(one.dtype)
        for group in made.param_groups:  # as a scheduler does
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(1e-3 / (number + 1))
            else:
                group["lr"] = 1e-3 / (number + 1)
        torch.manual_seed(number)  # a checkpoint holds the random states, too
        with torch.compiler.set_stance("force_eager"):  # torchao compiles its step
            made.step()


def built(name: str, model: Any, dtype: str) -> Any:
    arguments = {"optim_args": "rank=8,update_proj_gap=3"} if optimizer(name).is_low_rank else {}
    made = model_optimizer(
        stage(name, weights_dtype=dtype, trl=arguments), model, steps=10,
        decayed=["q_proj.weight", "down_proj.weight", "experts"],
    )  # fmt: skip
    if hasattr(made, "train"):
        made.train()
    return made


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ON_CPU)
def test_four_steps_are_two_and_two_more_after_a_checkpoint(name, dtype, tmp_path):
    """Weights and states come back as they were, bit for bit, from safetensors and JSON."""
    needs(name)
    torch.manual_seed(0)
    whole = Tiny().to(getattr(torch, dtype))
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
    """Against torch.optim.Muon and torch.optim.AdamW, each alone; a stack of experts is moved
    expert by expert.
    """
    torch.manual_seed(0)
    ours = Tiny()
    theirs = copy.deepcopy(ours)
    made = built("muon", ours, "float32")
    steps_of(made, ours, range(3))

    experts = [torch.nn.Parameter(one.detach().clone()) for one in theirs.experts]
    muon = torch.optim.Muon(
        [theirs.q_proj.weight, theirs.down_proj.weight, *experts],
        lr=1e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    rest = [theirs.embed.weight, theirs.lm_head.weight, theirs.q_proj.bias, theirs.norm.weight]
    adamw = torch.optim.AdamW(rest, lr=1e-3, weight_decay=0.0, foreach=False)
    for number in range(3):
        generator = torch.Generator().manual_seed(number)
        for one in theirs.parameters():
            one.grad = torch.randn(one.shape, generator=generator)
        for one, gradient in zip(experts, theirs.experts.grad, strict=True):
            one.grad = gradient
        for group in (*muon.param_groups, *adamw.param_groups):
            group["lr"] = 1e-3 / (number + 1)
        muon.step()
        adamw.step()
    for name in ("q_proj.weight", "down_proj.weight", "embed.weight", "lm_head.weight",
                 "q_proj.bias", "norm.weight"):  # fmt: skip
        assert torch.equal(ours.get_parameter(name), theirs.get_parameter(name)), name
    assert torch.equal(ours.experts, torch.stack(list(experts)))


def test_a_step_of_muon_has_the_size_of_adamws():
    """0.2 times the root of the longer side over an orthogonal matrix: entries of 0.2 to 0.4
    learning rates, whatever the shape.
    """
    for rows, columns in ((128, 128), (256, 64), (64, 256)):
        weight = torch.nn.Parameter(torch.zeros(rows, columns))
        made = MuonWithAdamW([{"params": [weight], "muon": True}], lr=1e-3)
        weight.grad = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
        made.step()
        assert 0.15e-3 < float(weight.detach().square().mean().sqrt()) < 0.25e-3
    with pytest.raises(ValueError, match="not tensors of 1 dimensions"):
        MuonWithAdamW([{"params": [torch.nn.Parameter(torch.zeros(3))], "muon": True}])


def test_embeddings_and_output_are_no_hidden_matrices():
    """Muon leaves them to AdamW, and `all-linear` of GaLore leaves out the output."""
    model = Tiny()
    found = {id(one) for one in hidden_matrices([model])}
    assert found == {id(model.q_proj.weight), id(model.down_proj.weight), id(model.experts)}
    assert {id(one) for one in target_matrices([model], "all-linear")} == found - {
        id(model.experts)
    }
    assert [id(one) for one in target_matrices([model], ["down_proj"])] == [
        id(model.down_proj.weight)
    ]


def test_targets_that_name_nothing_are_refused():
    """GaLore over no matrix would be AdamW without a word."""
    needs("galore_adamw")
    chosen = stage("galore_adamw", trl={"optim_target_modules": ["qproj"]})
    with pytest.raises(InputError, match="names no linear layer of the model"):
        model_optimizer(chosen, Tiny(), steps=10)


def test_averaged_weights_are_measured_and_training_goes_on():
    """Under schedule_free_adamw the held-out loss is that of the averaged weights."""
    needs("schedule_free_adamw")
    torch.manual_seed(0)
    model = Tiny()
    made = built("schedule_free_adamw", model, "float32")
    steps_of(made, model, range(3))
    trained = model.q_proj.weight.detach().clone()
    with as_evaluated(made):
        assert not torch.allclose(model.q_proj.weight, trained, atol=1e-7)
    assert torch.allclose(model.q_proj.weight, trained, atol=1e-7)


# --------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("paged_lion_8bit", {}, r"pages memory between GPU and host on cuda, this stage on cpu"),
        ("galore_adamw_8bit", {}, "runs on cuda, this stage on cpu"),
        ("galore_adamw", {"update": "lora"}, "update lora trains a small module"),
        ("muon", {"update": "ia3"}, "update ia3 trains vectors alone"),
        ("muon", {"trl": {"optim_args": "rank=3"}}, "muon reads no 'rank': it reads momentum"),
        ("lion", {"trl": {"adam_epsilon": 1e-6}}, "'adam_epsilon' has no effect"),
        (
            "sgd",
            {"trl": {"adam_beta1": 0.8}},
            "'adam_beta1' has no effect: optimizer sgd is no Adam",
        ),
        (
            "galore_adamw",
            {"trl": {"optim_args": "proj_type=full"}},
            "proj_type is 'full', expected std or reverse_std or left or right",
        ),
        ("adamw", {"trl": {"optim_args": "rank=3"}}, "adamw reads no 'rank', nor any"),
        (
            "lion",
            {"trl": {"optim_target_modules": "all-linear"}},
            "'optim_target_modules' would have no effect",
        ),
        ("schedule_free_adamw", {"scheduler": "linear"}, "goes with no schedule"),
        (
            "schedule_free_adamw",
            {"scheduler": "constant", "objective": "grpo", "update": "lora"},
            "objective grpo learns from answers",
        ),
    ],
)
def test_what_an_optimizer_cannot_do_is_said(name, changes, said):
    """By name, with what is allowed, before a model loads."""
    faults = optimizer_faults(stage(name, **changes), "cpu")
    assert said in "\n".join(fault.headline for fault in faults)
    assert all(fault.allowed or fault.hint for fault in faults)


def test_a_step_that_is_compiled_needs_a_compiler(monkeypatch):
    """torchao's optimizers compile their steps: without a compiler that is said at the start."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    (fault,) = optimizer_faults(stage("adamw_torch_4bit"), "cpu")
    assert "compiles its step, and CXX names no-such-compiler" in fault.headline


def test_a_library_that_is_missing_is_named_with_the_command(make, monkeypatch):
    """Exit code 4 with what to install and its licence, before the model loads."""
    import importlib.metadata as metadata

    real = metadata.version

    def version(name: str) -> str:
        if name in ("apollo-torch", "torchao"):
            raise metadata.PackageNotFoundError(name)
        return "0.1" if name == "galore-torch" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(MachineNotReady, match="apollo-torch is not installed") as caught:
        check_versions(quantized=False, optimizers=[optimizer("apollo_adamw")])
    assert 'pip install "apollo-torch>=1.0.3,<1.1"' in str(caught.value)
    with pytest.raises(MachineNotReady, match=r"galore-torch 0\.1 is installed, which"):
        check_versions(quantized=False, optimizers=[optimizer("galore_adamw")])
    with pytest.raises(MachineNotReady, match="torchao is not installed"):
        sft.train(make(update="full", optimizer="adamw_torch_8bit"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lomo", "lomo is not offered: steps inside the backward pass"),
        ("adamw_fuse", "did you mean 'adamw_fused'?"),
    ],
)
def test_a_name_that_no_plan_can_give_is_refused(name, said):
    """One of transformers' with the reason, a misspelt one with the nearest."""
    from advisor.ground.shape import NamedValue

    shape = stage_keys()["optimizer"].shape
    (fault,) = shape.faults(name, NamedValue("optimizer", name), ())
    assert said in fault.hint
    assert not list(shape.faults("lion_32bit", NamedValue("optimizer", "lion_32bit"), ()))


# --------------------------------------------------------------------------- what is said


def test_another_learning_rate_is_pointed_out():
    """Of optimizers whose rate is not AdamW's, with the source; of the others nothing."""
    note = rate_note(stage("lion_8bit", learning_rate=2e-4))
    assert note is not None
    assert "learning rate 0.0002 under lion_8bit: 3 to 10 times smaller" in note
    assert "2302.06675" in note
    assert rate_note(stage("muon")) is None


def test_which_optimizers_keep_small_updates(monkeypatch):
    """torchao rounds at random where one process trains; with several it cannot, and the run warns
    of bfloat16 weights as under AdamW.
    """
    small = {"learning_rate": 1e-5, "precision": "pure"}
    assert rounded_away(stage("adamw_torch_8bit", **small)) == 0.0
    assert rounded_away(stage("stable_adamw", **small)) == 0.0
    assert rounded_away(stage("muon", **small)) > 0.5
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert rounded_away(stage("adamw_torch_8bit", **small)) > 0.5
    assert rounded_away(replace(stage("stable_adamw", **small))) == 0.0


def test_optimizer_arguments_of_a_plan_are_checked_before_the_model_loads(make):
    """A misspelt one names those that exist."""
    with pytest.raises(InputError, match="muon reads no 'momentun': it reads momentum, ns_steps"):
        sft.train(make(update="full", optimizer="muon", trl={"optim_args": "momentun=0.9"}))
