"""Model names, folders and sizes -> shapes; parameter counts against published ones."""

import json
from unittest.mock import Mock

import pytest

from advisor.estimate.model.architecture import shape_from_config
from advisor.ground.errors import InputError
from advisor.ground.resources import rules_dir
from advisor.ground.types import Answer, AnswerSet
from advisor.ground.yaml_files import read_yaml
from advisor.situation import models
from advisor.situation.build import situation_of
from advisor.situation.catalogue import (
    catalogue_entry,
    catalogue_ids,
    is_instruct,
    suggested_models,
)
from advisor.situation.models import model_shape, shape_from_size
from advisor.situation.suggestions import smaller_models, suggest_model
from tests.fake_model import write_safetensors

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
         "intermediate_size", "vocab_size")  # fmt: skip


def config(model_type: str, sizes: str, **more: object) -> dict:
    return {
        "model_type": model_type,
        **dict(zip(SIZES, map(int, sizes.split()), strict=True)),
        **more,
    }


LLAMA = config("llama", "64 2 4 2 128 100")
TIED = {"tie_word_embeddings": True}
MOE = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
GPT_2 = {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}
ROBERTA = {"max_position_embeddings": 514, "type_vocab_size": 1}
# Counts as the hub pages and papers print them.
PUBLISHED = {
    "Llama 2 7B": (config("llama", "4096 32 32 32 11008 32000"), 6_738_415_616),
    "Llama 2 70B": (config("llama", "8192 80 64 8 28672 32000"), 68_976_648_192),
    "Llama 3.1 8B": (config("llama", "4096 32 32 8 14336 128256"), 8_030_261_248),
    "Llama 3.2 1B": (
        config("llama", "2048 16 32 8 8192 128256", head_dim=64, **TIED), 1_235_814_400,
    ),
    "Mistral 7B v0.1": (config("mistral", "4096 32 32 8 14336 32000"), 7_241_732_096),
    "Qwen2.5 0.5B": (config("qwen2", "896 24 14 2 4864 151936", **TIED), 494_032_768),
    "Qwen3 8B": (config("qwen3", "4096 36 32 8 12288 151936", head_dim=128), 8_190_735_360),
    "Gemma 2 2B": (config("gemma2", "2304 26 8 4 9216 256000", head_dim=256), 2_614_341_888),
    "Mixtral 8x7B": (
        config("mixtral", "4096 32 32 8 14336 32000", num_local_experts=8, num_experts_per_tok=2),
        46_702_792_704,
    ),
    "Qwen3 30B-A3B": (
        config("qwen3_moe", "2048 48 32 4 6144 151936", head_dim=128, **MOE), 30_532_122_624,
    ),
    "GPT-2": ({"model_type": "gpt2", **GPT_2}, 124_439_808),
    "BERT base": (
        config("bert", "768 12 12 12 3072 30522", max_position_embeddings=512), 109_482_240,
    ),
    "RoBERTa base": (config("roberta", "768 12 12 12 3072 50265", **ROBERTA), 124_645_632),
    "Phi-3 mini": (config("phi3", "3072 32 32 32 8192 32064"), 3_821_079_552),
    "SmolLM2 135M": (config("llama", "576 30 9 3 1536 49152", **TIED), 134_515_008),
}  # fmt: skip


@pytest.mark.parametrize("model", PUBLISHED)
def test_parameters_are_counted_as_published(model):
    """The count from config.json is the published one to the last parameter."""
    given, published = PUBLISHED[model]
    assert shape_from_config(given, "x", origin="hub", source="").params == published


@pytest.mark.parametrize(
    ("name", "held", "active"),
    [
        ("31B", 30_697_345_280, None),
        ("26B-A4B", 25_233_141_760, 3_822_530_560),
        ("E4B", 7_463_013_376, None),
        ("E2B", 4_628_569_344, None),
    ],
)
def test_gemma4_is_counted_layer_by_layer(name, held, active):
    """As transformers 5.24 builds text towers: other heads, shared keys and values, wide MLPs."""
    shape, _ = model_shape(f"google/gemma-4-{name}")
    assert (shape.params, shape.active_params, shape.note) == (held, active, "text tower only")


def test_every_catalogue_entry_has_a_shape_and_a_source():
    """With the total of parameters that it states."""
    assert len(catalogue_ids()) >= 400
    for hub_id in catalogue_ids():
        path = rules_dir() / "models" / f"{hub_id.split('/')[0].lower()}.yaml"
        shape, _ = model_shape(hub_id)
        assert read_yaml(path).data["models"][hub_id]["source"], hub_id
        assert (shape.resolved, shape.origin) == (True, "catalogue"), hub_id
        assert shape.params == catalogue_entry(hub_id).get("params", shape.params), hub_id


