"""Encoders and sequence-to-sequence models: known by their names, and advised for what they do."""

import random
from itertools import product

import pytest

from advisor.advice.planning import missing_for_plan
from advisor.ground.errors import InputError
from advisor.ground.resources import rules_dir
from advisor.ground.yaml_files import read_yaml
from advisor.methods.families import (
    DECODER,
    ENCODER,
    SEQ2SEQ,
    families,
    family_of_name,
    kind_of_type,
)
from advisor.situation.models import model_shape
from advisor.situation.suggestions import suggest_encoder
from tests.advice.situations import advised, drawn
from tests.conftest import scaled

# Published models of each kind, as their hubs and papers call them.
ENCODERS = [
    "roberta-base", "FacebookAI/roberta-large", "distilroberta-base",
    "FacebookAI/xlm-roberta-large", "XLM-R", "microsoft/deberta-v3-base",
    "microsoft/mdeberta-v3-base", "google-bert/bert-base-multilingual-cased", "mBERT",
    "google/electra-base-discriminator", "almanach/camembert-base",
    "distilbert/distilbert-base-multilingual-cased", "answerdotai/ModernBERT-large",
    "jhu-clsp/mmBERT-base", "albert/albert-base-v2", "microsoft/mpnet-base", "SetFit",
    "microsoft/MiniLM-L12-H384-uncased", "urchade/gliner_medium-v2.1", "dmis-lab/biobert-v1.1",
    "ProsusAI/finbert", "nlpaueb/legal-bert-base-uncased", "vinai/bertweet-base",
    "microsoft/codebert-base", "allenai/longformer-base-4096", "EuroBERT/EuroBERT-210m",
]  # fmt: skip
SEQ2SEQ_MODELS = [
    "google-t5/t5-small", "google/flan-t5-xxl", "google/mt5-base", "google/byt5-small",
    "Salesforce/codet5p-220m", "facebook/bart-large-cnn", "sshleifer/distilbart-cnn-12-6",
    "facebook/mbart-large-50", "facebook/nllb-200-distilled-600M", "facebook/m2m100_418M",
    "Helsinki-NLP/opus-mt-en-de", "google/pegasus-xsum", "allenai/led-base-16384",
    "bigscience/mt0-large", "google/madlad400-3b-mt", "CohereForAI/aya-101", "google/ul2",
]  # fmt: skip
DECODERS = [
    "Qwen/Qwen3-8B", "meta-llama/Llama-3.1-8B-Instruct", "mistralai/Mistral-7B-v0.3",
    "openai-community/gpt2", "gpt-5", "google/gemma-3-4b-it", "microsoft/phi-4",
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "EleutherAI/pythia-1b", "baidu/ERNIE-4.5-0.3B-PT",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, ENCODER) for name in ENCODERS),
        *((name, SEQ2SEQ) for name in SEQ2SEQ_MODELS),
        *((name, DECODER) for name in DECODERS),
        *((name, None) for name in ("openai/whisper-large-v3", "facebook/hubert-large", "our-own")),
    ],
)
def test_a_name_gives_its_kind_away(name, kind):
    """Speech models and unknown names are not taken for an encoder of texts."""
    found = family_of_name(name)
    assert (None if found is None else found.kind) == kind


def test_every_architecture_of_the_list_has_its_kind():
    """That of its family, and nothing is listed under two kinds."""
    data = read_yaml(rules_dir() / "families.yaml").data["families"]
    listed = {(name, one["kind"]) for one in data.values() for name in one["model_types"]}
    assert len(listed) == len({name for name, _ in listed}) > 40
    assert all(kind_of_type(name) == kind for name, kind in listed)
    assert all(family.usual is None or family.usual in family.sizes for family in families())
    assert kind_of_type("llama") == kind_of_type(None) == DECODER


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("roberta-large", 355_359_744), ("our flan-t5 base", 247_577_856),
        ("facebook/bart-base", 139_420_416), ("BERT", 109_482_240),
    ],
)  # fmt: skip
def test_sizes_by_word(name, params):
    """A word of the name gives the size as transformers counts it; else the usual or nearer one."""
    shape, warnings = model_shape(name)
    assert shape.params == params
    assert name != "BERT" or "usual size" in warnings[0]
    assert model_shape("our RoBERTa", params_b=0.3)[0].layers == 24


@pytest.mark.parametrize("name", ["roberta-base", "google-bert/bert-large-uncased"])
@pytest.mark.parametrize(
    ("stated", "expected", "said"),
    [
        # Marked words need another recipe: the answer names what trains it.
        ({"task": "structured_output"}, "encoder:sft+full", "run_ner.py"),
        ({"task": "multi_department", "n_tasks": 8}, "encoder:sft+adapter@per_task", ""),
        ({"task": "classification", "n_tasks": 8}, "encoder:sft+adapter@per_task", ""),
        ({"task": "classification", "budget": "high", "priority": "quality"}, "encoder:sft+full", ""),
        ({"task": "other"}, "encoder:sft+full", ""),
    ],
)  # fmt: skip
def test_a_named_encoder_is_trained_for_what_it_can_do(name, stated, expected, said):
    """Entities, many tasks and classes are what encoders are for."""
    advice = advised(gpu="unknown", model=name, data_kind="paired", data_rows=3000, **stated)
    assert str(advice.recommendation.composition) == expected
    assert any(said in warning for warning in ("", *advice.warnings))


