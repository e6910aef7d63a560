"""The table of saved tensors held to transformers' own layers: one layer of a real model run forwards
and backwards on the CPU, with every storage counted (what autograd saves, and how high memory rises
in the backward pass).

The CPU differs from a GPU in three things, which are set right here: its autocast leaves norms,
softmax and powers in 16 bit (`Wide`), PEFT asks whether CUDA's autocast is on, and a mode that counts
turns an in-place `index_put_` into a copy.
"""

import weakref
from contextlib import contextmanager
from unittest.mock import patch

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.modeling_layers import GradientCheckpointingLayer

from advisor.estimate.blocks.layer import layer_memory
from advisor.estimate.blocks.settings import ALL, BlockSettings
from advisor.estimate.memory.activations import LOSS_SHIFTED_LABELS_BYTES
from advisor.estimate.model.dims import dims_of
from tests.estimate.specs import shape_of

pytestmark = [pytest.mark.train]

ROWS, LENGTH = 8, 64


class Alive(TorchDispatchMode):
    """Counts the bytes of storages that exist, and the most there were."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.index_put.default, torch.ops.aten._unsafe_index_put.default):
            func = torch.ops.aten.index_put_.default
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known:
                    self.known.add(storage._cdata)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def gone(self, key, size):
        self.known.discard(key)
        self.now -= size


class Wide(TorchFunctionMode):
    """CUDA's autocast runs these in float32 unless they are given a dtype."""

    NAMES = frozenset(
        (F.layer_norm, F.softmax, torch.softmax, torch.pow, F.softplus, torch.exp, torch.cumsum,
         torch.Tensor.pow, torch.Tensor.exp, torch.Tensor.cumsum, torch.Tensor.softmax)
    )  # fmt: skip

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in self.NAMES and torch.is_autocast_enabled("cpu") and not kwargs.get("dtype"):
            args = tuple(map(self.widened, args))
            kwargs = {name: self.widened(one) for name, one in kwargs.items()}
        return func(*args, **kwargs)

    @staticmethod
    def widened(one):
        return one.float() if (isinstance(one, torch.Tensor) and one.is_floating_point()) else one


class Gradient(torch.autograd.Function):
    """Makes the gradient that the layer is given, which nobody else holds."""

    @staticmethod
    def forward(ctx, x):
        ctx.shape, ctx.dtype = x.shape, x.dtype
        return x.new_zeros(())

    @staticmethod
    def backward(ctx, gradient):
        return torch.ones(ctx.shape, dtype=ctx.dtype)


@contextmanager
def autocast(enabled):
    """16-bit autocast as on CUDA."""
    asked = torch.is_autocast_enabled
    as_on_cuda = patch.object(torch, "is_autocast_enabled", lambda device="cpu": asked("cpu"))
    with as_on_cuda, Wide(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        yield


def layers_of(model):
    """The layers that gradient checkpointing runs again."""
    return [one for one in model.modules() if isinstance(one, GradientCheckpointingLayer)]


def trace(model, mixed, length, padded):
    """What each layer of a model saves, saves beside its input, and the peaks of its backward pass,
    in bytes per token: the difference between two batches, so that what does not grow with the batch
    (gradients of weights, positions) drops out.
    """
    rows = ROWS * LENGTH // length
    few, many = (
        run_layers(model, torch.randint(5, VOCAB, (count, length)), mixed, padded)
        for count in (rows, 2 * rows)
    )
    return [
        [(after - before) / (rows * length) for before, after in zip(one, two, strict=True)]
        for one, two in zip(zip(*few, strict=True), zip(*many, strict=True), strict=True)
    ]


def run_layers(model, ids, mixed, padded):
    """Each layer's (bytes saved, the same without its input, peak of the backward pass)."""
    mask = torch.ones_like(ids)
    if padded:
        mask[:, -3:] = 0
    calls = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda module, args, kwargs: calls.__setitem__(module, (args, kwargs)), with_kwargs=True
        )
        for layer in layers_of(model)
    ]
    with torch.no_grad(), autocast(mixed):
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    for hook in hooks:
        hook.remove()
    return [_layer(layer, *calls[layer], mixed) for layer in layers_of(model)]


