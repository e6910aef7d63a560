"""Full fine-tuning in each precision and with each optimizer the plan can state."""

import pytest

from advisor.ground.errors import InputError
from tests.trainers.runs import trained
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


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_fused", "adamw_8bit", "adafactor", "sgd"])
def test_each_optimizer_trains_and_is_recorded(optimizer, make):
    """The choice of the plan is the optimizer that ran."""
    from advisor.methods.optimizers import OPTIMIZERS

    result = trained(
        make(
            update="full",
            optimizer=optimizer,
            learning_rate=3e-1 if optimizer == "sgd" else 3e-3,
            max_steps=8,
            job_judge=False,
        )
    )
    assert result["loss_last"] < result["loss_first"]
    assert result["resolved"]["trl"]["optim"] == OPTIMIZERS[optimizer].transformers


def test_what_full_cannot_do_is_refused_with_the_way_out(make):
    """A quantised base, bare float16 and `peft:` are refused before the model loads."""
    with pytest.raises(InputError) as caught:
        sft.train(
            make(
                update="full", quantization="nf4", weights_dtype="float16", peft={"use_dora": True}
            )
        )
    text = str(caught.value)
    assert "needs a frozen base" in text
    assert "float16 weights cannot be trained in place" in text
    assert "'peft' has no effect" in text