@pytest.mark.parametrize("name", SEQ2SEQ_MODELS)
def test_sequence_to_sequence_models_have_their_own_way(name):
    """Small ones are trained whole and large ones with LoRA; the reason names what they are."""
    advice = advised(
        task="generation", model=name, data_kind="paired", data_rows=5000, gpu="unknown"
    )
    large = model_shape(name)[0].params >= 1.5e9
    assert str(advice.recommendation.composition) == f"encoder:sft+{'lora' if large else 'full'}"
    reasons = " ".join(reason.text for reason in advice.recommendation.because)
    assert "sequence-to-sequence" in reasons
    assert advice.recommendation.estimate.memory is not None


def test_of_several_names_it_is_said_that_an_answer_is_about_one():
    """The name counts as a description, and its note says what was taken."""
    text = "Llama-2-7B / ChatGLM2-6B"
    advice = advised(task="classification", model=text, data_kind="paired", gpu="unknown")
    assert any("an answer is about one model" in said for said in advice.warnings)
    assert any("taken as" in said for said in advice.warnings)


def random_small(seed):
    """A situation with an encoder or a sequence-to-sequence model in it, by one name."""
    rng = random.Random(seed)
    kind, names = rng.choice(((ENCODER, ENCODERS), (SEQ2SEQ, SEQ2SEQ_MODELS)))
    stated = drawn(
        rng, (1, "task"), (1, "model", names), (1, "gpu", ("unknown", "T4", "A100 80GB", "none")),
        (0.5, "data_kind"), (0.5, "data_rows", (12, 64, 3000, 200_000)), (0.5, "budget"),
        (0.5, "priority"), (0.5, "depth"), (0.5, "n_tasks", (1, 6)),
        (0.5, "signals", (("latency_critical",), ("memory_bound",), ("teacher_available",))),
    )  # fmt: skip
    if stated.get("data_kind") == "none":
        stated.pop("data_rows", None)  # nothing can be counted
    return kind, stated


def test_naming_a_small_model_never_yields_a_chain_for_a_decoder():
    """A remedy, a refusal, or one supervised stage; and an encoder is never trained to write."""
    trained, refused = 0, set()
    for seed in range(scaled(120)):
        kind, stated = random_small(seed)
        try:
            advice = advised(**stated)
        except InputError:
            refused.add(kind)
            continue
        found = advice.recommendation.composition
        if found.chain:
            trained += 1
            assert found.encoder, (stated, str(found))
            assert found.chain == ("sft",)
            writes = ("customer_service", "chat_assistant", "generation", "code", "reasoning")
            assert kind == SEQ2SEQ or stated["task"] not in writes, stated
            assert advice.recommendation.stages[0].stage.learning_rate > 0
            assert isinstance(missing_for_plan(advice, advice.recommendation), list)
    assert trained > scaled(120) / 6
    assert refused <= {ENCODER}


FEW = [(rows, {"priority": "quality"}) for rows in (16, 40, 60)]
IN_A_HURRY = [
    *product(
        (64, 500, 5000, 100_000), ({"signals": ("latency_critical",)}, {"priority": "latency"})
    )
]


@pytest.mark.parametrize("budget", ["low", "medium", "high"])
@pytest.mark.parametrize(
    ("rows", "more", "expected"),
    [*((*one, "encoder:sft+full") for one in (*FEW, *IN_A_HURRY)), (8, {}, "prompting")],
)
def test_labels_want_an_encoder_whatever_the_budget(budget, rows, more, expected):
    """Money changes nothing; few labels name SetFit, and a handful goes into a prompt."""
    advice = advised(
        task="classification", data_kind="paired", data_rows=rows, budget=budget, gpu="unknown",
        **more,
    )  # fmt: skip
    assert str(advice.recommendation.composition) == expected
    assert rows >= 64 or rows < 16 or any("SetFit" in warning for warning in advice.warnings)


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("The parcel arrived three weeks late and this is not what you promised, number {i}",
         "answerdotai/ModernBERT-base"),
        ("Die Lieferung kam leider erst nach drei Wochen bei mir zu Hause an, Nummer {i}",
         "jhu-clsp/mmBERT-base"),
        ("Посылка пришла на три недели позже, чем было обещано, номер {i}", "jhu-clsp/mmBERT-base"),
    ],
)  # fmt: skip
def test_the_suggested_encoder_reads_the_language_of_the_data(text, model, tmp_path):
    """English texts get the English encoder, all others a multilingual one, named beside it."""
    path = tmp_path / "labels.csv"
    rows = "".join(f'"{text.format(i=i)}",{"late" if i % 2 else "lost"}\n' for i in range(80))
    path.write_text(f"text,label\n{rows}", encoding="utf-8")
    advice = advised(task="classification", data_path=str(path), gpu="unknown")
    assert advice.situation.model.id == model
    found = suggest_encoder([])
    assert found.model == "answerdotai/ModernBERT-base"
    assert "jhu-clsp/mmBERT-base" in found.because