@pytest.mark.parametrize(
    ("name", "billions", "said"),
    [
        ("Llama 13B", 13, ""),
        ("7B", 7, ""),
        ("135M", 0.135, ""),
        ("Qwen-1.8B", 1.84, ""),
        ("some 1_5B model", 1.5, ""),
        ("a 70 billion model", 70, ""),
        ("someone/Model-9b-chat", 9, ""),
        ("Mixtral 8x7B", 46.7, ""),
        ("Qwen2.5 7B/32B base", 7, "7B, 32B"),  # one is taken, both are named
        ("Qwen2.5 7/32B base", 7, "7B, 32B"),
    ],
)
def test_a_name_gives_its_size(name, billions, said):
    """Sizes are read out of names, and the shape says that it was guessed or whose it is."""
    shape, warnings = model_shape(name)
    assert (shape.params / 1e9, shape.origin) == (pytest.approx(billions, rel=0.02), "size")
    assert said in warnings[0]


@pytest.mark.parametrize(
    "name",
    ["our-own-model", "a large model", "GPT-4", "bar-4bit", "bar-chat", "",
     "Qwen", "llama", "mistral", "gemma", "phi"],
)  # fmt: skip
def test_a_name_without_a_size_is_unknown(name):
    """No size, no shape, nor of a family of many sizes: None and a warning, never a guess."""
    shape, warnings = model_shape(name)
    assert shape is None
    assert warnings


def test_a_stated_size_that_is_not_the_model_s_own_is_said(tmp_path):
    """It decides for unknown names only; a contradiction is named, a rounding (8 for 8.19) not."""
    assert model_shape("our own model", params_b=2.5)[0].params == 2_500_000_000
    shape, warnings = model_shape("Qwen/Qwen3-8B", params_b=70)
    assert (shape.params, warnings, model_shape("Qwen/Qwen3-8B", params_b=8)[1]) == (
        pytest.approx(8.19e9, rel=0.001),
        ["model: stated as 70B parameters, but Qwen/Qwen3-8B has 8.19B; the model counts"],
        [],
    )
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert "stated as 7B parameters" in model_shape(str(tmp_path), params_b=7)[1][0]


def test_guessed_shapes_grow_and_their_heads_divide():
    """Interpolated decoders get wider and deeper with size, and key-value heads divide heads."""
    sizes = (0.05, 0.135, 0.3, 0.5, 1, 1.5, 3, 7, 9, 13, 20, 34, 70, 120, 400, 1000)
    shapes = [shape_from_size(int(billions * 1e9), "x") for billions in sizes]
    assert [shape for shape in shapes if shape.heads % shape.kv_heads] == []
    sides = [shape.layers * shape.hidden_size for shape in shapes]
    assert sides == sorted(sides)


def test_a_folder_is_read_and_its_weights_counted(tmp_path):
    """Headers give parameters, except of quantised tensors: there config.json counts."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    expected = model_shape(str(tmp_path))[0].params
    weights = tmp_path / "model.safetensors"
    write_safetensors(weights, {"a": (10, 20), "b": (7,)})
    shape, warnings = model_shape(str(tmp_path))
    assert (shape.params, shape.hidden_size, shape.origin, warnings) == (207, 64, "folder", [])
    write_safetensors(weights, {"a": (10, 20)}, "U8")
    assert model_shape(str(tmp_path))[0].params == expected


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "no config.json"),
        ({"config.json": "{"}, r"config.json:1:2: not valid JSON"),
        ({"config.json": "[]"}, "an object is expected"),
        ({"config.json": '{"model_type": "llama"}'}, "needs hidden_size"),
        ({"config.json": json.dumps(LLAMA | {"hidden_size": "64"})}, 'hidden_size is "64"'),
        ({"config.json": json.dumps(LLAMA | {"vocab_size": 2**70})}, "vocab_size is 11805"),
        ({"config.json": json.dumps(LLAMA | {"num_hidden_layers": 10**9})}, "layers is 10000"),
        ({"config.json": json.dumps(LLAMA | {"kv_lora_rank": [1]})}, "numbers describe no model"),
        (
            {"config.json": json.dumps(LLAMA | {"hidden_size_per_layer_input": 2**70})},
            "describe no model",
        ),
        ({"model.gguf": ""}, "GGUF files only"),
        (
            {"adapter_config.json": '{"base_model_name_or_path": "org/base"}'},
            "adapter; name the model it belongs to: org/base",
        ),
    ],
)
def test_a_folder_that_is_no_model_says_what_it_is(tmp_path, files, says):
    """A broken, empty, GGUF-only or adapter-only folder is a clear error with the next step."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=says):
        model_shape(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "said"), [("gone", "no such folder"), ("model.gguf", "GGUF file")]
)
def test_a_missing_path_and_a_file_are_refused(tmp_path, name, said):
    """A path that is not there, or a single file, is no model folder."""
    (tmp_path / "model.gguf").touch()
    with pytest.raises(InputError, match=said):
        model_shape(str(tmp_path / name))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"text_config": LLAMA, "vision_config": {"hidden_size": 9}, "model_type": "some_vl"},
            "text tower",
        ),
        ({**LLAMA, "model_type": "newthing"}, "plain decoder"),
    ],
    ids=["multimodal", "unknown family"],
)
def test_what_was_counted_and_how_is_noted(given, said):
    """The text tower alone, and a model type nobody compared as a plain decoder."""
    shape = shape_from_config(given, "x", origin="hub", source="")
    assert (shape.hidden_size, said in shape.note) == (64, True)


