"""`trl:` and `peft:`: every key that is taken has an effect, every other one is refused with the
reason, and wrong values are told before a model is loaded.
"""

import dataclasses
import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

from advisor.ground.errors import InputError
from advisor.methods import methods
from trainers.step.pass_through import CHOICES, NEEDS, WITHOUT_EFFECT, without_effect
from trainers.step.settings import PLAN_KEYS, SET_BY_TRAINERS
from trainers.updates import load_update


# What is passed on and acts. A release that adds a field fails the test below until somebody has
# looked what the field does in our trainers, and has put it here or into a table of refusals.
def names(text):
    return text.split()


TRAINING = names("""
    accelerator_config activation_checkpointing_kwargs adam_beta1 adam_beta2 adam_epsilon
    average_tokens_across_devices dataloader_drop_last dataloader_in_order
    dataloader_multiprocessing_context dataloader_num_workers dataloader_persistent_workers
    dataloader_pin_memory dataloader_prefetch_factor ddp_backend ddp_broadcast_buffers
    ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph ddp_timeout debug
    enable_jit_checkpoint full_determinism gradient_checkpointing_kwargs log_level log_level_replica
    logging_first_step logging_steps logging_strategy lr_scheduler_kwargs max_grad_norm
    neftune_noise_alpha optim_args optim_target_modules project report_to run_name save_total_limit tf32
    torch_empty_cache_steps trackio_bucket_id
    trackio_space_id trackio_static_space_id
""")
REFERENCE = ["sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"]
PRECOMPUTED = ["precompute_ref_batch_size", "precompute_ref_log_probs"]
GENERATION = names("""
    cache_implementation epsilon_high generation_kwargs mask_truncated_completions min_p
    num_iterations pad_to_multiple_of repetition_penalty router_aux_loss_coef temperature top_k
    top_p transformers_continuous_batching_config use_transformers_continuous_batching
""")
ACTS = {
    "TrainingArguments": names("label_smoothing_factor"),
    "SFTConfig": names("""
        label_smoothing_factor activation_offloading loss_type pad_to_multiple_of
        router_aux_loss_coef
    """),
    "DPOConfig": [
        *names("""
            activation_offloading discopop_tau f_alpha_divergence_coef f_divergence_type
            label_smoothing ld_alpha loss_type loss_weights pad_to_multiple_of router_aux_loss_coef
            use_weighting
        """),
        *REFERENCE,
        *PRECOMPUTED,
    ],
    "KTOConfig": [
        *names("""
            activation_offloading desirable_weight undesirable_weight loss_type pad_to_multiple_of
            router_aux_loss_coef
        """),
        *REFERENCE,
        *PRECOMPUTED,
    ],
    "ORPOConfig": [],
    # three of them are refused in simpo.py, which sets them
    "CPOConfig": names("alpha cpo_alpha label_smoothing loss_type simpo_gamma"),
    "RewardConfig": names("activation_offloading center_rewards_coefficient pad_to_multiple_of"),
    "GRPOConfig": [
        *names("""
            cast_lm_head_to_fp32 delta entropy_coef entropy_coef_delta entropy_coef_max
            entropy_coef_min entropy_target importance_sampling_level loss_type
            multi_objective_aggregation
            off_policy_mask_threshold sapo_temperature_neg sapo_temperature_pos scale_rewards
            top_entropy_quantile use_adaptive_entropy use_bias_correction_kl vespo_k_neg vespo_k_pos
            vespo_lambda_neg vespo_lambda_pos vllm_importance_sampling_cap
            vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min
            vllm_importance_sampling_correction vllm_importance_sampling_mode
        """),
        *REFERENCE,
        *GENERATION,
    ],
    "RLOOConfig": [*names("normalize_advantages reward_clip_range"), *REFERENCE, *GENERATION],
}
# By TRL's callback for the reference, and under the new name of the field.
READ_ELSEWHERE = {"ref_model_mixup_alpha", "ref_model_sync_steps", "gradient_checkpointing_kwargs"}
PEFT_ACTS = {
    "LoraConfig": names("""
        exclude_modules fan_in_fan_out bias modules_to_save init_lora_weights layers_to_transform
        layers_pattern rank_pattern alpha_pattern trainable_token_indices use_dora velora_config
        alora_invocation_tokens layer_replication lora_bias target_parameters ensure_weight_tying
    """),
    "BottleneckConfig": names("activation scale layers modules_to_save"),
    # three of them are refused in updates/prefix.py
    "PrefixTuningConfig": names(
        "modules_to_save init_weights encoder_hidden_size prefix_projection"
    ),
    "IA3Config": names("""
        target_modules exclude_modules feedforward_modules fan_in_fan_out modules_to_save
        init_ia3_weights
    """),
}


