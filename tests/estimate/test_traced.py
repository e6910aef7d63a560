"""The formulas held to mixtures of experts as PEFT and autograd see them, and to whole training
steps, traced without their memory: every tensor of forward, backward and optimizer step is counted,
none exists.

MemTracker counts live tensors by kind; under FakeTensorMode they have shapes and no storage, so a
wide model needs none. The layers are as wide as the published models', and few, since tracing takes
time for each.
"""

from contextlib import contextmanager
from itertools import product
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from advisor.estimate.blocks.layer import layers_of
from advisor.estimate.memory import activations
from tests.estimate.specs import RunSpec, memory_estimate, run_of, shape_of

pytestmark = [pytest.mark.slow, pytest.mark.train]

ROWS, LENGTH, RANK = 2, 512, 16
WIDE = {
    "llama": {"vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336,
    "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False},
    "qwen3": {"vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
    "tie_word_embeddings": True},
    "mistral": {"vocab_size": 32_768, "hidden_size": 4096, "intermediate_size": 14_336,
    "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False},
}  # fmt: skip


@contextmanager
def fake(model):
    """Within, parameters and buffers of a meta model are CPU tensors that have no storage."""
    with FakeTensorMode():
        made = {}  # tied weights stay one
        for module in model.modules():
            for name, old in module._parameters.items():
                if old is not None:
                    if id(old) not in made:
                        made[id(old)] = torch.nn.Parameter(
                            torch.empty(old.shape, dtype=old.dtype), requires_grad=old.requires_grad
                        )
                    module._parameters[name] = made[id(old)]
            for name, old in module._buffers.items():
                module._buffers[name] = (
                    None if old is None else torch.empty(old.shape, dtype=old.dtype)
                )
            if hasattr(module, "original_inv_freq"):
                module.original_inv_freq = module.inv_freq
        yield


def peak_of(tracker):
    """Bytes by kind (PARAM, GRAD, ACT, TEMP, OPT, Total, ...) at the peak."""
    found = {}
    for kinds in tracker.get_tracker_snapshot("peak").values():
        for kind, size in kinds.items():
            name = str(getattr(kind, "name", kind))
            found[name] = found.get(name, 0) + int(size)
    return found


def traced(config, update, checkpointing, *, wide=False):
    """The peak of a second step with AdamW and a loss on whole logits: in bf16, or of float32
    weights under autocast, at the second of two micro-batches.
    """
    dtype = torch.float32 if wide else torch.bfloat16
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if update == "lora":
            model = peft.get_peft_model(model, peft.LoraConfig(r=RANK, target_modules="all-linear"))
            if checkpointing:
                model.enable_input_require_grads()
    with fake(model):
        model.train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, **({"fused": True} if wide else {"foreach": True}))
        tracker = MemTracker()
        # In place of the gradient hooks of frozen parameters, which MemTracker would ask for.
        nothing = SimpleNamespace(remove=lambda: None)
        for parameter in [one for one in model.parameters() if not one.requires_grad]:
            tracker._param_to_grad_hook_handles[parameter] = (nothing, nothing)
        tracker.track_external(model, optimizer)
        ids = torch.randint(0, config.vocab_size, (ROWS, LENGTH))
        accumulated = 2 if wide else 1
        with tracker:
            for micro_batch in range(2 * accumulated):  # the first step makes the states
                if micro_batch and (wide or micro_batch == 1):
                    tracker.reset_mod_stats()
                with torch.autocast("cpu", torch.bfloat16, enabled=wide):
                    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
                loss.backward()
                if (micro_batch + 1) % accumulated == 0:
                    optimizer.step()
                    optimizer.zero_grad()
    return peak_of(tracker)


IN_16_BIT = {"precision": "pure", "optimizer": "adamw"}
AUTOCAST = {
    "weights_dtype": "float32", "precision": "mixed", "optimizer": "adamw_fused", "grad_accum": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "update", "checkpointing", "wide"),
    [*product(sorted(WIDE), ("lora", "full"), (True, False), [False]), ("mistral", "full", True, True)],
)  # fmt: skip
def test_a_traced_step_has_the_estimated_peak(family, update, checkpointing, wide):
    """Weights and optimizer to the byte (Adam's step counters aside), the peak of everything at
    most a twentieth below and a tenth above. Of float32 weights under autocast, where gradients,
    16-bit copies and activations stand together, within a twentieth.

    Above, where a large vocabulary meets few layers and all weights: the output matrix's gradient
    is counted beside the loss, and is made right after its peak.
    """
    config = transformers.AutoConfig.for_model(
        family, num_hidden_layers=2 if wide else 4, max_position_embeddings=8192, **WIDE[family]
    )
    found = traced(config, update, checkpointing, wide=wide)
    spec = RunSpec(
        update=update, rank=RANK, micro_batch_size=ROWS, seq_len=LENGTH, loss="full",
        gradient_checkpointing=checkpointing, counter="allocated",
        **(AUTOCAST if wide else IN_16_BIT),
    )  # fmt: skip
    estimated = memory_estimate(spec, shape_of(config.to_dict()))
    assert 0.95 <= estimated.peak_bytes / found["Total"] <= (1.05 if wide else 1.10)
    if not wide:
        terms = {term.name: term.size_bytes for term in estimated.peak.terms}
        assert found["PARAM"] == terms["weights"] + terms.get("adapters", 0)
        # What is made inside the optimizer's step counts as the optimizer's: its state, and where
        # the peak is there, one temporary a parameter.
        states = terms["optimizer state"] + terms.get("optimizer temporaries", 0)
        assert found["OPT"] == pytest.approx(states, rel=1e-3)


