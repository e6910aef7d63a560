"""Fused kernels of layers: used if they give the model's numbers, taken off again if not; and
compiled layers train as plain ones do.
"""

import copy
import sys
from types import MethodType, SimpleNamespace

import pytest
import torch

from advisor.methods.kernels import kernel, why_no_torch_compile
from tests.trainers.pretend_gpu import GPU, pretend_gpu
from tests.trainers.runs import break_at, losses, trained
from trainers.start import fused_layers
from trainers.start.compiling import compile_layers, repeated_layers
from trainers.start.fused_layers import fuse_layers, fused_in, largest_gap, layer_calls, numbers

CPU = torch.device("cpu")


@pytest.fixture
def model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1,
        )
    )  # fmt: skip


def norm(self, hidden):
    """A fused RMSNorm in plain torch, as Liger binds it to a layer."""
    scale = torch.rsqrt(hidden.float().pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
    return self.weight * (hidden * scale).to(hidden.dtype)


def norm_off_by_one(self, hidden):
    """Gemma's kind of norm, whose weights count from one: the offset of another architecture."""
    return norm(self, hidden) + (hidden * 0 + 1) * 0.3


class OneWay(torch.autograd.Function):
    """A kernel whose backward pass forgets a factor."""

    @staticmethod
    def forward(ctx, hidden, weight):
        ctx.save_for_backward(weight)
        scale = torch.rsqrt(hidden.float().pow(2).mean(-1, keepdim=True) + 1e-6)
        return weight * (hidden * scale).to(hidden.dtype)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0], gradient.sum((0, 1))


def norm_without_backward(self, hidden):
    return OneWay.apply(hidden, self.weight)


@pytest.fixture
def liger(monkeypatch):
    """`liger(norm)`: a package whose kernels are said to run here, and give this norm; a rotation
    and a class of the architecture are replaced as Liger does it.
    """

    def said(forward):
        def put_in(model, rms_norm=False, swiglu=False, fused_linear_cross_entropy=True):
            from transformers.models.llama import modeling_llama

            assert rms_norm
            assert not fused_linear_cross_entropy
            rotate = modeling_llama.apply_rotary_pos_emb
            modeling_llama.apply_rotary_pos_emb = lambda *args, **more: rotate(*args, **more)
            modeling_llama.LlamaRMSNorm = type("Other", (), {})
            for layer in model.model.layers:
                layer.input_layernorm.forward = MethodType(forward, layer.input_layernorm)

        package = SimpleNamespace(MODEL_TYPE_TO_APPLY_LIGER_FN={"llama": put_in})
        monkeypatch.setattr(fused_layers, "_liger", lambda: package)
        monkeypatch.setattr(fused_layers, "why_not", lambda one, device: None)
        monkeypatch.setattr(fused_layers, "_said", set())

    yield said
    fused_layers.restore_functions()


def test_fused_layers_that_give_the_same_numbers_stay(model, make, liger, capsys):
    """The layers are fused, classes and later models of the architecture are not."""
    from transformers.models.llama import modeling_llama

    liger(norm)
    before = vars(modeling_llama).copy()
    fuse_layers(model, make(kernels="liger"), CPU)
    assert fused_in(model) == "liger"
    assert "kernels: liger, which gives the numbers" in capsys.readouterr().err
    assert modeling_llama.LlamaRMSNorm is before["LlamaRMSNorm"]
    assert modeling_llama.apply_rotary_pos_emb is not before["apply_rotary_pos_emb"]


def test_a_second_model_leaves_the_kernels_of_the_first_alone(model, make, liger):
    """A teacher or reward model that loads after the policy, without kernels or with some that do
    not fit: the function that the policy's layers look up stays replaced.
    """
    from transformers.models.llama import modeling_llama

    plain = modeling_llama.apply_rotary_pos_emb
    liger(norm)
    fuse_layers(model, make(kernels="liger"), CPU)
    replaced = modeling_llama.apply_rotary_pos_emb
    assert replaced is not plain
    second = copy.deepcopy(model)
    fuse_layers(second, make(), CPU)
    assert modeling_llama.apply_rotary_pos_emb is replaced
    liger(norm_off_by_one)
    fuse_layers(second, make(kernels="liger"), CPU)
    assert modeling_llama.apply_rotary_pos_emb is not plain


@pytest.mark.parametrize(
    ("forward", "told"),
    [
        (norm_off_by_one, "changes the"),
        (norm_without_backward, "changes the gradient of model.layers.0.input_layernorm"),
        (lambda self, hidden: hidden[..., :3] + 1, "fails on a tiny batch"),
    ],
)
@pytest.mark.parametrize("word", ["liger", "auto"])
def test_a_kernel_with_other_numbers_is_taken_off_again(
    model, make, liger, capsys, forward, told, word
):
    """Nothing of it stays, and the run says what was off: a wrong kernel trains in silence."""
    calls = layer_calls(model)
    plain = numbers(model, calls)
    liger(forward)
    with pretend_gpu() if word == "auto" else pytest.MonkeyPatch.context():
        fuse_layers(model, make(kernels=word), GPU if word == "auto" else CPU)
    line = capsys.readouterr().err
    assert told in line
    assert ("WARNING" in line) == (word == "liger")
    assert fused_in(model) == "none"
    assert largest_gap(numbers(model, calls), plain).size == 0


def test_other_models_and_machines_keep_their_layers(model, make, liger, capsys):
    """No kernels for the architecture, or auto on a processor."""
    liger(norm)
    model.config.model_type = "unheard_of"
    fuse_layers(model, make(kernels="liger"), CPU)
    assert "has no kernels for unheard_of models" in capsys.readouterr().err
    fuse_layers(model, make(kernels="auto"), CPU)
    assert (fused_in(model), capsys.readouterr().err) == ("none", "")


def test_trying_leaves_no_trace_in_the_random_numbers(model):
    """A stage draws the same numbers with and without kernels."""
    torch.manual_seed(3)
    first = torch.rand(2)
    torch.manual_seed(3)
    calls = layer_calls(model)
    assert [call.name for call in calls] == ["model.layers.0", "model.layers.1"]
    assert len(numbers(model, calls)) == 8
    assert torch.equal(torch.rand(2), first)
    assert all(parameter.grad is None for parameter in model.parameters())


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
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(model, config)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    plain = losses_and_gradients(model, (6, 9))
    names = [name for name, _ in model.named_parameters()]
    assert compile_layers(model, backend="eager") == 2
    torch._dynamo.utils.counters.clear()
    for mine, theirs in zip(losses_and_gradients(model, (6, 9)), plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert [name for name, _ in model.named_parameters()] == names
    assert compile_layers(model) == 0  # a second stage on the same base


def test_a_copy_of_compiled_layers_uses_its_own_weights(model):
    """A frozen reference must not follow the trained model."""
    compile_layers(model, backend="eager")
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    ids = torch.arange(6)[None]
    assert other(input_ids=ids).logits.abs().max() > 0
    assert not repeated_layers(other)


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
    result = trained(stopped)
    assert result["resolved"]["compile"] is True
    assert losses(stopped) == pytest.approx(losses(plain), rel=1e-4)


def test_every_kernel_that_a_plan_can_name_has_its_facts():
    """And the modules it is loaded from are no part of the training extra."""
    assert kernel("liger").packages == ("liger-kernel",)
    assert kernel("hub").packages == ("kernels",)
    assert "liger_kernel" not in sys.modules