def config_classes():
    """Name -> the config classes of all objectives."""
    from transformers import TrainingArguments

    found = {"TrainingArguments": TrainingArguments}
    for name in methods().objectives:
        module = import_module(f"trainers.{name}")
        for kind in list(vars(module).values()):
            if inspect.isclass(kind) and kind.__module__ == module.__name__:
                config = getattr(kind, "config_class", lambda self: None)(None)
                if config is not None and dataclasses.is_dataclass(config):
                    found[config.__name__] = config
    return found


def trainer_source(name):
    """The code that reads a config: transformers' trainer, TRL's of that class, and their parts."""
    import transformers

    folder = Path(transformers.__file__).parent
    files = [*folder.glob("train*.py"), folder / "integrations" / "integration_utils.py"]
    if name != "TrainingArguments":
        config = Path(inspect.getfile(config_classes()[name]))
        trl = next(part for part in config.parents if part.name == "trl")
        files += [config, config.with_name(config.name.replace("_config", "_trainer"))]
        files += [trl / "trainer" / part for part in ("base_trainer.py", "callbacks.py")]
    return "\n".join(path.read_text("utf-8") for path in files)


def fields_of(config):
    return {item.name for item in dataclasses.fields(config) if item.init}


def test_every_field_of_a_config_class_is_classified():
    """Each field of each class that the installed TRL has is set by the plan, decided by the
    trainers, refused as without effect, or known to act and read by the library's code.
    """
    classes = config_classes()
    assert set(classes) == set(ACTS)
    for name, config in classes.items():
        refused = {*PLAN_KEYS, *SET_BY_TRAINERS, *without_effect(config)}
        acts = {*TRAINING, *ACTS[name]}
        fields = fields_of(config)
        assert fields - refused - acts == set(), f"{name}: classify what a release has added"
        assert acts - fields == set(), f"{name} has these no longer"
        assert acts & refused == set(), name
        source = trainer_source(name)
        read = set(re.findall(r"(?:(?<=args\.)|(?<=self\.))(\w+)", source))
        assert acts - read - READ_ELSEWHERE == set(), name


def test_every_field_of_a_peft_config_is_classified():
    """The same for the config classes of PEFT."""
    seen = set()
    for name in methods().updates:
        update = load_update(name)
        config = update.config_class()
        if config is None:
            continue
        seen.add(config.__name__)
        refused = {*update.PLAN_KEYS, *without_effect(config)}
        assert fields_of(config) - refused == set(PEFT_ACTS[config.__name__]), name
    assert seen == set(PEFT_ACTS)


def test_the_tables_name_fields_that_exist():
    """A refusal of a field that no class has any more would be a dead line."""
    classes = config_classes()
    training = fields_of(classes["TrainingArguments"])
    everywhere = training | {name for config in classes.values() for name in fields_of(config)}
    assert set(WITHOUT_EFFECT[""]) - training == set()
    for name, table in WITHOUT_EFFECT.items():
        if name in classes:
            assert set(table) - fields_of(classes[name]) == set(), name
    assert {key for needs in NEEDS for key in needs.fields} - everywhere == set()


@pytest.mark.parametrize(
    ("name", "key"), [(name, key) for name, keys in CHOICES.items() for key in keys]
)
def test_the_choices_are_those_of_the_trainer(name, key):
    """The values that a table allows are the ones that TRL's code compares with."""
    source = trainer_source(name)
    compared = re.findall(rf'\b{key} (?:==|!=|not in|in) (\[[^\]]*\]|\([^)]*\)|"\w+")', source)
    known = {word for line in compared for word in re.findall(r'"(\w+)"', line)}
    assert known <= {*CHOICES[name][key], "kto_pair", "chunked_nll"}
    missing = set(CHOICES[name][key]) - known
    assert all(f'"{word}"' in source for word in missing), missing