class Matrix:
    """A head without hooks: MemTracker wants each module called once, ours is for each part."""

    def __init__(self, weight):
        self.weight = weight

    def __call__(self, hidden):
        return hidden @ self.weight.T

    def parameters(self):
        yield self.weight


@pytest.mark.parametrize("share", [0.5, 1.0, 2.0, 4.0])
def test_our_loss_on_the_cpu_holds_a_part_of_the_logits_three_times(share):
    """Log-probabilities of 2,048 tokens and two gradients, however many tokens there are."""

    from trainers.step.answer_loss import TILE_TOKENS, Head, token_log_probs

    assert TILE_TOKENS == activations.OWN_TILE_TOKENS
    config = {"model_type": "llama", **WIDE["mistral"], "num_hidden_layers": 1, "hidden_size": 128}
    words, hidden = int(config["vocab_size"]), int(config["hidden_size"])
    tokens = int(share * TILE_TOKENS)
    with FakeTensorMode():
        head = Matrix(torch.empty(words, hidden))
        states = torch.empty(tokens, hidden, requires_grad=True)
        targets, tracker = torch.zeros(tokens, dtype=torch.long), MemTracker()
        with tracker:
            token_log_probs(states, Head(head), targets)[0].sum().backward()
    held, shape = peak_of(tracker)["Total"], shape_of(config)
    run = run_of(RunSpec(update="lora", seq_len=tokens, weights_dtype="float32"), shape, cpu=True)
    (term,) = activations.loss_memory(run)
    assert term.size_bytes == pytest.approx(held - 4 * head.weight.numel(), rel=0.05)


def test_a_tile_of_logits_on_the_cpu_is_held_as_often_as_said():
    """TRL's chunked log-probabilities without Triton, per logit of the tile."""
    from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE, ChunkedLogProbFunction

    assert TOKEN_CHUNK_SIZE == activations.TILE_TOKENS
    tokens, hidden, words = 1024, 64, activations.TILE_WORDS
    with FakeTensorMode():
        states = torch.empty(tokens, hidden, requires_grad=True)
        weight, targets = torch.empty(words, hidden), torch.zeros(tokens, dtype=torch.long)
        tracker = MemTracker()
        with tracker:
            outputs = ("entropy", "mean_logits", "is_top1")
            found = ChunkedLogProbFunction.apply(
                states, weight, None, targets, 1.0, words, None, 1.0, outputs
            )
            found[0].sum().backward()
    held = peak_of(tracker)["Total"]
    assert held / (tokens * words) == pytest.approx(activations.CPU_TILE_BYTES, rel=0.05)


SMALL = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 160, "vocab_size": 320,
    "max_position_embeddings": 128, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
OWN = {
    "mixtral": LOCAL, "gpt_oss": LOCAL,
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48},
}  # fmt: skip
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def saved_bytes(model, tokens):
    """Bytes of distinct storages that the forward pass keeps, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept, alive = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    ids = torch.randint(0, 320, (1, tokens))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.model(input_ids=ids, use_cache=False)
    return sum(kept.values())


@pytest.mark.parametrize("how", ["attention-and-shared", "with-experts", "full"])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_activations_of_a_mixture_are_what_autograd_keeps(family, how):
    """Two more layers of a small mixture, with and without corrected experts."""
    tokens, sizes = 256, {}
    for layers in (2, 4):
        config = transformers.AutoConfig.for_model(
            family,
            **{
                **SMALL, **OWN[family], "hidden_size": 256, "head_dim": 64,
                "num_hidden_layers": layers, "max_position_embeddings": 512,
                "moe_intermediate_size" if family == "qwen3_moe" else "intermediate_size": 352,
            },
        )  # fmt: skip
        model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).train()
        if how != "full":
            named = EXPERTS if how == "with-experts" else None
            lora = peft.LoraConfig(r=8, target_modules=ATTENTION, target_parameters=named)
            model = peft.get_peft_model(model, lora)
            model.enable_input_require_grads()
            model = model.base_model.model
        with torch.autocast("cpu", torch.bfloat16, enabled=how != "full"):
            sizes[layers] = saved_bytes(model, tokens)
    shape = shape_of(config.to_dict())
    kind = {"update": "full", "precision": "pure"} if how == "full" else {"precision": "mixed"}
    run = run_of(RunSpec(rank=8, target_modules=how, gradient_checkpointing=False, **kind), shape)
    predicted = tokens * layers_of(run)[0][1].kept + run.written_out_bytes
    assert predicted == pytest.approx((sizes[4] - sizes[2]) / 2, rel=0.05)


@pytest.mark.parametrize(
    ("targets", "parameters"), [("attention-and-shared", None), ("with-experts", EXPERTS)]
)
@pytest.mark.parametrize("family", OWN)
def test_lora_parameters_of_a_mixture_are_those_of_peft(family, targets, parameters):
    """On attention, and on the tensors of experts too."""
    config = transformers.AutoConfig.for_model(family, **{**SMALL, **OWN[family]})
    with torch.device("meta"):
        model = peft.get_peft_model(
            transformers.AutoModelForCausalLM.from_config(config),
            peft.LoraConfig(r=8, target_modules=ATTENTION, target_parameters=parameters),
        )
    held = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    shape = shape_of(config.to_dict())
    assert run_of(RunSpec(rank=8, target_modules=targets), shape).trainable == held
