"""Every key of a stage changes what the trainer does: a key that nothing reads would be a lie in
the plan.
"""

from dataclasses import asdict, fields, replace
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import structs

from advisor.ground.errors import InputError
from advisor.methods import methods
from advisor.plan.keys import key_specs
from advisor.plan.model import Plan, Stage
from tests.trainers.pretend_gpu import pretend_gpu
from tests.trainers.runs import trained
from trainers.rows.stage_rows import prepare_rows
from trainers.sft import SFT
from trainers.stage import load
from trainers.start import loading
from trainers.step import settings
from trainers.updates import load_update

CPU = SimpleNamespace(type="cpu")
OTHER: dict[str, Any] = {
    "name": "another", "update": "full", "quantization": "int8", "weights_dtype": "bfloat16",
    "precision": "mixed", "learning_rate": 0.5, "epochs": 2.0, "max_steps": 9, "warmup": 0.2,
    "scheduler": "cosine", "weight_decay": 0.1, "optimizer": "sgd", "micro_batch_size": 2,
    "grad_accum": 3, "seq_len": 35, "packing": True, "gradient_checkpointing": True,
    "attention": "eager", "truncation": "truncate", "holdout": 0.3, "save_steps": 7, "seed": 1,
    "trl": {"max_grad_norm": 0.3}, "peft": {"use_dora": True}, "rank": 5, "alpha": 3.0,
    "dropout": 0.2, "target_modules": ["q_proj"], "rslora": True, "train_embeddings": True,
    "loss_on": "all",
}  # fmt: skip
# Tested where they act: start_from and data in test_sft.py (another folder, another file),
# double_quantization below; the objective chooses the program itself. `head` chooses another
# program (test_encoder.py), keep, early_stopping, save_minutes and group_by_length act while it
# trains (test_held_out_curve.py, test_stopping.py, test_batches.py); kernels and compile change
# layers in place (test_kernels.py).
ELSEWHERE = {
    "objective", "start_from", "data", "double_quantization", "options", "head", "keep",
    "early_stopping", "save_minutes", "group_by_length", "kernels", "compile",
    "source_language", "target_language",
}  # fmt: skip


def effects(job, monkeypatch) -> dict[str, Any]:
    """Everything a stage hands to the libraries, without training."""
    import torch
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig

    loads = {}
    real = AutoModelForCausalLM.from_pretrained

    def load(source, **kwargs):
        loads.update(kwargs)
        return real(source, output_loading_info=True)

    with monkeypatch.context() as patch:
        patch.setattr(AutoModelForCausalLM, "from_pretrained", load)
        model = loading.load_base(job, torch.device("cpu"))
    data = prepare_rows(job, loading.load_tokenizer(job))
    steps = settings.total_steps(job, len(data.train), processes=1)
    arguments = settings.training_arguments(job, CPU, steps=steps)
    config = settings.build_config(SFTConfig, arguments | {"packing": job.stage.packing}, job)
    peft = load_update(job.stage.update).peft_config(job.stage, job.options, model)
    return {
        "folder": job.output.name,
        "load": {key: str(value) for key, value in loads.items()},
        "rows": [(list(row.input_ids), list(row.labels)) for row in data.train],
        "dropped": data.dropped,
        "truncated": data.truncated,
        "config": {key: str(value) for key, value in asdict(config).items() if key != "output_dir"},
        "peft": str(peft),
    }


BASIS = {"max_steps": None, "seq_len": 37, "truncation": "drop"}


BASIS_EFFECTS: dict[str, Any] = {}  # computed once


@pytest.fixture
def basis(make, monkeypatch):
    if not BASIS_EFFECTS:
        BASIS_EFFECTS.update(effects(make(**BASIS), monkeypatch))
    return BASIS_EFFECTS


@pytest.mark.parametrize("key", [None, *OTHER])
def test_the_key_changes_the_run(key, make, basis, monkeypatch):
    """Changing this key alone changes what is loaded, prepared or configured; nothing changes it
    if no key does.
    """
    keys = {} if key in (None, "name") else {key: OTHER[key]}
    job = make(**BASIS | keys)
    if key == "name":
        job = replace(job, entry=structs.replace(job.entry, name="another"))
    assert (effects(job, monkeypatch) != basis) is (key is not None)