def test_the_hub_is_asked_only_when_that_was_wanted(tmp_path, monkeypatch):
    """Only with `online` is an id looked up, a failure warns, and offline the cache serves."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    download = Mock(return_value=(None, "some/unknown: the hub could not be reached"))
    monkeypatch.setattr(models, "download_config", download)
    assert not any("hub could not" in text for text in model_shape("some/unknown")[1])
    assert not download.called
    assert any("hub could not" in text for text in model_shape("some/unknown", online=True)[1])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert (model_shape("some/unknown", online=True)[0], download.call_count) == (None, 1)
    snapshot = tmp_path / "models--some--unknown" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(LLAMA))
    shape, _ = model_shape("some/unknown")
    assert (shape.origin, shape.hidden_size) == ("hub", 64)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", True), ("google/gemma-3-4b-it", True), ("Qwen/Qwen-7B-Chat", True), ("Qwen/Qwen3-8B", True),
        ("Qwen/Qwen3-8B-Base", False), ("mistralai/Devstral-Small", None), ("meta-llama/Llama-3.1-8B", None),
    ],
)  # fmt: skip
def test_the_name_says_whether_a_model_follows_instructions(name, expected):
    """Suffixes decide; a name that says neither gives None."""
    assert is_instruct(name) is expected


@pytest.mark.parametrize(
    ("task", "limit", "untuned", "model"),
    [
        ("qa", 5, False, "Qwen/Qwen3-4B-Instruct-2507"),
        ("qa", 0.2, False, "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("code", 10, False, "Qwen/Qwen2.5-Coder-7B-Instruct"),
        # Who starts from a plain text model is suggested one, of the same size.
        ("reasoning", None, True, "Qwen/Qwen3-8B-Base"),
        ("code", 10, True, "Qwen/Qwen2.5-Coder-7B"),
        ("qa", 0.2, True, "HuggingFaceTB/SmolLM2-135M"),
    ],
)
def test_the_largest_that_fits_is_suggested(task, limit, untuned, model):
    """If none fits the smallest is named as too large; an untuned start keeps to untuned ones."""
    found = suggest_model(task, limit, untuned=untuned)
    assert (found.model, "parameters, licence " in found.because) == (model, True)
    assert "still larger" in suggest_model(task, 0.01).because
    assert ("follows no instructions yet" in found.because) is untuned
    assert "newer ones" not in found.because or not untuned  # those follow instructions
    smaller = [one.model for _, one in smaller_models(task, 3 * 10**9, untuned=True)]
    assert smaller[0] == "Qwen/Qwen3-1.7B-Base"
    assert not any(is_instruct(name) for name in smaller)


def test_every_suggestion_has_size_licence_source_and_an_entry():
    """Suggestions and fallbacks are catalogued, under a licence that allows commercial use."""
    table = suggested_models()
    rows = [*table["models"], *table["encoders"]]
    others = [
        {**row, **other, "base": other["model"]} for row in rows for other in row.get("also", ())
    ]
    for row in (*rows, *others):
        assert (row["license"] in ("apache-2.0", "mit"), bool(row["source"])) == (True, True)
        for name in {row["model"], row.get("base", row["model"])}:
            shape, warnings = model_shape(name)
            assert (shape.id, shape.origin, warnings) == (name, "catalogue", [])
            near = pytest.approx(row["params_b"], rel=0.01 if row in rows else 0.3)
            assert shape.params / 1e9 == near
            assert shape.license in (None, row["license"]), name
            assert shape.architecture is not None
    assert {row["model"].split("-")[0] for row in others} == {"Qwen/Qwen3.5", "google/gemma"}


@pytest.mark.parametrize(
    ("signals", "denied", "model"),
    [
        (("base_model_untuned",), (), "Qwen/Qwen3-8B-Base"),
        ((), ("instruct_model_start",), "Qwen/Qwen3-8B-Base"),
        ((), (), "Qwen/Qwen3-8B"),
        (("instruct_model_start",), (), "Qwen/Qwen3-8B"),
        (("base_model_untuned", "instruct_model_start"), (), "Qwen/Qwen3-8B"),  # not believed
    ],
)
def test_the_suggestion_follows_the_stated_start(signals, denied, model):
    """What was said of the start decides which of the two is suggested."""
    known = {
        "task": Answer(value="reasoning", origin="file"),
        "gpu": Answer(value="unknown", origin="file"),
        "signals": Answer(value=signals, origin="file"),
        **{name: Answer(value=False, origin="file") for name in denied},
    }
    assert situation_of(AnswerSet(known=known)).suggestion.model == model
