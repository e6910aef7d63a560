"""Log-probabilities of learned tokens without whole logits, and evaluation by tokens."""

import random
import types
from contextlib import nullcontext

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.trainers.fitting import sequence
from tests.trainers.pretend_gpu import GPU, pretend_gpu
from tests.trainers.runs import look_before, plain_loss, trained
from trainers.evaluation import loss
from trainers.rollouts import transformers_engine
from trainers.rows.packing import in_batches
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
            there = GPU if (way, device) == ("tiles", "cuda") else torch.device("cpu")
            layer, hidden, targets = (one.to(there) for one in (layer, hidden, targets))
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
    """CUDA counts what a mask chooses below the dispatcher; TRL's head did twice a micro-batch."""
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


def rows_of(lengths):
    draw = random.Random(0)
    for number, length in enumerate(lengths, start=1):
        ids = [draw.randrange(3, 30) for _ in range(length)]
        yield sequence(number, ids, [IGNORED] * (length // 2) + ids[length // 2 :])


def test_a_batch_has_no_more_tokens_than_so_many_of_the_longest_rows():
    """Padding included; every row is in one batch, and comes back in its place."""
    draw, batches = random.Random(1), []

    def taken(places):
        batches.append(places)
        return places

    for at_once in (1, 3, 8):
        lengths = [draw.randrange(1, 200) for _ in range(50)]
        batches.clear()
        assert in_batches(lengths, at_once, taken, "rows") == list(range(50))
        for batch in batches:
            assert len(batch) * max(lengths[place] for place in batch) <= at_once * max(lengths)
    batches.clear()
    assert in_batches([5, 5, 20], 1, taken, "rows") == [0, 1, 2]
    assert batches == [[0, 1], [2]]
    assert in_batches([], 4, taken, "rows") == []


def test_losses_of_rows_in_batches_are_those_of_each_row_alone(tiny_model):
    """Within rounding, in fewer forward passes; the model's forward is as it was."""
    model = AutoModelForCausalLM.from_pretrained(str(tiny_model), dtype=torch.float32)
    passes = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    trainer = types.SimpleNamespace(
        model=model, processing_class=types.SimpleNamespace(pad_token_id=0),
        args=types.SimpleNamespace(per_device_train_batch_size=4),
        accelerator=types.SimpleNamespace(autocast=torch.no_grad),
    )  # fmt: skip
    rows = list(rows_of([6, 24, 9, 7, 12, 5, 8, 23, 16, 4]))
    before = vars(model).get("forward")
    together = loss.row_losses(trainer, rows)
    assert len(passes) == 2
    assert vars(model).get("forward") is before
    assert together == pytest.approx([plain_loss(model, row) for row in rows], abs=1e-5)


def test_evaluation_computes_in_the_precision_of_the_training(make, monkeypatch):
    """A mixed stage evaluates and writes its sample answers under autocast, before and after."""
    seen = {"log_prob_sums": [], "generate_batch": []}
    for module, name in ((loss, "log_prob_sums"), (transformers_engine, "generate_batch")):
        look_before(monkeypatch, module, name, lambda *_, found=seen[name], **__: found.append(
            torch.is_autocast_enabled("cpu")
        ))  # fmt: skip
    trained(make(precision="mixed", max_steps=4))
    assert seen["log_prob_sums"] == [True] * 4  # held-out rows and general prompts, twice
    assert seen["generate_batch"] == [True] * 2
