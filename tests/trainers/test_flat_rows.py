"""Rows laid end to end on the CPU, and the loss in tiles (trainers/step/flat_rows.py,
tiled_loss.py).
"""

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from trainers.stage.answer_loss import add_answer_loss
from trainers.step import flat_rows, tiled_loss

SMALL = {
    "vocab_size": 200, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip


def model_of(kind="llama", **changes):
    torch.manual_seed(1)
    config = AutoConfig.for_model(kind, **{**SMALL, "initializer_range": 0.3, **changes})
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


def batch_of(*sizes):
    """Rows padded on the right, of which the last half is learned."""
    torch.manual_seed(2)
    width = max(sizes)
    batch = {
        "input_ids": torch.randint(1, 200, (len(sizes), width)),
        "attention_mask": torch.tensor([[1] * n + [0] * (width - n) for n in sizes]),
    }
    labels = torch.full((len(sizes), width), -100)
    for line, size in enumerate(sizes):
        labels[line, size // 2 : size] = batch["input_ids"][line, size // 2 : size]
    return batch | {"labels": labels}


def loss_and_gradients(model, batch):
    model.zero_grad()
    log_probs = model(**batch, answer_loss=True)
    (-log_probs).mean().backward()
    return log_probs.detach(), {
        name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None
    }


@pytest.mark.parametrize("head_trains", [True, False], ids=["head trained", "head frozen"])
@pytest.mark.parametrize("checkpointed", [True, False], ids=["recomputed", "kept"])
def test_rows_end_to_end_have_the_loss_of_padded_rows(head_trains, checkpointed, monkeypatch):
    """Log-probabilities and gradients are those of the padded batch, and no padding is computed."""
    monkeypatch.setattr(tiled_loss, "TILE_BYTES", 4 * 200 * 3)  # three tokens: several tiles
    found, widths = [], []
    for flat in (False, True):
        model = model_of(tie_word_embeddings=False)
        model.lm_head.requires_grad_(head_trains)
        model.train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if not flat:
            monkeypatch.setattr(model.config, "_attn_implementation", "eager")
        add_answer_loss(model)
        model.model.embed_tokens.register_forward_hook(
            lambda _, given, __: widths.append(given[0].shape)
        )
        found.append(loss_and_gradients(model, batch_of(7, 20, 4)))
    assert widths[0] == (3, 20)
    assert widths[-1] == (1, 31)
    (padded, padded_gradients), (flat, flat_gradients) = found
    torch.testing.assert_close(flat, padded, rtol=1e-5, atol=1e-5)
    assert padded_gradients.keys() == flat_gradients.keys()
    for name, gradient in padded_gradients.items():
        torch.testing.assert_close(flat_gradients[name], gradient, rtol=1e-4, atol=1e-5)


def test_a_model_with_a_module_computes_no_padding():
    """PEFT's forward passes every argument on, most of them None."""
    base = model_of()
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", r=2))
    add_answer_loss(base)
    widths = []
    base.model.embed_tokens.register_forward_hook(
        lambda _, given, __: widths.append(given[0].shape)
    )
    assert model(**batch_of(7, 20, 4), answer_loss=True).shape == (16,)
    assert widths == [(1, 31)]


def test_packed_rows_lose_their_padding_too():
    """Rows in lines, positions that begin again, padding at the end of the shorter line."""
    line = flat_rows.flat_line(
        {
            "input_ids": torch.tensor([[5, 6, 7, 8, 9], [1, 2, 3, 0, 0]]),
            "position_ids": torch.tensor([[0, 1, 0, 1, 2], [0, 1, 2, 0, 0]]),
        }
    )
    assert line["input_ids"].tolist() == [[5, 6, 7, 8, 9, 1, 2, 3]]
    assert line["position_ids"].tolist() == [[0, 1, 0, 1, 2, 0, 1, 2]]
    assert line["cu_seq_lens_q"].tolist() == [0, 2, 5, 8]
    assert line["max_length_q"] == 3
    labels = torch.tensor([[5, 6, 7, 8, 9], [1, 2, 3, -100, -100]])
    assert flat_rows.flat_labels(labels, line).tolist() == [-100, 6, -100, 8, 9, -100, 2, 3]


@pytest.mark.parametrize(
    ("kind", "changes", "takes"),
    [
        ("llama", {}, True),
        ("qwen3", {"head_dim": 8}, True),
        ("gpt2", {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64}, True),
        ("mistral", {"sliding_window": 8}, False),
    ],
)
def test_models_that_look_at_whole_rows_take_them_end_to_end(kind, changes, takes):
    assert flat_rows.takes_flat_rows(model_of(kind, **changes)) is takes


def test_a_model_that_looks_across_rows_is_noticed(monkeypatch):
    """One that loses the bounds of the rows on their way to its attention."""
    model = model_of()
    plain = model.forward
    monkeypatch.setattr(
        model, "forward",
        lambda **given: plain(**{k: v for k, v in given.items() if not k.startswith("cu_")}),
    )  # fmt: skip
    assert not flat_rows.takes_flat_rows(model)


def test_a_line_of_rows_is_for_plain_batches_alone():
    """A prefix comes with a cache, which has no place in a line."""
    ids = torch.ones(2, 3, dtype=torch.long)
    assert flat_rows.flat_line({"input_ids": ids, "attention_mask": ids, "cache": 1}) is None
    assert flat_rows.flat_line({"inputs_embeds": ids, "attention_mask": ids}) is None
    assert flat_rows.flat_line({"input_ids": ids}) is None


def test_no_logits_are_kept(monkeypatch):
    """What the backward pass needs is as large as the hidden states, not as the logits."""
    monkeypatch.setattr(tiled_loss, "TILE_BYTES", 4 * 200 * 8)
    head = torch.nn.Linear(16, 200).requires_grad_(False)
    hidden = torch.randn(30, 16, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        tiled_loss.tiled_log_probs(hidden, head, torch.arange(30)).sum().backward()
    assert sum(kept) == hidden.numel()
    assert not tiled_loss.suits_tiles(torch.nn.Linear(2, 2))
    assert not tiled_loss.suits_tiles(torch.nn.Sequential())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles_under_autocast_are_the_plain_loss(dtype):
    """In bfloat16 as autocast computes it: rounded logits, probabilities in float32."""
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 200, bias=False).to(dtype).requires_grad_(False)
    targets = torch.arange(30)
    found = []
    for way in (tiled_loss.tiled_log_probs,
                lambda h, head, t: -torch.nn.functional.cross_entropy(head(h).float(), t, reduction="none")):  # fmt: skip
        torch.manual_seed(3)
        hidden = torch.randn(30, 16, dtype=dtype, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            log_probs = way(hidden, head, targets)
        (log_probs * torch.linspace(0.5, 1, 30)).sum().backward()
        found.append((log_probs.detach(), hidden.grad))
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0.02, atol=0.01)