@pytest.fixture
def fault(make, align, monkeypatch):
    """What is said against the keys of a stage, and that no model was loaded for it."""
    from trainers.start import loading

    monkeypatch.setattr(loading, "load_base", lambda *_, **__: pytest.fail("loaded a model"))

    def text(objective="sft", **keys):
        job = make(**keys) if objective == "sft" else align(objective, **keys)
        with pytest.raises(InputError) as caught:
            import_module(f"trainers.{objective}").train(job)
        return caught.value.text()

    return text


@pytest.mark.parametrize(
    ("objective", "trl", "words"),
    [
        ("sft", {"eval_steps": 5}, "'eval_steps' would have no effect"),
        ("sft", {"hub_model_id": "a/b"}, "the plan's key push_to uploads the result"),
        ("sft", {"push_to_hub": True}, "the plan's key push_to uploads the result"),
        ("sft", {"report_to": "tensorboard"}, "write `trackers: [tensorboard]` beside the stages"),
        ("sft", {"ref_model_sync_steps": 2}, "unknown key 'ref_model_sync_steps'"),
        ("dpo", {"ref_model_sync_steps": 2}, "with sync_ref_model: true"),
        ("dpo", {"label_smoothing_factor": 0.1}, "the loss of this objective"),
        ("dpo", {"loss_type": "ipoo"}, "did you mean 'ipo'"),
        ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, "'loss_weights"),
        ("sft", {"gradient_checkpointing_kwargs": {}}, "gradient_checkpointing: true"),
        ("sft", {"ddp_timeout": 60}, "launch.processes of 2 or more"),
        ("sft", {"report_to": "wandbb"}, "names wandbb, which is not installed here"),
        ("sft", {"debug": "everything"}, "'debug': everything is not a valid DebugOption"),
    ],
)
def test_a_key_without_effect_is_refused_with_the_reason(objective, trl, words, fault):
    """The fault names the key and says what to do."""
    assert words in fault(objective, trl=trl)


def test_template_arguments_are_a_key_of_the_plan(fault):
    """TRL's own place for them is read by nobody here."""
    text = fault("grpo", reward="exact", trl={"chat_template_kwargs": {"enable_thinking": False}})
    assert "'chat_template_kwargs' would have no effect: the plan's key `template`" in text


def test_all_wrong_values_are_told_at_once(fault):
    """Each wrong type of `trl:` and `peft:` names its key and what it may hold."""
    text = fault(
        trl={
            "neftune_noise_alpha": "high",
            "adam_beta1": [1],
            "learning_rte": 1,
            "max_grad_norm": 1,
        },
        peft={"lora_bias": 3, "layers_to_transform": "a", "rank_pattern": 5, "bias": "some"},
    )
    for words in (
        "trl: 'neftune_noise_alpha' is 'high'",
        "trl: 'adam_beta1' is a list",
        "trl: unknown key 'learning_rte'",
        "peft: 'lora_bias' is 3",
        "true or false",
        "peft: 'layers_to_transform' is 'a'",
        "a list, each a whole number",
        "peft: 'rank_pattern' is 5",
        "peft: 'bias' is 'some'",
        "one of none, all, lora_only",
    ):
        assert words in text
    assert "max_grad_norm" not in text


def test_values_that_the_class_refuses_are_told_with_the_key(fault):
    """What only the constructor knows comes before the model is loaded, too."""
    text = fault(peft={"layers_pattern": "layers"})
    assert "peft: 'layers_pattern'" in text


def test_keys_that_act_are_taken(make):
    """The usual expert's settings pass."""
    import torch

    from trainers.sft import SFT
    from trainers.step.settings import check_passed_through

    job = make(
        trl={
            "max_grad_norm": 1, "adam_beta2": 0.95, "neftune_noise_alpha": 5.0, "loss_type": "dft",
            "dataloader_num_workers": 2, "dataloader_prefetch_factor": 4, "report_to": "none",
            "lr_scheduler_kwargs": {},
        },
        peft={
            "use_dora": True, "rank_pattern": {"q_proj": 4}, "modules_to_save": ["lm_head"],
            "trainable_token_indices": {"embed_tokens": [1, 2]}, "layers_to_transform": 0,
            "init_lora_weights": "gaussian",
        },
        target_modules=["q_proj"],
    )  # fmt: skip
    check_passed_through(job, SFT().config_class(), load_update("lora"), torch.device("cpu"))
