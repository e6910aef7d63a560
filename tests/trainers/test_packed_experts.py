"""Routed experts in 4 bits: the same model as their written-out weights, in every family that is
promised, trained, saved, loaded and resumed like any 4-bit base."""

import pytest

torch = pytest.importorskip("torch")

import json
from functools import partial
from itertools import chain

from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Mxfp4Config

from advisor.estimate.memory import static
from advisor.estimate.spec import run_of_spec
from advisor.ground.errors import InputError
from advisor.situation.models import model_shape
from tests.distributed.held import Pages
from tests.trainers.alignment import keys_of
from tests.trainers.moe import FAMILIES, SHAPE, tiny_mixture
from tests.trainers.runs import losses, same, trained, weights, whole_and_broken
from trainers.job.machine import held_bytes
from trainers.start import packed_experts
from trainers.start.loading import keep_weights_unpacked, load_base
from trainers.start.packed_experts import BLOCK, PACKED, Nf4Config, is_packed, written
from trainers.updates.experts import packed_size

THREE = ("qwen3_moe", "mixtral", "gpt_oss")
WIDE = {"hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 64}
IDS = (torch.arange(60) * 7 % 61 + 2).view(3, 20)


def wide_mixture(family, **changed):
    known = {name: WIDE[name] for name in WIDE if name in FAMILIES[family] or name[0] != "m"}
    return tiny_mixture(family, **{**known, **changed})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Saved mixtures whose matrices are wide enough for a block."""
    made = {}
    for family in THREE:
        made[family] = tmp_path_factory.mktemp(family)
        wide_mixture(family).save_pretrained(made[family])
    return made


def packed_model(folder, *, nested=True, dtype=torch.float32, device="cpu"):
    """A mixture with its experts packed, as the trainers load it."""
    wanted = Nf4Config(bnb_4bit_use_double_quant=nested, bnb_4bit_compute_dtype=dtype)
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=wanted, dtype=dtype, device_map={"": device}
    )
    return keep_weights_unpacked(model)


def written_out(folder, model):
    """A 16- or 32-bit copy of a packed model, with the same weights."""
    copy = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype)
    modules = dict(model.named_modules())
    with torch.no_grad():
        for name, module in copy.named_modules():
            twin = modules[name]
            if isinstance(twin, Linear4bit):
                module.weight.copy_(dequantize_4bit(twin.weight.data, twin.weight.quant_state))
            for part in getattr(twin, "nf4_states", ()):
                getattr(module, part).copy_(written(twin, part))
    return copy


def lora(*, experts):
    tensors = ["experts.gate_up_proj", "experts.down_proj"] if experts else None
    return LoraConfig(
        target_modules=["q_proj", "v_proj"], target_parameters=tensors, r=4, task_type="CAUSAL_LM"
    )


def saved_bytes(model):
    """Bytes that autograd keeps of one forward pass: (all, those of tensors of the model)."""
    own = {one.untyped_storage().data_ptr() for one in chain(model.parameters(), model.buffers())}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(IDS, labels=IDS)
    return sum(kept.values()), sum(size for place, size in kept.items() if place in own)


@pytest.mark.parametrize("family", THREE)
@pytest.mark.parametrize("nested", [True, False])
def test_packed_experts_are_the_model_of_their_weights(family, nested, folders, tmp_path):
    """Outputs and gradients of LoRA on attention and on experts, against the weights that the packed
    ones stand for; the module is saved, and plain PEFT loads it on those weights, which the model
    can be written out as."""
    model = packed_model(folders[family], nested=nested)
    plain = written_out(folders[family], model)
    before = plain(IDS).logits
    torch.testing.assert_close(model(IDS).logits, before)
    tuned = get_peft_model(model, lora(experts=True))
    torch.manual_seed(1)
    for name, one in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(one, std=0.05)
    tuned.save_pretrained(tmp_path)
    other = PeftModel.from_pretrained(plain, tmp_path, is_trainable=True)
    losses = [one(IDS, labels=IDS).loss for one in (tuned, other)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    mine, theirs = (
        {name: one.grad for name, one in both.named_parameters() if one.grad is not None}
        for both in (tuned, other)
    )
    assert any("experts" in name for name in mine)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)
    with tuned.disable_adapter():
        torch.testing.assert_close(tuned(IDS).logits, before)
    torch.testing.assert_close(tuned.unload().dequantize()(IDS).logits, before)


@pytest.mark.parametrize("family", THREE)
def test_no_weight_is_held_in_16_bits(family, folders):
    """By hand: half a byte for each weight of an expert, a byte for 64 of them and four for 256 of
    those and for each matrix; autograd keeps no more of the experts than that."""
    model = packed_model(folders[family], dtype=torch.bfloat16)
    experts = [module for module in model.modules() if is_packed(module)]
    size = packed_size(model)
    matrices = sum(len(states) for one in experts for states in one.nf4_states.values())
    buffers = sum(one.nbytes for module in experts for one in module.buffers())
    blocks = size // BLOCK
    assert size // 2 + blocks < buffers <= size // 2 + blocks + 4 * (blocks // 256 + 2 * matrices)
    whole = held_bytes(AutoModelForCausalLM.from_pretrained(folders[family], dtype=torch.bfloat16))
    assert held_bytes(model) < whole - 1.4 * size
    tuned = get_peft_model(model, lora(experts=True))
    everything, own = saved_bytes(tuned)
    assert own <= 1.1 * held_bytes(tuned)
    # Beside the model's own tensors there are activations of 60 tokens, far from a 16-bit copy.
    activations, _ = saved_bytes(wide_trainable(folders[family]))
    assert everything - own <= activations


def wide_trainable(folder):
    return get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16), lora(experts=False)
    )


def write_mxfp4(folder, into):
    """The gpt-oss of a folder with random experts in MXFP4."""
    weights = load_file(folder / "model.safetensors")
    torch.manual_seed(0)
    for name in [name for name in weights if name.endswith(("gate_up_proj", "down_proj"))]:
        count, given, out = weights.pop(name).shape
        blocks = torch.randint(0, 256, (count, out, given // 32, 16), dtype=torch.uint8)
        scales = torch.randint(118, 124, (count, out, given // 32), dtype=torch.uint8)
        weights |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    save_file(weights, into / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (into / "config.json").write_text(json.dumps(config))


def test_mxfp4_files_become_nf4(folders, make, tmp_path):
    """gpt-oss as it is published: written out while it is read, and packed; nothing keeps what was
    written out."""
    write_mxfp4(folders["gpt_oss"], tmp_path)
    keys = {"quantization": "nf4", "weights_dtype": "bfloat16", "attention": "eager"}
    job = make(**keys, job_model=tmp_path)
    model = load_base(job, torch.device("cpu"))
    wanted = {"quantization_config": Mxfp4Config(dequantize=True), "dtype": torch.bfloat16}
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, **wanted)
    for name, module in plain.named_modules():
        twin = model.get_submodule(name)
        for part in getattr(twin, "nf4_states", ()):
            given, kept = getattr(module, part).float(), written(twin, part).float()
            # NF4 beside the values that MXFP4 holds: by its steps, a seventh of a block's largest.
            assert (given - kept).abs().max() <= given.abs().max() / 7 + 1e-6
            assert (given - kept).norm() <= 0.12 * given.norm()
    assert packed_size(model)
    assert {one.grad_fn for one in model.buffers()} == {None}


def test_widths_that_no_block_divides_are_bad_input(make, tiny_moe):
    with pytest.raises(InputError, match=r"layers\.0\.mlp\.experts\.gate_up_proj .* rows of 32"):
        load_base(make(quantization="nf4", job_model=tiny_moe), torch.device("cpu"))


@pytest.fixture(scope="module")
def wide_moe(folders, tiny_model, tmp_path_factory):
    """A mixture with the tiny model's tokenizer."""
    folder = tmp_path_factory.mktemp("wide-moe")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(folder)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 512}
    wide_mixture("qwen3_moe", **sizes, **ends).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("objective", ["sft", "cpt", "dpo", "grpo", "ppo", "rm"])
