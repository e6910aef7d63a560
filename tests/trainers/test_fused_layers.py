"""Fused kernels of layers go into a model, or the run says why not; compiled layers train as plain
ones do.
"""

import copy
import sys
from types import ModuleType

import pytest

torch = pytest.importorskip("torch")

from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from advisor.ground.errors import MachineNotReady
from advisor.methods.kernels import why_no_torch_compile
from tests.trainers.runs import break_at, losses, trained
from trainers.start import kernels
from trainers.start.kernels import compile_layers, fuse_layers, fused_in

CPU = torch.device("cpu")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1,
        )
    )  # fmt: skip


@pytest.fixture
def liger(monkeypatch):
    """`liger(apply)`: a package that is said to run here, and puts kernels in by this function."""

    def said(apply):
        for name in ("", ".transformers", ".transformers.monkey_patch"):
            monkeypatch.setitem(sys.modules, f"liger_kernel{name}", ModuleType("stand-in"))
        sys.modules["liger_kernel.transformers"]._apply_liger_kernel_to_instance = apply
        patches = sys.modules["liger_kernel.transformers.monkey_patch"]
        patches.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": apply}
        monkeypatch.setattr(
            "transformers.integrations.liger.is_liger_kernel_available", lambda: True
        )
        monkeypatch.setattr(kernels, "why_not", lambda one, device: None)

    return said


def test_fused_layers_go_into_a_model_without_ligers_losses(model, make, liger, capsys):
    """And into one that is compared with it."""
    seen = []
    liger(lambda model, **parts: seen.append((model, parts)))
    fuse_layers(model, make(kernels="liger"), CPU)
    ((fused, parts),) = seen
    assert fused is model
    assert parts["rms_norm"]
    assert not parts["fused_linear_cross_entropy"]
    assert not parts["cross_entropy"]
    assert fused_in(model) == "liger"
    assert "kernels: liger, in the layers of llama" in capsys.readouterr().err


def test_kernels_that_fail_end_the_run(model, make, liger):
    """Some layers may have them by then: nobody knows what would be trained."""

    def fail(model, **parts):
        raise AttributeError("no q_norm\nmore")

    liger(fail)
    with pytest.raises(MachineNotReady, match="liger do not fit the model: no q_norm"):
        fuse_layers(model, make(kernels="liger"), CPU)


def test_other_models_and_machines_keep_their_layers(model, make, liger, capsys):
    """No kernels for the architecture, or auto on a processor."""
    liger(None)
    model.config.model_type = "unheard_of"
    fuse_layers(model, make(kernels="liger"), CPU)
    assert (
        "WARNING: kernels: none instead of liger: it has no kernels for unheard_of models"
        in capsys.readouterr().err
    )
    fuse_layers(model, make(kernels="auto"), CPU)
    assert (fused_in(model), capsys.readouterr().err) == ("none", "")


# --------------------------------------------------------------------------- compiled layers


def losses_and_gradients(model, widths):
    """Of one step on padded batches of these widths."""
    found = []
    for width in widths:
        ids = torch.randint(0, 64, (2, width), generator=torch.Generator().manual_seed(width))
        mask = torch.ones_like(ids)
        mask[1, width // 2 :] = 0
        model.zero_grad()
        loss = model(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False).loss
        loss.backward()
        found += [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)]
    return found


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_layers_train_as_plain_ones(model, checkpointing):
    """With LoRA, and with and without checkpointing: the same losses and gradients. The layers are
    traced and run by torch.compile's front end; its code generation is the slow test's.
    """
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(model, config)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    plain = losses_and_gradients(model, (6, 9))
    names = [name for name, _ in model.named_parameters()]
    assert "compile: 2 layers" in compile_layers(model, backend="eager")
    torch._dynamo.utils.counters.clear()
    for mine, theirs in zip(losses_and_gradients(model, (6, 9)), plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert [name for name, _ in model.named_parameters()] == names
    assert "compile: nothing" in compile_layers(model)  # a second stage on the same base


def test_a_copy_of_compiled_layers_uses_its_own_weights(model):
    """A frozen reference must not follow the trained model."""
    compile_layers(model, backend="eager")
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert other(input_ids=torch.arange(6)[None]).logits.abs().max() > 0
    assert "compile: nothing" in compile_layers(other)


def test_evaluation_runs_as_it_is(model):
    """Answers grow by a token at a time: nothing is compiled for them."""
    model.eval()
    compile_layers(model, backend="eager")
    torch._dynamo.utils.counters.clear()
    with torch.no_grad():
        model(input_ids=torch.arange(6)[None])
    assert not torch._dynamo.utils.counters["stats"]


@pytest.mark.long
@pytest.mark.skipif(bool(why_no_torch_compile("cpu")), reason=why_no_torch_compile("cpu"))
def test_a_compiled_stage_trains_and_resumes_as_a_plain_one(make, tmp_path, monkeypatch):
    """With torch's own code generation: the losses of the plain stage, also after a crash. Rows of
    one length, so that there is one kind of input to compile for.
    """
    keys = {
        "update": "full", "learning_rate": 1e-3, "max_steps": 4, "save_steps": 2, "seq_len": 48,
        "truncation": "truncate", "holdout": 0, "job_judge": False,
    }  # fmt: skip
    plain = make(**keys, job_run=tmp_path / "plain")
    trained(plain)
    stopped = make(**keys, compile=True, job_run=tmp_path / "compiled")
    break_at(3, stopped, monkeypatch)
    assert trained(stopped)["resolved"]["compile"] is True
    assert losses(stopped) == pytest.approx(losses(plain), rel=1e-4)