@pytest.mark.light
def test_every_key_is_covered():
    """No key of a stage, of LoRA or of SFT is missing from the test above."""
    keys = set(Stage.__struct_fields__) | set(key_specs().allowed("sft", "lora"))
    assert keys == set(OTHER) | ELSEWHERE


def test_double_quantization_reaches_bitsandbytes(make):
    """Double quantisation is on for nf4 unless the plan says false."""
    for keys, is_on in (({}, True), ({"double_quantization": False}, False)):
        config = loading.quantization_config(make(quantization="nf4", **keys))
        assert config.bnb_4bit_use_double_quant is is_on


@pytest.mark.parametrize(
    ("keys", "steps"),
    [
        # 8 batches, 4 steps an epoch.
        ({"max_steps": None, "epochs": 2.0, "micro_batch_size": 4, "grad_accum": 2}, 8),
        ({"max_steps": None, "epochs": 0.1}, 1),
        ({"max_steps": 50, "job_max_steps": 5}, 5),
        ({"max_steps": 3, "job_max_steps": 5}, 3),
    ],
)
def test_steps_are_counted_as_transformers_counts_them(keys, steps, make):
    """Epochs over the accumulated batches, rounded up; --max-steps only ever lowers it."""
    assert settings.total_steps(make(**keys), 30, processes=1) == steps


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
    with pytest.raises(InputError, match=match):
        trained(make(**keys))


def test_a_gpu_multiplies_in_tf32_under_mixed_precision_alone(make):
    """Float32 stays float32 where the plan asks for it, and on the CPU."""
    import torch

    for precision, products in (("mixed", "high"), ("pure", "highest")):
        job = make(weights_dtype="float32", precision=precision)
        load.open_stage(job, SFT())
        assert torch.get_float32_matmul_precision() == "highest"
        launch = structs.replace(job.plan.launch, device="cuda")
        with pretend_gpu():
            load.open_stage(replace(job, plan=structs.replace(job.plan, launch=launch)), SFT())
            assert torch.get_float32_matmul_precision() == products


# --------------------------------------------------------------------------- of updates

UPDATES = sorted(methods().updates)
OF_UPDATES = {
    "adapter": {"bottleneck": 9, "placement": "houlsby", "dropout": 0.25},
    "prefix": {"prefix_tokens": 7},
}


@pytest.mark.parametrize("update", OF_UPDATES)
def test_each_declared_key_changes_the_config(update, make):
    """A key that nothing reads would be a lie in the plan."""
    import torch

    base = loading.load_base(make(), torch.device("cpu"))

    def config(**keys):
        job = make(update=update, **keys)
        return load_update(update).peft_config(job.stage, job.options, base)

    for key, value in OF_UPDATES[update].items():
        assert config(**{key: value}) != config(), key
    allowed = key_specs().allowed("sft", update).items()
    own = {key for key, spec in allowed if spec.owner == f"update {update}"}
    assert own - {"prefix_text"} == set(OF_UPDATES[update])  # which acts in test_prefix.py


@pytest.mark.parametrize("update", UPDATES)
def test_every_update_answers_the_same_questions(update, make):
    """The module has what the Protocol asks, owned fields exist in its config class, and each is a
    field or key that exists.
    """
    module = load_update(update)
    assert {"PLAN_KEYS", "CONFIG", "faults", "arguments", "start"} <= set(vars(module))
    stage = make(update=update).stage
    assert not module.faults(stage)
    assert not module.faults(structs.replace(stage, peft={}))
    known = {*Stage.__struct_fields__, *Plan.__struct_fields__, *key_specs().allowed("sft", update)}
    if (config := module.config_class()) is not None:
        assert set(module.PLAN_KEYS) <= {item.name for item in fields(config)} | {"revision"}
        assert set(module.PLAN_KEYS.values()) <= known


def test_only_an_update_is_taken_for_one():
    """What update schemes share lies beside them, and is none."""
    with pytest.raises(InputError, match=f"trainers exist for: {', '.join(UPDATES)}$"):
        load_update("experts")
