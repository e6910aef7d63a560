"""Log-probabilities of learned tokens without whole logits (trainers/step/answer_loss.py)."""

import types
from contextlib import nullcontext

import pytest
import torch

from tests.trainers.pretend_gpu import GPU, pretend_gpu
from trainers.rows.row import IGNORED
from trainers.step.answer_loss import (
    Head,
    answer_log_probs,
    answer_places,
    head_of,
    token_log_probs,
)


def by_whole_logits(hidden, head, targets, temperature):
    """The same from all logits at once: log-probabilities and entropies."""
    logits = head.module(hidden).float() * head.scale
    if head.cap is not None:
        logits = head.cap * torch.tanh(logits / head.cap)
    found = torch.distributions.Categorical(logits=logits / temperature)
    return found.log_prob(targets), found.entropy().detach()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("tile", [3, 2048])
@pytest.mark.parametrize(
    ("scale", "cap", "temperature"), [(1.0, None, 1.0), (0.5, 2.0, 0.7)], ids=["plain", "capped"]
)
def test_tiles_have_the_values_and_gradients_of_whole_logits(device, tile, scale, cap, temperature):
    """Also where the head is scaled, capped and trained, on both ways of computing it."""
    found = []
    for way in ("whole", "tiles"):
        torch.manual_seed(0)
        layer = torch.nn.Linear(16, 200)
        hidden, targets = torch.randn(8, 16), torch.arange(8) * 11
        with pretend_gpu() if (way, device) == ("tiles", "cuda") else nullcontext():
            if (way, device) == ("tiles", "cuda"):
                layer, hidden, targets = (one.to(GPU) for one in (layer, hidden, targets))
            hidden.requires_grad_()
            head = Head(layer, scale, cap)
            if way == "whole":
                log_probs, entropies = by_whole_logits(hidden, head, targets, temperature)
            else:
                log_probs, entropies = token_log_probs(
                    hidden, head, targets, temperature=temperature, with_entropy=True, tile=tile
                )
        assert not entropies.requires_grad
        (log_probs * torch.linspace(0.5, 1, 8)).sum().backward()
        found.append((log_probs.detach(), entropies, hidden.grad, layer.weight.grad))
    for tiles, whole in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(tiles, whole, rtol=1e-4, atol=1e-5)


def test_one_tile_of_logits_is_held_for_the_backward_pass():
    """What several tiles keep is as large as the hidden states, not as the logits."""
    head = Head(torch.nn.Linear(16, 200).requires_grad_(False))
    hidden = torch.randn(30, 16, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        found, entropies = token_log_probs(hidden, head, torch.arange(30), tile=4)
    found.sum().backward()
    assert entropies is None
    assert sum(kept) <= 2 * hidden.numel()


def test_a_head_is_read_from_the_config_as_trl_reads_it():
    """Scales that multiply, one that divides, and HyperCLOVA X's, which multiplies all the same."""

    def model_of(**config):
        config = types.SimpleNamespace(model_type="llama", **config)
        config.get_text_config = lambda: config
        return types.SimpleNamespace(
            config=config, get_output_embeddings=lambda: torch.nn.Linear(2, 3)
        )

    heads = [head_of(model_of()), head_of(model_of(lm_head_multiplier=0.25)),
             head_of(model_of(logits_scaling=4.0, final_logit_softcapping=30.0))]  # fmt: skip
    assert [(head.scale, head.cap) for head in heads] == [(1.0, None), (0.25, None), (0.25, 30.0)]
    assert all(head.is_plain for head in heads)
    assert not Head(torch.nn.Sequential(torch.nn.Linear(2, 3))).is_plain


def test_places_are_those_that_predict_a_learned_token():
    """Never across two rows: the first token of a row is predicted by none."""
    labels = torch.tensor([[7, 8, IGNORED, 9], [5, IGNORED, IGNORED, 6]])
    assert answer_places(labels).tolist() == [0, 2, 6]


def test_what_a_mask_chooses_is_a_wait_and_our_loss_asks_for_none():
    """CUDA finds out how much a mask chooses below the dispatcher: reading by a mask and writing
    other than one value holds the host up, and so did TRL's head, twice a micro-batch.
    """
    labels = torch.tensor([[IGNORED, 5, 6, IGNORED], [IGNORED, IGNORED, 7, 8]])
    places = answer_places(labels)
    layer = torch.nn.Linear(16, 200)
    with pretend_gpu() as calls:
        waits = calls.operations.waits
        hidden = torch.randn(2, 4, 16).to(GPU, non_blocking=True).requires_grad_()
        on_gpu = labels.to(GPU, non_blocking=True)
        mask = (labels != IGNORED).to(GPU, non_blocking=True)
        layer.to(GPU)
        waits.clear()
        model = types.SimpleNamespace(
            config=types.SimpleNamespace(get_text_config=lambda: types.SimpleNamespace()),
            get_output_embeddings=lambda: layer,
        )
        log_probs = answer_log_probs(
            model, hidden, labels_BT=on_gpu, places_N=places.to(GPU, non_blocking=True)
        )
        log_probs.sum().backward()
        hidden.detach()[mask] = 0.0
        assert waits == []
        assert hidden[mask].shape == (4, 16)
        assert [wait.split()[0] for wait in waits] == ["index"]
