"""What somebody may mean by the name of a model."""

import json

import pytest

from advisor.ground.types import Answer, AnswerSet
from advisor.model_files import hub_cache
from advisor.situation import models
from advisor.situation.build import situation_of
from advisor.situation.names import MOST, look_up_name, near_models

LLAMA = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 128, "vocab_size": 1000,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize(
    ("typed", "first"),
    [
        ("SmolLM2", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("smol lm 2", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("llama 8b", "meta-llama/Llama-3.1-8B-Instruct"),
        ("llama3 8b", "meta-llama/Meta-Llama-3-8B-Instruct"),
        ("my llama 3.1 8b finetune", "meta-llama/Llama-3.1-8B-Instruct"),
        ("qwen3 8b", "Qwen/Qwen3-8B"),
        ("Qwen3 8B base", "Qwen/Qwen3-8B-Base"),
        ("mistral", "mistralai/Mistral-7B-Instruct-v0.3"),
        ("gemma 3 4b", "google/gemma-3-4b-it"),
        ("qwen 2.5 coder 7b", "Qwen/Qwen2.5-Coder-7B-Instruct"),
        ("phi 4 mini", "microsoft/Phi-4-mini-instruct"),
        ("gptoss", "openai/gpt-oss-20b"),
        ("deberta v3", "microsoft/deberta-v3-base"),
        ("Qwen/Qwen3-8", "Qwen/Qwen3-8B"),
    ],
)
def test_a_name_as_people_say_it_offers_real_models(typed, first):
    """A family, a size or a version in any order; what follows instructions comes first."""
    meant = look_up_name(typed)
    assert meant.id is None
    assert meant.near[0].id == first
    assert len(meant.near) <= MOST
    assert all("parameters" in model.about for model in meant.near)


@pytest.mark.parametrize(
    ("typed", "first"),
    [
        ("Qwn3-8B", "Qwen/Qwen3-8B"),
        ("lama 8b", "meta-llama/Llama-3.1-8B-Instruct"),
        ("mistrl 7b", "mistralai/Mistral-7B-Instruct-v0.3"),
        ("gema 3 4b", "google/gemma-3-4b-it"),
    ],
)
def test_a_misspelt_name_is_said_to_be_one(typed, first):
    """A typo is put right, and marked as put right."""
    meant = look_up_name(typed)
    assert (meant.near[0].id, meant.misspelt) == (first, True)


@pytest.mark.parametrize(
    ("typed", "hub_id"),
    [
        ("Qwen3-8B", "Qwen/Qwen3-8B"),
        ("qwen/qwen3-8b", "Qwen/Qwen3-8B"),
        ("SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M"),
        ("phi4", "microsoft/phi-4"),
        ("gpt2", "openai-community/gpt2"),
    ],
)
def test_a_name_of_one_model_is_that_model(typed, hub_id):
    """Case and separators do not matter where only one model is called so."""
    meant = look_up_name(typed)
    assert meant.id == hub_id
    assert meant.note.startswith(f"read as {hub_id}")


@pytest.mark.parametrize("typed", ["xyzzy", "our company model", "our small model", "8b", "the"])
def test_a_name_that_is_like_none_offers_none(typed):
    """A guess from a word such as 'small' helps nobody."""
    assert look_up_name(typed).near == ()


def test_models_on_this_machine_come_first_and_say_so(tmp_path):
    """What was downloaded is known by its name, with its weights or without."""
    for name in ("acme/Mistral-Support-7B", "acme/only-config"):
        snapshot = tmp_path / "hub" / f"models--{name.replace('/', '--')}" / "snapshots" / "1"
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "hub/models--acme--Mistral-Support-7B/snapshots/1/model.safetensors").touch()
    near, misspelt = near_models("mistral")
    assert not misspelt
    assert near[0].id == "acme/Mistral-Support-7B"
    assert near[0].about.endswith("on this machine")
    assert not look_up_name("only-config").note.endswith("on this machine")


def test_access_on_request_is_said():
    """Who chooses a gated model learns it before the download."""
    about = {model.id: model.about for model in look_up_name("llama 8b").near}
    assert "access on request" in about["meta-llama/Llama-3.1-8B-Instruct"]


def test_what_this_tool_does_not_train_is_no_neighbour():
    """A vision model is never offered, and a closed one is taken: the answer says where to go."""
    assert not any("-VL-" in model.id for model in look_up_name("qwen3 8b").near)
    closed = look_up_name("gpt-4")
    assert closed.id == "gpt-4"
    assert "the answer says where to go with it" in closed.note


def test_a_folder_that_is_no_model_says_what_is_missing(tmp_path):
    """config.json, by name."""
    folder = tmp_path / "mine"
    folder.mkdir()
    meant = look_up_name(str(folder))
    assert (meant.wrong, "no config.json" in meant.note) == (True, True)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    assert look_up_name(str(folder)).id == str(folder)


def test_an_unknown_hub_id_is_looked_up(tmp_path, monkeypatch):
    """Found on the hub it is that model; else why not is said, and near names are offered."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(LLAMA))
    monkeypatch.setattr(models, "download_config", lambda hub_id: (config, ""))
    assert look_up_name("acme/new-model").id == "acme/new-model"
    monkeypatch.setattr(
        models, "download_config", lambda hub_id: (None, f"{hub_id}: not found on the hub")
    )
    meant = look_up_name("acme/Qwen3-8")
    assert meant.id is None
    assert meant.note == "acme/Qwen3-8: not found on the hub"
    assert meant.near[0].id == "Qwen/Qwen3-8B"


def test_offline_is_said():
    """Nobody is told that a model does not exist where the hub was not asked."""
    assert "the hub was not asked (offline)" in look_up_name("acme/new-model").note


@pytest.mark.train
@pytest.mark.parametrize(
    ("raised", "said"),
    [
        ("RepositoryNotFoundError", "not found on the hub"),
        ("GatedRepoError", "access must be requested"),
        ("RemoteEntryNotFoundError", "without a config.json"),
        ("LocalEntryNotFoundError", "could not be reached"),
        ("ConnectError", "could not be reached"),
    ],
)
def test_why_the_hub_gave_no_configuration(monkeypatch, raised, said):
    """No network is not "not found"."""
    import huggingface_hub

    def fail(*args, **kwargs):
        raise type(raised, (Exception,), {})

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", fail)
    path, problem = hub_cache.download_config("acme/new-model")
    assert path is None
    assert said in problem


def test_a_flag_that_names_a_family_is_told_its_models():
    """Advice takes any description; a name without a size is warned about with real names."""
    stated = {"task": "qa", "model": "mistral", "gpu": "none"}
    situation = situation_of(
        AnswerSet(
            known={name: Answer(value=value, origin="flag") for name, value in stated.items()}
        )
    )
    assert "model" in situation.unknown
    assert any(
        "'mistral' may mean mistralai/Mistral-7B-Instruct-v0.3" in text
        for text in situation.warnings
    )
    assert not any("did you mean" in text for text in situation.warnings)  # that is another name


def test_a_description_is_not_read_as_a_model_distilled_into_it():
    """By flag "llama 8b" has the shape of Llama itself, and no thoughts of DeepSeek's."""
    shape, warnings = models.model_shape("llama 8b")
    assert shape.thinks is None
    assert "meta-llama/Llama-3.1-8B" in warnings[0]
