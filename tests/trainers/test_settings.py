"""Every key of a stage changes what the trainer does; others are refused before a model loads."""

import dataclasses
import inspect
import json
from dataclasses import asdict, fields, replace
from fnmatch import fnmatchcase
from importlib import import_module
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from msgspec import structs

from advisor.ground.errors import InputError
from advisor.methods import methods
from advisor.plan.keys import key_specs
from advisor.plan.model import Plan, Stage
from tests.trainers.pretend_gpu import pretend_gpu
from tests.trainers.runs import trained
from trainers.__main__ import explain_error
from trainers.rows.stage_rows import prepare_rows
from trainers.sft import SFT
from trainers.stage import load
from trainers.start import loading
from trainers.step import settings
from trainers.step.settings import PLAN_KEYS, REFUSED, check_passed_through, idle_faults, key_faults
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
# Tested where they act: start_from and data in test_alignment.py (another folder, another file),
# double_quantization below; the objective chooses the program itself. `head` chooses another
# program (test_heads.py), keep, early_stopping, save_minutes and group_by_length act while it
# trains (test_waits.py, test_stopping.py, test_packing.py); kernels and compile change
# layers in place (test_kernels.py).
ELSEWHERE = {
    "objective", "start_from", "data", "double_quantization", "options", "head", "keep",
    "early_stopping", "save_minutes", "group_by_length", "kernels", "compile", "replay", "replay_share",
    "source_language", "target_language",
}  # fmt: skip