def _layer(layer, args, kwargs, mixed):
    """(bytes saved, the same without the layer's input, peak of the backward pass)."""
    x = args[0] if args else kwargs["hidden_states"]
    # A view of a leaf: autocast would keep one cast of a leaf for all who read it.
    leaf = x.detach().clone().requires_grad_()
    x = leaf.view(leaf.shape)
    args, kwargs = ((x, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": x})
    others = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
    owned = [*layer.parameters(), *layer.buffers(), *(one for one in others if one is not x)]
    outside, kept = {one.untyped_storage()._cdata for one in owned}, {}
    alive = []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in outside:
            kept[storage._cdata] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with autocast(mixed), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(*args, **kwargs)
    alive.clear()
    hooks = [
        parameter.register_post_accumulate_grad_hook(lambda one: setattr(one, "grad", None))
        for parameter in layer.parameters()
        if parameter.requires_grad
    ]
    with Alive() as counted:
        with autocast(mixed):
            out = layer(*args, **kwargs)
        loss = Gradient.apply(out[0] if isinstance(out, tuple) else out)
        del out
        counted.peak = counted.now
        loss.backward()
    for hook in hooks:
        hook.remove()
    total = sum(kept.values())
    return total, total - kept.get(leaf.untyped_storage()._cdata, 0), counted.peak


VOCAB, RANK = 320, 4
# Widths that no other is a multiple of, so that no term can stand for another.
SIZES = {
    "hidden_size": 80, "intermediate_size": 208, "num_attention_heads": 5, "num_key_value_heads": 1,
    "head_dim": 24, "vocab_size": VOCAB, "num_hidden_layers": 2, "max_position_embeddings": 256,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LATENT = {
    "kv_lora_rank": 32, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
    "v_head_dim": 24, "num_key_value_heads": 5, "head_dim": None,
}  # fmt: skip
SQUARE = {"head_dim": None, "num_key_value_heads": None}
FULL = {"layer_types": ["full_attention"] * 2}
DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 12,
    "linear_value_head_dim": 20, "layer_types": ["linear_attention", "full_attention"],
    "partial_rotary_factor": 0.5,
}  # fmt: skip
MAMBA = {
    "mamba_n_heads": 4, "mamba_d_head": 36, "mamba_d_state": 20, "mamba_n_groups": 1, "mamba_chunk_size": 256, "mamba_d_ssm": 144,
}  # fmt: skip
FAMILIES = {
    "llama": {}, "qwen3": {}, "gemma2": FULL, "gemma3_text": FULL, "phi3": {"head_dim": 16},
    "olmo2": {"hidden_size": 120, "head_dim": None}, "glm4": {},
    "gpt2": {"n_inner": 208, "intermediate_size": None, "resid_pdrop": 0.0, "attn_pdrop": 0.0, **SQUARE},
    "gpt_neox": SQUARE,
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, **FULL},
    "deepseek_v3": {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
    "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, **LATENT},
    "qwen3_next": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 56, **DELTA},
    "qwen3_5_text": DELTA, "falcon_h1": MAMBA,
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False, "head_dim": 16},
}  # fmt: skip
LONG = {"falcon_h1": 256}  # a whole chunk, so that none is padded
MIXERS = frozenset(
    ("q_proj", "k_proj", "v_proj", "o_proj", "in_proj_qkvz", "in_proj_ba", "out_proj")
)
# PEFT adapts the experts' tensors where its targets name their former linear layers.
MIXERS_ALONE = ("deepseek_v3", "qwen3_next")
EAGER = ("gemma2", "gpt_oss")  # transformers has no other for them
CASES = {
    "full-bf16": BlockSettings(trains=True),
    "full-float32-autocast": BlockSettings(
        trains=True, weight_bytes=4, stream_bytes=4, norm_bytes=4, autocast=True
    ),
    "lora-bf16": BlockSettings(trains=False, adapted=frozenset((ALL,)), rank=RANK),
    "lora-autocast": BlockSettings(trains=False, adapted=frozenset((ALL,)), rank=RANK, autocast=True),
    "lora-eager": BlockSettings(
        trains=False, adapted=frozenset((ALL,)), rank=RANK, autocast=True, scores=True
    ),
}  # fmt: skip
ON_THE_CPU = {"gpu": False, "model_dropout": False, "seq_len": LENGTH}


def config_of(family):
    sizes = {**SIZES, **FAMILIES[family]}
    return transformers.AutoConfig.for_model(
        family, **{name: value for name, value in sizes.items() if value is not None}
    )


def model_of(family, settings):
    attention = "eager" if settings.scores or family in EAGER else "sdpa"
    model = transformers.AutoModelForCausalLM.from_config(
        config_of(family), attn_implementation=attention
    )
    return model.to(torch.float32 if settings.weight_bytes == 4 else torch.bfloat16).train()


def with_lora(model, family):
    """Adapters on every linear layer outside of routed experts, routers and the output."""
    refused = ("router", "mlp.gate", "shared_expert_gate", "mamba.out_proj")
    if family in MIXERS_ALONE:
        refused = (*refused, "gate_proj", "up_proj", "down_proj")
    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D", "Linear4bit")
        and module is not model.get_output_embeddings()
        and not name.endswith(refused)
    }
    lora = peft.LoraConfig(r=RANK, target_modules=sorted(names), lora_dropout=0.0)
    return peft.get_peft_model(model, lora)


def dims_of_family(family):
    return dims_of(shape_of(config_of(family).to_dict()))


