"""The bytes that optimizers keep: the estimate beside the optimizers themselves."""

import pytest
from msgspec.structs import replace

from advisor.estimate.memory.optimizer_states import orthogonal_flop, state_size, state_words
from advisor.methods.optimizers import OPTIMIZERS, optimizer, read_arguments
from advisor.methods.stage import Stage
from tests.estimate.specs import RunSpec, run_of, shape_of

LLAMA = {
    "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "vocab_size": 320,
    "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False,
}  # fmt: skip
SHAPE = shape_of({**LLAMA, "model_type": "llama"})
SPEC = RunSpec(update="full", precision="pure", weights_dtype="bfloat16")


def test_every_name_of_transformers_is_still_one_of_its_own():
    """What the table calls transformers' name is one that its Trainer takes."""
    training_args = pytest.importorskip("transformers.training_args")
    names = {item.value for item in training_args.OptimizerNames}
    assert {entry.transformers for entry in OPTIMIZERS.values()} - {None} <= names
    assert all(entry.source.startswith("https://") and entry.about for entry in OPTIMIZERS.values())


@pytest.mark.parametrize(
    ("name", "own"), [("adamw_torch_fused", "adamw_fused"), ("paged_adamw_32bit", "paged_adamw")]
)
def test_a_plan_may_use_the_names_of_transformers(name, own):
    """They become the plan's own: one name for one optimizer."""
    stage = Stage(name="sft", objective="sft", update="lora", learning_rate=1e-4, optimizer=name)
    assert stage.optimizer == optimizer(name).name == own


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("muon", "ns_steps=6, momentum=0.5", {"ns_steps": 6, "momentum": 0.5}),
        ("sgd", "momentum=0.9,nesterov=true", {"momentum": 0.9, "nesterov": True}),
        ("adamw", None, {}),
    ],
)
def test_arguments_are_read_as_transformers_writes_them(name, text, found):
    """NAME=VALUE, by commas; what is not named keeps its default, and each has its type."""
    assert read_arguments(name, text).items() >= found.items()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("muon", "steps=6", "reads no 'steps': it reads momentum, ns_steps"),
        ("muon", "ns_steps=0", "ns_steps is '0', expected a whole number of at least 1"),
        ("adamw", "rank=4", "adamw reads no 'rank', nor any other"),
        ("muon", "momentum", "no NAME=VALUE"),
    ],
)
def test_wrong_arguments_are_named(name, text, said):
    """Each with what is allowed in its place."""
    with pytest.raises(ValueError, match=said):
        read_arguments(name, text)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [name for name, one in OPTIMIZERS.items() if "cpu" in one.devices])
def test_an_optimizer_keeps_what_is_estimated(name, dtype):
    """The state of every optimizer that runs here, after a step over a small Llama, to the byte."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from trainers.step.make_optimizer import make

    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
    model = model.to(getattr(torch, dtype))
    stage = Stage(
        name="sft", objective="sft", update="full", learning_rate=1e-4, optimizer=name,
        weights_dtype=dtype,
    )  # fmt: skip
    made = make(stage, [{"params": [*model.parameters()], "weight_decay": 0.0}], [model])
    ids = torch.randint(0, 320, (1, 8))
    model(input_ids=ids, labels=ids).loss.backward()
    made.step()
    spec = replace(SPEC, optimizer=name, weights_dtype=dtype)
    # Of all tensors that are kept for weights, without look-up tables and counters.
    held = sum(
        value.numel() * value.element_size()
        for state in made.state.values()
        for key, value in state.items()
        if key != "step" and not key.startswith("qmap") and getattr(value, "ndim", 0)
    )
    estimated = state_size(run_of(spec, shape_of(model.config.to_dict())))
    assert held == pytest.approx(estimated, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "per_weight"),
    # bitsandbytes' paged AdamW keeps float32.
    [("adamw_fused", 4), ("adamw_split", 6), ("paged_adamw", 8), ("sgd", 0)],
)
def test_states_per_weight(name, per_weight):
    """Bytes a bfloat16 weight, from the sources of the libraries."""
    run = run_of(replace(SPEC, optimizer=name), SHAPE)
    assert state_size(run) == per_weight * run.dims.params
    assert f"{run.dims.params:,}" in state_words(run)


def test_making_matrices_orthogonal_is_counted():
    """By hand: five steps of 4 m n^2 + 2 n^3 for each layer's seven matrices, for Muon alone."""
    square, half, wide = (128, 128), (64, 128), (128, 192)
    one_layer = sum(
        count * (4 * long * short**2 + 2 * short**3)
        for (short, long), count in ((square, 2), (half, 2), (wide, 3))
    )
    muon = run_of(replace(SPEC, optimizer="muon"), SHAPE)
    assert orthogonal_flop(muon) == pytest.approx(5 * 2 * one_layer)
    assert orthogonal_flop(run_of(SPEC, SHAPE)) == 0
