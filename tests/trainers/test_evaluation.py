"""Evaluation in batches by tokens."""

import random
from types import SimpleNamespace

import pytest

from trainers.rows.packing import in_batches
from trainers.rows.row import IGNORED, Row

pytest.importorskip("torch")


def rows_of(lengths):
    draw = random.Random(0)
    found = []
    for number, length in enumerate(lengths, start=1):
        ids = [draw.randrange(3, 30) for _ in range(length)]
        labels = [IGNORED] * (length // 2) + ids[length // 2 :]
        found.append(Row(number, ids, labels, "", "", "", "", ""))
    return found


@pytest.mark.light
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
    import torch
    from transformers import AutoModelForCausalLM

    from trainers.evaluation.loss import row_losses

    model = AutoModelForCausalLM.from_pretrained(str(tiny_model), dtype=torch.float32)
    passes = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    trainer = SimpleNamespace(
        model=model, processing_class=SimpleNamespace(pad_token_id=0),
        args=SimpleNamespace(per_device_train_batch_size=4),
        accelerator=SimpleNamespace(autocast=torch.no_grad),
    )  # fmt: skip
    rows = rows_of([6, 24, 9, 7, 12, 5, 8, 23, 16, 4])
    before = vars(model).get("forward")
    together = row_losses(trainer, rows)
    assert len(passes) == 2
    assert vars(model).get("forward") is before
    for row, loss in zip(rows, together, strict=True):
        ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
        with torch.no_grad():
            alone = model(input_ids=ids, labels=labels).loss
        assert loss == pytest.approx(float(alone), abs=1e-5)


def test_evaluation_computes_in_the_precision_of_the_training(make, monkeypatch):
    """A mixed stage evaluates and writes its sample answers under autocast, before and after."""
    import torch

    from tests.trainers.runs import trained
    from trainers.evaluation import loss
    from trainers.rollouts import transformers_engine

    seen = {"log_prob_sums": [], "generate_batch": []}
    for module, (name, found) in zip((loss, transformers_engine), seen.items(), strict=True):
        original = getattr(module, name)

        def watching(*args, found=found, original=original, **options):
            found.append(torch.is_autocast_enabled("cpu"))
            return original(*args, **options)

        monkeypatch.setattr(module, name, watching)
    trained(make(precision="mixed", max_steps=4))
    assert seen["log_prob_sums"] == [True] * 4  # held-out rows and general prompts, twice
    assert seen["generate_batch"] == [True] * 2
