"""Kernels of a model: flash attention that works, fused layers or why not, compiled layers."""

import copy
import re
import sys
from types import ModuleType
from unittest.mock import Mock

import pytest

torch = pytest.importorskip("torch")

from peft import LoraConfig, get_peft_model
from transformers import Gemma4TextConfig, LlamaConfig, LlamaForCausalLM

from advisor.ground.errors import MachineNotReady
from advisor.methods.kernels import why_no_torch_compile
from tests.trainers.pretend_gpu import GPU, pretend_gpu
from tests.trainers.runs import break_at, losses, trained
from trainers.keep.checkpoint_store import dependencies
from trainers.rows.packing import PackedBatches
from trainers.start import kernels
from trainers.start.kernels import (
    choose,
    compile_layers,
    fuse_layers,
    fused_in,
    largest_gap,
    usable_here,
    with_attention,
)

CPU = torch.device("cpu")


def varlen(q_SHD, k_SHD, v_SHD, *, cu_seqlens_q, max_seqlen_q, causal, **_):
    """What a flash attention computes, in plain torch: each row for itself."""
    sizes = cu_seqlens_q.diff().tolist()
    assert max(sizes) == max_seqlen_q
    assert causal
    rows = []
    for parts in zip(*(one.split(sizes) for one in (q_SHD, k_SHD, v_SHD)), strict=True):
        q, k, v = (part.transpose(0, 1) for part in parts)
        found = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=True
        )
        rows.append(found.transpose(0, 1))
    return torch.cat(rows)


def one_long_row(q, k, v, *, max_seqlen_q, **more):
    """A kernel that lets rows see each other."""
    more["cu_seqlens_q"] = torch.tensor([0, len(q)])
    return varlen(q, k, v, max_seqlen_q=len(q), **more)


def without_backward(*parts, **more):
    return varlen(*parts, **more).detach()


def with_broken_backward(*parts, **more):
    """A kernel whose outputs are right and whose gradients are no numbers."""
    found = varlen(*parts, **more)
    found.register_hook(lambda gradient: gradient * float("nan"))
    return found


@pytest.fixture
def packed(make):
    """A stage that packs rows and leaves the attention to the machine."""
    small = {"attention": "auto", "packing": True, "weights_dtype": "bfloat16"}
    return lambda **keys: make(**{**small, **keys})


@pytest.fixture
def has(monkeypatch):
    """`has(name=function)`: the flash attentions that load here."""

    def said(**functions):
        def load(name):
            found = functions.get(name.rpartition("/")[2].replace("-", "_"))
            if found is None:
                raise ImportError(f"no {name}\nmore")
            return found

        monkeypatch.setattr(kernels, "load_flash", load)
        monkeypatch.setattr(kernels, "why_not", lambda one, device: None)

    return said


def choice(job, capability=(8, 0)):
    with pretend_gpu(capability=capability):
        return choose(job, GPU)


NEEDED = r"flash_attention_2: cannot be used \(no flash_attention_2\).*pip install 'kernels>=0.18"
WRONG = "flash_attention_2: gives other numbers|flash_attention_2: cannot be used"
PLAIN = {"update": "full", "weights_dtype": "float32", "precision": "mixed"}


@pytest.mark.parametrize(
    ("there", "keys", "capability", "chosen", "said"),
    [
        # Hopper's own kernels where the GPU is one.
        ({"flash_attention_2", "flash_attention_3"}, {}, (8, 0), "flash_attention_2", ""),
        ({"flash_attention_2", "flash_attention_3"}, {}, (9, 0), "flash_attention_3", ""),
        ({"flash_attn2"}, {}, (9, 0), "kernels-community/flash-attn2", ""),
        ({"flash_attn2"}, PLAIN, (8, 0), "kernels-community/flash-attn2", ""),
        # Nothing is installed: the line names the package.
        ({}, {}, (8, 0), "sdpa", NEEDED),
        # Rows that see each other, no gradient, or one that is no number.
        ({"flash_attention_2": one_long_row}, {}, (8, 0), "sdpa", WRONG),
        ({"flash_attention_2": without_backward}, {}, (8, 0), "sdpa", WRONG),
        ({"flash_attention_2": with_broken_backward}, {}, (8, 0), "sdpa", WRONG),
        # Rows that are not packed, float32, an old GPU: there is little to gain, or nothing that
        # was built for them.
        ({"flash_attention_2"}, {"packing": False}, (8, 0), "sdpa", "^$"),
        ({"flash_attention_2"}, {"weights_dtype": "float32", "precision": "pure"}, (8, 0), "sdpa",
         "flash_attention_2: computes in 16 bits"),
        ({"flash_attention_2"}, {"update": "prefix", "packing": False}, (8, 0), "sdpa", "^$"),
        ({"flash_attention_2"}, {}, (7, 5), "sdpa", r"\(none has kernels for this GPU\)$"),
    ],
)  # fmt: skip
def test_auto_takes_the_fastest_flash_attention_that_works(
    there, keys, capability, chosen, said, packed, has
):
    """A kernel that fails is passed over and the run says why; a processor always gets sdpa."""
    has(**(there if isinstance(there, dict) else dict.fromkeys(there, varlen)))
    found = choice(packed(**keys), capability)
    assert found[0] == chosen
    assert re.search(said or f"^attention: {chosen}, for rows of any lengths end to end$", found[1])
    assert "\n" not in found[1]
    assert choose(packed(**keys), CPU) == ("sdpa", "")