def test_every_objective_trains_on_packed_experts(objective, align, wide_moe, capsys):
    """Its module is the one that was trained when it is loaded again, and its loss falls."""
    keys = keys_of(objective, quantization="nf4", target_modules="with-experts", dropout=0.0)
    job = align(objective, **keys, job_model=wide_moe)
    result = trained(job)
    said = capsys.readouterr().err
    assert "in routed experts" not in said
    assert "and the routed experts (mlp.experts.down_proj, mlp.experts.gate_up_proj)" in said
    assert {one["name"]: one["ok"] for one in result["checks"]}["saved-model-is-the-trained-one"]
    config = AutoConfig.from_pretrained(wide_moe)
    vocabulary, rest = 2 * config.vocab_size * 64, 2 * 4 * 64 + 2 * (2 * 64 + 2 * 8) + 64
    if objective == "sft":
        assert result["resolved"]["unquantised_parameters"] == vocabulary + rest
        first, *_, last = losses(job)
        assert last < first
        base = AutoModelForCausalLM.from_pretrained(wide_moe)
        tuned = PeftModel.from_pretrained(base, job.output)
        corrected = [
            name for name, _ in tuned.named_parameters() if "experts" in name and "lora" in name
        ]
        assert len(corrected) == 2 * 2 * 2


def test_a_killed_run_on_packed_experts_goes_on_to_the_same_bits(
    align, wide_moe, monkeypatch, tmp_path
):
    keys = {
        "quantization": "nf4",
        "target_modules": "with-experts",
        "dropout": 0.0,
        "save_steps": 2,
    }
    build = partial(align, "sft", job_model=wide_moe, job_run=tmp_path / "whole")
    whole, broken = whole_and_broken(build, 3, monkeypatch, **keys)
    assert same(weights(whole), weights(broken))


