"""Full fine-tuning in each precision and with each optimizer the plan can state."""

import pytest

from advisor.ground.errors import InputError
from tests.trainers.runs import break_at, trained
from trainers import sft


@pytest.mark.parametrize(
    ("weights_dtype", "precision", "autocast"),
    [("float32", "pure", None), ("bfloat16", "pure", None), ("float32", "mixed", "bfloat16")],
)
def test_pure_and_mixed_precision_train(weights_dtype, precision, autocast, make):
    """Pure bfloat16 keeps weights and moments in 16 bit, mixed keeps float32 weights and computes
    in 16 bit; both learn, and result.json says which.
    """
    result = trained(
        make(
            update="full",
            learning_rate=3e-3,
            weights_dtype=weights_dtype,
            precision=precision,
            max_steps=8,
            job_judge=False,
        )
    )
    assert result["loss_last"] < result["loss_first"]
    assert (result["resolved"]["trainable_dtype"], result["resolved"]["autocast"]) == (
        weights_dtype,
        autocast,
    )


@pytest.mark.parametrize(
    ("optimizer", "changes"),
    [
        ("adamw", {}),
        ("adamw_fused", {}),
        ("adamw_8bit", {}),
        ("adafactor", {}),
        ("sgd", {"learning_rate": 3e-1}),
        ("muon", {"trl": {"optim_args": "momentum=0.9"}}),
    ],
)
def test_each_optimizer_trains_and_is_recorded(optimizer, changes, make):
    """The choice of the plan is the optimizer that ran."""
    from advisor.methods.optimizers import OPTIMIZERS

    result = trained(
        make(**{
            "update": "full", "optimizer": optimizer, "learning_rate": 3e-3, "max_steps": 8,
            "job_judge": False, **changes,
        })
    )  # fmt: skip
    assert result["loss_last"] < result["loss_first"]
    recorded = OPTIMIZERS[optimizer].transformers or optimizer
    assert result["resolved"]["trl"]["optim"] == recorded


def test_what_full_cannot_do_is_refused_with_the_way_out(make):
    """Bare float16 and `peft:` are refused before the model loads."""
    with pytest.raises(InputError) as caught:
        sft.train(make(update="full", weights_dtype="float16", peft={"use_dora": True}))
    text = str(caught.value)
    assert "float16 weights cannot be trained in place" in text
    assert "'peft' has no effect" in text


@pytest.mark.parametrize("optimizer", ["muon", "adafactor"])
def test_a_broken_run_under_any_optimizer_ends_with_the_same_weights(optimizer, make, monkeypatch):
    """Four steps at once, and two, a crash and two more: the same file, bit for bit."""
    keys = {
        "update": "full", "optimizer": optimizer, "learning_rate": 3e-3, "max_steps": 4,
        "save_steps": 2, "job_judge": False,
    }  # fmt: skip
    whole = make(**keys)
    trained(whole)
    broken = make(**keys, job_run=whole.run.parent / "broken")
    break_at(3, broken, monkeypatch)
    trained(broken)
    ends = [(job.output / "model.safetensors").read_bytes() for job in (whole, broken)]
    assert ends[0] == ends[1]
    last = whole.checkpoints / "checkpoint-4" / "model.safetensors"
    assert last.read_bytes() == ends[0]
    for name in ("model.safetensors", "result.json"):  # as if it had been stopped while it saved
        (whole.output / name).unlink()
    trained(whole)
    assert (whole.output / "model.safetensors").read_bytes() == ends[0]
