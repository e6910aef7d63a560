"""The formulas held to whole training steps, traced without their memory: every tensor of forward,
backward and optimizer step is counted, none exists.

MemTracker counts live tensors by kind; under FakeTensorMode they have shapes and no storage, so a
wide model needs none. The layers are as wide as the published models', and few, since tracing takes
time for each.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from tests.estimate.specs import RunSpec, memory_estimate, run_of, shape_of

pytestmark = [pytest.mark.slow, pytest.mark.train]

ROWS, LENGTH, RANK, LAYERS = 2, 512, 16, 4
WIDE: Mapping[str, Mapping[str, Any]] = {
    "llama": {"vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336,
    "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False},
    "qwen3": {"vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
    "tie_word_embeddings": True},
    "mistral": {"vocab_size": 32_768, "hidden_size": 4096, "intermediate_size": 14_336,
    "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False},
}  # fmt: skip


class Nothing:
    """Stands for the gradient hook of a frozen parameter, which MemTracker would ask for."""

    def remove(self) -> None:
        """There is nothing to take off."""


@contextmanager
def fake(model: Any) -> Iterator[None]:
    """Within, the parameters and buffers of a model on the meta device are tensors of the CPU that
    have no storage.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        made: dict[int, Any] = {}  # tied weights stay one
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


def peak_of(tracker: Any) -> dict[str, int]:
    """Bytes by kind (PARAM, GRAD, ACT, TEMP, OPT, Total, ...) at the peak."""
    found: dict[str, int] = {}
    for kinds in tracker.get_tracker_snapshot("peak").values():
        for kind, size in kinds.items():
            name = str(getattr(kind, "name", kind))
            found[name] = found.get(name, 0) + int(size)
    return found


def traced(config: Any, update: str, checkpointing: bool, *, wide: bool = False) -> dict[str, int]:
    """The peak of a second step with AdamW and a loss on whole logits: in bf16, or of float32
    weights under autocast, at the second of two micro-batches.
    """
    import peft
    import torch
    import transformers
    from torch.distributed._tools.mem_tracker import MemTracker

    dtype = torch.float32 if wide else torch.bfloat16
    with torch.device("meta"):
        model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
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
        for parameter in model.parameters():
            if not parameter.requires_grad:
                tracker._param_to_grad_hook_handles[parameter] = (Nothing(), Nothing())
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


@pytest.mark.parametrize("checkpointing", [True, False], ids=["checkpointed", "kept"])
@pytest.mark.parametrize("update", ["lora", "full"])
@pytest.mark.parametrize("family", sorted(WIDE))
def test_a_traced_step_has_the_estimated_peak(family, update, checkpointing):
    """Weights and optimizer to the byte (Adam's step counters aside), the peak of everything at
    most a twentieth below and a tenth above.

    Above, where a large vocabulary meets few layers and all weights: the output matrix's gradient
    is counted beside the loss, and is made right after its peak.
    """
    pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(
        family, num_hidden_layers=LAYERS, max_position_embeddings=8192, **WIDE[family]
    )
    found = traced(config, update, checkpointing)
    spec = RunSpec(
        update=update, rank=RANK, micro_batch_size=ROWS, seq_len=LENGTH, optimizer="adamw",
        gradient_checkpointing=checkpointing, loss="full", precision="pure", counter="allocated",
    )  # fmt: skip
    estimated = memory_estimate(spec, shape_of(config.to_dict()))
    terms = {term.name: term.size_bytes for term in estimated.peak.terms}
    assert found["PARAM"] == terms["weights"] + terms.get("adapters", 0)
    # What is made inside the optimizer's step counts as the optimizer's: its state, and where the
    # peak is there, one temporary a parameter.
    assert found["OPT"] == pytest.approx(
        terms["optimizer state"] + terms.get("optimizer temporaries", 0), rel=1e-3
    )
    assert 0.95 <= estimated.peak_bytes / found["Total"] <= 1.10


def test_a_traced_step_of_float32_weights_has_the_estimated_peak():
    """float32 weights under autocast, at the second of two micro-batches: gradients, 16-bit copies
    and activations stand together. Within a twentieth.
    """
    pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(
        "mistral", num_hidden_layers=2, max_position_embeddings=8192, **WIDE["mistral"]
    )
    spec = RunSpec(
        update="full", weights_dtype="float32", precision="mixed", optimizer="adamw_fused",
        micro_batch_size=ROWS, seq_len=LENGTH, grad_accum=2, gradient_checkpointing=True,
        loss="full", counter="allocated",
    )  # fmt: skip
    shape = shape_of(config.to_dict())
    total = traced(config, "full", True, wide=True)["Total"]
    assert memory_estimate(spec, shape).peak_bytes == pytest.approx(total, rel=0.05)


class Matrix:
    """A head without hooks: MemTracker wants each module called once, ours is for each part."""

    def __init__(self, weight: Any) -> None:
        self.weight = weight

    def __call__(self, hidden: Any) -> Any:
        return hidden @ self.weight.T

    def parameters(self) -> Iterator[Any]:
        yield self.weight


@pytest.mark.parametrize("share", [0.5, 1.0, 2.0, 4.0])
def test_our_loss_on_the_cpu_holds_a_part_of_the_logits_three_times(share):
    """Log-probabilities of 2,048 tokens and two gradients, however many tokens there are."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    from advisor.estimate.memory.activations import OWN_TILE_TOKENS, loss_memory
    from trainers.step.answer_loss import TILE_TOKENS, Head, token_log_probs

    assert TILE_TOKENS == OWN_TILE_TOKENS
    config = {"model_type": "llama", **WIDE["mistral"], "num_hidden_layers": 1, "hidden_size": 128}
    words, hidden = int(config["vocab_size"]), int(config["hidden_size"])
    tokens = int(share * TILE_TOKENS)
    with FakeTensorMode():
        head = Matrix(torch.empty(words, hidden))
        states = torch.empty(tokens, hidden, requires_grad=True)
        targets = torch.zeros(tokens, dtype=torch.long)
        tracker = MemTracker()
        with tracker:
            token_log_probs(states, Head(head), targets)[0].sum().backward()
    held = peak_of(tracker)["Total"]
    shape = shape_of(config)
    run = run_of(RunSpec(update="lora", seq_len=tokens, weights_dtype="float32"), shape, cpu=True)
    (term,) = loss_memory(run)
    assert term.size_bytes == pytest.approx(held - 4 * head.weight.numel(), rel=0.05)


def test_a_tile_of_logits_on_the_cpu_is_held_as_often_as_said():
    """TRL's chunked log-probabilities without Triton, per logit of the tile."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker
    from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE, ChunkedLogProbFunction

    from advisor.estimate.memory.activations import CPU_TILE_BYTES, TILE_TOKENS, TILE_WORDS

    assert TOKEN_CHUNK_SIZE == TILE_TOKENS
    tokens, hidden = 1024, 64
    with FakeTensorMode():
        states = torch.empty(tokens, hidden, requires_grad=True)
        weight, targets = torch.empty(TILE_WORDS, hidden), torch.zeros(tokens, dtype=torch.long)
        tracker = MemTracker()
        with tracker:
            outputs = ("entropy", "mean_logits", "is_top1")
            found = ChunkedLogProbFunction.apply(
                states, weight, None, targets, 1.0, TILE_WORDS, None, 1.0, outputs
            )
            found[0].sum().backward()
    held = peak_of(tracker)["Total"]
    assert held / (tokens * TILE_WORDS) == pytest.approx(CPU_TILE_BYTES, rel=0.05)