def compare(family, settings, model):
    """Derived / traced, over all layers: what they keep, and the worst backward pass."""
    length, dims = LONG.get(family, LENGTH), dims_of_family(family)
    kept, inside, backward = trace(model, settings.autocast, length, settings.masked)
    settings = settings._replace(seq_len=length)
    if settings.adapted and family in MIXERS_ALONE:
        settings = settings._replace(adapted=MIXERS)
    found = [
        (kind.count, layer_memory(kind, dims.hidden, dims.family, settings)) for kind in dims.kinds
    ]
    return {
        "kept": sum(n * one.kept for n, one in found) / sum(kept),
        "kept inside": sum(n * one.kept_inside for n, one in found) / sum(inside),
        "backward": max(one.backward for _, one in found) / max(backward),
    }


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_keeps_what_autograd_saves(family, case):
    """What a layer saves, and its backward pass's peak, are those traced, within a twentieth."""
    settings = CASES[case]._replace(**ON_THE_CPU)
    model = model_of(family, settings)
    model = model if settings.trains else with_lora(model, family)
    found = compare(family, settings, model)
    assert found == pytest.approx(dict.fromkeys(found, 1.0), abs=0.05)


def test_a_padded_batch_keeps_a_mask_and_repeated_keys_in_each_layer(monkeypatch):
    """SDPA with a mask keeps it in the scores' dtype, and keys and values per query head."""
    monkeypatch.setitem(SIZES, "num_attention_heads", 4)
    monkeypatch.setitem(SIZES, "num_key_value_heads", 2)  # a single one is repeated as a view
    settings = CASES["lora-autocast"]._replace(masked=True, **ON_THE_CPU)
    found = compare("llama", settings, with_lora(model_of("llama", settings), "llama"))
    assert found == pytest.approx(dict.fromkeys(found, 1.0), abs=0.05)
    dims = dims_of_family("llama")
    plain, masked = (
        layer_memory(dims.kinds[0], dims.hidden, dims.family, settings._replace(masked=one)).kept
        for one in (False, True)
    )
    assert masked - plain == 2 * LENGTH + 2 * 2 * (4 - 2) * 24  # heads of keys and values, each 24


def linear4bit(model, *, prepared):
    """The model with bitsandbytes' layers in place of linear ones, whose products are plain ones of
    16 bit that keep no input, as its own since 0.43; prepared: all else in float32.
    """
    bnb = pytest.importorskip("bitsandbytes")
    for name, module in list(model.named_modules()):
        if type(module) is torch.nn.Linear and module is not model.get_output_embeddings():
            layer = bnb.nn.Linear4bit(module.in_features, module.out_features, bias=False)
            layer.weight.data = module.weight.data
            layer.forward = lambda x, weight=module.weight.data: Product.apply(
                x.to(torch.bfloat16), weight
            ).to(x.dtype)
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, layer)
    if prepared:
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "embed" in name or "lm_head" in name:
                parameter.data = parameter.data.float()
    model.is_loaded_in_4bit = True
    return model


class Product(torch.autograd.Function):
    """MatMul4Bit: only the matrix is kept."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.weight = weight
        return x @ weight.t()

    @staticmethod
    def backward(ctx, gradient):
        return gradient @ ctx.weight, None


@pytest.mark.parametrize("autocast", [False, True], ids=["pure", "autocast"])
@pytest.mark.parametrize("prepared", [False, True], ids=["16-bit-norms", "prepared"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_a_quantised_layer_keeps_what_autograd_saves(family, prepared, autocast):
    """bitsandbytes casts to 16 bit and back; a float32 residual keeps tensors between float32."""
    wide = 4 if prepared else 2
    settings = BlockSettings(
        trains=False, adapted=frozenset((ALL,)), rank=RANK, quantised=True, autocast=autocast,
        stream_bytes=wide, norm_bytes=wide, **ON_THE_CPU,
    )  # fmt: skip
    model = with_lora(linear4bit(model_of(family, settings), prepared=prepared), family)
    found = compare(family, settings, model)
    assert found == pytest.approx(dict.fromkeys(found, 1.0), abs=0.05)


def test_a_loss_on_whole_logits_holds_twelve_bytes_of_each():
    """In the backward pass: log-softmax, the gradient given and the one made, each in float32."""
    from transformers.loss.loss_utils import ForCausalLMLoss

    tokens, vocab = 128, 1000
    hidden = torch.randn(1, tokens, 8, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(vocab, 8, dtype=torch.bfloat16)
    with Alive() as counted:
        logits = hidden @ weight.t()
        loss = ForCausalLMLoss(logits, torch.zeros(1, tokens, dtype=torch.long), vocab)
        del logits  # a trainer keeps the loss alone
        loss.backward()
    assert counted.peak / (tokens * vocab) == pytest.approx(LOSS_SHIFTED_LABELS_BYTES, rel=0.05)


def test_autocast_keeps_a_cast_of_each_frozen_float32_weight():
    """Beside what grows with the batch, a float32 base saves its linear weights in 16 bit."""
    model = with_lora(model_of("llama", CASES["full-float32-autocast"]), "llama")
    layer = layers_of(model)[1]
    rows = [
        run_layers(model, torch.randint(5, VOCAB, (n, LENGTH)), True, False)[1][0] for n in (4, 8)
    ]
    beyond = 2 * rows[0] - rows[1]
    frozen = sum(
        one.numel() for one in layer.parameters() if one.ndim == 2 and not one.requires_grad
    )
    adapters = sum(one.numel() for one in layer.parameters() if one.requires_grad)
    assert beyond == pytest.approx(2 * (frozen + adapters), rel=0.02)  # adapters are cast, too
