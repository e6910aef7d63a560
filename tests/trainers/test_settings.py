"""Every key of a stage changes what the trainer does: a key that nothing reads would be a lie in
the plan.
"""

from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import structs

from advisor.ground.errors import InputError
from advisor.plan.keys import key_specs
from advisor.plan.model import Stage
from trainers.rows.stage_rows import prepare_rows
from trainers.start import loading
from trainers.step import settings
from trainers.updates import load_update

CPU = SimpleNamespace(type="cpu")
OTHER: dict[str, Any] = {
    "name": "another",
    "update": "full",
    "quantization": "int8",
    "weights_dtype": "bfloat16",
    "precision": "mixed",
    "learning_rate": 0.5,
    "epochs": 2.0,
    "max_steps": 9,
    "warmup": 0.2,
    "scheduler": "cosine",
    "weight_decay": 0.1,
    "optimizer": "sgd",
    "micro_batch_size": 2,
    "grad_accum": 3,
    "seq_len": 35,
    "packing": True,
    "gradient_checkpointing": True,
    "attention": "eager",
    "truncation": "truncate",
    "holdout": 0.3,
    "save_steps": 7,
    "seed": 1,
    "trl": {"max_grad_norm": 0.3},
    "peft": {"use_dora": True},
    "rank": 5,
    "alpha": 3.0,
    "dropout": 0.2,
    "target_modules": ["q_proj"],
    "rslora": True,
    "train_embeddings": True,
    "loss_on": "all",
}
# Tested where they act: start_from and data in test_sft.py (another folder, another file),
# double_quantization below; the objective chooses the program itself. `head` chooses another
# program (test_encoder.py), keep, early_stopping, save_minutes and group_by_length act while it
# trains (test_held_out_curve.py, test_stopping.py, test_batches.py); kernels and compile change
# layers in place (test_fused_layers.py).
ELSEWHERE = {
    "objective", "start_from", "data", "double_quantization", "options", "head", "keep",
    "early_stopping", "save_minutes", "group_by_length", "kernels", "compile",
    "source_language", "target_language",
}  # fmt: skip


def effects(job, monkeypatch) -> dict[str, Any]:
    """Everything a stage hands to the libraries, without training."""
    import torch
    import transformers
    from trl import SFTConfig

    loads = {}
    real = transformers.AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM,
        "from_pretrained",
        lambda source, **kwargs: loads.update(kwargs) or real(source, output_loading_info=True),
    )
    model = loading.load_base(job, torch.device("cpu"))
    monkeypatch.undo()
    data = prepare_rows(job, loading.load_tokenizer(job))
    steps = settings.total_steps(job, len(data.train), processes=1)
    config = settings.build_config(
        SFTConfig,
        settings.training_arguments(job, CPU, steps=steps) | {"packing": job.stage.packing},
        job,
    )
    peft = load_update(job.stage.update).peft_config(job.stage, job.options, model)
    return {
        "folder": str(job.output),
        "load": {key: str(value) for key, value in loads.items()},
        "rows": [(row.input_ids, row.labels) for row in data.train],
        "dropped": data.dropped,
        "truncated": data.truncated,
        "config": {key: str(value) for key, value in asdict(config).items() if key != "output_dir"},
        "peft": str(peft),
    }


BASIS = {"max_steps": None, "seq_len": 37, "truncation": "drop"}


@pytest.fixture
def basis(make, monkeypatch):
    return effects(make(**BASIS), monkeypatch)


@pytest.mark.parametrize("key", OTHER)
def test_the_key_changes_the_run(key, make, basis, monkeypatch):
    """Changing this key alone changes what is loaded, prepared or configured."""
    job = make(**BASIS | {key: OTHER[key]}) if key != "name" else None
    if job is None:
        job = make(**BASIS)
        job = replace(job, entry=structs.replace(job.entry, name="another"))
    assert effects(job, monkeypatch) != basis


@pytest.mark.light
def test_every_key_is_covered():
    """No key of a stage, of LoRA or of SFT is missing from the test above."""
    keys = set(Stage.__struct_fields__) | set(key_specs().allowed("sft", "lora"))
    assert keys == set(OTHER) | ELSEWHERE


def test_double_quantization_reaches_bitsandbytes(make):
    """Double quantisation is on for nf4 unless the plan says false."""
    assert loading.quantization_config(make(quantization="nf4")).bnb_4bit_use_double_quant is True
    assert (
        loading.quantization_config(
            make(quantization="nf4", double_quantization=False)
        ).bnb_4bit_use_double_quant
        is False
    )


def test_steps_are_counted_as_transformers_counts_them(make):
    """Epochs over the accumulated batches, rounded up; --max-steps only ever lowers it."""
    job = make(max_steps=None, epochs=2.0, micro_batch_size=4, grad_accum=2)
    assert settings.total_steps(job, 30, processes=1) == 8  # 8 batches, 4 steps an epoch
    assert settings.total_steps(make(max_steps=None, epochs=0.1), 30, processes=1) == 1
    assert settings.total_steps(make(max_steps=50, job_max_steps=5), 30, processes=1) == 5
    assert settings.total_steps(make(max_steps=3, job_max_steps=5), 30, processes=1) == 3


def test_checkpoints_are_about_ten_a_run(make):
    """Ten in a run, at least every 500 steps, or what the plan says."""
    assert settings.save_every(make(), 100) == 10
    assert settings.save_every(make(), 3) == 1
    assert settings.save_every(make(), 90_000) == 500
    assert settings.save_every(make(save_steps=33), 100) == 33


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"weights_dtype": "float16"}, "float16 weights need a CUDA GPU"),
        ({"attention": "flash_attention_2"}, "needs a CUDA or ROCm GPU"),
        ({"optimizer": "paged_adamw_8bit"}, "pages memory between GPU and host"),
    ],
)
def test_what_the_device_cannot_do_is_refused_with_the_reason(keys, match, make):
    """A plan that asks the CPU for what only a card can do gets a sentence, not a crash."""
    from trainers import sft

    with pytest.raises(InputError, match=match):
        sft.train(make(**keys))


def test_a_gpu_multiplies_in_tf32_under_mixed_precision_alone(make):
    """Float32 stays float32 where the plan asks for it, and on the CPU."""
    import torch

    from tests.trainers.pretend_gpu import pretend_gpu
    from trainers.sft import SFT
    from trainers.stage import load

    for precision, products in (("mixed", "high"), ("pure", "highest")):
        job = make(weights_dtype="float32", precision=precision)
        load.open_stage(job, SFT())
        assert torch.get_float32_matmul_precision() == "highest"
        launch = structs.replace(job.plan.launch, device="cuda")
        with pretend_gpu():
            load.open_stage(replace(job, plan=structs.replace(job.plan, launch=launch)), SFT())
            assert torch.get_float32_matmul_precision() == products