# One layer at its true sizes, from the config.json of Qwen3-30B-A3B and gpt-oss-20b.
TRUE = {
    "qwen3_moe": {
        "hidden_size": 2048, "moe_intermediate_size": 768, "num_experts": 128,
        "num_experts_per_tok": 8, "num_attention_heads": 32, "num_key_value_heads": 4,
        "head_dim": 128,
    },
    "gpt_oss": {
        "hidden_size": 2880, "intermediate_size": 2880, "num_local_experts": 32,
        "num_experts_per_tok": 4, "num_attention_heads": 64, "num_key_value_heads": 8,
        "head_dim": 64,
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", TRUE)
def test_one_layer_at_true_sizes(family, tmp_path):
    """Bytes as estimated, outputs and gradients as of the weights that the packed ones stand for."""
    sizes = {**SHAPE, **TRUE[family], "num_hidden_layers": 1, "vocab_size": 1024}
    config = AutoConfig.for_model(family, **sizes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    for one in model.parameters():
        one.data.uniform_(-0.05, 0.05)
    model.save_pretrained(tmp_path)
    del model
    model = packed_model(tmp_path, dtype=torch.bfloat16)
    shape, _ = model_shape(str(tmp_path))
    run = run_of_spec({"objective": "sft", "update": "lora", "quantization": "nf4"}, shape)
    said = sum(term.size_bytes for term in static.weights(run) if term.name != "LoRA")
    assert held_bytes(model) == pytest.approx(said, rel=0.03)
    (module,) = (one for one in model.modules() if is_packed(one))
    rows = torch.randn(64, config.hidden_size, dtype=torch.bfloat16)
    chosen = torch.randint(0, module.num_experts, (64, config.num_experts_per_tok))
    weights = torch.rand(chosen.shape, dtype=torch.bfloat16)
    found = [
        gradient_of(forward, module, rows, chosen, weights)
        for forward in (packed_experts.run, one_by_one)
    ]
    torch.testing.assert_close(*found, rtol=0, atol=0.02)


def gradient_of(forward, module, rows, *routed):
    """What a layer gives, and the gradient of its input, each in parts of its largest number."""
    given = rows.clone().requires_grad_()
    out = forward(module, given, *routed)
    out.float().square().sum().backward()
    return tuple(one / one.abs().max() for one in (out.detach(), given.grad))


def one_by_one(module, rows, chosen, weights):
    """The layer by its definition, on weights that are written out for one expert at a time."""
    out = torch.zeros_like(rows)
    for expert in chosen.unique():
        token, place = torch.where(chosen == expert)
        inner = rows[token]
        for part in ("gate_up_proj", "down_proj"):
            state = module.nf4_states[part][expert]
            packed = getattr(module, f"{part}_{PACKED}")[expert]
            inner = inner @ dequantize_4bit(packed.view(-1, 1), state).t()
            if module.has_bias:
                inner = inner + getattr(module, f"{part}_bias")[expert]
            inner = module._apply_gate(inner) if part == "gate_up_proj" else inner
        out = out.index_add(0, token, inner * weights[token, place, None])
    return out


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_the_host_never_holds_16_bits_of_all_layers(family, make, tmp_path):
    """Pages that are written while eight layers load, by the kernel: the packed model and a layer's
    experts as estimated (of gpt-oss from MXFP4)."""
    width = {"qwen3_moe": "moe_intermediate_size", "gpt_oss": "intermediate_size"}[family]
    count = {"qwen3_moe": "num_experts", "gpt_oss": "num_local_experts"}[family]
    sizes = {"num_hidden_layers": 8, "hidden_size": 1024, width: 768, count: 16}
    tiny_mixture(family, **sizes).to(torch.bfloat16).save_pretrained(tmp_path)
    if family == "gpt_oss":
        write_mxfp4(tmp_path, tmp_path)
    keys = {"quantization": "nf4", "weights_dtype": "bfloat16", "attention": "eager"}
    job, cpu = make(**keys, job_model=tmp_path), torch.device("cpu")
    load_base(job, cpu)  # what libraries need at the first time
    pages = Pages()
    pages.start()
    model = load_base(job, cpu)
    most = pages.stop()["written"]
    run = run_of_spec(
        {"objective": "sft", "update": "lora", "quantization": "nf4"}, model_shape(str(tmp_path))[0]
    )
    on_the_way = static.base_while_loading(run)[-1].size_bytes
    # The CPU needs several float32 copies of one matrix besides, and reads the next tensor ahead.
    assert most < held_bytes(model) + 2.25 * on_the_way < 8 * 16 * 3 * 1024 * 768 * 2