def effects(job, monkeypatch) -> dict[str, Any]:
    """Everything a stage hands to the libraries, without training."""
    import torch
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig

    real = AutoModelForCausalLM.from_pretrained
    load = Mock(side_effect=lambda source, **_: real(source, output_loading_info=True))
    with monkeypatch.context() as patch:
        patch.setattr(AutoModelForCausalLM, "from_pretrained", load)
        model = loading.load_base(job, torch.device("cpu"))
    data = prepare_rows(job, loading.load_tokenizer(job))
    steps = settings.total_steps(job, len(data.train), processes=1)
    arguments = settings.training_arguments(job, CPU, steps=steps)
    config = settings.build_config(SFTConfig, arguments | {"packing": job.stage.packing}, job)
    return {
        "folder": job.output.name,
        "load": {key: str(value) for key, value in load.call_args.kwargs.items()},
        "rows": [(list(row.input_ids), list(row.labels)) for row in data.train],
        "dropped": data.dropped,
        "truncated": data.truncated,
        "config": {key: str(value) for key, value in asdict(config).items() if key != "output_dir"},
        "peft": str(load_update(job.stage.update).peft_config(job.stage, job.options, model)),
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
    """This key alone changes what is loaded, prepared or configured; without one nothing does."""
    job = make(**BASIS | ({} if key in (None, "name") else {key: OTHER[key]}))
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
    jobs = [make(quantization="nf4", **keys) for keys in ({}, {"double_quantization": False})]
    configs = [
        loading.quantization_config(job, loading.model_config(job, job.base_model), is_trained=True)
        for job in jobs
    ]
    assert [one.bnb_4bit_use_double_quant for one in configs] == [True, False]


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
    assert [settings.save_every(make(), steps) for steps in (100, 3, 90_000)] == [10, 1, 500]
    assert settings.save_every(make(save_steps=33), 100) == 33


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
    assert own - {"prefix_text"} == set(OF_UPDATES[update])  # which acts in test_updates.py


@pytest.mark.parametrize("update", UPDATES)
def test_every_update_answers_the_same_questions(update, make):
    """A module has what the Protocol asks, and owned fields exist in its config class."""
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


def test_the_list_names_fields_that_exist():
    """A refusal of a field that no class has any more would be a dead line."""
    modules = [import_module(f"trainers.{name}") for name in methods().objectives]
    ours = [
        (kind, kind.config_class)
        for module in modules
        for kind in vars(module).values()
        if inspect.isclass(kind) and kind.__module__ == module.__name__
        if hasattr(kind, "config_class")
    ]
    classes = {config(kind) for kind, config in ours if dataclasses.is_dataclass(config(kind))}
    assert len(classes) == 8
    fields = {item.name for config in classes for item in dataclasses.fields(config)}
    dead = {name for name in REFUSED if not any(fnmatchcase(key, name) for key in fields)}
    assert dead <= {"save_safetensors"}  # of earlier releases, still tried


@pytest.mark.parametrize("processes", [1, 2])
def test_what_acts_beside_another_key_is_taken_there(make, processes):
    """One process has nothing to wait for, two have."""
    job = make(trl={"ddp_timeout": 60})
    launch = structs.replace(job.plan.launch, processes=processes)
    job = replace(job, plan=structs.replace(job.plan, launch=launch))
    assert len(list(idle_faults("stage", job, object))) == (processes == 1)


def test_the_place_of_the_vllm_server_is_a_key_of_the_plan():
    """The fields that say where it is are refused; those that correct the loss are TRL's."""
    from trl import GRPOConfig

    keys = {"vllm_mode": 1, "vllm_server_port": 1, "vllm_importance_sampling_mode": "sequence_mask"}
    refused = [fault.what for fault in key_faults("trl", keys, GRPOConfig, PLAN_KEYS)]
    assert ["launch.vllm" in what for what in refused] == [True, True]


OWNED_BY_LORA = (
    "r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "task_type", "peft_type",
    "inference_mode", "base_model_name_or_path",
)  # fmt: skip
NO_START = "no start that these trainers make"
ANSWERS = {"response_tokens": 6, "generations": 4, "micro_batch_size": 2}
# (objective, keys, words of what is said)
REFUSED_KEYS = [
    # A key of `trl:` that cannot act, with what to do.
    *(
        (objective, {"trl": trl, **({"reward": "exact"} if objective == "grpo" else {})}, [words])
        for objective, trl, words in (
            ("sft", {"eval_steps": 5}, "'eval_steps' cannot be set: held-out loss is measured"),
            ("sft", {"hub_model_id": "a/b"}, "the plan's key push_to uploads the result"),
            ("sft", {"save_total_limit": 1}, "keeps its last two checkpoints"),
            ("sft", {"save_on_each_node": True}, "write one checkpoint together"),
            ("sft", {"push_to_hub": True}, "set by the plan's own key push_to"),
            ("sft", {"learning_rate": 1e-5}, "set by the plan's own key learning_rate"),
            ("sft", {"report_to": "tensorboard"}, "names tensorboard, and the plan's own key"),
            ("sft", {"report_to": "all"}, "write `trackers: [NAME]` beside the stages"),
            ("sft", {"ref_model_sync_steps": 2}, "unknown key 'ref_model_sync_steps'"),
            ("dpo", {"label_smoothing_factor": 0.1}, "this objective has another loss"),
            ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, "'loss_weights"),
            ("sft", {"gradient_checkpointing_kwargs": {}}, "gradient_checkpointing: true"),
            ("sft", {"ddp_timeout": 60}, "launch.processes of 2 or more"),
            # The model's own chat template is used; TRL's place for its arguments is read by nobody.
            ("sft", {"chat_template_path": "elsewhere"},
             "cannot be set: the model's own chat template"),
            ("grpo", {"chat_template_kwargs": {"a": 1}}, "set by the plan's own key template"),
            ("sft", {"debug": "everything"}, "'debug': everything is not a valid DebugOption"),
        )
    ),
    # Typos and owned keys: a key with two homes would make one of them a lie.
    (
        "sft",
        {
            "trl": {"max_grad_nrom": 1.0, "learning_rate": 1.0, "max_length": 3, "bf16": True},
            "peft": {"use_dorra": True, **dict.fromkeys(OWNED_BY_LORA)},
        },
        [
            "did you mean 'max_grad_norm'?",
            "'learning_rate' is set by the plan's own key learning_rate",
            "'max_length' is set by the plan's own key seq_len",
            "'bf16' is set by the plan's own key weights_dtype and precision",
            "did you mean 'use_dora'?",
            "'r' is set by the plan's own key rank",
            *(f"'{key}' is set by the plan's own key" for key in OWNED_BY_LORA),
        ],
    ),
    ("sft", {"update": "adapter", "peft": {"activaton": "gelu", "bottleneck": 3, "scale": 0}},
     ["did you mean 'activation'?", "'bottleneck' is set by the plan's own key bottleneck",
      "scale is 0"]),
    # What else a prefix refuses: tests/plan/test_read.py.
    ("sft", {"update": "prefix", "peft": {"prefix_projection": True, "num_virtual_tokens": 3}},
     ["'prefix_projection' is set by the plan's own key prefix_text",
      "'num_virtual_tokens' is set by the plan's own key prefix_tokens"]),
    # What only the constructor of the config knows.
    ("sft", {"peft": {"layers_pattern": "layers"}}, ["peft: 'layers_pattern'"]),
    # What the device cannot do.
    ("sft", {"update": "full", "weights_dtype": "float16", "peft": {"use_dora": True}},
     ["float16 weights cannot be trained in place", "'peft' has no effect"]),
    ("sft", {"weights_dtype": "float16"}, ["float16 weights need a CUDA GPU"]),
    ("sft", {"attention": "flash_attention_2"}, ["needs a CUDA or ROCm GPU"]),
    ("sft", {"optimizer": "paged_adamw_8bit"}, ["pages memory between GPU and host"]),
    # A start that changes the base, or needs more.
    *(
        ("sft", {"rank": rank, "peft": {"init_lora_weights": start}, "quantization": base}, [words])
        for start, rank, base, words in (
            ("pissa", 8, None, NO_START), ("pissa", 8, "nf4", "it changes the base"),
            ("olora", 8, None, NO_START), ("eva", 8, None, "a pass over the data"),
            ("orthogonal", 8, "nf4", "dtype of the base"),
            ("orthogonal", 5, None, "even rank"),  # PEFT halves it
        )
    ),
    # Nothing to measure.
    *(
        ("sft", {**key, "holdout": 0.0}, ["needs held-out rows, and no row is held out"])
        for key in ({"keep": "best"}, {"early_stopping": 2})
    ),
    # Missing, double, misspelt and unfitting sources of a reward.
    *(
        ("grpo", {**ANSWERS, **keys}, [words])
        for keys, words in (
            ({}, "nothing says what reward an answer gets"),
            ({"verifier": "exact", "reward": "own.py:score"}, "verifier and reward both say"),
            ({"verifier": "regex"}, "verifier regex needs the key pattern"),
            ({"verifier": "regex", "pattern": "("}, "not a regular expression"),
            ({"verifier": "exact", "pattern": "x"}, "'pattern' has no effect"),
            ({"verifier": "json_schema", "schema": "missing.json"}, "no such file"),
            ({"reward": "own.py"}, "file.py:function"),
            ({"reward": "missing.py:score"}, "no such file"),
            ({"reward": "own.py:scores"}, "has no function 'scores'"),
            ({"reward_model": "nowhere"}, "holds no model"),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("objective", "keys", "said"), REFUSED_KEYS)
def test_keys_that_cannot_act_are_refused_with_the_reason(objective, keys, said, fault):
    """The fault names the key and says what to do, before a model is loaded."""
    text = fault(objective, **keys)
    assert [words for words in said if words not in text] == []


def test_all_wrong_values_are_told_at_once(fault):
    """Each wrong type of `trl:` and `peft:` names its key and what it may hold."""
    trl = {
        "neftune_noise_alpha": "high", "adam_beta1": [1], "learning_rte": 1, "max_grad_norm": 1,
        "dataloader_num_workers": True, "dataloader_prefetch_factor": 1.5, "run_name": ["a"],
    }  # fmt: skip
    peft = {"lora_bias": 3, "layers_to_transform": "a", "rank_pattern": 5, "bias": "some"}
    text = fault(trl=trl, peft=peft)
    wanted = (
        "trl: 'neftune_noise_alpha' is 'high'", "float | None", "trl: 'adam_beta1' is a list",
        "trl: unknown key 'learning_rte'", "trl: 'dataloader_num_workers' is true",
        "trl: 'dataloader_prefetch_factor' is 1.5", "trl: 'run_name' is a list",
        "peft: 'lora_bias' is 3", "peft: 'layers_to_transform' is 'a'", "list[int]",
        "peft: 'rank_pattern' is 5", "peft: 'bias' is 'some'",
        "Literal['none', 'all', 'lora_only']",
    )  # fmt: skip
    assert [words for words in wanted if words not in text] == []
    assert "max_grad_norm" not in text


@pytest.mark.parametrize(
    "keys",
    [
        {"peft": {"exclude_modules": r"([a-z._0-9]+)*!"}},
        {"peft": {"rank_pattern": {r"(\w+\.?)*!": 4}}},
        {"target_modules": r"(.*)*!"},
    ],
)
def test_a_pattern_that_takes_for_ever_is_refused(keys, fault, monkeypatch):
    """Before PEFT matches it with the names of a model, which nobody could stop."""
    monkeypatch.setattr(settings, "PATTERN_S", 1)
    text = fault(**keys)
    assert "takes for ever to match a module's name" in text
    assert ("stage sft: peft" in text) == ("peft" in keys)


def test_keys_that_act_are_taken(make):
    """The usual expert's settings pass."""
    job = make(
        trl={
            "max_grad_norm": 1, "adam_beta2": 0.95, "neftune_noise_alpha": 5.0, "loss_type": "dft",
            "dataloader_num_workers": 2, "dataloader_prefetch_factor": 4, "report_to": "none",
            "lr_scheduler_kwargs": {},
        },
        peft={
            "use_dora": True, "rank_pattern": {r"layers.\d+.*q_proj": 4}, "modules_to_save": ["lm_head"],
            "trainable_token_indices": {"embed_tokens": [1, 2]}, "layers_to_transform": 0,
            "init_lora_weights": "gaussian", "alpha_pattern": {"q_proj": 1, "k_proj": 0.5},
        },
        target_modules=["q_proj"],
    )  # fmt: skip
    beside = {"output_dir": "x", "use_cpu": True, "bf16": True, "fp16": False, "report_to": "none"}
    assert settings.fits("ipo", list[str])  # one value stands for a list of it
    check_passed_through(job, SFT().config_class(), load_update("lora"), beside)


@pytest.mark.parametrize(
    "keys",
    [
        {"trl": {"adam_beta1": 9.0}},
        {"peft": {"rank_pattern": {"q_proj": -4}}},
        {"peft": {"exclude_modules": "("}},
    ],
    ids=["a moment above 1", "a negative rank", "no pattern"],
)
def test_what_only_the_library_refuses_is_bad_input(make, keys):
    """It comes with the keys that were passed on, once the stage is built."""
    job = make(**keys)
    with pytest.raises(Exception, match=r"[a-z]") as caught:
        trained(job)
    told = explain_error(caught.value, job)
    assert told.exit_code == 2
    assert all(key in told.text() for values in keys.values() for key in values)


def test_what_a_library_refuses_names_the_keys(make):
    """An error with passed-on keys is theirs; without such keys, or in our code, it is a bug."""

    def raised(call, *given):
        with pytest.raises(Exception, match=r"[a-z]") as caught:
            call(*given)
        return caught.value

    library = raised(json.loads, "backend")
    job = make(trl={"torch_compile_backend": "x"}, peft={"lora_bias": True})
    told = explain_error(library, job)
    assert told.exit_code == 2
    assert "trl: torch_compile_backend, peft: lora_bias): Expecting value" in told.text()
    assert "trainer-error.log" in told.text()
    assert explain_error(library, make()).exit_code == 70
    assert explain_error(raised(list, idle_faults("trl", None, None)), job).exit_code == 70
