"""`attention: auto`: the flash attention that a machine has and that gives the right numbers, else
sdpa; and what the checkpoints of a stage depend on.
"""

import pytest

torch = pytest.importorskip("torch")

from transformers import Gemma4TextConfig, LlamaConfig, LlamaForCausalLM

from advisor.ground.errors import MachineNotReady
from tests.trainers.pretend_gpu import GPU, pretend_gpu
from trainers.keep.checkpoint_store import dependencies
from trainers.rows.packing import PackedBatches
from trainers.start import kernels as attention
from trainers.start.kernels import choose, largest_gap, usable_here, with_attention


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


def without_backward(q, k, v, **more):
    return varlen(q, k, v, **more).detach()


def with_broken_backward(*parts, **more):
    """A kernel whose outputs are right and whose gradients are no numbers."""
    found = varlen(*parts, **more)
    found.register_hook(lambda gradient: gradient * float("nan"))
    return found


@pytest.fixture
def packed(make):
    """A stage that packs rows and leaves the attention to the machine."""

    def build(**keys):
        return make(**{"attention": "auto", "packing": True, "weights_dtype": "bfloat16", **keys})

    return build


@pytest.fixture
def has(monkeypatch):
    """`has(name=function)`: the flash attentions that load here."""

    def said(**functions):
        def load(name):
            found = functions.get(name.rpartition("/")[2].replace("-", "_"))
            if found is None:
                raise ImportError(f"no {name}\nmore")
            return found

        monkeypatch.setattr(attention, "load_flash", load)
        monkeypatch.setattr(attention, "why_not", lambda one, device: None)

    return said


def choice(job, capability=(8, 0)):
    with pretend_gpu(capability=capability):
        return choose(job, GPU)


def test_packed_rows_take_the_fastest_flash_attention_that_works(packed, has):
    """Hopper's own kernels where the GPU is one; a kernel that fails is passed over, and told."""
    has(flash_attention_2=varlen, flash_attention_3=varlen)
    assert choice(packed())[0] == "flash_attention_2"
    assert choice(packed(), (9, 0))[0] == "flash_attention_3"
    has(flash_attn2=varlen)
    assert choice(packed(), (9, 0))[0] == "kernels-community/flash-attn2"
    full = packed(update="full", weights_dtype="float32", precision="mixed")
    assert choice(full)[0] == "kernels-community/flash-attn2"


@pytest.mark.parametrize("wrong", [one_long_row, without_backward, with_broken_backward])
def test_a_kernel_with_wrong_numbers_is_not_used(packed, has, wrong):
    """Rows that see each other, no gradient, or one that is no number: sdpa takes its place, and the run says why."""
    has(flash_attention_2=wrong)
    found = choice(packed())
    assert found[0] == "sdpa"
    assert "flash_attention_2: gives other numbers" in found[1] or "cannot be used" in found[1]


def test_without_a_flash_attention_sdpa_is_used_and_the_line_says_what_to_install(packed, has):
    """Nothing is installed: the run goes on, in one line that names the package."""
    has()
    found = choice(packed())
    assert found[0] == "sdpa"
    assert "flash_attention_2: cannot be used (no flash_attention_2)" in found[1]
    assert "pip install 'kernels>=0.18" in found[1]
    assert "\n" not in found[1]


@pytest.mark.parametrize(
    ("keys", "capability"),
    [
        ({"packing": False}, (8, 0)),
        ({"weights_dtype": "float32", "precision": "pure"}, (8, 0)),
        ({"update": "prefix", "packing": False}, (8, 0)),
        ({}, (7, 5)),
    ],
)
def test_what_no_flash_attention_computes_keeps_to_sdpa(packed, has, keys, capability):
    """Rows that are not packed, float32, an old GPU, and the processor: there is little to gain, or
    nothing that was built for them.
    """
    has(flash_attention_2=varlen)
    assert choice(packed(**keys), capability)[0] == "sdpa"
    assert choose(packed(**keys), torch.device("cpu")) == ("sdpa", "")


def test_the_check_knows_grouped_queries(packed):
    """Several queries share a key; rounding stays well inside the tolerance."""
    support = attention.Support(True, True, 64, heads=8, kv_heads=2)
    assert 0 < largest_gap(varlen, support, torch.device("cpu")) < attention.TOLERANCE / 2


def test_heads_of_two_widths_keep_to_sdpa(packed, has, tmp_path):
    """Gemma 4 has other heads in every sixth layer, which its config says of each layer alone."""
    config = Gemma4TextConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, global_head_dim=16, layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    config.save_pretrained(tmp_path / "gemma4")
    job = packed(job_model=tmp_path / "gemma4")
    support = attention.model_support(job)
    assert (support.flash, support.widest_head, support.kv_heads) == (False, 16, 2)
    has(flash_attention_2=varlen)
    assert choice(job)[0] == "sdpa"


def test_checkpoints_depend_on_the_word_in_the_plan(packed, has, capsys):
    """A package that is installed between a stop and a resume does not throw checkpoints away; the
    record holds what was used.
    """
    has(flash_attention_2=varlen)
    with pretend_gpu():
        chosen = with_attention(packed(), GPU)
    assert chosen.stage.attention == "flash_attention_2"
    assert capsys.readouterr().err.count("\n") == 1
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
    torch.compiler.set_stance("force_eager")
    try:
        with torch.no_grad():
            packed = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
            model.set_attn_implementation("sdpa")
            alone = model(torch.tensor([rows[2]]), use_cache=False)
    finally:
        torch.compiler.set_stance("default")
    torch.testing.assert_close(packed.logits[:, 8:], alone.logits, rtol=1e-4, atol=1e-5)


def test_a_result_trained_with_a_kernel_loads_where_there_is_none():
    """Chatting with it on a laptop takes sdpa."""
    assert usable_here("flash_attention_2", "cpu") == "sdpa"
    assert usable_here("eager", "cpu") == "eager"