def test_the_check_knows_grouped_queries():
    """Several queries share a key; rounding stays well inside the tolerance."""
    support = kernels.Support(True, True, 64, heads=8, kv_heads=2)
    assert 0 < largest_gap(varlen, support, CPU) < kernels.TOLERANCE / 2


def test_heads_of_two_widths_keep_to_sdpa(packed, has, tmp_path):
    """Gemma 4 has other heads in every sixth layer, which its config says of each layer alone."""
    config = Gemma4TextConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, global_head_dim=16, layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    config.save_pretrained(tmp_path / "gemma4")
    job = packed(job_model=tmp_path / "gemma4")
    support = kernels.model_support(job)
    assert (support.flash, support.widest_head, support.kv_heads) == (False, 16, 2)
    has(flash_attention_2=varlen)
    assert choice(job)[0] == "sdpa"


def test_checkpoints_depend_on_the_word_in_the_plan(packed, has, capsys):
    """A package installed between a stop and a resume throws no checkpoint away."""
    has(flash_attention_2=varlen)
    with pretend_gpu():
        chosen = with_attention(packed(), GPU)
    assert (chosen.stage.attention, capsys.readouterr().err.count("\n")) == ("flash_attention_2", 1)
    assert dependencies(chosen, {}, steps=1).settings["attention"] == "auto"


def test_a_named_kernel_with_wrong_numbers_is_refused_before_the_model_loads(packed, has):
    """The plan insists on it, so nothing else takes its place."""
    job = packed(attention="flash_attention_2")
    has(flash_attention_2=varlen)
    with pretend_gpu():
        assert with_attention(job, GPU).stage.attention == "flash_attention_2"
        has(flash_attention_2=one_long_row)
        with pytest.raises(MachineNotReady, match="flash_attention_2, which gives other numbers"):
            with_attention(job, GPU)


def test_flex_attention_keeps_packed_rows_apart():
    """A packed row gets the logits of the row alone: in plain code here, compiled on a GPU."""
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1)
    torch.manual_seed(0)
    model = LlamaForCausalLM._from_config(config, attn_implementation="flex_attention").eval()
    rows = [torch.randint(0, 64, (length,)).tolist() for length in (7, 1, 17)]
    whole = {
        "input_ids": [*rows[0], *rows[1], *rows[2]],
        "labels": [-100] * 25,
        "seq_lengths": [7, 1, 17],
    }
    batch = PackedBatches(0)([whole])
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        packed = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
        model.set_attn_implementation("sdpa")
        alone = model(torch.tensor([rows[2]]), use_cache=False)
    torch.testing.assert_close(packed.logits[:, 8:], alone.logits, rtol=1e-4, atol=1e-5)


def test_a_result_trained_with_a_kernel_loads_where_there_is_none():
    """Chatting with it on a laptop takes sdpa."""
    assert usable_here("flash_attention_2", "cpu") == "sdpa"
    assert usable_here("eager", "cpu") == "eager"


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
    apply = Mock()
    liger(apply)
    fuse_layers(model, make(kernels="liger"), CPU)
    apply.assert_called_once()
    parts = apply.call_args.kwargs
    assert parts["model"] is model
    assert parts["rms_norm"]
    assert not parts["fused_linear_cross_entropy"]
    assert not parts["cross_entropy"]
    assert fused_in(model) == "liger"
    assert "kernels: liger, in the layers of llama" in capsys.readouterr().err


def test_kernels_that_fail_end_the_run(model, make, liger):
    """Some layers may have them by then: nobody knows what would be trained."""
    liger(Mock(side_effect=AttributeError("no q_norm\nmore")))
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
    """torch.compile's front end gives plain losses and gradients; the slow test generates code."""
    model = get_peft_model(
        model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    )
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


def test_copies_and_evaluation_of_compiled_layers_are_as_they_are(model):
    """A frozen reference stays, and nothing is compiled for answers that grow by a token."""
    compile_layers(model.eval(), backend="eager")
    torch._dynamo.utils.counters.clear()
    with torch.no_grad():
        model(input_ids=torch.arange(6)[None])
    assert not torch._dynamo.utils.counters["stats"]
    other = copy.deepcopy(model.train())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert other(input_ids=torch.arange(6)[None]).logits.abs().max() > 0
    assert "compile: nothing" in compile_layers(other)


@pytest.mark.long
@pytest.mark.skipif(bool(why_no_torch_compile("cpu")), reason=why_no_torch_compile("cpu"))
def test_a_compiled_stage_trains_and_resumes_as_a_plain_one(make, tmp_path, monkeypatch):
    """Torch's own generated code gives the plain losses, also after a crash."""
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
