"""`trl:` and `peft:`: keys of the plan's own and keys that cannot act are refused with the reason,
and wrong values are told before a model is loaded.
"""

import dataclasses
import inspect
import json
from fnmatch import fnmatchcase
from importlib import import_module

import pytest

from advisor.ground.errors import InputError
from advisor.methods import methods
from tests.trainers.runs import trained
from trainers.__main__ import explain_error
from trainers.sft import SFT
from trainers.step import settings
from trainers.step.settings import PLAN_KEYS, REFUSED, check_passed_through, idle_faults, key_faults
from trainers.updates import load_update


def config_classes():
    """The config classes of all objectives."""
    for name in methods().objectives:
        module = import_module(f"trainers.{name}")
        for kind in vars(module).values():
            if inspect.isclass(kind) and kind.__module__ == module.__name__:
                config = getattr(kind, "config_class", lambda self: None)(kind)
                if dataclasses.is_dataclass(config):
                    yield config


def test_the_list_names_fields_that_exist():
    """A refusal of a field that no class has any more would be a dead line."""
    classes = set(config_classes())
    assert len(classes) == 8
    fields = {item.name for config in classes for item in dataclasses.fields(config)}
    dead = {name for name in REFUSED if not any(fnmatchcase(key, name) for key in fields)}
    assert dead <= {"save_safetensors"}  # of earlier releases, still tried


@pytest.fixture
def fault(make, align, unloaded):
    """What is said against the keys of a stage, and that no model was loaded for it."""

    def text(objective="sft", **keys):
        job = make(**keys) if objective == "sft" else align(objective, **keys)
        with pytest.raises(InputError) as caught:
            trained(job)
        return caught.value.text()

    return text


@pytest.mark.parametrize(
    ("objective", "trl", "words"),
    [
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
        # The model's own chat template is used; TRL's place for its arguments is read by nobody here.
        (
            "sft",
            {"chat_template_path": "elsewhere"},
            "cannot be set: the model's own chat template",
        ),
        ("grpo", {"chat_template_kwargs": {"a": 1}}, "set by the plan's own key template"),
        ("sft", {"debug": "everything"}, "'debug': everything is not a valid DebugOption"),
    ],
)
def test_a_key_that_cannot_act_is_refused_with_the_reason(objective, trl, words, fault):
    """The fault names the key and says what to do."""
    own = {"reward": "exact"} if objective == "grpo" else {}
    assert words in fault(objective, trl=trl, **own)


def test_the_place_of_the_vllm_server_is_a_key_of_the_plan():
    """The fields that say where it is are refused; those that correct the loss are TRL's."""
    from trl import GRPOConfig

    keys = {"vllm_mode": 1, "vllm_server_port": 1, "vllm_importance_sampling_mode": "sequence_mask"}
    refused = [fault.what for fault in key_faults("trl", keys, GRPOConfig, PLAN_KEYS)]
    assert len(refused) == 2
    assert all("launch.vllm" in what for what in refused)


def test_all_wrong_values_are_told_at_once(fault):
    """Each wrong type of `trl:` and `peft:` names its key and what it may hold."""
    trl = {
        "neftune_noise_alpha": "high",
        "adam_beta1": [1],
        "learning_rte": 1,
        "max_grad_norm": 1,
        "dataloader_num_workers": True,
        "dataloader_prefetch_factor": 1.5,
        "run_name": ["a"],
    }
    peft = {"lora_bias": 3, "layers_to_transform": "a", "rank_pattern": 5, "bias": "some"}
    text = fault(trl=trl, peft=peft)
    # What only the constructor knows comes before the model is loaded, too.
    assert "peft: 'layers_pattern'" in fault(peft={"layers_pattern": "layers"})
    wanted = (
        "trl: 'neftune_noise_alpha' is 'high'",
        "float | None",
        "trl: 'adam_beta1' is a list",
        "trl: unknown key 'learning_rte'",
        "trl: 'dataloader_num_workers' is true",
        "trl: 'dataloader_prefetch_factor' is 1.5",
        "trl: 'run_name' is a list",
        "peft: 'lora_bias' is 3",
        "peft: 'layers_to_transform' is 'a'",
        "list[int]",
        "peft: 'rank_pattern' is 5",
        "peft: 'bias' is 'some'",
        "Literal['none', 'all', 'lora_only']",
    )
    assert [words for words in wanted if words not in text] == []
    assert "max_grad_norm" not in text


OWNED_BY_LORA = (
    "r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "task_type", "peft_type",
    "inference_mode", "base_model_name_or_path",
)  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
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
        (
            {"update": "adapter", "peft": {"activaton": "gelu", "bottleneck": 3, "scale": 0}},
            [
                "did you mean 'activation'?",
                "'bottleneck' is set by the plan's own key bottleneck",
                "scale is 0",
            ],
        ),
        (  # What else a prefix refuses: tests/plan/test_read.py.
            {"update": "prefix", "peft": {"prefix_projection": True, "num_virtual_tokens": 3}},
            [
                "'prefix_projection' is set by the plan's own key prefix_text",
                "'num_virtual_tokens' is set by the plan's own key prefix_tokens",
            ],
        ),
        (
            {"update": "full", "weights_dtype": "float16", "peft": {"use_dora": True}},
            ["float16 weights cannot be trained in place", "'peft' has no effect"],
        ),
    ],
    ids=["lora", "adapter", "prefix", "full"],
)
def test_typos_and_keys_that_the_plan_owns_are_refused(keys, said, fault):
    """All of a stage at once, under each update: a key with two homes would make one of them a
    lie.
    """
    text = fault(**keys)
    assert [words for words in said if words not in text] == []


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
    """An error inside a library is that of the keys that were passed on; without such keys, and
    where our own code fails, it stays a bug.
    """

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
    ours = raised(list, idle_faults("trl", None, None))
    assert explain_error(ours, job).exit_code == 70
